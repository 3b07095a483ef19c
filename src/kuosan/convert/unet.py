"""diffusers' `UNet2DConditionModel` (the `unet` folder of Stable Diffusion 1, 2 and XL) <-> our `UNet`.

Its spatial transformers, its vector input and its joined channels (inpainting) are ours by a table of names; options we
do not have are refused by name, and every number that was read comes back on the way out.

Where its configuration says `attention_head_dim`, it means how many heads there are: so its files are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kuosan import limits
from kuosan.convert import diffusers
from kuosan.convert.diffusers import beside, check_size, check_types, plain, split, stacked
from kuosan.errors import Error
from kuosan.networks.config import UNetConfig

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "UNet2DConditionModel"
_TRANSFORMER = r"(attentions\.\d+|middle\.1)"
_NAMES = [  # (ours, diffusers'), applied one after another to our names
    (r"^encoder\.vector\.up\.", "add_embedding.linear_1."),
    (r"^encoder\.vector\.out\.", "add_embedding.linear_2."),
    (rf"{_TRANSFORMER}\.entrance\.", r"\1.proj_in."),
    (rf"{_TRANSFORMER}\.out\.", r"\1.proj_out."),
    (rf"{_TRANSFORMER}\.blocks\.(\d+)\.", r"\1.transformer_blocks.\2."),
    (r"\.itself\.out\.", ".attn1.to_out.0."),
    (r"\.itself\.([qkv])\.", r".attn1.to_\1."),
    (r"\.cross\.out\.", ".attn2.to_out.0."),
    (r"\.cross\.([qkv])\.", r".attn2.to_\1."),
    (r"\.perceptron\.up\.", ".ff.net.0.proj."),
    (r"\.perceptron\.down\.", ".ff.net.2."),
    *(pair for pair in diffusers.NAMES if not pair[0].startswith(r"(attentions")),
]
_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}  # block type: whether it attends
_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
_DEFAULTS: dict[str, Any] = {  # UNet2DConditionModel's own, for configs that leave an option out
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
}
_LISTS = ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim")
_FIXED: dict[str, tuple[Any, ...]] = {  # options we have in one setting; the first is diffusers' own
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "mid_block_scale_factor": (1,),
    "dropout": (0.0,),
    "act_fn": ("silu", "swish"),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}
_IDLE = {"sample_size", "upcast_attention", "addition_embed_type_num_heads"}  # change neither weights nor output here


def name_table(config: UNetConfig) -> dict[str, dict[str, int]]:
    """{our weight: {diffusers' weight: its rows}}, in the order they are stacked."""
    return diffusers.name_table(config, _NAMES)


def unet_from_diffusers(
    config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[UNetConfig, dict[str, Tensor]]:
    """Our config and state dict of a diffusers `UNet2DConditionModel`, from its config.json and its state dict.

    Raises: `Error` for an option we do not have, and for weights unknown, missing or of another shape.
    """
    ours = config_from_diffusers(config)
    check_size(MODEL, ours.layers, weights)
    return ours, stacked(MODEL, name_table(ours), diffusers.modern(weights))


def unet_to_diffusers(config: UNetConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and state dict of the diffusers `UNet2DConditionModel` that computes the same.

    Raises: `Error` for what `UNet2DConditionModel` cannot do, and for weights unknown, missing or of another shape.
    """
    theirs = config_to_diffusers(config)
    weights = split("UNet", name_table(config), state)
    if not theirs["use_linear_projection"]:  # Stable Diffusion 1 has 1x1 convolutions there
        ends = (".proj_in.weight", ".proj_out.weight")
        weights |= {name: each[..., None, None] for name, each in weights.items() if name.endswith(ends)}
    return theirs, weights


def config_from_diffusers(config: Mapping[str, Any]) -> UNetConfig:
    """The `UNetConfig` of a `UNet2DConditionModel`'s config. Raises: `Error` for an option we do not have."""
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    c = _checked(given)
    widths = tuple(c["block_out_channels"])
    attention = tuple(_kind(_DOWN, "down_block_types", each) for each in c["down_block_types"])
    if attention != tuple(_kind(_UP, "up_block_types", each) for each in reversed(c["up_block_types"])):
        raise _refuse("up_block_types", c["up_block_types"], "attention on the same levels as down_block_types")
    if len(attention) != len(widths):
        raise _refuse("block_out_channels", widths, f"{len(attention)} entries, one a block")
    depths = _a_level(c, "transformer_layers_per_block")
    ours = UNetConfig(
        in_channels=min(c["in_channels"], c["out_channels"]),
        out_channels=c["out_channels"],
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=_same(c, "layers_per_block"),
        attention=attention,
        level_heads=_a_level(c, "attention_head_dim"),
        time_conditioning="scale_shift" if c["resnet_time_scale_shift"] == "scale_shift" else "add",
        resample="conv" if c["downsample_padding"] == 1 else "conv_asymmetric",
        groups=c["norm_num_groups"],
        norm_eps=c["norm_eps"],
        cos_first=c["flip_sin_to_cos"],
        freq_shift=c["freq_shift"],
        context_width=_same(c, "cross_attention_dim"),
        transformer_depth=depths[0] if len(set(depths)) == 1 else 1,
        transformer_depths=() if len(set(depths)) == 1 else depths,
        vector_width=c["projection_class_embeddings_input_dim"] if c["addition_embed_type"] else 0,
        size_width=c["addition_time_embed_dim"] if c["addition_embed_type"] else 256,
        concat_channels=max(0, c["in_channels"] - c["out_channels"]),
        odd_sides=c["downsample_padding"] == 1,
    )
    return replace(ours, origin=beside(given, _written(ours)))


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options with diffusers' own where they are left out. Raises: `Error` for one we do not have."""
    for option in given.keys() - _DEFAULTS.keys() - _IDLE:
        if option not in _FIXED:
            raise _refuse(option, given[option], f"a {MODEL}'s own options", "Is this another model's config?")
        value = given[option]
        entries = value if option == "only_cross_attention" and isinstance(value, list | tuple) and value else [value]
        if any(each not in _FIXED[option] for each in entries):
            raise _refuse(option, value, " or ".join(map(repr, _FIXED[option])))
    c = {**_DEFAULTS, **{key: value for key, value in given.items() if key in _DEFAULTS}}
    check_types(MODEL, {**c, **{name: _DEFAULTS[name] for name in _LISTS}}, _DEFAULTS)
    if any(width % c["block_out_channels"][0] for width in c["block_out_channels"]):
        raise _refuse("block_out_channels", c["block_out_channels"], "multiples of its first entry")
    if c["time_embedding_dim"] not in (None, 4 * c["block_out_channels"][0]):
        raise _refuse("time_embedding_dim", c["time_embedding_dim"], f"None or {4 * c['block_out_channels'][0]}")
    if c["resnet_time_scale_shift"] not in ("default", "scale_shift"):
        raise _refuse("resnet_time_scale_shift", c["resnet_time_scale_shift"], "'default' or 'scale_shift'")
    if c["norm_num_groups"] is None:
        raise _refuse("norm_num_groups", None, "a whole number")
    if c["downsample_padding"] not in (0, 1):
        raise _refuse("downsample_padding", c["downsample_padding"], "0 or 1")
    if c["addition_embed_type"] not in (None, "text_time"):
        raise _refuse("addition_embed_type", c["addition_embed_type"], "None or 'text_time' (Stable Diffusion XL's)")
    for option in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
        if (c[option] is None) != (c["addition_embed_type"] is None):
            wanted = "None without" if c["addition_embed_type"] is None else "a whole number with"
            raise _refuse(option, c[option], f"{wanted} addition_embed_type")
    return c


def _a_level(c: Mapping[str, Any], option: str) -> tuple[int, ...]:
    """A whole number or a list of one a level, as the list."""
    value, levels = c[option], len(c["down_block_types"])
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,) * levels
    if len(numbers) != levels or len(numbers) > limits.ENTRIES["multipliers"]:
        raise _refuse(option, value, f"a whole number or {levels} of them, one a block")
    if not all(type(each) is int and each > 0 for each in numbers):
        raise _refuse(option, value, "whole numbers from 1")
    return numbers


def _same(c: Mapping[str, Any], option: str) -> int:
    numbers = _a_level(c, option)
    if len(set(numbers)) > 1:
        raise _refuse(option, c[option], "the same number for every block")
    return numbers[0]


def _kind(kinds: Mapping[str, bool], option: str, name: str) -> bool:
    if name not in kinds:
        raise _refuse(option, name, "blocks of these types: " + ", ".join(kinds))
    return kinds[name]


def config_to_diffusers(config: UNetConfig) -> dict[str, Any]:
    """The config of the `UNet2DConditionModel` that computes the same, with every number that a config read by
    `config_from_diffusers` held. Raises: `Error` for what it cannot do.
    """
    written = _written(config)
    whole = written | dict(config.origin)
    try:
        unchanged = config_from_diffusers(whole) == config
    except Error:
        unchanged = False
    if not unchanged:  # since it was read: what was said of the old network holds no more
        whole = written | {name: value for name, value in config.origin if name in _IDLE}
    return whole


_ONLY: dict[str, Any] = {  # fields of ours that UNet2DConditionModel has in one setting
    "middle_attention": True,
    "dropout": 0.0,
    "classes": 0,
    "context_vector": False,
    "context_attention": "transformer",
    "transformer_mlp": 4,
    "concat_skip": False,
    "patch": 1,
}


def _written(config: UNetConfig) -> dict[str, Any]:
    for field, only in _ONLY.items():
        if getattr(config, field) != only:
            raise Error(
                f"UNetConfig.{field} is {getattr(config, field)!r}; diffusers' {MODEL} has {only!r}. Export a network "
                "that has it so."
            )
    if config.context_width is None:
        raise Error(f"UNetConfig.context_width is None; diffusers' {MODEL} attends to a text. Export a text model.")
    if config.resample == "block":
        raise Error(
            f"UNetConfig.resample is 'block'; diffusers' {MODEL} has convolutions. Export one with resample conv."
        )
    width = config.head_channels
    heads = list(config.level_heads) or [1 if width is None else each // width for each in config.widths]
    depths = [config.depth(level) for level in range(config.levels)]
    return {
        "_class_name": MODEL,
        **{name: allowed[0] for name, allowed in _FIXED.items()},
        "in_channels": config.in_channels + config.concat_channels,
        "out_channels": config.out_channels,
        "freq_shift": config.freq_shift,
        "flip_sin_to_cos": config.cos_first,
        "down_block_types": [_DOWN_TYPES[on] for on in config.attention],
        "up_block_types": [_UP_TYPES[on] for on in reversed(config.attention)],
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks,
        "downsample_padding": 0 if config.resample == "conv_asymmetric" else 1,
        "norm_num_groups": config.groups,
        "norm_eps": config.norm_eps,
        "cross_attention_dim": config.context_width,
        "transformer_layers_per_block": depths if len(set(depths)) > 1 else depths[0],
        "attention_head_dim": heads if len(set(heads)) > 1 else heads[0],
        "use_linear_projection": True,
        "addition_embed_type": "text_time" if config.vector_width else None,
        "addition_time_embed_dim": config.size_width if config.vector_width else None,
        "projection_class_embeddings_input_dim": config.vector_width or None,
        "resnet_time_scale_shift": "scale_shift" if config.time_conditioning == "scale_shift" else "default",
    }


_DOWN_TYPES = {attends: name for name, attends in _DOWN.items()}
_UP_TYPES = {attends: name for name, attends in _UP.items()}


def _refuse(option: str, value: object, allowed: object, why: str = "") -> Error:
    return Error(f"{MODEL}'s {option} is {plain(value)!r}; we can take {allowed}. {why}".rstrip())
