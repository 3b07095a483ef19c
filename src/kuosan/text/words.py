"""Text cut into pieces that `networks.text` reads byte by byte: (L, 16) int16, and back into words for messages.

A piece is a word or number, a mark, or one character of a script that writes no spaces; capitals are read as small.
Row 0 is the beginning, so that even no text has something to attend to. 0 is no byte, 1 to 256 a byte.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from kuosan.errors import Error
from kuosan.networks.text_config import LONGEST, WORD

BEGIN = 257
# Han, kana, Thai, Lao, Khmer, Burmese: written without spaces, so that each character is a piece
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_PIECE = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]", re.UNICODE)


def pieces(text: str) -> list[bytes]:
    """A text's pieces in their order, each of 1 to 16 bytes of UTF-8."""
    found: list[bytes] = []
    for word in _PIECE.findall(unicodedata.normalize("NFC", text).lower()):
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
    return 1 + len(pieces(text))


def rows(parts: Sequence[bytes]) -> np.ndarray:
    """Pieces as numbers: (1 + len(parts), 16) int16."""
    table = np.zeros((1 + len(parts), WORD), np.int16)
    table[0, 0] = BEGIN
    for row, part in zip(table[1:], parts):
        row[: len(part)] = np.frombuffer(part, np.uint8).astype(np.int16) + 1
    return table


def packed(texts: Sequence[str], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts as numbers, one behind the other: rows (M, 16) int16, and where each begins, the last ends (N + 1,).

    Raises:
        Error: a text of more pieces than `longest`.
    """
    own = [rows(pieces(text)) for text in texts]
    for text, each in zip(texts, own):
        if len(each) > longest:
            raise too_long(text, len(each), longest)
    ends = np.cumsum([0, *map(len, own)])
    return np.concatenate(own) if own else np.zeros((0, WORD), np.int16), ends


def longest(texts: Sequence[str]) -> int:
    """Rows enough for every one of these texts, a multiple of 8.

    Raises:
        Error: a text of more pieces than any model reads.
    """
    most = max(texts, key=length, default="")
    if length(most) > LONGEST:
        raise too_long(most, length(most), LONGEST)
    return -(-length(most) // 8) * 8


def too_long(text: str, count: int, longest: int) -> Error:
    """The sentence about a text of too many pieces."""
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return Error(
        f"the text {shown!r} has {count - 1} words and marks, and this model reads {longest - 1} at most: shorten it"
        + (", or train with a larger --model.text.length." if longest < LONGEST else ".")
    )
