"""Our U-Net computes what diffusers' UNet2DConditionModel does: Stable Diffusion 1, 2, XL, its refiner, inpainting."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from kuosan import config as trees
from kuosan import seeds
from kuosan.convert.unet import (
    config_from_diffusers,
    config_to_diffusers,
    name_table,
    unet_from_diffusers,
    unet_to_diffusers,
)
from kuosan.errors import Error
from kuosan.networks.config import UNetConfig
from kuosan.networks.layers import size_vector
from kuosan.networks.unet import UNet

diffusers = pytest.importorskip("diffusers")

SD1: dict[str, Any] = {  # Stable Diffusion 1's config.json, narrow: attention_head_dim is how many heads there are
    "act_fn": "silu",
    "attention_head_dim": 2,
    "block_out_channels": [16, 32, 32],
    "center_input_sample": False,
    "cross_attention_dim": 12,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 8,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SD2 = {
    **SD1,
    "attention_head_dim": [2, 4, 4],
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "upcast_attention": True,
    "use_linear_projection": True,
}
SDXL = {
    **SD2,
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 8,
    "block_out_channels": [16, 32, 64],
    "attention_head_dim": [1, 2, 4],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 3],
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
    "resnet_time_scale_shift": "default",
    "upcast_attention": None,
}
SHAPES: dict[str, dict[str, Any]] = {
    "sd1": SD1,
    "sd1_inpainting": {**SD1, "in_channels": 9},
    "sd2": SD2,
    "sdxl": SDXL,
    "sdxl_inpainting": {**SDXL, "in_channels": 9},
    "refiner": {
        **SDXL,
        "block_out_channels": [16, 32, 32, 32],
        "attention_head_dim": [1, 2, 4, 4],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 2,
        "projection_class_embeddings_input_dim": 20 + 5 * 8,
    },
    "instructions": {**SD1, "in_channels": 8},  # InstructPix2Pix
    "scale_shift": {**SD1, "resnet_time_scale_shift": "scale_shift"},
    "unequal_heads": {**SD2, "attention_head_dim": [4, 2, 8]},
}
SIZES = [(8, 8), (12, 20), (9, 13), (15, 6), (5, 33)]  # cells; those that cannot be halved twice too


def peer(config: dict[str, Any]) -> Any:
    """A UNet2DConditionModel whose every weight is random, the norms' too."""
    model = diffusers.UNet2DConditionModel(**config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.from_numpy(seeds.rng(3, name).standard_normal(tuple(weight.shape), dtype="float32"))
            weight.copy_(noise * (1 / weight[0].numel() ** 0.5 if weight.ndim > 1 else 0.1))
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
    return model


def compared(model: Any, config: dict[str, Any], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of ours and of theirs for the same input."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, config["in_channels"], *size, generator=draw)
    t, context = torch.tensor([3.0, 997.0]), torch.randn(2, 7, 12, generator=draw)
    ours, state = unet_from_diffusers(model.config, model.state_dict())
    network = UNet(ours).eval()
    network.load_state_dict(state)
    cond, added = {"context": context}, {}
    if config.get("addition_embed_type"):
        pooled = torch.randn(2, 20, generator=draw)
        count = (config["projection_class_embeddings_input_dim"] - 20) // 8
        sizes = torch.tensor([[1024, 768, 0, 64, 1024, 1024], [512, 512, 16, 0, 640, 1536]])[:, :count].float()
        cond["vector"] = size_vector(ours, pooled, sizes)
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    if ours.concat_channels:
        cond["concat"] = x[:, 4:]
    with torch.no_grad():
        own = network(x[:, :4], t, **cond)
        return own, model(x, t, encoder_hidden_states=context, **added).sample


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", SHAPES)
def test_outputs_equal_those_of_diffusers(name: str, size: tuple[int, int]) -> None:
    ours, theirs = compared(peer(SHAPES[name]), SHAPES[name], size)
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("name", SHAPES)
def test_every_weight_is_used_once_and_goes_back_as_it_came(name: str) -> None:
    model = peer(SHAPES[name])
    ours, state = unet_from_diffusers(model.config, model.state_dict())
    used = [part for parts in name_table(ours).values() for part in parts]
    assert len(used) == len(set(used)) and set(used) == set(model.state_dict())
    config, weights = unet_to_diffusers(ours, state)
    for key, weight in model.state_dict().items():
        assert torch.equal(weights[key], weight) and weights[key].shape == weight.shape, key
    back = diffusers.UNet2DConditionModel.from_config(config)
    back.load_state_dict(weights)


@pytest.mark.parametrize("name", SHAPES)
def test_no_option_that_was_read_is_lost(name: str) -> None:
    given = SHAPES[name]
    ours = config_from_diffusers(given)
    back = config_to_diffusers(ours)
    for option, value in given.items():
        wanted = tuple(value) if isinstance(value, list) else value
        assert (tuple(back[option]) if isinstance(value, list) else back[option]) == wanted, option
    # through the settings of a run, which are YAML and JSON
    stored = trees.build(UNetConfig, json.loads(json.dumps(trees.plain(ours))))
    assert stored == ours and config_to_diffusers(stored) == back


def test_lists_are_read_back_as_lists_and_numbers_as_numbers() -> None:
    lists = {"layers_per_block": [2, 2, 2], "transformer_layers_per_block": [2, 2, 2], "attention_head_dim": [2, 2, 2]}
    back = config_to_diffusers(config_from_diffusers({**SD1, **lists, "only_cross_attention": [False] * 3}))
    assert all(list(back[name]) == value for name, value in lists.items())
    assert list(back["only_cross_attention"]) == [False] * 3
    stored = config_from_diffusers({**SD1, **lists, "only_cross_attention": [False] * 3})
    again = trees.build(UNetConfig, json.loads(json.dumps(trees.plain(stored))))
    assert config_to_diffusers(again) == back


def test_real_checkpoints_configs_have_the_shapes_that_their_papers_say() -> None:
    whole = {"block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20], "norm_num_groups": 32}
    xl = config_from_diffusers(
        {
            **SDXL,
            **whole,
            "cross_attention_dim": 2048,
            "transformer_layers_per_block": [1, 2, 10],
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    )
    assert (xl.context_width, xl.vector_width, xl.size_width, xl.level_heads) == (2048, 2816, 256, (5, 10, 20))
    assert xl.transformer_depths == (1, 2, 10) and xl.attention == (False, True, True)
    with torch.device("meta"):
        assert sum(each.numel() for each in UNet(xl).parameters()) == 2_567_463_684
    one = config_from_diffusers({"cross_attention_dim": 768, "sample_size": 64})  # the rest are diffusers' own defaults
    with torch.device("meta"):
        assert sum(each.numel() for each in UNet(one).parameters()) == 859_520_964


REFUSED = [
    ("center_input_sample", True),
    ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
    ("mid_block_type", None),
    ("only_cross_attention", True),
    ("only_cross_attention", [True, True, False]),
    ("layers_per_block", [1, 2, 2]),
    ("downsample_padding", 2),
    ("mid_block_scale_factor", 2**0.5),
    ("dropout", 0.1),
    ("act_fn", "gelu"),
    ("norm_num_groups", None),
    ("cross_attention_dim", [12, 12, 24]),
    ("transformer_layers_per_block", [1, 2]),
    ("transformer_layers_per_block", [[1, 2], 2, 2]),
    ("reverse_transformer_layers_per_block", [[1], [2], [2]]),
    ("encoder_hid_dim", 1024),
    ("encoder_hid_dim_type", "text_proj"),
    ("num_attention_heads", 4),
    ("attention_head_dim", [2, 4]),
    ("attention_head_dim", 3),
    ("dual_cross_attention", True),
    ("class_embed_type", "projection"),
    ("num_class_embeds", 1000),
    ("addition_embed_type", "text"),
    ("addition_time_embed_dim", 256),
    ("resnet_time_scale_shift", "spatial"),
    ("resnet_skip_time_act", True),
    ("resnet_out_scale_factor", 2.0),
    ("time_embedding_type", "fourier"),
    ("time_embedding_dim", 100),
    ("time_embedding_act_fn", "silu"),
    ("timestep_post_act", "silu"),
    ("time_cond_proj_dim", 256),
    ("conv_in_kernel", 1),
    ("conv_out_kernel", 1),
    ("attention_type", "gated"),
    ("class_embeddings_concat", True),
    ("mid_block_only_cross_attention", True),
    ("cross_attention_norm", "layer_norm"),
    ("block_out_channels", [16, 24, 32]),
    ("block_out_channels", [16, 32]),
    ("down_block_types", ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]),
    ("down_block_types", ["SimpleCrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"]),
    ("up_block_types", ["UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"]),
    ("mystery", 1),
]


@pytest.mark.parametrize(("option", "value"), REFUSED)
def test_an_option_we_do_not_have_is_refused_by_name(option: str, value: object) -> None:
    named = "heads" if value == 3 else option
    with pytest.raises(Error, match=named):
        unet_from_diffusers({**SD1, option: value}, {name: torch.zeros(1) for name in map(str, range(500))})


def test_unknown_and_missing_weights_are_named() -> None:
    weights = peer(SDXL).state_dict()
    with pytest.raises(Error, match=r"UNet2DConditionModel.*1 unknown: position_net\.weight"):
        unet_from_diffusers(SDXL, weights | {"position_net.weight": torch.zeros(1)})
    del weights["add_embedding.linear_2.bias"]
    with pytest.raises(Error, match=r"1 missing: add_embedding\.linear_2\.bias"):
        unet_from_diffusers(SDXL, weights)


def test_a_network_of_ours_that_diffusers_cannot_be_is_refused() -> None:
    text = {"context_width": 12, "channels": 16, "groups": 8}
    for change in ({"patch": 2}, {"context_vector": True}, {"classes": 3}, {"resample": "block"}, {"dropout": 0.1}):
        with pytest.raises(Error, match=next(iter(change))):
            config_to_diffusers(UNetConfig(**{**text, **change}))
    with pytest.raises(Error, match="context_width is None"):
        config_to_diffusers(UNetConfig())


def test_a_text_network_of_ours_computes_the_same_in_diffusers() -> None:
    config = UNetConfig(
        in_channels=4,
        out_channels=4,
        channels=16,
        multipliers=(1, 2),
        attention=(False, True),
        blocks=1,
        groups=8,
        head_channels=8,
        context_width=12,
    )
    network = UNet(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    theirs, weights = unet_to_diffusers(config, network.state_dict())
    back = diffusers.UNet2DConditionModel.from_config(theirs).eval()
    back.load_state_dict(weights)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([10.0]), torch.randn(1, 3, 12)
    with torch.no_grad():
        assert torch.allclose(network(x, t, context=context), back(x, t, context).sample, atol=1e-5)


def test_a_vector_that_does_not_fit_is_refused() -> None:
    config = config_from_diffusers(SDXL)
    network = UNet(config)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([1.0]), torch.randn(1, 3, 12)
    with pytest.raises(Error, match=r"vector is missing.*\(1, 68\)"):
        network(x, t, context=context)
    with pytest.raises(Error, match=r"vector is of shape \(1, 60\)"):
        network(x, t, context=context, vector=torch.zeros(1, 60))
    with pytest.raises(Error, match=r"makes a vector of 60; this network takes 68"):
        size_vector(config, torch.zeros(1, 20), torch.zeros(1, 5))
    with pytest.raises(Error, match="no vector input"):
        UNet(config_from_diffusers(SD1))(x, t, context=context, vector=torch.zeros(1, 68))


def test_an_image_does_not_depend_on_what_is_beside_it() -> None:
    network = UNet(config_from_diffusers(SDXL)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        x, context = torch.randn(3, 4, 8, 8), torch.randn(3, 3, 12)
        vector, t = torch.randn(3, 68), torch.tensor(10.0)
        embedded = network.encoder.vector(vector)
        assert torch.equal(embedded[1:2], network.encoder.vector(vector[1:2]))
        together = network(x, t, context=context, vector=vector)
        alone = network(x[1:2], t, context=context[1:2], vector=vector[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_sides_that_cannot_be_halved_need_the_switch() -> None:
    config = UNetConfig(channels=16, multipliers=(1, 2), attention=(False, False), blocks=1, groups=8)
    with pytest.raises(Error, match="multiples of 2"):
        UNet(config)(torch.randn(1, 3, 7, 8), torch.tensor(1.0))
    with pytest.raises(Error, match="odd_sides is True"):
        UNetConfig(resample="block", odd_sides=True)
