"""Every sheet is one function's: each kind against its own layout, written out here pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from kuosan.data.pixels import grid, to_uint8, wrapped
from kuosan.evaluate import plot
from kuosan.evaluate.compare import comparison_sheet
from kuosan.sample import write
from kuosan.sample.request import Request
from kuosan.seeds import rng

GAP, LINE = 4, 15


def drawn(name: str, n: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Images of noise in [-1, 1]."""
    values = rng(0, name).uniform(-1, 1, (n, channels, height, width)).astype(np.float32)
    return torch.from_numpy(values)


def shown(image: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    """An image at a size, in colour."""
    pixels = to_uint8(image.numpy())
    flat = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    return flat.resize(size, Image.Resampling.NEAREST if flat.width <= size[0] else Image.Resampling.BOX)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


SHAPES = [(5, 3, 16, 12, None), (5, 1, 9, 30, 2), (7, 3, 200, 130, 3), (3, 3, 8, 8, 9), (1, 3, 400, 500, None)]


@pytest.mark.parametrize(("n", "channels", "height", "width", "columns"), SHAPES)
def test_a_sampled_sheet_is_a_grid_of_enlarged_images(tmp_path, n, channels, height, width, columns):
    x = drawn("sampled", n, channels, height, width)
    write.sheet(tmp_path / "sheet.png", [x[:1], x[1:]], columns)
    factor = max(1, 128 // max(height, width))
    columns = min(n, columns or int(np.ceil(np.sqrt(n))))
    h, w = factor * height, factor * width
    wanted = np.full((-(-n // columns) * (h + 2) + 2, columns * (w + 2) + 2, channels), 255, np.uint8)
    for i, image in enumerate(to_uint8(x.numpy())):
        top, left = i // columns * (h + 2) + 2, i % columns * (w + 2) + 2
        wanted[top : top + h, left : left + w] = image.repeat(factor, 0).repeat(factor, 1)
    assert np.array_equal(read(tmp_path / "sheet.png").reshape(wanted.shape), wanted)


@pytest.mark.parametrize(("n", "channels", "height", "width", "columns"), SHAPES)
def test_a_sheet_of_restorations_has_rows_of_their_own_sizes(tmp_path, n, channels, height, width, columns):
    lines, rows = [], []
    for name, (h, w), factor in (("a", (height, width), 1), ("b", (20, 31), 4), ("c", (700, 100), 1)):
        source, answers = drawn(name, 1, channels, h // 2, w // 2)[0], drawn(name + "+", n, channels, h, w)
        lines.append(write.line(source, answers))
        factor = max(1, 128 // max(h, w))
        shrink = min(1.0, 320 / (max(h, w) * factor))
        size = (max(1, round(w * factor * shrink)), max(1, round(h * factor * shrink)))
        cells = [np.asarray(shown(image, size)) for image in (source, *answers)]
        rows.append(np.concatenate([np.pad(c, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for c in cells], 1))
    write.row_sheet(tmp_path / "sheet.png", lines)
    wide = max(row.shape[1] for row in rows)
    padded = [np.pad(r, ((0, GAP), (0, wide - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    assert np.array_equal(read(tmp_path / "sheet.png"), np.concatenate(padded))


def headed(cells: list[list[Image.Image]], heads: list[list[str]], slot: int) -> np.ndarray:
    """Cells of one size below their heads, which are lines."""
    high, head = cells[0][0].height + GAP, LINE * max(map(len, heads)) + GAP
    canvas = Image.new("RGB", (len(heads) * (slot + GAP) + GAP, head + len(cells) * high), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for c, lines in enumerate(heads):
        for i, line in enumerate(lines):
            pen.text((GAP + c * (slot + GAP), i * LINE), line, fill="black", font=font)
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            canvas.paste(cell, (GAP + c * (slot + GAP), head + r * high))
    return np.asarray(canvas)


@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize(("n", "channels", "height", "width", "_"), SHAPES)
def test_a_sheet_of_reconstructions_has_four_cells_an_image_below_their_heads(n, channels, height, width, _, columns):
    x, y = drawn("x", n, channels, height, width), drawn("y", n, channels, height, width)
    z = drawn("z", n, 4, 3, 3)
    factor = -(-128 // max(height, width))
    shrink = min(1.0, 320 / (max(height, width) * factor))
    size = (max(1, round(width * factor * shrink)), max(1, round(height * factor * shrink)))
    difference = np.clip(128 + 4 * (to_uint8(y.numpy()).astype(int) - to_uint8(x.numpy())), 0, 255)
    parts = [x, y, *(torch.from_numpy(np.moveaxis(each, -1, 1)) / 127.5 - 1 for each in (difference, write.colours(z)))]
    across = min(columns, n)
    cells = [
        [shown(part[i], size) for i in range(r, min(n, r + across)) for part in parts] for r in range(0, n, across)
    ]
    wanted = headed(cells, [[head] for head in write.HEADS] * across, max(size[0], write.NARROW))
    assert np.array_equal(write.check_sheet(x, y, z, columns=columns), wanted)


@pytest.mark.parametrize(("n", "channels", "height", "width", "_"), SHAPES)
def test_a_sheet_of_a_comparison_has_a_column_a_method_below_its_wrapped_name(n, channels, height, width, _):
    damaged = [None] * n  # as many
    truth, small = drawn("truth", n, channels, height, width), drawn("small", n, channels, height // 2, width // 2)
    names = ("ddnm", "a long name of a method that has to be wrapped, sampler=ddim", "w" * 90)
    answers = {name: drawn(name, n, channels, height, width) for name in names}

    class Damaged(SimpleNamespace):
        def __len__(self) -> int:
            return len(damaged)

    made = comparison_sheet(Damaged(truth=truth, degraded=small), answers)  # type: ignore[arg-type]
    factor = -(-128 // min(height, width))
    size = (factor * width, factor * height)
    columns = {"truth": truth, "degraded": small, **answers}
    cells = [[shown(images[r], size) for images in columns.values()] for r in range(min(8, n))]
    assert np.array_equal(made, headed(cells, [wrapped(name, size[0]) for name in columns], size[0]))
    assert max(len(wrapped(name, size[0])) for name in columns) > (size[0] < 500)


def test_a_sweeps_sheet_has_a_row_a_point_below_its_name(tmp_path):
    made = [
        (name, to_uint8(drawn(name, 12, 1, 16, 16).numpy()).transpose(0, 3, 1, 2)) for name in ("steps=5", "steps=10")
    ]
    plot.sheet(tmp_path / "sheet.png", made)
    sheet = read(tmp_path / "sheet.png")
    assert sheet.shape == (2 * (LINE + 2 + 128) + LINE // 2 + 2, 12 * 130 + 2)
    for r, (_, images) in enumerate(made):
        top = r * (LINE // 2 + LINE + 130) + LINE + 2
        for c, image in enumerate(images):
            assert (sheet[top : top + 128, 2 + c * 130 : 130 + c * 130] == image[0].repeat(8, 0).repeat(8, 1)).all()
        assert (sheet[top - LINE - 2 : top - 2] < 128).any()  # the name
    assert not np.array_equal(sheet[:LINE], sheet[LINE + 130 + LINE // 2 :][:LINE])


ASKED = [
    ({"classes": ("cat",), "n": 4}, []),
    ({"classes": ("cat", "dog"), "n": 1}, []),
    ({"classes": ("cat", "dog"), "n": 3}, ["cat", "dog", "cat"]),
    ({"prompts": ("a red\nheart", "a dog"), "n": 2}, ["a red heart", "a dog"]),
    ({"prompts": ("x" * 61, "y" * 60), "n": 2}, ["x" * 57 + "...", "y" * 60]),
    ({"prompts": ("same", "same"), "n": 2}, []),
    ({"classes": ("cat", "dog"), "prompts": ("happy", "sad", "old"), "n": 3}, ["cat, happy", "dog, sad", "cat, old"]),
    ({"classes": ("cat", "dog"), "prompts": ("happy",), "n": 2}, ["cat", "dog"]),
    ({"classes": ("猫", "Café", "dog"), "n": 3}, ["class 1", "Cafe", "dog"]),
    ({"prompts": ("红心", "сердце"), "n": 3}, ["prompt 1", "prompt 2", "prompt 1"]),
]


@pytest.mark.parametrize(("asked", "labels"), ASKED)
def test_images_of_several_classes_or_prompts_are_labelled_and_others_are_not(tmp_path, asked, labels):
    assert write.labels_of(Request(**asked)) == labels
    x = drawn("labelled", asked["n"], 3, 32, 32)
    write.sheet(tmp_path / "sheet.png", [x], None, labels)
    write.sheet(tmp_path / "bare.png", [x])
    same = np.array_equal(read(tmp_path / "sheet.png"), read(tmp_path / "bare.png"))
    assert same == (not labels)


def test_each_label_stands_above_its_own_image_and_no_pixel_of_an_image_is_drawn_over():
    images = np.full((5, 40, 40, 3), 128, np.uint8)
    bare, sheet = grid(images, 2), grid(images, 2, labels=["one", "", "long words here", "four", "五"])
    assert sheet.shape[1] == bare.shape[1] and (sheet == 128).all(-1).sum() >= (bare == 128).all(-1).sum()
    lines = [1, len(wrapped("long words here", 40)), 1]
    assert sheet.shape[0] == bare.shape[0] + LINE * sum(lines) + 2 * (LINE // 2)
    assert (sheet[:LINE, :42] < 128).any() and (sheet[:LINE, 42:] == 255).all()


def test_a_row_is_as_high_as_its_highest_image():
    sizes = [(4, 6), (8, 3), (5, 5)]
    images = [np.full((h, w, 1), i, np.uint8) for i, (h, w) in enumerate(sizes)]
    sheet = grid(images, 2, padding=1)
    assert sheet.shape == (1 + 8 + 1 + 5 + 1, 1 + 6 + 1 + 3 + 1, 1)
    assert [int((sheet == i).sum()) for i in range(3)] == [24, 24, 25]
