"""In a fork: a verb whose standard streams are full, closed, lost or narrow, or whose signals are ignored."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import struct
import sys
import termios
import threading
import time
from pathlib import Path

from kuosan.cli import console
from kuosan.cli.main import main

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def sink(kind: str) -> int:
    """An open file that takes no text, by the reason why."""
    if kind == "full":
        return os.open("/dev/full", os.O_WRONLY)
    if kind == "reader":
        reading, writing = os.pipe()
        os.close(reading)
        return writing
    master, slave = os.openpty()
    if kind == "terminal":  # EIO from now on
        os.close(master)
    else:  # one letter wide, and read by nobody in particular
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 2, 1, 0, 0))
        threading.Thread(target=_drain, args=(master,), daemon=True).start()
    return slave


def _drain(master: int) -> None:
    while os.read(master, 1 << 16):
        pass


def verb(place: str, kind: str, streams: list[int], *words: str) -> None:
    """Run a verb in `place` with these standard streams spoilt."""
    os.chdir(place)
    console.console.file = sys.stdout
    if kind == "closed":
        for stream in streams:
            os.close(stream)
            setattr(sys, ("", "stdout", "stderr")[stream], None)
        console.console._file = None
    elif kind == "ascii":
        sys.stdout = io.TextIOWrapper(open(Path(place) / "said.txt", "wb", 0), "ascii", write_through=True)  # noqa: SIM115
        console.console._file = None
    else:
        handle = sink(kind)
        for stream in streams:
            os.dup2(handle, stream)
        console.console._file = None
    try:
        main(words)
    finally:
        if kind == "closed":  # the fork server flushes them
            sys.stdout, sys.stderr = io.StringIO(), io.StringIO()


def ignored(place: str, *words: str) -> None:
    """Run a verb that was started with its signals ignored, as by `nohup`, and is sent each of them all the time."""
    os.chdir(place)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

    def send() -> None:
        while True:
            for number in SIGNALS:
                os.kill(os.getpid(), number)
            time.sleep(0.01)

    threading.Thread(target=send, daemon=True).start()
    main(words)
