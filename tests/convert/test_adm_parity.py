"""Our networks compute what guided-diffusion's do.

`adm.json` holds the outputs of its public code (github.com/openai/guided-diffusion, commit 22e0df81) for weights that
`adm_weights.drawn` makes of their names, an x drawn likewise, t = 3 and 977, and labels 7 and 999.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from convert.adm_weights import drawn
from kuosan.convert.adm import (
    adm_classifier_config,
    adm_unet_config,
    classifier_from_adm,
    classifier_table,
    unet_from_adm,
    unet_table,
)
from kuosan.errors import Error
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.networks.config import UNetConfig
from kuosan.networks.unet import Classifier, UNet

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "adm.json").read_text())
FLAGS: dict[str, dict[str, Any]] = {
    "adm": {
        "num_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": "1,2",
        "attention_resolutions": "32",
        "num_head_channels": 16,
        "class_cond": True,
        "learn_sigma": True,
        "resblock_updown": True,
        "use_new_attention_order": True,
    },
    "old_order": {
        "num_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": "1,2",
        "attention_resolutions": "64,32",
        "resblock_updown": True,
    },
    "convolutions": {
        "num_channels": 32,
        "channel_mult": "1,2",
        "attention_resolutions": "32",
        "num_head_channels": 32,
        "use_scale_shift_norm": False,
    },
}


def weights(name: str) -> dict[str, torch.Tensor]:
    return drawn(RECORDED[name]["shapes"])


def given() -> tuple[torch.Tensor, torch.Tensor]:
    return drawn({"x": [2, 3, 8, 8]})["x"] * 8, torch.tensor([3.0, 977.0])


def classifier_config(name: str) -> ClassifierConfig:
    pool, up = ("attention", True) if name == "classifier" else ("adaptive", False)
    flags = {"classifier_depth": 1, "classifier_pool": pool, "classifier_resblock_updown": up}
    on = (True, True) if pool == "attention" else (False, True)
    side = 4 if pool == "attention" else 0
    small = {
        "channels": 32,
        "multipliers": (1, 2),
        "attention": on,
        "classes": 12,
        "head_channels": 16,
        "pool_side": side,
    }
    return replace(adm_classifier_config(flags), **small)


@pytest.mark.parametrize("name", FLAGS)
def test_the_unets_outputs_equal_the_recorded_ones(name: str) -> None:
    config = adm_unet_config(FLAGS[name])
    network = UNet(config).eval()
    new_order = FLAGS[name].get("use_new_attention_order", False)
    network.load_state_dict(unet_from_adm(config, weights(name), new_order=new_order))
    x, t = given()
    label = {"label": torch.tensor([7, 999])} if config.classes else {}
    with torch.no_grad():
        out = network(x, t, **label)
    theirs = torch.tensor(RECORDED[name]["output"]).view_as(out)
    assert theirs.std() > 0.1
    assert (out - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["classifier", "classifier_mean"])
def test_the_classifiers_logits_equal_the_recorded_ones(name: str) -> None:
    config = classifier_config(name)
    network = Classifier(config).eval()
    network.load_state_dict(classifier_from_adm(config, weights(name)))
    x, t = given()
    with torch.no_grad():
        logits = network(x, t)
    theirs = torch.tensor(RECORDED[name]["output"]).view_as(logits)
    assert theirs.std() > 0.1
    assert (logits - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("name", RECORDED)
def test_every_weight_is_used_exactly_once(name: str) -> None:
    table = unet_table(adm_unet_config(FLAGS[name])) if name in FLAGS else classifier_table(classifier_config(name))
    used = [part for parts in table.values() for part in parts]
    assert len(used) == len(set(used)) and set(used) == set(RECORDED[name]["shapes"])


def test_the_order_of_attention_is_not_the_same() -> None:
    config = adm_unet_config(FLAGS["old_order"])
    one, other = (unet_from_adm(config, weights("old_order"), new_order=order) for order in (True, False))
    differing = {name for name in one if not torch.equal(one[name], other[name])}
    assert differing and all(".qkv." in name for name in differing)


def test_a_published_pair_has_its_papers_shapes() -> None:
    flags = {  # of the 64 x 64 model in its README
        "attention_resolutions": "32,16,8",
        "class_cond": True,
        "dropout": 0.1,
        "image_size": 64,
        "learn_sigma": True,
        "noise_schedule": "cosine",
        "num_channels": 192,
        "num_head_channels": 64,
        "num_res_blocks": 3,
        "resblock_updown": True,
        "use_fp16": True,
        "use_new_attention_order": True,
        "use_scale_shift_norm": True,
    }
    config = adm_unet_config(flags)
    assert config == UNetConfig(
        out_channels=6,
        channels=192,
        multipliers=(1, 2, 3, 4),
        blocks=3,
        attention=(False, True, True, True),
        head_channels=64,
        time_conditioning="scale_shift",
        resample="block",
        dropout=0.1,
        classes=1000,
    )
    with torch.device("meta"):  # 296 M in the paper, table 4; ours has a null label's row more
        assert sum(each.numel() for each in UNet(config).parameters()) == 295_904_454 + 768
    judge = adm_classifier_config({"classifier_depth": 4})
    with torch.device("meta"):
        assert sum(each.numel() for each in Classifier(judge).parameters()) == 65_438_568
    assert (judge.pool_side, judge.multipliers, judge.classes, judge.blocks) == (8, (1, 2, 3, 4), 1000, 4)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("image_size", 512),
        ("image_size", 100),
        ("num_heads_upsample", 2),
        ("channel_mult", "1,x"),
        ("attention_resolutions", "16,,8"),
        ("num_channels", "many"),
        ("mystery", 1),
    ],
)
def test_a_flag_that_we_cannot_follow_is_refused_by_name(flag: str, value: object) -> None:
    with pytest.raises(Error, match=flag.replace("_", ".")):
        adm_unet_config({flag: value})


def test_weights_and_classifiers_that_do_not_fit_are_named() -> None:
    config = adm_unet_config(FLAGS["adm"])
    held = weights("adm")
    with pytest.raises(Error, match=r"1 unknown: stranger"):
        unet_from_adm(config, {**held, "stranger": torch.zeros(1)}, new_order=True)
    del held["out.2.bias"]
    with pytest.raises(Error, match=r"1 missing: out\.2\.bias"):
        unet_from_adm(config, held, new_order=True)
    with pytest.raises(Error, match="classifier_pool"):
        adm_classifier_config({"classifier_pool": "spatial"})
    network = Classifier(classifier_config("classifier"))
    with pytest.raises(Error, match="ends in 8x8 cells and attends over 4x4"):
        network(torch.randn(1, 3, 16, 16), torch.tensor(1.0))
    with pytest.raises(Error, match="pool_side is -1"):
        ClassifierConfig(pool_side=-1)
