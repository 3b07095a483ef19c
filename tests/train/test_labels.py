"""Class-conditional training: who is told which class, that it resumes, and that the class is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kuosan
from kuosan import seeds
from kuosan.errors import Error
from kuosan.models.model import ModelConfig
from kuosan.storage import checkpoint
from kuosan.tasks.task import Generation
from kuosan.train.report import SilentTraining
from shell import QUICK, image_folder, refused
from shell import kuosan as shell
from train.made_runs import Stopping, ask, begin, differences, go, outcome

LABELS = {"train.max_steps": 8, "model.task.labels": True}


@pytest.fixture
def classed(tmp_path: Path) -> Path:
    """An npz of 30 images of three classes, one of them rare."""
    path = tmp_path / "classed.npz"
    pixels = seeds.rng(0, "test/classed").integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.array([7] * 15 + [8] * 12 + [10] * 3))
    return path


def test_the_data_give_the_names_and_the_networks_classes(tmp_path, classed):
    model = ask(tmp_path / "run", classed, LABELS).config.model
    assert model.task == Generation(labels=True, drop=0.1, class_names=("7", "8", "10"))
    assert model.network.classes == 3
    assert not ask(tmp_path / "run", classed, {}).config.model.task.labels


def test_labels_of_images_without_classes_are_refused(tmp_path):
    folder = image_folder(tmp_path / "plain")
    refused(
        "train", folder, "--labels", "--out", tmp_path / "run", *QUICK, naming=["classes are asked for", "own folder"]
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"model.task.class_names": ["a", "b", "c"]}, "the data give them"),
        ({"model.network.classes": 5}, "classes = 5, but 3"),
        ({"model.task.drop": 1.5}, "drop = 1.5"),
    ],
)
def test_what_contradicts_the_data_is_refused(tmp_path, classed, settings, why):
    with pytest.raises(Error, match=why):
        ask(tmp_path / "run", classed, {**LABELS, **settings})


def test_a_drop_without_labels_is_refused(tmp_path, classed):
    with pytest.raises(Error, match="no effect without classes or captions"):
        ask(tmp_path / "run", classed, {"model.task.drop": 0.2})


def test_a_labelled_run_stopped_at_any_step_goes_on_bit_for_bit(tmp_path, classed):
    go(tmp_path / "whole", classed, LABELS)
    go(tmp_path / "parts", classed, LABELS, report=Stopping(at=4))
    go(tmp_path / "parts", classed, LABELS)
    assert not differences(outcome(tmp_path / "whole"), outcome(tmp_path / "parts"))


def test_each_step_tells_the_network_its_images_classes_save_for_the_dropped_ones(tmp_path, classed):
    run = begin(tmp_path / "run", classed, {**LABELS, "model.task.drop": 0.5})
    told: list[Tensor] = []
    network = run.model.network
    network.register_forward_pre_hook(lambda _, args, kwargs: told.append(kwargs["label"]), with_kwargs=True)
    right = dropped = 0
    for step in range(8):
        drawn = run.batches.draw(step)
        run.objective.losses(network, drawn)
        assert drawn.batch.label is not None
        wanted = torch.where(torch.from_numpy(drawn.drop < 0.5), 3, drawn.batch.label)
        assert torch.equal(told[-1], wanted)
        right, dropped = right + int((wanted < 3).sum()), dropped + int((wanted == 3).sum())
    run.lock.release()
    assert right > 8 and dropped > 8


def test_a_run_from_before_there_were_tasks_goes_on(tmp_path, classed):
    """A save whose configuration knows nothing of `model.task` holds what the default says."""
    go(tmp_path / "run", classed, {"train.max_steps": 3})
    config = checkpoint.load_config(tmp_path / "run")
    del config["model"]["task"]
    from kuosan.config import plain
    from kuosan.train.resume import refuse_changes

    now = plain(ask(tmp_path / "run", classed, {"train.max_steps": 3}).config)
    assert refuse_changes(config, now, "run") == []


class Told(nn.Module):
    """A network of a user's own that takes the label too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rows = nn.Conv2d(1, 1, 3, padding=1), nn.Embedding(3, 1)
        with torch.no_grad():  # two classes that clipping does not make one
            self.rows.weight.copy_(torch.tensor([[-0.4], [0.4], [0.0]]))
            self.layer.weight.mul_(0.1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + self.rows(label)[:, :, None, None]
        return out


def shades(n: int = 40) -> Any:
    """Dark and light flat images with their classes."""
    label = torch.arange(n) % 2
    x = (0.15 + 0.7 * label)[:, None, None, None].expand(-1, 1, 8, 8).clone()
    return torch.utils.data.TensorDataset(x, label)


def test_a_network_of_ones_own_is_told_the_label(tmp_path):
    run = kuosan.fit(
        Told(), shades(), tmp_path / "run", report=SilentTraining(), max_steps=2, batch=4, labels=True, preview_every=0
    )
    trained = kuosan.load(run, network=Told())
    a, b = (trained.sample(1, steps=2, classes=[name]) for name in "01")
    assert not torch.equal(a, b)
    assert trained.model.config.task.class_names == ("0", "1")


def test_a_class_is_learned(tmp_path):
    """Dark and light images: after a short training each class has its own shade, and guidance drives them apart."""
    settings = {"model.network.channels": 32, "model.network.groups": 8, "model.network.multipliers": [1]}
    settings |= {"model.network.attention": ["false"], "model.network.head_channels": 32}
    # flat images show their class at every level but the noisiest: those must count for the class to be needed
    settings |= {"model.schedule.betas": "linear", "weight": "simple", "lr_shape": "constant"}
    run = kuosan.fit(
        None, shades(), tmp_path / "run", report=SilentTraining(), max_steps=120, batch=16, labels=True, lr=3e-3,
        warmup=10, preview_every=0, evaluate_every=0, precision="fp32", prediction="x0", **settings,
    )  # fmt: skip
    trained = kuosan.load(run)
    dark, light, none = (float(trained.sample(8, steps=8, classes=[c]).mean()) for c in ("0", "1", "none"))
    assert abs(dark - -0.7) < 0.15 and abs(light - 0.7) < 0.15, (dark, light)
    assert dark < none < light
    assert ModelConfig().task == Generation()


def test_the_shell_makes_images_of_a_class_and_refuses_an_unknown_one(tmp_path):
    folder = tmp_path / "pets"
    for name in ("cat", "dog"):
        image_folder(folder / name)
    run = tmp_path / "run"
    assert shell("train", folder, "--labels", "--out", run, *QUICK).code == 0
    said = shell("sample", run, "-n", 3, "--class", "dog", "--class", "cat", "--guidance", 2, "--steps", 2)
    assert said.code == 0, said
    again = next((run / "samples").rglob("seed-00000001.png"))
    assert shell("sample", "--like", again).code == 0
    assert again.read_bytes() == again.with_name("seed-00000001-again.png").read_bytes()
    refused("sample", run, "--class", "bird", naming=["'bird'", "cat, dog, none"])
    refused("sample", run, "--negative", "cat", naming=["without guidance"])


def test_a_short_training_heeds_the_classes(tmp_path: Path) -> None:
    labels = np.arange(400) % 4
    noise = np.random.default_rng(0).integers(0, 60, (400, 8, 8, 1))
    noise[np.arange(400), 2 * labels] += 150  # a bar, where the class says
    np.savez(tmp_path / "bars.npz", images=noise.astype(np.uint8), labels=labels)
    settings = {"max_steps": 150, "preview_every": 0, "evaluate_every": 0, "labels": True, "threads": 1}
    run = kuosan.fit(data=tmp_path / "bars.npz", out=tmp_path / "run", size="tiny", **settings)
    asked = np.arange(32) % 4
    made = kuosan.load(run).sample(32, classes=asked.tolist(), steps=10)[:, 0].numpy()
    assert (made.mean(2)[:, ::2].argmax(1) == asked).mean() >= 0.9
