"""What a run's network is given of each image's caption: pieces of text, or a text encoder's features of it.

Captions are cut, or encoded, once, before training; a step looks rows up. A dropped caption is the empty text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kuosan.config import plain
from kuosan.errors import Error
from kuosan.networks.config import ByteText
from kuosan.text import tokens
from kuosan.text.config import Text, TextEncoderConfig
from kuosan.text.encoder import padded
from kuosan.train.distributed import World

if TYPE_CHECKING:
    from kuosan.data.dataset import Images
    from kuosan.models.model import ModelConfig
    from kuosan.options import Tree
    from kuosan.text.embedded import Embedded


EVERY = 15.0  # seconds between lines about captions that are being encoded


class Texts(Protocol):
    """Captions as a network takes them."""

    def of(self, ids: np.ndarray, dropped: np.ndarray) -> dict[str, Tensor]:
        """Of images `ids` (B,), by conditioning input; the empty text where `dropped` (B,)."""
        ...


@dataclass(frozen=True)
class Pieces:
    """Captions cut into pieces, one behind the other; the last is the empty text."""

    rows: np.ndarray  # (M, 16) int16
    places: np.ndarray  # (N + 2,), where each begins, and the last ends

    def of(self, ids: np.ndarray, dropped: np.ndarray) -> dict[str, Tensor]:
        """`tokens` (B, L, 16) int64, cut behind the longest of these."""
        wanted = np.where(dropped, len(self.places) - 2, ids)
        begins, ends = self.places[wanted], self.places[wanted + 1]
        tokens = np.zeros((len(ids), int((ends - begins).max()), self.rows.shape[1]), np.int64)
        for row, begin, end in zip(tokens, begins, ends):
            row[: end - begin] = self.rows[begin:end]
        return {"tokens": torch.from_numpy(tokens)}


@dataclass(frozen=True)
class CaptionFeatures:
    """Captions encoded: the last row is the empty text's."""

    rows: Callable[[np.ndarray], tuple[Tensor, Tensor]]
    empty: int

    def of(self, ids: np.ndarray, dropped: np.ndarray) -> dict[str, Tensor]:
        """`context` (B, L, W) float32 and `context_mask` (B, L)."""
        features, mask = self.rows(np.where(dropped, self.empty, ids))
        return {"context": features, "context_mask": mask}


@dataclass
class Live:
    """Captions encoded when they are asked for, each once: for a trial that leaves nothing on disk."""

    texts: Sequence[str]  # the last is the empty one
    encoder: Any
    known: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, ids: np.ndarray, dropped: np.ndarray) -> dict[str, Tensor]:
        """`context` (B, L, W) float32 and `context_mask` (B, L)."""
        wanted = np.where(dropped, len(self.texts) - 1, ids).tolist()
        for i in dict.fromkeys(wanted):
            if i not in self.known:
                features = self.encoder.row(self.texts[i]).features
                self.known[i] = features, torch.ones(len(features), dtype=torch.bool)
        longest = max(len(self.known[i][1]) for i in wanted)  # texts in chunks are of several lengths
        return padded([self.known[i] for i in wanted], longest)


def captions(images: Images, uncaptioned: str = "refuse") -> list[str]:
    """Every image's caption; `uncaptioned` says what becomes of images without: refuse, or empty.

    Raises:
        Error: no image has a caption, or some have none and that is not accepted.
    """
    found: Sequence[str | None] | None = images.captions
    where = images.config.path
    if found is None:
        raise Error(
            f"{where} has no captions, and a text model learns from them: write a `text` an image into metadata.jsonl "
            f"or metadata.csv beside a `file_name`, or NAME.txt beside NAME.png; or leave --text out."
        )
    without = [i for i, text in enumerate(found) if not text]
    if without and uncaptioned == "refuse":
        raise Error(
            f"{len(without):,} of {len(found):,} images in {where} have no caption ({_named(images, without)}): "
            f"write them, move those images out of the data, or train them as images of no text with "
            f"--uncaptioned empty."
        )
    return [text or "" for text in found]


def _named(images: Images, ids: Sequence[int]) -> str:
    """The first of some images, and how many more there are."""
    return images.name(ids[0]) + (f" and {len(ids) - 1:,} more" if len(ids) > 1 else "")


class _Heard:
    """Says how far captions are encoded, a line now and then."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.last = say, time.monotonic()

    def __call__(self, what: str, done: int, of: int) -> None:
        if time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            self.say(f"{what}: {done:,} of {of:,} encoded.")


def settled(text: Text, images: Images, uncaptioned: str, encoder: Any) -> Tree | None:
    """How captions condition the network, with what the data or the encoder decide; None without text.

    Raises:
        Error: captions are missing or too long, or the encoder is another than the run's.
    """
    match text:
        case ByteText():
            found = captions(images, uncaptioned)
            needed = tokens.longest(found)
            if text.length and needed > text.length:
                tokens.packed(found, text.length)  # refuses the one that is too long
            return plain(text) | {"length": text.length or needed}
        case TextEncoderConfig():
            captions(images, uncaptioned)
            return plain(encoder.settled(text))
    return None


def open_texts(
    model: ModelConfig,
    images: Images,
    uncaptioned: str,
    encoder: Any,
    cache: Path | None,
    say: Callable[[str], None],
    world: World = World(),  # noqa: B008 (frozen)
) -> Texts | None:
    """What a model is given of these images' captions; None without text.

    Args:
        encoder: the opened text encoder, where the model has one.
        cache: where its features are kept; None keeps nothing.
        world: of its processes the first alone encodes, and the others read what it kept.

    Raises:
        Error: captions are missing, or too long for the model.
    """
    match model.text:
        case ByteText() as text:
            return Pieces(*tokens.packed([*captions(images, uncaptioned), ""], text.length))
        case TextEncoderConfig():
            texts = [*captions(images, uncaptioned), ""]
            if cache is None:
                return Live(texts, encoder)
            from kuosan.text.embedded import embed_all

            found: list[Embedded] = []
            world.on_first(lambda: found.append(embed_all(texts, encoder, cache, say, _Heard(say))))
            embedded = found[0] if found else embed_all(texts, encoder, cache)
            return CaptionFeatures(embedded.rows, len(texts) - 1)
    return None
