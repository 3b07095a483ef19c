"""Training throughput on Fashion-MNIST padded to 32 pixels, one core, batch 64: kuosan against two peers.

    python benchmarks/train_throughput.py                       # all, 5 rounds
    python benchmarks/train_throughput.py --only kuosan,diffusers --rounds 3 --steps 2

Each contestant lives in its own process on the same core with one thread; they take turns (A B C, B C A, ...), a few
steps at a time, so that what else the machine does falls on all alike. Images per core-second count the process's own
processor time, which a busy neighbour hardly moves; the wall-clock figure is printed beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

NAMES = ("kuosan", "diffusers", "ddp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--only", default=",".join(NAMES), help=f"comma-separated, of {', '.join(NAMES)}")
    parser.add_argument("--widths", default="32,64,128", help="channels of each level, the finest first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps a round")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the first round")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="processor to run on")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Starts the workers, gives them turns, prints the table."""
    names = args.only.split(",")
    workers = {name: start(name, args) for name in names}
    about = {name: json.loads(worker.stdout.readline()) for name, worker in workers.items()}
    turns: dict[str, list[dict]] = {name: [] for name in names}
    for i in range(args.rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            turns[name].append(ask(workers[name], args.steps))
            print(f"round {i + 1}/{args.rounds} {name}: {rate(turns[name][-1], args):.1f}", file=sys.stderr)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    report(about, turns, args)


def start(name: str, args: argparse.Namespace) -> subprocess.Popen:
    """A worker process, one thread, on the core to measure."""
    command = [sys.executable, __file__, "--worker", name, "--batch", str(args.batch), "--core", str(args.core)]
    command += ["--warm-up", str(args.warm_up), "--widths", args.widths] + (
        ["--data", str(args.data)] if args.data else []
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(worker: subprocess.Popen, steps: int) -> dict:
    """One turn: the worker takes `steps` and answers with its seconds."""
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"a contestant ended with exit code {worker.wait()}: see its message above")
    return json.loads(line)


def work(args: argparse.Namespace) -> None:
    """A worker: builds its contestant, then takes as many steps as each line of its input says."""
    answers, sys.stdout = sys.stdout, io.StringIO()  # whatever a peer prints stays out of the answers
    os.sched_setaffinity(0, {args.core})
    warnings.simplefilter("ignore")
    import torch
    from fashion_mnist import FOLDER, pictures
    from training_contestants import CONTESTANTS

    torch.set_num_threads(1)
    widths = tuple(int(width) for width in args.widths.split(","))
    name, network, advance = CONTESTANTS[args.worker](pictures(args.data or FOLDER), args.batch, widths)
    advance(args.warm_up)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(json.dumps({"name": name, "parameters": parameters}), file=answers, flush=True)
    for line in sys.stdin:
        wall, core = time.perf_counter(), time.process_time()
        advance(int(line))
        seconds = {"core": time.process_time() - core, "wall": time.perf_counter() - wall}
        print(json.dumps(seconds), file=answers, flush=True)


def rate(turn: dict, args: argparse.Namespace, clock: str = "core") -> float:
    """Images per second of one turn."""
    return args.batch * args.steps / turn[clock]


def report(about: dict, turns: dict[str, list[dict]], args: argparse.Namespace) -> None:
    """A markdown table: medians over the rounds, and the ratio of the first contestant to each, round by round."""
    first = next(iter(turns))
    rows, figures = [], {}
    for name, mine in turns.items():
        rates = [rate(turn, args) for turn in mine]
        ratios = [rate(a, args) / rate(b, args) for a, b in zip(turns[first], mine)]
        wall = statistics.median(rate(turn, args, "wall") for turn in mine)
        figures[name] = {**about[name], "per_core_second": rates, "wall": wall, "ratio": ratios}
        rows.append(
            f"| {about[name]['name']} | {about[name]['parameters'] / 1e6:.2f} M "
            f"| {statistics.median(rates):.1f} ({min(rates):.1f}-{max(rates):.1f}) | {wall:.1f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |"
        )
    print(
        f"Fashion-MNIST at 32 px, batch {args.batch}, widths {args.widths}, one core, {args.rounds} rounds of {args.steps} steps\n"
    )
    print(f"| training loop | parameters | images / core-second | images / second | {first} is faster by |")
    print("|---|---|---|---|---|\n" + "\n".join(rows))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
