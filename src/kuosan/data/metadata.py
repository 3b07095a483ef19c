"""The rows of a list of images: CSV with a header, or JSON lines; each row names its image by `file_name`.

Files that belong to one image by its name: `a.txt`, `a.caption`, `a.json`, `a.cls` beside `a.png`, or `a.png.txt`.

A sidecar is every image's whose name is its own without the suffix, whatever else lies there. JSON files are those of
img2dataset and webdataset: one object with a caption among much else; `.cls` is webdataset's class.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from kuosan.data.config import LABEL
from kuosan.data.text_files import CAPTIONS, Beside, decode_text, fold

FILE_NAME = "file_name"  # the column that says which image a row is of
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
    """The columns of a list of images, from its beginning; none where it is no such list."""
    for _, row in rows(name, text, known):
        return [] if isinstance(row, str) else list(row)
    header = _standard(_header(text, _delimiter(text, known)), known) if name.lower().endswith(".csv") else []
    return header if _file_column(header) else []  # a header and no whole row


def _standard(header: list[str], known: Collection[str] | None) -> list[str]:
    """Column names in the capitals that are looked for, where no other column has that name."""
    if known is None:
        return header
    wanted = {name.lower(): name for name in (*known, *FILE_NAMES)}
    names = [wanted.get(name.lower(), name) for name in header]
    return [new if names.count(new) == 1 else old for old, new in zip(header, names)]


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
            row = dict(zip(_standard(list(row), known), row.values()))
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
            header = _standard([cell.strip() for cell in cells], known)
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
    return next((mark for mark in ",;\t" if _file_column(_standard(_header(text, mark), known))), ",")


WORDS = (".txt", ".text", ".caption")  # a caption, the first that says something
JSON, CLASS = ".json", ".cls"
SIDECARS = (*WORDS, JSON, CLASS)
# What trainers and downloaders leave beside images, never an image; lists of images, which say more than one name
OTHERS = (".npz", ".npy", ".safetensors", ".pt", ".pth", ".ckpt", ".parquet", ".csv", ".jsonl", ".xml", ".yaml", ".yml")
MASKS = ("-masklabel.png", "-condlabel.png")  # OneTrainer's, beside the image they belong to
MOST_JSON = 1 << 20  # bytes
LISTED = "a list"


def read_sidecars(names: list[str], beside: Beside) -> None:
    """Give each image what lies beside it under its name; of several captions the first kind of `WORDS`, then JSON."""
    names, used = [name for name in names if name not in beside.taken], Counter[str]()
    beside.masks = masks(names)
    found = {name: images for name, images in owners(names).items() if images}
    places: dict[str, str] = dict.fromkeys(beside.captions, LISTED)  # where each image's caption comes from
    free = {name: [image for image in images if image not in beside.labels] for name, images in found.items()}
    for kind in WORDS:
        for name in (name for name in found if name.lower().endswith(kind)):
            beside.taken.add(name)
            used[kind] += _say(name, found[name], beside.caption(name, beside.text(name)), places, beside)
    for name in (name for name in found if name.lower().endswith(JSON)):
        value = _object(name, beside)
        if value is None:
            continue
        beside.taken.add(name)
        beside.columns.update(dict.fromkeys(key for key, each in value.items() if not isinstance(each, dict | list)))
        column = next((column for column in CAPTIONS if value.get(column)), CAPTIONS[0])
        used[JSON] += _say(name, found[name], beside.caption(name, value.get(column)), places, beside)
        beside.say_class(name, free[name], value.get(beside.label_column))
    for name in (name for name in found if name.lower().endswith(CLASS)):
        if beside.label_column == LABEL:
            beside.taken.add(name)
            beside.say_class(name, free[name], beside.text(name))
    if any(count for kind, count in used.items() if kind != WORDS[0]):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in used.items() if count)
        beside.notes.append(f"Captions come from files beside the images: {kinds}.")


def read_first_texts(names: list[str], beside: Beside) -> None:
    """Version 1: `.txt` alone, and of several files of one stem the first by name."""
    stems: dict[str, str] = {}
    for name in names:
        if not name.lower().endswith((".txt", *ENDINGS)):
            stems.setdefault(posixpath.splitext(name)[0], name)
    for name in names:
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() == ".txt" and stem in stems:
            beside.taken.add(name)
            text = beside.text(name)
            if text and text.strip():
                beside.captions.setdefault(stems[stem], " ".join(text.split()))


def _say(place: str, images: list[str], text: str | None, places: dict[str, str], beside: Beside) -> int:
    """Give a caption to those of its images that have none; how many."""
    given = 0
    for image in images if text else ():
        if image not in places:
            places[image], beside.captions[image] = place, str(text)
            given += 1
        elif places[image] != LISTED and beside.captions[image] != text:
            beside.problem(place, f"is not used: the caption of {image} is that of {places[image]}")
    return given


def _object(name: str, beside: Beside) -> dict[str, Any] | None:
    """What a JSON file beside an image says; None where it says nothing that is looked for."""
    try:
        content = beside.read(name, MOST_JSON + 1)
        value = json_object(decode_text(content)[0]) if len(content) <= MOST_JSON else None
    except Exception:  # it is then no caption, and reported as no image
        return None
    return value if value is not None and {*CAPTIONS, beside.label_column} & {*value} else None


def owners(names: Iterable[str]) -> dict[str, list[str]]:
    """Each sidecar of `names` with the images that it belongs to; those without any have an empty list."""
    every = sorted(names)
    sidecars = [name for name in every if name.lower().endswith(SIDECARS)]
    others = [name for name in every if not name.lower().endswith((*SIDECARS, *OTHERS))]
    there = {*others}
    stems, folded, keys = (dict[str, list[str]]() for _ in range(3))
    for name in others:
        stem = posixpath.splitext(name)[0]
        folder, base = posixpath.split(name)
        stems.setdefault(stem, []).append(name)
        folded.setdefault(fold(stem), []).append(name)
        keys.setdefault(posixpath.join(folder, base.split(".")[0]), []).append(name)
    found = {}
    for name in sidecars:
        stem = posixpath.splitext(name)[0]
        whole = [stem] if stem in there else []
        # webdataset groups by what comes before the first point: 0001.input.jpg has 0001.txt
        found[name] = whole or stems.get(stem) or folded.get(fold(stem)) or keys.get(stem) or []
    return found


def masks(names: Iterable[str]) -> list[str]:
    """The masks of other images among these files."""
    there = {*names}
    stems = {posixpath.splitext(name)[0] for name in there}
    return [
        name for name in sorted(there) for ending in MASKS if name.endswith(ending) and name[: -len(ending)] in stems
    ]


def json_object(text: str) -> dict[str, Any] | None:
    """One JSON object; None where the text is another thing."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
