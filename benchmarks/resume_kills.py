"""Kill a training with SIGKILL again and again, half of the times inside a save; is the end bit for bit the same?

    python benchmarks/resume_kills.py --kills 100

Each trial is a run of 12 steps with a save every 3: killed one to three times (at a random file system operation of
its saves, half of these tearing a write; or at a random instant), started again by the same call, and compared with a
run that was never killed: weights, averages, moments, every row of the log.

    python benchmarks/resume_kills.py --beginnings 0

Instead: every trainer, killed at every operation from the start of the command to the end of its first save (or at
so many of them), and started again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from faults.harness import build
from train.beginnings import TRAINERS, Beginner
from train.killing import KINDS, Killer, Trial


def beginnings(count: int, mode: str, names: list[str], folder: str | None) -> int:
    """Trials of every trainer's beginning, a table; exit code 1 if any run was different."""
    begin, bad = time.monotonic(), 0
    with tempfile.TemporaryDirectory(dir=folder) as place, tempfile.TemporaryDirectory() as tools:
        shim = build(Path(tools))
        if shim is None:
            sys.exit("no C compiler for the failing file system")
        beginner = Beginner(Path(place), shim, tuple(name for name in TRAINERS if not names or name in names))
        print(f"| trainer | operations to the first save | {mode} at | ends bit-equal |\n|---|---|---|---|", flush=True)
        for trainer in beginner.trainers:
            trials = [beginner.trial(trainer, at, mode) for at in beginner.instants(trainer, count)]
            same = sum(not trial.different for trial in trials)
            bad += len(trials) - same
            hits = sum(trial.hit for trial in trials)
            print(f"| {trainer} | {beginner.first[trainer]} | {hits} | {same} of {len(trials)} |", flush=True)
        beginner.close()
    print(f"{time.monotonic() - begin:.0f} s")
    return int(bad > 0)


def main() -> None:
    """Trials until enough kills hit, then a table; exit code 1 if any run was different or lost a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills to make")
    parser.add_argument("--seed", type=int, default=1, help="of the instants")
    parser.add_argument("--folder", default="/dev/shm" if Path("/dev/shm").is_dir() else None, help="where runs lie")
    parser.add_argument("--beginnings", type=int, help="instants before the first save of every trainer; 0: all")
    parser.add_argument("--mode", default="kill", choices=("kill", "torn", "enospc", "eio"), help="with --beginnings")
    parser.add_argument("--trainer", action="append", default=[], help="with --beginnings: only this one")
    asked = parser.parse_args()
    if asked.beginnings is not None:
        sys.exit(beginnings(asked.beginnings, asked.mode, asked.trainer, asked.folder))
    begin, trials = time.monotonic(), list[Trial]()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder, tempfile.TemporaryDirectory() as place:
        shim = build(Path(place))
        if shim is None:
            sys.exit("no C compiler for the failing file system")
        killer = Killer(Path(folder), shim)
        while sum(trial.kills for trial in trials) < asked.kills:
            trials.append(killer.trial(len(trials), asked.seed))
        killer.close()
    print("| run | trials | kills | inside saves | ends bit-equal | steps lost past a save |")
    print("|---|---|---|---|---|---|")
    for kind in (*KINDS, "all"):
        of = [trial for trial in trials if kind in (trial.kind, "all")]
        kills, inside, lost = (sum(getattr(trial, name) for trial in of) for name in ("kills", "inside", "lost"))
        same = sum(not trial.different for trial in of)
        print(f"| {kind} | {len(of)} | {kills} | {inside} | {same} of {len(of)} | {lost} |")
    print(f"{time.monotonic() - begin:.0f} s")
    sys.exit(any(trial.different or trial.lost for trial in trials))


if __name__ == "__main__":
    main()
