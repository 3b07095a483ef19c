"""The picture sheet of a comparison: a row a picture: truth, what was brought, everybody's first answer, with heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kuosan.data.images import png_bytes
from kuosan.sample.contact import GAP, cell

if TYPE_CHECKING:
    from kuosan.evaluate.damaged import Damaged

CELL = 128  # pixels a side at least: pictures are enlarged by whole factors to it
ROWS = 8  # pictures at most
FONT, LINE = 12, 15  # of the headings, pixels


def sheet(damaged: Damaged, answers: Mapping[str, Tensor]) -> bytes:
    """A PNG of the first pictures: truth, brought, and answers (N, C, H, W) in [-1, 1] or uint8 by name."""
    height, width = damaged.truth.shape[-2:]
    factor = -(-CELL // min(height, width))
    size = (factor * width, factor * height)
    columns = {"truth": damaged.truth, "brought": damaged.brought, **answers}
    rows = min(ROWS, len(damaged))
    heads = [wrapped(name, size[0]) for name in columns]
    head = LINE * max(len(lines) for lines in heads) + GAP
    canvas = Image.new("RGB", (len(columns) * (size[0] + GAP) + GAP, head + rows * (size[1] + GAP)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)
    for c, (lines, pictures) in enumerate(zip(heads, columns.values())):
        left = GAP + c * (size[0] + GAP)
        for i, line in enumerate(lines):
            pen.text((left, i * LINE), line, fill="black", font=font)
        for r in range(rows):
            canvas.paste(Image.fromarray(cell(pictures[r], size)), (left, head + r * (size[1] + GAP)))
    return png_bytes(np.asarray(canvas))


def wrapped(text: str, width: int) -> list[str]:
    """A heading in lines no wider than so many pixels, broken at spaces, or within a word that is too long."""
    font, lines = ImageFont.load_default(FONT), [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]
