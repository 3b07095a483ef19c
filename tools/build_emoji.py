"""Build a set of free emoji with captions: `python tools/build_emoji.py OUT [--size 64] [--work DIR]`.

The drawings come from npm packages (`npm install`, kept in DIR, OUT.packages unless given, so a second run downloads
nothing), and Python has resvg-py==0.5.0, which draws them. Four styles, each of one free licence:

    caption's words   drawings                                    licence
    noto style        Noto Emoji (Google)                         Apache-2.0
    fluent style      Fluent Emoji, flat (Microsoft)              MIT
    gradient style    Fluent Emoji, coloured with gradients       MIT
    3d style          Fluent Emoji, 3D, as @lobehub packs them    MIT

Left out on purpose: Twemoji and Firefox OS Emoji (their drawings are CC BY, whatever the package says), OpenMoji (CC
BY-SA), every vendor's own font; flags, symbols (keycaps, arrows, signs), families (signs too, in the one set that has
them) and skin tones other than the plain yellow.

OUT/train64.zip and OUT/test64.zip hold lossless WebP, RGB on white, and a metadata.jsonl: file_name, text (the
caption), style, concept (its code points), root, name, group, split. all64.zip has both parts. The parts are split by
root: a concept without its gender and direction, so "man cook" is never in one part and "woman cook" in the other, and
in all styles at once, since those of Microsoft share drawings. even64.zip is the training part for a text model: about
twelve rows a root, whether it has four images or twenty-five, each with a caption of its own (also: `emoji` behind the
name, a colour read from the pixels before it, a keyword in its place). CREDITS.md names authors and licences,
words.json counts the images of even64.zip by the words of their captions, emoji.json holds the counts and the SHA-256
of the pixels of every image. The same packages give the same images.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kuosan.errors import Error
from kuosan.seeds import rng
from kuosan.storage.files import staged, verify
from kuosan.text.tokens import word_counts

SIZES = (16, 128)  # pixels a side
FINER = 4  # vector drawings are drawn so many times as large, each pixel then the mean of 16
HELD_OUT, SEED = 0.1, 9  # of the roots; of the captions
LEFT_OUT = ("component", "symbols", "flags")  # groups
ARTICLE, BARE, NO_STYLE = 0.5, 0.25, 0.1  # how often a caption has "a", no keyword, and (training only) no style
KEYWORDS = 3  # at most
EVEN = 12  # rows a root in the even part; the captions of one image differ
BY_KEYWORD, EMOJI, COLOURED, EVEN_BARE, EVEN_NO_STYLE = (
    0.15,
    0.2,
    0.3,
    0.5,
    0.2,
)  # how often, of captions after the first
COLOUR = 0.6  # of an image's pixels beside the white that must be of one colour
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
EMPTY = 0.01  # an image of which less is not white shows nothing
NAMES = "emojibase-data@17.0.0"
WITHOUT = {"fe0f", "200d", "2640", "2642", "27a1", "1f468", "1f469", "1f9d1"}  # joiners, genders, direction


@dataclass(frozen=True)
class Style:
    """One way of drawing: the caption's word, the package, and whose it is."""

    word: str
    package: str  # with its version
    title: str
    author: str
    licence: str
    home: str


MICROSOFT = ("Microsoft Corporation", "MIT", "https://github.com/microsoft/fluentui-emoji")
STYLES = [
    Style(
        "noto",
        "@iconify-json/noto@1.2.9",
        "Noto Emoji",
        "Google Inc. and the Noto Emoji authors",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
    ),
    Style("fluent", "@iconify-json/fluent-emoji-flat@1.2.6", "Fluent Emoji, flat", *MICROSOFT),
    Style("gradient", "@iconify-json/fluent-emoji@1.2.7", "Fluent Emoji, color", *MICROSOFT),
    Style("3d", "@lobehub/fluent-emoji-3d@1.1.0", "Fluent Emoji, 3D (packed by LobeHub, MIT)", *MICROSOFT),
]
FLAT = STYLES[1]  # names the drawings that Microsoft released
THREE_D = STYLES[3]

# The start of emojibase's subgroup -> the keyword that says what kind of thing it is
KINDS = {
    "face": "face",
    "cat": "cat face",
    "monkey": "monkey face",
    "heart": "heart",
    "emotion": "emotion",
    "hand": "hand",
    "body": "body",
    "person": "person",
    "family": "family",
    "animal-bird": "bird",
    "animal-reptile": "reptile",
    "animal-marine": "sea animal",
    "animal-bug": "insect",
    "animal": "animal",
    "plant-flower": "flower",
    "plant": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-sweet": "sweet",
    "food": "food",
    "drink": "drink",
    "dishware": "dishes",
    "place-building": "building",
    "place-religious": "building",
    "place": "place",
    "transport": "vehicle",
    "hotel": "hotel",
    "time": "time",
    "sky": "sky",
    "event": "celebration",
    "award": "award",
    "sport": "sport",
    "game": "game",
    "arts": "art",
    "clothing": "clothes",
    "sound": "sound",
    "music": "music",
    "phone": "phone",
    "computer": "computer",
    "light": "light",
    "book": "paper",
    "money": "money",
    "mail": "mail",
    "writing": "writing",
    "office": "office",
    "lock": "lock",
    "tool": "tool",
    "science": "science",
    "medical": "medicine",
    "household": "household",
    "other-object": "object",
}


@dataclass(frozen=True)
class Concept:
    """What an emoji shows, in whatever style."""

    points: str  # code points in hex, lower case, joined by -, without fe0f
    name: str
    tags: tuple[str, ...]
    group: str
    kind: str

    @property
    def root(self) -> str:
        """The concept without gender and direction; itself where nothing else is left."""
        left = [point for point in self.points.split("-") if point not in WITHOUT]
        return "-".join(left) or self.points

    @property
    def held_out(self) -> bool:
        """Whether it is for testing: a hash of its root, read as a fraction."""
        digest = hashlib.sha256(f"kuosan emoji {self.root}".encode()).hexdigest()
        return int(digest[:8], 16) / 16**8 < HELD_OUT


# --- names and captions -----------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Lower-case ASCII words; what stands after a colon becomes one more part."""
    text = unicodedata.normalize("NFKD", text.replace("’", "'")).encode("ascii", "ignore").decode()
    return " ".join(text.lower().replace(":", ",").replace(".", "").split())


def code_points(hexcode: str) -> str:
    """A key that all sets share: lower case, without the sign that asks for colour."""
    return "-".join(point for point in hexcode.lower().split("-") if point != "fe0f")


def read_concepts(data: list[dict[str, Any]], meta: Mapping[str, Mapping[str, str]]) -> list[Concept]:
    """The concepts of emojibase in its order, without those groups that are left out."""
    concepts = []
    for row in sorted(data, key=lambda row: row.get("order", 0)):
        group = meta["groups"].get(str(row.get("group")), "component")
        if group in LEFT_OUT or row["label"].startswith("family"):
            continue
        subgroup = meta["subgroups"][str(row["subgroup"])]
        kinds = [kind for start, kind in KINDS.items() if subgroup.startswith(start)]
        if not kinds:
            raise Error(f"subgroup {subgroup!r} of {NAMES} has no kind: add it to KINDS")
        tags = tuple(map(plain, row.get("tags", [])))
        concepts.append(Concept(code_points(row["hexcode"]), plain(row["label"]), tags, group, kinds[0]))
    return concepts


def keywords(concept: Concept) -> list[str]:
    """Words that the name does not say already: the kind first, then the tags that are plain words."""
    said = set(re.findall(r"[a-z0-9]+", concept.name))
    kind = [] if concept.kind.split()[-1] in said else [concept.kind]
    tags = [tag for tag in concept.tags if re.fullmatch("[a-z]{3,12}", tag) and tag not in said]
    return kind + [tag for tag in dict.fromkeys(tags) if tag != concept.kind]


def with_article(name: str) -> str:
    """`a` or `an` before a name of one thing."""
    first = name.split(",")[0]
    plural = re.search(
        r"(?<![su])s$|^(people|men|women|two)\b|'s clothes$", re.sub(r" (with|over|on|in) .*", "", first)
    )
    return name if plural else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def caption(concept: Concept, style: str) -> str:
    """Name, a few keywords and style, as keyed draws choose them: 'a fox, animal, face, noto style'."""
    draw = rng(SEED, f"emoji caption {style} {concept.points}")
    article, bare, no_style = draw.random(3) < (ARTICLE, BARE, NO_STYLE)
    words = keywords(concept)
    count = int(draw.integers(1, KEYWORDS + 1))
    others = [words[1:][i] for i in draw.permutation(max(len(words) - 1, 0))]
    said = [] if bare else [*words[:1], *others][:count]
    name = with_article(concept.name) if article else concept.name
    return ", ".join([name, *said, *([] if no_style and not concept.held_out else [f"{style} style"])])


def other_caption(concept: Concept, style: str, number: int, colour: str) -> str:
    """A further caption of an image (`number` from 1): a keyword for the name, a colour before it, `emoji` behind."""
    draw = rng(SEED, f"emoji caption {style} {concept.points}", number)
    by_keyword, emoji, coloured, article, bare, no_style = draw.random(6) < (
        BY_KEYWORD, EMOJI, COLOURED, ARTICLE, EVEN_BARE, EVEN_NO_STYLE,
    )  # fmt: skip
    words = keywords(concept)
    count = int(draw.integers(1, KEYWORDS + 1))
    words = [words[i] for i in draw.permutation(len(words))]
    name = words.pop() if by_keyword and words else concept.name
    if coloured and colour and not set(COLOURS) & set(re.findall("[a-z]+", name)):
        name = f"{colour} {name}"
    name = f"{name} emoji" if emoji else with_article(name) if article else name
    return ", ".join([name, *([] if bare else words[:count]), *([] if no_style else [f"{style} style"])])


def colour_of(pixels: np.ndarray) -> str:  # (S, S, 3) uint8
    """The one colour that most of an image has beside the white around it; nothing where there is none."""
    shown = pixels[(pixels < 250).any(-1)]
    hsv = np.asarray(Image.fromarray(shown[None]).convert("HSV"))[0].astype(np.float32)
    hue, saturation, value = hsv[:, 0] * 360 / 256, hsv[:, 1] / 255, hsv[:, 2] / 255
    ends = np.array([12, 42, 65, 165, 255, 290, 345])  # of red, orange, yellow, green, blue, purple, pink; then red
    kind = np.searchsorted(ends, hue, "right") % len(ends)
    kind[(kind <= 1) & (value < 0.65) & (hue > 5) & (hue < 60)] = COLOURS.index("brown")
    plain = saturation < 0.2
    kind[plain & (value > 0.85)] = COLOURS.index("white")
    kind[plain & (value <= 0.85)] = COLOURS.index("grey")
    kind[value < 0.25] = COLOURS.index("black")
    counts = np.bincount(kind, minlength=len(COLOURS))
    return COLOURS[int(counts.argmax())] if counts.max() >= COLOUR * len(shown) else ""


# --- drawings ---------------------------------------------------------------------------------------------------------


def fetch(work: Path) -> Path:
    """The folder of npm's packages, downloaded only if one is not there in the right version."""
    modules = work / "node_modules"
    missing = []
    for package in (NAMES, *(style.package for style in STYLES)):
        name, _, version = package.rpartition("@")
        told = modules / name / "package.json"
        if not told.exists() or json.loads(told.read_text("utf-8"))["version"] != version:
            missing.append(package)
    if missing:
        print(f"downloading {', '.join(missing)}", flush=True)
        command = ["npm", "install", "--prefix", str(work), "--ignore-scripts", "--no-audit", "--no-fund", *missing]
        try:
            done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        except FileNotFoundError:
            raise Error("npm is not installed: install it (apt-get install npm), or fill --work elsewhere") from None
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise Error(f"npm install failed ({' '.join(last)}): npm must reach its registry, or fill --work elsewhere")
    return modules


def read_json(path: Path) -> Any:
    """A JSON file of a package."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as reason:
        raise Error(f"{path} is not there or damaged ({reason}): delete the folder of --work and run again") from None


def slug(name: str) -> str:
    """How the packages of drawings write a name."""
    return re.sub(r"[^a-z0-9]+", "-", name.replace("'", "")).strip("-")


class Drawings:
    """Vector drawings of one package by name; an alias is its parent, mirrored perhaps."""

    def __init__(self, icons: dict[str, Any]) -> None:
        self.icons, self.aliases = icons["icons"], icons.get("aliases", {})
        self.side = (icons.get("width", 16), icons.get("height", 16))

    def __contains__(self, name: str) -> bool:
        return name in self.icons or name in self.aliases

    def draw(self, name: str, pixels: int) -> np.ndarray:  # (pixels, pixels, 4)
        """One drawing, in the middle of a square that it fills."""
        if name in self.aliases:
            alias = self.aliases[name]
            if extra := alias.keys() - {"parent", "hFlip", "hidden"}:
                raise Error(f"{name} is drawn with {', '.join(sorted(extra))}, which this script does not know")
            drawn = self.draw(alias["parent"], pixels)
            return drawn[:, ::-1] if alias.get("hFlip") else drawn
        icon = self.icons[name]
        width, height = icon.get("width", self.side[0]), icon.get("height", self.side[1])
        side = max(width, height)
        left = icon.get("left", 0) - (side - width) / 2
        top = icon.get("top", 0) - (side - height) / 2
        return rasterise(
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>',
            pixels,
        )


def rasterise(svg: str, pixels: int) -> np.ndarray:  # (pixels, pixels, 4)
    """An SVG as RGBA."""
    try:
        import resvg_py
    except ImportError:
        raise Error("resvg-py is not installed: pip install resvg-py==0.5.0") from None
    content = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=pixels, height=pixels))
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGBA"))


def on_white(drawn: np.ndarray, size: int) -> np.ndarray:  # (size, size, 3)
    """RGBA laid on white, in sRGB values as browsers do, then each pixel the mean of those it covers."""
    alpha = drawn[..., 3:].astype(np.float32) / 255
    laid = alpha * drawn[..., :3] + (1 - alpha) * 255
    side = laid.shape[0]
    if side % size == 0:
        return np.rint(laid.reshape(size, side // size, size, side // size, 3).mean((1, 3))).astype(np.uint8)
    small = Image.fromarray(np.rint(laid).astype(np.uint8)).resize((size, size), Image.Resampling.BOX)
    return np.asarray(small)


def draw_all(modules: Path, concepts: list[Concept], size: int) -> Iterator[tuple[Style, Concept, np.ndarray]]:
    """Every concept in every style that has it: (style, concept, (size, size, 3))."""
    flat_names = {code_points(key): name for key, name in chars(modules, FLAT).items()}
    released: set[str] = set()  # concepts that Microsoft released, as far as the flat set tells
    for style in STYLES:
        if style is THREE_D:
            there = {
                code_points(path.stem): path for path in sorted((folder(modules, style) / "assets").glob("*.webp"))
            }
            for concept in concepts:
                if concept.points in there and concept.points in released:
                    with Image.open(there[concept.points]) as image:
                        yield style, concept, on_white(np.asarray(image.convert("RGBA")), size)
            continue
        drawings = Drawings(read_json(folder(modules, style) / "icons.json"))
        own = {code_points(key): name for key, name in chars(modules, style).items()} or flat_names
        for concept in concepts:
            name = own.get(concept.points, slug(concept.name))
            if name in drawings:
                released |= {concept.points} if style is FLAT else set()
                yield style, concept, on_white(drawings.draw(name, size * FINER), size)


def folder(modules: Path, style: Style) -> Path:
    """Where a style's package lies."""
    return modules / style.package.rpartition("@")[0]


def chars(modules: Path, style: Style) -> dict[str, str]:
    """Code points -> name of the drawing, as the package says; nothing where it does not."""
    found: dict[str, str] = read_json(folder(modules, style) / "chars.json")
    return found


# --- writing ----------------------------------------------------------------------------------------------------------


def encoded(pixels: np.ndarray) -> bytes:
    """A lossless WebP."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", lossless=True, quality=100, method=4)
    return stream.getvalue()


def write_zip(path: Path, files: Mapping[str, bytes], rows: list[dict[str, str]]) -> None:
    """A zip that depends on nothing but what is in it: images and their metadata.jsonl."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("metadata.jsonl"), lines)
        for row in rows:
            archive.writestr(zipfile.ZipInfo(row["file_name"]), files[row.get("image", row["file_name"])])


def row_of(style: Style, concept: Concept) -> dict[str, str]:
    """A line of metadata.jsonl."""
    return {
        "file_name": f"{style.word}/{concept.points}.webp",
        "text": caption(concept, style.word),
        "style": style.word,
        "concept": concept.points,
        "root": concept.root,
        "name": concept.name,
        "group": concept.group,
        "split": "test" if concept.held_out else "train",
    }


def chosen(
    drawn: Iterator[tuple[Style, Concept, np.ndarray]],
) -> tuple[list[dict[str, str]], dict[str, np.ndarray], dict[str, list[str]]]:
    """Rows and images to keep, and the names of those left out by reason: empty, or seen in the other part."""
    rows, images = [], {}
    left_out: dict[str, list[str]] = {"empty": [], "same as one held out": []}
    for style, concept, pixels in drawn:
        row = row_of(style, concept)
        if (pixels < 250).any(-1).mean() < EMPTY:
            left_out["empty"].append(row["file_name"])
            continue
        rows.append(row)
        images[row["file_name"]] = pixels
    held = {images[row["file_name"]].tobytes() for row in rows if row["split"] == "test"}
    doubled = [row for row in rows if row["split"] == "train" and images[row["file_name"]].tobytes() in held]
    for row in doubled:
        left_out["same as one held out"].append(row["file_name"])
        del images[row["file_name"]]
    return [row for row in rows if row["file_name"] in images], images, left_out


def even(rows: list[dict[str, str]], concepts: list[Concept], images: Mapping[str, np.ndarray]) -> list[dict[str, str]]:
    """The training rows about `EVEN` times a root: each image once with its own caption, then with further ones."""
    train = [row for row in rows if row["split"] == "train"]
    of_root = Counter(row["root"] for row in train)
    by_points = {concept.points: concept for concept in concepts}
    evened = []
    for row in train:
        evened.append(row)
        for number in range(1, max(1, round(EVEN / of_root[row["root"]]))):
            image, dot, ending = row["file_name"].rpartition(".")
            text = other_caption(by_points[row["concept"]], row["style"], number, colour_of(images[row["file_name"]]))
            evened.append(
                {**row, "file_name": f"{image}_{number}{dot}{ending}", "text": text, "image": row["file_name"]}
            )
    return evened


def credits_page(rows: list[dict[str, str]]) -> str:
    """CREDITS.md: a row a style."""
    counts = Counter(row["style"] for row in rows)
    lines = [
        "# Emoji and their credits",
        "",
        "Drawn from the packages named here, laid on white and reduced; the licences are those of the drawings.",
        "",
        "| style | images | drawings | author | licence | home | package |",
        "|---|---|---|---|---|---|---|",
    ]
    for style in STYLES:
        cells = [style.word, f"{counts[style.word]:,}", style.title, style.author, style.licence, style.home]
        lines.append("| " + " | ".join([*cells, style.package]) + " |")
    lines += [
        "",
        f"Names and keywords of the captions: {NAMES} by Miles Johnson (MIT), from Unicode CLDR (Unicode License v3).",
        "",
        "The texts of the licences: Apache-2.0 <https://www.apache.org/licenses/LICENSE-2.0>; MIT, Copyright (c)",
        "Microsoft Corporation <https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE>, and (c) 2023 LobeHub.",
    ]
    return "\n".join(lines) + "\n"


def counted(rows: list[dict[str, str]], left_out: dict[str, list[str]]) -> dict[str, Any]:
    """The counts that are told and written down."""
    lengths = sorted(len(row["text"].encode()) for row in rows)
    return {
        "pictures": dict(Counter(row["split"] for row in rows)),
        "concepts": {part: len({row["concept"] for row in rows if row["split"] == part}) for part in ("train", "test")},
        "roots": {part: len({row["root"] for row in rows if row["split"] == part}) for part in ("train", "test")},
        "styles": {
            style.word: dict(Counter(row["split"] for row in rows if row["style"] == style.word)) for style in STYLES
        },
        "groups": {
            group: dict(Counter(row["split"] for row in rows if row["group"] == group))
            for group in dict.fromkeys(row["group"] for row in rows)
        },
        "caption bytes": {"median": lengths[len(lengths) // 2], "most": lengths[-1]},
        "left out": {reason: sorted(names) for reason, names in left_out.items()},
    }


def words_seen(rows: list[Mapping[str, Any]]) -> str:
    """words.json: how many images have each word in a caption; those of one image count as one, as one thing seen."""
    of_image: dict[str, list[str]] = {}
    for row in rows:
        of_image.setdefault(row.get("image", row["file_name"]), []).append(row["text"])
    counts = {"captions": len(of_image), "words": word_counts(map(" ".join, of_image.values()))}
    return json.dumps(counts, ensure_ascii=False, indent=0) + "\n"


def build(out: Path, work: Path, size: int) -> dict[str, Any]:
    """Make everything and return the counts."""
    if not SIZES[0] <= size <= SIZES[1]:
        raise Error(f"--size {size} must be from {SIZES[0]} to {SIZES[1]}: the 3D drawings have 256 pixels")
    if out.exists() and any(out.iterdir()):
        if not (out / "emoji.json").exists():
            raise Error(f"{out} is not empty and was not made by this script: name a new folder")
        verify(out)  # refuses if anything was put into it
    work.mkdir(parents=True, exist_ok=True)
    modules = fetch(work)
    names = modules / NAMES.rpartition("@")[0]
    concepts = read_concepts(read_json(names / "en/data.json"), read_json(names / "meta/groups.json"))
    rows, images, left_out = chosen(draw_all(modules, concepts, size))
    told = counted(rows, left_out)
    files = {name: encoded(pixels) for name, pixels in images.items()}
    with staged(out) as folder:
        for part in ("train", "test", "all"):
            write_zip(folder / f"{part}{size}.zip", files, [row for row in rows if part in ("all", row["split"])])
        evened = even(rows, concepts, images)
        write_zip(folder / f"even{size}.zip", files, evened)
        (folder / "CREDITS.md").write_text(credits_page(rows), "utf-8")
        (folder / "words.json").write_text(words_seen(evened), "utf-8")
        # of the pixels, row by row, so that another WebP writer changes nothing
        hashes = {name: hashlib.sha256(pixels.tobytes()).hexdigest() for name, pixels in sorted(images.items())}
        digest = hashlib.sha256("".join(sorted(hashes.values())).encode()).hexdigest()
        told |= {"size": size, "digest": digest}
        record = {"counts": told, "packages": [NAMES, *(style.package for style in STYLES)], "pictures": hashes}
        (folder / "emoji.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return told


def main() -> None:
    """Read the command line, build, and say what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--size", type=int, default=64, help="pixels a side, 16 to 128")
    parser.add_argument("--work", type=Path, help="where packages are kept; OUT.packages if not given")
    given = parser.parse_args()
    out = given.out.resolve()
    try:
        told = build(out, (given.work or out.with_name(out.name + ".packages")).resolve(), given.size)
    except Error as error:
        sys.exit(str(error))
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
