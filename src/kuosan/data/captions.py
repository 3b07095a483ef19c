"""What lies beside pictures: captions, labels, split in `metadata.jsonl`, `metadata.csv` or another list; `name.txt`.

A list called otherwise (captions.csv) is taken where a folder holds one such list and no `metadata` file.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kuosan.data.metadata import ENDINGS, FILE_NAME, Row, columns, rows

METADATA = ("metadata.csv", "metadata.jsonl")
CAPTIONS = ("text", "caption", "prompt")  # columns that hold a caption, the first that is there
SPLIT = "split"  # the column that says whether a picture is trained on
TRAINED_ON = ("train", "training")
SPLITS = (*TRAINED_ON, "test", "held_out", "validation", "valid", "val")
MOST_BYTES = 1 << 28  # a metadata file beyond this is no list of captions
MOST_CAPTION = 1 << 16
BEGINNING = 1 << 16  # bytes of a file that tell whether it lists pictures

Read = Callable[[str, int], bytes]  # a file's bytes by name, at most so many


@dataclass
class Beside:
    """What lies beside the pictures, by picture name; `taken` are the files that were captions, not pictures."""

    captions: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)  # one of SPLITS each
    taken: set[str] = field(default_factory=set)
    problems: list[tuple[str, str]] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)  # what rows say of pictures, in the order met
    notes: list[str] = field(default_factory=list)


def read_beside(names: Iterable[str], read: Read, label_column: str = "label") -> Beside:
    """What is told of the files `names` (relative, with /), where `read(name, limit)` gives a file's bytes.

    A row of metadata wins over a `.txt`; what cannot be understood is a problem with its place, never fatal.
    """
    everything = sorted(names)
    there = set(everything)
    beside = Beside()
    stems: dict[str, str] = {}
    for name in everything:
        if not name.lower().endswith((".txt", *ENDINGS)):
            stems.setdefault(posixpath.splitext(name)[0], name)
    for name in _lists(everything, read, beside, label_column):
        beside.taken.add(name)
        _read_metadata(name, read, there, beside, label_column)
    for name in everything:
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() == ".txt" and stem in stems:
            beside.taken.add(name)
            text = _text(name, read, MOST_CAPTION, beside)
            if text and text.strip():
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


def caption_text(value: object) -> str | None:
    """A cell as a caption, its blanks made one space each; of a list the first; empty and null are none.

    Raises:
        ValueError: it is no text.
    """
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = next((each for each in value if each.strip()), None)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    value.encode()
    return " ".join(value.split()) or None


def _lists(names: list[str], read: Read, beside: Beside, label_column: str) -> list[str]:
    """The files of `names` that list pictures: metadata, and the only other list of a folder without any."""
    own = [name for name in names if posixpath.basename(name) in METADATA]
    folders = {posixpath.dirname(name) for name in own}
    others: dict[str, dict[str, list[str]]] = {}  # folder -> list -> its columns
    for name in names:
        folder = posixpath.dirname(name)
        if name.lower().endswith(ENDINGS) and folder not in folders:
            told = _beginning(name, read)
            if FILE_NAME in told and {*CAPTIONS, SPLIT, label_column} & {*told}:
                others.setdefault(folder, {})[name] = told
    for found in others.values():
        beside.taken.update(found)
        if len(found) > 1:
            why = f"one of {len(found)} lists in its folder: call the right one metadata{ENDINGS[0]}"
            beside.problems += [(name, why) for name in found]
            continue
        ((name, told),) = found.items()
        own.append(name)
        beside.notes.append(f"{name} is read as the list of its folder's pictures, with {', '.join(told)}.")
    return sorted(own)


def _beginning(name: str, read: Read) -> list[str]:
    """The columns of a file, if it lists pictures."""
    try:
        text = read(name, BEGINNING).decode("utf-8-sig", "ignore")
    except Exception:  # it is then no picture either, and reported as such
        return []
    return columns(name, text)


def _read_metadata(name: str, read: Read, there: set[str], beside: Beside, label_column: str) -> None:
    text = _text(name, read, MOST_BYTES, beside)
    found: dict[str, tuple[int, Row]] = {}  # picture -> the last line that speaks of it
    for number, row in rows(name, text or ""):
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
    said = [name for name in CAPTIONS if (row[name].strip() if isinstance(row.get(name), str) else row.get(name))]
    column = said[0] if said else CAPTIONS[0]
    try:
        told = caption_text(row.get(column))
    except ValueError as reason:
        beside.problems.append((place, f"has no caption in {column}: {reason}"))
    else:
        _say(beside.captions, picture, told, place, beside)
        if isinstance(row.get(column), list) and len(row[column]) > 1:
            beside.problems.append((place, f"has {len(row[column])} captions: the first is used"))
    if label_column != SPLIT:
        split = str(row.get(SPLIT) or "").strip().lower().replace("-", "_")
        _say(beside.splits, picture, split if split in SPLITS else None, place, beside)
        if split and split not in SPLITS:
            beside.problems.append((place, f"says split {row[SPLIT]!r}: known are {', '.join(SPLITS)}"))
    try:
        _say(beside.labels, picture, class_name(row.get(label_column)), place, beside)
    except ValueError as reason:
        beside.problems.append((place, f"has no class in {label_column}: {reason}"))


def _say(kept: dict[str, str], picture: str, value: str | None, place: str, beside: Beside) -> None:
    """Keep what a row says of a picture, and report where an earlier file said otherwise."""
    if value is None:
        return
    before = kept.setdefault(picture, value)
    if before != value:
        beside.problems.append((place, f"says {value!r} of {picture}: {before!r} from another file is not used"))
    kept[picture] = value


def _text(name: str, read: Read, limit: int, beside: Beside) -> str | None:
    try:
        content = read(name, limit + 1)
        if len(content) > limit:
            raise ValueError(f"more than {limit:,} bytes")
        return content.decode("utf-8-sig")
    except Exception as reason:  # a damaged zip member fails in as many ways as a picture does
        beside.problems.append((name, f"captions not readable: {reason}"))
        return None
