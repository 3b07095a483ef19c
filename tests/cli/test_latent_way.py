"""A model of latents from the shell: trained on, sampled, restored with, compared; and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latent_models import autoencoder_run
from shell import QUICK, Said, image_folder, kuosan, refused

LATENT = [*QUICK[:1], "16", *QUICK[2:]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, an autoencoder's run, and the run of a model of its latents."""
    folder = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUOSAN_CACHE", str(folder / "cache"))
        autoencoder_run(folder / "ae")
        image_folder(folder / "pictures", 12, side=16)
        said = train(folder, "run")
    assert "12 encoded in" in said.out and "as 4x8x8 latents of" in said.out
    return folder


def train(folder: Path, name: str, *more: object) -> Said:
    said = kuosan("train", folder / "pictures", "--out", folder / name, "--codec", folder / "ae", *LATENT, *more)
    assert said.code == 0, said
    return said


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def size_of(path: Path) -> tuple[int, int]:
    height, width, _ = pixels_of(path).shape
    return width, height


def test_images_are_sampled_with_an_animation_and_made_again_byte_for_byte(home: Path, tmp_path: Path) -> None:
    said = kuosan("sample", home / "run", "-n", "3", "--steps", "3", "--gif", "--out", tmp_path / "made")
    assert said.code == 0, said
    first = tmp_path / "made" / "seed-00000001.png"
    assert size_of(first) == (16, 16)
    assert (tmp_path / "made" / "denoising.gif").is_file()
    assert kuosan("sample", home / "run", "--like", first, "--out", tmp_path / "again.png").code == 0
    assert (tmp_path / "again.png").read_bytes() == first.read_bytes()


def test_a_run_moved_with_its_codec_works_and_without_it_says_what_is_missing(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "moved")
    assert kuosan("sample", tmp_path / "moved", "-n", "1", "--steps", "2").code == 0
    shutil.rmtree(tmp_path / "moved" / "codec")
    refused("sample", tmp_path / "moved", "-n", "1", naming=["autoencoder is missing", "codec/", str(home / "ae")])


def test_holes_are_filled_and_known_pixels_kept_bit_for_bit(home: Path, tmp_path: Path) -> None:
    image, out = home / "pictures" / "0.png", tmp_path / "out"
    said = kuosan("restore", home / "run", image, "--mask", "4,4,7,6", "--steps", "3", "--out", out)
    assert said.code == 0, said
    before, after = pixels_of(image), pixels_of(out / "0.png")
    hole = np.zeros((16, 16), bool)
    hole[4:10, 4:11] = True
    assert (before == after)[~hole].all() and (before != after)[hole].any()


def test_images_of_another_size_are_restored_in_tiles_of_whole_cells(home: Path, tmp_path: Path) -> None:
    Image.fromarray(pixels_of(home / "pictures" / "0.png").repeat(2, 0)[:25, :13]).save(tmp_path / "odd.png")
    said = kuosan("restore", home / "run", tmp_path / "odd.png", "--deblur", "1", "--steps", "2", "--out", tmp_path)
    assert said.code == 2 and "would be written over" in said.err
    out = tmp_path / "out"
    said = kuosan("restore", home / "run", tmp_path / "odd.png", "--deblur", "1", "--steps", "2", "--out", out)
    assert said.code == 0 and "extended to 16x26" in said.out, said
    assert size_of(out / "odd.png") == (13, 25)


def test_what_latents_cannot_do_is_refused_with_the_reason(home: Path) -> None:
    run, image = home / "run", home / "pictures" / "0.png"
    refused("sample", run, "--threshold", "99", naming=["threshold = 99.0", "no black and white"])
    refused("sample", run, "--no-clip", naming=["clip = false", "never clipped"])
    refused("restore", run, image, "--upscale", "2", "--method", "pigdm", naming=["pigdm", "not linear", "ddnm or dps"])
    refused("evaluate", run, "--likelihood", naming=["likelihood", "density of latents", "KID"])
    refused(
        "train", home / "pictures", "--codec", home / "nothing", "--out", home / "no", naming=["nothing does not exist"]
    )
    refused(
        "train", home / "pictures", "--codec", home / "ae", "--scale", "2", "--out", home / "no",
        naming=["model.task.scale", "super_resolution"],
    )  # fmt: skip
    grey = ["--channels", "grey", "--out", home / "no"]
    refused("train", home / "pictures", "--codec", home / "ae", *grey, naming=["3 channels", "--channels rgb"])


def test_latents_are_compared_beside_pixels(home: Path, tmp_path: Path) -> None:
    pixels = kuosan("train", home / "pictures", "--out", home / "pixels", *LATENT)
    assert pixels.code == 0
    runs = [word for run in ("run", "pixels") for word in ("--with", f"{home / run}:ddnm,steps=2")]
    out = tmp_path / "compared"
    said = kuosan("compare", home / "pictures", *runs, "--upscale", "2", "-n", "4", "--force", "--out", out)
    assert said.code == 0, said
    assert "run: ddnm" in said.out and "pixels: ddnm" in said.out
