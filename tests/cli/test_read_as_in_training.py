"""Every verb reads an image file as its run's training images were read; by own references, through the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kuosan.data.config import DataConfig
from kuosan.data.pixels import read_png_text
from kuosan.evaluate import reconstruction_result, train_overlap
from kuosan.evaluate.config import ReconstructionConfig
from kuosan.evaluate.images import open_images
from kuosan.evaluate.train_overlap import Schooling
from kuosan.sample import inversion, pipeline
from kuosan.sample.recipe import fingerprint
from kuosan.seeds import rng
from shell import QUICK, image_folder, kuosan, refused

BACKGROUND = (16, 64, 200)
FLAGS = ("--background", "#1040c8", "--resize", "pad")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 x 8 images, padded, on a blue background."""
    home = tmp_path_factory.mktemp("blue")
    assert kuosan("train", image_folder(home / "pictures"), "--out", home / "run", *FLAGS, *QUICK).code == 0
    return home / "run"


def pixels(size: tuple[int, int], channels: int) -> np.ndarray:
    return rng(0, "test/read").integers(0, 256, (*size, channels)).astype(np.uint8)


def laid(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:] / 255
    return np.rint(alpha * rgba[..., :3] + (1 - alpha) * np.array(BACKGROUND)).astype(np.uint8)


def padded(image: np.ndarray) -> np.ndarray:
    """Own reference of (h, w, 3) in 8 x 8: the longer side scaled, the rest blue."""
    h, w = image.shape[:2]
    wide, high = round(8 * w / max(h, w)), round(8 * h / max(h, w))
    sheet = np.full((8, 8, 3), BACKGROUND, np.uint8)
    scaled = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC))
    sheet[(8 - high) // 2 : (8 - high) // 2 + high, (8 - wide) // 2 : (8 - wide) // 2 + wide] = scaled
    return sheet


def clear(path: Path) -> np.ndarray:
    """A transparent image of the model's own size."""
    rgba = pixels((8, 8), 4)
    Image.fromarray(rgba).save(path)
    return laid(rgba)


def wide(path: Path) -> np.ndarray:
    """A transparent image that is wider than high."""
    rgba = pixels((12, 24), 4)
    Image.fromarray(rgba).save(path)
    return padded(laid(rgba))


def turned(path: Path) -> np.ndarray:
    """An opaque image that a camera stored on its side."""
    exif = Image.Exif()
    exif[0x0112] = 8
    rgb = pixels((24, 12), 3)
    Image.fromarray(rgb).save(path, exif=exif)
    return padded(np.rot90(rgb).copy())


def grey(path: Path) -> np.ndarray:
    """16 bits of grey, for a model of colour."""
    values = rng(0, "test/read").integers(0, 65536, (8, 8)).astype(np.uint16)
    Image.fromarray(values).save(path)
    return np.repeat(np.rint(values / 257).astype(np.uint8)[..., None], 3, 2)


KINDS = {"clear": clear, "wide": wide, "turned": turned, "grey": grey}


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(image, -1, 0).astype(np.float32) / np.float32(127.5) - 1)


def start_of(path: Path) -> str:
    """The hash of the image that a file's recipe says it started from."""
    return str(json.loads(read_png_text(path)["kuosan"])["start"])


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_read_as_in_training(run: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in" / "image.png"
    path.parent.mkdir()
    own = KINDS[kind](path)
    found: dict[str, Any] = {}

    said = kuosan("sample", run, "-n", 1, "--image", path, "--steps", 2, "--out", tmp_path / "sample")
    assert said.code == 0, said
    wanted = fingerprint(as_tensor(own))
    assert start_of(tmp_path / "sample" / "seed-00000000.png") == wanted, said
    assert ("as in training" in said.out) == (kind != "grey")
    again = ["sample", run, "--like", tmp_path / "sample" / "seed-00000000.png"]
    refused(*again, naming=["the image", "outside the working folder", "--allow-path"])
    assert kuosan(*again, "--allow-path", path.parent).code == 0

    said = kuosan("restore", run, path, "--noise", 9, "--fit", "--steps", 2, "--out", tmp_path / "restored")
    assert said.code == 0 and start_of(tmp_path / "restored" / "image.png") == wanted, said

    model = pipeline.load(run)
    assert torch.equal(model.image(path), as_tensor(own))

    def encoded(way: inversion.Way, x0: torch.Tensor) -> torch.Tensor:
        found["invert"] = x0
        return x0

    def between(way: inversion.Way, x0: torch.Tensor, n: int) -> torch.Tensor:
        found["between"] = x0
        return x0

    monkeypatch.setattr(inversion.Way, "encode", encoded)
    monkeypatch.setattr(inversion, "on_the_way", between)
    assert kuosan("invert", run, path, "--steps", 2, "--out", tmp_path / "inverted").code == 0
    assert kuosan("invert", run, path, path, "--between", 2, "--steps", 2, "--out", tmp_path / "way").code == 0
    assert torch.equal(found["invert"][0], as_tensor(own)) and torch.equal(found["between"][1], as_tensor(own))

    shape = (3, 8, 8)
    images = open_images(str(path.parent), model.reading, shape)  # evaluate --against
    assert (images.at(0) == np.moveaxis(own, -1, 0)).all() and images.shape == shape

    Image.fromarray(pixels((8, 8), 3)).save(path.parent / "second.png")
    schooling = {"run": Schooling({"path": "nowhere", "background": "#1040c8", "resize": "pad", "size": 8}, None)}
    config = ReconstructionConfig(str(path.parent), n=2, features="none")  # compare and reconstruct
    chosen = train_overlap.chosen(config, shape, schooling)
    at = [i for i, name in zip(chosen.ids, chosen.names) if name == "image.png"]
    assert torch.equal(chosen.images.batch(at).x0[0], as_tensor(own))
    assert kind == "grey" or any("as in training" in note or "laid on" in note for note in chosen.notes)


def test_one_file_is_reconstructed_on_the_runs_background_at_its_own_size(tmp_path: Path) -> None:
    rgba = pixels((12, 24), 4)
    Image.fromarray(rgba).save(tmp_path / "image.png")
    schooling = {"run": Schooling({"background": "#1040c8", "resize": "pad"}, None)}
    config = ReconstructionConfig(str(tmp_path / "image.png"), features="none")
    found = reconstruction_result.open_inputs(config, (3, 8, 8), schooling)
    assert (found.at(0, 1)[0] == np.moveaxis(laid(rgba), -1, 0)).all()
    assert any("laid on #1040c8" in note for note in found.notes)


def test_a_contestant_that_was_trained_on_another_background_is_named(tmp_path: Path) -> None:
    for i in range(2):
        Image.fromarray(rng(i, "test/two").integers(0, 256, (8, 8, 4)).astype(np.uint8)).save(tmp_path / f"{i}.png")
    schooling = {"one": Schooling({"background": "black", "path": "gone"}, None),
                 "two": Schooling({"background": "white", "path": "gone"}, None)}  # fmt: skip
    config = ReconstructionConfig(str(tmp_path), n=2, features="none")
    notes = train_overlap.chosen(config, (3, 8, 8), schooling).notes
    assert any("warning: two was trained with transparency on white, these lie on black" in note for note in notes)


def test_an_exported_model_reads_as_its_run_did(run: Path, tmp_path: Path) -> None:
    assert kuosan("export", run, tmp_path / "model").code == 0
    reading = pipeline.load(tmp_path / "model").reading
    assert reading.background == BACKGROUND and reading.data.resize == "pad"
    assert isinstance(reading.data, DataConfig)
