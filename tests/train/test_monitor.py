"""Held-out losses: training's own weight over all levels, and images from everywhere in the held-out part."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kuosan.data.config import Buckets
from kuosan.data.dataset import Batch
from kuosan.device import ComputeConfig, choose
from kuosan.diffusion.loss import simple_loss
from kuosan.models.model import Model, ModelConfig, OwnNetwork
from kuosan.train.config import TrainConfig
from kuosan.train.monitor import Monitor
from kuosan.train.objective import Diffusion


class Constant(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x, t):
        return self.value.expand_as(x)


class Held:
    """Held-out images whose brightness is their number, and a record of which were asked for."""

    shape = (1, 4, 4)
    held_out = np.arange(200)
    buckets = Buckets(((4, 4),), np.zeros(200, np.int64))

    def __init__(self):
        self.asked: list[int] = []

    def batch(self, ids, keys=None):
        self.asked += [int(id) for id in ids]
        x0 = torch.tensor(np.asarray(ids) / 100.0 - 1).float().reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
        return Batch(x0, torch.as_tensor(np.asarray(ids)))


class Captioned(Held):
    """Held-out images of which every third alone has a caption, and no other is trained on."""

    train = np.arange(0)
    captions = tuple(f"number ({i})" if i % 3 == 0 else None for i in range(200))

    def only(self, shape):
        return self


def test_a_preview_is_told_the_captions_of_the_images_it_shows(tmp_path):
    watch = replace(monitor(tmp_path, "simple"), images=Captioned(), texts=object())
    shown = [int(i) for i in watch._shown(5)]
    assert len(shown) == 5 and all(i % 3 == 0 for i in shown)
    assert watch._prompts(5) == tuple(rf"number \({i}\)" for i in shown)


def monitor(tmp_path, weight: str, images: int = 200):
    config = ModelConfig((1, 4, 4), OwnNetwork(name="Constant"), prediction="x0")
    train = TrainConfig(weight=weight, evaluate_images=images)
    objective = Diffusion(config, train, choose(ComputeConfig("cpu", "fp32")))
    return Monitor(tmp_path, Model(config, Constant()), Held(), train, objective)


@pytest.mark.parametrize("weight", ["simple", "min_snr"])
def test_the_held_out_loss_has_the_weight_of_training(tmp_path, weight):
    watch = monitor(tmp_path, weight)
    seen = []

    def record(network, prediction, x0, level, eps, **options):
        losses = simple_loss(network, prediction, x0, level, eps, **options)
        seen.append(simple_loss(network, prediction, x0, level, eps, **{**options, "weight_name": weight}))
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kuosan.train.objective.simple_loss", record)
        held = watch.validate(watch.model.network.state_dict())
    assert held["loss"] == pytest.approx(float(torch.cat(seen).double().mean()), rel=1e-6)


def test_a_part_of_the_held_out_images_is_drawn_from_all_of_them(tmp_path):
    watch = monitor(tmp_path, "simple", images=40)
    watch.validate(watch.model.network.state_dict())
    first = watch.images.asked
    assert len(set(first)) == 40 and max(first) > 150
    again = replace(watch, images=Held())
    again.validate(again.model.network.state_dict())
    assert again.images.asked == first


def test_without_held_out_images_there_is_no_loss(tmp_path):
    watch = monitor(tmp_path, "simple")
    watch.images = SimpleNamespace(held_out=np.array([], dtype=int))
    assert watch.validate({}) is None
