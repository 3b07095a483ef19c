"""What a run's network is given of each image's caption: pieces of text, or a text encoder's features of it.

Captions are cut, or encoded, once, before training; a step looks rows up. A dropped caption is the empty text.

The features of all captions of a data set, each distinct one encoded once and kept on disk for the next run.

Kept as float16, keyed by the encoder's files and settings and by the captions; rows come back as float32.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kuosan.config import plain
from kuosan.errors import Error, plural
from kuosan.networks.text_config import ByteText
from kuosan.storage.cache import RowCache
from kuosan.storage.files import size_text
from kuosan.text import tokens
from kuosan.text.encoder import TextEncoder, TextFeatures, padded
from kuosan.text.tokens import Text, TextEncoderConfig
from kuosan.train.distributed import World

if TYPE_CHECKING:
    from kuosan.data.dataset import Images
    from kuosan.models.model import ModelConfig
    from kuosan.options import Tree
    from kuosan.train.report import SilentTraining

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
            f"{plural(len(without), 'image', of=len(found))} in {where} {'has' if len(without) == 1 else 'have'} no "
            f"caption ({_named(images, without)}): "
            f"write them, move those images out of the data, or train them as images of no text with "
            f"--uncaptioned empty."
        )
    return [text or "" for text in found]


def _named(images: Images, ids: Sequence[int]) -> str:
    """The first of some images, and how many more there are."""
    return images.name(ids[0]) + (f" and {len(ids) - 1:,} more" if len(ids) > 1 else "")


class _EncodingLines:
    """Says how far captions are encoded, a line now and then."""

    def __init__(self, report: SilentTraining) -> None:
        self.report, self.last = report, time.monotonic()

    def __call__(self, what: str, done: int, of: int) -> None:
        if time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            self.report.fact("captions_encoding", what=what, done=done, of=of)


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
    report: SilentTraining,
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

            found: list[Embedded] = []
            world.on_first(lambda: found.append(embed_all(texts, encoder, cache, report.say, _EncodingLines(report))))
            embedded = found[0] if found else embed_all(texts, encoder, cache)
            return CaptionFeatures(embedded.rows, len(texts) - 1)
    return None


PART = 256  # captions a part on disk: what a killed run loses at most
SHOWN = 3  # captions that were cut

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]  # (what, done, of)


class Embedded:
    """Captions by number, encoded.

    Attributes:
        width: W, channels of a token's features.
        longest: tokens of the longest caption.
        distinct: how many captions differ.
    """

    def __init__(self, features: np.ndarray, counts: np.ndarray, places: np.ndarray) -> None:
        self.distinct, self.longest, self.width = features.shape
        self._features, self._counts, self._places = features, counts, places

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, ids: Sequence[int] | np.ndarray) -> TextFeatures:
        """Captions by number: features (B, L, W) float32 and mask (B, L), L the tokens of the longest of these."""
        places = self._places[np.asarray(ids, np.int64)]
        counts = torch.from_numpy(self._counts[places].astype(np.int64))
        longest = int(counts.max()) if len(counts) else 0
        features = torch.from_numpy(self._features[places, :longest].astype(np.float32))
        return TextFeatures(features, torch.arange(longest) < counts[:, None])


def embed_all(
    captions: Sequence[str],
    encoder: TextEncoder,
    root: Path,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Encode what the cache below `root` does not hold of these captions, in which brackets mean nothing.

    Args:
        say: called with sentences: how long it took or how much was saved, and what was cut.
        progress: called as (what, done, of).

    Raises:
        Error: a caption is too long where that is refused, or the disk does not take the features.
    """
    say = say or (lambda _: None)
    distinct = sorted(set(captions))  # so that images in another order find the same rows
    counts = np.array([encoder.count(text) for text in distinct], np.int32)  # refuses what is too long before encoding
    _say_cut(distinct, encoder, say)
    longest = int(counts.max(initial=1))
    columns = {"features": (np.dtype(np.float16), (longest, encoder.width))}
    cache = RowCache(root, "embeddings", _key(distinct, encoder), len(distinct), columns, say=say, note=_note(encoder))
    lacking = sum(map(len, cache.missing()))
    saved = cache.seconds

    def compute(rows: range) -> dict[str, np.ndarray]:
        return {"features": np.stack([_padded(distinct[row], encoder, longest) for row in rows])}

    spent = cache.fill(compute, PART, lambda done, of: progress("captions", done, of) if progress else None)
    if lacking:
        where = f"{size_text(cache.rows * cache.row_bytes)} in {cache.path}"
        say(f"captions: {plural(lacking, 'different one')} encoded in {spent:,.1f} s, kept for the next run ({where}).")
    if saved:
        say(f"captions: {plural(len(distinct) - lacking, 'encoded one')} from the cache, about {saved:,.1f} s saved.")
    number = {text: row for row, text in enumerate(distinct)}
    return Embedded(cache.open()["features"], counts, np.array([number[text] for text in captions], np.int64))


def _padded(text: str, encoder: TextEncoder, longest: int) -> np.ndarray:
    """One caption's features, (longest, W) float16, zeros behind."""
    found = encoder.row(text).features.cpu()
    row = np.zeros((longest, encoder.width), np.float16)
    row[: len(found)] = found.half().numpy()
    if not np.isfinite(row).all():
        raise Error(
            f"the text encoder {encoder.settings.encoder} gives features up to {float(found.abs().max()):.3g} of "
            f"{text[:60]!r}, and the cache holds 65504 at most: choose another layer (--model.text.hidden -2)."
        )
    return row


def _key(distinct: Sequence[str], encoder: TextEncoder) -> dict[str, object]:
    digest = hashlib.sha256()
    for text in distinct:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    settings = encoder.settings
    return {
        "encoder": encoder.sha256,
        "captions": digest.hexdigest(),
        "hidden": settings.hidden,
        "long": settings.long,
        "padding": {"attended": "told"}.get(settings.padding, settings.padding),  # as keys have always said it
        "length": encoder.length,
        **({} if settings.final_norm else {"final_norm": False}),  # keys of before had none
    }


def _note(encoder: TextEncoder) -> str:
    return f"captions by the text encoder {encoder.settings.encoder}"


def _say_cut(distinct: Sequence[str], encoder: TextEncoder, say: Say) -> None:
    if encoder.settings.long != "cut":
        return
    cut = [(text, lost) for text in distinct if (lost := encoder.tokens.cut_off([(text, 1.0)]))]
    for text, lost in cut[:SHOWN]:
        say(f"caption cut: {text[:60]!r} is read without its end, {lost[:60]!r}.")
    if len(cut) > SHOWN:
        say(f"captions cut: {len(cut):,} in all are longer than {encoder.tokens.room} tokens.")
