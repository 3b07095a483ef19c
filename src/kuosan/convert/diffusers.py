"""What conversions by a table of names share: renaming, stacking and splitting weights, refusing those that do not fit.

A table is {our weight: {their weight: its rows}}, in the order they are stacked.

The config.json of diffusers' `UNet2DModel` <-> `UNetConfig`. Torch-free.

What the other cannot say is refused by name.

diffusers' `UNet2DModel` <-> our `UNet`, by a table of names: {our weight: the weights it is stacked from}.

q, k, v stack to one qkv, and every block's time projection to one conditioning matrix. Every weight is used exactly
once; one left over or missing is an `Error`. Options we do not have are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kuosan import limits
from kuosan.errors import Error, shown
from kuosan.networks.config import Origin, Resample, UNetConfig

if TYPE_CHECKING:
    from torch import Tensor

Table = Mapping[str, Mapping[str, int]]
# as diffusers spelt attention before 0.13, and as published DDPM checkpoints still do
_OLD_SPELLINGS = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
# what old files have as 1x1 convolutions, and Stable Diffusion 1 does
_LINEAR = re.compile(r"\.qkv\.|(attentions\.\d+|middle\.1)\.(entrance|out)\.|^head\.")


def check_size(model: str, layers: int, weights: Mapping[str, Tensor]) -> None:
    """Refuse a config of more blocks than there are weights, before a network is laid out. Raises: Error."""
    if layers > len(weights):
        raise Error(
            f"the weights are not those of a {model} with this config: it has {layers} blocks, and they are "
            f"{len(weights)}. Use the config that was saved beside these weights."
        )


def renamed(name: str, patterns: Sequence[tuple[str, str]]) -> str:
    """Our name as theirs: each (ours, theirs) applied one after another."""
    for ours, theirs in patterns:
        name = re.sub(ours, theirs, name)
    return name


def parts_of(name: str, rows: int, patterns: Sequence[tuple[str, str]]) -> dict[str, int]:
    """What a weight of ours is stacked from: q, k and v where it is a qkv, else one weight of theirs."""
    theirs = renamed(name, patterns)
    if ".qkv." not in name:
        return {theirs: rows}
    return {theirs.replace(".qkv.", f".to_{letter}."): rows // 3 for letter in "qkv"}


def modern(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names that diffusers has now."""
    found = {}
    for name, weight in weights.items():
        for old, new in _OLD_SPELLINGS.items():
            name = name.replace(old, new)
        found[name] = weight
    return found


def stacked(model: str, table: Table, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights of theirs, those of a `model`. Raises: `Error` for weights unknown, missing or of another shape."""
    import torch

    _match(model, {name: size for parts in table.values() for name, size in parts.items()}, theirs)
    state = {}
    for name, parts in table.items():
        whole = torch.cat([theirs[part] for part in parts])
        state[name] = whole.flatten(1) if _LINEAR.search(name) and whole.ndim > 2 else whole
    return state


def split(model: str, table: Table, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights of ours, those of a `model`. Raises: `Error` for weights unknown, missing or of another shape."""
    import torch

    _match(model, {name: sum(parts.values()) for name, parts in table.items()}, ours)
    weights: dict[str, Tensor] = {}
    for name, parts in table.items():
        split_weights = torch.split(ours[name], list(parts.values()))
        weights |= {part: piece.clone() for part, piece in zip(parts, split_weights, strict=True)}
    return weights


def _match(model: str, rows: Mapping[str, int], weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not exactly the ones wanted."""
    unknown, missing = sorted(weights.keys() - rows.keys()), sorted(rows.keys() - weights.keys())
    if unknown or missing:
        parts = [
            f"{len(names)} {what}: {_some(names)}"
            for what, names in (("unknown", unknown), ("missing", missing))
            if names
        ]
        raise Error(
            f"the weights are not those of a {model} with this config ({'; '.join(parts)}). "
            "Use the config that was saved beside these weights."
        )
    for name, size in rows.items():
        if weights[name].shape[:1] != (size,):
            raise Error(
                f"weight {name} has shape {tuple(weights[name].shape)}; its first size must be {size}. "
                "Use the config that was saved beside these weights."
            )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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


def check_types(model: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse options of another type than a model's own ones, whatever wrote them. Raises: Error."""
    for option, own in defaults.items():
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
        middle_norm=_middle_norm(c),
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
    if not config.middle_norm and config.time_conditioning == "add":
        raise Error("UNetConfig.middle_norm is False with time_conditioning add: diffusers' UNet2DModel norms there.")
    for field, only in _ONLY.items():
        if getattr(config, field) != only:
            raise Error(
                f"UNetConfig.{field} is {getattr(config, field)!r}: diffusers' UNet2DModel has no such input, it can "
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
        "attn_norm_num_groups": config.groups if config.middle_norm else None,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if config.time_conditioning == "scale_shift" else "default",
        "add_attention": config.middle_attention,
        "num_class_embeds": config.classes + 1 if config.classes else None,
    }


_ONLY: dict[str, Any] = {  # fields of ours that UNet2DModel has in one setting
    "concat_channels": 0,
    "concat_skip": False,
    "patch": 1,
    "context_width": None,
    "level_heads": (),
    "vector_width": 0,
    "odd_sides": False,
}


def _kind(kinds: Mapping[str, tuple[bool, str | None]], option: str, name: str) -> tuple[bool, str | None]:
    if name not in kinds:
        raise _refuse(option, name, "blocks of these types: " + ", ".join(kinds))
    return kinds[name]


def _check_norms(c: Mapping[str, Any]) -> None:
    groups, middle = c["norm_num_groups"], c["attn_norm_num_groups"]
    if groups is None:
        raise _refuse("norm_num_groups", None, "a whole number")
    if c["add_attention"] and middle not in (None, groups):
        raise _refuse("attn_norm_num_groups", middle, f"None or {groups}", "Ours norms as elsewhere.")


def _middle_norm(c: Mapping[str, Any]) -> bool:
    """Whether the middle attention norms what it reads: without a number, scale_shift networks do not."""
    return bool(not c["add_attention"] or c["attn_norm_num_groups"] or c["resnet_time_scale_shift"] == "default")


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


NAMES = [  # (ours, diffusers'), applied one after another to our names
    (r"^encoder\.entrance\.", "conv_in."),
    (r"^encoder\.time\.0\.", "time_embedding.linear_1."),
    (r"^encoder\.time\.2\.", "time_embedding.linear_2."),
    (r"^encoder\.label\.", "class_embedding."),
    (r"^encoder\.middle\.0\.", "mid_block.resnets.0."),
    (r"^encoder\.middle\.1\.", "mid_block.attentions.0."),
    (r"^encoder\.middle\.2\.", "mid_block.resnets.1."),
    (r"^encoder\.levels\.(\d+)\.exit\.", r"down_blocks.\1.downsamplers.0."),
    (r"^decoder\.levels\.(\d+)\.exit\.", r"up_blocks.\1.upsamplers.0."),
    (r"samplers\.0\.(weight|bias)$", r"samplers.0.conv.\1"),
    (r"^encoder\.levels\.(\d+)\.", r"down_blocks.\1."),
    (r"^decoder\.levels\.(\d+)\.", r"up_blocks.\1."),
    (r"\.blocks\.(\d+)\.", r".resnets.\1."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.out\.", r"\1.to_out.0."),
    (r"^decoder\.norm\.", "conv_norm_out."),
    (r"^decoder\.exit\.", "conv_out."),
]


def name_table(config: UNetConfig, patterns: Sequence[tuple[str, str]] = NAMES) -> dict[str, dict[str, int]]:
    """{our weight: {diffusers' weight: its rows}}, in the order they are stacked."""
    import torch

    from kuosan.networks.layers import ResidualBlock
    from kuosan.networks.unet import UNet

    with torch.device("meta"):
        network = UNet(config)
    table: dict[str, dict[str, int]] = {}
    for half in ("encoder", "decoder"):
        part = getattr(network, half)
        blocks = [f"{half}.{name}" for name, module in part.named_modules() if isinstance(module, ResidualBlock)]
        for kind in ("weight", "bias"):
            names = [renamed(f"{block}.time_emb_proj.{kind}", patterns) for block in blocks]
            table[f"{half}.conditioning.{kind}"] = dict(zip(names, part.conditioning.widths, strict=True))
    for name, weight in network.state_dict().items():
        if name not in table:
            table[name] = parts_of(name, weight.shape[0], patterns)
    return table


def unet_from_diffusers(
    config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[UNetConfig, dict[str, Tensor]]:
    """Our config and state dict of a diffusers `UNet2DModel`, from its config.json and its state dict.

    Its class embedding gets one row more, zeros: our null label.

    Raises: `Error` for an option we do not have, and for weights unknown, missing or of another shape.
    """
    import torch

    ours = config_from_diffusers(config)
    check_size("UNet2DModel", ours.layers, weights)
    theirs = modern(weights)
    if ours.classes and "class_embedding.weight" in theirs:
        rows = theirs["class_embedding.weight"]
        theirs["class_embedding.weight"] = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])
    return ours, stacked("UNet2DModel", name_table(ours), theirs)


def unet_to_diffusers(
    config: UNetConfig, state: Mapping[str, Tensor], sample_size: int | tuple[int, int] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and state dict of the diffusers `UNet2DModel` that computes the same; its last class is our null.

    Args:
        sample_size: pixels a side, or height and width, which diffusers' pipelines make images of. A network that came
            from diffusers has its own; for one of kuosan's name it, or those pipelines refuse the model.

    Raises: `Error` for what `UNet2DModel` cannot do, and for weights unknown, missing or of another shape.
    """
    return config_to_diffusers(config, sample_size), split("UNet", name_table(config), state)
