"""What five core-minutes of training give on the other tasks, by kuosan's own defaults; and digits in thirty seconds.

    python benchmarks/five_minutes.py run WORK [--only TASK ...] [--photos PHOTOS] [--digits DIGITS.csv.gz]
    python benchmarks/five_minutes.py table WORK

| task | what is trained | figure, and what it should be |
|---|---|---|
| super-resolution | portraits, twice as large | perceptual distance less than bicubic's |
| inpainting | portraits, holes | perceptual distance less than the harmonic fill's |
| classes | Fashion-MNIST at 32 px with labels | images that a classifier sees as the class asked for: 80 % |
| captions | portraits with captions | attributes named in held-out captions that are right: 75 % |
| autoencoder | photographs' tiles of 128 px, factor 4 | PSNR of held-out tiles: 25 dB |
| digits | scikit-learn's 8 x 8 digits with labels, 30 core-seconds | digits that a classifier sees as asked for: 0.90 |

Every training says its task and its data and a time budget, nothing else (`kuosan train ... --minutes 5`), the budget
counted in the process's own processor time (`first_minutes.py`), one thread. Previews and validation are off. PHOTOS is
what tools/build_photographs.py makes; DIGITS is scikit-learn's file, found where that is installed. The classifiers are
perceptrons trained here on real images; the captions' judge is `portrait_judge.py`. WORK/results.jsonl gets a line a
task, WORK/sheets an image; what has a line is skipped.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from first_minutes import train
from recipe_study import results, save_sheet

DIGITS_SECONDS = 30
EACH = 20  # images of a class, made


@dataclass(frozen=True)
class Figure:
    """What a task came to, and what it is held against."""

    name: str
    value: float
    error: float
    wanted: float
    larger: bool  # whether more is better
    against: str = ""  # where `wanted` is measured: whose it is

    @property
    def reached(self) -> bool:
        return self.value >= self.wanted if self.larger else self.value < self.wanted


# --- judges -----------------------------------------------------------------------------------------------------------


Classifier = Callable[[np.ndarray], np.ndarray]  # from images (N, H, W, C) uint8 to classes (N,)


def classifier(images: np.ndarray, labels: np.ndarray, epochs: int, seed: int = 7) -> Classifier:
    """A perceptron of one hidden layer, trained on images (N, H, W, C) uint8."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(images[0].size, 256), nn.ReLU(), nn.Linear(256, int(labels.max()) + 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels).long()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            noisy = x[rows] + 0.05 * torch.randn_like(x[rows])
            loss = F.cross_entropy(net(noisy), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()

    def classes(of: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = net(torch.from_numpy(of).float() / 255).argmax(1).numpy()
        return found

    return classes


def agreement(work: Path, name: str, run: Path, judge: Classifier, wanted: float) -> Figure:
    """How often a judge sees the class that was asked for, by the default sampler, unguided."""
    import kuosan
    from kuosan.data.pixels import to_uint8

    asked = np.tile(np.arange(10), EACH)
    made = to_uint8(kuosan.load(run).sample(len(asked), seed=0, classes=asked.tolist()).numpy())
    save_sheet(work, name, made)
    right = judge(made) == asked
    return Figure("class agreement", right.mean(), right.std() / len(right) ** 0.5, wanted, larger=True)


# --- tasks ------------------------------------------------------------------------------------------------------------


def super_resolution(asked: argparse.Namespace, run: Path) -> tuple[dict[str, Any], Figure]:
    tree = {"data": {"path": "portraits"}, "model": {"task": {"kind": "super_resolution", "scale": 2}}}
    return train(run, tree, asked.seconds), restored(asked, run, "bicubic", upscale=2)


def inpainting(asked: argparse.Namespace, run: Path) -> tuple[dict[str, Any], Figure]:
    tree = {"data": {"path": "portraits"}, "model": {"task": {"kind": "inpainting"}}}
    return train(run, tree, asked.seconds), restored(asked, run, "harmonic", mask="box,brush")


def restored(asked: argparse.Namespace, run: Path, rule: str, **damage: Any) -> Figure:
    """The run's perceptual distance to held-out portraits beside a rule's."""
    from kuosan.evaluate.plan import compare

    out = run.with_name(run.name + "-compared")
    shutil.rmtree(out, ignore_errors=True)
    found = compare("portraits", [str(run)], n=asked.n, variants=2, out=str(out), **damage)
    print(*found.about(), sep="\n", file=sys.stderr)
    own = found.contestants[0].figures["perceptual"]
    (asked.work / "sheets").mkdir(exist_ok=True)
    shutil.copy(next(out.glob("*.png")), asked.work / "sheets" / f"{run.name}.png")
    against = found[rule].figures["perceptual"].value
    return Figure("perceptual distance", own.value, own.error, against, larger=False, against=rule)


def classes(asked: argparse.Namespace, run: Path) -> tuple[dict[str, Any], Figure]:
    import fashion_mnist

    pixels, labels = fashion_mnist.images()[:, 0, ..., None], fashion_mnist.labels()
    half = len(pixels) // 2  # of the classifier, the other of the model
    data = asked.work / "fashion.npz"
    np.savez(data, images=pixels[half:], labels=labels[half:])
    tree = {"data": {"path": str(data), "hold_out": 0.0}, "model": {"task": {"labels": True}}}
    trained = train(run, tree, asked.seconds)
    judge = classifier(pixels[:half], labels[:half], epochs=3)
    real, known = fashion_mnist.images(part="t10k")[:, 0, ..., None], fashion_mnist.labels(part="t10k")
    trained["judge"] = round(float((judge(real) == known).mean()), 3)
    return trained, agreement(asked.work, run.name, run, judge, 0.80)


def captions(asked: argparse.Namespace, run: Path) -> tuple[dict[str, Any], Figure]:
    import portrait_attributes as attributes

    tree = {"data": {"path": "portraits"}, "model": {"text": {"kind": "bytes"}}}
    trained = train(run, tree, asked.seconds)
    images, named, held_out = attributes.load_sheet()
    chosen = np.flatnonzero(held_out)[: asked.n * 2]
    prompts = [attributes.caption(named[i]) for i in chosen]
    import kuosan

    made = attributes.small(kuosan.load(run).sample(len(prompts), seed=0, prompts=prompts))
    save_sheet(asked.work, run.name, made)
    judge = attributes.load()
    wanted = attributes.values([named[i] for i in chosen])
    found = attributes.compare(attributes.read(judge, made), wanted).all_named
    trained["judge"] = round(attributes.compare(attributes.read(judge, images[chosen]), wanted).all_named.value, 3)
    return trained, Figure("attributes right", found.value, found.error, 0.75, larger=True)


def autoencoder(asked: argparse.Namespace, run: Path) -> tuple[dict[str, Any], Figure]:
    from kuosan.evaluate.plan import reconstruct

    if asked.photos is None:
        raise SystemExit("autoencoder: say --photos PHOTOS, what tools/build_photographs.py makes")
    tree = {"data": {"path": str(asked.photos / "train128.zip")}, "train": {"objective": "autoencoder"}}
    trained = train(run, tree, asked.seconds)
    out = run.with_name(run.name + "-reconstructed")
    shutil.rmtree(out, ignore_errors=True)
    found = reconstruct(run, str(asked.photos / "test128.zip"), n=asked.n, features="none", out=str(out))
    (asked.work / "sheets").mkdir(exist_ok=True)
    for sheet in list(out.glob("*.png"))[:1]:
        shutil.copy(sheet, asked.work / "sheets" / f"{run.name}.png")
    psnr = found.figures["psnr"]
    return trained, Figure("PSNR, dB", psnr.value, psnr.error, 25.0, larger=True)


def digits(asked: argparse.Namespace, run: Path) -> tuple[dict[str, Any], Figure]:
    with gzip.open(asked.digits or _digits_file()) as file:
        table = np.loadtxt(file, delimiter=",")
    pixels, labels = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1].astype(int)
    pixels = (pixels * 255 / 16).round().astype(np.uint8)
    data = asked.work / "digits.npz"
    np.savez(data, images=pixels, labels=labels)
    tree = {"data": {"path": str(data)}, "model": {"task": {"labels": True}}}
    trained = train(run, tree, min(DIGITS_SECONDS, asked.seconds))
    test = np.arange(len(pixels)) % 5 == 0
    known = classifier(pixels[~test], labels[~test], epochs=40)
    trained["judge"] = round(float((known(pixels[test]) == labels[test]).mean()), 3)
    return trained, agreement(asked.work, run.name, run, classifier(pixels, labels, epochs=40), 0.90)


def _digits_file() -> Path:
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("digits: scikit-learn is not installed; say --digits FILE, its digits.csv.gz")
    return Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


TASKS: dict[str, Callable[[argparse.Namespace, Path], tuple[dict[str, Any], Figure]]] = {
    "super-resolution": super_resolution,
    "inpainting": inpainting,
    "classes": classes,
    "captions": captions,
    "autoencoder": autoencoder,
    "digits": digits,
}


def run(asked: argparse.Namespace) -> None:
    """Every task that has no line, each in a process of its own, since processor time is its budget."""
    for name in asked.only or TASKS:
        if any(row["task"] == name and row["seconds"] == asked.seconds for row in results(asked.work)):
            continue
        command = [sys.executable, __file__, "task", str(asked.work), "--only", name, "-n", str(asked.n)]
        command += ["--seconds", str(asked.seconds)]
        for option in ("photos", "digits"):
            command += [f"--{option}", str(getattr(asked, option))] if getattr(asked, option) else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "CUDA_VISIBLE_DEVICES": ""}
        if subprocess.run(command, env=environment).returncode:
            print(f"{name} failed: see above", file=sys.stderr, flush=True)


def do(asked: argparse.Namespace) -> None:
    """One task: its line."""
    (name,) = asked.only
    out = asked.work / "runs" / f"{name}-{asked.seconds:g}"
    asked.work.mkdir(parents=True, exist_ok=True)
    trained, figure = TASKS[name](asked, out)
    row = {"task": name, "seconds": asked.seconds, **trained, "figure": figure.name}
    row |= {"value": round(float(figure.value), 4), "error": round(float(figure.error), 4)}
    row |= {"wanted": round(figure.wanted, 4), "against": figure.against, "reached": bool(figure.reached)}
    with open(asked.work / "results.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def table(work: Path) -> str:
    """Markdown: a row a task."""
    head = ["task", "core-seconds", "images seen", "M parameters", "figure", "found", "wanted", "reached"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in results(work):
        wanted = f"{row['against']} {row['wanted']:.3f}" if row["against"] else f"{row['wanted']:g}"
        cells = [row["task"], f"{row['core_seconds']:,.0f}", f"{row['images']:,}", f"{row['parameters'] / 1e6:.1f}"]
        cells += [row["figure"], f"{row['value']:.3f} ± {row['error']:.3f}", wanted, "yes" if row["reached"] else "no"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "task"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", default=[], choices=[*TASKS, []], help="tasks; all")
    parser.add_argument("--seconds", type=float, default=300, help="core-seconds of training; of digits at most 30")
    parser.add_argument("-n", type=int, default=64, help="images restored or reconstructed; twice as many captions")
    parser.add_argument("--photos", type=Path, help="what tools/build_photographs.py makes")
    parser.add_argument("--digits", type=Path, help="scikit-learn's digits.csv.gz")
    asked = parser.parse_args()
    if asked.what == "table":
        print(table(asked.work))
    else:
        (do if asked.what == "task" else run)(asked)


if __name__ == "__main__":
    main()
