"""Draw the embedded portraits anew: `python tools/build_portraits.py NODE_FOLDER`.

NODE_FOLDER has the two packages that draw, as made by

    npm install --prefix NODE_FOLDER @dicebear/core@9.4.3 @dicebear/collection@9.4.3

and Python has resvg-py==0.5.0. Every portrait is a keyed draw without repetition, so the same versions give the same
two files: src/kuosan/data/assets/portraits.webp (lossless) and portraits.json (attributes, one digit each).
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from kuosan.data.sources import HEAD, SIDE, WORDS
from kuosan.seeds import rng

COUNT, COLUMNS, SEED = 4096, 64, 9
HELD_OUT = 0.1  # of the combinations of HEAD
BACKGROUND = (214, 230, 242)  # a plain light blue: neither skin, hair, white clothes nor black ones vanish in it
VIEW = "32 28 704 704"  # of 768 x 768: the head fills the image, the collar stays in it
FINER = 4  # drawn at 128 pixels, each pixel then the mean of 16
ASSETS = Path(__file__).parents[1] / "src/kuosan/data/assets"

# Our attribute -> DiceBear's option and its values, in the order of WORDS; None leaves the part out.
DRAWN: dict[str, tuple[str, list[str | None]]] = {
    "hair": ("hair", ["sideComed", "undercut", "spiky", "bun"]),
    "hair_color": ("hairColor", ["2c1b18", "a55728", "b58143", "d6b370", "724133"]),
    "rear_hair": ("rearHair", [None, "longStraight", "longWavy", "shoulderHigh", "neckHigh"]),
    "beard": ("beard", [None, "moustacheTwirl", "fullBeard", "chin", "chinMoustache", "longBeard"]),
    "skin": ("skinColor", ["f1c3a5", "c68e7a", "b98e6a", "a36b4f", "5c3829"]),
    "eyes": ("eyes", ["happy", "wide", "bow", "humble", "wink"]),
    "eyebrows": ("eyebrows", ["raised", "angry", "happy", "sad", "neutral"]),
    "mouth": ("mouth", ["laugh", "angry", "agape", "smile", "sad"]),
    "clothes": ("clothes", ["turtleNeck", "openJacket", "dress", "shirt", "tShirt"]),
    "clothes_color": (
        "clothesColor",
        ["545454", "b11f1f", "0b3286", "147f3c", "eab308", "731ac3", "ec4899", "f97316", "151613", "e8e9e6"],
    ),
}
OFTEN = {"rear_hair": 0.5, "beard": 0.6}  # how often the part is left out


def draw_codes() -> list[str]:
    """COUNT different codes, one digit an attribute."""
    codes: dict[str, None] = {}
    i = 0
    while len(codes) < COUNT:
        draw = rng(SEED, "portrait", 0, i)
        code = ""
        for name, (_, values) in DRAWN.items():
            if name in OFTEN:
                digit = 0 if draw.random() < OFTEN[name] else 1 + int(draw.integers(len(values) - 1))
            else:
                digit = int(draw.integers(len(values)))
            code += str(digit)
        codes.setdefault(code)
        i += 1
    return list(codes)


def draw_held_out() -> list[str]:
    """A tenth of all combinations of HEAD, as the first digits of a code."""
    heads = ["".join(digits) for digits in product(*(map(str, range(len(DRAWN[name][1]))) for name in HEAD))]
    order = rng(SEED, "held-out heads").permutation(len(heads))
    return sorted(heads[i] for i in order[: round(HELD_OUT * len(heads))])


def options(code: str) -> dict[str, object]:
    """DiceBear's options that draw exactly this code."""
    wanted: dict[str, object] = {"seed": "kuosan"}
    for digit, (option, values) in zip(code, DRAWN.values()):
        value = values[int(digit)]
        if None in values:
            wanted[f"{option}Probability"] = 0 if value is None else 100
        if value is not None:
            wanted[option] = [value]
    return wanted


def draw_svgs(codes: list[str], node_folder: Path) -> list[str]:
    """One SVG a code, drawn by DiceBear."""
    script = node_folder / "build_portraits.mjs"  # node looks for packages beside the script
    shutil.copy(Path(__file__).with_suffix(".mjs"), script)
    lines = "".join(json.dumps(options(code)) + "\n" for code in codes)
    told = subprocess.check_output(["node", script.name], cwd=node_folder, input=lines, text=True)  # noqa: S603, S607
    return [json.loads(line)["svg"] for line in told.splitlines()]


def rasterise(svg: str) -> np.ndarray:  # (32, 32, 3)
    """The SVG on the background, cropped to VIEW."""
    size = SIDE * FINER
    cropped = svg.replace('viewBox="0 0 768 768"', f'viewBox="{VIEW}"', 1)
    with Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=cropped, width=size, height=size)))) as image:
        drawn = np.asarray(image.convert("RGBA"), np.float64)
    alpha = drawn[..., 3:] / 255
    laid = alpha * drawn[..., :3] + (1 - alpha) * np.array(BACKGROUND)
    return np.rint(laid.reshape(SIDE, FINER, SIDE, FINER, 3).mean((1, 3))).astype(np.uint8)


def main(node_folder: Path) -> None:
    """Draw everything and write the two files."""
    assert [len(values) for _, values in DRAWN.values()] == [len(words) for words in WORDS.values()]
    assert list(DRAWN) == list(WORDS)
    codes = draw_codes()
    images = np.stack([rasterise(svg) for svg in draw_svgs(codes, node_folder)])
    sheet = images.reshape(-1, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2).reshape(-1, COLUMNS * SIDE, 3)
    ASSETS.mkdir(exist_ok=True)
    Image.fromarray(sheet).save(ASSETS / "portraits.webp", lossless=True, quality=100, method=6, exact=True)
    told = {"codes": codes, "held_out_heads": draw_held_out()}
    (ASSETS / "portraits.json").write_text(json.dumps(told, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
