"""Whether a text model makes the portraits it is asked for: each attribute read off the images by an exact judge.

    python benchmarks/portrait_attributes.py RUN                          # unguided and guided 3, 346 held-out captions
    python benchmarks/portrait_attributes.py RUN --guidance none,2,3,5 -n 200 --steps 10
    python benchmarks/portrait_attributes.py RUN --suffix ", portrait style"   # a model that knows other images too
    python benchmarks/portrait_attributes.py                              # the judge alone: real images, and chance

The prompts are the captions of the built-in portraits' held-out part: combinations of hair, hair colour, hair at the
back, beard and skin that the model never saw (ten attributes an image, docs/data.md). The judge is a network of 0.3 M
parameters that never saw such a head either (portrait_judge.py, its weights beside it); how many of the real held-out
portraits' attributes it reads is printed every time. A model of larger images is averaged down to 32 pixels.

Judged are the attributes that a caption names. Hair at the back and beard are left unsaid where there is none; whether
the image then has none is told apart from the rest ("unsaid"). "real" are the held-out portraits with their own
captions, "shuffled" the same with the caption of another: what a model gets that does not listen. An error is
the standard error over images: with other prompts and seeds a figure varies by about that.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from captioned import sheet
from portrait_judge import NAMES, load, read, values
from torch import Tensor

import kuosan
from kuosan.data.pixels import to_uint8
from kuosan.data.sources import SIDE, WORDS, caption, load_sheet
from kuosan.errors import Error
from kuosan.metrics.estimate import Estimate, spread
from kuosan.seeds import rng

UNSAID = "none"  # the value that a caption does not speak of
GOOD = 0.99  # of each attribute on held-out portraits, or the judge is none
SHUT = ("smiling", "sad")  # mouths that are a few grey levels apart
ROWS = 24  # of the sheet


# --- accuracy ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """What a judge saw against what was asked for: shares in [0, 1] with their errors."""

    all_named: Estimate  # over all attributes that captions name
    each: dict[str, Estimate]  # of one attribute, where it is named
    unsaid: Estimate  # that nothing is seen where nothing is said
    whole: Estimate  # images in which every named attribute is right
    shut: Estimate  # mouths, where smiling and sad count as one

    def plain(self) -> dict[str, object]:
        """For JSON: [share, error] each."""
        return {
            "all_named": pair(self.all_named),
            "each": {name: pair(value) for name, value in self.each.items()},
            "unsaid": pair(self.unsaid),
            "whole": pair(self.whole),
            "mouth, smiling and sad as one": pair(self.shut),
        }


def pair(estimate: Estimate) -> list[float]:
    """A share and its error, to four digits."""
    return [round(estimate.value, 4), round(estimate.error, 4)]


def share(right: np.ndarray, asked: np.ndarray) -> Estimate:
    """The share of `right` among `asked`, both (N, K) bool, a row an image; the jackknife leaves out images."""
    hits, tries = (right & asked).sum(1).astype(float), asked.sum(1).astype(float)
    if not tries.sum():
        return Estimate(float("nan"), float("nan"))
    left = (hits.sum() - hits) / np.maximum(tries.sum() - tries, 1)
    return Estimate(float(hits.sum() / tries.sum()), spread(left) ** 0.5)


def compare(seen: np.ndarray, wanted: np.ndarray) -> Read:
    """The figures of what was seen (N, 10) against what the captions say (N, 10)."""
    right, named = seen == wanted, named_in(wanted)
    whole = (right | ~named).all(1, keepdims=True)
    mouth, shut = NAMES.index("mouth"), [list(WORDS["mouth"]).index(word) for word in SHUT]
    alike = np.isin(seen[:, mouth], shut) & np.isin(wanted[:, mouth], shut)
    return Read(
        share(right, named),
        {name: share(right[:, k : k + 1], named[:, k : k + 1]) for k, name in enumerate(NAMES)},
        share(right, ~named),
        share(whole, np.ones_like(whole)),
        share((right[:, mouth] | alike)[:, None], np.ones_like(whole)),
    )


def named_in(wanted: np.ndarray) -> np.ndarray:  # (N, 10) bool
    """Which attributes a caption speaks of."""
    silent = [list(words).index(UNSAID) if UNSAID in words else -1 for words in WORDS.values()]
    named: np.ndarray = wanted != np.array(silent)
    return named


def wrong_words(seen: np.ndarray, wanted: np.ndarray) -> str:
    """What one image (10,) shows in place of what was asked for."""
    said = [
        f"{name.replace('_', ' ')}: {list(words)[seen[k]]}"
        for k, (name, words) in enumerate(WORDS.items())
        if seen[k] != wanted[k]
    ]
    return ", ".join(said)


# --- images ---------------------------------------------------------------------------------------------------------


def small(images: Tensor) -> np.ndarray:  # (N, 32, 32, 3)
    """Images (N, 3, S, S) in [-1, 1] as bytes of 32 pixels, each the mean of those it covers."""
    if images.shape[1] != 3 or images.shape[-1] % SIDE or images.shape[-1] != images.shape[-2]:
        raise Error(f"images {tuple(images.shape[1:])} are no portraits: RGB of a multiple of {SIDE} pixels a side.")
    return np.asarray(to_uint8(F.avg_pool2d(images.float().cpu(), images.shape[-1] // SIDE).numpy()))


def main() -> None:
    """Read the command line, sample, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run of portraits that is told their captions; none: the judge alone")
    parser.add_argument("-n", type=int, help="images a setting; all held-out captions, if none")
    parser.add_argument("--guidance", default="none,3", help="scales, none is unguided")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="dpm_solver_2m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suffix", default="", help="what is added to every caption")
    parser.add_argument("--seen", action="store_true", help="captions of the training part instead")
    parser.add_argument("--unconditional", help="a run that is told nothing, judged by the same captions: chance")
    parser.add_argument("--out", type=Path, help="a folder for figures and sheets; RUN/attributes, if none")
    asked = parser.parse_args()
    try:
        examine(asked)
    except Error as error:
        sys.exit(f"portrait_attributes: {error}")


def examine(asked: argparse.Namespace) -> None:
    """All that the command line asks for."""
    judge = load()
    images, attributes, held_out = load_sheet()
    seen_real, told_real = read(judge, images[held_out]), values(attributes)[held_out]
    real = compare(seen_real, told_real)
    head()
    line("real, held out", real)
    if (seen_real == told_real).mean(0).min() < GOOD:
        raise Error(f"the judge reads some attribute of real portraits in less than {GOOD:.0%}: is its file another?")
    chosen = np.flatnonzero(~held_out if asked.seen else held_out)
    chosen = chosen[rng(asked.seed, "portrait prompts").permutation(len(chosen))][: asked.n or held_out.sum()]
    wanted = values([attributes[i] for i in chosen])
    line("real, shuffled", compare(np.roll(read(judge, images[chosen]), 1, axis=0), wanted))
    if asked.run is None:
        return
    prompts = [caption(attributes[i]) + asked.suffix for i in chosen]
    made = {"real": images[chosen]}
    made |= {name: small(sampled(asked, asked.run, prompts, scale)) for name, scale in scales(asked.guidance).items()}
    if asked.unconditional:
        made["unconditional"] = small(sampled(asked, asked.unconditional, None, None, len(prompts)))
    seen = {name: read(judge, each) for name, each in made.items()}
    figures = {name: compare(each, wanted) for name, each in seen.items()}
    for name, figure in figures.items():
        if name != "real":
            line(name, figure)
    write(asked, made, seen, figures, wanted, prompts)


def scales(text: str) -> dict[str, float | None]:
    """What a row is called -> the scale of guidance."""
    return {
        "unguided" if word == "none" else f"guidance {word}": None if word == "none" else float(word)
        for word in text.split(",")
    }


def sampled(
    asked: argparse.Namespace, run: str, prompts: list[str] | None, guidance: float | None, n: int | None = None
) -> Tensor:
    """An image a prompt."""
    options = {} if prompts is None else {"prompts": prompts}
    options |= {} if guidance is None else {"guidance": guidance}
    count = len(prompts) if prompts is not None else n
    model = kuosan.load(run)
    return model.sample(count, seed=asked.seed, sampler=asked.sampler, steps=asked.steps, **options)


def head() -> None:
    """The table's heading."""
    words = [*(name.replace("_", " ") for name in NAMES), "mouth, smiling and sad as one"]
    print("| images | all named | every one right | unsaid | " + " | ".join(words) + " |", flush=True)
    print("|---" * (len(words) + 4) + "|")


def line(name: str, figures: Read) -> None:
    """One row of the table, in per cent."""
    shares = [figures.all_named, figures.whole, figures.unsaid, *figures.each.values(), figures.shut]
    cells = " | ".join(f"{100 * value.value:.1f} ± {100 * value.error:.1f}" for value in shares)
    print(f"| {name} | {cells} |", flush=True)


def write(
    asked: argparse.Namespace,
    made: dict[str, np.ndarray],
    seen: dict[str, np.ndarray],
    figures: dict[str, Read],
    wanted: np.ndarray,
    prompts: list[str],
) -> None:
    """attributes.json and attributes.png."""
    out = asked.out or Path(asked.run) / "attributes"
    out.mkdir(parents=True, exist_ok=True)
    told = {
        "run": str(asked.run),
        "prompts": "seen" if asked.seen else "held out",
        **{name: getattr(asked, name) for name in ("sampler", "steps", "seed", "suffix")},
        "pictures": len(prompts),
        "figures": {name: each.plain() for name, each in figures.items()},
    }
    (out / "attributes.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    rows = [
        (prompts[i], [(made[name][i], wrong_words(seen[name][i], wanted[i])) for name in made])
        for i in range(min(ROWS, len(prompts)))
    ]
    sheet(out / "attributes.png", list(made), rows, across=4)
    print(f"{out}/attributes.json, attributes.png", file=sys.stderr)


if __name__ == "__main__":
    main()
