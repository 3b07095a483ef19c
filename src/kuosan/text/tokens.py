"""Prompts as tokens: each with its weight, in one chunk or, of a long prompt, in several that an encoder takes.

A chunk is what a tokenizer puts before every text, the text's own tokens, and what it puts behind (BOS .. EOS).

Text cut into tokens that `networks.text` reads byte by byte: (L, 16) int16, and back into words for messages.

Such a token is a word or number, a mark, or one character of a script that writes no spaces; capitals are read as
small. Row 0 is the beginning, so that even no text has something to attend to. 0 is no byte, 1 to 256 a byte.

Conditioning on text: none, by a transformer trained with the model, or by a text encoder. Torch-free.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from kuosan import limits
from kuosan.errors import Error
from kuosan.networks.config import LONGEST, WORD
from kuosan.networks.config import ByteText as ByteText

Weighted = Sequence[tuple[str, float]]  # texts and their weights, as `prompts.parse` gives them
ENOUGH = 512  # tokens where an encoder names no limit


class Chunk(NamedTuple):
    """Tokens with what stands before and behind, and the weight of each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


class Tokens:
    """A tokenizer of Hugging Face's, and the most tokens that a chunk has.

    Attributes:
        length: tokens of a chunk, those before and behind included.
        room: the text's own.
        pad: the id that fills a chunk up.

    Raises:
        Error: `length` leaves no room, or is more than the encoder takes.
    """

    def __init__(self, tokenizer: Any, name: str, longest: int | None, length: int = 0) -> None:
        self.tokenizer, self.name = tokenizer, name
        self.before, self.behind = self._around()
        limits = [limit for limit in (tokenizer.model_max_length, longest) if limit and limit < 1 << 20]
        most = min(limits, default=0)
        if most and length > most:
            raise Error(f"text.length = {length} is more than the text encoder {name} takes: {most} tokens.")
        self.length = length or min(most or ENOUGH, ENOUGH)
        self.room = self.length - len(self.before) - len(self.behind)
        if self.room < 1:
            raise Error(f"text.length = {self.length} leaves no room for words: {name} adds {self.length - self.room}.")
        self.pad = next(
            (each for each in (tokenizer.pad_token_id, tokenizer.eos_token_id) if each is not None), 0
        )  # decoders have no token to fill with

    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind every text."""
        whole, own = self.tokenizer("fox").input_ids, self._own("fox")
        for start in range(len(whole) - len(own) + 1):
            if own and whole[start : start + len(own)] == own:
                return whole[:start], whole[start + len(own) :]
        raise Error(
            f"the tokenizer of {self.name} writes {whole} for 'fox', whose own tokens are {own}: not understood."
        )

    def _own(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def own(self, parts: Weighted) -> list[tuple[int, float]]:
        """The text's own tokens and their weights.

        The whole text is read at once, as it is without weights, and a token has the weight of its last character;
        a tokenizer that cannot say where its tokens come from reads text by text.
        """
        text = "".join(each for each, _ in parts)
        if len({weight for _, weight in parts}) < 2:
            weight = parts[0][1] if parts else 1.0
            return [(token, weight) for token in self._own(text)]
        if not self.tokenizer.is_fast:
            return [(token, weight) for each, weight in parts for token in self._own(each)]
        characters = [weight for each, weight in parts for _ in each]
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [max(end, 1) for _, end in read.offset_mapping]
        return [(token, characters[end - 1]) for token, end in zip(read.input_ids, ends)]

    def chunks(self, parts: Weighted, long: Long) -> list[Chunk]:
        """A prompt as one chunk or, where it is long and `chunks`, as several.

        Raises:
            Error: it is longer than a chunk, and `long` refuses that.
        """
        own = self.own(parts)
        if len(own) > self.room and long == "refuse":
            raise self._too_long(parts, len(own))
        if long == "cut":
            own = own[: self.room]
        return [self._chunk(own[first : first + self.room]) for first in range(0, max(1, len(own)), self.room)]

    def empty(self, count: int) -> list[int]:
        """The chunk of no text, filled up to `count` tokens."""
        ids = [*self.before, *self.behind]
        return (ids + [self.pad] * count)[:count]

    def cut_off(self, parts: Weighted) -> str:
        """What of a prompt `cut` does not read; empty where all is read."""
        own = self.own(parts)
        return str(self.tokenizer.decode([token for token, _ in own[self.room :]])).strip()

    def _chunk(self, own: Sequence[tuple[int, float]]) -> Chunk:
        ids = (*self.before, *(token for token, _ in own), *self.behind)
        weights = (*(1.0 for _ in self.before), *(weight for _, weight in own), *(1.0 for _ in self.behind))
        return Chunk(ids, weights) if ids else Chunk((self.pad,), (1.0,))  # a decoder has nothing around no text

    def _too_long(self, parts: Weighted, count: int) -> Error:
        text = "".join(each for each, _ in parts)
        return Error(
            f"the text {text if len(text) <= 80 else text[:77] + '...'!r} has {count} tokens, and {self.name} reads "
            f"{self.room} at once: shorten it, or train with --model.text.long cut (the rest is left out) or chunks "
            f"(it is read in chunks)."
        )


BEGIN = 257
# Han, kana, Thai, Lao, Khmer, Burmese: written without spaces, so that each character is a token
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]", re.UNICODE)


def tokenize(text: str) -> list[bytes]:
    """A text's tokens in their order, each of 1 to 16 bytes of UTF-8."""
    found: list[bytes] = []
    for word in _TOKEN.findall(unicodedata.normalize("NFC", text).lower()):
        part = b""
        for character in word:
            more = character.encode("utf-8", "replace")
            if len(part) + len(more) > WORD:
                found.append(part)
                part = b""
            part += more
        found.append(part)
    return found


def length(text: str) -> int:
    """How many rows a text takes, with the beginning."""
    return 1 + len(tokenize(text))


def rows(parts: Sequence[bytes]) -> np.ndarray:
    """Tokens as numbers: (1 + len(parts), 16) int16."""
    table = np.zeros((1 + len(parts), WORD), np.int16)
    table[0, 0] = BEGIN
    for row, part in zip(table[1:], parts):
        row[: len(part)] = np.frombuffer(part, np.uint8).astype(np.int16) + 1
    return table


def packed(texts: Sequence[str], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts as numbers, one behind the other: rows (M, 16) int16, and where each begins, the last ends (N + 1,).

    Raises:
        Error: a text of more tokens than `longest`.
    """
    own = [rows(tokenize(text)) for text in texts]
    for text, each in zip(texts, own):
        if len(each) > longest:
            raise too_long(text, len(each), longest)
    ends = np.cumsum([0, *map(len, own)])
    return np.concatenate(own) if own else np.zeros((0, WORD), np.int16), ends


def longest(texts: Sequence[str]) -> int:
    """Rows enough for every one of these texts, a multiple of 8.

    Raises:
        Error: a text of more tokens than any model reads.
    """
    most = max(texts, key=length, default="")
    if length(most) > LONGEST:
        raise too_long(most, length(most), LONGEST)
    return -(-length(most) // 8) * 8


def too_long(text: str, count: int, longest: int) -> Error:
    """The sentence about a text of too many tokens."""
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return Error(
        f"the text {shown!r} has {count - 1} words and marks, and this model reads {longest - 1} at most"
        f" (text.length = {longest}, its beginning among them): shorten it"
        + (f", or train with --model.text.length {count} or more." if count <= LONGEST else ".")
    )


Long = Literal["refuse", "cut", "chunks"]
Padding = Literal["masked", "attended"]
PADDING_ALIASES = {"told": "attended"}  # what the values were called before


@dataclass(frozen=True)
class NoText:
    """The model is not conditioned on captions."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True)
class TextEncoderConfig:
    """A text encoder with weights of its own, which training leaves as they are."""

    kind: Literal["encoder"] = "encoder"
    encoder: str = ""  # encoder: a folder in Hugging Face's layout, `hub:NAME`, or minilm
    hidden: int = -1  # encoder: the layer whose output is the context, -1 the last; -2 is SD's clip skip
    long: Long = "refuse"  # encoder: a prompt that is too long: refuse it, cut it, or encode it in chunks
    length: int = 0  # encoder: tokens of a prompt; 0: as many as the encoder takes, 512 at most
    padding: Padding = field(
        default="masked", metadata={"aliases": PADDING_ALIASES}
    )  # encoder: padding behind a short prompt is masked, or attended to, as in Stable Diffusion
    width: int = 0  # encoder: channels of a token; from the encoder itself
    weights: str = ""  # encoder: hash of its files; from the encoder itself

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", PADDING_ALIASES.get(self.padding, self.padding))
        if not self.encoder:
            raise Error("text.encoder is not given: name a text encoder's folder (--encoder FOLDER), or minilm.")
        if self.hidden >= 0:
            raise Error(f"text.hidden = {self.hidden} is not allowed: -1 (the last layer), -2, ...")
        limits.check(self)
        if self.length < 0 or self.width < 0:
            raise Error("text.length and text.width are 0 or more; leave them out, the encoder gives them.")


Text = NoText | ByteText | TextEncoderConfig


def width(text: Text) -> int | None:
    """Channels of a token's features; None where the network is not conditioned on text."""
    return None if isinstance(text, NoText) else text.width
