"""A small text transformer for people without a text encoder, and a network conditioned on text by one.

A token of text is up to 16 bytes (a word, a mark, one Chinese character): the sum over its bytes of a row each for
(place, byte), as a perceptron reads it. So every text in any script has a reading, and a word is one token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan.networks.layers import Context, attend, initialise, normed
from kuosan.networks.text_config import WORD, ByteText

SYMBOLS = 258  # 0 no byte, 1 to 256 a byte, 257 the beginning


class Layer(nn.Module):
    """Attention between the tokens, and a perceptron on each: (B, L, W) -> (B, L, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:  # mask: (B, 1, 1, L)
        B, L, W = h.shape
        q, k, v = self.qkv(normed(self.norm1, h)).view(B, L, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4)
        h = h + self.out(attend(q, k, v, mask).transpose(1, 2).reshape(B, L, W))
        return h + cast(Tensor, self.down(F.gelu(self.up(normed(self.norm2, h)))))


class TextTransformer(nn.Module):
    """Tokens of text (B, L, 16) int64, as `text.tokens` makes them, to a `Context` of width W."""

    def __init__(self, config: ByteText, seed: int = 0) -> None:
        super().__init__()
        assert config.length, "the length is known when a network is built"
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # torch's own initialisation would draw from its global generator
            self.bytes = nn.Embedding(WORD * SYMBOLS, config.width)
            self.norm = nn.LayerNorm(config.width)
            self.up, self.down = nn.Linear(config.width, 2 * config.width), nn.Linear(2 * config.width, config.width)
            self.places = nn.Embedding(config.length, config.width)
            self.layers = nn.ModuleList(Layer(config.width, config.heads) for _ in range(config.depth))
            self.exit = nn.LayerNorm(config.width)
        if device.type != "meta":
            self.to_empty(device=device)
            initialise(self, seed, rows_std=0.02)

    def forward(self, tokens: Tensor) -> Context:
        L = tokens.shape[1]
        assert tokens.shape[2] == WORD and self.config.length >= L, tokens.shape
        there = tokens.ne(0)
        rows = tokens + SYMBOLS * torch.arange(WORD, device=tokens.device)
        h = (self.bytes(rows) * there[..., None]).sum(2)
        h = normed(self.norm, h)
        h = h + self.down(F.gelu(self.up(h))) + self.places.weight[:L]
        mask = there.any(2)
        for layer in cast(Iterable[Layer], self.layers):
            h = layer(h, mask[:, None, None, :])
        return Context(normed(self.exit, h), mask)


class Texted(nn.Module):
    """A network with a context input, and the text transformer that is trained with it and makes that context.

    In training it is called with `tokens`; in sampling the text is read once (`text`), and `context` given instead.
    """

    def __init__(self, network: nn.Module, text: TextTransformer) -> None:
        super().__init__()
        self.network, self.text = network, text

    @property
    def config(self) -> Any:
        """The network's."""
        return self.network.config

    def forward(self, x: Tensor, t: Tensor, *, tokens: Tensor | None = None, **cond: Tensor) -> Tensor:
        if tokens is not None:
            features, mask = self.text(tokens)
            cond |= {"context": features, "context_mask": mask}
        return cast(Tensor, self.network(x, t, **cond))
