"""diffusers' `UNet2DModel` <-> our `UNet`, by a table of names: {our weight: the weights it is stacked from}.

q, k, v stack to one qkv, and every block's time projection to one conditioning matrix. Every weight is used exactly
once; one left over or missing is an `Error`. Options we do not have are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kuosan.convert.diffusers_config import config_from_diffusers, config_to_diffusers
from kuosan.errors import Error
from kuosan.networks.config import UNetConfig

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = [  # (ours, diffusers'), applied one after another to our names
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
# as diffusers spelt attention before 0.13, and as published DDPM checkpoints still do
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def name_table(config: UNetConfig) -> dict[str, dict[str, int]]:
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
            names = [_rename(f"{block}.time_emb_proj.{kind}") for block in blocks]
            table[f"{half}.conditioning.{kind}"] = dict(zip(names, part.conditioning.widths, strict=True))
    for name, weight in network.state_dict().items():
        rows = weight.shape[0]
        if ".qkv." in name:
            table[name] = {_rename(name).replace(".qkv.", f".to_{letter}."): rows // 3 for letter in "qkv"}
        elif name not in table:
            table[name] = {_rename(name): rows}
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
    theirs = {_modern(name): weight for name, weight in weights.items()}
    table = name_table(ours)
    if ours.classes and "class_embedding.weight" in theirs:
        rows = theirs["class_embedding.weight"]
        theirs["class_embedding.weight"] = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])
    sizes = {name: size for parts in table.values() for name, size in parts.items()}
    match("UNet2DModel", sizes, theirs)
    state = {}
    for name, parts in table.items():
        stacked = torch.cat([theirs[part] for part in parts])
        linear = ".qkv." in name or re.search(r"attentions\.\d+\.out\.|middle\.1\.out\.", name)
        state[name] = stacked.flatten(1) if linear and stacked.ndim == 4 else stacked  # old 1x1 convolutions
    return ours, state


def unet_to_diffusers(config: UNetConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and state dict of the diffusers `UNet2DModel` that computes the same; its last class is our null.

    Raises: `Error` for what `UNet2DModel` cannot do, and for weights unknown, missing or of another shape.
    """
    import torch

    theirs, table = config_to_diffusers(config), name_table(config)
    match("UNet", {name: sum(parts.values()) for name, parts in table.items()}, state)
    weights: dict[str, Tensor] = {}
    for name, parts in table.items():
        pieces = torch.split(state[name], list(parts.values()))
        weights |= {part: piece.clone() for part, piece in zip(parts, pieces, strict=True)}
    return theirs, weights


def _rename(name: str) -> str:
    for ours, theirs in _NAMES:
        name = re.sub(ours, theirs, name)
    return name


def _modern(name: str) -> str:
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def match(model: str, rows: Mapping[str, int], weights: Mapping[str, Tensor]) -> None:
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
