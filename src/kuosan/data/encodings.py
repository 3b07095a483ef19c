"""Bytes as text: by their byte order mark, else UTF-8, else Windows-1252 where that is likely; never by half.

UTF-8 is strict, so text of another kind all but never passes for it. Windows-1252 takes nearly any bytes, so it is
believed only where letters beyond ASCII are as rare as in the languages that it was made for.
"""

from __future__ import annotations

import codecs
import re

UTF_8 = "UTF-8"
MARKS = (  # the longest first: a UTF-32 mark begins as one of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8", UTF_8),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
WESTERN = "Windows-1252"
LONGEST_RUN = 4  # letters beyond ASCII in a row
CURE = "save it as UTF-8"


def decode_text(content: bytes, *, beginning: bool = False) -> tuple[str, str]:
    """The text, and what it was written in.

    Args:
        beginning: more follows, so the last character may be cut.

    Raises:
        ValueError: it is no text in any of these encodings.
    """
    for mark, codec, name in MARKS:
        if content.startswith(mark):
            return _decoded(content[len(mark) :], codec, name, beginning), name
    if content.count(0) * 4 > len(content):
        raise ValueError(f"looks like UTF-16 without a byte order mark: {CURE}")
    try:
        return _decoded(content, "utf-8", UTF_8, beginning), UTF_8
    except ValueError as reason:
        text = _western(content)
        if text is None:
            raise ValueError(f"{reason}, nor {WESTERN}: {CURE}") from None
        return text, WESTERN


def _decoded(content: bytes, codec: str, name: str, beginning: bool) -> str:
    try:
        return codecs.getincrementaldecoder(codec)("strict").decode(content, not beginning)
    except UnicodeDecodeError as reason:
        raise ValueError(f"is not {name} at byte {reason.start:,}") from None


def _western(content: bytes) -> str | None:
    """Windows-1252, if it is likely: few letters beyond ASCII, and never many in a row as in Cyrillic or Chinese."""
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return None
    beyond = [letter for letter in text if letter > "\x7f" and letter.isalpha()]
    plain = sum(letter.isalpha() for letter in text) - len(beyond)
    longest = max(map(len, re.findall(r"[^\x00-\x7f]+", text)), default=0)
    if longest > LONGEST_RUN or (len(beyond) >= LONGEST_RUN and len(beyond) > plain):
        return None
    return text
