"""An image file is read as a run's training images were: background, rule, size and channels, by own references."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kuosan.data.config import DataConfig
from kuosan.data.reading import OLDER, Reading, stored_rule
from kuosan.data.scan import decide
from kuosan.evaluate.images import open_images
from kuosan.seeds import rng

SIZE = 16
COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "#205080": (32, 80, 128)}
Array = np.ndarray


def drawn(height: int, width: int, channels: int, what: str = "pixels") -> Array:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return rng(0, f"test/reading/{what}/{height}x{width}").integers(0, 256, shape).astype(np.uint8)


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def on(colour: Array, alpha: Array, background: tuple[int, int, int]) -> Array:
    share = alpha[..., None].astype(np.float64) / 255
    return np.rint(share * colour + (1 - share) * np.array(background)).astype(np.uint8)


# Each kind: a file, and its pixels (H, W, 3) on a background by own arithmetic.
Kind = Callable[[tuple[int, int], tuple[int, int, int]], tuple[bytes, Array]]


def opaque(size: tuple[int, int], background: tuple[int, int, int]) -> tuple[bytes, Array]:
    pixels = drawn(*size, 3)
    return saved(Image.fromarray(pixels)), pixels


def transparent(size: tuple[int, int], background: tuple[int, int, int]) -> tuple[bytes, Array]:
    pixels, alpha = drawn(*size, 3), drawn(*size, 1, "alpha")
    return saved(Image.fromarray(np.dstack([pixels, alpha]))), on(pixels, alpha, background)


def grey_alpha(size: tuple[int, int], background: tuple[int, int, int]) -> tuple[bytes, Array]:
    grey, alpha = drawn(*size, 1), drawn(*size, 1, "alpha")
    return saved(Image.fromarray(np.dstack([grey, alpha]))), on(np.repeat(grey[..., None], 3, 2), alpha, background)


def palette(size: tuple[int, int], background: tuple[int, int, int]) -> tuple[bytes, Array]:
    indices, colours = drawn(*size, 1) % 5, drawn(5, 1, 3)[:, 0]
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    shown = colours.copy()
    shown[2] = background
    return saved(image, transparency=2), shown[indices]


def wide(size: tuple[int, int], background: tuple[int, int, int]) -> tuple[bytes, Array]:
    grey = rng(0, "test/wide").integers(0, 65536, size).astype(np.uint16)
    return saved(Image.fromarray(grey)), np.repeat(np.rint(grey / 257).astype(np.uint8)[..., None], 3, 2)


def turned(size: tuple[int, int], background: tuple[int, int, int]) -> tuple[bytes, Array]:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = drawn(size[1], size[0], 3)
    return saved(Image.fromarray(pixels), exif=exif), np.rot90(pixels, -1)


KINDS: dict[str, Kind] = {
    "opaque": opaque,
    "transparent": transparent,
    "grey with alpha": grey_alpha,
    "palette": palette,
    "16 bits": wide,
    "turned": turned,
}


def scaled(pixels: Array, box: tuple[float, float, float, float], size: tuple[int, int]) -> Array:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC, box=box))


def square(pixels: Array, side: int) -> Array:
    h, w = pixels.shape[:2]
    short, left, top = min(h, w), (w - min(h, w)) // 2, (h - min(h, w)) // 2
    return scaled(pixels, (left, top, left + short, top + short), (side, side))


def window(pixels: Array, side: int) -> Array:
    rows, columns = (np.clip(np.arange(have // 2 - have // 2 + 0, side) + first, 0, have - 1)
                     for have in pixels.shape[:2]
                     for first in [(have - side) // 2 if have >= side else -((side - have) // 2)])  # fmt: skip
    return pixels[rows][:, columns]


def by_rule(pixels: Array, rule: str, background: tuple[int, int, int]) -> Array:
    """Own reference of what training shows of an image, (16, 16, 3)."""
    h, w = pixels.shape[:2]
    match rule:
        case "crop":
            return square(pixels, SIZE)
        case "stretch":
            return scaled(pixels, (0, 0, w, h), (SIZE, SIZE))
        case "centre":
            return window(pixels, SIZE)
        case "nearest":
            short, left, top = min(h, w), (w - min(h, w)) // 2, (h - min(h, w)) // 2
            middles = (2 * np.arange(SIZE) + 1) * short // (2 * SIZE)
            return pixels[top + middles][:, left + middles]
        case "random_crop":
            return square(pixels, 18)[1:17, 1:17]
        case "pad":
            wide, high = round(SIZE * w / max(h, w)), round(SIZE * h / max(h, w))
            sheet = np.empty((SIZE, SIZE, 3), np.uint8)
            grey = bool((pixels == pixels[..., :1]).all())  # which has no colour to be filled with
            sheet[:] = np.rint(np.array(background) @ [0.299, 0.587, 0.114]) if grey else background
            top, left = (SIZE - high) // 2, (SIZE - wide) // 2
            sheet[top : top + high, left : left + wide] = scaled(pixels, (0, 0, w, h), (wide, high))
            return sheet
    raise AssertionError(rule)


RULES = ("crop", "pad", "stretch", "centre", "nearest", "random_crop")


@pytest.mark.parametrize(("kind", "rule", "background"), list(product(KINDS, RULES, COLOURS)))
@pytest.mark.parametrize("size", [(SIZE, SIZE), (20, 34)])
def test_a_file_means_what_it_meant_in_training(kind: str, rule: str, background: str, size: tuple[int, int]) -> None:
    content, whole = KINDS[kind](size, COLOURS[background])
    reading = Reading(DataConfig(size=SIZE, resize=rule, background=background))  # type: ignore[arg-type]
    shown = reading.shown(content, (3, SIZE, SIZE))
    own = by_rule(whole, rule, COLOURS[background])
    assert shown.pixels.shape == (SIZE, SIZE, 3)
    assert np.abs(shown.pixels.astype(int) - own).max() <= (0 if kind in ("opaque", "turned") else 1)
    said = "; ".join(shown.notes)
    assert ("as in training (" in said) == (size != (SIZE, SIZE) or rule == "random_crop")
    assert (f"transparency laid on {background}" in said) == (kind in ("transparent", "grey with alpha", "palette"))


def test_grey_runs_read_colour_by_its_brightness_and_say_so() -> None:
    pixels = drawn(SIZE, SIZE, 3)
    shown = Reading(DataConfig(size=SIZE)).shown(saved(Image.fromarray(pixels)), (1, SIZE, SIZE))
    own = np.rint(pixels @ np.array([0.299, 0.587, 0.114])).astype(int)
    assert np.abs(shown.pixels[..., 0] - own).max() <= 1 and any("made grey" in note for note in shown.notes)


def test_colour_runs_read_grey_as_three_equal_channels() -> None:
    grey = drawn(SIZE, SIZE, 1)
    shown = Reading(DataConfig(size=SIZE)).shown(saved(Image.fromarray(grey)), (3, SIZE, SIZE))
    assert (shown.pixels == grey[..., None]).all()


@pytest.mark.parametrize(("stored", "side", "rule"), [("crop", 12, "crop"), ("centre", 12, "centre"),
                                                     ("centre", 30, "crop"),
                                                     (None, 12, "centre"), (None, 30, "crop")])  # fmt: skip
def test_what_auto_came_to_in_training_decides(stored: str | None, side: int, rule: str) -> None:
    pixels = drawn(side, side, 3)
    reading = Reading.of({"data": {"size": SIZE}}, {"reading": stored})
    shown = reading.shown(saved(Image.fromarray(pixels)), (3, SIZE, SIZE))
    assert np.abs(shown.pixels.astype(int) - by_rule(pixels, rule, (255, 255, 255))).max() == 0


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_a_shape_of_buckets_is_covered(shape: tuple[int, int]) -> None:
    pixels = drawn(24, 40, 3)
    shown = Reading(DataConfig(size=16, resize="buckets")).shown(saved(Image.fromarray(pixels)), (3, *shape))
    h, w = 24, 40
    across = min(w, h * shape[1] / shape[0])
    down = min(h, w * shape[0] / shape[1])
    left, top = int(w - across) // 2, int(h - down) // 2
    own = scaled(pixels, (left, top, left + across, top + down), (shape[1], shape[0]))
    assert (shown.pixels == own).all()


def test_runs_that_stored_nothing_lay_transparency_on_white_as_they_were_trained() -> None:
    content, whole = transparent((SIZE, SIZE), COLOURS["white"])
    for reading in (Reading.of({}), OLDER):
        assert np.abs(reading.shown(content, (3, SIZE, SIZE)).pixels.astype(int) - whole).max() <= 1


def test_a_mask_is_never_marked_around_what_it_holds() -> None:
    reading = Reading(DataConfig(size=SIZE, resize="pad", background="white"))
    mask = reading.on_black().fitted(np.full((8, 16, 1), 255, np.uint8), (SIZE, SIZE)).pixels
    assert (mask[4:12] == 255).all() and (mask[:4] == 0).all() and (mask[12:] == 0).all()


def test_the_rule_that_a_checkpoint_keeps_is_the_plans() -> None:
    plan = decide(DataConfig(size=SIZE, resize="auto"), [])
    assert stored_rule(plan) == plan.rule == "crop" and stored_rule(replace(plan, shapes=((16, 16),))) is None


@pytest.mark.parametrize(("said", "black", "white"), [("0,4095", 0, 4095), ("-1,1", -1, 1), ("1000,0", 1000, 0)])
@pytest.mark.parametrize("kind", ["<f4", "<i4"])
def test_a_file_of_other_numbers_is_read_in_the_range_of_the_run(
    tmp_path: Path, kind: str, said: str, black: float, white: float
) -> None:
    values = np.linspace(min(black, white), max(black, white), 64).reshape(8, 8).astype(kind)
    Image.fromarray(values).save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    expected = np.rint((values.astype(np.float64) - black) / (white - black) * 255)[..., None]
    reading = Reading(DataConfig(range=said))
    off = np.abs(reading.decoded(content).pixels.astype(int) - expected)
    assert off.max() <= 1 and off.mean() < 0.05
    assert np.array_equal(reading.shown(content, (1, 8, 8)).pixels, reading.decoded(content).pixels)
    images = open_images(str(tmp_path), reading, (1, 8, 8))
    assert images.facts[0].format == "TIFF"
    assert np.array_equal(images.at(0)[0], reading.decoded(content).pixels[..., 0])


def test_arrays_are_measured_in_the_range_of_the_run(tmp_path: Path) -> None:
    values = np.arange(2 * 64, dtype=np.uint16).reshape(2, 8, 8) * 32  # up to 4,064
    np.savez(tmp_path / "a.npz", images=values)
    images = open_images(str(tmp_path / "a.npz"), Reading(DataConfig(range="0,4095")), (1, 8, 8))
    found = sorted(images.at(i).max() for i in range(2))
    assert found == [round(63 * 32 / 4095 * 255), round(127 * 32 / 4095 * 255)]
