"""The features of all captions of a data set, each distinct one encoded once and kept on disk for the next run.

Kept as float16, keyed by the encoder's files and settings and by the captions; rows come back as float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from kuosan.errors import Error
from kuosan.storage.cache import RowCache
from kuosan.storage.files import size_text
from kuosan.text.encoder import TextEncoder, TextFeatures

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
        say(f"captions: {lacking:,} different ones encoded in {spent:,.1f} s, kept for the next run ({where}).")
    if saved:
        say(f"captions: {len(distinct) - lacking:,} encoded ones from the cache, about {saved:,.1f} s saved.")
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
