"""Training throughput on Fashion-MNIST padded to 32 pixels, one core, batch 64: kuosan against two peers.

    python benchmarks/train_throughput.py                       # all, 5 rounds
    python benchmarks/train_throughput.py --only kuosan,diffusers --rounds 3 --steps 2

`training_contestants.py` says what each runs; `turns.py` how they are timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import turns
from fashion_mnist import FOLDER, images

NAMES = ("kuosan", "kuosan-heads8", "diffusers", "diffusers-heads64", "ddp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of Fashion-MNIST's IDX files")
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
        return turns.serve(args.core, lambda: contestant(args))
    flags = [
        f"--{name}={getattr(args, name.replace('-', '_'))}" for name in ("data", "widths", "warm-up", "batch", "core")
    ]
    report(args, *turns.race(__file__, args.only.split(","), args.rounds, args.steps, flags))


def contestant(args: argparse.Namespace) -> tuple[dict, Callable[[int], None]]:
    """The worker's contestant, warmed up."""
    from training_contestants import CONTESTANTS

    widths = tuple(int(width) for width in args.widths.split(","))
    name, network, advance = CONTESTANTS[args.worker](images(args.data), args.batch, widths)
    advance(args.warm_up)
    return {"name": name, "parameters": sum(parameter.numel() for parameter in network.parameters())}, advance


def report(args: argparse.Namespace, about: dict, taken: dict[str, list[turns.Turn]]) -> None:
    """A markdown table: medians over the rounds, and how much faster the first contestant is, round by round."""
    first = next(iter(taken))
    images, rows, figures = args.batch * args.steps, [], {"processor": turns.processor()}
    for name, mine in taken.items():
        rates = [images / turn["core"] for turn in mine]
        ratios = [b["core"] / a["core"] for a, b in zip(taken[first], mine)]
        wall = statistics.median(images / turn["wall"] for turn in mine)
        figures[name] = {**about[name], "images_per_core_second": rates, "images_per_second": wall, "ratio": ratios}
        rows.append(
            f"| {about[name]['name']} | {about[name]['parameters'] / 1e6:.2f} M | {turns.spread(rates, 1)} "
            f"| {wall:.1f} | {turns.spread(ratios, 2)} |"
        )
    print(f"Fashion-MNIST at 32 px, batch {args.batch}, widths {args.widths}, one core of {turns.processor()}")
    print(f"{args.rounds} rounds of {args.steps} steps; median (lowest-highest)\n")
    print(f"| training loop | parameters | images / core-second | images / second | {first} is faster by |")
    print("|---|---|---|---|---|\n" + "\n".join(rows))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
