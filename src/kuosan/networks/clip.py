"""CLIP's text network (Radford et al. 2021), as Stable Diffusion reads prompts with it: CLIP-L, OpenCLIP's H and bigG.

h += attention(norm1(h)), each token looking at itself and those before;  h += fc2(act(fc1(norm2(h))))

Its weights have the names that they have on disk, in transformers' layout without the prefix `text_model.`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan.errors import Error
from kuosan.networks.layers import initialise, normed
from kuosan.networks.text_config import CLIPText


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x): what CLIP-L was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class CLIPOutput(NamedTuple):
    """What is read of a text: every layer's features, the last one's behind the final norm, and one vector."""

    last_hidden_state: Tensor  # (B, L, W), behind the final norm
    hidden_states: tuple[Tensor, ...]  # depth + 1 of (B, L, W), before it: the embedding, then each layer's
    pooled: Tensor  # (B, W) at the end of the text, or (B, projection)


class CLIPAttention(nn.Module):
    """Attention of each token to itself and to those before it: (B, L, W) -> (B, L, W), to be added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        B, L, W = h.shape
        q, k, v = (
            part(h).view(B, L, self.heads, W // self.heads).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return cast(Tensor, self.out_proj(mixed.transpose(1, 2).reshape(B, L, W)))


class CLIPLayer(nn.Module):
    """Attention and a perceptron: (B, L, W) -> (B, L, W)."""

    def __init__(self, config: CLIPText) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.act]
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.self_attn = CLIPAttention(config.width, config.heads)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(config.width, config.hidden), "fc2": nn.Linear(config.hidden, config.width)}
        )

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.self_attn(normed(self.layer_norm1, h))
        return h + cast(Tensor, self.mlp["fc2"](self.act(self.mlp["fc1"](normed(self.layer_norm2, h)))))


class CLIPTextNetwork(nn.Module):
    """Tokens (B, L) int64, each row with its begin, its end and what fills it up, to a `CLIPOutput`."""

    def __init__(self, config: CLIPText, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # torch's own initialisation would draw from its global generator
            tokens = nn.Embedding(config.vocabulary, config.width)
            positions = nn.Embedding(config.length, config.width)
            self.embeddings = nn.ModuleDict({"token_embedding": tokens, "position_embedding": positions})
            layers = nn.ModuleList(CLIPLayer(config) for _ in range(config.depth))
            self.encoder = nn.ModuleDict({"layers": layers})
            self.final_layer_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
            self.text_projection = nn.Linear(config.width, config.projection, bias=False) if config.projection else None
        if device.type != "meta":
            self.to_empty(device=device)
            initialise(self, seed, rows_std=0.02)

    def forward(self, input_ids: Tensor, **_: Any) -> CLIPOutput:
        """Raises: `Error` for more tokens than it has positions."""
        L = input_ids.shape[1]
        if self.config.length < L:
            raise Error(
                f"{L} tokens: this text network reads {self.config.length} at most. Cut the text, or in chunks."
            )
        positions = cast(nn.Embedding, self.embeddings["position_embedding"]).weight[:L]
        h = self.embeddings["token_embedding"](input_ids) + positions
        states = [h]
        for layer in cast(Iterable[CLIPLayer], self.encoder["layers"]):
            h = layer(h)
            states.append(h)
        last = normed(self.final_layer_norm, h)
        pooled = last[torch.arange(len(last), device=last.device), self._end(input_ids)]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        return CLIPOutput(last, tuple(states), pooled)

    def _end(self, input_ids: Tensor) -> Tensor:
        """Where each text ends (B,): at its first end token; at its highest where the config says 2, as old ones do."""
        if self.config.end == 2:
            return input_ids.argmax(1)
        return (input_ids == self.config.end).int().argmax(1)
