"""Lists of images: `metadata.jsonl`, `metadata.csv` or another CSV, and the dataset.json of StyleGAN and EDM.

A list called otherwise (captions.csv) is taken where a folder holds one such list and no `metadata` file.

What lies beside images, read: captions, labels and split from lists and from the files of each image's name.

The rows of a list of images: CSV with a header, or JSON lines; each row names its image by `file_name`.

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
from kuosan.data.text_files import CAPTIONS, END, Beside, Finder, Match, NoMatch, Read, decode_text, fold
from kuosan.data.text_files import caption_text as caption_text
from kuosan.data.text_files import class_name as class_name
from kuosan.data.walk import ROLES, VALIDATION, Role
from kuosan.errors import Error, plural

METADATA = ("metadata.csv", "metadata.jsonl")
UNREAD = ("metadata.parquet",)  # lists that other tools read
DATASET = "dataset.json"  # {"labels": [[file, class], ...]}
SPLIT = "split"  # the column that says whether an image is trained on
SPLITS: dict[str, Role] = {**ROLES, "held_out": VALIDATION}
FIRST_SPLITS = ("train", "training", "test", "held_out", "validation", "valid", "val")  # those of version 1
MOST_BYTES = 1 << 28  # a metadata file beyond this is no list of captions
BEGINNING = 1 << 16  # bytes of a file that show whether it lists images


def read_lists(names: list[str], finder: Finder, beside: Beside) -> None:
    """Read metadata, and the only other list of a folder without any.

    Raises:
        Error: there is a list of images of a kind that is not read.
    """
    own = [name for name in names if _base(name, beside) in METADATA]
    folders = {posixpath.dirname(name) for name in own}
    others: dict[str, dict[str, list[str]]] = {}  # folder -> list -> its columns
    for name in names:
        folder = posixpath.dirname(name)
        if folder in folders:
            continue
        if beside.version > 1 and _base(name, beside) in UNREAD:
            raise Error(
                f"{name} lists images, but parquet is not read: write it as {METADATA[0]} (in pandas: read_parquet(...)"
                f".to_csv({METADATA[0]!r}, index=False)) or {METADATA[1]}, or move it away to go on without it."
            )
        if name.lower().endswith(ENDINGS):
            found = _beginning(name, beside)
            if FILE_NAME in found and {*CAPTIONS, SPLIT, beside.label_column} & {*found}:
                others.setdefault(folder, {})[name] = found
    for lists in others.values():
        beside.taken.update(lists)
        if len(lists) > 1:
            why = f"one of {len(lists)} lists in its folder: call the right one metadata{ENDINGS[0]}"
            beside.problems += [(name, why) for name in lists]
            continue
        ((name, found),) = lists.items()
        own.append(name)
        beside.notes.append(f"{name} is read as the list of its folder's images, with {', '.join(found)}.")
    for name in sorted(own):
        beside.taken.add(name)
        text = beside.text(name, MOST_BYTES) or ""  # before rows are counted: its problem has no line
        _keep_rows(name, _rows(name, text, beside), finder, beside)


def read_datasets(names: list[str], finder: Finder, beside: Beside) -> None:
    """Read the classes that StyleGAN and EDM keep in dataset.json."""
    for name in (name for name in names if posixpath.basename(name) == DATASET):
        found = json_object(beside.text(name, MOST_BYTES) or "")
        if found is None or "labels" not in found:
            continue
        beside.taken.add(name)
        labels = found["labels"]
        pairs = list(labels.items()) if isinstance(labels, dict) else labels
        if not pairs:
            beside.notes.append(f"{name} gives no labels.")
        elif beside.label_column != LABEL:
            beside.notes.append(f"The labels in {name} are not used: label_column is {beside.label_column!r}.")
        elif not isinstance(pairs, list):
            beside.problem(name, "its labels are no list of [file, class]")
        else:
            _keep_rows(name, _pairs(name, pairs, beside), finder, beside)
            beside.notes.append(f"{name} gives the labels.")


def _base(name: str, beside: Beside) -> str:
    base = posixpath.basename(name)
    return base if beside.version == 1 else base.lower()


def _known(beside: Beside) -> tuple[str, ...] | None:
    """The columns that are meant in whatever capitals."""
    return None if beside.version == 1 else (*CAPTIONS, SPLIT, beside.label_column)


def _beginning(name: str, beside: Beside) -> list[str]:
    """The columns of a file, if it lists images."""
    try:
        content = beside.read(name, BEGINNING)
        if beside.version == 1:
            return columns(name, content.decode("utf-8-sig", "ignore"))
        return columns(name, decode_text(content, beginning=len(content) == BEGINNING)[0], _known(beside))
    except Exception:  # it is then no image either, and reported as such
        return []


def _rows(name: str, text: str, beside: Beside) -> Iterator[tuple[int, Row]]:
    for number, row in rows(name, text, _known(beside)):
        if isinstance(row, str):
            beside.problem(_place(name, number), row)
        else:
            beside.columns.update(dict.fromkeys(column for column in row if column != FILE_NAME))
            yield number, row


def _pairs(name: str, pairs: list[Any], beside: Beside) -> Iterator[tuple[int, Row]]:
    for number, pair in enumerate(pairs, 1):
        if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str):
            yield number, {FILE_NAME: pair[0], LABEL: pair[1]}
        else:
            beside.problem(_place(name, number), "is no pair of a file and its class")


def _keep_rows(name: str, lines: Iterator[tuple[int, Row]], finder: Finder, beside: Beside) -> None:
    """Keep what the rows of a list say of images; of two that name one image the last."""
    folder, inexact, found = posixpath.dirname(name), list[tuple[int, Row]](), Found()
    before = len(beside.problems)
    for number, row in lines:
        image = finder.exact(folder, row[FILE_NAME])
        if image is None and beside.version > 1:
            inexact.append((number, row))
        elif image is None:
            beside.problem(_place(name, number), f"names {row[FILE_NAME]!r}, which is not there")
        else:
            _once(name, number, row, image, found, beside)
    found |= _inexact(name, inexact, found, finder, beside)
    beside.problems[before:] = sorted(beside.problems[before:], key=lambda problem: int(problem[0].split()[-1]))
    for image, (number, row) in found.items():
        _keep(row, image, _place(name, number), beside)


def _once(name: str, number: int, row: Row, image: str, found: Found, beside: Beside) -> None:
    if image in found:
        beside.problem(_place(name, number), f"names {row[FILE_NAME]!r} again: line {found[image][0]} is not used")
    found[image] = number, row


def _inexact(name: str, lines: list[tuple[int, Row]], taken: Found, finder: Finder, beside: Beside) -> Found:
    """The rows whose images are called otherwise; what is not sure is a problem."""
    matches: list[tuple[int, Row, Match]] = []
    for number, row in lines:
        try:
            match = finder.find(posixpath.dirname(name), row[FILE_NAME])
        except NoMatch as reason:
            beside.problem(_place(name, number), str(reason))
            continue
        if match.name in taken:
            what = f"names {row[FILE_NAME]!r}, which is not there ({match.name} has a row of its own)"
            beside.problem(_place(name, number), what)
        else:
            matches.append((number, row, match))
    dropped = {match.dropped for _, _, match in matches if match.how == END}
    deeper = {path for path in dropped if any(parent in dropped for parent in _parents(path))}
    given: dict[str, set[str]] = {}
    for _, row, match in matches:
        given.setdefault(match.name, set()).add(row[FILE_NAME])
    found = Found()
    for number, row, match in matches:
        why = ""
        if len(given[match.name]) > 1:
            why = "other rows may mean it too"
        elif match.how == END and match.dropped in deeper:
            why = "of other rows' paths more folders are here"
        if why:
            what = f"names {row[FILE_NAME]!r}, which may or may not be {match.name}: {why}"
            beside.problem(_place(name, number), what)
        else:
            _once(name, number, row, match.name, found, beside)
    for image, (_, row) in list(found.items())[:1]:
        beside.notes.append(
            f"{plural(len(found), 'row')} of {name} {'writes' if len(found) == 1 else 'write'} an image's name "
            f"otherwise, such as {row[FILE_NAME]!r} for {image}."
        )
    return found


def _parents(path: str) -> Iterator[str]:
    """The folders above a path, itself not."""
    return (path[: slash.start()] for slash in re.finditer("/", path))


def _keep(row: Row, image: str, place: str, beside: Beside) -> None:
    said = [name for name in CAPTIONS if (row[name].strip() if isinstance(row.get(name), str) else row.get(name))]
    column = said[0] if said else CAPTIONS[0]
    beside.say(beside.captions, image, beside.caption(place, row.get(column), column), place)
    if isinstance(row.get(column), list) and len(row[column]) > 1:
        beside.problem(place, f"has {len(row[column])} captions: the first is used")
    if beside.label_column != SPLIT:
        split = str(row.get(SPLIT) or "").strip().lower().replace("-", "_")
        known = [*SPLITS] if beside.version > 1 else [*FIRST_SPLITS]
        if split in known:
            role = SPLITS[split]
            beside.say(beside.splits, image, role if beside.version > 1 or role == "train" else VALIDATION, place)
        elif split:
            beside.problem(place, f"says split {row[SPLIT]!r}: known are {', '.join(known)}")
    beside.say_class(place, [image], row.get(beside.label_column))


def _place(name: str, number: int) -> str:
    return f"{name} {'entry' if posixpath.basename(name) == DATASET else 'line'} {number}"


def read_beside(
    names: Iterable[str], read: Read, label_column: str = LABEL, *, version: int = 2, root: str = ""
) -> Beside:
    """What is said of the files `names` (relative, with /), where `read(name, limit)` gives a file's bytes.

    A row of metadata wins over a sidecar; what cannot be understood is a problem with its place, never fatal.

    Args:
        root: what the data set itself is called, with which paths in lists may begin.
        version: 1 reads as older versions did: UTF-8, the names as they stand, and `.txt` alone.

    Raises:
        Error: there is a list of images of a kind that is not read.
    """
    everything = sorted(names)
    beside = Beside(read, label_column, version)
    finder = Finder(everything, root)
    read_lists(everything, finder, beside)
    if version == 1:
        read_first_texts(everything, beside)
    else:
        read_datasets(everything, finder, beside)
        read_sidecars(everything, beside)
        beside.settle()
    return beside


FILE_NAME = "file_name"  # the column that says which image a row is of
FILE_NAMES = (FILE_NAME, "filename", "file", "image", "path")  # what else lists call it; the first that is there
ENDINGS = (".csv", ".jsonl")

Row = dict[str, Any]
Found = dict[str, tuple[int, Row]]  # image -> the last line that speaks of it


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
