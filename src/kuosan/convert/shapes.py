"""The configurations of Stable Diffusion's networks, and every tensor that each has: name and shape. Torch-free.

    unet_config(shapes)  ->  config.json of the U-Net     unet_shapes(config)  ->  {name: shape}

The first reads a configuration off a single file's tensors (which has none of its own), the second says what a network
of that configuration consists of, so that a missing or an unknown tensor is seen before any is read. Names are
diffusers' and transformers' own. What shapes cannot say, heads above all, the family does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kuosan.convert.families import Family
from kuosan.convert.sgm import consecutive
from kuosan.errors import Error, shown

Shapes = Mapping[str, tuple[int, ...]]
HEAD = 64  # channels of an attention head: CLIP's, OpenCLIP's, and those of the U-Nets of SD 2 and SDXL
GROUPS = 32


def _count(shapes: Shapes, pattern: str) -> int:
    """How many things are numbered where the pattern has its group, from 0 on without a gap."""
    compiled = re.compile(pattern)
    return consecutive(int(match[1]) for match in map(compiled.match, shapes) if match)


def _has(shapes: Shapes, start: str) -> bool:
    return any(name.startswith(start) for name in shapes)


def _side(shapes: Shapes, name: str, side: int, where: str) -> int:
    """One side of a tensor. Raises: Error where it is missing, or has no such side."""
    if name not in shapes:
        raise Error(f"{where}: {name} is missing.")
    if len(shapes[name]) <= side:
        raise Error(f"{where}: {name} has the shape {shown(shapes[name])}, which is none of such a network.")
    return shapes[name][side]


def unet_config(shapes: Shapes, family: Family, where: str) -> dict[str, Any]:
    """The config.json of the U-Net with these tensors. Raises: Error for what is none."""
    levels = _count(shapes, r"down_blocks\.(\d+)\.")
    blocks = _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\.")
    if not levels or not blocks:
        raise Error(f"{where}: the U-Net's first level has no residual blocks.")
    widths = [_side(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 0, where) for i in range(levels)]
    depths = [_count(shapes, rf"down_blocks\.{i}\.attentions\.0\.transformer_blocks\.(\d+)\.") for i in range(levels)]
    middle = _count(shapes, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.")
    attending = next((i for i, depth in enumerate(depths) if depth), None)
    if attending is None or middle != (depths[-1] or middle):
        raise Error(f"{where}: the U-Net attends to no text, or otherwise than Stable Diffusion's do.")
    attention = f"down_blocks.{attending}.attentions.0."
    config = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": None,
        "attention_head_dim": 8 if family == "sd1" else [max(1, width // HEAD) for width in widths],
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": _side(shapes, f"{attention}transformer_blocks.0.attn2.to_k.weight", 1, where),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": _side(shapes, "conv_in.weight", 1, where),
        "layers_per_block": blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": GROUPS,
        "out_channels": _side(shapes, "conv_out.weight", 0, where),
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "use_linear_projection": len(shapes.get(f"{attention}proj_in.weight", ())) == 2,
    }
    if family == "sdxl":
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": _side(shapes, "add_embedding.linear_1.weight", 1, where),
            "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [depths[-1] or middle],
        }
    return config


UNET_DEFAULTS: dict[str, Any] = {  # UNet2DConditionModel's own, for what a config.json leaves out
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 1280,
    "use_linear_projection": False,
    "transformer_layers_per_block": 1,
    "addition_embed_type": None,
    "projection_class_embeddings_input_dim": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim": None,
    "dual_cross_attention": False,
    "time_cond_proj_dim": None,
}
_UNET_FIXED = {
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "dual_cross_attention": (False,),
    "addition_embed_type": (None, "text_time"),
}


def unet_shapes(given: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of the U-Net of a config.json. Raises: Error for what such a network here cannot be."""
    c = {**UNET_DEFAULTS, **given}
    for option, allowed in _UNET_FIXED.items():
        if c[option] not in allowed:
            raise Error(f"{where}: {option} is {shown(c[option])}; allowed: {' or '.join(map(repr, allowed))}.")
    for option in ("down_block_types", "up_block_types"):
        if wrong := [kind for kind in c[option] if kind not in _BLOCKS[option]]:
            raise Error(f"{where}: {option} has {shown(wrong[0])}; allowed: {' and '.join(_BLOCKS[option])}.")
    widths, blocks = list(c["block_out_channels"]), c["layers_per_block"]
    depths = c["transformer_layers_per_block"]
    depths = [depths] * len(widths) if isinstance(depths, int) else list(depths)
    attends = ["CrossAttn" in kind for kind in c["down_block_types"]]
    ups = ["CrossAttn" in kind for kind in reversed(c["up_block_types"])]
    lists = (attends, ups, depths)
    if not isinstance(blocks, int) or any(len(each) != len(widths) for each in lists) or attends != ups:
        raise Error(f"{where}: block types, widths and layers do not fit each other; one of each a level, as SD has.")
    time, cross, linear = 4 * widths[0], c["cross_attention_dim"], c["use_linear_projection"]
    found: dict[str, tuple[int, ...]] = {}

    def resnet(stem: str, channels: int, out: int) -> None:
        found.update(_norm(f"{stem}norm1", channels))
        found.update(_conv(f"{stem}conv1", channels, out, 3))
        found.update(_linear(f"{stem}time_emb_proj", time, out))
        found.update(_norm(f"{stem}norm2", out))
        found.update(_conv(f"{stem}conv2", out, out, 3))
        if channels != out:
            found.update(_conv(f"{stem}conv_shortcut", channels, out, 1))

    def attention(stem: str, width: int, depth: int) -> None:
        found.update(_norm(f"{stem}norm", width))
        for name in ("proj_in", "proj_out"):
            found.update(_linear(stem + name, width, width) if linear else _conv(stem + name, width, width, 1))
        for i in range(depth):
            block = f"{stem}transformer_blocks.{i}."
            for number in "123":
                found.update(_norm(f"{block}norm{number}", width))
            for name, context in (("attn1", width), ("attn2", cross)):
                for letter, side in (("q", width), ("k", context), ("v", context)):
                    found[f"{block}{name}.to_{letter}.weight"] = (width, side)
                found.update(_linear(f"{block}{name}.to_out.0", width, width))
            found.update(_linear(f"{block}ff.net.0.proj", width, 8 * width))
            found.update(_linear(f"{block}ff.net.2", 4 * width, width))

    found.update(_conv("conv_in", c["in_channels"], widths[0], 3))
    found.update(_linear("time_embedding.linear_1", widths[0], time))
    found.update(_linear("time_embedding.linear_2", time, time))
    if c["time_cond_proj_dim"]:  # of a latent consistency model: the guidance scale as an input
        found["time_embedding.cond_proj.weight"] = (widths[0], c["time_cond_proj_dim"])
    if c["addition_embed_type"] == "text_time":
        found.update(_linear("add_embedding.linear_1", c["projection_class_embeddings_input_dim"], time))
        found.update(_linear("add_embedding.linear_2", time, time))
    skips, channels = [widths[0]], widths[0]
    for i, width in enumerate(widths):
        for j in range(blocks):
            resnet(f"down_blocks.{i}.resnets.{j}.", channels, width)
            if attends[i]:
                attention(f"down_blocks.{i}.attentions.{j}.", width, depths[i])
            channels = width
            skips.append(channels)
        if i < len(widths) - 1:
            found.update(_conv(f"down_blocks.{i}.downsamplers.0.conv", width, width, 3))
            skips.append(width)
    resnet("mid_block.resnets.0.", channels, channels)
    attention("mid_block.attentions.0.", channels, depths[-1])
    resnet("mid_block.resnets.1.", channels, channels)
    for up, i in enumerate(reversed(range(len(widths)))):
        for j in range(blocks + 1):
            resnet(f"up_blocks.{up}.resnets.{j}.", channels + skips.pop(), widths[i])
            channels = widths[i]
            if attends[i]:
                attention(f"up_blocks.{up}.attentions.{j}.", channels, depths[i])
        if i:
            found.update(_conv(f"up_blocks.{up}.upsamplers.0.conv", channels, channels, 3))
    found.update(_norm("conv_norm_out", channels))
    found.update(_conv("conv_out", channels, c["out_channels"], 3))
    return found


_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def _norm(stem: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{stem}.weight", (width,)
    yield f"{stem}.bias", (width,)


def _linear(stem: str, channels: int, out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{stem}.weight", (out, channels)
    yield f"{stem}.bias", (out,)


def _conv(stem: str, channels: int, out: int, side: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{stem}.weight", (out, channels, side, side)
    yield f"{stem}.bias", (out,)


SCALING = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}  # 1 / the standard deviation of latents, as published
SIDES = {"sd1": 64, "sd2": 64, "sdxl": 128}  # of latents, where a single file says nothing of it


def vae_config(shapes: Shapes, family: Family, where: str) -> dict[str, Any]:
    """The config.json of the autoencoder with these tensors. Raises: Error for what is none."""
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    config = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [
            _side(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0, where) for i in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": _side(shapes, "encoder.conv_in.weight", 1, where),
        "latent_channels": _side(shapes, "post_quant_conv.weight", 0, where),
        "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "norm_num_groups": GROUPS,
        "out_channels": _side(shapes, "decoder.conv_out.weight", 0, where),
        "sample_size": 8 * SIDES[family],
        "scaling_factor": SCALING[family],
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return config | ({"force_upcast": True} if family == "sdxl" else {})


def vae_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the autoencoder of a config.json; attention's linear maps as folders have them, (C, C)."""
    widths, blocks, latent = list(c["block_out_channels"]), c["layers_per_block"], c["latent_channels"]
    found: dict[str, tuple[int, ...]] = {}

    def resnet(stem: str, channels: int, out: int) -> None:
        found.update(_norm(f"{stem}norm1", channels))
        found.update(_conv(f"{stem}conv1", channels, out, 3))
        found.update(_norm(f"{stem}norm2", out))
        found.update(_conv(f"{stem}conv2", out, out, 3))
        if channels != out:
            found.update(_conv(f"{stem}conv_shortcut", channels, out, 1))

    def middle(stem: str, width: int) -> None:
        resnet(f"{stem}.mid_block.resnets.0.", width, width)
        if c.get("mid_block_add_attention", True):
            found.update(_norm(f"{stem}.mid_block.attentions.0.group_norm", width))
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                found.update(_linear(f"{stem}.mid_block.attentions.0.{name}", width, width))
        resnet(f"{stem}.mid_block.resnets.1.", width, width)

    found.update(_conv("encoder.conv_in", c.get("in_channels", 3), widths[0], 3))
    channels = widths[0]
    for i, width in enumerate(widths):
        for j in range(blocks):
            resnet(f"encoder.down_blocks.{i}.resnets.{j}.", channels, width)
            channels = width
        if i < len(widths) - 1:
            found.update(_conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", width, width, 3))
    middle("encoder", channels)
    found.update(_norm("encoder.conv_norm_out", channels))
    found.update(_conv("encoder.conv_out", channels, 2 * latent, 3))
    found.update(_conv("decoder.conv_in", latent, channels, 3))
    middle("decoder", channels)
    for up, width in enumerate(reversed(widths)):
        for j in range(blocks + 1):
            resnet(f"decoder.up_blocks.{up}.resnets.{j}.", channels, width)
            channels = width
        if up < len(widths) - 1:
            found.update(_conv(f"decoder.up_blocks.{up}.upsamplers.0.conv", width, width, 3))
    found.update(_norm("decoder.conv_norm_out", channels))
    found.update(_conv("decoder.conv_out", channels, c.get("out_channels", 3), 3))
    if c.get("use_quant_conv", True):
        found.update(_conv("quant_conv", 2 * latent, 2 * latent, 1))
    if c.get("use_post_quant_conv", True):
        found.update(_conv("post_quant_conv", latent, latent, 1))
    return found


def clip_config(shapes: Shapes, open_clip: bool, where: str) -> dict[str, Any]:
    """The config.json of the CLIP text network with these tensors. Raises: Error for what is none."""
    width = _side(shapes, "text_model.final_layer_norm.weight", 0, where)
    projection = shapes.get("text_projection.weight")
    words = _side(shapes, "text_model.embeddings.token_embedding.weight", 0, where)
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published: the pooled token is then the one of the highest number
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "hidden_size": width,
        "intermediate_size": _side(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 0, where),
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": _side(shapes, "text_model.embeddings.position_embedding.weight", 0, where),
        "model_type": "clip_text_model",
        "num_attention_heads": max(1, width // HEAD),
        "num_hidden_layers": _count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        "pad_token_id": 1,
        "projection_dim": projection[0] if projection else width,
        "vocab_size": words,
    }


def clip_shapes(c: Mapping[str, Any], projected: bool) -> dict[str, tuple[int, ...]]:
    """Every tensor of the CLIP text network of a config.json."""
    width, hidden = c["hidden_size"], c["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (c["vocab_size"], width),
        "text_model.embeddings.position_embedding.weight": (c["max_position_embeddings"], width),
    }
    for i in range(c["num_hidden_layers"]):
        stem = f"text_model.encoder.layers.{i}."
        for letter in "qkv":
            found.update(_linear(f"{stem}self_attn.{letter}_proj", width, width))
        found.update(_linear(f"{stem}self_attn.out_proj", width, width))
        found.update(_linear(f"{stem}mlp.fc1", width, hidden))
        found.update(_linear(f"{stem}mlp.fc2", hidden, width))
        found.update(_norm(f"{stem}layer_norm1", width))
        found.update(_norm(f"{stem}layer_norm2", width))
    found.update(_norm("text_model.final_layer_norm", width))
    if projected:
        found["text_projection.weight"] = (c["projection_dim"], width)
    return found
