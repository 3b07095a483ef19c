"""Stable Diffusion's single files: each of their names as diffusers' folders have it, and back. Torch-free.

    model.diffusion_model.*                     unet/             the U-Net, its blocks numbered through
    first_stage_model.*                         vae/              the autoencoder
    cond_stage_model.transformer.*              text_encoder/     CLIP-L of SD 1
    cond_stage_model.model.*                    text_encoder/     OpenCLIP-H of SD 2, with q, k and v in one
    conditioner.embedders.0.transformer.*       text_encoder/     CLIP-L of SDXL
    conditioner.embedders.1.model.*             text_encoder_2/   OpenCLIP-G of SDXL

One tensor of a single file is one of a folder, or (q, k, v) three, one above the other; a linear map may be stored as a
convolution of 1 x 1, and OpenCLIP's projection is transposed. `to_diffusers` says which; `to_single` is its inverse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kuosan.convert.diffusers import renamed

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_L = {"sd1": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
OPEN_CLIP = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}
PREFIXES: dict[str, dict[str, str]] = {  # of each family's single file: part -> the beginning of its names
    "sd1": {"unet": UNET, "vae": VAE, "text_encoder": CLIP_L["sd1"]},
    "sd2": {"unet": UNET, "vae": VAE, "text_encoder": OPEN_CLIP["sd2"]},
    "sdxl": {"unet": UNET, "vae": VAE, "text_encoder": CLIP_L["sdxl"], "text_encoder_2": OPEN_CLIP["sdxl"]},
}


class Piece(NamedTuple):
    """What of a single file's tensor a folder's tensor is: number `nth` of `of` equal parts, transposed or not."""

    name: str  # in the folder's part
    nth: int = 0
    of: int = 1
    transposed: bool = False


_RESNET = [  # (single file's, diffusers')
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
]
_UNET_ENDS = [
    ("time_embed.0.", "time_embedding.linear_1."),
    ("time_embed.2.", "time_embedding.linear_2."),
    ("label_emb.0.0.", "add_embedding.linear_1."),
    ("label_emb.0.2.", "add_embedding.linear_2."),
    ("input_blocks.0.0.", "conv_in."),
    ("out.0.", "conv_norm_out."),
    ("out.2.", "conv_out."),
]
_MIDDLE = ["mid_block.resnets.0.", "mid_block.attentions.0.", "mid_block.resnets.1."]
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)")


def _exchanged(name: str, pairs: Iterable[tuple[str, str]], back: bool = False) -> str | None:
    """A name whose beginning is one of a pair's, with the other's; None where none is."""
    for one, other in pairs:
        one, other = (other, one) if back else (one, other)
        if name.startswith(one):
            return other + name[len(one) :]
    return None


def blocks_a_level(names: Iterable[str]) -> int:
    """Residual blocks of each level of a single file's U-Net, from the place of its first downsampling."""
    inputs = [(match[1], int(match[2]), match[4]) for match in map(_BLOCK.fullmatch, names) if match]
    downs = [place for side, place, rest in inputs if side == "input" and rest.startswith("op.")]
    return min(downs, default=max((place for side, place, _ in inputs if side == "input"), default=1) + 1) - 1


def unet_to_diffusers(name: str, blocks: int) -> str | None:
    """diffusers' name of a U-Net's tensor; None where it has none.

    Args:
        name: without the beginning that all have.
        blocks: of `blocks_a_level`.
    """
    if (found := _exchanged(name, _UNET_ENDS)) is not None:
        return found
    if name.startswith("middle_block."):
        inner, _, rest = name.removeprefix("middle_block.").partition(".")
        return _inside(_MIDDLE[int(inner)], rest) if inner in ("0", "1", "2") else None
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    side, number, slot, rest = match[1], int(match[2]), int(match[3]), match[4]
    if side == "input":
        level, place = divmod(number - 1, blocks + 1)
        if place == blocks:
            return f"down_blocks.{level}.downsamplers.0.conv.{rest[3:]}" if slot == 0 and rest[:3] == "op." else None
        stem = f"down_blocks.{level}."
    else:
        level, place = divmod(number, blocks + 1)
        if slot in (1, 2) and rest.startswith("conv."):
            return f"up_blocks.{level}.upsamplers.0.conv.{rest[5:]}"
        stem = f"up_blocks.{level}."
    return _inside(f"{stem}{('resnets', 'attentions')[slot]}.{place}.", rest) if slot < 2 else None


def _inside(stem: str, rest: str) -> str | None:
    """The name of what lies in a residual block; what lies in an attention bears the same in both."""
    if ".attentions." in stem:
        return stem + rest
    found = _exchanged(rest, _RESNET)
    return None if found is None else stem + found


def unet_to_single(name: str, blocks: int, attends: Mapping[int, bool]) -> str:
    """The inverse of `unet_to_diffusers`.

    Args:
        attends: whether each level going up has attentions: where the way up stands behind them.
    """
    if (found := _exchanged(name, _UNET_ENDS, back=True)) is not None:
        return found
    for place, stem in enumerate(_MIDDLE):
        if name.startswith(stem):
            return f"middle_block.{place}.{_outside(stem, name[len(stem) :])}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    assert match is not None, name
    down, level, kind, place, rest = match[1] == "down", int(match[2]), match[3], int(match[4]), match[5]
    first = level * (blocks + 1) + down
    side = "input" if down else "output"
    if kind == "downsamplers":
        return f"input_blocks.{first + blocks}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{first + blocks}.{2 if attends[level] else 1}.{rest}"
    stem = f"{kind}.{place}."
    return f"{side}_blocks.{first + place}.{int(kind == 'attentions')}.{_outside('.' + stem, rest)}"


def _outside(stem: str, rest: str) -> str:
    return rest if ".attentions." in stem else _exchanged(rest, _RESNET, back=True) or rest


_VAE = [  # (single file's, diffusers'), applied one after another
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.(?:to_)?([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.(?:proj_out|to_out\.0)\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
]
_VAE_BACK = [
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.", r".up.\1.block."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"^(encoder|decoder)\.conv_norm_out\.", r"\1.norm_out."),
]
_VAE_NAME = re.compile(r"(encoder|decoder)\.|quant_conv\.|post_quant_conv\.")
_UP = re.compile(r"^decoder\.(up|up_blocks)\.(\d+)\.")
LINEAR_IN_VAE = re.compile(r"\.mid_block\.attentions\.0\.to_(?:[qkv]|out\.0)\.weight$")  # 1 x 1 convolutions in files


def vae_levels(names: Iterable[str]) -> int:
    """Levels of a decoder, by either layout's names."""
    return consecutive(int(match[2]) for match in map(_UP.match, names) if match)


def consecutive(numbers: Iterable[int]) -> int:
    """How many numbers there are from 0 on without a gap."""
    there = set(numbers)
    return next(count for count in range(len(there) + 1) if count not in there)


def vae_to_diffusers(name: str, levels: int) -> str | None:
    """diffusers' name of an autoencoder's tensor; None where it has none."""
    return renamed(_turned(name, levels), _VAE) if _VAE_NAME.match(name) else None


def vae_to_single(name: str, levels: int) -> str:
    """The inverse of `vae_to_diffusers`."""
    return renamed(_turned(name, levels), _VAE_BACK)


def _turned(name: str, levels: int) -> str:
    """A decoder's levels count from the finest in single files, from the coarsest in diffusers."""
    return _UP.sub(lambda match: f"decoder.{match[1]}.{levels - 1 - int(match[2])}.", name)


_CLIP_TOP = ("embeddings.", "encoder.", "final_layer_norm.")


def clip_name(name: str) -> str | None:
    """A CLIP text network's name as transformers wrote it before it flattened the module; None where it has none."""
    bare = name.removeprefix("text_model.")
    if bare.startswith(_CLIP_TOP):
        return f"text_model.{bare}"
    return name if name == "text_projection.weight" else None


_OPEN = [
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("ln_final.", "text_model.final_layer_norm."),
]
_OPEN_LAYER = [
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
]
_OPEN_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_CLIP_BLOCK = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)")
_QKV = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")


def open_clip_to_transformers(name: str, projected: bool) -> list[Piece]:
    """The tensors of transformers' CLIP text network that one of OpenCLIP's holds; empty where it is none of them.

    Args:
        projected: whether the network has a projection: SDXL's has, and SD 2's makes no use of it.
    """
    if name == "text_projection":
        return [Piece("text_projection.weight", transposed=True)] if projected else []
    if name == "text_projection.weight":  # as some tools write it, in transformers' own sense
        return [Piece(name)] if projected else []
    if (found := _exchanged(name, _OPEN)) is not None:
        return [Piece(found)]
    if (match := _OPEN_BLOCK.fullmatch(name)) is None:
        return []
    stem, rest = f"text_model.encoder.layers.{match[1]}.", match[2]
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = rest.rpartition("_")[2]
        return [Piece(f"{stem}self_attn.{letter}_proj.{kind}", i, 3) for i, letter in enumerate("qkv")]
    found = _exchanged(rest, _OPEN_LAYER)
    return [] if found is None else [Piece(stem + found)]


def transformers_to_open_clip(name: str) -> tuple[str, int]:
    """OpenCLIP's tensor that holds one of transformers', and which part of it this is: 0, or of q, k, v 0 to 2."""
    if name == "text_projection.weight":
        return "text_projection", 0
    if (match := _CLIP_BLOCK.fullmatch(name)) is not None:
        stem = f"transformer.resblocks.{match[1]}."
        if (own := _QKV.fullmatch(match[2])) is not None:
            return f"{stem}attn.in_proj_{own[2]}", "qkv".index(own[1])
        return stem + (_exchanged(match[2], _OPEN_LAYER, back=True) or match[2]), 0
    return _exchanged(name, _OPEN, back=True) or name, 0


SKIPPED_LAYER = 23  # of SD 2's text network, the last of 24: what it gives is not used, and folders have it not


def to_diffusers(family: str, part: str, names: Sequence[str]) -> dict[str, list[Piece]]:
    """What each tensor of a part of a single file is in a folder; an empty list where nothing there is known of it.

    Args:
        names: of the part's tensors, without the beginning that all have.
    """
    if part == "unet":
        blocks = blocks_a_level(names)
        found = {name: unet_to_diffusers(name, blocks) for name in names}
    elif part == "vae":
        levels = vae_levels(names)
        found = {name: vae_to_diffusers(name, levels) for name in names}
    elif (family, part) in (("sd2", "text_encoder"), ("sdxl", "text_encoder_2")):
        pieces = {name: open_clip_to_transformers(name, family == "sdxl") for name in names}
        if family == "sd2":
            skipped = f"transformer.resblocks.{SKIPPED_LAYER}."
            pieces = {name: [] if name.startswith(skipped) else own for name, own in pieces.items()}
        return pieces
    else:
        found = {name: clip_name(name) for name in names}
        if family == "sd1":  # a whole CLIP's projection, of which SD 1 makes no use
            found.pop("text_projection.weight", None)
    return {name: [] if own is None else [Piece(own)] for name, own in found.items()} | {
        name: [] for name in names if name not in found
    }


def to_single(family: str, part: str, names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """The tensor of a single file that each tensor of a folder's part is in, and which part of it it is."""
    stem = PREFIXES[family][part]
    if part == "unet":
        blocks = 1 + max(int(m[1]) for m in (re.match(r"down_blocks\.0\.resnets\.(\d+)\.", n) for n in names) if m)
        ups = {int(m[1]) for m in (re.match(r"up_blocks\.(\d+)\.attentions\.", n) for n in names) if m}
        attends = {level: level in ups for level in range(100)}
        return {name: (stem + unet_to_single(name, blocks, attends), 0) for name in names}
    if part == "vae":
        levels = vae_levels(names)
        return {name: (stem + vae_to_single(name, levels), 0) for name in names}
    if (family, part) in (("sd2", "text_encoder"), ("sdxl", "text_encoder_2")):
        pairs = {name: transformers_to_open_clip(name) for name in names}
        return {name: (stem + own, index) for name, (own, index) in pairs.items()}
    return {name: (stem + name, 0) for name in names}
