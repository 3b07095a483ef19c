"""Captions from the names of files and folders, by one setting; what in a name is no word is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_files import drawn, saved

from kuosan.data.config import DataConfig
from kuosan.data.doctor import examine, rows
from kuosan.data.walk import caption_of_file, caption_of_folder
from kuosan.errors import Error
from shell import kuosan, refused

FILES = {
    "red_fox.png": "red fox",
    "a/b/red-fox.jpeg": "red fox",
    "0012_red_fox.png": "red fox",
    "red fox 0012.png": "red fox",
    "red_fox_(2).png": "red fox",
    "Red Fox - Copy (3).png": "Red Fox",
    "red fox copy.png": "red fox",
    "1. red fox.png": "red fox",
    "2024-01-05 red fox.png": "red fox",
    "red_fox_640x480.png": "red fox",
    "red_fox@2x.png": "red fox",
    "red_fox_v2.png": "red fox",
    "red_fox.png.webp": "red fox",
    "red%20fox.png": "red fox",
    "red+fox~1.png": "red fox",
    "red_fox-9f86d081884c7d65.png": "red fox",
    "3_little_pigs.png": "3 little pigs",
    "side-combed_hair-7.png": "side combed hair",
    "St. Bernard_04.png": "St. Bernard",
    "\u72d0\u72f8_12.png": "\u72d0\u72f8",
    "Fu\u0308chse.png": "F\u00fcchse",
    "IMG_1234.JPG": None,
    "DSC00042.png": None,
    "00001.png": None,
    "image (4).png": None,
    "9f86d081884c7d65.png": None,
}
FOLDERS = {
    "red_fox/1.png": "red fox",
    "animals/red-fox/1.png": "red fox",
    "10_red_fox/1.png": "red fox",
    "red_fox/train/1.png": "red fox",
    "train/red_fox/part-0001/1.png": "red fox",
    "red_fox/00001.tar/1.png": "red fox",
    "1.png": None,
    "train/1.png": None,
    "007/1.png": None,
}


@pytest.mark.parametrize("name", FILES)
def test_the_words_of_a_files_name_are_its_caption(name: str) -> None:
    assert caption_of_file(name) == FILES[name]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_words_of_the_folder_are_an_images_caption(name: str) -> None:
    assert caption_of_folder(name) == FOLDERS[name]


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Six images of two folders, one of which has a caption beside it."""
    for i in range(6):
        kind = ("red_fox", "grey-owl")[i % 2]
        place = tmp_path / "animals" / kind / f"{kind}_{i:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(saved(drawn(8, 8, name=str(i)), "PNG"))
    (tmp_path / "animals" / "red_fox" / "red_fox_000.txt").write_text("beside")
    return tmp_path / "animals"


@pytest.mark.parametrize("captions", ["file_names", "folder_names"])
def test_one_setting_takes_names_for_captions(animals: Path, captions: str) -> None:
    report = examine(DataConfig(str(animals), captions=captions))
    assert {entry.caption for entry in report.scan.entries} == {"red fox", "grey owl"}
    said = "\n".join(report.lines())
    assert f"Captions are the names of {captions.split('_')[0]}s (6 of 6 images have one)." in said
    assert f"1 caption is beside the images and not used, as captions = {captions}." in said
    assert examine(DataConfig(str(animals))).summary()["captions"] == 1, "those beside, where nothing is said"
    assert len(rows(report.scan.entries)) == 5
    assert report.classes == ("grey-owl", "red_fox"), "folders are classes all the same"


def test_the_doctor_shows_the_first_captions_that_names_give(animals: Path) -> None:
    said = kuosan("doctor", animals, "--captions", "file_names")
    assert said.code == 0 and "The first captions:" in said.out and ".png -> grey owl" in said.out


def test_a_text_model_is_trained_on_names(animals: Path, tmp_path: Path) -> None:
    words = ["--captions", "file_names", "--text", "bytes", "--max-steps", 1, "--network", "tiny", "--batch", 2]
    said = kuosan("train", animals, "--out", tmp_path / "run", *words, "--preview-every", 0)
    assert said.code == 0, said
    assert "captions: file_names" in (tmp_path / "run" / "config.yaml").read_text()
    assert kuosan("train", "--out", tmp_path / "run", "--max-steps", 2).code == 0, "it goes on with these captions"


def test_captions_from_names_are_refused_where_they_change_nothing(animals: Path) -> None:
    refused("train", animals, "--captions", "file_names", naming=["data.captions = file_names", "--text bytes"])
    refused("train", animals, "--captions", "names", naming=["captions", "file_names"])
    with pytest.raises(Error, match="captions = file_names: the images of portraits are no files with names"):
        examine(DataConfig(captions="file_names"))
