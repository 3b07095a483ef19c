"""Our U-Net computes what diffusers' UNet2DModel computes, with its weights carried over by the name table."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kuosan import config as trees
from kuosan import seeds
from kuosan.convert.diffusers import (
    config_from_diffusers,
    config_to_diffusers,
    name_table,
    unet_from_diffusers,
    unet_to_diffusers,
)
from kuosan.errors import Error
from kuosan.networks.config import UNetConfig
from kuosan.networks.unet import UNet

diffusers = pytest.importorskip("diffusers")

CIFAR10 = {  # config.json of google/ddpm-cifar10-32
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SMALL = {
    **CIFAR10,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 16,
}
ADM = {
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "block_out_channels": [16, 32, 64],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "attn_norm_num_groups": 8,
    "attention_head_dim": 8,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
}
SHAPES: dict[str, dict[str, Any]] = {
    "ddpm_small": SMALL,
    "heads": {**SMALL, "attention_head_dim": 8},
    "scale_shift": {**SMALL, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "no_middle_norm": {**SMALL, "resnet_time_scale_shift": "scale_shift", "attention_head_dim": 8},
    "adm_without_middle_norm": {**SMALL, **ADM, "attn_norm_num_groups": None},
    "attention_alone": {  # no middle, attention at every level, its own resampling beside convolutions
        **SMALL,
        "add_attention": False,
        "attention_head_dim": 16,
        "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
    },
    "symmetric_padding": {**SMALL, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0},
    "classes": {**SMALL, "num_class_embeds": 5},
    "no_middle_attention": {**SMALL, "add_attention": False, "attention_head_dim": 8},
    "adm": {**SMALL, **ADM},
    "one_level": {
        **SMALL,
        "block_out_channels": [16],
        "down_block_types": ["AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D"],
    },
    "learned_variance": {**SMALL, "in_channels": 1, "out_channels": 2, "layers_per_block": 3},
}


def peer(config: dict[str, Any]) -> Any:
    """A UNet2DModel whose every weight is random, the norms' too."""
    model = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.from_numpy(seeds.rng(3, name).standard_normal(tuple(weight.shape), dtype=np.float32))
            weight.copy_(noise * (1 / weight[0].numel() ** 0.5 if weight.ndim > 1 else 0.1))
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
    return model


def inputs(config: dict[str, Any], batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    side = config["sample_size"]
    x = seeds.normal([(1, "x", 0, i) for i in range(batch)], (config["in_channels"], side, side))
    label = {"label": torch.arange(batch)} if config.get("num_class_embeds") else {}
    return x, torch.tensor([3.0, 997.5])[:batch], label


def both(config: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    model, (x, t, label) = peer(config), inputs(config)
    ours, state = unet_from_diffusers(model.config, model.state_dict())
    network = UNet(ours)
    network.load_state_dict(state)
    with torch.no_grad():
        return network.eval()(x, t, **label), model(x, t, class_labels=label.get("label")).sample


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_equal_those_of_diffusers(name: str) -> None:
    ours, theirs = both(SHAPES[name])
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5


def test_outputs_equal_those_of_diffusers_at_the_ddpm_cifar10_shape() -> None:
    ours, theirs = both(CIFAR10)
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_equal_those_of_diffusers(name: str) -> None:
    model, (x, t, label) = peer(SHAPES[name]), inputs(SHAPES[name])
    ours, state = unet_from_diffusers(model.config, model.state_dict())
    network = UNet(ours)
    network.load_state_dict(state)
    network(x, t, **label).square().sum().backward()
    model(x, t, class_labels=label.get("label")).sample.square().sum().backward()
    theirs = {key: weight.grad for key, weight in model.named_parameters()}
    _, gradients = unet_to_diffusers(ours, {key: weight.grad for key, weight in network.named_parameters()})
    gradients.update({k: v[:-1] for k, v in gradients.items() if k.startswith("class_embedding")})
    for key, gradient in gradients.items():
        assert (gradient - theirs[key]).abs().max() <= 1e-4 * (1 + theirs[key].abs().max()), key


@pytest.mark.parametrize("name", SHAPES)
def test_every_weight_is_used_exactly_once(name: str) -> None:
    model = peer(SHAPES[name])
    ours, _ = unet_from_diffusers(model.config, model.state_dict())
    used = [part for parts in name_table(ours).values() for part in parts]
    assert len(used) == len(set(used))
    assert set(used) == set(model.state_dict())


@pytest.mark.parametrize("name", SHAPES)
def test_the_way_back_gives_a_diffusers_model_with_equal_outputs(name: str) -> None:
    model, (x, t, label) = peer(SHAPES[name]), inputs(SHAPES[name])
    ours, state = unet_from_diffusers(model.config, model.state_dict())
    config, weights = unet_to_diffusers(ours, state)
    back = diffusers.UNet2DModel.from_config(config).eval()
    back.load_state_dict(weights)
    with torch.no_grad():
        args = {"class_labels": label.get("label")}
        assert torch.equal(back(x, t, **args).sample, model(x, t, **args).sample)


def test_the_null_label_of_an_imported_network_adds_nothing() -> None:
    model = peer(SHAPES["classes"])
    ours, state = unet_from_diffusers(model.config, model.state_dict())
    assert ours.classes == 5 and ours.null_label == 5
    assert state["encoder.label.weight"].shape[0] == 6
    assert state["encoder.label.weight"][5].abs().sum() == 0


def test_old_attention_names_and_shapes_are_accepted() -> None:
    model = peer(SMALL)
    old = {}
    for name, weight in model.state_dict().items():
        for new_part, old_part in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value.")):
            name = name.replace(new_part, old_part)
        old[name.replace(".to_out.0.", ".proj_attn.")] = weight
    assert old.keys() != model.state_dict().keys()
    _, state = unet_from_diffusers(model.config, old)
    square = re.compile(r"attentions\.\d+\.(query|key|value|proj_attn)\.weight")
    wide = {name: w[..., None, None] if square.search(name) else w for name, w in old.items()}
    _, convolutions = unet_from_diffusers(model.config, wide)
    _, modern = unet_from_diffusers(model.config, model.state_dict())
    for name, weight in modern.items():
        assert torch.equal(weight, state[name]) and torch.equal(weight, convolutions[name])


def test_unknown_and_missing_weights_are_named() -> None:
    model = peer(SMALL)
    weights = dict(model.state_dict())
    with pytest.raises(Error, match=r"1 unknown: stranger\.weight"):
        unet_from_diffusers(model.config, weights | {"stranger.weight": torch.zeros(1)})
    del weights["conv_in.bias"]
    with pytest.raises(Error, match=r"1 missing: conv_in\.bias"):
        unet_from_diffusers(model.config, weights)
    weights["conv_in.bias"] = torch.zeros(3)
    with pytest.raises(Error, match=r"conv_in\.bias has shape \(3,\)"):
        unet_from_diffusers(model.config, weights)


REFUSED = [
    ("center_input_sample", True),
    ("time_embedding_type", "fourier"),
    ("time_embedding_dim", 100),
    ("mid_block_type", None),
    ("mid_block_scale_factor", 2**0.5),
    ("act_fn", "gelu"),
    ("class_embed_type", "timestep"),
    ("downsample_padding", 2),
    ("resnet_time_scale_shift", "spatial"),
    ("block_out_channels", [16, 24]),
    ("down_block_types", ["SkipDownBlock2D", "AttnDownBlock2D"]),
    ("up_block_types", ["UpBlock2D", "AttnUpBlock2D"]),
    ("downsample_type", "resnet"),
    ("attn_norm_num_groups", 4),
    ("norm_num_groups", None),
    ("cross_attention_dim", 768),
]


@pytest.mark.parametrize(("option", "value"), REFUSED)
def test_an_option_we_do_not_have_is_refused_by_name(option: str, value: object) -> None:
    types = {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}
    config = {**SMALL, **(types if option == "downsample_type" else {}), option: value}
    with pytest.raises(Error, match=option):
        unet_from_diffusers(config, {})


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("down_block_types", name)
        for name in ("SkipDownBlock2D", "AttnSkipDownBlock2D", "KDownBlock2D", "FIRDownBlock2D")
    ]
    + [("up_block_types", name) for name in ("SkipUpBlock2D", "AttnSkipUpBlock2D", "KUpBlock2D", "CrossAttnUpBlock2D")]
    + [("downsample_type", "fir"), ("upsample_type", "fir")],
)
def test_blocks_we_do_not_have_are_refused_by_name(option: str, kind: str) -> None:
    value = {"down_block_types": [kind, "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", kind]}.get(option, kind)
    attending = {"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2}
    with pytest.raises(Error, match=kind):
        unet_from_diffusers({**SMALL, **attending, option: value}, {})


def test_a_middle_norm_is_of_self_attention_alone() -> None:
    with pytest.raises(Error, match="middle_norm is False"):
        UNetConfig(middle_norm=False, context_width=8)
    with pytest.raises(Error, match="middle_norm is False"):
        config_to_diffusers(UNetConfig(middle_norm=False))


@pytest.mark.parametrize(("field", "value"), [("concat_channels", 3), ("patch", 2)])
def test_inputs_that_diffusers_lacks_are_refused_on_the_way_out(field: str, value: int) -> None:
    with pytest.raises(Error, match=field):
        unet_to_diffusers(UNetConfig(**{field: value}), {})


def test_what_is_written_is_opened_by_diffusers_and_makes_images_in_its_pipeline(tmp_path: Path) -> None:
    for name, config in SHAPES.items():
        model = peer(config)
        theirs, weights = unet_to_diffusers(*unet_from_diffusers(model.config, model.state_dict()))
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(theirs))
        save_file(weights, tmp_path / name / "diffusion_pytorch_model.safetensors")
        opened = diffusers.UNet2DModel.from_pretrained(tmp_path / name)
        if opened.config.num_class_embeds or opened.config.in_channels != opened.config.out_channels:
            continue  # diffusers' pipeline of pixels hands over no class and knows no learned variance
        pipeline = diffusers.DDPMPipeline(opened, diffusers.DDPMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(batch_size=1, num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images
        side = config["sample_size"]
        assert made.shape == (1, side, side, 3) and np.isfinite(made).all()


# numbers of a config.json that change neither weights nor outputs here, and must come back
IDLE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"sample_size": 16}),
    ({"sample_size": [16, 24]}, {"sample_size": (16, 24)}),
    ({"sample_size": None}, {"sample_size": None}),
    ({"num_train_timesteps": 1000}, {"num_train_timesteps": 1000}),
    ({"time_embedding_dim": 64}, {"time_embedding_dim": 64}),
    ({"attn_norm_num_groups": None}, {"attn_norm_num_groups": None}),
    ({"attn_norm_num_groups": 8}, {"attn_norm_num_groups": 8}),
    ({"dropout": 0.13}, {"dropout": 0.13}),
    ({"norm_eps": 3e-7}, {"norm_eps": 3e-7}),
    ({"freq_shift": 0.5}, {"freq_shift": 0.5}),
    ({"mid_block_scale_factor": 1}, {"mid_block_scale_factor": 1}),
    ({"center_input_sample": False}, {"center_input_sample": False}),
    (
        {
            "add_attention": False,
            "attention_head_dim": 8,
            "down_block_types": ["DownBlock2D"] * 2,
            "up_block_types": ["UpBlock2D"] * 2,
        },
        {"attention_head_dim": 8},
    ),
    ({**ADM, "block_out_channels": [16, 32, 64], "downsample_padding": 0}, {"downsample_padding": 0}),
    ({"num_class_embeds": 5}, {"num_class_embeds": 6}),  # our null label is one more
]


@pytest.mark.parametrize(("change", "wanted"), IDLE, ids=lambda value: "-".join(value) or "as it is")
def test_no_number_that_was_read_is_lost(change: dict[str, Any], wanted: dict[str, Any]) -> None:
    given = {**SMALL, **change}
    back = config_to_diffusers(config_from_diffusers(given))
    assert {name: back[name] for name in wanted} == wanted
    for name, value in given.items():
        if name not in wanted and not isinstance(value, str | list):
            assert back[name] == value, name
    # through the settings of a run, which are YAML and JSON
    stored = trees.build(UNetConfig, json.loads(json.dumps(trees.plain(config_from_diffusers(given)))))
    assert config_to_diffusers(stored) == back


def test_numbers_of_a_network_that_was_changed_are_not_said_of_the_new_one() -> None:
    given = {**SMALL, "time_embedding_dim": 64, "sample_size": 16}
    wider = replace(config_from_diffusers(given), channels=32)
    back = config_to_diffusers(wider)
    assert "time_embedding_dim" not in back and back["sample_size"] == 16 and back["block_out_channels"] == (32, 64)


def test_a_network_of_our_own_gets_the_size_that_is_named() -> None:
    config = UNetConfig(channels=16, multipliers=(1, 2), attention=(False, True), groups=8, blocks=1)
    assert "sample_size" not in config_to_diffusers(config)
    assert config_to_diffusers(config, 48)["sample_size"] == 48
    theirs = config_to_diffusers(config, (48, 64))
    pipeline = diffusers.DDPMPipeline(diffusers.UNet2DModel(**theirs), diffusers.DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=1, num_inference_steps=1, output_type="np").images.shape == (1, 48, 64, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_precision_both_ways(dtype: torch.dtype) -> None:
    model = peer(SHAPES["classes"])
    state = {name: weight.to(dtype) for name, weight in model.state_dict().items()}
    _, back = unet_to_diffusers(*unet_from_diffusers(model.config, state))
    rows = back.pop("class_embedding.weight")
    assert torch.equal(rows[:-1], state.pop("class_embedding.weight")) and rows.dtype == dtype
    assert back.keys() == state.keys()
    for name, weight in state.items():
        assert torch.equal(back[name], weight) and back[name].dtype == dtype and back[name].is_contiguous()
