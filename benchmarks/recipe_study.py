"""Which settings give the best images for a given amount of computing: successive halving over kinds of data.

    python benchmarks/recipe_study.py prepare WORK --emoji EMOJI --photos PHOTOS    arrays of each kind, 32 and 64 px
    python benchmarks/recipe_study.py calibrate WORK                                what a step of each setting costs
    python benchmarks/recipe_study.py run WORK --round 1 [--only SETTING ...]       trials that have no result yet
    python benchmarks/recipe_study.py table WORK [--round 1]                        figures and regret, as Markdown

EMOJI and PHOTOS are what tools/build_emoji.py and tools/build_photographs.py make. WORK/results.jsonl gets a line a
trial; a trial that is stopped goes on from its last save. One thread each, all of one seed, so trials are paired.

Budgets are steps, not seconds, so that neighbours on the machine change nothing: a round gives each setting as many
steps as the default setting takes in `seconds` at `RATE` steps a second, divided by what its own step costs in units
of the default's (`calibrate`, all settings in turn in one process, medians of process time).

Regret of a setting on a kind is its KID over the least KID of that kind, minus 1; what counts is the worst kind's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

KINDS = ("portraits", "fashion", "emoji", "photographs")
REFERENCE = 2000  # real images a kind that the made ones are compared with
MADE, STEPS = 400, 20  # images of a trial, by the default sampler
RATE = 3.0  # steps of the default setting a second of one core (an AMD EPYC with AVX-512 BF16, quiet)
SIZE = {1: 32, 2: 32, 3: 32, 4: 64}
SECONDS = {1: 100.0, 2: 250.0, 3: 600.0, 4: 300.0}  # of the default setting, a round

UNET = {"kind": "unet", "channels": 64, "multipliers": [1, 2, 2], "attention": [True, True, False], "blocks": 1,
        "head_channels": 32, "groups": 8, "patch": 2}  # fmt: skip


def unet(**changes: Any) -> dict[str, Any]:
    """A U-Net's settings, over `UNET`."""
    return {"model": {"network": {**UNET, **changes}}}


def train(**settings: Any) -> dict[str, Any]:
    """Settings of training."""
    return {"train": settings}


def both(prediction: str, weight: str, schedule: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """What is predicted, and the weight of its error."""
    model: dict[str, Any] = {"prediction": prediction}
    if schedule is not None:
        model["schedule"] = dict(schedule)
    return {"model": model, "train": {"weight": weight, **more}}


def based(change: dict[str, Any]) -> dict[str, Any]:
    """A change to the setting that won the first three waves: x0, cosine betas, weight simple, t logit-normal."""
    from kuosan.config import merge

    return merge(both("x0", "simple", batch=16, t_sampling="logit_normal"), change)


COSINE, LINEAR = {"kind": "discrete", "betas": "cosine"}, {"kind": "discrete", "betas": "linear"}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    # prediction, schedule, weight, how t is drawn
    "v-min_snr": both("v", "min_snr"),
    "v-v": both("v", "v"),
    "eps-simple-linear": both("eps", "simple", LINEAR),
    "x0-simple": both("x0", "simple"),
    "x0-v": both("x0", "v"),
    "x0-linear": both("x0", "min_snr", LINEAR),
    "x0-importance": both("x0", "min_snr", t_sampling="importance"),
    "x0-logit_normal": both("x0", "min_snr", t_sampling="logit_normal"),
    "flow": both("flow", "flow", {"kind": "flow"}),
    "flow-logit_normal": both("flow", "flow", {"kind": "flow", "density": "logit_normal"}),
    "flow-x0": both("x0", "flow", {"kind": "flow", "density": "logit_normal"}),
    "edm": both("edm", "edm", {"kind": "karras"}),
    # rate, batch, average
    "lr-5e-4": train(lr=5e-4),
    "lr-2e-3": train(lr=2e-3),
    "constant": train(lr_shape="constant"),
    "batch-16": train(batch=16),
    "batch-64": train(batch=64),
    "ema-0.05": train(ema=0.05),
    "ema-0.2": train(ema=0.2),
    # network
    "narrow": unet(channels=32),
    "wide": unet(channels=96),
    "two-levels": unet(multipliers=[1, 2], attention=[True, True]),
    "patch-1": unet(patch=1, channels=32, multipliers=[1, 2, 4], attention=[False, False, True]),
    "patch-4": unet(patch=4, channels=128, multipliers=[1, 2], attention=[True, True]),
    "attention-8": unet(attention=[False, True, False]),
    "no-attention": unet(attention=[False, False, False], middle_attention=False),
    "deep": unet(blocks=2),
    "dit": {"model": {"network": {"kind": "dit"}}},
    # second wave: what won, together
    "x0-simple-batch-16": both("x0", "simple", batch=16),
    "flow-x0-batch-16": both("x0", "flow", {"kind": "flow", "density": "logit_normal"}, batch=16),
    "flow-x0-simple": both("x0", "simple", {"kind": "flow", "density": "logit_normal"}),
    "flow-x0-simple-batch-16": both("x0", "simple", {"kind": "flow", "density": "logit_normal"}, batch=16),
    "batch-8": train(batch=8),
    # third wave: other networks on flow-x0-simple-batch-16, and how near cosine betas come with its density of t
    "flow-x0-simple-batch-16-narrow": {
        "model": {
            "prediction": "x0",
            "schedule": {"kind": "flow", "density": "logit_normal"},
            "network": {**UNET, "channels": 32},
        },
        "train": {"weight": "simple", "batch": 16},
    },
    "flow-x0-simple-batch-16-no-attention": {
        "model": {
            "prediction": "x0",
            "schedule": {"kind": "flow", "density": "logit_normal"},
            "network": {**UNET, "attention": [False, False, False], "middle_attention": False},
        },
        "train": {"weight": "simple", "batch": 16},
    },
    "x0-simple-logit_normal-batch-16": based({}),
    # fourth wave: one change to that
    "base-v": based({"train": {"weight": "v"}}),
    "base-min_snr": based({"train": {"weight": "min_snr"}}),
    "base-batch-8": based(train(batch=8)),
    "base-lr-5e-4": based(train(lr=5e-4)),
    "base-lr-2e-3": based(train(lr=2e-3)),
    "base-constant": based(train(lr_shape="constant")),
    "base-ema-0.05": based(train(ema=0.05)),
    "base-ema-0.2": based(train(ema=0.2)),
    "base-earlier": based(train(t_mean=-0.5)),
    "base-later": based(train(t_mean=0.5)),
    "base-tiny": based(unet(channels=32, attention=[False, True, False])),
    "base-narrow": based(unet(channels=32)),
    "base-wide": based(unet(channels=96)),
    "base-two-levels": based(unet(multipliers=[1, 2], attention=[True, True])),
    "base-patch-1": based(unet(patch=1, channels=32, multipliers=[1, 2, 4], attention=[False, False, True])),
    "base-patch-4": based(unet(patch=4, channels=128, multipliers=[1, 2], attention=[True, True])),
    "base-no-attention": based(unet(attention=[False, False, False], middle_attention=False)),
    "base-attention-8": based(unet(attention=[False, True, False])),
    "base-deep": based(unet(blocks=2)),
    "base-dit": based({"model": {"network": {"kind": "dit"}}}),
}


@dataclass(frozen=True)
class Trial:
    """One setting on one kind in one round."""

    round: int
    setting: str
    kind: str

    @property
    def name(self) -> str:
        return f"round{self.round}-{self.setting}-{self.kind}"


def array(work: Path, kind: str, size: int) -> Path:
    """Where a kind's images lie: (N, size, size, C) uint8 as `images`."""
    return work / "data" / f"{kind}{size}.npz"


def prepare(work: Path, emoji: Path, photos: Path) -> None:
    """Write the arrays: the whole image shrunk, never cropped, white behind what is transparent."""
    from fashion_mnist import images
    from PIL import Image

    from kuosan.data.sources import load_sheet

    (work / "data").mkdir(parents=True, exist_ok=True)

    def shrunk(all_: Iterator[Image.Image], size: int) -> np.ndarray:
        return np.stack(
            [np.asarray(each.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)) for each in all_]
        )

    clothes = images()[:20_000, 0]
    tiles = sorted((photos / "train").rglob("*.png"))
    for size in (32, 64):
        made = {
            "emoji": shrunk(_zipped(emoji / "train64.zip"), size),
            "photographs": shrunk((Image.open(path) for path in tiles), size),
        }
        if size == 32:  # what these are
            made |= {"portraits": load_sheet()[0], "fashion": clothes[..., None]}
        for kind, pixels in made.items():
            np.savez(array(work, kind, size), images=pixels)
            print(kind, size, pixels.shape, flush=True)


def _zipped(path: Path) -> Iterator[Any]:
    import io
    import zipfile

    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith((".webp", ".png")):
                yield Image.open(io.BytesIO(archive.read(name)))


def settings(name: str, path: Path, size: int, steps: int) -> dict[str, Any]:
    """A trial's whole tree: a setting's, laid over the defaults of version 2, which the study began with."""
    from kuosan.config import merge

    plain: dict[str, Any] = {
        "defaults": 2,  # of which each setting is a change
        "data": {"path": str(path), "size": size, "hold_out": 0.0},
        "train": {
            "max_steps": steps,
            "preview_every": 0,
            "evaluate_every": 0,
            "save_every": max(50, steps // 8),
            "seed": 1,
        },
        "compute": {"threads": 1},
    }
    return merge(SETTINGS[name], plain)


def calibrate(work: Path, turns: int = 7) -> None:
    """WORK/cost.json: what an optimiser step costs in units of the default's, forward and backward, by size."""
    import torch

    from kuosan.train import api
    from kuosan.train.loop import backward
    from kuosan.train.report import SilentTraining

    torch.set_num_threads(1)
    costs: dict[str, dict[str, float]] = {}
    for size in sorted({*SIZE.values()}):
        with ExitStack() as stack:
            runs = {}
            for name in SETTINGS:
                asked = api.prepare(work / "none" / name, settings(name, array(work, "portraits", size), size, 100))
                runs[name] = api.opened(asked, SilentTraining(), dry=True)
                stack.callback(api.close, runs[name])
            times: dict[str, list[float]] = {name: [] for name in runs}
            for turn in range(turns + 1):
                for name, run in runs.items():
                    drawn = run.batches.draw(turn)
                    begin = time.process_time()
                    backward(run, drawn)
                    run.state.parameters.grads.zero_()
                    if turn:
                        times[name].append(time.process_time() - begin)
            costs[str(size)] = {
                name: statistics.median(a / b for a, b in zip(own, times["default"], strict=True))
                for name, own in times.items()
            }
            print(size, statistics.median(times["default"]), costs[str(size)], flush=True)
    (work / "cost.json").write_text(json.dumps(costs, indent=1) + "\n")


def steps_of(work: Path, trial: Trial) -> int:
    """The steps that a round gives a setting."""
    cost = json.loads((work / "cost.json").read_text())[str(SIZE[trial.round])]
    return max(10, round(SECONDS[trial.round] * RATE / cost[trial.setting]))


def run_trial(work: Path, trial: Trial) -> dict[str, Any]:
    """Train, sample, compare; the folder of the training is taken away afterwards, a sheet stays."""
    import torch

    from kuosan.options import Tree
    from kuosan.train.job import TrainJob, plan_train, run_train

    torch.set_num_threads(1)
    size, steps = SIZE[trial.round], steps_of(work, trial)
    path, out = array(work, trial.kind, size), work / "runs" / trial.name
    tree: Tree = settings(trial.setting, path, size, steps)
    begin = time.process_time()
    with plan_train(TrainJob(out, settings=tree, measure=False)) as plan:
        batch = plan.run.config.train.batch
        parameters = sum(each.numel() for each in plan.run.state.network.parameters())
        for _ in run_train(plan):
            pass
        if plan.run.state.step < steps:
            sys.exit(f"{trial.name}: stopped at step {plan.run.state.step:,} of {steps:,}; the same command goes on")
    trained = time.process_time() - begin
    cache = work / "data" / f"{trial.kind}{size}-features.npy"
    estimate = measured(out, path, cache, work / "sheets" / f"{trial.name}.png")
    shutil.rmtree(out)
    return {
        "round": trial.round, "setting": trial.setting, "kind": trial.kind, "steps": steps, "batch": batch,
        "parameters": parameters, "core_seconds": round(trained, 1), "kid": estimate.value, "error": estimate.error,
    }  # fmt: skip


def measured(run: Path, path: Path, cache: Path, sheet: Path) -> Any:
    """KID of a run's images against those of an array, whose features are kept in a file; a sheet is written."""
    import kuosan
    from kuosan.data.pixels import to_uint8

    made = to_uint8(kuosan.load(run).sample(MADE, seed=0, steps=STEPS).numpy())
    write_sheet(sheet, made)
    return distance(made, path, cache)


def distance(made: np.ndarray, path: Path, cache: Path) -> Any:
    """KID of images (N, H, W, C) uint8 to `REFERENCE` of those of an array, whose features are kept in a file."""
    import torch

    from kuosan.metrics.features import features
    from kuosan.metrics.kid import kid

    real = np.load(path)["images"]
    real = real[np.linspace(0, len(real) - 1, min(REFERENCE, len(real))).round().astype(int)]
    network = features("lite0")
    if not cache.exists():
        np.save(cache, network(torch.from_numpy(real).movedim(-1, 1).contiguous()).numpy())
    return kid(network(torch.from_numpy(made).movedim(-1, 1).contiguous()).numpy(), np.load(cache))


def judge(work: Path, kind: str, size: int, made: np.ndarray) -> Any:
    """KID of images (N, size, size, C) uint8 to the reference of a kind, whose features are kept beside the arrays."""
    return distance(made, array(work, kind, size), work / "data" / f"{kind}{size}-features.npy")


def save_sheet(work: Path, name: str, made: np.ndarray) -> None:
    """WORK/sheets/NAME.png: the first forty, twice as large."""
    write_sheet(work / "sheets" / f"{name}.png", made)


def write_sheet(path: Path, made: np.ndarray) -> None:
    """The first forty images, twice as large."""
    from kuosan.data.pixels import enlarge, grid, save_png

    path.parent.mkdir(exist_ok=True)
    save_png(path, enlarge(grid(made[:40], 10)[None], 2)[0])


def results(work: Path) -> list[dict[str, Any]]:
    """All rows so far."""
    file = work / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run(work: Path, number: int, only: list[str], kinds: list[str]) -> None:
    """Every trial of a round that has no result; several processes may share the work."""
    import fcntl

    for setting in only or SETTINGS:
        for kind in kinds or KINDS:
            trial = Trial(number, setting, kind)
            if any((r["round"], r["setting"], r["kind"]) == (number, setting, kind) for r in results(work)):
                continue
            (work / "runs").mkdir(exist_ok=True)
            with open(work / "runs" / f"{trial.name}.lock", "w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                try:
                    row = run_trial(work, trial)
                except Exception as error:  # a setting that cannot be trained is a result too
                    row = {
                        "round": number,
                        "setting": setting,
                        "kind": kind,
                        "failed": f"{type(error).__name__}: {error}",
                    }
                with open(work / "results.jsonl", "a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def regret(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """KID over the least of its kind, minus 1, by setting and kind."""
    best = {kind: min(r["kid"] for r in rows if r["kind"] == kind) for kind in {r["kind"] for r in rows}}
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["setting"], {})[row["kind"]] = row["kid"] / best[row["kind"]] - 1
    return found


def table(work: Path, number: int) -> str:
    """Markdown: a row a setting, the least worst regret first."""
    rows = [r for r in results(work) if r["round"] == number and "kid" in r]
    kinds = [kind for kind in KINDS if any(r["kind"] == kind for r in rows)]
    behind = regret(rows)
    order = sorted(behind, key=lambda name: (len(behind[name]) < len(kinds), max(behind[name].values())))
    lines = ["| setting | " + " | ".join(kinds) + " | worst regret | images seen | M parameters |"]
    lines.append("|---" * (len(kinds) + 4) + "|")
    for name in order:
        own = {r["kind"]: r for r in rows if r["setting"] == name}
        cells = [f"{own[k]['kid'] * 1000:,.0f} ± {own[k]['error'] * 1000:,.0f}" if k in own else "" for k in kinds]
        any_ = next(iter(own.values()))
        lines.append(
            f"| {name} | {' | '.join(cells)} | {max(behind[name].values()):.0%} | "
            f"{any_['steps'] * any_['batch']:,} | {any_['parameters'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "calibrate", "run", "table"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--emoji", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--round", type=int, default=1, choices=sorted(SIZE))
    parser.add_argument("--only", nargs="*", default=[], choices=[*SETTINGS, []])
    parser.add_argument("--kinds", nargs="*", default=[], choices=[*KINDS, []])
    asked = parser.parse_args()
    if asked.what == "prepare":
        if asked.emoji is None or asked.photos is None:
            sys.exit("prepare needs --emoji and --photos: what tools/build_emoji.py and build_photographs.py make")
        prepare(asked.work, asked.emoji, asked.photos)
    elif asked.what == "calibrate":
        calibrate(asked.work)
    elif asked.what == "run":
        run(asked.work, asked.round, asked.only, asked.kinds)
    else:
        print(table(asked.work, asked.round))


if __name__ == "__main__":
    main()
