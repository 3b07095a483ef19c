"""Layouts that other tools write, as a table: classes, captions and split of each, counted by hand."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from made_files import drawn, saved

from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.data.doctor import examine

E_ACUTE, E_AND_ACUTE = "caf\u00e9.png", unicodedata.normalize("NFD", "caf\u00e9.png")


@dataclass(frozen=True)
class Case:
    """What lies in a data set, and what a person who knows its format would say of it.

    `images` maps each image to its class (or None); `held` and `test` are those that are not to train on.
    """

    images: Mapping[str, str | None]
    beside: Mapping[str, str | bytes] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    held: tuple[str, ...] | None = None  # None: the data set says nothing, and nothing is asked to be held out
    test: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    packing: str = "folder"
    settings: Mapping[str, object] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)  # the name in the archive, where it is another


def of(*names: str, label: str | None = None) -> dict[str, str | None]:
    return dict.fromkeys(names, label)


def by(folder: int, *names: str) -> dict[str, str | None]:
    """Images whose class is their folder at this depth."""
    return {name: name.split("/")[folder] for name in names}


def rows(*pairs: tuple[object, ...], head: str = "file_name,text") -> str:
    return "\n".join([head, *(",".join(map(str, pair)) for pair in pairs)]) + "\n"


def lines(*values: Mapping[str, object]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


ONE = {"a.png": "one a", "b.png": "one b"}
PETS = ("train/cat/1.png", "train/dog/1.png", "train/dog/2.png", "test/cat/1.png", "test/dog/1.png")
CASES: dict[str, Case] = {
    # folders as splits
    "train and test with classes": Case(
        by(1, *PETS),
        held=PETS[3:],
        says=("Folders are a split: train to train on (3), test held out and never trained on (2).",),
    ),
    "train, val and test with classes": Case(
        by(1, *PETS, "val/cat/9.png"),
        held=("val/cat/9.png",),
        test=PETS[3:],
        says=("val held out for validation (1), test kept for testing and never trained on (2).",),
    ),
    "capitals": Case(
        by(1, "Train/a/1.png", "Train/b/1.png", "VALID/a/2.png", "Testing/b/3.png"),
        held=("VALID/a/2.png",),
        test=("Testing/b/3.png",),
    ),
    "dev": Case(by(1, "training/a/1.png", "training/b/2.png", "dev/a/3.png"), held=("dev/a/3.png",)),
    "splits without classes": Case(of("train/1.png", "train/2.png", "validation/3.png"), held=("validation/3.png",)),
    "splits below one folder": Case(
        by(2, *(f"pets/{name}" for name in PETS)), held=tuple(f"pets/{name}" for name in PETS[3:])
    ),
    "splits below two folders": Case(
        by(3, *(f"a/pets/{name}" for name in PETS)), held=tuple(f"a/pets/{name}" for name in PETS[3:])
    ),
    "splits in a zip": Case(
        by(2, *(f"pets/{name}" for name in PETS)), held=tuple(f"pets/{name}" for name in PETS[3:]), packing="zip"
    ),
    "a train is a vehicle": Case(
        by(0, "train/1.png", "plane/1.png", "car/1.png"),
        says=(
            "Taken as classes, as car, plane are beside them, and trained on: train. Folders are a split only where",
        ),
    ),
    "a train and a test beside a third folder": Case(by(0, "train/1.png", "test/1.png", "maps/1.png")),
    "test without classes": Case({**by(1, *PETS[:3]), "test/x.png": None}, held=("test/x.png",)),
    "test in a folder that is no class": Case(
        {**by(1, *PETS[:3]), "test/unknown/x.png": None}, held=("test/unknown/x.png",), says=("no class of those",)
    ),
    "test of one class": Case(by(1, *PETS[:3], "test/dog/9.png"), held=("test/dog/9.png",)),
    "Kaggle's folder in a folder": Case(
        by(2, "train/train/a/1.png", "train/train/b/1.png", "test/test/a/2.png"), held=("test/test/a/2.png",)
    ),
    "an image beside the splits": Case(
        {**by(1, *PETS), "loose.png": None}, held=PETS[3:], says=("1 image says nothing of a split",)
    ),
    "COCO's folders of a year": Case(
        of("train2017/1.png", "train2017/2.png", "val2017/3.png", "test2017/4.png"),
        held=("val2017/3.png",),
        test=("test2017/4.png",),
    ),
    "training_set and test_set": Case(
        by(1, "training_set/a/1.png", "training_set/b/1.png", "test_set/a/2.png"), held=("test_set/a/2.png",)
    ),
    "splits that begin alike": Case(
        by(1, "seg_train/a/1.png", "seg_train/b/1.png", "seg_test/a/2.png"), held=("seg_test/a/2.png",)
    ),
    "splits beside folders of no image": Case(
        by(1, *PETS), beside={"annotations/a.xml": "<a/>", "README.md": "#"}, held=PETS[3:]
    ),
    "only a train folder": Case(by(1, *PETS[:3])),
    "only a test folder": Case(by(1, *PETS[3:]), says=("All images lie below test: they are a data set of their own",)),
    "two names for training": Case(
        by(1, "train/a/1.png", "training/b/1.png"),
        says=("all are named to train on",),
        settings={"hold_out": None, "split_version": 1},
    ),
    "splits below classes": Case(
        by(0, "cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/test/4.png"),
        says=("Folders test, train below the classes are no split, all are trained on",),
    ),
    "hold_out and a test folder": Case(
        by(1, *PETS),
        held=(),
        test=PETS[3:],
        settings={"hold_out": 0},
        says=("2 images that it keeps for testing: never trained on",),
    ),
    "a split of rows before one of folders": Case(
        of("train/1.png", "train/2.png", "test/3.png"),
        beside={"metadata.csv": rows(("train/2.png", "val"), head="file_name,split")},
        held=("train/2.png",),
        test=("test/3.png",),
    ),
    # numbered shards
    "shards of five digits": Case(
        of("00000/1.png", "00000/2.png", "00001/3.png"), says=("Folders 00000 to 00001 (2) are numbered shards",)
    ),
    "shards by words": Case(of("part-0001/1.png", "part-0002/1.png")),
    "shards by other words": Case(of("shard_000/1.png", "shard_001/1.png", "shard_010/1.png")),
    "shards of many": Case(of("data-00000-of-00002/1.png", "data-00001-of-00002/1.png")),
    "FFHQ's thousands": Case(of("00000/00000.png", "01000/01000.png", "69000/69000.png")),
    "shards above classes": Case(by(1, "part1/cat/1.png", "part2/dog/2.png")),
    "shards below splits": Case(
        of("train/00000/1.png", "train/00001/2.png", "val/00000/3.png"), held=("val/00000/3.png",)
    ),
    "classes that are numbers": Case(by(0, "2/a.png", "10/b.png", "0/c.png")),
    "classes of two digits": Case(by(0, "00/a.png", "01/b.png", "42/c.png")),
    "classes that are years": Case(by(0, "1998/a.png", "2004/b.png")),
    "kohya's repeats": Case(
        by(0, "10_cat/a.png", "5_dog/b.png"),
        beside={"10_cat/a.txt": "a cat"},
        captions={"10_cat/a.png": "a cat"},
        says=("10_cat may mean 10 repeats",),
    ),
    # img2dataset
    "img2dataset's folders": Case(
        of("00000/000000000.jpg", "00000/000000001.jpg", "00001/000010000.jpg"),
        beside={
            "00000/000000000.txt": "first",
            "00000/000000000.json": json.dumps({"caption": "first", "url": "http://x", "key": "000000000"}),
            "00000/000000001.json": json.dumps({"caption": "second", "url": "http://x", "key": "000000001"}),
            "00001/000010000.txt": "third",
            "00000_stats.json": '{"count": 2}',
            "00000.parquet": b"PAR1",
        },
        captions={"00000/000000000.jpg": "first", "00000/000000001.jpg": "second", "00001/000010000.jpg": "third"},
        says=("2 a table of img2dataset", "2 .txt, 1 .json"),
    ),
    "img2dataset's later shards": Case(
        of("10000/100000000.jpg", "10001/100010000.jpg"),
        beside={"10000_stats.json": "{}", "10001_stats.json": "{}"},
        says=("numbered shards",),
    ),
    "img2dataset's tars": Case(
        of("00000.tar/000000000.jpg", "00001.tar/000010000.jpg"),
        beside={
            "00000.tar/000000000.txt": "first",
            "00000.tar/000000000.json": '{"caption": "first"}',
            "00001.tar/000010000.txt": "second",
            "00000_stats.json": "{}",
        },
        captions={"00000.tar/000000000.jpg": "first", "00001.tar/000010000.jpg": "second"},
        packing="tars",
        says=("Folders 00000 to 00001 (2) are numbered shards",),
    ),
    "webdataset's splits in tars": Case(
        {"pets-train-0000.tar/1.png": "3", "pets-train-0001.tar/2.png": "7", "pets-val-0000.tar/3.png": "3"},
        beside={
            "pets-train-0000.tar/1.cls": "3",
            "pets-train-0001.tar/2.cls": "7",
            "pets-val-0000.tar/3.cls": "3\n",
        },
        held=("pets-val-0000.tar/3.png",),
        packing="tars",
    ),
    "one tar with a class by folder": Case(by(0, "cat/1.png", "dog/1.png"), packing="tar"),
    "one tar with ./ before its names": Case(
        by(0, "cat/1.png", "dog/1.png"),
        stored={"cat/1.png": "./cat/1.png", "dog/1.png": "./dog/1.png"},
        packing="tar",
    ),
    "webdataset's names with two points": Case(
        of("1.input.png", "2.png"),
        beside={"1.txt": "first", "2.txt": "second"},
        captions={"1.input.png": "first", "2.png": "second"},
        packing="tar",
    ),
    "a tar of each class": Case(
        {"cat.tar/1.png": "cat", "cat.tar/2.png": "cat", "dog.tar/1.png": "dog"}, packing="tars"
    ),
    # trainers
    "caches beside images": Case(
        of("a.png", "b.webp"),
        beside={"a.npz": b"PK", "a.txt": "one a", "b.npz": b"PK", "b.txt": "one b", "b.json": "{}"},
        captions={"a.png": "one a", "b.webp": "one b"},
    ),
    "captions in .caption": Case(
        of("a.png", "b.png"),
        beside={"a.caption": "one a", "b.caption": "two", "b.txt": "one b"},
        captions=ONE,
        says=("1 .txt, 1 .caption", "is not used: the caption of b.png is that of b.txt"),
    ),
    "two images of one stem": Case(
        of("a.png", "a.jpg"), beside={"a.txt": "both"}, captions={"a.png": "both", "a.jpg": "both"}
    ),
    "a caption of the whole name": Case(
        of("a.png", "a.jpg"),
        beside={"a.png.txt": "the PNG", "a.jpg.txt": "the JPEG"},
        captions={"a.png": "the PNG", "a.jpg": "the JPEG"},
    ),
    "a mask beside its image": Case(
        of("a.png"),
        beside={"a-masklabel.png": saved(drawn(8, 8, 1, "mask"), "PNG"), "a.txt": "one"},
        captions={"a.png": "one"},
        says=("the mask of another image",),
    ),
    "captions in other capitals": Case(of("A.PNG"), beside={"a.txt": "one"}, captions={"A.PNG": "one"}),
    "a caption without an image": Case(
        of("a.png"),
        beside={"b.txt": "nobody", "a.txt": "one"},
        captions={"a.png": "one"},
        says=("1 file is text that is no image's caption: there is no image of that name beside: b.txt",),
    ),
    "an image without a caption": Case(
        of("a.png", "b.png"), beside={"a.txt": "one"}, captions={"a.png": "one"}, says=("1 image has no caption",)
    ),
    "JSON that is no caption": Case(of("a.png"), beside={"a.json": '{"shapes": []}'}),
    # StyleGAN and EDM
    "EDM's labels in a zip": Case(
        {"00000/img00000000.png": "3", "00000/img00000001.png": "10", "00001/img00001000.png": "3"},
        beside={
            "dataset.json": json.dumps(
                {"labels": [["00000/img00000000.png", 3], ["00000/img00000001.png", 10], ["00001/img00001000.png", 3]]}
            )
        },
        packing="zip",
        says=("dataset.json gives the labels",),
    ),
    "EDM's labels that are null": Case(
        of("00000/img00000000.png", "00001/img00001000.png"),
        beside={"dataset.json": '{"labels": null}'},
        packing="zip",
        says=("dataset.json gives no labels",),
    ),
    "EDM's labels with backslashes, some missing": Case(
        {"00000/a.png": "0", "00000/b.png": None},
        beside={"dataset.json": json.dumps({"labels": [["00000\\a.png", 0], ["00000\\c.png", 1]]})},
        says=("'00000\\\\c.png', which is not there",),
    ),
    "EDM's labels that are vectors": Case(
        of("00000/a.png"),
        beside={"dataset.json": json.dumps({"labels": [["00000/a.png", [0.1, 0.9]]]})},
        says=("neither text nor a number",),
    ),
    # Hugging Face
    "a metadata file for each split": Case(
        {"train/1.png": "cat", "train/2.png": "dog", "test/1.png": "dog"},
        beside={
            "train/metadata.csv": rows(("1.png", "c", "cat"), ("2.png", "d", "dog"), head="file_name,text,label"),
            "test/metadata.jsonl": lines({"file_name": "1.png", "text": "t", "label": "dog"}),
        },
        captions={"train/1.png": "c", "train/2.png": "d", "test/1.png": "t"},
        held=("test/1.png",),
    ),
    "one metadata file above the splits": Case(
        of("train/1.png", "validation/1.png"),
        beside={"metadata.jsonl": lines(*({"file_name": f"{s}/1.png", "text": s} for s in ("train", "validation")))},
        captions={"train/1.png": "train", "validation/1.png": "validation"},
        held=("validation/1.png",),
    ),
    "splits below data/": Case(
        by(2, "data/train/a/1.png", "data/train/b/1.png", "data/test/a/1.png"), held=("data/test/a/1.png",)
    ),
    # rows that write names otherwise
    "rows with backslashes": Case(
        by(0, "x/a.png", "y/b.png"),
        beside={"metadata.csv": rows(("x\\a.png", "one"), (".\\y\\b.png", "two"))},
        captions={"x/a.png": "one", "y/b.png": "two"},
        says=("2 rows of metadata.csv write an image's name otherwise",),
    ),
    "rows with absolute paths": Case(
        by(0, "x/a.png", "y/b.png"),
        beside={"metadata.csv": rows(("/home/me/pets/x/a.png", "one"), ("C:\\pets\\y\\b.png", "two"))},
        captions={"x/a.png": "one", "y/b.png": "two"},
    ),
    "rows with absolute paths of images that are gone": Case(
        of("a.png", "b.png"),
        beside={"metadata.csv": rows(("/old/a.png", "one a"), ("/old/b.png", "one b"), ("/old/deep/a.png", "other"))},
        captions={"b.png": "one b"},
        says=("which may or may not be a.png",),
    ),
    "rows that no image answers to": Case(
        of("a.png"),
        beside={"metadata.csv": rows(("/old/c.png", "x"), ("../a.png", "y"), ("a.png", "one"))},
        captions={"a.png": "one"},
        says=("no end of which is the path of a file here", "'../a.png', which is not there"),
    ),
    "rows in other capitals": Case(
        of("a.png", "b.JPG"),
        beside={"metadata.csv": rows(("A.PNG", "one"), ("B.jpg", "two"))},
        captions={"a.png": "one", "b.JPG": "two"},
    ),
    "rows in capitals that two images could be": Case(
        of("a.png", "A.png"),
        beside={"metadata.csv": rows(("a.png", "small"), ("a.PNG", "which"))},
        captions={"a.png": "small"},
        says=("could be A.png or a.png",),
    ),
    "accents composed in the row": Case(
        of(E_AND_ACUTE), beside={"metadata.csv": rows((E_ACUTE, "one"))}, captions={E_AND_ACUTE: "one"}
    ),
    "accents composed in the name": Case(
        of(E_ACUTE),
        beside={"metadata.jsonl": lines({"file_name": E_AND_ACUTE, "text": "one"})},
        captions={E_ACUTE: "one"},
    ),
    "rows without a suffix": Case(
        of("a.png", "b.png"), beside={"metadata.csv": rows(("a", "one a"), ("b", "one b")), "a.npz": b""}, captions=ONE
    ),
    "rows without a suffix that two images could be": Case(
        of("a.png", "a.jpg"), beside={"metadata.csv": rows(("a", "one"))}, says=("'a', which could be a.jpg or a.png",)
    ),
    "rows that begin with the data set's name": Case(
        of("a.png"), beside={"metadata.csv": rows(("data/a.png", "one"))}, captions={"a.png": "one"}
    ),
    "rows relative to the root": Case(
        of("x/a.png"), beside={"x/metadata.csv": rows(("x/a.png", "one"))}, captions={"x/a.png": "one"}
    ),
    "columns in other capitals": Case(
        {"a.png": "cat", "b.png": "dog"},
        beside={
            "metadata.csv": rows(("a.png", "one a", "cat"), ("b.png", "one b", "dog"), head="File_Name,Text,Label")
        },
        captions=ONE,
    ),
    # text
    "UTF-8 with a mark, CRLF": Case(
        of("a.png", "b.png"),
        beside={
            "a.txt": "one a\r\n".encode("utf-8-sig"),
            "metadata.csv": rows(("b.png", "one b")).replace("\n", "\r\n").encode("utf-8-sig"),
        },
        captions=ONE,
    ),
    "CR as line ends": Case(
        of("a.png", "b.png"),
        beside={"metadata.csv": rows(("a.png", "one a"), ("b.png", "one b")).replace("\n", "\r")},
        captions=ONE,
    ),
    "CR in a list of another name": Case(
        of("a.png", "b.png"),
        beside={"list.csv": rows(("a.png", "one a"), ("b.png", "one b")).replace("\n", "\r")},
        captions=ONE,
    ),
    "UTF-16": Case(
        of("a.png", "b.png", "c.png"),
        beside={
            "a.txt": "\u732b".encode("utf-16"),
            "b.txt": b"\xfe\xff" + "ein Fu\u00df".encode("utf-16-be"),
            "metadata.csv": rows(("c.png", "\u00e9t\u00e9")).encode("utf-16"),
        },
        captions={"a.png": "\u732b", "b.png": "ein Fu\u00df", "c.png": "\u00e9t\u00e9"},
        says=("3 files are read as UTF-16: metadata.csv, a.txt, b.txt",),
    ),
    "UTF-16 without a mark": Case(
        of("a.png"), beside={"a.txt": "one".encode("utf-16-le")}, says=("looks like UTF-16 without a byte order mark",)
    ),
    "Windows-1252": Case(
        of("a.png", "b.png"),
        beside={
            "a.txt": "caf\u00e9 \u2013 na\u00efve".encode("cp1252"),
            "metadata.jsonl": '{"file_name": "b.png", "text": "Stra\u00dfe"}'.encode("cp1252"),
        },
        captions={"a.png": "caf\u00e9 \u2013 na\u00efve", "b.png": "Stra\u00dfe"},
        says=("2 files are read as Windows-1252",),
    ),
    "Cyrillic and Chinese that are not UTF-8": Case(
        of("a.png", "b.png", "c.png"),
        beside={
            "a.txt": "\u043a\u043e\u0448\u043a\u0430".encode("cp1251"),
            "b.txt": "\u4e00\u53ea\u732b\u5728\u7761\u89c9".encode("gbk"),
            "c.txt": b"\x81\x8d",
        },
        says=("3 captions or labels are not used", "nor Windows-1252: save it as UTF-8"),
    ),
    "NUL bytes in a caption": Case(of("a.png"), beside={"a.txt": "one\0and another text"}, says=("holds NUL bytes",)),
    # numbers as labels
    "whole numbers of every kind": Case(
        {"a.png": "3", "b.png": "3", "c.png": "3", "d.png": "10", "e.png": None, "f.png": None},
        beside={
            "metadata.jsonl": lines(
                {"file_name": "a.png", "label": 3},
                {"file_name": "b.png", "label": 3.0},
                {"file_name": "c.png", "label": "3"},
                {"file_name": "d.png", "label": 10.0},
                {"file_name": "e.png", "label": None},
                {"file_name": "f.png", "label": float("nan")},
            )
        },
    ),
    "numbers that pandas wrote": Case(
        {"x/a.png": "3", "y/b.png": "3", "y/c.png": None, "y/d.png": "12", "y/e.png": None},
        beside={
            "x/metadata.csv": rows(("a.png", 3), head="file_name,label"),
            "y/metadata.csv": rows(
                ("b.png", "3.0"), ("c.png", ""), ("d.png", "12"), ("e.png", "nan"), head="file_name,label"
            ),
        },
        says=("1 label says NaN, none or null among numbers: no class",),
    ),
    "None as a word among words": Case(
        {"a.png": "None", "b.png": "beard"},
        beside={"metadata.csv": rows(("a.png", "None"), ("b.png", "beard"), head="file_name,label")},
    ),
    # more of the same kinds
    "YOLO's images and labels": Case(
        of("images/train/1.png", "images/train/2.png", "images/val/3.png"),
        beside={"labels/train/1.txt": "0 0.5 0.5 1 1", "labels/val/3.txt": "0 0.5 0.5 1 1"},
        held=("images/val/3.png",),
        says=("2 files are text that is no image's caption",),
    ),
    "splits above images/": Case(
        of("train/images/1.png", "train/images/2.png", "valid/images/3.png"), held=("valid/images/3.png",)
    ),
    "Kaggle's test1": Case(of("train/1.png", "train/2.png", "test1/3.png"), held=("test1/3.png",)),
    "three splits as tars": Case(
        of("train.tar/1.png", "val.tar/2.png", "test.tar/3.png"),
        held=("val.tar/2.png",),
        test=("test.tar/3.png",),
        packing="tars",
    ),
    "tars below splits": Case(
        of("train/00000.tar/1.png", "train/00001.tar/2.png", "val/00000.tar/3.png"),
        held=("val/00000.tar/3.png",),
        packing="tars",
    ),
    "tars of one name and a number": Case(
        of("laion-000000.tar/1.png", "laion-000001.tar/2.png"), packing="tars", says=("numbered shards",)
    ),
    "folders of one name and a number": Case(by(0, "breed-000/1.png", "breed-001/2.png")),
    "numbers without a leading zero": Case(by(0, "100/1.png", "200/2.png")),
    "a folder's label in the list, and a split by folder": Case(
        {"train/x/1.png": "cat", "train/y/2.png": "dog", "test/x/3.png": "cat"},
        beside={
            "metadata.csv": rows(
                ("train/x/1.png", "cat"), ("train/y/2.png", "dog"), ("test/x/3.png", "cat"), head="file_name,label"
            )
        },
        held=("test/x/3.png",),
    ),
    "another column as the class, in img2dataset's JSON": Case(
        {"00000/1.jpg": "en", "00000/2.jpg": "de"},
        beside={
            "00000/1.json": json.dumps({"caption": "one", "LANGUAGE": "en"}),
            "00000/2.json": json.dumps({"caption": "two", "LANGUAGE": "de"}),
        },
        captions={"00000/1.jpg": "one", "00000/2.jpg": "two"},
        settings={"label_column": "LANGUAGE"},
    ),
    "a list with a class column in other capitals than asked for": Case(
        {"a.png": "x", "b.png": "y"},
        beside={"GT.csv": "Filename;Width;ClassId\na.png;8;x\nb.png;8;y\n"},
        settings={"label_column": "ClassId"},
    ),
    "Windows-1252 in a list": Case(
        of("\u00fcber.png"),
        beside={"metadata.csv": rows(("\u00fcber.png", "gr\u00fcn")).encode("cp1252")},
        captions={"\u00fcber.png": "gr\u00fcn"},
    ),
    "UTF-16 with CRLF in a list of another name": Case(
        of("a.png", "b.png"),
        beside={"list.csv": rows(("a.png", "one a"), ("b.png", "one b")).replace("\n", "\r\n").encode("utf-16")},
        captions=ONE,
    ),
    "a list longer than what is looked at first": Case(
        of("a.png", "b.png"),
        beside={"list.csv": rows(("a.png", "one a"), ("b.png", "one b"), ("c.png", "\u00e9" * 40_000))},
        captions=ONE,
    ),
    "EDM's labels as a mapping in a tar": Case(
        {"a.png": "1", "b.png": "0"}, beside={"dataset.json": '{"labels": {"a.png": 1, "b.png": 0}}'}, packing="tar"
    ),
    "kohya's one folder": Case(
        of("10_fox/a.png"), beside={"10_fox/a.txt": "a fox"}, captions={"10_fox/a.png": "a fox"}, says=("10 repeats",)
    ),
    "a folder that begins with a number": Case(by(1, "101_Things/cat/1.png", "101_Things/dog/2.png")),
    # zips
    "a zip with ./": Case(
        by(0, "cat/1.png", "dog/1.png"), stored={"cat/1.png": "./cat/1.png", "dog/1.png": "./dog//1.png"}, packing="zip"
    ),
    "a zip with backslashes": Case(
        by(0, "cat/1.png", "dog/1.png"), stored={"cat/1.png": "cat\\1.png", "dog/1.png": "dog\\1.png"}, packing="zip"
    ),
    "a zip with backslashes and splits": Case(
        by(1, *PETS), stored={name: name.replace("/", "\\") for name in PETS}, held=PETS[3:], packing="zip"
    ),
    "a zip of names in UTF-8 that are not marked": Case(
        of("caf\u00e9.png", "\u732b.png"),
        beside={"caf\u00e9.txt": "one", "\u732b.txt": "two"},
        captions={"caf\u00e9.png": "one", "\u732b.png": "two"},
        packing="old zip",
    ),
    "a zip with what systems leave": Case(
        of("a.png"),
        beside={"__MACOSX/._a.png": "x", "._a.png": "x", "Thumbs.db": "x", "Desktop.ini": "x", ".DS_Store": "x"},
        packing="zip",
        says=("5 skipped (5 hidden)",),
    ),
    "a zip with names that lead out": Case(
        of("a.png"),
        beside={"/b.png": "x", "C:\\c.png": "x", "..\\d.png": "x", "x/../../e.png": "x", "\\\\host\\f.png": "x"},
        packing="zip",
        says=("5 a name that leads out of the zip",),
    ),
    "Synology's thumbnails": Case(of("a.png"), beside={"@eaDir/a.png/SYNO.jpg": saved(drawn(8, 8, 3, "thumb"), "PNG")}),
}


def content(case: Case) -> dict[str, bytes]:
    """Each file's name in its data set -> its bytes; every image is another."""
    made = {case.stored.get(name, name): saved(drawn(8, 8, 3, name), "PNG") for name in case.images}
    beside = {name: text.encode() if isinstance(text, str) else text for name, text in case.beside.items()}
    return {**made, **beside}


def packed(case: Case, home: Path) -> Path:
    """The data set on disk, packed as the case says, under the name `data`."""
    files = content(case)
    if case.packing in ("folder", "tars"):
        tars: dict[str, dict[str, bytes]] = {}
        for name, data in files.items():
            tar, _, member = name.rpartition(".tar/")
            if tar:
                tars.setdefault(f"{tar}.tar", {})[member] = data
            else:
                (home / "data" / name).parent.mkdir(parents=True, exist_ok=True)
                (home / "data" / name).write_bytes(data)
        for tar, members in tars.items():
            write_tar(home / "data" / tar, members)
        return home / "data"
    if case.packing == "tar":
        return write_tar(home / "data.tar", files)
    with zipfile.ZipFile(home / "data.zip", "w") as pack:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is given, a backslash too
            pack.writestr(info, data)
    if case.packing == "old zip":
        unmark(home / "data.zip")
    return home / "data.zip"


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as pack:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            pack.addfile(info, io.BytesIO(data))
    return path


def unmark(path: Path) -> None:
    """Take the mark of UTF-8 from a zip's names."""
    with zipfile.ZipFile(path) as pack:
        names = [info.filename for info in pack.infolist()]
    data = bytearray(path.read_bytes())
    for signature, flags, at in ((b"PK\3\4", 6, 30), (b"PK\1\2", 8, 46)):
        for name in names:
            begin = data.find(signature)
            while data[begin + at : begin + at + len(name.encode())] != name.encode():
                begin = data.find(signature, begin + 1)
            data[begin + flags + 1] &= ~8
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", CASES)
def test_a_layout_is_understood_as_its_own_tool_means_it(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    hold_out = 0 if case.held is None else None
    settings = {"workers": 0, "hold_out": hold_out, **case.settings}
    config = DataConfig(path=str(packed(case, tmp_path)), **settings)  # type: ignore[arg-type]
    images = open_images(config)
    found = [images.name(i) for i in range(len(images))]
    assert sorted(found) == sorted(case.images)
    labels = images.labels if images.labels is not None else [-1] * len(found)
    classes = {n: images.classes[k] if k >= 0 else None for n, k in zip(found, labels)}
    assert classes == dict(case.images)
    numbers = all(each.isdigit() for each in images.classes)
    assert list(images.classes) == sorted({c for c in classes.values() if c}, key=int if numbers else str)
    captions = {n: text for n, text in zip(found, images.captions or []) if text is not None}
    assert captions == dict(case.captions)
    parts = [{found[i] for i in ids} for ids in (images.train, images.held_out, images.test)]
    held, test = {*(case.held or ())}, {*case.test}
    assert parts == [{*case.images} - held - test, held, test]
    said = "\n".join(images.describe())
    for each in case.says:
        assert each in said, said
    assert examine(config).lines() == images.describe()


@pytest.mark.parametrize("beside", ["", ".json", ".npz", ".caption", ".aaa"])
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
def test_a_caption_is_its_images_whatever_else_has_its_name(tmp_path: Path, beside: str, ending: str) -> None:
    for i in range(2):
        (tmp_path / f"{i:04}{ending}").write_bytes(saved(drawn(8, 8, 3, f"{i}"), "PNG"))
        (tmp_path / f"{i:04}.txt").write_text(f"caption {i}")
        if beside:
            (tmp_path / f"{i:04}{beside}").write_bytes(b"{}")
    images = open_images(DataConfig(path=str(tmp_path), hold_out=0, workers=0))
    assert {images.name(i): text for i, text in enumerate(images.captions or [])} == {
        f"{i:04}{ending}": f"caption {i}" for i in range(2)
    }


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 60
