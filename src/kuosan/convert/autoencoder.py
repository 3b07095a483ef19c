"""diffusers' `AutoencoderKL` (Stable Diffusion's `vae` folder) <-> our `Autoencoder`, by a table of names.

q, k, v stack to one qkv. Every weight is used exactly once; one left over or missing is an `Error`, and options we do
not have are refused by name. Latents are raw on our side: `scaling_factor` changes nothing here and comes
back on the way out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kuosan.convert.diffusers import beside, check_size, check_types, modern, parts_of, split, stacked
from kuosan.errors import Error
from kuosan.networks.autoencoder_config import AutoencoderConfig

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = [  # (ours, diffusers'), applied one after another to our names
    (r"\.entrance\.", ".conv_in."),
    (r"\.exit\.(weight|bias)$", r".exit.conv.\1"),
    (r"^encoder\.levels\.(\d+)\.exit\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"^decoder\.levels\.(\d+)\.exit\.conv\.", r"decoder.up_blocks.\1.upsamplers.0.conv."),
    (r"\.exit\.conv\.", ".conv_out."),
    (r"^(\w+)\.norm\.", r"\1.conv_norm_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"^encoder\.levels\.(\d+)\.", r"encoder.down_blocks.\1."),
    (r"^decoder\.levels\.(\d+)\.", r"decoder.up_blocks.\1."),
    (r"\.blocks\.(\d+)\.", r".resnets.\1."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.out\.", r"\1.to_out.0."),
]
_DEFAULTS: dict[str, Any] = {  # AutoencoderKL's own, for configs that leave an option out
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
_FIXED: dict[str, tuple[Any, ...]] = {  # options we have in one setting
    "act_fn": ("silu", "swish"),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
}
_IDLE = {"sample_size", "scaling_factor", "force_upcast"}  # change neither the weights nor the output


def name_table(config: AutoencoderConfig) -> dict[str, dict[str, int]]:
    """{our weight: {diffusers' weight: its rows}}, in the order they are stacked."""
    import torch

    from kuosan.networks.autoencoder import Autoencoder

    with torch.device("meta"):
        weights = Autoencoder(config.alone).state_dict()
    return {name: parts_of(name, weight.shape[0], _NAMES) for name, weight in weights.items()}


def autoencoder_from_diffusers(
    config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[AutoencoderConfig, dict[str, Tensor]]:
    """Our config and state dict of a diffusers `AutoencoderKL`, from its config.json and its state dict.

    Raises: `Error` for an option we do not have, and for weights unknown, missing or of another shape.
    """
    ours = config_from_diffusers(config)
    check_size("AutoencoderKL", ours.layers, weights)
    return ours, stacked("AutoencoderKL", name_table(ours), modern(weights))


def autoencoder_to_diffusers(
    config: AutoencoderConfig,
    state: Mapping[str, Tensor],
    scaling_factor: float | None = None,
    sample_size: int | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and state dict of the diffusers `AutoencoderKL` that computes the same; a discriminator is left out.

    Args:
        scaling_factor: what diffusers' pipelines multiply latents by, 1 / their standard deviation. None: as it was
            read, or 0.18215, Stable Diffusion's.
        sample_size: pixels a side, from which diffusers takes the size of its tiles. None: as it was read.

    Raises: `Error` for what `AutoencoderKL` cannot do, and for weights unknown, missing or of another shape.
    """
    from kuosan.networks.autoencoder import weights_alone

    theirs = config_to_diffusers(config, scaling_factor, sample_size)
    return theirs, split("Autoencoder", name_table(config), weights_alone(state))


def config_from_diffusers(config: Mapping[str, Any]) -> AutoencoderConfig:
    """The `AutoencoderConfig` of an `AutoencoderKL`'s config. Raises: `Error` for an option we do not have."""
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    for option in given.keys() - _DEFAULTS.keys() - _IDLE:
        raise _refuse(option, given[option], f"only the options {', '.join(sorted(_DEFAULTS))}")
    full = {**_DEFAULTS, **given}
    check_types("AutoencoderKL", full, _DEFAULTS)
    for option, allowed in _FIXED.items():
        if full[option] not in allowed:
            raise _refuse(option, full[option], allowed[0])
    widths, levels = tuple(full["block_out_channels"]), len(full["block_out_channels"])
    for option, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if tuple(full[option]) != (kind,) * levels:
            raise _refuse(option, full[option], f"{levels} times {kind}")
    if full["in_channels"] != full["out_channels"]:
        raise _refuse("out_channels", full["out_channels"], f"in_channels, {full['in_channels']}")
    if any(width % widths[0] for width in widths):
        raise _refuse("block_out_channels", widths, "multiples of the first")
    ours = AutoencoderConfig(
        in_channels=full["in_channels"],
        latent_channels=full["latent_channels"],
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=full["layers_per_block"],
        middle_attention=full["mid_block_add_attention"],
        groups=full["norm_num_groups"],
        norm_eps=1e-6,  # AutoencoderKL's, in code
    )
    kept = beside({name: value for name, value in given.items() if name in _IDLE}, {})
    return replace(ours, origin=kept)


def config_to_diffusers(
    config: AutoencoderConfig, scaling_factor: float | None = None, sample_size: int | None = None
) -> dict[str, Any]:
    """The config.json of the `AutoencoderKL` with this config's shape, with every number that one read by
    `config_from_diffusers` held. Raises: `Error` for what it cannot do, and for numbers that nobody can use.
    """
    if scaling_factor is not None and not 0 < scaling_factor < math.inf:
        raise Error(f"scaling_factor {scaling_factor}: need 1 / the latents' standard deviation, above 0, as 0.18215.")
    if sample_size is not None and (isinstance(sample_size, bool) or sample_size < 1):
        raise Error(f"sample_size {sample_size}: need pixels a side, 1 or more, as 512.")
    whole = _written(config) | dict(config.origin)  # of an autoencoder, only numbers that change nothing
    asked = {"scaling_factor": scaling_factor, "sample_size": sample_size}
    return whole | {name: value for name, value in asked.items() if value is not None}


def _written(config: AutoencoderConfig) -> dict[str, Any]:
    for field, only in (("patch", 1), ("norm_eps", 1e-6)):
        if getattr(config, field) != only:
            raise Error(f"AutoencoderConfig.{field} is {getattr(config, field)}; diffusers' AutoencoderKL has {only}.")
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": ["DownEncoderBlock2D"] * config.levels,
        "up_block_types": ["UpDecoderBlock2D"] * config.levels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks,
        "act_fn": "silu",
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.groups,
        "mid_block_add_attention": config.middle_attention,
        "scaling_factor": 0.18215,
    }


def _refuse(option: str, value: object, allowed: object) -> Error:
    return Error(f"AutoencoderKL's {option} is {value!r}; we can take {allowed}.")
