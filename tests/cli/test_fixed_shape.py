"""Models of images of one shape that is no square, `--size 24x16`: through every verb, with images of any shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import kuosan as package
from kuosan import seeds
from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.data.pixels import cover, fit
from kuosan.data.reading import Reading
from kuosan.data.scan import decide
from kuosan.data.walk import Look
from kuosan.errors import Error
from kuosan.sample.recipe import fingerprint
from shell import QUICK, kuosan, refused

WIDE = [word if word != "8" or QUICK[i - 1] != "--size" else "24x16" for i, word in enumerate(QUICK)]
FP32 = ["--precision", "fp32", "--threads", 1]
RULES = ("auto", "crop", "pad", "stretch", "centre", "nearest")
SHAPES = ((16, 24), (40, 30), (30, 40), (20, 20), (9, 70), (12, 20), (48, 72))
BLUE = (10, 20, 200)


def drawn(h: int, w: int, name: object = "", channels: int = 3) -> np.ndarray:
    return seeds.rng(0, f"test/fixed/{name}/{h}x{w}").integers(0, 256, (h, w, channels)).astype(np.uint8)


def scaled(pixels: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=box))


def wanted(pixels: np.ndarray, rule: str, height: int = 16, width: int = 24) -> np.ndarray:
    """Own reference of what each rule makes of (h, w, 3)."""
    h, w = pixels.shape[:2]
    high, wide = (h, h * width / height) if h * width <= w * height else (w * height / width, w)
    left, top = int(w - wide) // 2, int(h - high) // 2
    match rule:
        case "auto" | "crop":
            return scaled(pixels, (left, top, left + wide, top + high), (width, height))
        case "stretch":
            return scaled(pixels, (0, 0, w, h), (width, height))
        case "nearest":
            rows = (top + (np.arange(height) + 0.5) * high / height).astype(int)
            columns = (left + (np.arange(width) + 0.5) * wide / width).astype(int)
            return pixels[rows][:, columns]
        case "centre":
            for axis, side in enumerate((height, width)):
                have = pixels.shape[axis]
                first = (have - side) // 2 if have >= side else -((side - have) // 2)
                pixels = pixels.take(np.clip(np.arange(first, first + side), 0, have - 1), axis)
            return pixels
        case "pad":
            factor = min(height / h, width / w)
            down, across = max(1, round(h * factor)), max(1, round(w * factor))
            sheet = np.full((height, width, 3), BLUE, np.uint8)
            above, before = (height - down) // 2, (width - across) // 2
            sheet[above : above + down, before : before + across] = scaled(pixels, (0, 0, w, h), (across, down))
            return sheet
    raise AssertionError(rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_rule_fits_every_image_and_files_are_read_as_in_training(
    rule: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    pixels = drawn(*shape)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    config = DataConfig(
        path=str(tmp_path),
        size="24x16",
        resize=rule,
        background="#0a14c8",
        hold_out=0,  # type: ignore[arg-type]
    )
    images = open_images(config)
    assert images.shape == (3, 16, 24) and images.buckets.shapes == ((16, 24),)
    assert (images.pixels(0) == wanted(pixels, rule)).all()
    shown = Reading(config).shown(tmp_path / "a.png", (3, 16, 24))
    assert (shown.pixels == images.pixels(0)).all()
    again = Reading(config).config(str(tmp_path), (3, 16, 24))
    assert again.size == "24x16" and again.resize == rule


def test_a_square_is_fitted_as_before_however_its_size_is_given() -> None:
    assert DataConfig(size="32x32").size == DataConfig(size="32").size == 32
    assert DataConfig(size=" 64 X 48").size == DataConfig(size="64×48").size == "64x48"
    pixels = drawn(30, 50)
    for rule in RULES[1:]:
        assert (fit(pixels, 16, rule, BLUE) == fit(pixels, (16, 16), rule, BLUE)).all()
    assert (fit(pixels, (12, 20), "crop", BLUE) == cover(pixels, 12, 20)).all()


def test_small_images_of_one_size_are_scaled_and_counted_as_enlarged(tmp_path: Path) -> None:
    plan = decide(DataConfig(size="24x16"), [Look(width=22, height=15)] * 3)
    assert plan.rule == "crop" and plan.shape_of(Look(width=9, height=99)) == (16, 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "24x"}, "neither one number"),
        ({"size": "24x16x3"}, "neither one number"),
        ({"size": "9" * 5000}, "neither one number"),
        ({"size": "-24x16"}, "neither one number"),
        ({"size": "24x4"}, "size 4 must be a whole number from 8"),
        ({"size": "2000x16"}, "size 2000 must be"),
        ({"size": True}, "size True must be"),
        ({"size": "24x16", "resize": "buckets"}, "give one number"),
        ({"size": "24x16", "resize": "random_crop"}, "give one number"),
    ],
)
def test_sizes_that_are_none_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(Error, match=message):
        DataConfig(**settings)  # type: ignore[arg-type]


def folder(path: Path, count: int = 12) -> Path:
    path.mkdir()
    for i in range(count):
        Image.fromarray(drawn(*SHAPES[i % 4], i)).save(path / f"{i:02d}.png")
    return path


def others(path: Path) -> Path:
    """Images that nobody trained on."""
    for file in folder(path).iterdir():
        Image.fromarray(drawn(20, 33, f"other {file.name}")).save(file)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("fixed")
    said = kuosan("train", folder(home / "images"), "--out", home / "run", *WIDE)
    assert said.code == 0, said
    assert "Size 24x16, colour (as set)" in said.out and "3x16x24 images" in said.out
    return home / "run"


def test_a_run_keeps_its_shape_and_goes_on(run: Path) -> None:
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["data"]["size"] == "24x16" and stored["model"]["shape"] == [3, 16, 24]
    said = kuosan("train", "--out", run)
    assert said.code == 0 and "the same as before" in said.out, said


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_samples_are_of_that_shape_and_start_from_images_of_any(run: Path, tmp_path: Path) -> None:
    assert kuosan("sample", run, "-n", 2, "--steps", 3, "--out", tmp_path / "made", "--gif", *FP32).code == 0
    assert size_of(tmp_path / "made" / "seed-00000001.png") == (24, 16)
    start = run.parent / "images" / "01.png"
    words = ["--image", start, "--strength", 0.5, "--steps", 4, "--out", tmp_path / "from", *FP32]
    said = kuosan("sample", run, "-n", 1, *words)
    assert said.code == 0 and "to 24x16 as in training" in said.out, said
    first = tmp_path / "from" / "seed-00000000.png"
    again = kuosan("sample", run, "--like", first, "--allow-path", start, "--out", tmp_path / "again")
    assert again.code == 0, again
    assert next((tmp_path / "again").rglob("*.png")).read_bytes() == first.read_bytes()
    x = package.load(run).image(start)
    assert x.shape == (3, 16, 24)
    assert package.load(run).sample(2, start=x, strength=0.5, steps=3).shape == (2, 3, 16, 24)
    refused("sample", run, "--size", "16x24", "--out", tmp_path / "other", naming=("size 16x24", "24x16 alone"))


def test_images_are_restored_inverted_and_measured_in_that_shape(run: Path, tmp_path: Path) -> None:
    images = run.parent / "images"
    words = ["--fit", "--mask", "5,5,12,12", "--steps", 3, "--out", tmp_path / "restored", *FP32]
    assert kuosan("restore", run, images / "01.png", *words).code == 0
    assert size_of(tmp_path / "restored" / "01.png") == (24, 16)
    said = kuosan("invert", run, images / "01.png", "--steps", 4, "--out", tmp_path / "inverted")
    assert said.code == 0, said
    assert size_of(tmp_path / "inverted" / "0000-01.png") == (24, 16)
    words = ["--with", f"{run},steps=2", "--upscale", 2, "--n", 4, "--out", tmp_path / "found"]
    said = kuosan("compare", others(tmp_path / "others"), *words)
    assert said.code == 0, said
    said = kuosan("evaluate", run, "--n", 4, "--steps", 2, "--against", "train", "--metrics", "kid", "--out",
                  tmp_path / "measured")  # fmt: skip
    assert said.code == 0, said


def test_an_autoencoder_and_a_model_of_its_latents_have_that_shape_too(run: Path, tmp_path: Path) -> None:
    at = WIDE.index("--model.network.channels")
    network = ["--model.network.channels", 16, "--multipliers", "1,2", "--groups", 4]
    few = [*WIDE[:at], *WIDE[WIDE.index("--max-steps") :]]
    words = ["--objective", "autoencoder", "--train.autoencoder.critic", 0, *network]
    said = kuosan("train", run.parent / "images", "--out", tmp_path / "ae", *few, *words)
    assert said.code == 0, said
    said = kuosan("reconstruct", tmp_path / "ae", others(tmp_path / "others"), "--n", 4, "--features", "none")
    assert said.code == 0 and "24x16" in said.out, said
    said = kuosan("train", run.parent / "images", "--out", tmp_path / "latent", "--codec", tmp_path / "ae", *WIDE)
    assert said.code == 0, said
    assert package.load(tmp_path / "latent").sample(1, steps=2).shape == (1, 3, 16, 24)


def test_a_model_of_buckets_starts_from_images_in_any_of_its_shapes(tmp_path: Path) -> None:
    images = folder(tmp_path / "images")
    for i, path in enumerate(sorted(images.iterdir())):
        Image.fromarray(drawn(*((16, 32) if i % 2 else (24, 24)), f"bucket {i}")).save(path)
    words = [*QUICK[:1], "16", *QUICK[2:], "--resize", "buckets"]
    assert kuosan("train", images, "--out", tmp_path / "run", *words).code == 0
    start = images / "01.png"
    more = ["--image", start, "--size", "24x12", "--steps", 3, "--strength", 0.5, "--out", tmp_path / "made", *FP32]
    said = kuosan("sample", tmp_path / "run", "-n", 1, *more)
    assert said.code == 0, said
    assert size_of(tmp_path / "made" / "seed-00000000.png") == (24, 12)
    x = package.load(tmp_path / "run").image(start, size=(24, 12))
    assert x.shape == (3, 12, 24) and len(fingerprint(x)) > 8 and bool(torch.isfinite(x).all())
