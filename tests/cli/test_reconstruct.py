"""`kuosan reconstruct`, as one would type it: what it says and writes; what it refuses, with the cure."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import kuosan as library
from autoencoder_runs import autoencoder_run, latent_run
from kuosan import seeds
from kuosan.data.pixels import from_uint8
from kuosan.device import ComputeConfig, choose
from kuosan.evaluate import reconstruct as reconstructing
from kuosan.evaluate.plan import reconstruct
from kuosan.metrics.features.network import FeatureNetwork
from kuosan.metrics.image_quality import psnr, ssim
from kuosan.metrics.kid import kid_of_pairs
from kuosan.storage import checkpoint
from shell import image_folder, kuosan, refused, smooth_folder, tree

QUICK = ["--precision", "fp32", "--threads", 1]


class Means:
    """The difference of mean colours, in place of a network's distance."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.float().mean(dim=(2, 3)) - y.float().mean(dim=(2, 3))).abs().mean(1)


def corners(x: Tensor) -> Tensor:
    """Some features of images (B, 3, H, W) in [0, 255]."""
    return x[:, :, ::5, ::5].flatten(1)[:, :12] / 255


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ae`, `latent`, which carries it, and the `images` of both."""
    home = tmp_path_factory.mktemp("reconstructed")
    latent_run(home / "latent", autoencoder_run(home / "ae", image_folder(home / "pictures", 14, 16)))
    return home


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Smooth images that no run has seen, larger than the runs'."""
    return smooth_folder(tmp_path / "others", 5, 20)


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Networks that cost nothing; what is written here is written into a scratch folder."""
    monkeypatch.setattr(
        reconstructing, "features", lambda name: FeatureNetwork.of("corners", corners, 12, 16, hash="1" * 64)
    )
    monkeypatch.setattr(reconstructing, "perceptual", lambda name: Means())
    monkeypatch.chdir(tmp_path)
    yield


def told(folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(folder) / "reconstruction.json").read_text())  # type: ignore[no-any-return]


def test_the_held_out_images_of_an_autoencoder_are_measured(runs: Path) -> None:
    said = kuosan("reconstruct", runs / "ae", "--out", "report", *QUICK)
    assert said.code == 0 and said.err == "", said
    for part in (
        "autoencoder: ",
        "step 3, factor 4, latents 4x4x4",
        f"held-out images of {runs / 'pictures'}, 16x16 colour",
        "such images, not 256: all are taken",
        "features: corners (16 px",
        "12 times fewer; in bytes 6 times less",
        "PSNR (dB)",
        "latent channel",
        "written: report (reconstruction.json, sheet.png, table.md)",
    ):
        assert part in said.out, f"{part!r} is missing in: {said.out}"
    found = told("report")
    assert found["kind"] == "autoencoder" and found["shape"] == [3, 16, 16] and found["latent_shape"] == [4, 4, 4]
    assert set(found["values"]) == {"psnr", "ssim", "perceptual"} and set(found["figures"]) == {*found["values"], "kid"}
    assert all(len(values) == len(found["pictures"]) > 3 for values in found["values"].values())
    table = Path("report/table.md").read_text()
    assert "| PSNR (dB) | SSIM | perceptual | KID |" in table and "| latent channel | mean | std | scale |" in table
    with Image.open("report/sheet.png") as sheet:
        assert sheet.width >= 8 * 128


def test_the_figures_are_those_of_what_python_encodes_and_decodes(runs: Path, others: Path) -> None:
    kuosan("reconstruct", runs / "ae", others, "--size", 20, "--out", "report", "--batch", 2, *QUICK)
    found = told("report")
    trained = library.load(runs / "ae", compute=choose(ComputeConfig("cpu", "fp32", 1)))
    pixels = np.stack([np.asarray(Image.open(others / name)) for name in found["pictures"]])
    x = torch.from_numpy(from_uint8(pixels))
    z = trained.encode(x)
    after = trained.decode(z).add(1).mul(127.5).round().to(torch.uint8)
    before = torch.from_numpy(pixels).movedim(-1, 1).contiguous()
    assert found["values"]["psnr"] == pytest.approx(psnr(after, before).tolist(), abs=1e-3)
    assert found["values"]["ssim"] == pytest.approx(ssim(after, before).tolist(), abs=1e-4)
    judge = FeatureNetwork.of("corners", corners, 12, 16, hash="1" * 64)
    assert found["kid"]["value"] == pytest.approx(kid_of_pairs(judge(before), judge(after)).value, abs=1e-4)
    assert [one["mean"] for one in found["channels"]] == pytest.approx(z.mean(dim=(0, 2, 3)).tolist(), abs=1e-4)
    assert found["figures"]["psnr"]["value"] == pytest.approx(np.mean(found["values"]["psnr"]))
    assert found["figures"]["psnr"]["error"] == pytest.approx(np.std(found["values"]["psnr"], ddof=1) / np.sqrt(5))


def test_a_latent_model_is_measured_by_the_autoencoder_it_carries(runs: Path, others: Path, tmp_path: Path) -> None:
    own = told(Path(reconstruct(runs / "ae", others, n=5, out="a", compute={"precision": "fp32"}).folder))
    carried = reconstruct(runs / "latent", others, n=5, out="b", compute={"precision": "fp32"})
    found = told("b")
    assert found["kind"] == "latents" and found["values"] == own["values"] and found["weights"] == own["weights"]
    assert found["stored"] == [2, 2, 0.5, 1]
    latents = carried.tables()[1]
    heads, rows = latents.heads, latents.rows
    assert heads[-1] == "std as stored"
    assert float(rows[2][-1]) == pytest.approx(0.5 * found["channels"][2]["std"], abs=1e-3)
    moved = tmp_path / "moved"
    shutil.copytree(runs / "latent", moved)
    shutil.rmtree(moved / "codec")
    refused("reconstruct", moved, others, *QUICK, naming=["its autoencoder is missing", "codec/"])


def test_a_run_of_grey_images_is_measured_on_grey(others: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey"
    grey.mkdir()
    for i in range(6):
        pixels = seeds.rng(i, "test/grey").integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(grey / f"{i}.png")
    run = autoencoder_run(tmp_path / "ae", grey)
    assert kuosan("reconstruct", run, others, "--out", "report", *QUICK).code == 0
    assert told("report")["shape"] == [1, 16, 16]
    said = kuosan("reconstruct", run, others / "0.png", "--out", "one", *QUICK)
    assert said.code == 0 and "its colours are left out" in said.out, said


def test_a_large_image_file_goes_in_tiles_and_comes_back_at_its_own_size(runs: Path, tmp_path: Path) -> None:
    rows = np.linspace(0, 255, 301)[:, None, None] * np.ones((1, 33, 3))
    Image.fromarray(rows.astype(np.uint8)).save("large.png")
    said = kuosan("reconstruct", runs / "ae", "large.png", "--out", "report", *QUICK)
    assert said.code == 0 and "2 tiles of 256, 64 of them shared" in said.out, said
    found = told("report")
    assert found["shape"] == [3, 301, 33] and found["latent_shape"] == [4, 76, 9] and found["kid"] is None
    assert found["figures"]["psnr"]["error"] is None
    assert Path("report/table.md").read_text().count("±") == 1  # where it is explained: one image has no error
    with Image.open("report/reconstruction.png") as made:
        assert made.size == (33, 301)
        after = torch.from_numpy(np.asarray(made).copy()).movedim(-1, 0)[None]
    before = torch.from_numpy(np.asarray(Image.open("large.png")).copy()).movedim(-1, 0)[None]
    assert found["values"]["psnr"] == pytest.approx(psnr(after, before).tolist(), abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (7, 5)])
def test_the_smallest_images_are_taken(runs: Path, size: tuple[int, int]) -> None:
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save("small.png")
    said = kuosan("reconstruct", runs / "ae", "small.png", "--out", "report", *QUICK)
    assert said.code == 0, said
    found = told("report")
    assert found["shape"] == [3, *size] and set(found["values"]) == {"psnr", "perceptual"}
    with Image.open("report/reconstruction.png") as made:
        assert made.size == size[::-1]


def test_of_a_run_with_buckets_the_usual_shape_is_taken(tmp_path: Path, others: Path) -> None:
    for size, count in {(16, 24): 9, (24, 16): 3}.items():
        for i in range(count):
            pixels = seeds.rng(i, "test/bucket").integers(0, 256, (*size, 3), dtype=np.uint8)
            (tmp_path / "wide").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "wide" / f"{size[0]}-{i}.png")
    run = autoencoder_run(tmp_path / "ae", tmp_path / "wide", size=16, resize="buckets", bucket_step=4)
    said = kuosan("reconstruct", run, "--out", "report", *QUICK)
    assert said.code == 0 and "only those of 20x12 are taken" in said.out, said
    assert told("report")["shape"] == [3, 12, 20]
    refused("reconstruct", run, others, *QUICK, naming=["20x12", "--size"])
    assert kuosan("reconstruct", run, others, "--size", 16, "--out", "square", *QUICK).code == 0


def test_tiles_of_data_are_blended_as_asked(runs: Path, others: Path) -> None:
    words = ["reconstruct", runs / "ae", others, "--size", 20, *QUICK]
    said = kuosan(*words, "--tile", 12, "--overlap", 4, "--out", "tiled")
    assert said.code == 0 and "4 tiles of 12, 4 of them shared" in said.out, said
    assert kuosan(*words, "--out", "whole").code == 0
    assert told("tiled")["values"]["psnr"] != told("whole")["values"]["psnr"]
    assert told("tiled")["tiles"] == "4 tiles of 12, 4 of them shared"


def test_without_features_there_is_neither_kid_nor_perceptual_distance(runs: Path, others: Path) -> None:
    assert kuosan("reconstruct", runs / "ae", others, "--features", "none", "--out", "report", *QUICK).code == 0
    found = told("report")
    assert set(found["figures"]) == {"psnr", "ssim"} and found["features"] == {}


def test_collapsed_latents_are_warned_of(runs: Path, others: Path, tmp_path: Path) -> None:
    run = tmp_path / "collapsed"
    kept = checkpoint.load(runs / "ae")
    ema = dict(kept.ema)
    for part in ("weight", "bias"):
        ema[f"quant_conv.{part}"] = torch.zeros_like(ema[f"quant_conv.{part}"])
    checkpoint.save(run, 3, config=kept.config, ema=ema, network=ema, optimizer={}, state=kept.state)
    said = kuosan("reconstruct", run, others, "--out", "report", *QUICK)
    assert said.code == 0 and "warning: every latent channel says next to nothing" in said.out, said
    assert "Warning: every latent channel" in Path("report/table.md").read_text()
    assert told("report")["warnings"] and told("report")["channels"][0]["bits"] == 0


def test_a_dry_run_writes_nothing(runs: Path) -> None:
    before = tree(runs / "ae")
    said = kuosan("reconstruct", runs / "ae", "--dry-run", *QUICK)
    assert said.code == 0 and "dry run: nothing was written" in said.out and "kept in" in said.out, said
    assert tree(runs / "ae") == before


def test_without_out_the_report_lies_in_the_run_and_a_checkpoint_is_a_run(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "own"
    shutil.copytree(runs / "ae", run)
    for target in (run, run / "checkpoints" / "step-00000003"):
        assert kuosan("reconstruct", target, "-n", 4, *QUICK).code == 0
    (folder,) = (run / "reconstructions").iterdir()  # the same weights, images and settings: the same place
    assert folder.name.startswith("held-out-n4-") and told(folder)["step"] == 3


def test_images_that_were_trained_on_are_refused_unless_left_out_or_forced(runs: Path) -> None:
    words = ["reconstruct", runs / "ae", runs / "pictures", "--size", 16, *QUICK]
    refused(*words, naming=["were trained on by", "--unseen", "--force"])
    assert "were trained on" in kuosan(*words, "--unseen", "--out", "unseen").out
    held = {Path(name).name for name in told("unseen")["pictures"]}
    assert 0 < len(held) < 14
    said = kuosan(*words, "--force", "--out", "forced")
    assert said.code == 0 and "so that the figures flatter" in said.out and len(told("forced")["pictures"]) == 14


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        (["--tile", 18], ["tiles of 18 pixels do not fit this autoencoder", "a multiple of 4"]),
        (["--tile", 12, "--overlap", 5], ["overlap = 5", "a multiple of 4"]),
        (["--overlap", 4], ["overlap = 4 has no effect without tiles"]),
        (["-n", 0], ["n = 0 is not allowed"]),
        (["-n", 1.5], ["n = '1.5' is not allowed", "expected whole number"]),
        (["--size", 4], ["size = 4 is not allowed: 8 to 1024"]),
        (["--batch", 0], ["batch = 0"]),
        (["--features", "lite"], ["lite", "did you mean 'lite0'?"]),
        (["--unseen", "--force"], ["cannot both be given"]),
        (["--force"], ["force has no effect on the run's own held-out images"]),
        (["nowhere"], ["there is no nowhere"]),
        (["empty"], ["empty is empty"]),
        (["large.png", "--size", 16], ["size has no effect on one image file"]),
        (["words.txt"], ["words.txt is no data set kuosan knows"]),
        (["torn.png"], ["torn.png cannot be used", "damaged"]),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(runs: Path, words: list[object], naming: list[str]) -> None:
    Path("empty").mkdir()
    Path("words.txt").write_text("no image")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save("large.png")
    noise = seeds.rng(0, "test/noise").integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save("torn.png")
    Path("torn.png").write_bytes(Path("torn.png").read_bytes()[:900])
    before = tree(Path())
    refused("reconstruct", runs / "ae", *words, "--out", "report", *QUICK, naming=naming)
    assert tree(Path()) == before


def test_a_run_without_an_autoencoder_is_refused(trained_run: Path, tmp_path: Path) -> None:
    naming = ["is a model of pixels and has no autoencoder", "--objective autoencoder"]
    refused("reconstruct", trained_run, *QUICK, naming=naming)
    refused("reconstruct", trained_run / "checkpoints" / "step-00000003", *QUICK, naming=naming)
    refused("reconstruct", tmp_path / "nothing", *QUICK, naming=["there is no run"])
    refused("reconstruct", tmp_path, *QUICK, naming=[str(tmp_path)])


def test_a_run_whose_images_have_gone_wants_others(runs: Path, others: Path, tmp_path: Path) -> None:
    gone = image_folder(tmp_path / "gone", 6, 16)
    run = autoencoder_run(tmp_path / "ae", gone)
    shutil.rmtree(gone)
    refused("reconstruct", run, *QUICK, naming=["which is not here", f"kuosan reconstruct {run} IMAGES"])
    said = kuosan("reconstruct", run, others, "--out", "report", *QUICK)
    assert said.code == 0 and "whether it saw these images is not known" in said.out, said


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_autoencoder_that_has_diverged_is_refused(runs: Path, others: Path, tmp_path: Path, precision: str) -> None:
    run = tmp_path / "diverged"
    kept = checkpoint.load(runs / "ae")
    ema = {name: 1e30 * weight if name.startswith("decoder.exit") else weight for name, weight in kept.ema.items()}
    ema |= {name: 1e30 * weight for name, weight in kept.ema.items() if name.startswith("decoder.norm")}
    checkpoint.save(run, 3, config=kept.config, ema=ema, network=ema, optimizer={}, state=kept.state)
    refused("reconstruct", run, others, "--precision", precision, naming=["diverged"])


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "RUN"],
        ["evaluate", "RUN"],
        ["restore", "RUN", "PICTURE", "--upscale", 2],
        ["compare", "PICTURES", "--upscale", 2, "--with", "RUN"],
        ["invert", "RUN", "PICTURE"],
    ],
)
def test_verbs_that_need_a_denoiser_say_what_an_autoencoder_is_for(
    runs: Path, others: Path, words: list[object]
) -> None:
    names = {"RUN": runs / "ae", "PICTURE": others / "0.png", "PICTURES": others}
    naming = ["is an autoencoder", "kuosan reconstruct RUN", "--codec RUN"]
    refused(*[names.get(str(word), word) for word in words], naming=naming)


def test_an_autoencoder_guides_nothing(runs: Path, trained_run: Path) -> None:
    words = ["sample", trained_run, "-n", 1, "--steps", 2, "--guidance", 2, "--reference", runs / "ae"]
    refused(*words, naming=["is an autoencoder, which guides nothing"])


def test_help_and_early_refusals_leave_torch_alone(runs: Path) -> None:
    for words in (["--help"], [str(runs / "ae"), "nowhere"], [str(runs / "ae"), "-n", "0"]):
        code = (
            f"import sys; from kuosan.cli.main import main\ntry: main(['reconstruct', *{words!r}])\n"
            "except SystemExit: pass\nassert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
