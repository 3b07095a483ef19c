"""Prompts and captions as tokens, by whichever way a model reads them; and the settings of text. Torch-free.

A prompt may weigh its words as ComfyUI's and A1111's users write it: `(fox:1.3)`, `(fox)` 1.1, `[fox]` 1/1.1, brackets
within brackets multiply. It may be longer than an encoder takes: then it is cut into chunks, each BOS .. EOS. A model
that learns to read with its images gets (L, 16) int16: a row a word, number or mark of up to 16 bytes, 0 for no byte,
1 to 256 a byte; row 0 is the beginning.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from kuosan import limits
from kuosan.errors import Error, shown
from kuosan.networks.text_config import LONGEST, WORD
from kuosan.networks.text_config import ByteText as ByteText

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


FEW = 3  # images; a word of fewer captions is hardly known
_SMALL_WORDS = frozenset(
    ["a", "an", "and", "are", "as", "at", "by", "for", "from", "in", "into", "is", "it", "its", "no", "not"]
    + ["of", "on", "or", "that", "the", "this", "to", "with"]
)


def word_counts(captions: Iterable[str]) -> dict[str, int]:
    """In how many captions each word is, small words and marks left out: what a model can have learned to read."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(_words(caption).keys())
    return dict(sorted(counts.items()))


def unfamiliar(prompt: str, counts: Mapping[str, int]) -> dict[str, int]:
    """The words of a prompt that hardly any caption has (fewer than `FEW`), in their order, and how many have each."""
    text = "".join(part for part, _ in parse(prompt))
    return {word: counts.get(word, 0) for word in _words(text) if counts.get(word, 0) < FEW}


def _words(text: str) -> dict[str, None]:
    """Its words, each once, in their order."""
    found = (token.decode("utf-8", "replace") for token in tokenize(text))
    return {word: None for word in found if any(c.isalpha() for c in word) and word not in _SMALL_WORDS}


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
    final_norm: bool = True  # encoder: an earlier layer's output goes through the last norm too; not so in SDXL
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
        if not self.final_norm and self.hidden == -1:
            raise Error(
                "text.final_norm = false counts for an earlier layer: give text.hidden, as -2, or leave it out."
            )
        limits.check(self)
        if self.length < 0 or self.width < 0:
            raise Error("text.length and text.width are 0 or more; leave them out, the encoder gives them.")


Text = NoText | ByteText | TextEncoderConfig


def width(text: Text) -> int | None:
    """Channels of a token's features; None where the network is not conditioned on text."""
    return None if isinstance(text, NoText) else text.width


MORE = 1.1  # what round brackets multiply by, and square ones divide by
PARTNERS = {")": "(", "]": "["}
_MARKS = re.compile(r"\\([\\()\[\]])|([()\[\]])")
_WEIGHT = re.compile(r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|nan|inf)", re.IGNORECASE)
_EXACT = 256  # brackets within each other whose factors are multiplied from the inside out, as they close


def escaped(text: str) -> str:
    """A text as the prompt that reads as just that text."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


@dataclass
class _Bracket:
    """A bracket, the ones around it, and what it multiplies by; the outermost, of no bracket, has depth 0."""

    around: _Bracket | None = None
    kind: str = ""
    place: int = 0  # in the prompt
    first: int = 0  # number of its first part
    depth: int = 0
    factor: float = 1.0
    weight: float | None = None  # of what stands directly in it, once that is asked


@dataclass
class _Part:
    text: str
    bracket: _Bracket


def parse(prompt: str) -> list[tuple[str, float]]:
    """A prompt as texts and their weights, neighbours of one weight joined; an empty prompt has none.

    Raises:
        Error: brackets that do not close, or a weight that is no number of 0 or more; it names the place.
    """
    parts: list[_Part] = []  # none of them empty
    inner = outside = _Bracket()
    end = 0
    for mark in _MARKS.finditer(prompt):
        _add(parts, prompt[end : mark.start()], inner)
        end = mark.end()
        if mark[1] is not None:
            _add(parts, mark[1], inner)
        elif mark[2] in PARTNERS.values():
            inner = _Bracket(inner, mark[2], mark.start(), len(parts), inner.depth + 1)
        else:
            if inner.around is None or inner.kind != PARTNERS[mark[2]]:
                raise _unbalanced(prompt, mark[2], mark.start())
            inner.factor = _factor(prompt, inner, parts)
            inner = inner.around
    if inner is not outside:
        raise _unbalanced(prompt, inner.kind, inner.place)
    _add(parts, prompt[end:], outside)
    return _joined(prompt, parts)


def _add(parts: list[_Part], text: str, bracket: _Bracket) -> None:
    if text:
        parts.append(_Part(text, bracket))


def _joined(prompt: str, parts: list[_Part]) -> list[tuple[str, float]]:
    texts: list[list[str]] = []
    weights: list[float] = []
    for part in parts:
        weight = _weight(prompt, part.bracket)
        if weights and weights[-1] == weight:
            texts[-1].append(part.text)
        else:
            texts.append([part.text])
            weights.append(weight)
    return [("".join(own), weight) for own, weight in zip(texts, weights)]


def _weight(prompt: str, bracket: _Bracket) -> float:
    """The product of a bracket's factor and of all around it, each reckoned once: of deep ones from those around."""
    if bracket.weight is not None:
        return bracket.weight
    chain, weight, at = [bracket], 1.0, bracket
    while at.around is not None and (bracket.depth <= _EXACT or at.around.weight is None):
        chain.append(at := at.around)
    if bracket.depth <= _EXACT:
        for each in chain:
            weight *= each.factor
            if not math.isfinite(weight):
                raise _not_allowed(prompt, each.place, weight)
    else:
        weight = 1.0 if at.around is None or at.around.weight is None else at.around.weight
        for each in reversed(chain):
            weight *= each.factor
            each.weight = weight
            if not math.isfinite(weight):
                raise _not_allowed(prompt, each.place, weight)
    bracket.weight = weight
    return weight


def _factor(prompt: str, bracket: _Bracket, parts: list[_Part]) -> float:
    """What a bracket multiplies by: the weight it ends in, which is taken off its text, else its default."""
    default = MORE if bracket.kind == "(" else 1 / MORE
    if len(parts) <= bracket.first or parts[-1].bracket is not bracket:
        return default
    words, colon, number = parts[-1].text.rpartition(":")
    number = number.strip()
    if not colon or not _WEIGHT.fullmatch(number):
        return default
    if bracket.kind == "[":
        raise Error(
            f"the prompt {_shown(prompt)} has [...:{shown(number)[1:-1]}] at character {bracket.place + 1}: square "
            f"brackets take no number (prompt editing is not known here); write (words:0.8) for a weight, or \\[ for a "
            f"bracket."
        )
    factor = float(number)
    if not math.isfinite(factor) or factor < 0:
        raise _not_allowed(prompt, bracket.place, shown(number)[1:-1])
    parts[-1].text = words
    if not words:
        parts.pop()
    return factor


def _not_allowed(prompt: str, place: int, weight: object) -> Error:
    return Error(
        f"the prompt {_shown(prompt)} has the weight {weight} in the bracket at character {place + 1}: a weight is a "
        f"finite number from 0 (1 leaves words as they are)."
    )


def _unbalanced(prompt: str, bracket: str, place: int) -> Error:
    return Error(
        f"the prompt {_shown(prompt)} has a {bracket!r} without its partner at character {place + 1}: brackets weigh "
        f"words, as (fox:1.3); for a bracket itself write \\{bracket}."
    )


def _shown(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 80 else prompt[:77] + "...")
