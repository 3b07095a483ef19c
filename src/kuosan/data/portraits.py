"""The data set inside the package: 4,096 Toon Head portraits, 32 x 32, with exact attributes and captions.

One lossless sheet of 64 x 64 pictures and one JSON of attributes, made by `scripts/build_portraits.py` from the design
Toon Head by Johan Melin (CC BY 4.0), see LICENSES-DATA.md. A tenth of all heads, by the combination of hair, hair
colour, hair at the back, beard and skin, is never in the training part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image

from kuosan.data.config import LABEL
from kuosan.data.entries import TRAIN, VALIDATION, Entry, Listing, Role
from kuosan.errors import Error, unknown

SIDE = 32
HEAD = ("hair", "hair_color", "rear_hair", "beard", "skin")  # what the held-out combinations are made of
CLASS = "hair_color"  # the attribute that is the class where nobody says

# attribute -> value -> the words of the caption; the order is the order of the code letters in the JSON
WORDS: dict[str, dict[str, str]] = {
    "hair": {
        "side-combed": "side-combed {} hair",
        "undercut": "{} hair in an undercut",
        "spiky": "spiky {} hair",
        "bun": "{} hair in a bun",
    },
    "hair_color": {name: name for name in ("black", "auburn", "light brown", "blond", "brown")},
    "rear_hair": {
        "none": "",
        "long straight": "long and straight at the back",
        "long wavy": "long and wavy at the back",
        "shoulder-length": "shoulder-length at the back",
        "neck-length": "neck-length at the back",
    },
    "beard": {
        "none": "",
        "twirled moustache": "a twirled moustache",
        "full beard": "a full beard",
        "chin beard": "a chin beard",
        "moustache and chin beard": "a moustache and a chin beard",
        "long beard": "a long beard",
    },
    "skin": {name: f"{name} skin" for name in ("light", "rosy", "tan", "brown", "dark")},
    "eyes": {
        "open": "open eyes",
        "wide": "wide eyes",
        "smiling": "smiling closed eyes",
        "lowered": "lowered closed eyes",
        "winking": "a winking eye",
    },
    "eyebrows": {name: f"{name} eyebrows" for name in ("raised", "angry", "happy", "sad", "neutral")},
    "mouth": {
        "laughing": "laughing",
        "angry": "with an angry mouth",
        "agape": "with the mouth agape",
        "smiling": "smiling",
        "sad": "with a sad mouth",
    },
    "clothes": {name: name for name in ("turtleneck", "open jacket", "dress", "shirt", "t-shirt")},
    "clothes_color": {
        name: name for name in ("grey", "red", "blue", "green", "yellow", "purple", "pink", "orange", "black", "white")
    },
}


def caption(attributes: Mapping[str, str]) -> str:
    """The sentence that says exactly these attributes; what is `none` is not spoken of."""
    words = {name: WORDS[name][value] for name, value in attributes.items()}
    looks = [words["skin"], words["hair"].format(words["hair_color"]), words["rear_hair"], words["beard"]]
    looks.append(f"{words['eyebrows']} and {words['eyes']}")
    article = "an" if words["clothes_color"][0] in "aeiou" else "a"
    wears = f"wearing {article} {words['clothes_color']} {words['clothes']}"
    return ", ".join(["a portrait of a person with " + ", ".join(filter(None, looks)), words["mouth"], wears])


@cache
def load_sheet() -> tuple[np.ndarray, list[dict[str, str]], np.ndarray]:
    """Pictures (N, 32, 32, 3) uint8, the attributes of each, and which are held out (N,) bool."""
    assets = files("kuosan.data") / "assets"
    told = json.loads((assets / "portraits.json").read_text("utf-8"))
    with (assets / "portraits.webp").open("rb") as file, Image.open(file, formats=["WEBP"]) as image:
        sheet: np.ndarray = np.asarray(image.convert("RGB"))
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    pictures = sheet.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    pictures = np.ascontiguousarray(pictures[: len(told["codes"])])
    values = {name: list(words) for name, words in WORDS.items()}
    attributes = [
        {name: options[int(digit)] for (name, options), digit in zip(values.items(), code)} for code in told["codes"]
    ]
    kept_out = set(told["held_out_heads"])
    held_out = np.array([code[: len(HEAD)] in kept_out for code in told["codes"]])
    return pictures, attributes, held_out


class Portraits:
    """The portraits as a source: label = one attribute (hair colour), caption = all attributes in a sentence."""

    def __init__(self, hold_out: float | None, label_column: str = LABEL) -> None:
        if hold_out not in (None, 0, 0.0):
            raise Error(
                f"hold_out {hold_out!r}: the portraits bring their own held-out part (a tenth of all combinations of "
                "hair, beard and skin); leave hold_out out to use it, or set 0 to train on all."
            )
        if label_column != LABEL and label_column not in WORDS:
            raise unknown("label_column", label_column, [LABEL, *WORDS])
        self.attribute = CLASS if label_column == LABEL else label_column
        self.pictures, self.attributes, held_out = load_sheet()
        self.roles: list[Role | None] = [None] * len(held_out)
        if hold_out is None:
            self.roles = [VALIDATION if held else TRAIN for held in held_out]

    def listing(self) -> Listing:
        """All portraits in the order of the sheet."""
        entries = [
            Entry(f"portrait {i}", attributes[self.attribute], caption(attributes), role)
            for i, (attributes, role) in enumerate(zip(self.attributes, self.roles))
        ]
        says = f"the embedded portraits: {len(entries):,} Toon Heads of {SIDE}x{SIDE} (Johan Melin, CC BY 4.0)"
        return Listing(entries, says=says, classes=tuple(WORDS[self.attribute]), in_order=True)

    def read(self, entry: Entry, i: int) -> np.ndarray:
        """Pixels (32, 32, 3) of the i-th."""
        pixels: np.ndarray = self.pictures[i]
        return pixels
