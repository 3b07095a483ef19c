"""How good a run's pictures are, sampler by sampler: KID on named features, with standard errors.

    python benchmarks/quality.py runs/portraits                       # 1,000 pictures a side: hours on a small machine
    python benchmarks/quality.py runs/portraits --subset 100 --features lite0-128      # a quick look

All samplers get the same weights and the same seeds, so two of them are compared picture by picture and the error of
the difference is far below that of either distance. The first line is the floor: training pictures against the same
reference. Pictures are kept as bytes under --cache, batch by batch, so the command can be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from kuosan import checkpoint, trained
from kuosan import config as trees
from kuosan.data.config import DataConfig
from kuosan.data.images import to_uint8
from kuosan.data.pictures import Pictures, open_pictures
from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error
from kuosan.evaluate.kid import Estimate, kid, kid_difference
from kuosan.features import FEATURES, features
from kuosan.sample.generate import sample
from kuosan.sample.plan import plan
from kuosan.sample.request import Request
from kuosan.seeds import rng

SAMPLERS = (("ddpm", 1000), ("ddim", 50), ("dpm_solver_2m", 10), ("dpm_solver_2m", 20))


@dataclass(frozen=True)
class Set:
    """Pictures to judge, and what they took to make."""

    name: str
    pictures: np.ndarray  # (N, C, H, W) uint8
    evaluations: int = 0
    seconds: float = 0.0  # a picture
    rows: np.ndarray = field(default_factory=lambda: np.empty(0))  # (N, D) features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder, or one checkpoint in it")
    parser.add_argument("--data", help="where the run's pictures are now, if they have moved")
    parser.add_argument("--against", choices=("held-out", "train"), default="held-out", help="the reference pictures")
    parser.add_argument("--pictures", type=int, default=1000, help="pictures a side")
    parser.add_argument("--subset", type=int, help="this many pictures a side instead, for a quick look")
    parser.add_argument("--samplers", default=",".join(f"{name}:{steps}" for name, steps in SAMPLERS))
    parser.add_argument("--features", default="lite0", help=f"one of {', '.join(FEATURES)}")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; picture i has seed + i")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("runs/quality"), help="where the pictures are kept")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    try:
        measure(args)
    except Error as error:
        sys.exit(f"error: {error}")


def measure(args: argparse.Namespace) -> None:
    """Makes what the cache lacks, computes features, prints the table."""
    count = args.subset or args.pictures
    network = features(args.features)  # refused before hours of sampling
    model = trained.load(args.run, compute=choose(ComputeConfig(threads=args.threads)))
    pictures = opened(args)
    reference, floor = real_sets(pictures, count, args.against)
    folder = args.cache / model.weights[:16]
    walks = [(name, int(steps)) for name, steps in (item.split(":") for item in args.samplers.split(","))]
    made = [generated(model, Request(count, args.seed, *walk, batch=args.batch), folder) for walk in walks]
    sets = [with_features(each, network, folder) for each in (reference, floor, *made)]
    report(args, model, network, sets)


def opened(args: argparse.Namespace) -> Pictures:
    """The run's own pictures, opened as it opened them."""
    tree = dict(checkpoint.load(args.run, parts=()).config["data"])
    return open_pictures(trees.build(DataConfig, {**tree, "path": args.data or tree["path"]}))


def real_sets(pictures: Pictures, count: int, against: str) -> tuple[Set, Set]:
    """The reference, and other training pictures as the floor: no picture is in both."""
    train = pictures.train[rng(0, "quality").permutation(len(pictures.train))]
    if against == "held-out":
        held = pictures.held_out[rng(0, "quality/held-out").permutation(len(pictures.held_out))][:count]
        parts = (f"held-out pictures ({len(held)})", held), ("training pictures", train[:count])
    else:
        parts = (f"training pictures ({count})", train[:count]), ("other training pictures", train[count : 2 * count])
    for name, ids in parts:
        if len(ids) < 3:
            raise Error(f"{name}: {len(ids)} are too few for a distance; give --against train, or fewer --pictures.")
    reference, floor = (Set(name, as_bytes(pictures.batch(ids).x0.numpy())) for name, ids in parts)
    return reference, floor


def as_bytes(x: np.ndarray) -> np.ndarray:
    """[-1, 1] pictures as they would be written: (N, C, H, W) uint8."""
    return np.moveaxis(to_uint8(x), -1, -3)


def generated(model: trained.Trained, request: Request, folder: Path) -> Set:
    """The pictures of one sampler, from the cache or made now; seconds are those of the batches made."""
    name = f"{request.sampler}-{request.steps}"
    parts, seconds = [], []
    for first in range(0, request.n, request.batch):
        wanted = min(request.batch, request.n - first)
        path = folder / name / f"seed-{request.seed + first:08d}-{wanted}.npz"
        if not path.exists():
            begin = time.perf_counter()
            part = Request(wanted, request.seed + first, request.sampler, request.steps, batch=wanted)
            x = sample(model.model, part).cpu().numpy()
            store(path, pictures=as_bytes(x), seconds=(time.perf_counter() - begin) / wanted)
            print(f"{name}: {first + wanted}/{request.n}", file=sys.stderr)
        with np.load(path) as kept:
            parts.append(kept["pictures"])
            seconds.append(float(kept["seconds"]))
    evaluations = plan(model.model.config, request).evaluations
    return Set(f"{request.sampler} {request.steps}", np.concatenate(parts), evaluations, float(np.median(seconds)))


def store(path: Path, **arrays: object) -> None:
    """Writes an .npz whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(aside, **arrays)
    aside.replace(path)


def with_features(each: Set, network, folder: Path) -> Set:
    """The set with a row of features a picture, kept in the cache under the features' name and the pictures' hash."""
    key = sha256(each.pictures.tobytes() + repr(each.pictures.shape).encode()).hexdigest()[:16]
    path = folder / "features" / f"{network.name}-{key}.npz"
    if not path.exists():
        store(path, rows=network(torch.from_numpy(np.ascontiguousarray(each.pictures))).numpy())
        print(f"features of {each.name}", file=sys.stderr)
    with np.load(path) as kept:
        return replace(each, rows=kept["rows"])


def report(args: argparse.Namespace, model: trained.Trained, network, sets: list[Set]) -> None:
    """A markdown table: the distance of each set to the reference, and of each sampler to the first."""
    reference, floor, *made = sets
    print(f"KID on {network.name} ({network.size} px, weights {network.hash[:12]}), x 1000, with standard errors")
    print(
        f"{args.run} at step {model.step} ({model.compute}) against {reference.name}; {len(floor.rows)} pictures each\n"
    )
    print("| pictures | evaluations | seconds a picture | KID x 1000 | more than the first sampler, paired |")
    print("|---|---|---|---|---|")
    figures = {}
    for i, each in enumerate((floor, *made)):
        distance = kid(each.rows, reference.rows)
        gap = kid_difference(each.rows, made[0].rows, reference.rows) if i > 1 else None
        cost = f"{each.evaluations} | {each.seconds:.3f}" if each.evaluations else "- | -"
        print(f"| {each.name} | {cost} | {shown(distance)} | {shown(gap) if gap else '-'} |")
        figures[each.name] = {
            "kid": asdict(distance),
            "more_than_first": asdict(gap) if gap else None,
            "evaluations": each.evaluations,
            "seconds": each.seconds,
            "pictures": len(each.rows),
        }
    if args.json:
        about = {"run": str(args.run), "step": model.step, "weights": model.weights, "against": reference.name}
        about |= {"features": network.name, "features_sha256": network.hash, "size": network.size}
        args.json.write_text(json.dumps({**about, "sets": figures}, indent=1) + "\n")


def shown(estimate: Estimate) -> str:
    """A value and its error, times 1000."""
    return f"{1000 * estimate.value:.2f} ± {1000 * estimate.error:.2f}"


if __name__ == "__main__":
    main()
