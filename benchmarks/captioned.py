"""Sheets to look at: what a prompt asked for beneath what was made of it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS, LINE, GAP = 10, 12, 6  # pixels: of a letter's height, from line to line, between cells
BLACK, RED = (0, 0, 0), (190, 0, 0)


def sheet(
    path: Path, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]], across: int = 2
) -> None:
    """Write a sheet of cells: a prompt, and above it one image (H, W, 3) uint8 a column with a remark in red.

    Cells stand `across` beside each other; `columns` are the headings of the images in each.
    """
    side = max(96, rows[0][1][0][0].shape[0])
    wide = len(columns) * (side + GAP) + GAP
    font = ImageFont.load_default(LETTERS)
    letters = int(wide / font.getlength("n"))
    prompts = [textwrap.wrap(text, letters) for text, _ in rows]
    remarks = [[textwrap.wrap(remark, int(side / font.getlength("n"))) for _, remark in cells] for _, cells in rows]
    least = max(map(len, prompts)) * LINE
    high = LINE + side + max(len(lines) for cell in remarks for lines in cell) * LINE + least + 2 * GAP
    image = Image.new("RGB", (across * wide, -(-len(rows) // across) * high), "white")
    draw = ImageDraw.Draw(image)
    for i, (_, cells) in enumerate(rows):
        left, top = i % across * wide + GAP, i // across * high
        below = top + LINE + side
        for j, ((pixels, _), heading) in enumerate(zip(cells, columns)):
            x = left + j * (side + GAP)
            draw.text((x, top), heading, BLACK, font)
            image.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (x, top + LINE))
            for k, line in enumerate(remarks[i][j]):
                draw.text((x, below + k * LINE), line, RED, font)
        below += max(map(len, remarks[i])) * LINE
        for k, line in enumerate(prompts[i]):
            draw.text((left, below + k * LINE), line, BLACK, font)
    image.save(path)
