"""The rows of a list of pictures: CSV with a header, or JSON lines; each row names its picture by `file_name`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator
from typing import Any

FILE_NAME = "file_name"  # the column that says which picture a row is of
FILE_NAMES = (FILE_NAME, "filename", "file", "image", "path")  # what else lists call it; the first that is there
ENDINGS = (".csv", ".jsonl")

Row = dict[str, Any]


def rows(name: str, text: str, known: Collection[str] | None = None) -> Iterator[tuple[int, Row | str]]:
    """(line, row, or what is wrong with it) of a file by its ending; a row's image is under `file_name`.

    Args:
        known: columns that are meant in whatever capitals they are written; None takes all as they are.
    """
    return (_csv_rows if name.lower().endswith(".csv") else _json_rows)(text, known)


def columns(name: str, text: str, known: Collection[str] | None = None) -> list[str]:
    """The columns of a list of pictures, from its beginning; none where it is no such list."""
    for _, row in rows(name, text, known):
        return [] if isinstance(row, str) else list(row)
    header = _usual(_header(text, _delimiter(text, known)), known) if name.lower().endswith(".csv") else []
    return header if _file_column(header) else []  # a header and no whole row


def _usual(header: list[str], known: Collection[str] | None) -> list[str]:
    """Column names in the capitals that are looked for, where no other column has that name."""
    if known is None:
        return header
    wanted = {name.lower(): name for name in (*known, *FILE_NAMES)}
    usual = [wanted.get(name.lower(), name) for name in header]
    return [new if usual.count(new) == 1 else old for old, new in zip(header, usual)]


def _file_column(header: list[str]) -> str | None:
    return next((column for column in FILE_NAMES if header.count(column) == 1), None)


def _json_rows(text: str, known: Collection[str] | None) -> Iterator[tuple[int, Row | str]]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):  # not splitlines: U+2028 may stand in a caption
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            row = dict(zip(_usual(list(row), known), row.values()))
        column = _file_column(list(row)) if isinstance(row, dict) else None
        if column is not None and isinstance(row[column], str):
            yield number, {FILE_NAME: row.pop(column), **row}
        else:
            yield number, f"is not a JSON object with a {FILE_NAME}"


def _csv_rows(text: str, known: Collection[str] | None) -> Iterator[tuple[int, Row | str]]:
    """Between commas, semicolons or tabs (RFC 4180)."""
    header: list[str] = []
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, known), strict=True)
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
            header = _usual([cell.strip() for cell in cells], known)
            column = _file_column(header)
            if column is None or len({*header}) < len(header):
                yield number, f"must name columns, each once and one {FILE_NAME}: it names {', '.join(header)}"
                return
            header[header.index(column)] = FILE_NAME
        elif len(cells) != len(header):
            yield number, f"has {len(cells)} cells for {len(header)} columns"
        else:
            yield number, dict(zip(header, cells))


def _header(text: str, delimiter: str) -> list[str]:
    line = re.split(r"\r\n|\r|\n", text.lstrip(), maxsplit=1)[0]
    return [cell.strip().strip('"') for cell in line.split(delimiter)]


def _delimiter(text: str, known: Collection[str] | None) -> str:
    """What splits the header so that it names files; spreadsheets write semicolons where the comma is decimal."""
    return next((mark for mark in ",;\t" if _file_column(_usual(_header(text, mark), known))), ",")
