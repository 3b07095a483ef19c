"""Captions and split of images: what counts as one, where it is looked for, and what a person is told of it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from test_sources import SETTINGS, Items, X, opened, put

from kuosan.data.captions import read_lists
from kuosan.data.config import DataConfig
from kuosan.data.dataset import Images, first_rows, open_images
from kuosan.data.doctor import examine
from kuosan.data.text_files import Beside, Finder
from shell import kuosan
from work import instructions

NAMES = ("a.png", "b.png", "c.png", "d.png")


def captions(images: Images) -> dict[str, str | None]:
    return {images.name(i): text for i, text in enumerate(images.captions or [])}


def problems(images: Images) -> list[tuple[str, str]]:
    return images.report.scan.listing.missing


def metadata(folder: Path, *rows: dict[str, object], name: str = "metadata.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_without_captions_there_is_no_list_of_them_and_the_report_says_so(tmp_path: Path) -> None:
    put(tmp_path, *NAMES)
    images = opened(tmp_path)
    assert images.captions is None and images.batch([0]).caption is None
    assert "No image has a caption." in images.describe()
    assert first_rows(images) == [f"{images.name(int(i))} -> (no caption)" for i in images.train[:5]]


def test_images_without_a_caption_are_counted_and_named_where_others_have_one(tmp_path: Path) -> None:
    put(tmp_path, *NAMES)
    metadata(tmp_path, {"file_name": "a.png", "text": "a fox"}, {"file_name": "c.png", "text": "a red fox in snow"})
    images = opened(tmp_path)
    assert captions(images) == {"a.png": "a fox", "b.png": None, "c.png": "a red fox in snow", "d.png": None}
    said = "\n".join(images.describe())
    assert "2 of 4 images have a caption, 2 different ones; the longest has 17 characters: c.png -> a red fox" in said
    assert "2 images have no caption, or an empty one: " in said and "b.png" in said
    assert images.report.summary()["longest_caption"] == 17
    assert sorted(images.batch(range(4)).caption or []) == ["", "", "a fox", "a red fox in snow"]


@pytest.mark.parametrize("empty", ["", "   ", "\n\t", None, [], [" "]])
def test_an_empty_caption_is_none(tmp_path: Path, empty: object) -> None:
    put(tmp_path, *NAMES)
    metadata(tmp_path, {"file_name": "a.png", "text": empty}, {"file_name": "b.png", "text": "b"})
    (tmp_path / "c.txt").write_text(" \n")
    images = opened(tmp_path)
    assert captions(images) == {"a.png": None, "b.png": "b", "c.png": None, "d.png": None}
    assert problems(images) == []


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_three_columns_are_read_as_captions_the_first_that_says_something(tmp_path: Path, column: str) -> None:
    put(tmp_path, *NAMES)
    (tmp_path / "metadata.csv").write_text(f"file_name,{column}\na.png,words\n")
    assert captions(opened(tmp_path))["a.png"] == "words"
    metadata(tmp_path, {"file_name": "b.png", "text": " ", "caption": None, "prompt": "p"})
    (tmp_path / "metadata.csv").unlink()
    assert captions(opened(tmp_path))["b.png"] == "p"


@pytest.mark.parametrize("value", [3, {"en": "a fox"}, [1], "\ud800"])
def test_a_caption_that_is_no_text_is_reported_with_its_line(tmp_path: Path, value: object) -> None:
    put(tmp_path, *NAMES)
    metadata(tmp_path, {"file_name": "b.png", "text": "b"}, {"file_name": "a.png", "text": value})
    images = opened(tmp_path)
    assert captions(images)["a.png"] is None
    ((place, reason),) = problems(images)
    assert place == "metadata.jsonl line 2" and reason.startswith("has no caption in text: ")


def test_of_several_captions_the_first_is_used_and_said(tmp_path: Path) -> None:
    put(tmp_path, *NAMES)
    metadata(tmp_path, {"file_name": "a.png", "text": ["", "a fox", "an animal"]})
    assert captions(opened(tmp_path))["a.png"] == "a fox"
    assert problems(opened(tmp_path)) == [("metadata.jsonl line 1", "has 3 captions: the first is used")]


@pytest.mark.parametrize("name", ["captions.csv", "Flickr.CSV", "list.jsonl"])
@pytest.mark.parametrize("column", ["file_name", "filename", "file", "image", "path"])
def test_one_list_of_another_name_is_accepted_with_a_note(tmp_path: Path, name: str, column: str) -> None:
    put(tmp_path / "set", "a.png", "b.png")
    if name.lower().endswith(".csv"):
        (tmp_path / "set" / name).write_text(f"{column},caption,author\na.png,a fox,me\n")
    else:
        metadata(tmp_path / "set", {column: "a.png", "caption": "a fox", "author": "me"}, name=name)
    images = opened(tmp_path)
    assert captions(images) == {"set/a.png": "a fox", "set/b.png": None}
    assert images.report.scan.refused == [] and problems(images) == []
    note = f"set/{name} is read as the list of its folder's images, with file_name, caption, author."
    assert note in images.describe()


def test_a_list_beside_metadata_or_that_lists_no_images_is_skipped_as_no_image(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "sub/b.png")
    metadata(tmp_path, {"file_name": "a.png", "text": "a"})
    (tmp_path / "captions.csv").write_text("file_name,text\na.png,other\n")
    (tmp_path / "sub" / "prices.csv").write_text("item,price\nb.png,3\n")
    (tmp_path / "sub" / "noise.jsonl").write_bytes(b"\xff\x00\xfe{")
    (tmp_path / "sub" / "empty.csv").write_bytes(b"")
    images = opened(tmp_path)
    assert captions(images) == {"a.png": "a", "sub/b.png": None}
    skipped = [name for name, _ in images.report.scan.refused]
    assert skipped == ["captions.csv", "sub/empty.csv", "sub/noise.jsonl", "sub/prices.csv"]


def test_two_lists_in_one_folder_are_not_chosen_between(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "long.csv").write_text("file_name,text\na.png,a long one\n")
    (tmp_path / "short.csv").write_text("file_name,text\na.png,short\n")
    images = opened(tmp_path)
    assert images.captions is None
    reason = "one of 2 lists in its folder: call the right one metadata.csv"
    assert problems(images) == [("long.csv", reason), ("short.csv", reason)]


def test_two_files_that_caption_an_image_differently_are_reported(tmp_path: Path) -> None:
    put(tmp_path, "sub/a.png")
    metadata(tmp_path, {"file_name": "sub/a.png", "text": "one"})
    metadata(tmp_path / "sub", {"file_name": "a.png", "text": "two"})
    assert captions(opened(tmp_path)) == {"sub/a.png": "two"}
    assert problems(opened(tmp_path))[0][1] == "says 'two' of sub/a.png: 'one' from another file is not used"


@pytest.mark.parametrize("word", ["test", "validation", "held_out", "Held-Out", "VAL", " valid ", "dev", "Testing"])
def test_a_split_beside_the_images_holds_out_what_it_says(tmp_path: Path, word: str) -> None:
    put(tmp_path, *NAMES)
    rows = [{"file_name": name, "split": "train"} for name in NAMES[:3]] + [{"file_name": "d.png", "split": word}]
    metadata(tmp_path, *rows)
    images = opened(tmp_path, hold_out=None)
    assert [images.name(int(i)) for i in images.held_out] == ["d.png"]
    assert "4 images used: 3 to train on, 1 held out." in images.describe()
    given = opened(tmp_path, hold_out=0.0)
    trained = {given.name(int(i)) for i in given.train}
    assert ("d.png" in trained) == ("test" not in word.lower())  # test images are never trained on
    assert len(given.held_out) == 0 and given.fingerprint != images.fingerprint
    assert "The images' own split is not used, because hold_out is 0." in given.describe()
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as pack:
        for file in sorted(tmp_path.glob("*.*n*")):
            pack.write(file, file.name)
    assert opened(tmp_path / "pack.zip", hold_out=None).fingerprint == images.fingerprint


def test_images_that_no_split_names_are_trained_on_and_counted(tmp_path: Path) -> None:
    put(tmp_path, *(f"{i}.png" for i in range(60)))
    (tmp_path / "metadata.csv").write_text("file_name,split\n0.png,test\n1.png,later\n2.png,\n3.png,train\n")
    images = opened(tmp_path, hold_out=None)
    assert [images.name(int(i)) for i in images.held_out] == ["0.png"]  # by content, a few more would be
    said = "\n".join(images.describe())
    assert "58 images say nothing of a split where others do: trained on: " in said
    known = "known are train, training, val, valid, validation, dev, test, testing, held_out"
    assert problems(images) == [("metadata.csv line 3", f"says split 'later': {known}")]
    (tmp_path / "metadata.csv").write_text("file_name,split\n0.png,1\n1.png,2\n")
    others = opened(tmp_path, hold_out=None)
    assert len(problems(others)) == 2 and set(others.held_out) == set(examine(others.config).split()[0])


def test_a_split_that_holds_everything_out_is_said_and_all_are_used(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,split\na.png,test\nb.png,test\n")
    images = opened(tmp_path, hold_out=None)
    assert len(images.train) == 2
    assert "none held out (their split holds out every one, so all are used)." in "\n".join(images.describe())


def test_a_split_asked_for_as_the_class_is_the_class(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,split,breed\na.png,test,x\nb.png,train,y\n")
    assert opened(tmp_path, label_column="split", hold_out=None).classes == ("test", "train")
    assert "columns beside the images: breed." in "\n".join(opened(tmp_path).describe())


def test_a_python_data_sets_captions_are_the_same(tmp_path: Path) -> None:
    items = ({"image": X, "prompt": " a\nfox "}, {"image": X, "text": ["", "b"]}, {"image": X, "text": ""}, (X, " "))
    assert open_images(Items(*items), SETTINGS).captions == ["a fox", "b", None, None]
    odd = open_images(Items({"image": X, "text": "\ud800"}), SETTINGS)
    assert odd.captions is None and problems(odd)[0][0] == "item 0"


def test_the_doctor_shows_the_first_captions(tmp_path: Path) -> None:
    put(tmp_path, *NAMES, "e.png", "f.png")
    metadata(tmp_path, *({"file_name": name, "text": f"caption of {name}: " + "x" * 200} for name in NAMES))
    said = kuosan("doctor", tmp_path).out
    rows = [line for line in said.splitlines() if " -> " in line and line.startswith("  ")]
    assert "The first captions:" in said and len(rows) == 5
    images = opened(tmp_path)
    for i, row in enumerate(rows):
        assert row.startswith(f"  {images.name(i)} -> ")
        caption = (images.captions or [])[i]
        assert row.endswith("..." if caption else "(no caption)") and len(row) < 150


def test_the_portraits_rows_can_be_shown_before_training() -> None:
    images = open_images(DataConfig())
    rows = first_rows(images, 3)
    assert len(rows) == 3 and all(" -> a portrait of a person with" in row for row in rows)
    assert rows[0].startswith(f"{images.name(int(images.train[0]))} -> ")


NO_TEXT = {"GBK": "一只红色的狐狸在雪地里".encode("gbk"), "Shift-JIS": "赤い狐が雪の中にいる".encode("shift_jis")}


@pytest.mark.parametrize("layout", [1, 2])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("kind", [*NO_TEXT, "Latin-1"])
def test_a_list_in_another_encoding_is_a_problem_and_its_images_are_read(
    tmp_path: Path, kind: str, name: str, layout: int
) -> None:
    put(tmp_path, *NAMES)
    text = NO_TEXT.get(kind, "un café".encode("latin-1"))
    begin = b"file_name,text\na.png," if name.endswith("csv") else b'{"file_name": "a.png", "text": "'
    (tmp_path / name).write_bytes(begin + text + (b"\n" if name.endswith("csv") else b'"}\n'))
    images = opened(tmp_path, layout=layout)
    assert len(images.report.scan.entries) == len(NAMES)
    if kind == "Latin-1" and layout > 1:
        assert captions(images)["a.png"] == "un café"
    else:
        ((place, what),) = problems(images)
        assert place == name and what.startswith("captions not readable")


@pytest.mark.parametrize("layout", [1, 2])
def test_a_list_damaged_in_its_zip_is_a_problem_and_its_images_are_read(tmp_path: Path, layout: int) -> None:
    put(tmp_path, *NAMES)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in NAMES:
            archive.write(tmp_path / name, name)
        archive.writestr("metadata.csv", "file_name,text\na.png,a red fox\n")
    content = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(content.replace(b"a red fox", b"a rad fox"))
    images = opened(tmp_path / "set.zip", layout=layout)
    assert len(images.report.scan.entries) == len(NAMES)
    ((place, what),) = problems(images)
    assert place == "metadata.csv" and what.startswith("captions not readable")


def read_absolute_paths(folders: int) -> int:
    """The work of reading a list with absolute paths of so many folders."""
    places = [f"/home/{i}/{i}.png" for i in range(folders)] + ["/home/7/deep/a.png", "/home/77/b.png"]
    content = "".join(json.dumps({"file_name": place, "text": place}) + "\n" for place in places).encode()
    beside = Beside(lambda name, limit: content[:limit])
    names = [place.rpartition("/")[2] for place in places]
    work = instructions(lambda: read_lists([*names, "metadata.jsonl"], Finder(names), beside))
    assert beside.captions == {name: place for name, place in zip(names, places) if name != "a.png"}
    ((place, what),) = beside.problems  # home/7 is dropped too: a.png may lie in its folder deep
    assert place == f"metadata.jsonl line {folders + 1}" and "may or may not be a.png" in what
    return work


def test_absolute_paths_of_eight_times_the_folders_are_eight_times_the_work() -> None:
    assert read_absolute_paths(800) < 9 * read_absolute_paths(100)
