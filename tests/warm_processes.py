"""Processes that begin with torch and kuosan imported: forks of one that imported them, for tests that start many.

A start costs 0.05 s instead of 2 to 4. Else they are processes as any, with a pid, signals, streams and an exit code.
What Python itself does at its start and its end is not shown here: that needs `python -m kuosan.cli.main`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
PRELOAD = ["train.warmed", "train.two_processes", "kuosan.cli.main", "kuosan.cli.train", "kuosan.cli.sample"]
PRELOAD += ["kuosan.sample.write", "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.font_manager"]


class WarmProcess:
    """A fork, with what tests use of subprocess.Popen."""

    def __init__(self, status: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.stdout, self.stderr, self.returncode = stdout, stderr, None
        self._status = os.fdopen(status, "r")
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        """The same once it has ended."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if not select.select([self._status], [], [], max(0, end - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it said on both channels once it has ended."""
        with ThreadPoolExecutor(2) as pool:
            said = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.send_signal(signal.SIGKILL)
                raise
        for stream in (self.stdout, self.stderr):
            stream.close()
        return said[0].result(), said[1].result()

    def send_signal(self, number: int) -> None:
        """Send it a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Server:
    """The process that imported everything, and forks."""

    def __init__(self) -> None:
        self._link, theirs = socket.socketpair()
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
        nothing = subprocess.DEVNULL
        command = [sys.executable, str(HERE / "warm_processes.py"), str(theirs.fileno())]
        self._process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stdin=nothing, stdout=nothing)
        theirs.close()
        assert self._link.recv(1) == b"r", "the warm process did not come up"

    def start(self, target: str, *args: object, env: dict[str, str]) -> WarmProcess:
        """Call `target` ("module:function") with these words in a fork."""
        words = [str(arg) for arg in args]
        request = json.dumps({"target": target, "args": words, "env": env, "cwd": os.getcwd()}).encode()
        pipes = [os.pipe() for _ in range(3)]
        socket.send_fds(self._link, [len(request).to_bytes(4, "big")], [writing for _, writing in pipes])
        self._link.sendall(request)
        for _, writing in pipes:
            os.close(writing)
        status, out, err = (reading for reading, _ in pipes)
        return WarmProcess(status, os.fdopen(out, "r"), os.fdopen(err, "r"))

    def close(self) -> None:
        """End the server."""
        self._link.close()
        self._process.wait(60)


_servers: list[Server] = []


def start(target: str, *args: object, env: dict[str, str] | None = None) -> WarmProcess:
    """Call `target` ("module:function") with these words in a fork; the server starts with the first."""
    if not _servers:
        _servers.append(Server())
    return _servers[0].start(target, *args, env=dict(os.environ if env is None else env))


def kuosan(*words: object, env: Mapping[str, str] = {}) -> WarmProcess:
    """Run `kuosan WORDS` in a fork, with `env` beside what is in the environment."""
    return start("warm_processes:command", *words, env=os.environ | {"OMP_NUM_THREADS": "1"} | env)


def ranks(size: int) -> list[dict[str, str]]:
    """What torchrun puts into the environment of each of several processes of a training."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def command(*words: str) -> None:
    """In the fork: the shell."""
    from kuosan.cli.main import main

    main(words)


def close() -> None:
    """End the server, where there is one."""
    while _servers:
        _servers.pop().close()


def serve(link: socket.socket) -> None:
    """The server's loop."""
    for name in PRELOAD:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are waited for by nobody
    link.sendall(b"r")
    while True:
        length, handles, _, _ = socket.recv_fds(link, 4, 3)
        if not length:
            return
        request = b""
        while len(request) < int.from_bytes(length, "big"):
            request += link.recv(1 << 16)
        if os.fork() == 0:
            link.close()
            _keep(json.loads(request), *handles)
        for handle in handles:
            os.close(handle)


def _keep(request: dict[str, Any], status: int, out: int, err: int) -> None:
    """Fork the process, and say its number and how it ended; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.close(status)
        os.dup2(out, 1)
        os.dup2(err, 2)
    os.close(out)
    os.close(err)
    if child == 0:
        _call(request)
    with contextlib.suppress(BrokenPipeError):
        os.write(status, f"{child}\n".encode())
        os.write(status, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
    os._exit(0)


def _call(request: dict[str, Any]) -> None:
    """In the process: call the target as a command would be; never returns."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    module, name = request["target"].split(":")
    status = 0
    try:
        getattr(importlib.import_module(module), name)(*request["args"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
