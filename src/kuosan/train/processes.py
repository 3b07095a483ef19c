"""One of several processes, as another one knows it: who it is, how long it may be silent, what its machine says."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from kuosan.errors import Error


@dataclass(frozen=True)
class Times:
    """Seconds, each from the environment."""

    beat: float = 5.0  # KUOSAN_BEAT: between two signs of life
    silence: float = 60.0  # KUOSAN_SILENCE: after which a process is given up
    arrival: float = 75.0  # KUOSAN_ARRIVAL: within which all must have come

    @classmethod
    def of_environment(cls) -> Times:
        """The times that the environment asks for. Raises: Error for anything but a positive number."""
        found = {}
        for name in ("beat", "silence", "arrival"):
            key = f"KUOSAN_{name.upper()}"
            said = os.environ.get(key)
            if said is None:
                continue
            try:
                found[name] = float(said)
            except ValueError:
                found[name] = 0.0
            if not 0 < found[name] < 1e9:
                raise Error(f"the environment says {key}={said!r}: it must be a number of seconds above 0.")
        times = cls(**found)
        if times.silence < 2 * times.beat:
            raise Error(
                f"KUOSAN_SILENCE is {times.silence:g} s, KUOSAN_BEAT {times.beat:g} s: a process must be allowed to "
                f"miss a sign of life; make the silence at least twice the beat."
            )
        return times


@dataclass
class Peer:
    """Another process, as this one knows it."""

    rank: int
    pid: int = 0
    host: str = ""
    space: str = ""  # the host's space of process numbers, where it says
    line: socket.socket | None = None
    rest: bytes = b""  # of a line that is not whole yet
    silent: float = 0.0  # seconds since its last sign of life, of this process's own waking time
    left: bool = False
    failed: str | None = None  # why it said goodbye
    failing: float = 0.0  # seconds since then

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid} on {self.host})" if self.pid else f"rank {self.rank}"


def listen(address: str) -> socket.socket:
    """A socket at a free port; of this machine alone where the others find rank 0 as localhost."""
    if address in ("localhost", "127.0.0.1"):
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def space() -> str:
    """The space that this process's number is of: two containers of one host have two."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def state(pid: int) -> str:
    """What Linux says of a process of this machine: R computes, S sleeps, T is stopped; empty elsewhere."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return ""


def say(text: str) -> None:
    """A line on the error channel, which may be full, closed, or have nobody reading: then it is dropped."""

    def write() -> None:
        with contextlib.suppress(OSError):
            if os.isatty(1):
                os.write(1, b"\x1b[?25h\n")  # the cursor, which a bar hides
            os.write(2, text.encode(errors="replace") + b"\n")

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(2.0)
