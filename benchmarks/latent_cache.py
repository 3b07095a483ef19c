"""Training images per second with what is kept of images and captions, against encoding as they are shown; one core.

    python benchmarks/latent_cache.py                                              # the built-in portraits, 3 rounds
    python benchmarks/latent_cache.py --encoder minilm                             # and their captions, encoded
    python benchmarks/latent_cache.py --data PHOTOS/train128.zip --size 128 --channels 64

The autoencoder is the usual one of a size and a factor with random weights: what it says does not matter to its speed.
`turns.py` says how contestants are timed.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import turns

NAMES = {"kept": "all kept", "encoding": "images encoded as they are shown", "reading": "captions encoded as shown"}
NEVER = 10**9  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="portraits", help="images, as kuosan train takes them")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--factor", type=int, default=4, help="of the autoencoder")
    parser.add_argument("--autoencoder", default="small", help="its size: tiny, small, medium, large")
    parser.add_argument("--encoder", default="none", help="a text encoder, minilm or a folder; none: no captions")
    parser.add_argument("--network", default="small", help="the denoiser's size")
    parser.add_argument("--precision", default="auto", help="auto, bf16 or fp32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps a round")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="processor to run on")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return turns.serve(args.core, lambda: contestant(args))
    passed = ("data", "size", "factor", "autoencoder", "encoder", "network", "precision", "batch", "core")
    names = list(NAMES) if args.encoder != "none" else ["kept", "encoding"]
    report(args, *turns.race(__file__, names, args.rounds, args.steps, [f"--{n}={getattr(args, n)}" for n in passed]))


def autoencoder(args: argparse.Namespace, folder: Path) -> Path:
    """The run of an autoencoder that nobody trained."""
    import torch

    from kuosan import config as trees
    from kuosan.models.model import ModelConfig, build
    from kuosan.networks.autoencoder_config import default_autoencoder
    from kuosan.storage import checkpoint

    shape = (3, args.size, args.size)
    config = ModelConfig(shape, default_autoencoder(shape, args.autoencoder, args.factor))
    weights = build(config, seed=0).network.state_dict()
    tree = {"model": trees.plain(config)}
    kept = {"none": torch.zeros(1)}
    checkpoint.save(folder / "autoencoder", 1, config=tree, ema=weights, network=weights, optimizer=kept, state={})
    return folder / "autoencoder"


def contestant(args: argparse.Namespace) -> tuple[dict, Callable[[int], None]]:
    """A run as `kuosan train` starts it, whose steps wait for their turn; and what it said of its latents."""
    folder = Path(tempfile.mkdtemp(prefix="kuosan-benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["KUOSAN_CACHE"] = str(folder / "cache")
    from paced import Turns

    from kuosan.train.api import prepare, start

    train = {"batch": args.batch, "max_steps": NEVER, "save_every": NEVER, "evaluate_every": 0, "preview_every": 0}
    tree = {
        "data": {"path": args.data, "size": args.size, "channels": "rgb"},
        "model": {"codec": {"run": str(autoencoder(args, folder))}},
        "train": train,
        "compute": {"device": "cpu", "threads": 1, "precision": args.precision},
    }
    if args.encoder != "none":
        tree["model"]["text"] = {"kind": "encoder", "encoder": args.encoder}
    asked = prepare(folder / "run", tree, size=args.network)
    heard = Turns()
    run = start(asked, heard)
    if args.worker == "encoding":
        run.batches.images.kept = None
    if args.worker == "reading":
        from kuosan.train.text_conditioning import Live, captions

        class Forgetful(Live):
            def of(self, ids, dropped):  # type: ignore[no-untyped-def]
                self.known.clear()
                return super().of(ids, dropped)

        run.batches.texts = Forgetful([*captions(asked.images), ""], asked.encoder)

    advance = heard.pace(run)
    advance(2)
    encoded = [text.partition(" and kept")[0].partition(", kept")[0] for text in heard.said if "encoded in" in text]
    return {
        "name": NAMES[args.worker],
        "said": "; ".join(encoded),
        "compute": str(run.objective.compute),
    }, advance


def report(args: argparse.Namespace, about: dict, taken: dict[str, list[turns.Turn]]) -> None:
    """A markdown table: medians over the rounds, and how much faster kept latents are, round by round."""
    images, figures = args.batch * args.steps, {"processor": turns.processor()}
    print(f"{args.data} at {args.size} px, f{args.factor} {args.autoencoder} autoencoder, {args.network} U-Net, batch "
          f"{args.batch}, one core of {turns.processor()}")  # fmt: skip
    print(f"{about['kept']['said']}; {about['kept']['compute']}")
    print(f"{args.rounds} rounds of {args.steps} steps; median (lowest-highest)\n")
    print("| | images / core-second | images / second | kept ones are faster by |\n|---|---|---|---|")
    for name, mine in taken.items():
        rates = [images / turn["core"] for turn in mine]
        ratios = [b["core"] / a["core"] for a, b in zip(taken["kept"], mine)]
        wall = statistics.median(images / turn["wall"] for turn in mine)
        figures[name] = {**about[name], "images_per_core_second": rates, "images_per_second": wall, "ratio": ratios}
        print(f"| {about[name]['name']} | {turns.spread(rates, 1)} | {wall:.1f} | {turns.spread(ratios, 2)} |")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
