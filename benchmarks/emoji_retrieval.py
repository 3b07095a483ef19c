"""Whether a text model draws the emoji it is asked for: is an image nearest the real ones of its own concept?

    python benchmarks/emoji_retrieval.py RUN --emoji EMOJI                    # seen and held-out concepts, two scales
    python benchmarks/emoji_retrieval.py RUN --emoji EMOJI -n 64 --guidance none,2,4 --styles noto,fluent
    python benchmarks/emoji_retrieval.py RUN --emoji EMOJI --concepts 300     # and by concept, the best and the worst
    python benchmarks/emoji_retrieval.py --emoji EMOJI                        # the yardstick alone: real against real

EMOJI is what tools/build_emoji.py makes. Prompts are captions of one concept a root (docs/data.md: "man cook" and
"woman cook" are one root), each in one of the styles in turn: of the concepts the model was trained on (seen) and of
those held out in every style. The features of what was made (EfficientNet-Lite0, their mean over real images taken
away, compared by the cosine) are held against those of real images, one score a root, its most alike image's:

    part       real images of the prompt's style, of as many roots of the same part as there are prompts
    all        of that style, of all roots
    other      as part, of the other styles, whose drawings are others: the shape must be right, not the line
    style      the style of the most alike image of all is the one asked for

Told are how often the own root is the first, is among the first five, and the mean of 1 / its place, with what chance
gives. "real" is the same asked of real images of other styles, the most that can be expected: of noto against the
three that share drawings, and those among themselves. KID is of all images of a setting against the real ones of the
same concepts and styles, and of all others of their part (x 1000). Errors are over prompts.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from captioned import sheet
from PIL import Image
from torch import Tensor

import kuosan
from kuosan.data.pixels import to_uint8
from kuosan.errors import Error, unknown
from kuosan.metrics.features import features
from kuosan.metrics.features.network import FeatureNetwork
from kuosan.metrics.kid import kid
from kuosan.seeds import rng

PARTS = {"train": "seen", "test": "held out"}
SHARED = ("fluent", "gradient", "3d")  # Microsoft's, of the same drawings
ROWS = 32  # of a sheet
EXTREMES = 30  # concepts on the sheets of the best and of the worst
AT_ONCE = 50  # images sampled together where many concepts are asked for


@dataclass(frozen=True)
class Real:
    """All real images: what each is (metadata's row), its pixels (S, S, 3), its features (N, D)."""

    rows: list[dict[str, str]]
    pixels: np.ndarray
    features: np.ndarray

    def where(self, **wanted: str) -> np.ndarray:
        """Numbers of the images whose row says so."""
        return np.array([i for i, row in enumerate(self.rows) if all(row[k] == v for k, v in wanted.items())], int)


@dataclass(frozen=True)
class Prompt:
    """One thing asked for: the words, and the real image (its number) that was never shown or was."""

    text: str
    image: int
    root: str
    style: str


@dataclass(frozen=True)
class Places:
    """At which place (from 1) each query's own root stood among how many."""

    places: np.ndarray
    among: int

    def figures(self) -> dict[str, list[float]]:
        """First, among the first five, mean reciprocal place: [value, error, chance]."""
        chance = {"top1": 1 / self.among, "top5": min(1, 5 / self.among)}
        chance["mrr"] = float((1 / np.arange(1, self.among + 1)).mean())
        each = {"top1": self.places == 1, "top5": self.places <= 5, "mrr": 1 / self.places}
        return {
            name: [float(np.mean(value)), float(np.std(value, ddof=1) / len(value) ** 0.5), chance[name]]
            for name, value in each.items()
        }


# --- images and prompts ---------------------------------------------------------------------------------------------


def load_real(folder: Path, network: FeatureNetwork, size: int | None, out: Path) -> Real:
    """Both parts' images, averaged down to `size` where a model makes smaller ones; features are kept in `out`."""
    rows, pixels = [], []
    archives = sorted(folder.glob("train*.zip")) + sorted(folder.glob("test*.zip"))
    if len(archives) != 2:
        raise Error(f"{folder} holds no train and test zip: give --emoji the folder that tools/build_emoji.py made.")
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            for line in archive.read("metadata.jsonl").decode().splitlines():
                rows.append(json.loads(line))
                with Image.open(io.BytesIO(archive.read(rows[-1]["file_name"]))) as image:
                    small = image if size in (None, image.width) else image.resize((size, size), Image.Resampling.BOX)
                    pixels.append(np.asarray(small.convert("RGB")))
    stack = np.stack(pixels)
    kept = out / f"real-{network.name}-{stack.shape[1]}.npz"
    if kept.exists():
        with np.load(kept) as found:
            if str(found["names"]) == names_of(rows) and str(found["hash"]) == network.hash:
                return Real(rows, stack, found["features"])
    found_rows = of_bytes(network, stack)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(kept, features=found_rows, names=names_of(rows), hash=network.hash)
    return Real(rows, stack, found_rows)


def names_of(rows: Sequence[Mapping[str, str]]) -> str:
    """Which images these are."""
    return "\n".join(row["file_name"] for row in rows)


def of_bytes(network: FeatureNetwork, pixels: np.ndarray) -> np.ndarray:
    """Features (N, D) of (N, S, S, 3) uint8."""
    return network(torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, 3, 1)))).numpy()


def choose(real: Real, part: str, styles: Sequence[str], n: int | None, seed: int) -> list[Prompt]:
    """A prompt a root of a part, in drawn order, styles in turn; the caption names its style in any case."""
    by_root: dict[str, list[int]] = defaultdict(list)
    for i in real.where(split=part):
        if real.rows[i]["style"] in styles:
            by_root[real.rows[i]["root"]].append(int(i))
    roots = sorted(by_root)
    order = rng(seed, f"emoji prompts {part}").permutation(len(roots))[:n]
    prompts = []
    for count, k in enumerate(order):
        there = by_root[roots[k]]
        style = styles[count % len(styles)]
        there = [i for i in there if real.rows[i]["style"] == style] or there
        image = there[int(rng(seed, f"emoji concept {part}", 0, int(k)).integers(len(there)))]
        row = real.rows[image]
        said = f"{row['style']} style"
        text = row["text"] if row["text"].endswith(said) else f"{row['text']}, {said}"
        prompts.append(Prompt(text, image, row["root"], row["style"]))
    return prompts


# --- retrieval --------------------------------------------------------------------------------------------------------


def directions(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Features with the mean taken away, of length 1."""
    centred = rows - mean
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def places(queries: np.ndarray, roots: Sequence[str], gallery: np.ndarray, of: Sequence[str]) -> tuple[np.ndarray, int]:
    """The place of each query's (Q, D) own root among the gallery's (G, D), and how many roots those are."""
    alike = queries @ gallery.T
    names = sorted(set(of))
    column = np.array([names.index(root) for root in of])
    best = np.full((len(queries), len(names)), -np.inf)
    np.maximum.at(best.T, column, alike.T)
    own = best[np.arange(len(queries)), [names.index(root) for root in roots]]
    return 1 + (best > own[:, None]).sum(1), len(names)


def retrieve(real: Real, prompts: Sequence[Prompt], made: np.ndarray) -> dict[str, Places]:
    """Where each made image's (Q, D) own root stands in each gallery."""
    mean = real.features.mean(0)
    queries, gallery = directions(made, mean), directions(real.features, mean)
    asked = {prompt.root for prompt in prompts}
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    among: dict[str, int] = {}
    for style in dict.fromkeys(prompt.style for prompt in prompts):
        mine = [i for i, prompt in enumerate(prompts) if prompt.style == style]
        galleries = {
            "part": [i for i in real.where(style=style) if real.rows[i]["root"] in asked],
            "all": list(real.where(style=style)),
            "other": [i for i, row in enumerate(real.rows) if row["style"] != style and row["root"] in asked],
        }
        for name, chosen in galleries.items():
            of = [real.rows[i]["root"] for i in chosen]
            own = [i for i in mine if prompts[i].root in set(of)]  # one that other styles lack cannot be found there
            at, count = places(queries[own], [prompts[i].root for i in own], gallery[chosen], of)
            found[name].append(at)
            among[name] = max(count, among.get(name, 0))
    return {name: Places(np.concatenate(found[name]), among[name]) for name in found}


def order_of(real: Real, prompts: Sequence[Prompt], made: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The prompts from best to worst, and each one's place among all roots of its style.

    Of those at one place the better is more alike to its own root, less the most alike other one.
    """
    mean = real.features.mean(0)
    gallery = directions(real.features, mean)
    at, ahead = np.zeros(len(prompts), int), np.zeros(len(prompts))
    for i, (prompt, query) in enumerate(zip(prompts, directions(made, mean))):
        there = real.where(style=prompt.style)
        alike = gallery[there] @ query
        own = np.array([real.rows[k]["root"] == prompt.root for k in there])
        others = {real.rows[k]["root"] for k, nearer in zip(there, alike > alike[own].max()) if nearer}
        at[i], ahead[i] = 1 + len(others), alike[own].max() - alike[~own].max()
    return sorted(range(len(prompts)), key=lambda i: (at[i], -ahead[i])), at


def right_style(real: Real, prompts: Sequence[Prompt], made: np.ndarray) -> list[float]:
    """How often the most alike real image of all is of the style asked for: [value, error]."""
    mean = real.features.mean(0)
    nearest = (directions(made, mean) @ directions(real.features, mean).T).argmax(1)
    right = np.array([real.rows[i]["style"] == prompt.style for i, prompt in zip(nearest, prompts)])
    return [float(right.mean()), float(right.std(ddof=1) / len(right) ** 0.5)]


def nearest_names(real: Real, prompts: Sequence[Prompt], made: np.ndarray) -> list[str]:
    """The name of the most alike real image of the prompt's style, where it is none of its own root."""
    mean = real.features.mean(0)
    gallery = directions(real.features, mean)
    names = []
    for prompt, query in zip(prompts, directions(made, mean)):
        there = real.where(style=prompt.style)
        row = real.rows[there[(gallery[there] @ query).argmax()]]
        names.append("" if row["root"] == prompt.root else f"nearest: {row['name']}")
    return names


def between_styles(real: Real, part: str) -> dict[str, dict[str, Places]]:
    """Real images of one style sought among those of another, one a concept: the most to be expected."""
    mean = real.features.mean(0)
    gallery = directions(real.features, mean)
    pairs = {
        "noto in fluent": ("noto", "fluent"),
        "fluent in noto": ("fluent", "noto"),
        "3d in fluent": ("3d", "fluent"),
    }
    found = {}
    for name, (one, other) in pairs.items():
        galleries = {"part": real.where(style=other, split=part), "all": real.where(style=other)}
        found[name] = {}
        for which, chosen in galleries.items():
            of = [real.rows[i]["root"] for i in chosen]
            asked = [i for i in real.where(style=one, split=part) if real.rows[i]["root"] in set(of)]
            roots = [real.rows[i]["root"] for i in asked]
            found[name][which] = Places(*places(gallery[asked], roots, gallery[chosen], of))
    return found


# --- figures and sheets -----------------------------------------------------------------------------------------------


def distances(real: Real, prompts: Sequence[Prompt], made: np.ndarray, part: str) -> dict[str, list[float]]:
    """KID of what was made to the prompts' real images, to the others of the part; and of those to each other."""
    own = [prompt.image for prompt in prompts]
    styles = {prompt.style for prompt in prompts}
    others = [i for i in real.where(split=part) if real.rows[i]["style"] in styles and i not in set(own)]
    rows = real.features
    found = {"to the same": kid(made, rows[own]), "to others": kid(made, rows[others])}
    found["real to others"] = kid(rows[own], rows[others])
    return {name: [value.value, value.error] for name, value in found.items()}


def head() -> None:
    """The table's heading."""
    columns = [f"{gallery}, {what}" for gallery in ("part", "all", "other") for what in ("top 1", "top 5", "MRR")]
    print("| images | n | " + " | ".join(columns) + " | style | KID to the same | to others |", flush=True)
    print("|---" * (len(columns) + 5) + "|")


def line(name: str, n: int, told: Mapping[str, dict[str, list[float]]], more: Sequence[str] = ()) -> None:
    """One row of the table: per cent, chance in brackets."""
    cells = []
    for gallery in ("part", "all", "other"):
        for what in ("top1", "top5", "mrr"):
            value = told.get(gallery, {}).get(what)
            cells.append("" if value is None else "{:.1f} ± {:.1f} ({:.1f})".format(*(100 * each for each in value)))
    print(f"| {name} | {n} | " + " | ".join([*cells, *more, *[""] * (3 - len(more))]) + " |", flush=True)


def examine(asked: argparse.Namespace) -> None:
    """All that the command line asks for."""
    out = asked.out or (Path(asked.run) / "retrieval" if asked.run else Path("retrieval"))
    model = kuosan.load(asked.run) if asked.run else None
    side = model.model.shape[-1] if model else None
    network = features(asked.features)
    real = load_real(asked.emoji, network, side if side and side < 64 else None, out)
    styles = asked.styles.split(",")
    known = list(dict.fromkeys(row["style"] for row in real.rows))
    for style in styles:
        if style not in known:
            raise unknown("style", style, known)
    figures: dict[str, object] = {"features": network.name, "emoji": len(real.rows)}
    head()
    for part, word in PARTS.items():
        bound = {
            f"real, {word}, {name}": {gallery: found.figures() for gallery, found in each.items()}
            for name, each in between_styles(real, part).items()
        }
        for name, told in bound.items():
            line(name, len(real.where(split=part, style="noto")), told)
        figures |= bound
    held = len({real.rows[i]["root"] for i in real.where(split="test")})
    for part, word in PARTS.items() if model else ():
        prompts = choose(real, part, styles, min(asked.n or held, held), asked.seed)
        figures |= of_part(asked, model, real, network, part, word, prompts, out)
    if model and asked.concepts:
        figures["by concept"] = by_concept(asked, model, real, network, styles, out)
    told = {name: getattr(asked, name) for name in ("run", "sampler", "steps", "seed", "styles", "guidance")}
    out.mkdir(parents=True, exist_ok=True)
    (out / "retrieval.json").write_text(json.dumps({**told, "figures": figures}, indent=1) + "\n", "utf-8")
    print(f"{out}/retrieval.json", file=sys.stderr)


def of_part(
    asked: argparse.Namespace,
    model: object,
    real: Real,
    network: FeatureNetwork,
    part: str,
    word: str,
    prompts: list[Prompt],
    out: Path,
) -> dict[str, object]:
    """Sample, judge and show the prompts of one part at each scale of guidance."""
    figures: dict[str, object] = {}
    shown: dict[str, tuple[np.ndarray, list[str]]] = {
        "real": (real.pixels[[prompt.image for prompt in prompts]], [""] * len(prompts))
    }
    for scale in asked.guidance.split(","):
        name = "unguided" if scale == "none" else f"guidance {scale}"
        options = {} if scale == "none" else {"guidance": float(scale)}
        texts = [prompt.text for prompt in prompts]
        images: Tensor = model.sample(  # type: ignore[attr-defined]
            len(texts), prompts=texts, seed=asked.seed, sampler=asked.sampler, steps=asked.steps, **options
        )
        pixels = np.asarray(to_uint8(images.float().cpu().numpy()))
        made = of_bytes(network, pixels)
        told = {gallery: found.figures() for gallery, found in retrieve(real, prompts, made).items()}
        style, kids = right_style(real, prompts, made), distances(real, prompts, made, part)
        more = [f"{100 * style[0]:.1f} ± {100 * style[1]:.1f}"]
        more += ["{:.1f} ± {:.1f}".format(*(1000 * each for each in kids[to])) for to in ("to the same", "to others")]
        line(f"{word}, {name}", len(prompts), told, more)
        figures[f"{word}, {name}"] = {**told, "style": style, "kid": kids}
        shown[name] = pixels, nearest_names(real, prompts, made)
    floor = figures[next(iter(figures))]["kid"]["real to others"]  # type: ignore[index]
    print(f"| {word}, real | {len(prompts)} |" + " |" * 11 + " {:.1f} ± {:.1f} |".format(*(1000 * v for v in floor)))
    rows = [
        (prompts[i].text, [(pixels[i], remarks[i]) for pixels, remarks in shown.values()])
        for i in range(min(ROWS, len(prompts)))
    ]
    sheet(out / f"{word.replace(' ', '-')}.png", list(shown), rows, across=4)
    return figures


def by_concept(
    asked: argparse.Namespace, model: object, real: Real, network: FeatureNetwork, styles: Sequence[str], out: Path
) -> dict[str, object]:
    """Each seen concept once at the last scale: the groups' shares, the best and the worst shown."""
    prompts = choose(real, "train", styles, asked.concepts, asked.seed)
    scale = asked.guidance.split(",")[-1]
    options = {} if scale == "none" else {"guidance": float(scale)}
    parts = []
    for begin in range(0, len(prompts), AT_ONCE):
        texts = [prompt.text for prompt in prompts[begin : begin + AT_ONCE]]
        images: Tensor = model.sample(  # type: ignore[attr-defined]
            len(texts), prompts=texts, seed=asked.seed + begin, sampler=asked.sampler, steps=asked.steps, **options
        )
        parts.append(np.asarray(to_uint8(images.float().cpu().numpy())))
    pixels = np.concatenate(parts)
    made = of_bytes(network, pixels)
    order, at = order_of(real, prompts, made)
    group_of = [real.rows[prompt.image]["group"] for prompt in prompts]
    print(f"\n| by concept, guidance {scale} | n | all, top 1 | top 5 | top 20 | median place |\n" + "|---" * 6 + "|")
    groups: dict[str, list[float]] = {}
    for group in ("every one", *sorted(set(group_of))):
        mine = at[[group in ("every one", each) for each in group_of]]
        groups[group] = [len(mine), *(float((mine <= k).mean()) for k in (1, 5, 20)), float(np.median(mine))]
        cells = " | ".join(f"{100 * share:.0f} %" for share in groups[group][1:4])
        print(f"| {group} | {len(mine)} | {cells} | {groups[group][4]:g} |", flush=True)
    names = nearest_names(real, prompts, made)
    few = min(EXTREMES, len(order) // 2)
    for word, chosen in (("best", order[:few]), ("worst", order[len(order) - few :][::-1])):
        rows = [
            (real.rows[prompts[i].image]["name"], [(real.pixels[prompts[i].image], ""), (pixels[i], names[i])])
            for i in chosen
        ]
        sheet(out / f"{word}.png", ["real", "made"], rows, across=6)
    places_of = {prompts[i].text: int(at[i]) for i in order}
    return {"scale": scale, "groups": groups, "places": places_of}


def main() -> None:
    """Read the command line, sample, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run that is told captions of emoji; none: real images alone")
    parser.add_argument("--emoji", type=Path, required=True, help="the folder that tools/build_emoji.py made")
    parser.add_argument("-n", type=int, help="prompts a part; as many as roots are held out, if none")
    parser.add_argument("--concepts", type=int, default=0, help="seen concepts shown from best to worst; 0: none")
    parser.add_argument("--styles", default="noto,fluent,gradient,3d")
    parser.add_argument("--guidance", default="none,3", help="scales, none is unguided")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="dpm_solver_2m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", default="lite0-128")
    parser.add_argument("--out", type=Path, help="a folder for figures and sheets; RUN/retrieval, if none")
    try:
        examine(parser.parse_args())
    except Error as error:
        sys.exit(f"emoji_retrieval: {error}")


if __name__ == "__main__":
    main()
