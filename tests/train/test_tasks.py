"""Training to restore: the task's key alone, what the network is shown, that it resumes, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import kuosan
from kuosan import seeds
from kuosan.data.pixels import save_png
from kuosan.errors import Error
from kuosan.tasks import SuperResolution
from kuosan.tasks.condition import degrade, filled
from shell import QUICK, image_folder, refused
from shell import kuosan as shell
from train.made_runs import SMALL, OwnNetwork, Stopping, ask, begin, differences, go, images, outcome

KINDS: dict[str, dict[str, Any]] = {
    "super_resolution": {"model.task.kind": "super_resolution", "model.task.scale": 2},
    "every damage": {
        "model.task.kind": "super_resolution", "model.task.scale": 2, "model.task.down": "any", "model.task.blur": 1.0,
        "model.task.noise": 10, "model.task.jpeg": 40,
    },
    "inpainting": {"model.task.kind": "inpainting"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_learns_to_restore_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    data, settings = images(tmp_path / "pictures.npz"), {**KINDS[kind], "train.max_steps": 9}
    go(tmp_path / "whole", data, settings)
    go(tmp_path / "parts", data, settings, report=Stopping(at=4))
    go(tmp_path / "parts", data, settings)
    assert not differences(outcome(tmp_path / "whole"), outcome(tmp_path / "parts"))


def test_the_task_decides_the_networks_channels(tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz")
    for kind, joined in (("super_resolution", 3), ("every damage", 4), ("inpainting", 4)):
        config = ask(tmp_path / "run", data, KINDS[kind]).config
        assert config.model.network.concat_channels == joined  # type: ignore[union-attr]
    assert ask(tmp_path / "run", data).config.model.network.concat_channels == 0  # type: ignore[union-attr]


def test_each_step_shows_the_network_what_a_user_would_bring_of_its_images(tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz")
    run = begin(tmp_path / "run", data, KINDS["inpainting"])
    told: list[Tensor] = []
    run.model.network.register_forward_pre_hook(lambda _, args, kwargs: told.append(kwargs["concat"]), with_kwargs=True)
    seen = []
    for step in range(2):
        drawn = run.batches.draw(step)
        run.objective.losses(run.parallel, drawn)
        given = drawn.batch.given
        assert given is not None and given.mask is not None
        assert torch.equal(told[-1], torch.cat([filled(drawn.batch.x0, given.mask), given.mask], 1))
        again = degrade(
            run.config.model.task, drawn.batch.x0, [seeds.rng(0, "train/degrade", step, i) for i in range(5)]
        )
        assert again is not None and torch.equal(again.mask, given.mask)  # type: ignore[arg-type]
        seen.append(given.mask)
    assert not torch.equal(*seen), "drawn anew each step"
    assert run.lock is not None
    run.lock.release()


@pytest.mark.parametrize(
    "settings, why",
    [
        ({**KINDS["super_resolution"], "model.network.concat_channels": 5}, "concat_channels = 5, but task"),
        ({**KINDS["super_resolution"], "model.task.scale": 3}, "cannot be shrunk by scale = 3"),
        ({**KINDS["inpainting"], "model.task.scale": 2}, "unknown key model.task.scale"),
        ({**KINDS["inpainting"], "train.objective": "classifier"}, "model.task"),
        ({"model.task.kind": "restoration"}, "unknown; allowed: generation"),
        ({"train.t_sampling": "continuous", "train.loss": "vlb", "train.weight": "simple"}, "continuous: the bound"),
        ({"train.t_sampling": "continuous", "model.schedule.kind": "flow"}, "continuous with schedule flow"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_task_is_refused(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(Error, match=why):
        ask(tmp_path / "run", images(tmp_path / "pictures.npz"), settings)


def test_continuous_times_lie_between_the_trained_ones(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", images(tmp_path / "p.npz"), {"train.t_sampling": "continuous"})
    level = run.objective.level(np.linspace(0, 0.999999, 4001))
    table = np.asarray(run.config.model.schedule.alpha_bar)  # type: ignore[union-attr]
    t, alpha_bar = level.t.numpy(), level.alpha.numpy() ** 2
    low, high = table[np.ceil(t).astype(int)], table[np.floor(t).astype(int)]
    assert ((low - 1e-12 <= alpha_bar) & (alpha_bar <= high + 1e-12)).all()
    assert np.mean(t != np.round(t)) > 0.9
    assert torch.allclose(level.alpha**2 + level.sigma**2, torch.ones_like(level.alpha))
    assert run.lock is not None
    run.lock.release()


@pytest.mark.parametrize("kind", ["super_resolution", "inpainting"])
def test_a_preview_shows_what_was_given_what_was_made_and_the_truth(kind: str, tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz")
    settings = {"train.preview_every": 2, "train.preview_pictures": 2, "train.preview_steps": 2, "train.max_steps": 2}
    go(tmp_path / "run", data, {**KINDS[kind], **settings})
    with Image.open(tmp_path / "run" / "samples" / "step-00000002.png") as image:
        assert image.size == (3 * 10 + 2, 2 * 10 + 2), "two rows of three images of 8 pixels"
        sheet = np.asarray(image)
    opened = kuosan.open_images(kuosan.DataConfig(str(data), size=8, hold_out=0.2))
    ids = opened.held_out[seeds.permutation(len(opened.held_out), 0, -1)][:2]
    for row, id in enumerate(ids):
        cells = [sheet[2 + 10 * row : 10 + 10 * row, 2 + 10 * i : 10 + 10 * i].astype(int) for i in range(3)]
        given, made, truth = cells
        assert np.array_equal(truth, opened.pixels(int(id)))
        if kind == "super_resolution":
            assert np.array_equal(given[::2, ::2], given[1::2, 1::2]), "small pixels as squares"
            assert np.abs(given - truth.reshape(4, 2, 4, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)).max() <= 1
        else:
            known = (given == truth).all(-1)
            assert 0 < known.sum() < known.size and np.array_equal(made[known], truth[known])


def test_the_shell_trains_restores_and_says_what_comes_next(tmp_path: Path) -> None:
    folder, run = image_folder(tmp_path / "pictures", side=16), tmp_path / "run"
    words = [word if word != "8" or QUICK[i - 1] == "--groups" else "16" for i, word in enumerate(QUICK)]
    said = shell("train", folder, "--task", "super_resolution", "--scale", "2", "--out", run, *words)
    assert said.code == 0, said
    assert "restore" in said.out.split("next:")[1] and "--upscale 2" in said.out
    small = tmp_path / "small.png"
    save_png(small, np.full((8, 8, 3), 77, np.uint8))
    said = shell("restore", run, small, "--upscale", 2, "--steps", 2, "--out", tmp_path / "out")
    assert said.code == 0, said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"small.png", "sheet.png", "request.json"}
    for home in (run, max((run / "checkpoints").iterdir())):  # its own factor goes without saying
        out = tmp_path / f"out of {home.name}"
        said = shell("restore", home, small, "--steps", 2, "--out", out)
        assert said.code == 0 and "upscale" in said.out, said
        with Image.open(out / "small.png") as ours, Image.open(tmp_path / "out" / "small.png") as said_so:
            assert ours.size == (16, 16) and ours.tobytes() == said_so.tobytes()
    opened = kuosan.load(run)
    few = torch.full((1, 3, 8, 8), 0.2)
    assert torch.equal(opened.restore(few, steps=2), opened.restore(few, steps=2, upscale=2))
    refused("restore", run, small, "--deblur", 2, naming=["deblur", "trained for super_resolution only"])
    for verb in (["sample", run], ["evaluate", run], ["invert", run, small]):
        refused(*verb, naming=["super_resolution", "kuosan restore"])


def test_super_resolution_learns_to_beat_enlarging(tmp_path: Path) -> None:
    """Images of flat squares: a few hundred steps of a tiny network know their edges, and bicubic does not."""
    draw = seeds.rng(1, "test/squares")
    flat = draw.integers(40, 216, (240, 4, 4, 3)).repeat(4, 1).repeat(4, 2)  # squares of 4: scale 4 sees each once
    shift = np.stack([np.roll(each, draw.integers(0, 4, 2), (0, 1)) for each in flat]).astype(np.uint8)
    np.savez(tmp_path / "squares.npz", images=shift)
    settings = {
        **SMALL, "data.size": 16, "model.task.kind": "super_resolution", "model.task.scale": 2, "train.batch": 16,
        "train.lr": 2e-3, "train.lr_shape": "constant", "model.prediction": "x0", "train.weight": "min_snr",
        "model.schedule.betas": "linear", "model.network.patch": 1,
        "train.max_steps": 250, "model.network.multipliers": [1, 1],
        "train.evaluate_every": 0, "train.save_every": 250, "model.network.attention": ["false", "false"],
    }  # fmt: skip
    go(tmp_path / "run", tmp_path / "squares.npz", settings)
    trained = kuosan.load(tmp_path / "run")
    x0 = kuosan.open_images(kuosan.DataConfig(str(tmp_path / "squares.npz"), size=16, hold_out=0.2))
    batch = x0.batch(x0.held_out[:32])
    given = degrade(SuperResolution(scale=2), batch.x0, [seeds.rng(5, "t", 0, i) for i in range(len(batch.x0))])
    assert given is not None
    made = trained.restore(given.image, upscale=2, steps=8)
    plain = torch.nn.functional.interpolate(given.image, (16, 16), mode="bicubic").clamp(-1, 1)
    ours, theirs = ((each - batch.x0).square().mean() for each in (made, plain))
    assert ours < 0.7 * theirs, (float(ours), float(theirs))


def test_a_network_of_ones_own_without_the_door_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz")
    with pytest.raises(Error, match="give forward a concat"):
        begin(tmp_path / "run", data, KINDS["inpainting"], network=OwnNetwork())
    assert not (tmp_path / "run").exists()


def test_a_preview_tells_each_image_its_own_class(tmp_path: Path) -> None:
    pixels = seeds.rng(0, "test/classed").integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "classed.npz", images=pixels, labels=np.arange(30) % 2)
    settings = {**KINDS["inpainting"], "model.task.labels": True, "model.task.drop": 0.0, "train.preview_every": 1,
                "train.preview_pictures": 3, "train.preview_steps": 1}  # fmt: skip
    run = begin(tmp_path / "run", tmp_path / "classed.npz", settings)
    assert run.monitor is not None and run.lock is not None
    images_, told = run.monitor.images, list[Tensor]()
    model = run.monitor.averaged_model(run.state.averaged())
    with patch.object(type(run.monitor), "averaged_model", return_value=model):
        model.network.register_forward_pre_hook(lambda _, args, kw: told.append(kw["label"]), with_kwargs=True)
        run.monitor.preview(run.state.averaged(), 1)
    order = seeds.permutation(len(images_.held_out), run.config.train.seed, -1)
    assert images_.labels is not None
    assert told[0].tolist() == images_.labels[images_.held_out[order][:3]].tolist()
    run.lock.release()
