"""The config.json of diffusers' `UNet2DModel` <-> `UNetConfig`. Torch-free.

What the other cannot say is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kuosan import limits
from kuosan.errors import Error, shown
from kuosan.networks.config import Origin, Resample, UNetConfig

# block type -> (attention, how it resamples; None = as downsample_type or upsample_type says)
_DOWN = {"DownBlock2D": (False, "conv"), "AttnDownBlock2D": (True, None), "ResnetDownsampleBlock2D": (False, "resnet")}
_UP = {"UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, None), "ResnetUpsampleBlock2D": (False, "resnet")}

_DEFAULTS: dict[str, Any] = {  # UNet2DModel's own, for configs that leave an option out
    "in_channels": 3,
    "out_channels": 3,
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "num_class_embeds": None,
}
_FIXED: dict[str, tuple[Any, ...]] = {  # options we have in one setting
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
    "dual_cross_attention": (False,),
}
_IDLE = {"sample_size", "num_train_timesteps"}  # change neither the weights nor the output; they come back all the same


def check_types(model: str, given: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Refuse options of another type than a model's own ones, whatever wrote them. Raises: Error."""
    for option, own in usual.items():
        value = given[option]
        if isinstance(own, tuple):
            entry = type(own[0])
            fine = isinstance(value, list | tuple) and 0 < len(value) <= limits.ENTRIES["multipliers"]
            fine = fine and all(type(each) is entry and (entry is str or each > 0) for each in value)
        elif own is None or option in ("num_class_embeds", "attention_head_dim", "norm_num_groups"):
            fine = value is None or isinstance(value, int | float | str | list)
        elif isinstance(own, bool | str):
            fine = type(value) is type(own)
        else:
            fine = type(value) in (int, float)
        if not fine:
            raise Error(f"{model}'s {option} is {shown(value)}; its own is {own!r}: the config is damaged.")


def _refuse(option: str, value: object, allowed: object, why: str = "") -> Error:
    return Error(f"UNet2DModel's {option} is {value!r}; we can take {allowed}. {why}".rstrip())


def config_from_diffusers(config: Mapping[str, Any]) -> UNetConfig:
    """The `UNetConfig` of a `UNet2DModel`'s config. Raises: `Error` for an option we do not have."""
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    for option in given.keys() - _DEFAULTS.keys() - _IDLE:
        if option not in _FIXED:
            raise _refuse(option, given[option], "a UNet2DModel's own options", "Is this another model's config?")
        if given[option] not in _FIXED[option]:
            raise _refuse(option, given[option], " or ".join(map(repr, _FIXED[option])))
    c = {**_DEFAULTS, **{key: value for key, value in given.items() if key in _DEFAULTS}}
    check_types("UNet2DModel", c, _DEFAULTS)
    widths = tuple(c["block_out_channels"])
    if any(width % widths[0] for width in widths):
        raise _refuse("block_out_channels", widths, "multiples of its first entry")
    if c["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise _refuse("time_embedding_dim", c["time_embedding_dim"], f"None or {4 * widths[0]}")
    if c["resnet_time_scale_shift"] not in ("default", "scale_shift"):
        raise _refuse("resnet_time_scale_shift", c["resnet_time_scale_shift"], "'default' or 'scale_shift'")
    _check_norms(c)
    attention = tuple(_kind(_DOWN, "down_block_types", t)[0] for t in c["down_block_types"])
    if attention != tuple(_kind(_UP, "up_block_types", t)[0] for t in reversed(c["up_block_types"])):
        raise _refuse("up_block_types", c["up_block_types"], "attention on the same levels as down_block_types")
    ours = UNetConfig(
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=c["layers_per_block"],
        attention=attention,
        middle_attention=c["add_attention"],
        head_channels=c["attention_head_dim"] if any(attention) or c["add_attention"] else None,
        time_conditioning="scale_shift" if c["resnet_time_scale_shift"] == "scale_shift" else "add",
        resample=_resample(c),
        dropout=c["dropout"],
        groups=c["norm_num_groups"],
        norm_eps=c["norm_eps"],
        cos_first=c["flip_sin_to_cos"],
        freq_shift=c["freq_shift"],
        classes=c["num_class_embeds"] or 0,
    )
    return replace(ours, origin=beside(given, _written(ours) | {"num_class_embeds": c["num_class_embeds"]}))


def beside(given: Mapping[str, Any], written: Mapping[str, Any]) -> Origin:
    """The numbers of a config that are not in what would be written of it, or otherwise there: for the way back."""
    numbers = {name: plain(value) for name, value in given.items()}
    return tuple(
        (name, value)
        for name, value in sorted(numbers.items())
        if not isinstance(value, str)
        and not (isinstance(value, tuple) and any(isinstance(part, str) for part in value))
        and (name not in written or plain(written[name]) != value)
    )


def plain(value: Any) -> Any:
    """A value of a config.json as Python compares it: lists are tuples."""
    return tuple(plain(part) for part in value) if isinstance(value, list | tuple) else value


def config_to_diffusers(config: UNetConfig, sample_size: int | tuple[int, int] | None = None) -> dict[str, Any]:
    """The config of the `UNet2DModel` that computes the same, with every number that a config read by
    `config_from_diffusers` held.

    Args:
        sample_size: pixels a side, or height and width, which diffusers' pipelines make images of; None: as read.

    Raises: `Error` for conditioning inputs that it does not have.
    """
    written = _written(config)
    whole = written | dict(config.origin)
    try:
        unchanged = config_from_diffusers(whole | {"num_class_embeds": config.classes or None}) == config
    except Error:
        unchanged = False
    if not unchanged:  # since it was read: what was said of the old network holds no more
        whole = written | {name: value for name, value in config.origin if name in _IDLE}
    return whole if sample_size is None else whole | {"sample_size": sample_size}


def _written(config: UNetConfig) -> dict[str, Any]:
    for field, only in (("concat_channels", 0), ("concat_skip", False), ("patch", 1), ("context_width", None)):
        if getattr(config, field) != only:
            raise Error(
                f"UNetConfig.{field} is {getattr(config, field)!r}: diffusers' UNet2DModel has no such door, it can "
                f"take {only!r}. Export a network without it."
            )
    block = config.resample == "block"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if block else ("DownBlock2D", "UpBlock2D")
    return {
        "_class_name": "UNet2DModel",
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "freq_shift": config.freq_shift,
        "flip_sin_to_cos": config.cos_first,
        "down_block_types": tuple("AttnDownBlock2D" if on else plain[0] for on in config.attention),
        "up_block_types": tuple("AttnUpBlock2D" if on else plain[1] for on in reversed(config.attention)),
        "block_out_channels": config.widths,
        "layers_per_block": config.blocks,
        "downsample_padding": 0 if config.resample == "conv_asymmetric" else 1,
        "downsample_type": "resnet" if block else "conv",
        "upsample_type": "resnet" if block else "conv",
        "dropout": config.dropout,
        "attention_head_dim": config.head_channels,
        "norm_num_groups": config.groups,
        "attn_norm_num_groups": config.groups,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if config.time_conditioning == "scale_shift" else "default",
        "add_attention": config.middle_attention,
        "num_class_embeds": config.classes + 1 if config.classes else None,
    }


def _kind(kinds: Mapping[str, tuple[bool, str | None]], option: str, name: str) -> tuple[bool, str | None]:
    if name not in kinds:
        raise _refuse(option, name, "blocks of these types: " + ", ".join(kinds))
    return kinds[name]


def _check_norms(c: Mapping[str, Any]) -> None:
    groups, middle = c["norm_num_groups"], c["attn_norm_num_groups"]
    if groups is None:
        raise _refuse("norm_num_groups", None, "a whole number")
    # without a number, scale_shift networks have no norm before the middle attention
    allowed = (groups,) if c["resnet_time_scale_shift"] == "scale_shift" else (None, groups)
    if c["add_attention"] and middle not in allowed:
        raise _refuse("attn_norm_num_groups", middle, " or ".join(map(repr, allowed)), "Ours norms as elsewhere.")


def _resample(c: Mapping[str, Any]) -> Resample:
    """How all levels but the last change resolution; diffusers may mix, we do not."""
    down = [_kind(_DOWN, "down_block_types", t)[1] or c["downsample_type"] for t in c["down_block_types"][:-1]]
    up = [_kind(_UP, "up_block_types", t)[1] or c["upsample_type"] for t in c["up_block_types"][:-1]]
    ways = set(down + up)
    if ways - {"conv", "resnet"} or len(ways) > 1:
        option = "resampling (block types, downsample_type, upsample_type)"
        raise _refuse(option, sorted(map(str, ways)), "one of conv and resnet for all")
    if ways == {"resnet"}:
        return "block"
    if c["downsample_padding"] not in (0, 1):
        raise _refuse("downsample_padding", c["downsample_padding"], "0 or 1")
    return "conv" if c["downsample_padding"] == 1 else "conv_asymmetric"
