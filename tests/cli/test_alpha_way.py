"""Images with alpha from end to end: trained, sampled, made again, restored, inverted, measured, handed on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import kuosan as package
from kuosan import seeds
from kuosan.data.pixels import from_uint8, to_uint8
from kuosan.device import ComputeConfig, choose
from kuosan.evaluate.run import measure
from kuosan.evaluate.sampling import open_judge
from kuosan.metrics.features.network import FeatureNetwork
from kuosan.sample.generate import snap_alpha
from shell import QUICK, kuosan, refused

WORDS = [word if word != "rgb" else "rgba" for word in QUICK]
PREVIEWED = list(WORDS)
PREVIEWED[WORDS.index("--preview-every") + 1] = "3"
FP32 = ["--precision", "fp32", "--threads", 1]


def icons(count: int, side: int = 8) -> np.ndarray:
    """Discs of random colours and sizes on nothing, (N, side, side, 4)."""
    draw = seeds.rng(0, "test/icons")
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    made = np.zeros((count, side, side, 4), np.uint8)
    for each in made:
        inside = np.clip(draw.uniform(1.5, side / 2 - 0.5) - np.hypot(y, x) + 0.5, 0, 1)
        each[..., :3] = draw.integers(0, 256, 3)
        each[..., 3] = np.rint(255 * inside)
        each[each[..., 3] == 0] = 0
    return made


def folder(path: Path, count: int = 12) -> Path:
    path.mkdir()
    for i, each in enumerate(icons(count)):
        Image.fromarray(each).save(path / f"{i:02d}.png")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("alpha")
    said = kuosan("train", folder(home / "icons"), "--out", home / "run", *PREVIEWED)
    assert said.code == 0, said
    assert "colour and alpha" in said.out and "4x8x8 images" in said.out
    return home / "run"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGBA", image.mode
        return np.asarray(image)


def test_a_run_keeps_its_channels_and_shows_previews_on_a_checkerboard(run: Path) -> None:
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["data"]["channels"] == "rgba" and stored["model"]["shape"] == [4, 8, 8]
    with Image.open(run / "samples" / "step-00000003.png") as preview:
        assert preview.mode == "RGB"


def test_samples_are_transparent_files_and_are_made_again_byte_for_byte(run: Path, tmp_path: Path) -> None:
    said = kuosan("sample", run, "-n", 3, "--steps", 4, "--out", tmp_path / "made", "--gif", *FP32)
    assert said.code == 0 and "colour and alpha" in said.out, said
    first = tmp_path / "made" / "seed-00000000.png"
    assert (pixels(first)[pixels(first)[..., 3] == 0] == 0).all()
    for name in ("sheet.png", "denoising.gif"):
        with Image.open(tmp_path / "made" / name) as sheet:
            assert sheet.convert("RGBA").getextrema()[3] == (255, 255)
    again = kuosan("sample", run, "--like", first, "--out", tmp_path / "again")
    assert again.code == 0, again
    made = next((tmp_path / "again").rglob("*.png"))
    assert made.read_bytes() == first.read_bytes()


def test_python_gives_colour_times_alpha_without_haze(run: Path) -> None:
    made = package.load(run).sample(4, steps=4)
    assert made.shape == (4, 4, 8, 8)
    assert bool((made[:, :3] <= made[:, 3:] + 1e-6).all()) and float(made.min()) >= -1
    assert torch.equal(snap_alpha(made), made)


def test_an_icon_is_the_start_of_another(run: Path, tmp_path: Path) -> None:
    start = run.parent / "icons" / "00.png"
    said = kuosan("sample", run, "-n", 1, "--image", start, "--strength", 0.4, "--steps", 5, "--out", tmp_path, *FP32)
    assert said.code == 0, said
    assert torch.equal(package.load(run).image(start), torch.from_numpy(from_uint8(icons(1)[0])))


def test_a_hole_is_filled_and_the_rest_kept_bit_for_bit(run: Path, tmp_path: Path) -> None:
    before = icons(1)[0]
    words = ["--mask", "2,2,3,4", "--steps", 4, "--out", tmp_path, *FP32]
    said = kuosan("restore", run, run.parent / "icons" / "00.png", *words)
    assert said.code == 0, said
    after, hole = pixels(tmp_path / "00.png"), np.zeros((8, 8), bool)
    hole[2:6, 2:5] = True
    assert (after[~hole] == before[~hole]).all()


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        (("--mask", "alpha"), ("mask alpha", "alpha themselves", "x,y,w,h")),
        (("--colorise",), ("colorise", "channels rgba", "--channels rgb")),
    ],
)
def test_what_alpha_cannot_mean_in_a_restoration_is_refused(
    words: tuple[str, ...], naming: tuple[str, ...], run: Path
) -> None:
    refused("restore", run, run.parent / "icons" / "00.png", *words, naming=naming)


def test_an_icon_goes_to_its_noise_and_back(run: Path, tmp_path: Path) -> None:
    files = [run.parent / "icons" / f"0{i}.png" for i in range(2)]
    said = kuosan("invert", run, *files, "--steps", 20, "--out", tmp_path / "back")
    assert said.code == 0 and "dB" in said.out, said
    assert pixels(tmp_path / "back" / "0000-00.png").shape == (8, 8, 4)
    said = kuosan("invert", run, *files, "--between", 2, "--steps", 8, "--out", tmp_path / "between")
    assert said.code == 0, said
    assert pixels(tmp_path / "between" / "between-0001.png").shape == (8, 8, 4)


def corners() -> FeatureNetwork:
    def network(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images / 255, 2).flatten(1)

    return FeatureNetwork.of("corners", network, 12, None, hash="2" * 64)


def test_features_see_every_icon_on_white_and_on_black() -> None:
    bytes_, twice = icons(5), corners().twice()
    rows = twice(torch.from_numpy(np.moveaxis(bytes_, -1, 1).copy()))
    assert rows.shape == (5, 24) and twice.dim == 24
    for part, level in ((rows[:, :12], 255), (rows[:, 12:], 0)):
        share = bytes_[..., 3:] / 255
        laid = np.rint(share * bytes_[..., :3] + (1 - share) * level).astype(np.uint8)
        assert torch.equal(part, corners()(torch.from_numpy(np.moveaxis(laid, -1, 1).copy())))
    floats = twice(torch.from_numpy(from_uint8(bytes_)))
    assert float((floats - rows).abs().max()) <= 1 / 255


def test_an_evaluation_measures_both_and_says_so(run: Path, tmp_path: Path) -> None:
    measure(run, network=corners(), against="train", n=6, steps=2, metrics=("kid",), out=str(tmp_path / "found"))
    text = (tmp_path / "found" / "result.json").read_text()
    stored = json.loads(text)
    assert "had transparency, kept" in text and "laid on" not in text
    assert stored["features"]["name"] == "corners on white and on black" and stored["features"]["dim"] == 24
    with Image.open(tmp_path / "found" / "sheet.png") as sheet:
        assert sheet.mode == "RGB"


def test_what_knows_no_alpha_is_refused_with_a_cure(run: Path, tmp_path: Path) -> None:
    images = run.parent / "icons"
    refused("evaluate", run, "--likelihood", naming=("a likelihood", "channels rgba", "KID"))
    refused("compare", images, "--with", run, "--upscale", 2, naming=("a comparison", "channels rgba"))
    for words, naming in (
        (("--objective", "autoencoder"), ("objective autoencoder", "--channels rgb")),
        (("--task", "super_resolution", "--jpeg", "60"), ("jpeg", "no alpha")),
        (("--background", "black"), ("background", "channels rgba")),
        (("--train.loss", "vlb"), ("train.loss = vlb", "loss simple")),
    ):
        refused("train", images, "--out", tmp_path / "run", "--channels", "rgba", *words, naming=naming)
    assert not (tmp_path / "run").exists()


def test_a_model_is_handed_on_with_its_alpha(run: Path, tmp_path: Path) -> None:
    assert kuosan("export", run, tmp_path / "model").code == 0
    own, exported = (package.load(each).sample(2, steps=3, exact=True) for each in (run, tmp_path / "model"))
    assert exported.shape == (2, 4, 8, 8) and float((own - exported).abs().max()) < 0.01, "its weights are in bf16"
    assert torch.equal(snap_alpha(exported), exported)
    start = package.load(tmp_path / "model").image(run.parent / "icons" / "00.png")
    assert torch.equal(start, torch.from_numpy(from_uint8(icons(1)[0]))), "and it knows how images are read"


@pytest.mark.parametrize(
    ("task", "words"), [("super_resolution", ["--scale", "2"]), ("inpainting", [])], ids=["enlarged", "filled"]
)
def test_models_that_restore_learn_alpha_too(task: str, words: list[str], tmp_path: Path) -> None:
    images = folder(tmp_path / "icons")
    said = kuosan("train", images, "--out", tmp_path / "run", *WORDS, "--task", task, *words)
    assert said.code == 0, said
    small = tmp_path / "small.png"
    Image.fromarray(icons(1, 4 if task == "super_resolution" else 8)[0]).save(small)
    more = ["--mask", "1,1,3,3"] if task == "inpainting" else []
    said = kuosan("restore", tmp_path / "run", small, *more, "--steps", 3, "--out", tmp_path / "restored", *FP32)
    assert said.code == 0, said
    made = pixels(tmp_path / "restored" / "small.png")
    assert made.shape == (8, 8, 4)
    if task == "super_resolution":
        assert not ((made[..., 3] > 0) & (made[..., 3] < 31)).any(), "haze"


def test_snapping_leaves_no_haze_and_no_colour_beyond_alpha() -> None:
    alpha = torch.linspace(-0.2, 1.2, 281).reshape(1, 1, 1, -1)
    colour = torch.linspace(-0.3, 1.3, 9).reshape(-1, 1, 1, 1).expand(-1, 3, 1, 281)
    made = snap_alpha(torch.cat([colour, alpha.expand(9, 1, 1, 281)], 1) * 2 - 1)
    shown = (made + 1) / 2
    assert bool((made[:, :, :, alpha.flatten() < 0.12] == -1).all())
    assert bool((made[:, 3, :, alpha.flatten() > 0.88] == 1).all())
    assert bool((shown[:, :3] <= shown[:, 3:] + 1e-6).all()) and float(shown.min()) >= 0
    between = (alpha.flatten() > 0.13) & (alpha.flatten() < 0.87)
    assert torch.allclose(shown[:, 3, :, between], alpha[:, 0, :, between].expand(9, 1, -1), atol=1e-6)
    assert torch.equal(snap_alpha(made), made)
    bytes_ = to_uint8(made.numpy())
    assert (bytes_[bytes_[..., 3] == 0] == 0).all()


def test_classes_are_learnt_and_judged_with_alpha(tmp_path: Path) -> None:
    for i, each in enumerate(icons(24)):
        place = tmp_path / "icons" / ("small", "large")[int((each[..., 3] > 0).sum() > 24)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(place / f"{i:02d}.png")
    judge = ["--objective", "classifier", "--no-noisy"]
    for name, words in (("model", ["--labels"]), ("judge", judge)):
        said = kuosan("train", tmp_path / "icons", "--out", tmp_path / name, *WORDS, *words)
        assert said.code == 0, said
    options = {"judge": str(tmp_path / "judge"), "against": "train", "n": 6, "steps": 2, "metrics": ("labels",)}
    found = measure(tmp_path / "model", network=corners(), out=str(tmp_path / "found"), **options)
    assert 0 <= found.figures["labels"].value <= 1
    network = package.load(tmp_path / "judge").model.network
    batch = torch.from_numpy(np.moveaxis(icons(5), -1, 1).copy())
    with torch.no_grad():
        wanted = network(torch.from_numpy(from_uint8(icons(5)))).float()
    judged = open_judge(str(tmp_path / "judge"), (4, 8, 8), ("large", "small"), choose(ComputeConfig()))(batch)
    assert torch.allclose(judged, wanted, atol=1e-5), "a judge sees colour times alpha"


def test_an_autoencoder_of_colours_takes_no_alpha(run: Path, tmp_path: Path) -> None:
    at = QUICK.index("--model.network.channels")
    few = [*QUICK[:at], *QUICK[QUICK.index("--max-steps") :], "--train.autoencoder.critic", 0]
    network = ["--model.network.channels", 16, "--multipliers", "1,2", "--groups", 4]
    images = run.parent / "icons"
    said = kuosan("train", images, "--out", tmp_path / "ae", "--objective", "autoencoder", *few, *network)
    assert said.code == 0, said
    words = ["--out", tmp_path / "latent", "--codec", tmp_path / "ae", *WORDS]
    refused("train", images, *words, naming=("images of 3 channel", "these have 4", "--channels rgb"))
