"""Runs on aspect-ratio buckets: what they remember, resumed bit for bit, judged, previewed and sampled at any shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kuosan.data.config import shapes
from kuosan.data.dataset import open_images
from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error
from kuosan.networks.config import default_unet
from kuosan.sample import pipeline
from kuosan.sample import recipe as recipes
from kuosan.train.monitor import Monitor
from kuosan.train.resolve import resolve
from latent_models import autoencoder_run
from shell import kuosan, refused
from train.made_runs import Stopping, begin, differences, go, mixed, outcome

BUCKETS = {"data.resize": "buckets", "data.size": 16, "train.max_steps": 9, "train.preview_steps": 2}
SHAPES = ((24, 12), (20, 12), (16, 16), (12, 20), (12, 24))
SAMPLE = ["--precision", "fp32", "--threads", 1, "--steps", 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of nine steps on images of five shapes, with a preview."""
    folder = tmp_path_factory.mktemp("buckets")
    mixed(folder / "data")
    go(folder / "run", folder / "data", {**BUCKETS, "train.preview_every": 9, "train.preview_pictures": 4})
    return folder / "run"


def opened(run: Path) -> pipeline.Pipeline:
    return pipeline.load(run, compute=choose(ComputeConfig("cpu", "fp32", 1)))


def test_a_run_remembers_the_shapes_it_was_trained_on(run: Path) -> None:
    config = opened(run).model.config
    assert config.shapes == SHAPES and config.shape == (3, 16, 16)


def test_a_run_is_resumed_bit_for_bit(run: Path, tmp_path: Path) -> None:
    data, seen = run.parent / "data", list[Any]()
    settings = {**BUCKETS, "train.preview_every": 9, "train.preview_pictures": 4}
    go(tmp_path / "halved", data, settings, report=Stopping(4), seen=seen)
    go(tmp_path / "halved", data, settings, seen=seen)
    assert [step for step, *_ in seen] == list(range(9))
    assert not differences(outcome(run), outcome(tmp_path / "halved"))


def test_another_bucketing_is_another_run(run: Path) -> None:
    with pytest.raises(Error, match="bucket_step: the run has no value, now 8"):
        go(run, run.parent / "data", {**BUCKETS, "data.bucket_step": 8})


def test_the_held_out_loss_is_that_of_each_image_alone(run: Path, tmp_path: Path) -> None:
    """Grouped by bucket, every image has the level and the noise of its own place in the order."""
    data = run.parent / "data"
    started = begin(tmp_path / "run", data, {**BUCKETS, "data.hold_out": 0.5, "train.evaluate_pictures": 100})
    watch, weights = started.monitor, started.state.averaged()
    assert watch is not None and len(np.unique(watch.images.buckets.of[watch.images.held_out])) >= 3
    told = watch.validate(weights)

    class Single(Monitor):
        def _parts(self, ids: np.ndarray) -> Any:
            yield from (np.array([row]) for row in range(len(ids)))

    single = Single(**vars(watch)).validate(weights)
    assert told is not None and single is not None
    assert told["loss"] == pytest.approx(single["loss"], rel=1e-5) and told["by_noise"] is not None
    assert told["by_noise"] == pytest.approx(single["by_noise"], rel=1e-4)
    if started.lock is not None:
        started.lock.release()


def test_previews_are_of_the_models_own_shape(run: Path) -> None:
    with Image.open(run / "samples" / "step-00000009.png") as sheet:
        assert sheet.size == (2 * 16 + 3 * 2, 2 * 16 + 3 * 2), "four images, and 2 pixels around each"


@pytest.mark.parametrize("task", ["super_resolution", "inpainting"])
def test_tasks_that_restore_are_trained_previewed_and_used_on_every_shape(tmp_path: Path, task: str) -> None:
    mixed(tmp_path / "data")
    more: dict[str, Any] = {"model.task.kind": task, "train.max_steps": 6, "train.preview_every": 6}
    if task == "super_resolution":
        more["model.task.scale"] = 2
    go(tmp_path / "run", tmp_path / "data", {**BUCKETS, **more, "train.preview_pictures": 3})
    assert (tmp_path / "run" / "samples" / "step-00000006.png").is_file()
    model, wide = opened(tmp_path / "run"), torch.zeros(2, 3, 12, 24)
    if task == "super_resolution":
        made = model.restore(wide[..., ::2, ::2], upscale=2, steps=2)
    else:
        mask = torch.zeros(1, 1, 12, 24)
        mask[..., 3:7, 9:] = 1
        made = model.restore(wide, mask, steps=2)
    assert made.shape == wide.shape and made.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"multipliers": [1, 2, 4, 4], "attention": [False] * 4}, "of 5 buckets .* do not fit this model: sides must"),
        ({"multipliers": [1, 2, 4, 4], "attention": [False] * 4}, "multiples of 8. Set --data.bucket-step 8"),
    ],
)
def test_buckets_that_the_network_cannot_take_are_refused_with_the_step_that_can(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(Error, match=says):
        resolve({"model": {"network": settings}}, (3, 16, 16), shapes=SHAPES)


def test_buckets_that_the_task_cannot_shrink_are_refused() -> None:
    tree = {
        "model": {
            "task": {"kind": "super_resolution", "scale": 3},
            "network": {"multipliers": [1], "attention": [False]},
        }
    }
    with pytest.raises(Error, match=r"4 of 5 buckets \(20x40, .*multiples of 6"):
        resolve(tree, (3, 24, 24), shapes=((40, 20), (28, 20), (24, 24), (20, 28), (20, 40)))


@pytest.mark.parametrize("size", [16, 32, 48, 64, 96, 128, 256])
def test_the_usual_network_takes_the_usual_buckets(size: int) -> None:
    from kuosan.data.config import default_step

    every = shapes(size, default_step(size), 2.0)
    config = resolve({}, (3, size, size), shapes=every)
    step = default_step(size)
    assert config.model.network == default_unet((3, size, size), step=step)
    assert step % config.model.network.factor == 0
    wide = resolve({}, (3, *every[-1]), shapes=every[-2:])  # no square at all
    assert wide.model.shapes == every[-2:]
    assert resolve({"model": {"network": {"kind": "dit"}}}, (3, size, size), shapes=every).model.shapes == every


def test_images_of_one_shape_are_no_buckets(tmp_path: Path) -> None:
    mixed(tmp_path / "data", (0, 6))
    started = begin(tmp_path / "run", tmp_path / "data", BUCKETS)
    assert started.config.model.shape == (3, 12, 20) and started.config.model.shapes == ()
    if started.lock is not None:
        started.lock.release()


def test_the_shell_makes_images_of_every_size_and_makes_them_again(run: Path, tmp_path: Path) -> None:
    for words, size in (((), (16, 16)), (("--size", "24x12"), (24, 12)), (("--aspect", "3:5"), (12, 20))):
        out = tmp_path / ("x".join(map(str, size)))
        said = kuosan("sample", run, "-n", 3, "--out", out, *words, *SAMPLE)
        assert said.code == 0, said
        assert f"{size[0]}x{size[1]} colour; 3 images" in said.out
        path = out / "seed-00000002.png"
        with Image.open(path) as made:
            assert made.size == size
        assert recipes.read(path).size == size
        assert kuosan("sample", "--like", path, run, "--out", out / "again.png").code == 0
        assert (out / "again.png").read_bytes() == path.read_bytes()
    said = kuosan("sample", run, "-n", 1, "--size", "12x24", *SAMPLE)
    assert said.code == 0 and (run / "samples" / "dpm_solver_2m-3-seed0-12x24" / "seed-00000000.png").is_file()


def test_the_shell_starts_from_an_image_of_any_size(run: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0).integers(0, 256, (60, 100, 3)).astype(np.uint8)
    Image.fromarray(draw).save(tmp_path / "start.png")
    words = ["--image", tmp_path / "start.png", "--strength", 0.4, "--size", "20x12", *SAMPLE]
    assert kuosan("sample", run, "-n", 1, "--out", tmp_path / "made", *words).code == 0
    path = tmp_path / "made" / "seed-00000000.png"
    assert kuosan("sample", "--like", path, run, "--allow-path", tmp_path, "--out", tmp_path / "again.png").code == 0
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_the_shell_refuses_sizes_with_the_reason(run: Path) -> None:
    refused("sample", run, "--size", "wide", naming=("--size 'wide' is not width x height in pixels, as 96x64 is",))
    refused("sample", run, "--size", "64x64", naming=("size 64x64", "are too many", "16x16 would do"))
    refused("sample", run, "--aspect", "9:1", naming=("aspect 9:1", "from 12x24 to 24x12"))
    refused("sample", run, "--aspect", "wide", naming=("aspect = 'wide' is not allowed", "as 3:2"))
    refused("sample", run, "--like", "a.png", "--size", "16x16", naming=("--size = 16,16 has no effect with --like",))


def test_python_asks_for_sizes_too(run: Path) -> None:
    model = opened(run)
    assert model.sample(2, steps=2, size=(24, 12)).shape == (2, 3, 12, 24)
    assert model.sample(2, steps=2, aspect="1:2").shape == (2, 3, 24, 12)


def test_fit_brings_an_image_to_the_nearest_trained_shape(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((80, 120, 3), 90, np.uint8)).save(tmp_path / "wide.png")
    words = ["--upscale", 2, "--fit", "--method", "ddnm", "--steps", 2, "--precision", "fp32", "--threads", 1]
    said = kuosan("restore", run, tmp_path / "wide.png", "--out", tmp_path / "made", *words)
    assert said.code == 0, said
    assert "scaled from 120x80 to 10x6" in said.out + said.err
    with Image.open(tmp_path / "made" / "wide.png") as made:
        assert made.size == (20, 12)


def test_images_that_were_opened_keep_what_draws_need(tmp_path: Path) -> None:
    config = mixed(tmp_path / "data")
    images = open_images(replace(config, hold_out=0.3))
    assert images.buckets.counts(images.train).sum() == len(images.train)


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of latents of factor 2, on buckets."""
    folder = tmp_path_factory.mktemp("latent")
    mixed(folder / "data")
    codec = autoencoder_run(folder / "codec")
    settings = {**BUCKETS, "model.codec.run": str(codec), "data.cache": str(folder / "cache"), "train.max_steps": 6}
    go(folder / "run", folder / "data", settings)
    go(folder / "halved", folder / "data", settings, report=Stopping(3))
    go(folder / "halved", folder / "data", settings)
    return folder / "run"


def test_a_run_of_latents_keeps_them_by_shape_and_is_resumed_bit_for_bit(latent: Path) -> None:
    config = opened(latent).model.config
    assert config.codec.factor == 2 and config.shapes == SHAPES
    assert not differences(outcome(latent), outcome(latent.parent / "halved"))


def test_a_model_of_latents_makes_images_of_any_of_its_shapes(latent: Path, tmp_path: Path) -> None:
    model = opened(latent)
    made = model.sample(2, steps=2, size=(24, 12))
    assert made.shape == (2, 3, 12, 24) and made.abs().max() <= 1
    near = model.sample(1, steps=4, size=(20, 12), start=torch.zeros(3, 12, 20), strength=0.5)
    assert near.shape == (1, 3, 12, 20)
    with pytest.raises(Error, match="multiples of 2"):
        model.sample(1, steps=2, size=(21, 12))
    mask = torch.zeros(1, 1, 12, 24)
    mask[..., 4:8, 8:16] = 1
    assert model.restore(torch.zeros(1, 3, 12, 24), mask, steps=2).shape == (1, 3, 12, 24)


def test_captions_and_classes_go_with_their_images(tmp_path: Path) -> None:
    for name, counts in (("dark", (5, 4)), ("light", (4, 5))):
        mixed(tmp_path / "data" / name, counts)
        for file in (tmp_path / "data" / name).glob("*.png"):
            file.with_suffix(".txt").write_text(f"a {name} one, {file.stem}")
    run = tmp_path / "run"
    told = {"model.task.labels": "true", "model.text.kind": "bytes", "train.preview_every": 4, "train.max_steps": 4}
    told |= {"model.text.width": 16, "model.text.depth": 1, "model.text.heads": 2}
    go(run, tmp_path / "data", {**BUCKETS, **told, "train.preview_pictures": 2})
    model = opened(run)
    assert model.model.config.shapes == ((16, 16), (12, 20)) and (run / "samples" / "step-00000004.png").is_file()
    made = model.sample(2, steps=2, size=(20, 12), classes=("dark", "light"), prompts=("a dark one",), guidance=2.0)
    assert made.shape == (2, 3, 12, 20)


def test_a_classifier_learns_images_of_all_shapes_and_guides_in_any(run: Path, tmp_path: Path) -> None:
    for name in ("dark", "light"):
        mixed(tmp_path / "data" / name)
    settings = {key: value for key, value in BUCKETS.items() if key != "train.preview_steps"}  # it has no previews
    go(tmp_path / "classifier", tmp_path / "data", {**settings, "train.objective": "classifier"})
    words = ["--classifier", tmp_path / "classifier", "--class", "dark", "--size", "24x12", *SAMPLE]
    said = kuosan("sample", run, "-n", 2, "--out", tmp_path / "made", *words)
    assert said.code == 0, said
