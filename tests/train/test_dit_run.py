"""A transformer in place of the U-Net: chosen by one word, trained, resumed bit for bit, saved and sampled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from made_runs import SMALL, Stopping, differences, go, images, outcome

from kuosan import config as trees
from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error
from kuosan.models.model import ModelConfig, build
from kuosan.networks.config import DiTConfig, default_dit
from kuosan.networks.dit import DiT
from kuosan.sample import pipeline
from kuosan.train.config import RunConfig
from kuosan.train.resolve import resolve

TREE = {"network": {"kind": "dit"}}


def resolved(model: Mapping[str, Any], shape: tuple[int, int, int] = (3, 32, 32), **more: Any) -> RunConfig:
    return resolve({"model": {**TREE, **model}}, shape, **more)


def test_one_word_chooses_it_and_the_rest_follows_from_the_images_and_the_size() -> None:
    assert resolved({}).model.network == default_dit((3, 32, 32), "small")
    assert resolved({}, (1, 16, 24), size="tiny").model.network == default_dit((1, 16, 24), "tiny")
    deeper = resolved({"network": {"kind": "dit", "depth": 3}}, size="medium").model.network
    assert isinstance(deeper, DiTConfig) and (deeper.depth, deeper.width) == (3, 384)
    labelled = resolved({"task": {"labels": True}}, classes=("cat", "dog")).model
    assert labelled.network.classes == 2 and labelled.task.class_names == ("cat", "dog")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        ({"patch": 3}, (3, 32, 32), r"32 x 32 do not fit.*multiples of 3.*another --model.network.patch"),
        ({"in_channels": 1}, (3, 32, 32), "in_channels = 1, but the images have 3"),
        ({"classes": 2}, (3, 32, 32), "classes = 2, but 0 classes are trained on"),
        ({"concat_channels": 2}, (3, 32, 32), "concat_channels = 2, but task generation joins 0"),
        ({"multipliers": [1, 2]}, (3, 32, 32), r"multipliers.*kind dit"),
        ({"heads": 7}, (3, 32, 32), "DiTConfig.heads is 7"),
    ],
)
def test_what_does_not_fit_is_refused(network: dict[str, Any], shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(Error, match=message):
        resolved({"network": {"kind": "dit", **network}}, shape)


def test_a_model_is_built_from_what_a_checkpoint_would_hold() -> None:
    config = resolved({}, size="tiny").model
    again = trees.build(ModelConfig, trees.plain(config))
    assert again == config
    network = build(again, seed=3).network
    assert isinstance(network, DiT)
    assert torch.equal(network.blocks[0].qkv.weight, DiT(config.network, 3).blocks[0].qkv.weight)  # type: ignore[arg-type,union-attr]


SETTINGS = {
    "model.network.kind": "dit",
    "model.network.width": 16,
    "model.network.depth": 2,
    "model.network.heads": 2,
    "model.prediction": "v",  # of which six steps make something of contrast
    "train.max_steps": 6,
}


def test_a_run_is_resumed_bit_for_bit_and_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in SMALL if key.startswith("model.network.")]:
        monkeypatch.delitem(SMALL, key)  # a U-Net's
    data = images(tmp_path / "data.npz")
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    go(whole, data, SETTINGS)
    go(halved, data, SETTINGS, report=Stopping(3))
    go(halved, data, SETTINGS)
    assert not differences(outcome(whole), outcome(halved))
    opened = pipeline.load(whole, compute=choose(ComputeConfig(device="cpu", precision="fp32")))
    assert opened.model.network.exit.out.weight.abs().sum() > 0  # type: ignore[union-attr]
    made = opened.sample(2, seed=5, steps=4)
    assert made.shape == (2, 3, 8, 8) and made.std() > 0.1
    beside = opened.sample(5, seed=5, steps=4)
    assert (made - beside[:2]).abs().max() < 1e-4  # an image is a function of its seed
