"""Contestants that take turns: each in a process of its own on one core, one thread, while the others wait.

Turns are interleaved (A B C, B C A, ...), so that what else the machine does falls on all alike. A turn is timed by the
process's own processor time ("core": a busy neighbour hardly moves it) and by the clock on the wall ("wall").
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Turn = dict[str, float]


def race(
    script: str, names: list[str], rounds: int, amount: int, flags: list[str]
) -> tuple[dict, dict[str, list[Turn]]]:
    """Runs `script --worker NAME` for each name and gives it `rounds` turns: what each says of itself, its turns.

    `NAME@CHECKOUT` is the contestant NAME of another checkout of this project, by its own benchmark and its own code.
    """
    plain = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    workers = {}
    for name in names:
        own, _, checkout = name.partition("@")
        file, environment = Path(script), dict(plain)
        if checkout:
            file = Path(checkout, "benchmarks", file.name)
            environment["PYTHONPATH"] = str(Path(checkout, "src").resolve())
            if not file.is_file():
                raise SystemExit(f"{name}: {file} is not there; give NAME@CHECKOUT, a checkout of this project")
        command = [sys.executable, str(file), "--worker", own, *flags]
        pipe = subprocess.PIPE
        workers[name] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    about = {name: answer(worker) for name, worker in workers.items()}
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            workers[name].stdin.write(f"{amount}\n")
            workers[name].stdin.flush()
            turns[name].append(answer(workers[name]))
            seconds = turns[name][-1]
            note = f"{seconds['core']:.1f} core-seconds, {seconds['wall']:.1f} on the clock"
            print(f"round {i + 1}/{rounds} {name}: {note}", file=sys.stderr)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return about, turns


def answer(worker: subprocess.Popen) -> dict:
    """The next line a worker writes."""
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"a contestant ended with exit code {worker.wait()}: see its message above")
    return json.loads(line)


def serve(core: int, build: Callable[[], tuple[dict[str, Any], Callable[[int], None]]]) -> None:
    """A worker: builds its contestant, then does what each line of its input says and answers with its seconds."""
    answers, sys.stdout = sys.stdout, io.StringIO()  # whatever a peer prints stays out of the answers
    os.sched_setaffinity(0, {core})
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    about, advance = build()
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        wall, mine = time.perf_counter(), time.process_time()
        advance(int(line))
        seconds = {"core": time.process_time() - mine, "wall": time.perf_counter() - wall}
        print(json.dumps(seconds), file=answers, flush=True)


def spread(values: list[float], digits: int) -> str:
    """The median, and the smallest and largest: 12.3 (11.9-12.8)."""
    middle, low, high = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
    return f"{middle} ({low}-{high})"


def processor() -> str:
    """What the figures were measured on."""
    with open("/proc/cpuinfo") as file:
        lines = file.read().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line for line in lines if line.startswith("flags")), "")
    wide = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f") if flag in flags.split()]
    return f"{model} ({wide[0] if wide else 'no AVX-512'})"
