"""Text encoders with weights of their own: `open_encoder(settings) -> TextEncoder`, from prompts to tokens' features.

    features' = e + w·(features - e)        a token of weight w; e: the empty prompt's features at the same place

Each text is encoded alone, so its features depend on nothing beside it. The encoder is frozen, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kuosan.errors import Error
from kuosan.text.config import Encoder
from kuosan.text.loading import load
from kuosan.text.locate import locate
from kuosan.text.prompts import parse
from kuosan.text.tokens import Piece, Tokens, Weighted


class Features(NamedTuple):
    """What a network is told: features (..., L, W) float32 and mask (..., L), True where a token is."""

    features: Tensor
    mask: Tensor


class TextEncoder:
    """A frozen text encoder.

    Attributes:
        width: W, channels of a token's features.
        length: tokens of a piece, those that the tokenizer adds included.
        sha256: of the encoder's and its tokenizer's files.

    Raises:
        Error: `hidden` is a layer that it does not have, or it gives no features of tokens.
    """

    def __init__(self, network: nn.Module, tokenizer: Any, settings: Encoder, sha256: str) -> None:
        self.network, self.settings, self.sha256 = network, settings, sha256
        config: Any = network.config
        longest = getattr(config, "max_position_embeddings", None)
        self.tokens = Tokens(tokenizer, settings.encoder, longest, settings.length)
        self.length = self.tokens.length
        self._norm = _final_norm(network)
        self._causal = type(network).__name__.startswith("CLIPText")  # padding behind a text then changes nothing
        self._empty: dict[int, Tensor] = {}
        try:
            self.width = self.row("").features.shape[1]
        except Error:
            raise
        except Exception as error:  # whatever a model of another kind says of tokens alone
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise Error(
                f"{settings.encoder} is no text encoder: its {type(network).__name__} gives no features of tokens "
                f"({reason})."
            ) from None

    @property
    def device(self) -> torch.device:
        """Where it computes; features come from there."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> TextEncoder:
        """Itself, on another device."""
        self.network.to(device)
        self._empty.clear()
        return self

    def settled(self, settings: Encoder) -> Encoder:
        """Settings with what the encoder decides: length, width and the hash of its files."""
        return replace(settings, length=self.length, width=self.width, weights=self.sha256)

    def encode(self, texts: Sequence[str]) -> Features:
        """Texts, in which brackets mean nothing: (B, L, W) and (B, L), L `length`, or a multiple of it for long ones.

        Raises:
            Error: a text is too long, and `long` refuses that.
        """
        own = [self.row(text) for text in texts]
        longest = max((len(mask) for _, mask in own), default=0)
        total = max(1, -(-longest // self.length)) * self.length
        features = torch.zeros(len(own), total, self.width, device=self.device)
        mask = torch.zeros(len(own), total, dtype=torch.bool, device=self.device)
        for i, row in enumerate(own):
            features[i, : len(row.mask)], mask[i, : len(row.mask)] = row
        return Features(features, mask)

    def row(self, text: str) -> Features:
        """One such text, with nothing behind it: (n, W) and (n,)."""
        return self._read([(text, 1.0)])

    def read(self, prompt: str) -> Features:
        """A prompt with weights, `(fox:1.3)`: (n, W) and (n,).

        Raises:
            Error: brackets that do not close, a weight that is none, or a prompt too long where that is refused.
        """
        return self._read(parse(prompt))

    def count(self, text: str) -> int:
        """How many rows `row(text)` has, without encoding it; raises as it does."""
        return self._count([(text, 1.0)])

    def count_read(self, prompt: str) -> int:
        """How many rows `read(prompt)` has, without encoding it; raises as it does."""
        return self._count(parse(prompt))

    def _count(self, parts: Weighted) -> int:
        pieces = self.tokens.pieces(parts, self.settings.long)
        return self.length * len(pieces) if self.settings.padding == "told" else sum(len(each.ids) for each in pieces)

    @torch.no_grad()
    def _read(self, parts: Weighted) -> Features:
        rows = [self._piece(piece) for piece in self.tokens.pieces(parts, self.settings.long)]
        features = torch.cat(rows)
        return Features(features, torch.ones(len(features), dtype=torch.bool, device=features.device))

    def _piece(self, piece: Piece) -> Tensor:
        told = self.settings.padding == "told"
        fill = self.length - len(piece.ids) if told else 0
        features = self._forward([*piece.ids, *[self.tokens.pad] * fill])
        weights = torch.tensor([*piece.weights, *[1.0] * fill], device=features.device)[:, None]
        if bool((weights == 1).all()):
            return features
        empty = self._nothing(len(features))
        return torch.where(weights == 1, features, empty + weights * (features - empty))

    def _nothing(self, count: int) -> Tensor:
        """The empty prompt's features at `count` places, its padding's behind its own tokens: (count, W)."""
        if count not in self._empty:
            own = len(self.tokens.before) + len(self.tokens.behind)
            there = count if self._causal or self.settings.padding == "told" else max(1, min(own, count))
            self._empty[count] = self._forward(self.tokens.empty(count), there)
        return self._empty[count]

    @torch.no_grad()
    def _forward(self, ids: Sequence[int], there: int | None = None) -> Tensor:
        """The chosen layer's output for tokens (n,), of which the first `there` are attended to: (n, W)."""
        tokens = torch.tensor([list(ids)], device=self.device)
        options: dict[str, Any] = {}
        if there is not None and there < len(ids):
            options["attention_mask"] = (torch.arange(len(ids), device=self.device) < there).long()[None]
        if self.settings.hidden == -1:
            found: Tensor = self.network(input_ids=tokens, **options).last_hidden_state
            return found[0].float()
        states = self.network(input_ids=tokens, output_hidden_states=True, **options).hidden_states
        if -self.settings.hidden >= len(states):  # the first is what goes into the first layer
            raise Error(
                f"text.hidden = {self.settings.hidden} is not allowed: {self.settings.encoder} has {len(states) - 1} "
                f"layers, -1 the last to {1 - len(states)} the first."
            )
        chosen = states[self.settings.hidden]
        normed: Tensor = chosen if self._norm is None else self._norm(chosen)
        return normed[0].float()


def open_encoder(settings: Encoder, device: torch.device | str = "cpu", *, fetch: bool = True) -> TextEncoder:
    """The encoder that settings name, from its files.

    Args:
        fetch: whether one that is named `hub:NAME` may be fetched from the hub. False where the name comes from a
            file: a run's configuration may be a stranger's.

    Raises:
        Error: it is not there, cannot be read, or is not the one that `weights` and `width` in the settings say.
    """
    place = locate(settings.encoder, fetch=fetch)
    sha256 = place.sha256()
    if settings.weights not in ("", sha256):
        raise Error(
            f"{settings.encoder} is another text encoder than the one this model was trained with: its files have the "
            f"hash {sha256[:12]}..., that one's {settings.weights[:12]}...; put that one in its place, or give it "
            f"(kuosan train --encoder FOLDER)."
        )
    network, tokenizer = load(place, settings.encoder)
    encoder = TextEncoder(network.to(device), tokenizer, settings, sha256)
    if settings.width not in (0, encoder.width):
        raise Error(
            f"{settings.encoder} gives {encoder.width} channels a token, and the model was made for {settings.width}: "
            f"give the text encoder it was trained with, or leave model.text.width out of a new run."
        )
    return encoder


def _final_norm(network: nn.Module) -> nn.Module | None:
    """The norm behind the last layer, of those that have one: an earlier layer's output goes through it too."""
    for name, module in network.named_modules():
        if name.split(".")[-1] == "final_layer_norm" and not any(part.isdigit() for part in name.split(".")):
            assert isinstance(module, nn.Module)
            return module
    return None
