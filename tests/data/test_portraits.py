"""The portraits inside the package: how many, how told apart, how split, and that captions say what is drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kuosan.data import portraits
from kuosan.data.config import DataConfig
from kuosan.data.pictures import open_pictures
from kuosan.data.portraits import HEAD, WORDS, caption, load_sheet
from kuosan.errors import Error
from work import calls


def test_there_are_4096_different_portraits_of_32_pixels() -> None:
    pictures, attributes, _ = load_sheet()
    assert pictures.shape == (4096, 32, 32, 3) and pictures.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 4096
    assert len({tuple(each.values()) for each in attributes}) == 4096


def test_the_files_are_small() -> None:
    assets = Path(portraits.__file__).parent / "assets"
    assert sum(file.stat().st_size for file in assets.iterdir()) < 2_500_000


def test_they_open_with_one_image_read_and_little_work_a_portrait(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    read = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *args, **kwargs: opened.append(file) or read(file, *args, **kwargs))
    load_sheet.cache_clear()
    assert calls(lambda: open_pictures(DataConfig(workers=0))) < 330 * 4096
    assert len(opened) == 1, "the sheet, and no portrait by itself"


def test_every_value_of_every_attribute_is_there_often_enough() -> None:
    _, attributes, _ = load_sheet()
    for name, words in WORDS.items():
        counts = Counter(each[name] for each in attributes)
        assert set(counts) == set(words)
        assert min(counts.values()) > 4096 / len(words) / 3


def test_no_head_is_both_trained_on_and_held_out() -> None:
    _, attributes, held_out = load_sheet()
    heads = [tuple(each[name] for name in HEAD) for each in attributes]
    trained = {head for head, out in zip(heads, held_out) if not out}
    kept = {head for head, out in zip(heads, held_out) if out}
    assert not trained & kept
    assert 0.05 < held_out.mean() < 0.15
    for name in WORDS:  # but each single value is learned
        assert {each[name] for each, out in zip(attributes, held_out) if not out} == set(WORDS[name])


def test_a_caption_says_every_attribute_and_tells_any_two_apart() -> None:
    _, attributes, _ = load_sheet()
    captions = [caption(each) for each in attributes]
    assert len(set(captions)) == 4096
    for each, text in zip(attributes, captions):
        for name, value in each.items():
            words = WORDS[name][value].format(each["hair_color"])
            assert words in text


def test_a_caption_reads_as_a_sentence() -> None:
    values = {name: next(iter(words)) for name, words in WORDS.items()}
    assert caption(values) == (
        "a portrait of a person with light skin, side-combed black hair, raised eyebrows and open eyes, laughing, "
        "wearing a grey turtleneck"
    )
    more = values | {"rear_hair": "long wavy", "beard": "full beard", "clothes_color": "orange", "hair": "bun"}
    assert caption(more) == (
        "a portrait of a person with light skin, black hair in a bun, long and wavy at the back, a full beard, "
        "raised eyebrows and open eyes, laughing, wearing an orange turtleneck"
    )


def test_colours_are_where_the_attributes_say() -> None:
    """The mean colour of the forehead follows the skin, that of the collar the clothes."""
    pictures, attributes, _ = load_sheet()
    skin = np.array([each["skin"] for each in attributes])
    forehead = pictures[:, 16:18, 15:18].mean((1, 2))  # between the eyes
    light = {value: forehead[skin == value].mean() for value in WORDS["skin"]}
    assert light["light"] > light["rosy"] > light["tan"] > light["brown"] > light["dark"]
    chest = pictures[:, 31, 11:21].mean(1)
    clothes = np.array([f"{each['clothes']} {each['clothes_color']}" for each in attributes])
    for colour, channel in (("red", 0), ("green", 1), ("blue", 2)):
        assert chest[clothes == f"turtleneck {colour}"].mean(0).argmax() == channel


def test_the_background_is_plain() -> None:
    pictures, _, _ = load_sheet()
    assert len(np.unique(pictures[:, :2, 0].reshape(-1, 3), axis=0)) == 1


def test_opened_they_have_labels_captions_and_their_own_split() -> None:
    opened = open_pictures(DataConfig())
    assert opened.shape == (3, 32, 32) and len(opened) == 4096
    assert opened.classes == tuple(WORDS["hair_color"])
    assert opened.labels is not None and opened.captions is not None and opened.attributes is not None
    for id in (0, 77, 4095):
        assert opened.classes[opened.labels[id]] == opened.attributes[id]["hair_color"]
        assert opened.captions[id] == caption(opened.attributes[id])
    assert opened.held_out.tolist() == np.flatnonzero(load_sheet()[2]).tolist()
    batch = opened.batch(opened.train[:5])
    assert (batch.x0.numpy() == load_sheet()[0][opened.train[:5]].transpose(0, 3, 1, 2) / np.float32(127.5) - 1).all()


def test_a_fraction_to_hold_out_is_refused_and_none_trains_on_all() -> None:
    assert len(open_pictures(DataConfig(hold_out=0)).train) == 4096
    with pytest.raises(Error, match="bring their own held-out part"):
        open_pictures(DataConfig(hold_out=0.2))
