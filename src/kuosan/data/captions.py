"""Captions and labels that lie beside pictures: `metadata.jsonl` (file_name, text, label) and `name.txt`."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

METADATA = "metadata.jsonl"
MOST_BYTES = 1 << 28  # a metadata file beyond this is no list of captions
MOST_CAPTION = 1 << 16


@dataclass
class Beside:
    """What lies beside the pictures, by picture name; `taken` are the files that were captions, not pictures."""

    captions: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    problems: list[tuple[str, str]] = field(default_factory=list)


def read_beside(names: Iterable[str], read: Callable[[str, int], bytes]) -> Beside:
    """Captions of the files `names` (relative, with /), where `read(name, limit)` gives a file's bytes.

    A line of `metadata.jsonl` wins over a `.txt`; what cannot be understood is a problem with its place, never fatal.
    """
    everything = sorted(names)
    there = set(everything)
    beside = Beside()
    stems: dict[str, str] = {}
    for name in everything:
        if not name.lower().endswith((".txt", ".jsonl")):
            stems.setdefault(posixpath.splitext(name)[0], name)
    for name in everything:
        if posixpath.basename(name) == METADATA:
            beside.taken.add(name)
            _read_metadata(name, read, there, beside)
    for name in everything:
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() == ".txt" and stem in stems:
            beside.taken.add(name)
            text = _text(name, read, MOST_CAPTION, beside)
            if text is not None:
                beside.captions.setdefault(stems[stem], " ".join(text.split()))
    return beside


def _read_metadata(name: str, read: Callable[[str, int], bytes], there: set[str], beside: Beside) -> None:
    text = _text(name, read, MOST_BYTES, beside)
    for number, line in enumerate((text or "").splitlines(), 1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            row = json.loads(line)
            file_name = row["file_name"]
            picture = posixpath.normpath(posixpath.join(posixpath.dirname(name), file_name))
        except (ValueError, KeyError, TypeError, RecursionError):
            beside.problems.append((place, "is not a JSON object with a file_name"))
            continue
        if picture not in there:
            beside.problems.append((place, f"names {file_name!r}, which is not there"))
            continue
        caption = row.get("text", row.get("caption"))
        if isinstance(caption, str):
            beside.captions[picture] = " ".join(caption.split())
        label = row.get("label")
        if isinstance(label, str | int) and not isinstance(label, bool):
            beside.labels[picture] = str(label)


def _text(name: str, read: Callable[[str, int], bytes], limit: int, beside: Beside) -> str | None:
    try:
        content = read(name, limit + 1)
        if len(content) > limit:
            raise ValueError(f"more than {limit:,} bytes")
        return content.decode("utf-8-sig")
    except Exception as reason:  # a damaged zip member fails in as many ways as a picture does
        beside.problems.append((name, f"captions not readable: {reason}"))
        return None
