"""A data set's captions as a person looks at them: how many, the longest, the first few beside their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kuosan.data.entries import Entry

if TYPE_CHECKING:
    from kuosan.data.pictures import Pictures

SHOWN = 5  # rows
WIDE = 120  # characters shown of a caption


def first_rows(pictures: Pictures, n: int = SHOWN) -> list[str]:
    """The first pictures that are trained on, `name -> caption` each."""
    return [_row(pictures.scan.entries[int(i)]) for i in pictures.train[:n]]


def rows(entries: Sequence[Entry], n: int = SHOWN) -> list[str]:
    """The first pictures by number, `name -> caption` each; none where nobody has a caption."""
    return [_row(entry) for entry in entries[:n]] if any(entry.caption for entry in entries) else []


def summary(entries: Sequence[Entry]) -> str:
    """How many pictures have a caption, and the longest."""
    texts = [(len(entry.caption), entry.name, entry.caption) for entry in entries if entry.caption]
    if not texts:
        return "No picture has a caption."
    count, name, text = max(texts, key=lambda item: item[0])
    different = len({caption for _, _, caption in texts})
    return (
        f"{len(texts):,} of {len(entries):,} pictures have a caption, {different:,} different ones; the longest has "
        f"{count:,} characters: {_printable(name)} -> {_shown(text)}"
    )


def without(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """The pictures that have no caption, where others have one: (name, '')."""
    some = any(entry.caption for entry in entries)
    return [(entry.name, "") for entry in entries if some and not entry.caption]


def _row(entry: Entry) -> str:
    return f"{_printable(entry.name)} -> {_shown(entry.caption) if entry.caption else '(no caption)'}"


def _shown(text: str) -> str:
    return _printable(text if len(text) <= WIDE else text[: WIDE - 3] + "...")


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()  # names may be no text at all
