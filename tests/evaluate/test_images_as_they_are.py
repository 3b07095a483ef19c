"""What is measured of folders: whole images at their own size, samples alone, and nothing changed unsaid."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from kuosan.data.pixels import save_png
from kuosan.evaluate.result import Result
from kuosan.evaluate.run import measure
from kuosan.metrics.features.network import FeatureNetwork
from kuosan.sample.recipe import Recipe
from kuosan.sample.request import Request
from kuosan.seeds import rng
from kuosan.storage import outputs

Array = np.ndarray


def features(image: Array) -> Array:
    """Own reference: mean, spread, and what neighbours differ by, of a whole image (H, W) or (H, W, 3): (12,)."""
    x = image.astype(np.float64) / 255
    x = np.repeat(x[..., None], 3, axis=2) if x.ndim == 2 else x
    across, down = np.abs(np.diff(x, axis=1)).mean((0, 1)), np.abs(np.diff(x, axis=0)).mean((0, 1))
    return np.concatenate([x.mean((0, 1)), x.std((0, 1)), across, down])


def same_features(x: torch.Tensor) -> torch.Tensor:
    """The same of (B, 3, H, W) in [0, 255], as a feature network."""
    x = x.double() / 255
    spread = x.flatten(2).std(dim=2, unbiased=False)
    across, down = x.diff(dim=3).abs().mean((2, 3)), x.diff(dim=2).abs().mean((2, 3))
    return torch.cat([x.mean((2, 3)), spread, across, down], dim=1).float()


def kid(x: Array, y: Array) -> float:
    """The unbiased MMD² with (x.y/D + 1)³, written out."""

    def k(a: Array, b: Array) -> Array:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = sum((m.sum() - np.trace(m)) / (len(m) * (len(m) - 1)) for m in (k(x, x), k(y, y)))
    return float(within - 2 * k(x, y).mean())


class Sides(NamedTuple):
    """What a case expects to be measured, and the words that must be said."""

    made: list[Array]
    real: list[Array]
    words: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()  # words that must not be said


def image(i: int, height: int = 24, width: int = 24, channels: int = 3) -> Array:
    """An image of blocks, each another."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return rng(i, "test/as they are").integers(0, 256, shape).astype(np.uint8)


def some(count: int = 6, first: int = 0, height: int = 24, width: int = 24, channels: int = 3) -> list[Array]:
    return [image(i, height, width, channels) for i in range(first, first + count)]


def put(folder: Path, images: list[Array], ending: str = "png") -> list[Array]:
    """The images as files of a folder, and as they are read back."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{i:03d}.{ending}")
    return images


def plain(home: Path, words: tuple[str, ...] = (), silent: tuple[str, ...] = ()) -> Sides:
    """Six images a side, to which a case adds what is no sample."""
    return Sides(put(home / "made", some()), put(home / "real", some(6, 100)), words, silent)


def of_sizes(a: tuple[int, int], b: tuple[int, int], *words: str) -> Callable[[Path], Sides]:
    def case(home: Path) -> Sides:
        return Sides(put(home / "made", some(6, 0, *a)), put(home / "real", some(6, 100, *b)), words)

    return case


def checkerboard(home: Path) -> Sides:
    row, column = np.mgrid[:128, :128]
    board = np.where((row + column) % 2, 60, -60)[..., None]
    flat = [np.kron(rng(i, "test").integers(64, 192, (8, 8, 3)), np.ones((16, 16, 1))).astype(int) for i in range(12)]
    sharp = [(each + board).astype(np.uint8) for each in flat[:6]]
    smooth = [each.astype(np.uint8) for each in flat[6:]]
    return Sides(
        put(home / "made", sharp), put(home / "real", smooth), ("128x128", "as they are"), ("different sizes",)
    )


def mixed(home: Path) -> Sides:
    made = [image(i, 10 + 3 * i, 40 - 4 * i) for i in range(7)]
    return Sides(put(home / "made", made), put(home / "real", some(6, 100, 17, 31)), ("31x17 (6)", "different sizes"))


def grey(home: Path) -> Sides:
    return Sides(
        put(home / "made", some(6, 0, channels=1)), put(home / "real", some(6, 100, channels=1)), (), ("are grey",)
    )


def grey_against_colour(home: Path) -> Sides:
    return Sides(put(home / "made", some(6, 0, channels=1)), put(home / "real", some(6, 100)), ("are grey",))


def grey_as_colour(home: Path) -> Sides:
    put(home / "made", [np.repeat(each[..., None], 3, 2) for each in some(6, 0, channels=1)])
    return Sides(some(6, 0, channels=1), put(home / "real", some(6, 100, channels=1)), (), ("are grey",))


def laid(colour: Array, alpha: Array) -> Array:
    alpha = alpha[..., None] / 255
    return np.rint(alpha * colour + (1 - alpha) * 255).astype(np.uint8)


def transparent(home: Path) -> Sides:
    alphas = [image(50 + i, channels=1) for i in range(6)]
    put(home / "made", [np.dstack([rgb, alpha]) for rgb, alpha in zip(some(), alphas)])
    made = [laid(rgb, alpha) for rgb, alpha in zip(some(), alphas)]
    return Sides(made, put(home / "real", some(6, 100)), ("transparency laid on white",))


def clear_index(home: Path) -> Sides:
    (home / "made").mkdir(parents=True)
    made = []
    for i in range(6):
        indices = rng(i, "test/palette").integers(0, 4, (20, 20)).astype(np.uint8)
        palette = rng(i, "test/colours").integers(0, 256, (4, 3)).astype(np.uint8)
        file = Image.fromarray(indices, "P")
        file.putpalette(palette.tobytes())
        file.save(home / "made" / f"{i}.png", transparency=1)
        palette[1] = 255
        made.append(palette[indices])
    return Sides(made, put(home / "real", some(6, 100)), ("transparency laid on white",))


def sixteen(home: Path) -> Sides:
    wide = [rng(i, "test/wide").integers(0, 65536, (20, 20)).astype(np.uint16) for i in range(6)]
    put(home / "made", wide)
    made = [np.rint(each / 257).astype(np.uint8) for each in wide]
    return Sides(made, put(home / "real", some(6, 100, channels=1)), ("16 bits scaled to 8",))


def jpeg(home: Path) -> Sides:
    put(home / "made", some(), "jpg")
    made = [np.asarray(Image.open(path)) for path in sorted((home / "made").glob("*.jpg"))]
    return Sides(made, put(home / "real", some(6, 100)), ("JPEG", "different formats"))


def lossless_formats(home: Path) -> Sides:
    return Sides(put(home / "made", some(), "bmp"), put(home / "real", some(6, 100)), ("BMP",), ("different formats",))


def turned(home: Path) -> Sides:
    (home / "made").mkdir(parents=True)
    for i, pixels in enumerate(some(6, 0, 20, 30)):
        exif = Image.Exif()
        exif[0x0112] = 6  # the stored rows are turned by a quarter
        Image.fromarray(pixels).save(home / "made" / f"{i}.png", exif=exif)
    made = [np.rot90(each, -1) for each in some(6, 0, 20, 30)]
    return Sides(made, put(home / "real", some(6, 100)), ("turned upright",))


def beside(
    name: str, *marks: str, words: tuple[str, ...] = ("not counted",), size: int = 24
) -> Callable[[Path], Sides]:
    """A file that is no sample, beside six samples; `marks` are what shows whose it is."""

    def case(home: Path) -> Sides:
        sides = plain(home, (*words, name))
        path = home / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(77, size, 2 * size)).save(path)
        for mark in marks:
            (path.parent / mark).write_text("{}")
        return sides

    return case


def masks(home: Path) -> Sides:
    put(home / "made" / "images", some())
    put(home / "made" / "masks", [np.full((24, 24), 255 * (i % 2), np.uint8) for i in range(6)])
    return Sides(
        some(), put(home / "real", some(6, 100)), ("6 files are not counted", "masks/000.png", "mask or thumbnail")
    )


def thumbnails(home: Path) -> Sides:
    sides = plain(home, ("6 files are not counted", "000_thumb.png"))
    for i in range(6):
        Image.fromarray(image(i, 8, 8)).save(home / "made" / f"{i:03d}_thumb.png")
    return sides


def sounds(home: Path) -> Sides:
    sides = plain(home, ("1 image is counted although", "the mask of zorro.png"))
    Image.fromarray(image(7)).save(home / "made" / "the mask of zorro.png")
    return sides._replace(made=[*sides.made, image(7)])


def content(name: str, data: bytes, *words: str) -> Callable[[Path], Sides]:
    def case(home: Path) -> Sides:
        sides = plain(home, words)
        (home / "made" / name).write_bytes(data)
        return sides

    return case


def animated(home: Path) -> Sides:
    sides = plain(home, ("first frame", "moving.gif"))
    frames = [Image.fromarray(np.full((24, 24), level, np.uint8)) for level in (255, 0)]
    frames[0].save(home / "made" / "moving.gif", save_all=True, append_images=frames[1:])
    return sides._replace(made=[*sides.made, np.full((24, 24), 255, np.uint8)])


def repeated(home: Path) -> Sides:
    made = [*some(), image(0), image(3)]
    return Sides(
        put(home / "made", made), put(home / "real", some(6, 100)), ("2 images repeat another", "006.png (as 000")
    )


def repeated_otherwise_packed(home: Path) -> Sides:
    made = [*some(), image(0)]
    put(home / "made", some())
    Image.fromarray(image(0)).save(home / "made" / "again.bmp")
    return Sides(made, put(home / "real", some(6, 100)), ("1 image repeats another", "again.bmp"))


def shared(home: Path) -> Sides:
    real = [*some(6, 100), image(1), image(2)]
    return Sides(
        put(home / "made", some()), put(home / "real", real), ("2 of the 6 samples are images of the reference",)
    )


def itself(home: Path) -> Sides:
    put(home / "made", some())
    (home / "real").symlink_to(home / "made")
    return Sides(some(), some(), ("against itself", "6 of the 6 samples"))


def subfolder(home: Path) -> Sides:
    put(home / "made", some())
    put(home / "made" / "real", some(6, 100))
    (home / "real").symlink_to(home / "made" / "real")
    return Sides([*some(), *some(6, 100)], some(6, 100), ("lies inside", "6 of the 12 samples"))


def classes(home: Path) -> Sides:
    put(home / "made" / "cat", some(4))
    put(home / "made" / "dog", some(4, 10))
    return Sides([*some(4), *some(4, 10)], put(home / "real", some(6, 100)))


def recipes(home: Path) -> Sides:
    sides = plain(home, ("of 2 recipes", "3 images"))
    for i, pixels in enumerate(sides.made):
        recipe = Recipe("run", 1, "w", Request(n=3, steps=2 + (i > 2)), i % 3, "cpu", "fp32", (24, 24), 2)
        save_png(home / "made" / f"{i:03d}.png", pixels, recipe.text())
    return sides


def fewer(home: Path) -> Sides:
    return plain(home, ("there are 6, fewer than n = 1,000",))


def unequal(home: Path) -> Sides:
    made = put(home / "made", some(12))
    return Sides(made, put(home / "real", some(7, 100)), ("12 samples against 7 real images", "coverage depend"))


def zipped(home: Path) -> Sides:
    sides = plain(home)
    with zipfile.ZipFile(home / "made.zip", "w") as archive:
        for path in (home / "made").iterdir():
            archive.write(path, path.name)
    shutil.rmtree(home / "made")
    (home / "made.zip").rename(home / "made")
    return sides


def arrays(home: Path) -> Sides:
    home.mkdir(parents=True, exist_ok=True)
    np.savez(home / "made.npz", images=np.stack(some()))
    return Sides(some(), put(home / "real", some(6, 100)))


def unfinished(home: Path) -> Sides:
    sides = plain(home, ("unfinished set",))
    with pytest.raises(KeyboardInterrupt), outputs.claimed(home / "made", "sample", 1, ["x.png"]):
        raise KeyboardInterrupt
    return sides


def recorded(home: Path) -> Sides:
    sides = plain(home, ("sheet.png", "not counted"))
    with outputs.claimed(home / "made", "sample", 1, ["sheet.png"]) as output:
        save_png(output.folder / "sheet.png", image(5))
    return sides


CASES: dict[str, Callable[[Path], Sides]] = {
    "a pattern finer than 64 pixels": checkerboard,
    "small and large": of_sizes((16, 16), (96, 96), "different sizes", "16x16", "96x96"),
    "wide and tall": of_sizes((32, 48), (48, 32), "different sizes", "48x32", "32x48"),
    "neither is square": of_sizes((20, 50), (20, 50), "50x20"),
    "larger than any default": of_sizes((200, 160), (200, 160), "160x200"),
    "tiny": of_sizes((3, 5), (3, 5), "5x3"),
    "all sizes mixed": mixed,
    "grey": grey,
    "grey against colour": grey_against_colour,
    "grey saved as colour": grey_as_colour,
    "transparent": transparent,
    "a transparent colour of a palette": clear_index,
    "16 bits": sixteen,
    "JPEG against PNG": jpeg,
    "BMP against PNG": lossless_formats,
    "turned by its orientation": turned,
    "a sheet beside its recipe": beside("sheet.png", "recipe.json"),
    "a restoration's sheet": beside("sheet-2.png", "request.json"),
    "a sheet of another size": beside("sheet.png"),
    "before and after": beside("before-after.png"),
    "a grid in a subfolder": beside("more/grid.png"),
    "a run's curve": beside("curve.png", "log.jsonl"),
    "a denoising film": beside("denoising.gif", "recipe.json"),
    "nearest images": beside("nearest-steps2.png", "result.json"),
    "the reference's sheet": beside("real.png", "result.json"),
    "the way between two": beside("between.png", "between-0000.png"),
    "a sheet in kuosan's record": recorded,
    "masks beside images": masks,
    "thumbnails beside images": thumbnails,
    "a title that sounds like a mask": sounds,
    "hidden": content(".hidden.png", b"", "not counted", ".hidden.png"),
    "JSON and text": content("facts.json", b"{}"),
    "damaged": content("torn.png", b"\x89PNG\r\n\x1a\n" + b"0" * 40, "not counted", "torn.png"),
    "empty": content("empty.png", b"", "not counted", "empty.png"),
    "text called png": content("note.png", b"hello", "not counted", "note.png"),
    "an animation": animated,
    "repeated": repeated,
    "repeated in another format": repeated_otherwise_packed,
    "shared with the reference": shared,
    "against itself": itself,
    "a folder around the reference": subfolder,
    "classes in folders": classes,
    "two recipes": recipes,
    "fewer than n": fewer,
    "unequal counts": unequal,
    "a zip": zipped,
    "arrays": arrays,
    "an unfinished set": unfinished,
}


def evaluated(home: Path, size: int | None = None, **options: object) -> Result:
    network = FeatureNetwork.of("differences", same_features, 12, size)
    made = next(home.glob("made*"))
    return measure(str(made), network=network, against=str(home / "real"), out=str(home / "out"), **options)


def said(result: Result) -> str:
    return "\n".join([*result.about(), json.dumps(result.images)])


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_measured_as_its_images_are(name: str, tmp_path: Path) -> None:
    sides = CASES[name](tmp_path)
    result = evaluated(tmp_path, metrics=("kid", "prdc"))
    own = kid(*(np.stack([features(each) for each in side]) for side in (sides.made, sides.real)))
    assert result.found[0].n == len(sides.made) and result.real == min(len(sides.real), len(sides.made))
    if len(sides.real) <= len(sides.made):
        assert result.figures["kid"].value == pytest.approx(own, rel=1e-4, abs=2e-7)
    for word in sides.words:
        assert word in said(result), said(result)
    for word in sides.silent:
        assert word not in said(result), said(result)


def test_an_image_is_brought_to_the_networks_size_once_from_its_own(tmp_path: Path) -> None:
    made, real = put(tmp_path / "made", some(6, 0, 90, 70)), put(tmp_path / "real", some(6, 100, 150, 150))

    def brought(pixels: Array) -> Array:
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        x = torch.nn.functional.interpolate(x, (40, 40), mode="bicubic", antialias=True, align_corners=False)
        return x.clamp(0, 255)[0].permute(1, 2, 0).numpy()

    own = kid(*(np.stack([features(brought(each)) for each in side]) for side in (made, real)))
    result = evaluated(tmp_path, 40, metrics=("kid",))
    assert result.figures["kid"].value == pytest.approx(own, rel=1e-4)
    assert "6 are resized whole to 40x40" in said(result) and "aspect ignored" in said(result)


def test_what_is_drawn_of_a_folder_depends_on_content_alone(tmp_path: Path) -> None:
    for place, turn in (("one", 1), ("two", -1)):
        put(tmp_path / place / "made" / "first", some(30)[::turn])
        put(tmp_path / place / "made" / "second", some(30, 50)[::turn])
        put(tmp_path / place / "real", some(30, 100)[::turn])
    found = [evaluated(tmp_path / place, metrics=("kid",), n=20) for place in ("one", "two")]
    assert found[0].figures["kid"].value == pytest.approx(found[1].figures["kid"].value, abs=1e-12)
    assert found[0].found[0].n == 20 and "20 of them drawn by a fixed key" in said(found[0])


@pytest.mark.parametrize("hash", ["", "1" * 64])
@pytest.mark.parametrize("real", [600, 300, 100])
def test_no_image_is_read_twice_and_none_is_on_both_sides_of_the_floor(tmp_path: Path, real: int, hash: str) -> None:
    images = rng(0, "test/floor").integers(0, 256, (real, 6, 6, 3)).astype(np.uint8)
    images[7] = images[40] = images[41]  # an image that is there three times
    np.savez(tmp_path / "real.npz", images=images)
    np.savez(tmp_path / "made.npz", images=rng(1, "test/floor").integers(0, 256, (100, 6, 6, 3)).astype(np.uint8))
    seen: list[bytes] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.extend(each.byte().numpy().tobytes() for each in x)
        return same_features(x)

    options = {"network": FeatureNetwork.of("counted", network, 12, hash=hash), "against": str(tmp_path / "real.npz")}
    result = measure(str(tmp_path / "made.npz"), out=str(tmp_path / "out"), metrics=("kid",), **options)
    whole = [each.transpose(2, 0, 1).tobytes() for each in images]
    for each in set(seen):
        assert seen.count(each) <= max(1, whole.count(each))
    assert len(seen) <= 100 + min(real, 200) and result.found[0].n == 100
    assert "against" in result.floor_of and "kid" in result.floor
