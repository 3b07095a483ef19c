"""Classes from a column: metadata.csv, metadata.jsonl, dicts of a Python data set, the portraits' attributes."""

from __future__ import annotations

import csv
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_files import drawn, saved
from test_sources import ARRAY, SETTINGS, Items, X, by_name, opened, put

from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.data.doctor import examine
from kuosan.data.text_files import class_name
from kuosan.errors import Error

ROWS = [("a.png", "sun, high", 'he said "shine"'), ("sub/b.png", "3", "two\nlines"), ("é ü.png", "moon", "")]


def write_csv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...], **dialect: object) -> None:
    """A CSV as Python's own writer makes it."""
    with path.open("w", encoding=str(dialect.pop("encoding", "utf-8")), newline="") as file:
        csv.writer(file, **dialect).writerows([header, *rows])  # type: ignore[arg-type]


def problems(path: Path, **settings: object) -> list[tuple[str, str]]:
    return opened(path, **settings).report.scan.listing.missing


@pytest.mark.parametrize(
    "dialect",
    [
        {},
        {"encoding": "utf-8-sig"},
        {"delimiter": ";"},
        {"delimiter": "\t", "quoting": csv.QUOTE_ALL},
        {"lineterminator": "\n", "quoting": csv.QUOTE_ALL, "encoding": "utf-8-sig"},
    ],
    ids=["plain", "BOM", "semicolons", "tabs, all quoted", "BOM, all quoted"],
)
def test_a_csv_gives_classes_and_captions(tmp_path: Path, dialect: dict[str, object]) -> None:
    put(tmp_path, *(name for name, _, _ in ROWS))
    write_csv(tmp_path / "metadata.csv", ROWS, ("file_name", "label", "text"), **dialect)  # type: ignore[arg-type]
    images = opened(tmp_path)
    assert by_name(images) == {"a.png": "sun, high", "sub/b.png": "3", "é ü.png": "moon"}
    assert images.classes == ("3", "moon", "sun, high")
    captions = {images.name(i): text for i, text in enumerate(images.captions or [])}
    assert captions == {"a.png": 'he said "shine"', "sub/b.png": "two lines", "é ü.png": None}
    assert images.report.scan.refused == [] and images.report.scan.listing.missing == []


def test_csv_and_jsonl_of_the_same_rows_give_the_same_data_set(tmp_path: Path) -> None:
    one, other = tmp_path / "csv", tmp_path / "jsonl"
    for folder in (one, other):
        put(folder, *(name for name, _, _ in ROWS))
    write_csv(one / "metadata.csv", ROWS, ("file_name", "label", "text"))
    rows = [{"file_name": name, "label": int(label) if label == "3" else label, "text": t} for name, label, t in ROWS]
    (other / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert opened(one).fingerprint == opened(other).fingerprint
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as pack:
        for file in sorted(one.rglob("*.*")):
            pack.write(file, str(file.relative_to(one)))
    assert opened(tmp_path / "pack.zip").fingerprint == opened(one).fingerprint


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_column_of_classes_can_be_chosen_and_an_unknown_one_is_refused_with_those_there_are(
    tmp_path: Path, kind: str
) -> None:
    put(tmp_path, "cat/a.png", "dog/b.png")
    rows = [("cat/a.png", "1", "red"), ("dog/b.png", "2", "blue")]
    columns = ("file_name", "age", "colour")
    if kind == "csv":
        write_csv(tmp_path / "metadata.csv", rows, columns)
    else:
        lines = [json.dumps(dict(zip(columns, row))) for row in rows]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert by_name(opened(tmp_path, label_column="colour")) == {"cat/a.png": "red", "dog/b.png": "blue"}
    assert by_name(opened(tmp_path, label_column="age")) == {"cat/a.png": "1", "dog/b.png": "2"}
    assert opened(tmp_path).classes == ("cat", "dog")  # no column named label: folders, as ever
    with pytest.raises(Error, match=r"unknown label_column 'color': did you mean 'colour'\? Allowed: age, colour\."):
        opened(tmp_path, label_column="color")


def test_columns_that_could_be_classes_are_named_where_there_are_none(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    write_csv(tmp_path / "metadata.csv", [("a.png", "x", "t")], ("file_name", "breed", "text"))
    said = " ".join(opened(tmp_path).describe())
    assert "columns beside the images: breed. Set label_column" in said


def test_a_column_without_any_metadata_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "photos", "a.png")
    with pytest.raises(Error, match=r"no metadata\.csv or metadata\.jsonl with columns"):
        opened(tmp_path / "photos", label_column="breed")
    np.savez(tmp_path / "x.npz", x=ARRAY)
    with pytest.raises(Error, match="holds arrays, and labels as one more array"):
        opened(tmp_path / "x.npz", label_column="breed")
    for column in ("", "file_name"):
        with pytest.raises(Error, match="no column of classes"):
            DataConfig(label_column=column)


def test_rows_that_cannot_be_used_are_reported_with_their_line(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "c.png")
    lines = ["file_name,label", "a.png,one", "gone.png,two", "b.png", "c.png,x,y", "", ",,", "a.png,three", 'b.png,"o']
    (tmp_path / "metadata.csv").write_text("\r\n".join(lines))
    assert by_name(opened(tmp_path)) == {"a.png": "three", "b.png": None, "c.png": None}
    assert problems(tmp_path) == [
        ("metadata.csv line 3", "names 'gone.png', which is not there"),
        ("metadata.csv line 4", "has 1 cells for 2 columns"),
        ("metadata.csv line 5", "has 3 cells for 2 columns"),
        ("metadata.csv line 8", "names 'a.png' again: line 2 is not used"),
        ("metadata.csv line 9", "is not CSV: unexpected end of data"),
    ]
    said = "\n".join(opened(tmp_path).describe())
    assert "2 images have no class: a model with labels learns such under the null label: " in said
    assert "5 captions or labels are not used: metadata.csv line 3 (names 'gone.png'" in said


@pytest.mark.parametrize("header", ["label,caption", "file_name,label,label", "file_name,file_name", "\x00", ""])
def test_a_header_that_names_no_files_is_reported_and_folders_stay_classes(tmp_path: Path, header: str) -> None:
    put(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "metadata.csv").write_text(f"{header}\ncat/a.png,one,two\n")
    assert opened(tmp_path).classes == ("cat", "dog")
    (problem,) = problems(tmp_path)
    assert problem[0] in ("metadata.csv line 1", "metadata.csv line 2") and "must name columns" in problem[1]


def test_one_damaged_row_does_not_spoil_those_after_it(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text('file_name,label\na.png,"x"y\nb.png,two\n')
    assert by_name(opened(tmp_path)) == {"a.png": None, "b.png": "two"}
    assert [place for place, _ in problems(tmp_path)] == ["metadata.csv line 2"]


def test_two_files_that_disagree_are_reported(tmp_path: Path) -> None:
    put(tmp_path, "sub/a.png", "sub/b.png")
    write_csv(tmp_path / "metadata.csv", [("sub/a.png", "x"), ("sub/b.png", "y")], ("file_name", "label"))
    rows = [{"file_name": "a.png", "label": "z", "text": "hi"}, {"file_name": "b.png", "label": "y"}]
    (tmp_path / "sub" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert by_name(opened(tmp_path)) == {"sub/a.png": "z", "sub/b.png": "y"}
    reason = "says 'z' of sub/a.png: 'x' from another file is not used"
    assert problems(tmp_path) == [("sub/metadata.jsonl line 1", reason)]


def test_numbers_and_text_become_names_and_nothing_becomes_none() -> None:
    named = [class_name(value) for value in ("dog", "  two \n words ", 7, 7.5, True, "", " ", None, float("nan"))]
    assert named == ["dog", "two words", "7", "7.5", "true", None, None, None, None]
    for value in ([1], {"a": 1}, "\ud800"):
        with pytest.raises(ValueError):
            class_name(value)


def test_a_class_that_is_a_list_is_reported_not_ignored(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": ["x"], "text": "line\u2028end"}\n')
    assert "neither text nor a number" in problems(tmp_path)[0][1]
    assert opened(tmp_path).captions == ["line end"]  # U+2028 is no end of a line of JSON


def test_classes_that_are_numbers_are_sorted_by_value(tmp_path: Path) -> None:
    names = ["10.0", "9", "-1", "0.5"]
    put(tmp_path, *(f"{i}.png" for i in range(4)))
    write_csv(tmp_path / "metadata.csv", [(f"{i}.png", n) for i, n in enumerate(names)], ("file_name", "label"))
    assert opened(tmp_path).classes == ("-1", "0.5", "9", "10.0")
    put(tmp_path / "odd", "²/a.png", "1/b.png")
    assert opened(tmp_path / "odd").classes == ("1", "²")  # a digit by isdigit(), no number


def test_the_doctor_counts_classes_and_writes_them(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "c.png", "d.png")
    write_csv(tmp_path / "metadata.csv", [("a.png", "x"), ("b.png", "x"), ("c.png", "y")], ("file_name", "label"))
    told = examine(DataConfig(path=str(tmp_path), hold_out=0)).summary()
    assert told["classes"] == {"x": 2, "y": 1} and told["without_class"] == 1


def test_items_that_are_dicts_may_name_their_class_in_words_and_under_any_key() -> None:
    items = [{"image": X, "label": "dog", "text": "a dog", "breed": 2}, {"image": X, "label": "cat", "breed": 1}]
    images = open_images(Items(*items), SETTINGS)
    assert images.classes == ("cat", "dog") and images.captions == ["a dog", None]
    chosen = open_images(Items(*items), DataConfig(path="mine", hold_out=0, label_column="breed"))
    assert chosen.classes == ("1", "2")
    with pytest.raises(Error, match=r"unknown label_column of item 0 'bred': did you mean 'breed'\? .*label, text"):
        open_images(Items(*items), DataConfig(path="mine", hold_out=0, label_column="bred"))
    with pytest.raises(Error, match="item 0 is a tuple, which has no keys"):
        open_images(Items((X, 3)), DataConfig(path="mine", hold_out=0, label_column="breed"))


def test_any_attribute_of_the_portraits_can_be_their_class() -> None:
    images = open_images(DataConfig(label_column="beard"))
    assert images.classes[0] == "none" and len(images.classes) == 6
    assert images.labels is not None and images.attributes is not None
    told = Counter(images.classes[label] for label in images.labels)
    assert told == Counter(attributes["beard"] for attributes in images.attributes)
    with pytest.raises(Error, match="did you mean 'beard'"):
        open_images(DataConfig(label_column="berd"))


LABELS = [("0.png", "cat"), ("1.png", "dog"), ("2.png", "cat"), ("3.png", "dog")]


@pytest.mark.parametrize(
    ("header", "names", "settings", "says"),
    [
        ("file,label", LABELS, {}, ["2 classes: cat 2, dog 2", "labels.csv is read as the list"]),
        ("filename,label", LABELS, {}, ["2 classes: cat 2, dog 2", "labels.csv is read as the list"]),
        ("image;label", LABELS, {}, ["2 classes: cat 2, dog 2"]),
        ("filename,breed", LABELS, {}, ["1 file is not read as a list of images", "--label-column", "labels.csv"]),
        ("filename,breed", LABELS, {"label_column": "breed"}, ["2 classes: cat 2, dog 2"]),
        ("id,label", [("0", "cat")], {}, ["1 file is not read as a list of images", "file_name, filename or file"]),
        ("", LABELS, {}, ["1 file is not read as a list of images", "file_name, filename or file"]),
        ("file,label", [("x.png", "cat")], {}, ["No classes: a list has a column label, but names no image here",
                                                "names 'x.png', which is not there"]),
    ],
)  # fmt: skip
def test_a_labels_csv_beside_images_is_used_or_the_doctor_says_what_to_do(
    header: str, names: list[tuple[str, str]], settings: dict[str, str], says: list[str], tmp_path: Path
) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(saved(drawn(name=f"{i}"), "PNG"))
    mark = ";" if ";" in header else ","
    text = "\n".join([header, *(mark.join(row) for row in names)]).lstrip("\n")
    (tmp_path / "labels.csv").write_text(text)
    said = "\n".join(examine(DataConfig(str(tmp_path), **settings)).lines())  # type: ignore[arg-type]
    for part in says:
        assert part in said, said


def test_a_list_beside_a_metadata_file_is_named_as_not_read(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(saved(drawn(), "PNG"))
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a cat\n")
    (tmp_path / "labels.csv").write_text("file,label\n0.png,cat\n")
    said = "\n".join(examine(DataConfig(str(tmp_path))).lines())
    assert "beside a metadata.csv or .jsonl no other is read): labels.csv" in said
