"""Bytes to floats and back, grids, and files written whole with their text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_files import drawn, png
from PIL import Image

from kuosan.data.pixels import enlarge, from_uint8, grid, png_bytes, read_png_text, save_gif, save_png, to_uint8
from kuosan.errors import Error


def test_every_byte_survives_the_way_to_floats_and_back() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = from_uint8(every)
    assert x.shape == (1, 1, 16, 16) and x.dtype == np.float32
    assert x.min() == -1 and x.max() == 1
    assert (to_uint8(x) == every).all()


def test_floats_are_rounded_to_the_nearest_byte_and_clipped() -> None:
    x = np.array([-3.0, -1.0, -0.9999, 0.0, 0.5, 1.0, 9.0])[None, None]
    assert to_uint8(x)[0, :, 0].tolist() == [0, 0, 0, 128, 191, 255, 255]


def test_nan_is_never_written() -> None:
    with pytest.raises(Error, match="NaN"):
        to_uint8(np.full((1, 2, 2), np.nan))


def test_a_grid_places_images_row_by_row() -> None:
    images = drawn(5 * 4, 6).reshape(5, 4, 6, 3)
    sheet = grid(images, columns=3, padding=2, background=7)
    assert sheet.shape == (2 * 6 + 2, 3 * 8 + 2, 3)
    for i, each in enumerate(images):
        top, left = (i // 3) * 6 + 2, (i % 3) * 8 + 2
        assert (sheet[top : top + 4, left : left + 6] == each).all()
    assert (sheet[:2] == 7).all() and (sheet[8:, 18:] == 7).all()


def test_a_grid_is_near_square_when_nobody_says() -> None:
    assert grid(np.zeros((9, 4, 4, 1), np.uint8), padding=0).shape == (12, 12, 1)
    assert grid(np.zeros((2, 4, 4, 1), np.uint8), columns=8, padding=0).shape == (4, 8, 1)


def test_enlarging_repeats_pixels() -> None:
    assert enlarge(np.array([[[1], [2]]], np.uint8), 2)[..., 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_gives_back_pixels_and_text(tmp_path: Path, channels: int) -> None:
    pixels = drawn(channels=channels)
    text = {"parameters": "a cat\nSteps: 20", "kuosan": '{"seed": 7, "prompt": "日本 ü"}'}
    save_png(tmp_path / "a.png", pixels, text)
    with Image.open(tmp_path / "a.png") as image:
        read = np.asarray(image)
    assert (read.reshape(pixels.shape) == pixels).all()
    assert read_png_text(tmp_path / "a.png") == text
    assert png_bytes(pixels, text) == (tmp_path / "a.png").read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_png_without_text_and_a_file_that_is_none(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", drawn())
    assert read_png_text(tmp_path / "a.png") == {}
    (tmp_path / "b.png").write_text("no")
    with pytest.raises(Error, match="no readable PNG"):
        read_png_text(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes(png(9_000, 9_000, 1, 0, b""))
    with pytest.raises(Error, match="9000x9000 is more than 64,000,000 pixels"):
        read_png_text(tmp_path / "b.png")
    with pytest.raises(Error, match="no such image"):
        read_png_text(tmp_path / "c.png")


def test_a_gif_shows_every_frame_and_holds_the_last(tmp_path: Path) -> None:
    frames = [np.full((6, 8, 3), 40 * i, np.uint8) for i in range(4)]
    save_gif(tmp_path / "a.gif", frames, milliseconds=50, hold=900)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 4 and image.info["loop"] == 0
        for i, frame in enumerate(frames):
            image.seek(i)
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - frame).max() <= 1
            assert image.info["duration"] == (900 if i == 3 else 50)


def test_writing_where_one_cannot_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(Error):
        save_png(tmp_path / "file" / "a.png", drawn())
