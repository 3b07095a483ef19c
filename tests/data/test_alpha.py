"""Images with alpha: read from every format, resized without fringes, and to and from what a network sees."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import drawn, saved
from PIL import Image
from test_resizing import square

from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.data.decoding import KEPT, decode
from kuosan.data.doctor import examine
from kuosan.data.pixels import as_written, fit, from_uint8, grid, on_checkerboard, png_bytes, straight, to_uint8
from kuosan.errors import Error

RULES = ("crop", "pad", "stretch")


def zeroed(rgba: np.ndarray) -> np.ndarray:
    """The same with nothing where nobody sees it."""
    return np.where(rgba[..., 3:] > 0, rgba, np.uint8(0))


def icon(h: int = 8, w: int = 8, name: str = "icon") -> np.ndarray:
    """Random colours, alpha of 0, 255 and between, and hidden colours below alpha 0."""
    rgba = drawn(h, w, 4, name)
    rgba[..., 3] = np.choose(drawn(h, w, 1, f"{name} alpha")[..., 0] % 3, [0, rgba[..., 3], 255])
    rgba[0, :2, 3] = (0, 128)
    return rgba


def every_pair() -> np.ndarray:
    """All pairs of a byte of colour and one of alpha, (256, 256, 4)."""
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    return np.stack([colour, 255 - colour, colour, alpha], 2).astype(np.uint8)


def test_every_colour_and_alpha_survives_being_multiplied() -> None:
    pairs = every_pair()
    x = from_uint8(pairs)
    assert x.dtype == np.float32 and x.min() >= -1 and x.max() <= 1
    assert (to_uint8(x) == zeroed(pairs)).all()
    assert (x[:, :, 0] == -1).all(), "alpha 0: all four channels are -1"
    share = pairs[..., 3] / 255
    assert np.abs((x[0] + 1) / 2 - share * pairs[..., 0] / 255).max() < 1e-6
    assert (x[:3] <= x[3:] + 1e-6).all(), "no colour is more than its alpha"


def test_what_is_written_is_what_is_read_again() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 0.8, (3, 4, 9, 7)).astype(np.float32))
    written = as_written(x)
    assert torch.equal(written, torch.from_numpy(from_uint8(to_uint8(x.numpy()))))
    assert torch.equal(as_written(written), written)
    assert (written[:, :3] <= written[:, 3:] + 1e-6).all()
    with Image.open(io.BytesIO(png_bytes(to_uint8(x[0].numpy())))) as image:
        assert image.mode == "RGBA"
        assert (np.asarray(image) == to_uint8(x[0].numpy())).all()


def packed(rgba: np.ndarray) -> Image.Image:
    """In a palette with an opacity a colour."""
    colours, places = np.unique(rgba.reshape(-1, 4), axis=0, return_inverse=True)
    image = Image.fromarray(places.reshape(rgba.shape[:2]).astype(np.uint8), "P")
    image.putpalette(colours.tobytes(), "RGBA")
    return image


GREY = np.concatenate([np.repeat(icon()[..., :1], 3, 2), icon()[..., 3:]], 2)
KEYED = np.concatenate([icon()[..., :3], np.full((8, 8, 1), 255, np.uint8)], 2)
KEYED[2:4, 2:4] = (9, 8, 7, 0)
OPAQUE = np.concatenate([icon()[..., :3], np.full((8, 8, 1), 255, np.uint8)], 2)
LA = np.ascontiguousarray(GREY[..., 2:])
GIF = np.where(icon()[..., 3:] > 127, [200, 30, 60, 255], [0, 0, 0, 0]).astype(np.uint8)

FILES = {
    "PNG RGBA": (saved(Image.fromarray(icon()), "PNG"), icon()),
    "PNG grey with alpha": (saved(Image.fromarray(LA, "LA"), "PNG"), GREY),
    "PNG palette with opacities": (saved(packed(zeroed(icon())), "PNG"), icon()),
    "PNG with a clear colour": (saved(Image.fromarray(KEYED[..., :3]), "PNG", transparency=(9, 8, 7)), KEYED),
    "PNG opaque": (saved(Image.fromarray(OPAQUE[..., :3]), "PNG"), OPAQUE),
    "PNG grey": (saved(Image.fromarray(LA[..., 0]), "PNG"), np.concatenate([GREY[..., :3], OPAQUE[..., 3:]], 2)),
    "WebP": (saved(Image.fromarray(icon()), "WEBP", lossless=True, exact=True), icon()),
    "GIF": (saved(packed(GIF), "GIF", transparency=0), GIF),
    "TIFF": (saved(Image.fromarray(icon()), "TIFF"), icon()),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_read_with_its_alpha_whatever_holds_it(kind: str, tmp_path: Path) -> None:
    content, wanted = FILES[kind]
    clear = bool((wanted[..., 3] < 255).any())
    decoded = decode(content, None)
    assert decoded.pixels.shape[2] == (4 if clear else 1 if "grey" in kind else 3)
    assert (KEPT in decoded.notes) == clear
    (tmp_path / f"a.{kind.split()[0].lower()}").write_bytes(content)
    images = open_images(DataConfig(path=str(tmp_path), size=8, channels="rgba", hold_out=0))
    assert images.shape == (4, 8, 8)
    assert (images.pixels(0) == zeroed(wanted)).all()
    assert (to_uint8(images.batch([0]).x0[0].numpy()) == zeroed(wanted)).all()


def test_an_avif_keeps_its_alpha() -> None:
    flat = np.zeros((16, 16, 4), np.uint8)
    flat[4:12, 4:12] = (200, 60, 20, 255)
    made = decode(saved(Image.fromarray(flat), "AVIF", quality=100, subsampling="4:4:4"), None).pixels
    assert made.shape == (16, 16, 4)
    assert (made[..., 3] == flat[..., 3]).all()
    assert np.abs(made[5:11, 5:11].astype(int) - flat[5:11, 5:11]).max() <= 4


class Items:
    """A data set of one kind of item."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> object:
        return self.items[i]


@pytest.mark.parametrize("kind", ["zip", "npz", "npy", "pillow", "array", "tensor"])
def test_archives_arrays_and_items_keep_their_alpha(kind: str, tmp_path: Path) -> None:
    every = [icon(name=f"item {i}") for i in range(4)]
    config = DataConfig(path=str(tmp_path / f"set.{kind}"), size=8, channels="rgba", hold_out=0)
    data: object = config
    if kind == "zip":
        with zipfile.ZipFile(config.path, "w") as archive:
            for i, each in enumerate(every):
                archive.writestr(f"{i}.png", saved(Image.fromarray(each), "PNG"))
    elif kind == "npz":
        np.savez(config.path, images=np.stack(every))
    elif kind == "npy":
        np.save(config.path, np.stack(every))
    else:
        made = {
            "pillow": Image.fromarray,
            "array": np.asarray,
            "tensor": lambda each: torch.from_numpy(each).movedim(-1, 0).float() / 255,
        }[kind]
        data = Items(*map(made, every))
    images = open_images(data, config)
    assert images.shape == (4, 8, 8)
    found = {images.pixels(i).tobytes() for i in range(4)}
    assert found == {zeroed(each).tobytes() for each in every} or kind in ("npz", "npy", "array", "tensor")
    x0 = images.batch(range(4)).x0
    assert {to_uint8(each.numpy()).tobytes() for each in x0} == {zeroed(each).tobytes() for each in every}


def premultiplied(rgba: np.ndarray) -> np.ndarray:
    """Colour times alpha, and alpha, in [0, 255]."""
    values = rgba.astype(np.float64)
    values[..., :3] *= values[..., 3:] / 255
    return values


@pytest.mark.parametrize("size", [8, 16, 37, 64])
def test_alpha_is_resized_with_the_colour_that_it_shows(size: int) -> None:
    rgba = drawn(50, 71, 4)
    rgba[..., 3] = 60 + rgba[..., 3] // 2  # where no overshoot is clipped between the two passes
    for rule, box in (("crop", (10, 0, 60, 50)), ("stretch", (0, 0, 71, 50))):
        made = premultiplied(fit(rgba, size, rule, None))
        wanted = square(premultiplied(rgba), size, box)
        wanted[..., :3] = np.minimum(wanted[..., :3], wanted[..., 3:])
        assert np.abs(made - wanted).max() <= 1.01


@pytest.mark.parametrize("hidden", [0, 128, 255])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [9, 24, 100])
def test_no_hidden_colour_makes_a_fringe(hidden: int, rule: str, size: int) -> None:
    rgba = np.full((40, 60, 4), (hidden, hidden, hidden, 0), np.uint8)
    y, x = np.mgrid[:40, :60]
    rgba[(y - 19.5) ** 2 + (x - 29.5) ** 2 < 15**2] = (230, 40, 10, 255)
    made = fit(rgba, size, rule, None)
    seen = made[..., 3] > 8
    assert seen.any() and (made[..., 3] == 0).any()
    assert np.abs(made[seen][:, :3].astype(int) - (230, 40, 10)).max() <= 255 // made[seen][:, 3].min()
    assert np.abs(made[made[..., 3] > 128][:, :3].astype(int) - (230, 40, 10)).max() <= 1
    assert (made[made[..., 3] == 0] == 0).all()


@pytest.mark.parametrize("shape", [(300, 200), (40, 500), (500, 40)])
def test_a_large_image_is_resized_in_bands_as_in_one(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = icon(*shape)
    wholes = [fit(rgba, 90, rule, None) for rule in RULES]
    monkeypatch.setattr("kuosan.data.pixels.BAND", 4 * shape[1] * 7)
    assert all((fit(rgba, 90, rule, None) == whole).all() for rule, whole in zip(RULES, wholes))


def test_padding_is_transparent_and_opaque_images_get_it_too() -> None:
    for channels in (1, 3, 4):
        pixels = np.full((20, 40, channels), 255, np.uint8)
        padded = fit(pixels, 32, "pad", None)
        assert padded.shape == (32, 32, 4)
        assert (padded[8:24] == 255).all() and (padded[:8] == 0).all() and (padded[24:] == 0).all()


def test_an_image_of_the_right_size_is_untouched() -> None:
    rgba = every_pair()
    for rule in (*RULES, "centre"):
        assert (fit(rgba, 256, rule, None) == rgba).all()


def test_premultiplied_values_beyond_what_they_can_be_are_clipped() -> None:
    values = np.array([[300.0, -4, 20, 128], [9, 9, 9, -3], [255, 0, 0, 260], [0.3, 0.3, 0.3, 0.4]])
    assert straight(values).tolist() == [[255, 0, 40, 128], [0, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 0]]


def test_doctor_says_that_alpha_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(FILES["PNG RGBA"][0])
    (tmp_path / "b.png").write_bytes(FILES["PNG opaque"][0])
    config = DataConfig(path=str(tmp_path), channels="rgba", resize="pad")
    report = examine(config)
    assert report.summary()["channels"] == "rgba"
    said = " ".join(report.lines())
    assert "colour and alpha" in said and "laid on" not in said and "1 image had transparency, kept" in said
    laid = examine(DataConfig(path=str(tmp_path))).lines()
    assert "1 image had transparency, laid on white. Set channels to rgba to keep it." in laid
    wide = DataConfig(path=str(tmp_path), channels="rgba", resize="pad", size=16)
    assert "rest filled with transparency" in " ".join(examine(wide).lines())


def test_an_earlier_scan_without_alpha_is_not_taken_for_one_with_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(FILES["PNG RGBA"][0])
    cache = tmp_path / "scan.json"
    config = DataConfig(path=str(tmp_path / "set"), size=8, hold_out=0)
    seen = {}
    for channels in ("rgb", "rgba", "rgb", "rgba"):
        images = open_images(replace(config, channels=channels), cache=cache)
        seen.setdefault(channels, []).append((images.fingerprint, images.scan.looks[0].pixels))
    assert seen["rgb"][0] == seen["rgb"][1] and seen["rgba"][0] == seen["rgba"][1]
    assert seen["rgb"][0] != seen["rgba"][0]


def test_opaque_files_are_the_same_images_with_and_without_an_alpha_channel(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(Image.fromarray(OPAQUE), "PNG"))
    (tmp_path / "b.png").write_bytes(saved(Image.fromarray(OPAQUE[..., :3]), "PNG"))
    report = examine(DataConfig(path=str(tmp_path), channels="rgba"))
    assert [name for name, _ in report.duplicates] == ["b.png"] or [name for name, _ in report.duplicates] == ["a.png"]


@pytest.mark.parametrize("level", [0, 255])
def test_shapes_in_black_and_in_white_are_no_near_duplicates(level: int, tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :64]
    shapes = ((y - 32) ** 2 + (x - 32) ** 2 < 28**2, (y > 40) | (x < 12), (y + x) % 24 < 12, abs(y - x) < 9)
    for i, shape in enumerate(shapes):
        rgba = np.full((64, 64, 4), level, np.uint8)
        rgba[..., 3] = 255 * shape
        (tmp_path / f"{i}.png").write_bytes(saved(Image.fromarray(rgba), "PNG"))
    report = examine(DataConfig(path=str(tmp_path), channels="rgba", hold_out=0.25))
    assert report.near is not None and not report.near.groups


def test_what_has_no_effect_beside_alpha_is_refused() -> None:
    with pytest.raises(Error, match=r"background = black has no effect with channels rgba.*keep their transparency"):
        DataConfig(channels="rgba", background="black")
    with pytest.raises(Error, match="rgba"):
        DataConfig(channels="argb")  # type: ignore[arg-type]


def test_sheets_lie_on_a_checkerboard() -> None:
    clear, whole = np.zeros((16, 16, 4), np.uint8), np.full((16, 16, 4), 255, np.uint8)
    half = np.full((16, 16, 4), (0, 0, 0, 128), np.uint8)
    board = on_checkerboard(np.stack([clear, whole, half]))
    assert board.shape == (3, 16, 16, 3)
    assert (board[0, :8, :8] == 255).all() and (board[0, :8, 8:] == 204).all() and (board[0, 8:, 8:] == 255).all()
    assert (board[1] == 255).all()
    assert (board[2, :8, :8] == 127).all() and (board[2, :8, 8:] == 102).all()
    assert grid(np.stack([clear, whole, half])).shape[2] == 3
