"""diffusers' `UNet2DModel` <-> our `UNet`, by a table of names: {our weight: the weights it is stacked from}.

q, k, v stack to one qkv, and every block's time projection to one conditioning matrix. Every weight is used exactly
once; one left over or missing is an `Error`. Options we do not have are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kuosan.convert.diffusers_config import config_from_diffusers, config_to_diffusers
from kuosan.convert.tables import check_size, modern, parts_of, renamed, split, stacked
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
            names = [renamed(f"{block}.time_emb_proj.{kind}", _NAMES) for block in blocks]
            table[f"{half}.conditioning.{kind}"] = dict(zip(names, part.conditioning.widths, strict=True))
    for name, weight in network.state_dict().items():
        if name not in table:
            table[name] = parts_of(name, weight.shape[0], _NAMES)
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
