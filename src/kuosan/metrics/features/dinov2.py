"""DINOv2's vision transformers (Oquab et al. 2024), S, B and L with patches of 14: the class token after the last norm.

    x <- x + g1 * attention(norm x),  x <- x + g2 * mlp(norm x)

The file's shapes say which it is; module names are the file's. Input is ImageNet-normalised, 224 px, as Stein et al.
2023 use it. Position embeddings, learned for 37 x 37 patches, are resized as the reference code does: bicubic, by the
factor (n + 0.1) / 37.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kuosan.errors import Error
from kuosan.metrics.features.inception import fill, read
from kuosan.metrics.features.names import Family
from kuosan.metrics.features.network import FeatureNetwork

PATCH = 14
HEAD = 64  # width of an attention head
SIZES = {384: "dinov2-vits14", 768: "dinov2-vitb14", 1024: "dinov2-vitl14"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
OFFSET = 0.1  # the reference code's `interpolate_offset`


class Patches(nn.Module):
    """Images to patch tokens (B, L, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x)
        return tokens.flatten(2).transpose(1, 2)


class DinoAttention(nn.Module):
    """Attention among all tokens (B, L, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, l, d = x.shape
        q, k, v = self.qkv(x).view(b, l, 3, d // HEAD, HEAD).permute(2, 0, 3, 1, 4)  # (B, heads, L, HEAD) each
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, l, d)
        mixed: Tensor = self.proj(out)
        return mixed


class Mlp(nn.Module):
    """Two layers, the inner four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Scale(nn.Module):
    """A learned gain a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DinoBlock(nn.Module):
    """Attention and MLP, each normed before, scaled, and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = DinoAttention(width), Mlp(width)
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        x = x + self.ls2(self.mlp(self.norm2(x)))
        return x


class DinoV2(nn.Module):
    """Images (B, 3, S, S) in [0, 255], S a multiple of 14, to class tokens (B, D)."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, depth: int, grid: int, offset: float = OFFSET) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.patch_embed = Patches(width)
        self.blocks = nn.ModuleList(DinoBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.grid, self.offset = grid, offset

    def positions(self, n: int) -> Tensor:
        """Position embeddings of a class token and n x n patches (1, 1 + n n, D)."""
        if n == self.grid:
            return self.pos_embed
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        square = rest.transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        factor = (n + self.offset) / self.grid
        if self.offset:
            square = F.interpolate(square, scale_factor=(factor, factor), mode="bicubic")
        else:
            square = F.interpolate(square, size=(n, n), mode="bicubic")
        return torch.cat([first, square.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed((x - self.mean) / self.std)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = tokens + self.positions(x.shape[-1] // PATCH)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens[:, 0])
        return out


def load(path: Path, config: Family) -> FeatureNetwork:
    """Reads the public state dict (dinov2_vits14_pretrain.pth and its larger sisters).

    Raises:
        Error: another network's file, the register or giant variants among them.
    """
    tensors, digest = read(path)
    cls, pos = tensors.get("cls_token"), tensors.get("pos_embed")
    width = cls.shape[-1] if cls is not None else 0
    if pos is None or width not in SIZES or "register_tokens" in tensors:
        what = "one with registers" if "register_tokens" in tensors else f"width {width}"
        raise Error(f"{path} is {what}: allowed are DINOv2's ViT-S/14, B/14 and L/14 without registers.")
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    network = DinoV2(width, depth, round((pos.shape[1] - 1) ** 0.5))
    fill(network, tensors, path, ignored=("mask_token",))
    return FeatureNetwork(SIZES[width], width, config.size, digest, network, config.resize)
