"""Random masks to train inpainting with: (H, W) uint8, 1 = make anew, 0 = known. Torch-free.

Six kinds, from what people cut out of pictures: boxes, brush strokes, a side, the border (outpainting), scattered
pixels, and objects. A mask is a pure function of its generator, the size and the kinds it is drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin

import numpy as np

from kuosan.errors import Error, unknown

KINDS = ("box", "brush", "half", "border", "sparse", "blob")
SMALLEST = 8  # pixels a side: below, the shares that the kinds promise are no longer whole pixels


def draw_mask(rng: np.random.Generator, height: int, width: int, kinds: Sequence[str] = KINDS) -> np.ndarray:
    """A mask of one of `kinds`, each as likely: (height, width) uint8, 1 = make anew, 0 = known.

    It holds both: one that came out whole is thrown away, and the next is drawn from the same generator.
    Raises: Error for an unknown kind, none at all, or a side below 8.
    """
    if not kinds:
        raise Error(f"kinds is empty: name at least one of {', '.join(KINDS)}.")
    for kind in kinds:
        if kind not in _DRAW:
            raise unknown("kind of mask", kind, KINDS)
    if min(height, width) < SMALLEST:
        raise Error(f"a mask of {height}x{width}: each side must be at least {SMALLEST}; take larger pictures.")
    draw = _DRAW[kinds[int(rng.integers(len(kinds)))]]
    while True:
        mask = draw(rng, height, width)
        if 0 < np.count_nonzero(mask) < mask.size:
            return mask


def _box(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A rectangle, each side 1/8 to 3/4 of the picture's, anywhere."""
    mask = np.zeros((height, width), np.uint8)
    mask[_span(rng, height, 1 / 8, 3 / 4), _span(rng, width, 1 / 8, 3 / 4)] = 1
    return mask


def _half(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One side's half, or, half of the time, its share between 1/4 and 3/4."""
    share = 1 / 2 if rng.random() < 1 / 2 else rng.uniform(1 / 4, 3 / 4)
    return _side(rng, height, width, share)


def _border(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """All but a window, each side 1/3 to 7/8 of the picture's; a quarter of the time all but a strip along one side."""
    if rng.random() < 1 / 4:
        return _side(rng, height, width, 1 - rng.uniform(1 / 3, 7 / 8))
    mask = np.ones((height, width), np.uint8)
    mask[_span(rng, height, 1 / 3, 7 / 8, edges=True), _span(rng, width, 1 / 3, 7 / 8, edges=True)] = 0
    return mask


def _sparse(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Each pixel known with one chance, drawn between 5 and 60 %."""
    known = rng.uniform(0.05, 0.6)
    mask: np.ndarray = (rng.random((height, width)) >= known).astype(np.uint8)
    return mask


def _brush(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Thick strokes with rounded ends, one after the other until 5 to 45 % are covered.

    A stroke is a random walk of up to 15 steps that ends where it leaves the picture: one that were kept inside would
    crawl along the edge.
    """
    from PIL import Image, ImageDraw  # the settings of a task are read without it

    image = Image.new("L", (width, height))
    pen = ImageDraw.Draw(image)
    side, wanted = min(height, width), rng.uniform(0.05, 0.45) * height * width
    covered = 0
    while covered < wanted:
        x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * pi)
        radius, left = side * rng.uniform(1 / 32, 1 / 12), rng.integers(4, 16)
        pen.circle((x, y), radius, fill=1)
        while covered < wanted and left and 0 <= x <= width and 0 <= y <= height:
            angle, step = angle + rng.normal(0, 0.6), side * rng.uniform(0.05, 0.2)
            to = (x + step * cos(angle), y + step * sin(angle))
            pen.line((x, y, *to), fill=1, width=max(1, round(2 * radius)))
            pen.circle(to, radius, fill=1)
            (x, y), left, covered = to, left - 1, image.histogram()[1]
    return np.array(image)


def _blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One to three shapes like things: r = R (1 + sum_k a_k cos(k angle + phase_k)), k = 2..6, stretched and turned."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (width, height))
    around, waves = np.linspace(0, 2 * pi, 128, endpoint=False), np.arange(2, 7)
    for _ in range(rng.integers(1, 4)):
        size, stretch, turn = min(height, width) * rng.uniform(0.12, 0.36), rng.uniform(1, 1.6), rng.uniform(0, pi)
        heights, phases = rng.normal(0, 0.3, len(waves)) / waves, rng.uniform(0, 2 * pi, len(waves))
        radius = size * np.maximum(0.2, 1 + np.cos(np.outer(around, waves) + phases) @ heights)
        along, across = radius * np.cos(around) * stretch, radius * np.sin(around) / stretch
        x = width * rng.uniform(0.15, 0.85) + along * cos(turn) - across * sin(turn)
        y = height * rng.uniform(0.15, 0.85) + along * sin(turn) + across * cos(turn)
        ImageDraw.Draw(image).polygon(np.stack([x, y], 1).ravel().tolist(), fill=1)
    return np.array(image)


def _span(rng: np.random.Generator, length: int, least: float, most: float, edges: bool = False) -> slice:
    """A stretch of a side, `least` to `most` of it, anywhere; with `edges` a third of them touch an end."""
    size = max(1, round(length * rng.uniform(least, most)))
    place = rng.uniform(-1 / 4, 5 / 4) if edges else rng.random()
    start = round((length - size) * min(max(place, 0), 1))
    return slice(start, start + size)


def _side(rng: np.random.Generator, height: int, width: int, share: float) -> np.ndarray:
    """The strip along one of the four sides that is `share` of the picture."""
    mask = np.zeros((height, width), np.uint8)
    turned = np.rot90(mask, int(rng.integers(4)))
    turned[: max(1, round(len(turned) * share))] = 1
    return mask


_DRAW = dict(zip(KINDS, (_box, _brush, _half, _border, _sparse, _blob)))
