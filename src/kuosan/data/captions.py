"""Captions and labels that lie beside pictures: `metadata.jsonl` and `metadata.csv` (file_name, ...) and `name.txt`."""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

METADATA = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"  # the column that says which picture a row is of
CAPTIONS = ("text", "caption")  # columns that hold a caption, the first that is there
MOST_BYTES = 1 << 28  # a metadata file beyond this is no list of captions
MOST_CAPTION = 1 << 16

Row = dict[str, Any]
Read = Callable[[str, int], bytes]  # a file's bytes by name, at most so many


@dataclass
class Beside:
    """What lies beside the pictures, by picture name; `taken` are the files that were captions, not pictures."""

    captions: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    problems: list[tuple[str, str]] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)  # what rows say of pictures, in the order met


def read_beside(names: Iterable[str], read: Read, label_column: str = "label") -> Beside:
    """Captions and labels of the files `names` (relative, with /), where `read(name, limit)` gives a file's bytes.

    A row of metadata wins over a `.txt`; what cannot be understood is a problem with its place, never fatal.
    """
    everything = sorted(names)
    there = set(everything)
    beside = Beside()
    stems: dict[str, str] = {}
    for name in everything:
        if not name.lower().endswith((".txt", ".jsonl", ".csv")):
            stems.setdefault(posixpath.splitext(name)[0], name)
    for name in everything:
        if posixpath.basename(name) in METADATA:
            beside.taken.add(name)
            _read_metadata(name, read, there, beside, label_column)
    for name in everything:
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() == ".txt" and stem in stems:
            beside.taken.add(name)
            text = _text(name, read, MOST_CAPTION, beside)
            if text is not None:
                beside.captions.setdefault(stems[stem], " ".join(text.split()))
    return beside


def class_name(value: object) -> str | None:
    """A cell as the name of a class: text and numbers as they are written; empty, null and NaN are none.

    Raises:
        ValueError: it is a list or an object, or no text that can be written down.
    """
    match value:
        case None:
            return None
        case bool():
            return str(value).lower()
        case float() if math.isnan(value):
            return None
        case int() | float():
            return str(value)
        case str():
            value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
            return " ".join(value.split()) or None
    raise ValueError(f"{value!r} is neither text nor a number")


def _read_metadata(name: str, read: Read, there: set[str], beside: Beside, label_column: str) -> None:
    text = _text(name, read, MOST_BYTES, beside)
    rows = _csv_rows if name.endswith(".csv") else _json_rows
    found: dict[str, tuple[int, Row]] = {}  # picture -> the last line that speaks of it
    for number, row in rows(text or ""):
        place = f"{name} line {number}"
        if isinstance(row, str):
            beside.problems.append((place, row))
            continue
        beside.columns.update(dict.fromkeys(column for column in row if column != FILE_NAME))
        picture = posixpath.normpath(posixpath.join(posixpath.dirname(name), row[FILE_NAME]))
        if picture not in there:
            beside.problems.append((place, f"names {row[FILE_NAME]!r}, which is not there"))
            continue
        if picture in found:
            beside.problems.append((place, f"names {row[FILE_NAME]!r} again: line {found[picture][0]} is not used"))
        found[picture] = number, row
    for picture, (number, row) in found.items():
        _keep(row, picture, f"{name} line {number}", beside, label_column)


def _keep(row: Row, picture: str, place: str, beside: Beside, label_column: str) -> None:
    caption = next((row[column] for column in CAPTIONS if row.get(column)), None)
    if isinstance(caption, str) and caption.strip():
        beside.captions[picture] = " ".join(caption.split())
    try:
        label = class_name(row.get(label_column))
    except ValueError as reason:
        beside.problems.append((place, f"has no class in {label_column}: {reason}"))
        return
    if label is not None:
        before = beside.labels.setdefault(picture, label)
        if before != label:
            beside.problems.append((place, f"says {label!r} of {picture}: {before!r} from another file is not used"))
        beside.labels[picture] = label


def _json_rows(text: str) -> Iterator[tuple[int, Row | str]]:
    """(line, row, or what is wrong with it) of JSON lines."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):  # not splitlines: U+2028 may stand in a caption
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get(FILE_NAME), str):
            yield number, row
        else:
            yield number, f"is not a JSON object with a {FILE_NAME}"


def _csv_rows(text: str) -> Iterator[tuple[int, Row | str]]:
    """(line, row, or what is wrong with it) of a CSV with a header, between commas, semicolons or tabs (RFC 4180)."""
    header: list[str] = []
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    while True:
        number = lines.line_num + 1
        try:
            cells = next(lines, None)
        except csv.Error as reason:
            yield number, f"is not CSV: {reason}"
            continue
        if cells is None:
            return
        if not any(cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if header.count(FILE_NAME) != 1 or len({*header}) < len(header):
                yield number, f"must name columns, each once and one {FILE_NAME}: it names {', '.join(header)}"
                return
        elif len(cells) != len(header):
            yield number, f"has {len(cells)} cells for {len(header)} columns"
        else:
            yield number, dict(zip(header, cells))


def _delimiter(text: str) -> str:
    """What splits the header so that it names files; spreadsheets write semicolons where the comma is decimal."""
    header = text.lstrip().partition("\n")[0]
    for mark in ",;\t":
        if FILE_NAME in (cell.strip().strip('"') for cell in header.split(mark)):
            return mark
    return ","


def _text(name: str, read: Read, limit: int, beside: Beside) -> str | None:
    try:
        content = read(name, limit + 1)
        if len(content) > limit:
            raise ValueError(f"more than {limit:,} bytes")
        return content.decode("utf-8-sig")
    except Exception as reason:  # a damaged zip member fails in as many ways as a picture does
        beside.problems.append((name, f"captions not readable: {reason}"))
        return None
