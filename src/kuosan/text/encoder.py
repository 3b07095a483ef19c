"""Text encoders with weights of their own: `open_encoder(settings) -> TextEncoder`, from prompts to tokens' features.

    features' = e + w·(features - e)        a token of weight w; e: the empty prompt's features at the same place

Each text is encoded alone, so its features depend on nothing beside it. The encoder is frozen, in float32.

Prompts as a network's conditioning: read once a distinct prompt, weighted, padded to one length.

features' = e + w·(features - e), e the empty text's: weight 1 is the reading itself, 0 none, 2 twice as far
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from kuosan.errors import Error
from kuosan.text import tokens
from kuosan.text import tokens as prompts
from kuosan.text.loading import load, locate
from kuosan.text.tokens import Chunk, TextEncoderConfig, Tokens, Weighted, parse

if TYPE_CHECKING:
    from kuosan.networks.text import TextTransformer


class TextFeatures(NamedTuple):
    """What a network attends to: features (..., L, W) float32 and mask (..., L), True where a token is."""

    features: Tensor
    mask: Tensor


class TextEncoder:
    """A frozen text encoder.

    Attributes:
        width: W, channels of a token's features.
        length: tokens of a chunk, those that the tokenizer adds included.
        sha256: of the encoder's and its tokenizer's files.

    Raises:
        Error: `hidden` is a layer that it does not have, or it gives no features of tokens.
    """

    def __init__(self, network: nn.Module, tokenizer: Any, settings: TextEncoderConfig, sha256: str) -> None:
        self.network, self.settings, self.sha256 = network, settings, sha256
        config: Any = network.config
        longest = getattr(config, "max_position_embeddings", getattr(config, "length", None))
        self.tokens = Tokens(tokenizer, settings.encoder, longest, settings.length)
        self.length = self.tokens.length
        self._norm = _final_norm(network) if settings.final_norm else None
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

    def settled(self, settings: TextEncoderConfig) -> TextEncoderConfig:
        """Settings with what the encoder decides: length, width and the hash of its files."""
        return replace(settings, length=self.length, width=self.width, weights=self.sha256)

    def encode(self, texts: Sequence[str]) -> TextFeatures:
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
        return TextFeatures(features, mask)

    def row(self, text: str) -> TextFeatures:
        """One such text, with nothing behind it: (n, W) and (n,)."""
        return self._read([(text, 1.0)])

    def read(self, prompt: str) -> TextFeatures:
        """A prompt with weights, `(fox:1.3)`: (n, W) and (n,).

        Raises:
            Error: brackets that do not close, a weight that is none, or a prompt too long where that is refused.
        """
        return self._read(parse(prompt))

    @torch.no_grad()
    def pooled(self, prompt: str) -> Tensor:
        """A prompt as one vector (P,) float32, that of its end in the first chunk; weights do not change it.

        Raises:
            Error: as `read`; or the encoder makes none (only kuosan's own CLIP does).
        """
        chunk = self.tokens.chunks(parse(prompt), self.settings.long)[0]
        made = getattr(self.network(input_ids=torch.tensor([list(chunk.ids)], device=self.device)), "pooled", None)
        if made is None:
            raise Error(f"{self.settings.encoder} makes no vector of a text: only CLIP's text network does.")
        pooled: Tensor = made[0].float()
        return pooled

    def count(self, text: str) -> int:
        """How many rows `row(text)` has, without encoding it; raises as it does."""
        return self._count([(text, 1.0)])

    def count_read(self, prompt: str) -> int:
        """How many rows `read(prompt)` has, without encoding it; raises as it does."""
        return self._count(parse(prompt))

    def _count(self, parts: Weighted) -> int:
        chunks = self.tokens.chunks(parts, self.settings.long)
        attended = self.settings.padding == "attended"
        return self.length * len(chunks) if attended else sum(len(each.ids) for each in chunks)

    @torch.no_grad()
    def _read(self, parts: Weighted) -> TextFeatures:
        rows = [self._chunk(chunk) for chunk in self.tokens.chunks(parts, self.settings.long)]
        features = torch.cat(rows)
        return TextFeatures(features, torch.ones(len(features), dtype=torch.bool, device=features.device))

    def _chunk(self, chunk: Chunk) -> Tensor:
        fill = self.length - len(chunk.ids) if self.settings.padding == "attended" else 0
        features = self._forward([*chunk.ids, *[self.tokens.pad] * fill])
        weights = torch.tensor([*chunk.weights, *[1.0] * fill], device=features.device)[:, None]
        if bool((weights == 1).all()):
            return features
        empty = self._nothing(len(features))
        return torch.where(weights == 1, features, empty + weights * (features - empty))

    def _nothing(self, count: int) -> Tensor:
        """The empty prompt's features at `count` places, its padding's behind its own tokens: (count, W)."""
        if count not in self._empty:
            own = len(self.tokens.before) + len(self.tokens.behind)
            there = count if self._causal or self.settings.padding == "attended" else max(1, min(own, count))
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


def open_encoder(settings: TextEncoderConfig, device: torch.device | str = "cpu", *, fetch: bool = True) -> TextEncoder:
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


Read = Callable[[str], tuple[Tensor, Tensor]]  # a prompt to features (L, W) and mask (L,)
Count = Callable[[str], int]  # a prompt to L, at little cost


STEP = 64  # rows that an encoder's prompts are filled up to a multiple of; these are masked


def read_bytes(text: TextTransformer, prompt: str) -> tuple[Tensor, Tensor]:
    """A prompt by a text transformer that was trained with its network: (L, W) float32 and (L,) bool.

    Raises:
        Error: brackets that do not close, or more words than the model reads.
    """
    parts: list[bytes] = []
    weights = [1.0]
    for segment, weight in prompts.parse(prompt):
        own = tokens.tokenize(segment)
        parts += own
        weights += [weight] * len(own)
    table = tokens.rows(parts)
    if len(table) > text.config.length:
        raise tokens.too_long(prompt, len(table), text.config.length)
    device = text.places.weight.device
    features, mask = text(torch.from_numpy(table).long().to(device)[None])
    assert mask is not None
    if any(weight != 1 for weight in weights):
        empty = text(torch.from_numpy(tokens.rows([])).long().to(device)[None]).features
        scale = torch.tensor(weights, device=device)[None, :, None]
        features = torch.where(scale == 1, features, empty + scale * (features - empty))
    return features[0], mask[0]


def count_bytes(prompt: str) -> int:
    """How many rows `read_bytes` makes of a prompt; raises as it does of brackets that do not close."""
    return 1 + sum(tokens.length(segment) - 1 for segment, _ in prompts.parse(prompt))


@torch.no_grad()
def contexts(read: Read, count: Count, wanted: Sequence[str], among: Sequence[str], step: int) -> Mapping[str, Tensor]:
    """Conditioning by prompts, by input: `context` (B, L, W) and `context_mask` (B, L).

    L is a multiple of `step` that holds the longest of `among`, all prompts of a request: so a batch's context is the
    same whatever stands beside it, and a prompt the same beside others, unless they are longer than a step. Those are
    counted, and only the wanted ones read: a request may have thousands.
    """
    known = {prompt: read(prompt) for prompt in dict.fromkeys(wanted)}
    longest = max(count(prompt) for prompt in dict.fromkeys([*among, *wanted]))
    longest = -(-longest // step) * step
    return padded([known[prompt] for prompt in wanted], longest)


def padded(read: Sequence[tuple[Tensor, Tensor]], length: int) -> dict[str, Tensor]:
    """Features (L, W) and masks (L,) of several texts, by input, with nothing behind each up to `length`."""
    context, mask = [], []
    for features, there in read:
        more = length - len(there)
        context.append(torch.cat([features, features.new_zeros(more, features.shape[1])]))
        mask.append(torch.cat([there, there.new_zeros(more)]))
    return {"context": torch.stack(context), "context_mask": torch.stack(mask)}
