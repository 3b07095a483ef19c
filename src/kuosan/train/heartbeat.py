"""One of several processes, as another one knows it: who it is, how long it may be silent, what its machine says.

Is every process of a run alive? A thread in each says so, beside the training, and ends its process when one is not.

Rank 0 listens; every other rank connects to it, and both sides send a line each `beat` seconds. So a step, a preview or
the reading of data may take as long as it likes: only a process that is stopped, killed or cut off falls silent.

    closed without a goodbye    the process is gone: named at once
    silent for `silence`        it is stopped, or its machine is cut off
    absent for `arrival`        it was killed before it came
    goodbye with a reason       it failed, and said at what

Rank 0 passes its finding on; every process prints it and exits with code 75, whatever its main thread waits for.
Nothing is saved; a save that was being written stays unfinished, and the one before it counts. At a good end the ranks
say goodbye to each other, so that one that stops after the last step is named too.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

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


CODE = 75  # sysexits' EX_TEMPFAIL: the same command goes on
GRACE = 5.0  # seconds, at most, in which a process may fail of the same cause as another that has said goodbye
LONGEST = 1 << 16  # bytes of a line


class KeyValueStore(Protocol):
    """What ranks publish where they listen in: torch's stores."""

    def set(self, key: str, value: str) -> None:
        """Put a value there."""

    def get(self, key: str) -> bytes:
        """Wait for a value."""
        ...


@dataclass
class Heartbeat:
    """This process's sign of life, and its watch over the others."""

    rank: int
    size: int
    times: Times = field(default_factory=Times)
    address: str = "localhost"  # of rank 0's machine
    parent: int = 0  # the launcher, whose end ends this process; 0: there is none

    def __post_init__(self) -> None:
        self.me = Peer(self.rank, os.getpid(), socket.gethostname(), space())
        self.peers: dict[int, Peer] = {}
        self.ended = threading.Event()  # all have said goodbye
        self.over = False  # this process needs nobody any more
        self.leaving = False
        self._listener: socket.socket | None = None
        self._found = threading.Event()
        self._token = secrets.token_hex(16)
        self._new: list[Peer] = []  # connected, and not yet known
        self._port = 0
        self._waited = self._unsent = self._orphaned = 0.0
        self._lock = threading.Lock()  # one writer at a time
        self._grace = min(GRACE, self.times.silence)

    def start(self) -> None:
        """Begin to watch; the arrival of the others counts from here."""
        if self.rank == 0:
            self._listener = listen(self.address)
            self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def meet(self, store: KeyValueStore) -> None:
        """Publish where rank 0 listens, or find it; rank 0 may come later than this one."""
        if self.rank == 0:
            said = [self._port, self._token, self.me.pid, self.me.host, self.me.space]
            store.set("heartbeat", json.dumps(said))
        else:
            self._port, self._token, pid, host, space = json.loads(store.get("heartbeat"))
            hub = self.peers[0] = Peer(0, pid, host, space)
            self._found.set()
            while hub.line is None:  # before a long computation of the main thread; the other thread knows the limit
                time.sleep(0.01)

    def close(self, why: str | None = None) -> None:
        """Say goodbye. At a good end, wait for the others' goodbyes; with a reason, leave at once."""
        if self.over:
            return
        self.leaving = True
        if why is not None:
            patience = time.monotonic() + 2.0
            while self._found.is_set() and self.peers[0].line is None and time.monotonic() < patience:
                time.sleep(0.02)  # rank 0 was found just now: it is to know why this process ends
            self._send_all({"bye": why[:300]})
            self.over = True
            return
        if self.rank:
            self._send_all({"bye": None})
        self.ended.wait()  # the thread ends the process where it waits for one that is gone
        self.over = True

    def wait_for_verdict(self, seconds: float | None = None) -> None:
        """Give the thread time to name whom a failure comes from; where it finds one, this does not return."""
        time.sleep(self._grace + 2 * self.times.beat if seconds is None else seconds)

    # the thread

    def _run(self) -> None:
        tick, last = min(1.0, self.times.beat / 5), time.monotonic()
        try:
            while not self.over:
                self._listen_to(tick)
                now = time.monotonic()
                # a process that was stopped itself, or a machine that slept, has not waited for the others meanwhile
                self._age(min(now - last, max(2 * tick, self.times.silence / 4)))
                last = now
        except Exception as error:  # of this file's own making: better said than a run that nobody watches
            if not self.over:
                self._end(f"{self.me}: its heartbeat failed: {error!r}")
        for peer in [*self.peers.values(), *self._new]:
            if peer.line is not None:
                peer.line.close()
        if self._listener is not None:
            self._listener.close()

    def _listen_to(self, tick: float) -> None:
        if self.rank and self._found.is_set() and self.peers[0].line is None:
            self._connect(self.peers[0])
        lines = {peer.line: peer for peer in [*self.peers.values(), *self._new] if peer.line is not None}
        listener = [self._listener] if self._listener is not None else []
        ready, _, _ = select.select([*listener, *lines], [], [], tick)
        for line in ready:
            if line is self._listener:
                with contextlib.suppress(OSError):
                    accepted, _ = line.accept()
                    accepted.setblocking(False)
                    self._new.append(Peer(-1, line=accepted))
            else:
                self._read(lines[line])

    def _connect(self, hub: Peer) -> None:
        for address in dict.fromkeys((self.address, hub.host)):
            with contextlib.suppress(OSError):
                hub.line = socket.create_connection((address, self._port), timeout=min(self.times.silence, 10))
                hub.line.setblocking(False)
                hub.silent = 0.0
                self._send(hub, {"hello": [self.rank, self.me.pid, self.me.host, self.me.space, self._token]})
                if self.leaving:
                    self._send(hub, {"bye": None})
                return
        time.sleep(0.2)

    def _read(self, peer: Peer) -> None:
        assert peer.line is not None
        try:
            content = peer.line.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        *whole, peer.rest = (peer.rest + content).split(b"\n")
        for text in whole:
            self._take(peer, text)
        if content and len(peer.rest) <= LONGEST:
            return
        peer.line.close()
        peer.line = None
        if peer in self._new:
            self._new.remove(peer)
        elif not peer.left and peer.failed is None and not self.over:
            self._end(f"{peer} is gone: it was killed or it crashed.")

    def _take(self, peer: Peer, text: bytes) -> None:
        """One line of a peer's; a stranger's is dropped."""
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            said: dict[str, Any] = json.loads(text)
            if peer.rank < 0:
                rank, peer.pid, peer.host, peer.space, token = said["hello"]
                if not secrets.compare_digest(str(token), self._token) or not 0 <= int(rank) < self.size:
                    return
                peer.rank = int(rank)
                other = self.me if peer.rank == 0 else self.peers.get(peer.rank)
                self._new.remove(peer)
                self.peers[peer.rank] = peer
                if other is not None:
                    self._end(f"two processes say that they are one: {other} and {peer}. Give each its own RANK.")
                return
            peer.silent = 0.0
            if "fault" in said:
                self._end(str(said["fault"]))
            if "end" in said:
                peer.left = True
                self.ended.set()
            if "bye" in said and said["bye"] is None:
                peer.left = True
            elif "bye" in said:
                peer.failed = str(said["bye"])

    def _age(self, passed: float) -> None:
        """Let time pass: send what is due, and look for who is missing."""
        self._waited += passed
        self._unsent += passed
        if self._unsent >= self.times.beat:
            self._unsent = 0.0
            self._send_all({})
        for peer in list(self.peers.values()):
            if peer.failed is not None:
                peer.failing += passed
                if peer.failing > self._grace and not self.over:
                    self._end(f"{peer} ended: {peer.failed}")
            elif not peer.left and peer.line is not None:
                peer.silent += passed
                if peer.silent >= self.times.silence:
                    self._judge(peer)
        self._look_for_the_absent()
        self._look_for_the_launcher(passed)
        everyone = len(self.peers) == self.size - 1 and all(peer.left for peer in self.peers.values())
        if self.rank == 0 and self.leaving and everyone:
            self._send_all({"end": True})
            self.ended.set()

    def _judge(self, peer: Peer) -> None:
        """End for a silent peer, unless this machine says that it computes without a pause (holding Python's lock)."""
        if peer.host == self.me.host and peer.space == self.me.space and state(peer.pid) == "R":
            peer.silent = self.times.silence / 2
            return
        self._end(
            f"{peer} has not answered for {self.times.silence:g} s: it is stopped, or its machine is cut off. If it is "
            f"still there, end it (kill -9 {peer.pid} on {peer.host})."
        )

    def _look_for_the_absent(self) -> None:
        there = {rank for rank, peer in self.peers.items() if peer.line is not None or peer.left or peer.failed}
        absent = [rank for rank in (range(1, self.size) if self.rank == 0 else (0,)) if rank not in there]
        if not absent or self._waited < self.times.arrival:
            return
        if self.peers.keys() & set(absent):  # rank 0 has said where it listens, and does not
            self._end(f"{self.peers[0]} is gone: nothing answers where it said that it listens.")
        names = f"rank {absent[0]}" if len(absent) == 1 else f"ranks {', '.join(map(str, absent))}"
        self._end(
            f"{names} never came: of {self.size} processes, {self.me} has waited {self.times.arrival:g} s for "
            f"{'it' if len(absent) == 1 else 'them'}. If they start further apart than that, set KUOSAN_ARRIVAL higher."
        )

    def _look_for_the_launcher(self, passed: float) -> None:
        """Without the launcher: stop as by SIGTERM, with a save where that is possible, and by force after a while."""
        if not self.parent or os.getppid() == self.parent:
            return
        if not self._orphaned:
            say(f"kuosan: the launcher (pid {self.parent}) is gone: {self.me} stops.")
            os.kill(self.me.pid, signal.SIGTERM)
        self._orphaned += passed
        if self._orphaned > self.times.silence:
            self._end(f"the launcher (pid {self.parent}) is gone, and {self.me} could not stop by itself.")

    def _end(self, text: str) -> NoReturn:
        """Pass a finding on, print it, and end this process, whatever its other threads do."""
        if self.rank == 0:
            self._send_all({"fault": text})
        say(
            f"kuosan: error: {text} Rank {self.rank} saves nothing and ends; the last save is untouched, and the same "
            f"command goes on from it."
        )
        os._exit(CODE)

    def _send_all(self, said: dict[str, Any]) -> None:
        for peer in list(self.peers.values()):
            self._send(peer, said)

    def _send(self, peer: Peer, said: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):  # what cannot be sent, its silence or its end will show
            if peer.line is not None:
                peer.line.send(json.dumps(said).encode() + b"\n")
