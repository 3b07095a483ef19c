"""Stop or kill one of two processes of a training at any instant: do the others end in time, and name it?

    python benchmarks/rank_faults.py --trials 20 --together 4

Each trial trains in two processes, started by torchrun or by hand (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). One of
them, drawn, gets SIGSTOP or SIGKILL, drawn, in a stage of the run whose turn it is. Counted is whether the other rank
ends within 120 s, and the launcher after it, whether the output names the rank, and whether the same command then ends
with every bit of a run that was left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from train.made_runs import SMALL, differences, outcome, pictures

STAGES = ("start-up", "joining", "training", "preview", "save", "end")
LIMIT = 120.0
STEPS = 120
SETTINGS = SMALL | {
    "train.batch": 6,
    "train.max_steps": STEPS,
    "train.save_every": 20,
    "train.evaluate_every": 20,
    "train.preview_every": 40,
    "train.preview_steps": 20,
    "train.preview_pictures": 16,
}


@dataclass(frozen=True)
class Trial:
    """What came of one fault."""

    stage: str
    launcher: str
    number: str  # the signal's name
    victim: int
    seconds: float  # until all the other ranks had ended
    launcher_seconds: float  # and the launcher, which gives a stopped rank 30 s more
    codes: list[int]
    named: bool
    complete: bool  # the run was done before the signal
    different: list[str]


def command(out: Path, data: Path) -> list[str]:
    """The shell's command of a run, without its Python."""
    words = ["-m", "kuosan.cli.main", "train", str(data), "--out", str(out)]
    for key, value in SETTINGS.items():
        for item in value if isinstance(value, list) else [value]:
            words += [f"--{key}", str(item)]
    return words


class Job:
    """A training in two processes, with all they print in one file."""

    def __init__(self, launcher: str, out: Path, data: Path) -> None:
        self.launcher, self.out = launcher, out
        self.printed = out.with_suffix(".txt")
        self.stream = self.printed.open("ab")
        if launcher == "torchrun":
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
            endpoint = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
            self.started = [self._start([*torchrun, *endpoint, *command(out, data)], {})]
        else:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            words = [sys.executable, *command(out, data)]
            self.started = [self._start(words, common | {"RANK": str(rank)}) for rank in range(2)]

    def _start(self, words: list[str], more: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(words, stdout=self.stream, stderr=subprocess.STDOUT, env=os.environ | more)

    def pid(self, rank: int) -> int | None:
        """The process of a rank, once it is there."""
        if self.launcher == "bare":
            return self.started[rank].pid
        return next((pid for pid, own in children(self.started[0].pid) if own == rank), None)

    def wait(self, victim: int, limit: float) -> tuple[float, list[int]]:
        """Wait for all but the victim; seconds, and exit codes (None counts as -1: it did not end)."""
        begin = time.monotonic()
        codes = []
        for i, process in enumerate(self.started):
            if self.launcher == "bare" and i == victim:
                continue
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, limit - (time.monotonic() - begin)))
            codes.append(-1 if process.returncode is None else process.returncode)
        return time.monotonic() - begin, codes

    def end(self) -> None:
        """Leave no process."""
        pids = [pid for pid, _ in children(self.started[0].pid)] if self.launcher == "torchrun" else []
        for pid in [*pids, *(process.pid for process in self.started if process.poll() is None)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait()
        self.stream.close()


def children(parent: int) -> list[tuple[int, int]]:
    """Pid and rank of a launcher's processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                env = dict(word.split("=", 1) for word in (path / "environ").read_text().split("\0") if "=" in word)
                found.append((int(path.name), int(env.get("RANK", -1))))
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def rows(out: Path) -> int:
    """Steps in a run's log."""
    with contextlib.suppress(OSError):
        return (out / "log.jsonl").read_bytes().count(b"\n")
    return 0


def reached(stage: str, job: Job, draw: random.Random, startup: float) -> None:
    """Return at an instant in a stage of a run, or once the run has ended."""
    step = draw.randrange(5, STEPS - 10)
    begin = time.monotonic()

    def here() -> bool:
        match stage:
            case "start-up":
                return time.monotonic() - begin > wait
            case "joining":
                return b"compute:" in job.printed.read_bytes()
            case "training":
                return rows(job.out) >= step
            case "preview":
                return rows(job.out) == 40 or rows(job.out) > 41
            case "save":
                return rows(job.out) > 1 and any((job.out / "checkpoints").glob(".kuosan-partial-*"))
            case _:
                return rows(job.out) >= STEPS

    wait = draw.uniform(0, startup)
    while not here() and any(process.poll() is None for process in job.started):
        time.sleep(0.002)
    time.sleep(draw.uniform(0, {"joining": 2.0, "end": 0.5, "preview": 0.3}.get(stage, 0)))


def trial(number: int, folder: Path, data: Path, whole: dict[str, object], startup: float, seed: int) -> Trial:
    """One fault, and the run that goes on from it."""
    draw = random.Random(f"{seed}/{number}")
    stage, launcher = STAGES[number % len(STAGES)], ("torchrun", "bare")[number // len(STAGES) % 2]
    victim, sent = draw.randrange(2), draw.choice((signal.SIGSTOP, signal.SIGKILL))
    out = folder / f"run-{number}"
    job = Job(launcher, out, data)
    try:
        reached(stage, job, draw, startup)
        pid = job.pid(victim)
        while pid is None and job.started[0].poll() is None:
            time.sleep(0.01)
            pid = job.pid(victim)
        other = job.pid(1 - victim)
        complete = pid is None or job.started[0].poll() == 0
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
        begin = time.monotonic()
        while other is not None and alive(other) and time.monotonic() - begin < LIMIT + 30:
            time.sleep(0.05)
        seconds = time.monotonic() - begin
        _, codes = job.wait(victim, LIMIT + 90)
        launcher_seconds = time.monotonic() - begin
        complete = complete or (out / "checkpoints" / f"step-{STEPS:08d}").is_dir()  # nothing was left to do
    finally:
        job.end()
    printed = job.printed.read_text(errors="replace")
    named = f"rank {victim}" in printed or f"rank      : {victim}" in printed
    again = Job(launcher, out, data)
    again.wait(-1, 400)
    again.end()
    different = differences(outcome(out), whole) if out.is_dir() else ["no run"]
    if not different:
        shutil.rmtree(out)
    return Trial(stage, launcher, sent.name, victim, seconds, launcher_seconds, codes, named, complete, different)


def main() -> None:
    """Trials, then a table; exit code 1 if any was late, unnamed or different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--together", type=int, default=2, help="trials at once; most of one is waiting")
    parser.add_argument("--seed", type=int, default=1, help="of the instants")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = pictures(folder / "images.npz")
        begin = time.monotonic()
        first = Job("torchrun", folder / "whole", data)
        while b"compute:" not in first.printed.read_bytes():
            time.sleep(0.05)
        startup = time.monotonic() - begin
        first.wait(-1, 600)
        first.end()
        whole = outcome(folder / "whole")
        with ThreadPoolExecutor(asked.together) as pool:
            jobs = [pool.submit(trial, i, folder, data, whole, startup, asked.seed) for i in range(asked.trials)]
            trials = []
            for job in jobs:
                trials.append(job.result())
                print(trials[-1], file=sys.stderr, flush=True)
    print("| stage | trials | ended within 120 s | named | longest | then bit-equal |")
    print("|---|---|---|---|---|---|")
    for stage in (*STAGES, "all"):
        of = [each for each in trials if stage in (each.stage, "all")]
        if of:
            late = sum(each.seconds > LIMIT or (-1 in each.codes and not each.complete) for each in of)
            named, same = sum(each.named or each.complete for each in of), sum(not each.different for each in of)
            longest = max(each.seconds for each in of)
            print(f"| {stage} | {len(of)} | {len(of) - late} | {named} | {longest:.0f} s | {same} |")
    sys.exit(any(t.seconds > LIMIT or t.different or not (t.named or t.complete) for t in trials))


if __name__ == "__main__":
    main()
