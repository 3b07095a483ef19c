"""Run Python under a file system that fails on command: kill, torn write, EIO, or a full disk at operation N.

    server = ForkServer(build(folder), preload=["torch", "kuosan.storage.checkpoint"])   # forks a trial in ~30 ms
    whole = server.run("faults.scenario:saves", run, [1, 2, 3], prefix=run)      # at=0: nothing fails; whole.ops counts
    trial = server.run("faults.scenario:saves", run, [1, 2, 3], prefix=run, at=17, mode="torn")

    train = [sys.executable, "-m", "kuosan.cli.main", "train", ...]
    run_command(shim, train, prefix=run / "checkpoints", at=5, mode="kill")

Operations are counted under `prefix` only, so a prefix of run/checkpoints aims every fault inside a save.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
MODES = ("count", "kill", "torn", "eio", "dead", "enospc")
KILLED = -signal.SIGKILL


class Op(NamedTuple):
    """One change of the file system that the shim saw."""

    number: int
    name: str  # open (that creates), write, pwrite, writev, fsync, rename, exchange, mkdir, rmdir, unlink, ftruncate
    path: str
    to: str  # a rename's second path


class Outcome(NamedTuple):
    """How a trial ended."""

    status: int  # exit code, or minus the signal
    ops: list[Op]
    notes: list[Any]  # what the trial said through `note`, also if it was killed afterwards
    output: str


def build(folder: Path) -> Path | None:
    """Compile the shim into `folder`; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "shim.so"
    command = [compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", "-o", str(library), str(HERE / "shim.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def note(value: Any) -> None:
    """Inside a trial: tell the test something, at once and outside the failing file system."""
    handle = os.open(os.environ["KUOSAN_NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(handle, json.dumps(value).encode() + b"\n")
    os.close(handle)


def run_command(
    shim: Path,
    command: Sequence[str],
    *,
    prefix: Path,
    at: int = 0,
    mode: str = "count",
    kill_after: float | None = None,
    timeout: float = 120,
    env: dict[str, str] | None = None,
) -> Outcome:
    """Run a command under the shim; `kill_after` seconds it is killed with SIGKILL, faults or not."""
    assert mode in MODES, mode
    files = _Files(shim.parent)
    faults = {"PREFIX": os.path.realpath(prefix), "AT": str(at), "MODE": mode, "TRACE": str(files.trace)}
    environment = os.environ | (env or {}) | {f"KUOSAN_FAULTS_{name}": value for name, value in faults.items()}
    environment |= {"LD_PRELOAD": str(shim), "KUOSAN_NOTES": str(files.notes)}
    with open(files.output, "wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(kill_after or timeout)
        if process.poll() is None:
            process.kill()
            process.wait()
            assert kill_after, f"{command} ran past {timeout} s: {files.output.read_text()[-2000:]}"
    return files.outcome(process.returncode)


class ForkServer:
    """A process that has imported `preload` under the shim and forks once a trial; one trial at a time."""

    def __init__(self, shim: Path, preload: Sequence[str] = ()) -> None:
        self.shim = shim
        env = os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
        command = [sys.executable, str(HERE / "harness.py"), str(shim), *preload]
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent.parent
        )

    def run(
        self,
        target: str,
        *args: Any,
        prefix: Path,
        at: int = 0,
        mode: str = "count",
        kill_after: float | None = None,
        timeout: float = 60,
    ) -> Outcome:
        """Call `target` ("module:function") with `args` (JSON values, or paths) in a fork.

        Exit codes: 0 it returned; 1 it raised (the traceback is in `output`); SystemExit's own.
        """
        assert mode in MODES, mode
        files = _Files(self.shim.parent)
        request = {
            "target": target,
            "args": [str(arg) if isinstance(arg, Path) else arg for arg in args],
            "faults": [os.path.realpath(prefix), at, mode, str(files.trace)],
            "files": [str(files.notes), str(files.output)],
            "kill_after": kill_after or timeout,
        }
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the fork server died: exit code {self._process.wait()}"
        status, late = json.loads(answer)
        assert kill_after or not late, f"{target} ran past {timeout} s: {files.output.read_text()[-2000:]}"
        return files.outcome(status)

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


class _Files:
    """Where one trial writes what the test wants to know; removed once it is read."""

    _number = itertools.count()

    def __init__(self, folder: Path) -> None:
        stem = f"trial-{os.getpid()}-{next(self._number)}"
        self.trace, self.notes, self.output = (folder / f"{stem}.{name}" for name in ("trace", "notes", "output"))

    def outcome(self, status: int) -> Outcome:
        ops = []
        for line in _take(self.trace).splitlines():
            number, name, path, to = line.split("\t")
            ops.append(Op(int(number), name, path, to))
        notes = [json.loads(line) for line in _take(self.notes).splitlines()]
        return Outcome(status, ops, notes, _take(self.output))


def _take(path: Path) -> str:
    if not path.exists():
        return ""
    text = path.read_text(errors="replace")
    path.unlink()
    return text


def serve(shim: str, preload: Sequence[str]) -> None:
    """The fork server's loop: one JSON request a line in, [status, was it late] out."""
    for name in preload:
        importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    library = ctypes.CDLL(shim)
    library.faults_configure.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p]
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _trial(request, library.faults_configure)
        print(json.dumps(_wait(child, request["kill_after"])), flush=True)


def _trial(request: dict[str, Any], configure: Callable[..., None]) -> None:
    """In the forked child: call the target under the faults asked for; never returns."""
    notes, output = request["files"]
    os.environ["KUOSAN_NOTES"] = notes
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    status = 0
    try:
        module, name = request["target"].split(":")
        target = getattr(importlib.import_module(module), name)
        prefix, at, mode, trace = request["faults"]
        configure(prefix.encode(), at, mode.encode(), trace.encode())
        target(*request["args"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _wait(child: int, limit: float) -> tuple[int, bool]:
    """The child's status, and whether it had to be killed after `limit` seconds."""
    end = time.monotonic() + limit
    late = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), late
        if time.monotonic() > end and not late:
            os.kill(child, signal.SIGKILL)
            late = True
        time.sleep(0.001)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
