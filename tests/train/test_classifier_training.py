"""Training a classifier: it learns, is judged by noise, goes on bit for bit, and refuses what it would ignore."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from kuosan import config as trees
from kuosan import seeds
from kuosan.data.dataset import Batch
from kuosan.data.pixels import save_png
from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error
from kuosan.models.model import ModelConfig, build
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.sample.pipeline import load
from kuosan.sample.plan import check_guides
from kuosan.sample.request import Request
from kuosan.storage import checkpoint
from kuosan.storage.log import Log
from kuosan.tasks.task import Generation
from kuosan.train.config import recipe
from kuosan.train.objective import Classification
from kuosan.train.report import draw
from kuosan.train.resolve import resolve
from train.made_runs import OwnNetwork, Stopping, ask, differences, go, outcome

SETTINGS: dict[str, Any] = {"train.objective": "classifier", "train.max_steps": 9, "train.preview_every": 0}


def labelled(path: Path, n: int = 60) -> Path:
    """Images of three classes, each bright in a channel of its own, on a noisy ground."""
    draw = seeds.rng(0, "test/labelled")
    label = np.arange(n) % 3
    images = draw.integers(0, 90, (n, 8, 8, 3)).astype(np.uint8)
    images[np.arange(n), :, :, label] += 160
    for i in range(n):
        folder = path / ["red", "green", "blue"][label[i]]
        folder.mkdir(parents=True, exist_ok=True)
        save_png(folder / f"{i:03}.png", images[i])
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("labelled"))


@pytest.mark.parametrize("noisy", [True, False])
def test_a_classifier_learns_and_its_run_says_how_well(data: Path, tmp_path: Path, noisy: bool) -> None:
    out = tmp_path / "run"
    settings: dict[str, Any] = {"train.max_steps": 60, "train.evaluate_every": 60, "train.batch": 20, "train.lr": 5e-3}
    if noisy:
        settings["model.schedule.betas"] = "linear"  # whose last eighth hides even these bright channels
    go(out, data, {**SETTINGS, **settings, "model.network.noisy": str(noisy).lower(), "train.evaluate_pictures": 64})
    *_, last = Log(out / "log.jsonl").rows()
    held = last["held_out"]
    assert held["loss"] < 1.0 < np.log(3) and held["accuracy"] > 0.6
    if noisy:
        assert len(held["accuracy_by_noise"]) == len(held["by_noise"]) == 8
        assert held["accuracy_by_noise"][0] > 0.9 and held["by_noise"][0] < 0.5 < held["by_noise"][7]
    else:
        assert held["accuracy"] > 0.9 and "by_noise" not in held
    trained = load(out)
    assert trained.model.config.task.class_names == ("blue", "green", "red")
    x = torch.full((1, 3, 8, 8), -0.7)
    x[:, 1] = 0.6
    clock = (torch.zeros(1),) if noisy else ()
    assert int(trained.model.network(x, *clock).argmax()) == trained.model.config.task.label("green")
    with pytest.raises(Error, match="classifier"):
        trained.sample(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_classifiers_run_stopped_goes_on_bit_for_bit(data: Path, tmp_path: Path, precision: str) -> None:
    settings = {**SETTINGS, "compute.precision": precision, "train.micro_batch": 2, "model.network.dropout": 0.1}
    go(tmp_path / "whole", data, settings)
    whole = outcome(tmp_path / "whole")
    assert {"loss", "by_noise", "accuracy", "accuracy_by_noise"} == set(whole["rows"][3]["held_out"])
    for k in (2, 5):
        assert go(tmp_path / f"at-{k}", data, settings, report=Stopping(k))
        go(tmp_path / f"at-{k}", data, settings)
        assert not differences(outcome(tmp_path / f"at-{k}"), whole)


def test_the_loss_is_the_cross_entropy_at_the_drawn_level(tmp_path: Path) -> None:
    config = ModelConfig(
        (3, 8, 8),
        ClassifierConfig(classes=4, channels=16, groups=8, multipliers=(1,), attention=(False,)),
        task=Generation(labels=True, drop=0.0, class_names=tuple("abcd")),
    )
    network = build(config).network
    objective = Classification(config, choose(ComputeConfig("cpu", "fp32")))
    eps = seeds.normal([(0, "eps", 0, i) for i in range(5)], (3, 8, 8))
    x0 = seeds.normal([(0, "x0", 0, i) for i in range(5)], (3, 8, 8)).clamp(-1, 1)
    u, label = np.array([0.0, 0.2, 0.5, 0.7, 0.999]), torch.tensor([0, 3, 2, 1, 1])
    level = objective.level(u)
    t = torch.tensor([0, 200, 500, 700, 999])
    assert torch.equal(level.t, t.double())
    alpha_bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[t].float()[:, None, None, None]
    with torch.no_grad():
        logits = network(alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps, t.float())
        judged = objective.validate(network, Batch(x0, torch.arange(5), label), level, eps)
    wanted = F.cross_entropy(logits, label, reduction="none").double()
    torch.testing.assert_close(judged["loss"], wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(judged["accuracy"], (logits.argmax(1) == label).double())
    assert judged["by_noise"] is judged["loss"] and judged["accuracy_by_noise"] is judged["accuracy"]


WITHOUT_EFFECT = [
    (
        {"train.weight": "min_snr"},
        "train.weight = min_snr has no effect with objective classifier: it",
    ),
    ({"train.preview_every": 100}, "train.preview_every = 100 has no effect"),
    ({"train.preview_steps": 5}, "train.preview_steps = 5 has no effect"),
    ({"model.prediction": "eps"}, "model.prediction = eps has no effect"),
    ({"model.learned_variance": "true"}, "model.learned_variance = True has no effect"),
    ({"model.sigma_data": 0.3}, "model.sigma_data = 0.3 has no effect"),
    ({"model.task.drop": 0.2}, "model.task.drop = 0.2 has no effect"),
    ({"model.task.labels": "false"}, "drop = 0.0 has no effect without classes or captions|model.task.labels = False"),
    ({"model.network.noisy": "false", "model.schedule.betas": "cosine"}, "model.schedule has no effect on a judge"),
    ({"model.network.classes": 7}, "model.network.classes = 7, but the data have 3"),
    ({"model.network.in_channels": 1}, "model.network.in_channels = 1, but the data have 3"),
    ({"model.network.kind": "unet"}, "model.network.kind = unet: objective classifier trains a classifier"),
    ({"train.objective": "classify"}, "train.objective = 'classify'"),
    ({"train.objective": "diffusion", "model.network.kind": "classifier"}, "trained with --objective classifier"),
]


@pytest.mark.parametrize(("settings", "message"), WITHOUT_EFFECT)
def test_what_a_classifier_would_ignore_is_refused(
    data: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(Error, match=message):
        ask(tmp_path / "run", data, {**SETTINGS, **settings})
    assert not (tmp_path / "run").exists()


def test_a_network_of_ones_own_is_no_classifier(data: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match="kind = own: objective classifier trains a classifier"):
        ask(tmp_path / "run", data, SETTINGS, OwnNetwork())


def test_images_without_classes_are_refused_at_the_start(tmp_path: Path) -> None:
    some, none = labelled(tmp_path / "some", n=20), labelled(tmp_path / "none", n=20)
    rows = [
        {"file_name": str(path.relative_to(some)), "label": path.parent.name} for path in sorted(some.rglob("*.png"))
    ]
    (some / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[4:]))
    with pytest.raises(Error, match=r"4 of 20 images have no class \(.*png\)"):
        go(tmp_path / "run", some, SETTINGS)
    for path in none.rglob("*.png"):
        path.rename(none / path.name)
    with pytest.raises(Error, match="the images have none"):
        go(tmp_path / "run", none, SETTINGS)


def test_a_configuration_of_a_run_says_all_and_starts_the_same_run(data: Path, tmp_path: Path) -> None:
    go(tmp_path / "run", data, {**SETTINGS, "train.max_steps": 2})
    tree = checkpoint.load_config(tmp_path / "run")
    assert tree["model"]["network"]["kind"] == "classifier" and tree["model"]["network"]["classes"] == 3
    assert tree["model"]["task"] == {
        "kind": "generation",
        "labels": True,
        "drop": 0.0,
        "class_names": ["blue", "green", "red"],
        "text": False,
    }
    assert tree["train"]["preview_every"] == 0 and tree["train"]["objective"] == "classifier"


def test_the_curve_shows_the_accuracy_beside_the_losses(tmp_path: Path) -> None:
    held = {"loss": 1.0, "by_noise": [0.5, None], "accuracy": 0.7, "accuracy_by_noise": [0.9, None]}
    widths = []
    for said in (held, {"loss": 1.0, "accuracy": 0.7}, {"loss": 1.0, "by_noise": [0.5, 0.9]}):
        draw([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4, "held_out": said}], tmp_path / "curve.png")
        with Image.open(tmp_path / "curve.png") as image:
            widths.append(image.width)
    assert widths[0] > widths[1] == widths[2]


def test_a_judge_of_clean_images_guides_nobody() -> None:
    request, names = Request(classifier="runs/judge"), tuple("ab")
    for noisy in (True, False):
        network = ClassifierConfig(classes=2, noisy=noisy)
        other = ModelConfig((3, 8, 8), network, task=Generation(labels=True, drop=0.0, class_names=names))
        with nullcontext() if noisy else pytest.raises(Error, match="'runs/judge' is a judge of clean images"):
            check_guides(ModelConfig((3, 8, 8)), request, other, None)


@pytest.mark.parametrize("name", ["fashion-mnist-judge", "fashion-mnist-classifier"])
def test_the_recipes_are_of_classifiers_that_fit_their_images(name: str) -> None:
    config = resolve(trees.load(recipe(name)), (1, 28, 28), classes=tuple("0123456789"))
    assert isinstance(config.model.network, ClassifierConfig)
    assert config.model.network.noisy is (name == "fashion-mnist-classifier")
