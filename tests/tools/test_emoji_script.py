"""The pure parts of tools/build_emoji.py: captions, the split, aliases, laying on white, what is left out."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.errors import Error
from scripted import load_script

SCRIPT = Path(__file__).parents[2] / "tools" / "build_emoji.py"
META = {
    "groups": {"1": "people-body", "3": "animals-nature", "8": "symbols"},
    "subgroups": {"25": "person-role", "34": "animal-mammal", "85": "arrow"},
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("build_emoji")


def row(hexcode: str, label: str, group: int, subgroup: int, *tags: str, order: int = 1) -> dict[str, object]:
    return {
        "hexcode": hexcode,
        "label": label,
        "group": group,
        "subgroup": subgroup,
        "tags": list(tags),
        "order": order,
    }


def concepts(script: ModuleType, count: int) -> list[object]:
    return [script.Concept(f"{i:x}", f"thing {i}", ("shiny", "small"), "objects", "tool") for i in range(count)]


def test_concepts_come_in_their_order_without_symbols_and_families(script: ModuleType) -> None:
    found = script.read_concepts(
        [
            row("27A1-FE0F", "right arrow", 8, 85, order=1),
            row("1F98A", "fox", 3, 34, "animal", "face", order=9),
            row("1F468-200D-1F466", "family: man, boy", 1, 25, order=4),
            row("1F468-200D-1F373", "Man cook: piñata’s", 1, 25, order=3),
            {"hexcode": "1F1E6", "label": "regional indicator A"},
        ],
        META,
    )
    assert [(concept.points, concept.name, concept.kind) for concept in found] == [
        ("1f468-200d-1f373", "man cook, pinata's", "person"),
        ("1f98a", "fox", "animal"),
    ]
    with pytest.raises(Error, match="KINDS"):
        script.read_concepts([row("1F", "x", 1, 99)], {"groups": META["groups"], "subgroups": {"99": "unheard-of"}})


def test_genders_and_directions_share_a_root_and_so_a_part(script: ModuleType) -> None:
    def root(points: str) -> str:
        return script.Concept(points, "", (), "", "").root

    cooks = ["1f468-200d-1f373", "1f469-200d-1f373", "1f9d1-200d-1f373"]
    walkers = ["1f6b6", "1f6b6-200d-2642", "1f6b6-200d-2640", "1f6b6-200d-2640-200d-27a1"]
    assert {root(points) for points in cooks} == {"1f373"}
    assert {root(points) for points in walkers} == {"1f6b6"}
    assert root("1f468") == "1f468"  # a man is his own root


def test_a_tenth_of_the_roots_is_held_out_whatever_else_there_is(script: ModuleType) -> None:
    held = [concept.held_out for concept in concepts(script, 4000)]
    assert 0.085 < np.mean(held) < 0.115
    assert held[:100] == [concept.held_out for concept in reversed(list(reversed(concepts(script, 100))))]


def test_captions_say_name_keywords_and_style_and_vary(script: ModuleType) -> None:
    fox = script.Concept("1f98a", "fox", ("face", "cunning", "24", "a tag of words", "fox"), "animals-nature", "animal")
    assert script.keywords(fox) == ["animal", "face", "cunning"]
    assert script.caption(fox, "noto") == script.caption(fox, "noto")
    many = [(concept, script.caption(concept, "3d")) for concept in concepts(script, 2000)]
    for concept, text in many:
        name, *said = text.removeprefix("a ").split(", ")
        assert name == concept.name
        assert set(said) <= {"tool", "shiny", "small", "3d style"}
        assert len(said) == len(set(said))
    styled = [text.endswith(", 3d style") for concept, text in many if not concept.held_out]
    assert 0.87 < np.mean(styled) < 0.93
    assert all(text.endswith(", 3d style") for concept, text in many if concept.held_out)
    assert 0.45 < np.mean([text.startswith("a ") for _, text in many]) < 0.55
    assert 0.2 < np.mean(["tool" not in text for _, text in many]) < 0.3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fox", "a fox"),
        ("owl", "an owl"),
        ("bus", "a bus"),
        ("princess", "a princess"),
        ("socks", "socks"),
        ("people holding hands", "people holding hands"),
        ("face with rolling eyes", "a face with rolling eyes"),
        ("man, beard", "a man, beard"),
        ("woman's clothes", "woman's clothes"),
    ],
)
def test_one_thing_gets_an_article(script: ModuleType, name: str, said: str) -> None:
    assert script.with_article(name) == said


def test_transparent_pixels_lie_on_white_and_each_pixel_is_a_mean(script: ModuleType) -> None:
    drawn = np.zeros((8, 8, 4), np.uint8)
    drawn[:4, :4] = (200, 100, 0, 255)
    drawn[4:, 4:] = (0, 0, 0, 51)
    small = script.on_white(drawn, 2)
    assert small.tolist() == [[[200, 100, 0], [255, 255, 255]], [[255, 255, 255], [204, 204, 204]]]
    half = script.on_white(drawn, 1)
    assert half.tolist() == [[[228, 204, 178]]]  # (200 + 255 + 255 + 204) / 4, rounded to even
    assert script.on_white(drawn, 3).shape == (3, 3, 3)  # where nothing divides


def test_vectors_are_drawn_in_the_middle_and_aliases_mirrored(script: ModuleType) -> None:
    pytest.importorskip("resvg_py")
    icons = {
        "width": 32,
        "height": 32,
        "icons": {
            "left": {"body": '<path fill="#f00" d="M0 0h16v32H0z"/>'},
            "wide": {"width": 64, "body": '<path fill="#00f" d="M0 0h64v32H0z"/>'},
        },
        "aliases": {"right": {"parent": "left", "hFlip": True}, "turned": {"parent": "left", "rotate": 1}},
    }
    drawings = script.Drawings(icons)
    assert "right" in drawings
    assert "up" not in drawings
    left, right, wide = (script.on_white(drawings.draw(name, 16), 4) for name in ("left", "right", "wide"))
    assert (left[:, :2] == (255, 0, 0)).all()
    assert (left[:, 2:] == 255).all()
    assert (right == left[:, ::-1]).all()
    assert (wide[1:3] == (0, 0, 255)).all()
    assert (wide[[0, 3]] == 255).all()
    with pytest.raises(Error, match="rotate"):
        drawings.draw("turned", 16)


def test_empty_images_and_training_images_that_are_held_out_are_left_out(script: ModuleType) -> None:
    held = next(concept for concept in concepts(script, 400) if concept.held_out)
    kept = [concept for concept in concepts(script, 400) if not concept.held_out][:3]
    noto = script.STYLES[0]
    white, black = np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)
    grey = np.full((4, 4, 3), 99, np.uint8)
    rows, images, left_out = script.chosen(
        iter([(noto, kept[0], white), (noto, kept[1], black), (noto, kept[2], grey), (noto, held, black)])
    )
    assert [row["concept"] for row in rows] == [kept[2].points, held.points]
    assert [row["split"] for row in rows] == ["train", "test"]
    assert set(images) == {row["file_name"] for row in rows}
    assert left_out == {
        "empty": [f"noto/{kept[0].points}.webp"],
        "same as one held out": [f"noto/{kept[1].points}.webp"],
    }


def test_a_written_zip_opens_with_its_captions(script: ModuleType, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    told = [script.row_of(script.STYLES[0], concept) for concept in concepts(script, 20)]
    pixels = {row["file_name"]: draw.integers(0, 256, (16, 16, 3), dtype=np.uint8) for row in told}
    script.write_zip(tmp_path / "a.zip", {name: script.encoded(value) for name, value in pixels.items()}, told)
    script.write_zip(tmp_path / "b.zip", {name: script.encoded(value) for name, value in pixels.items()}, told)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert len([json.loads(line) for line in archive.read("metadata.jsonl").splitlines()]) == 20
    opened = open_images(DataConfig(path=str(tmp_path / "a.zip"), size=16, hold_out=0.0))
    assert opened.test.tolist(), "its own test part stays one, whatever is held out"
    batch = opened.batch(np.concatenate([opened.train, opened.test]))
    assert sorted(batch.caption) == sorted(row["text"] for row in told)
    by_caption = {row["text"]: pixels[row["file_name"]] for row in told}
    for text, x0 in zip(batch.caption, batch.x0):
        assert (np.rint((x0.permute(1, 2, 0).numpy() + 1) * 127.5) == by_caption[text]).all()  # lossless


def test_every_root_of_the_even_part_counts_alike_and_every_row_has_a_caption_of_its_own(script: ModuleType) -> None:
    kept = [concept for concept in concepts(script, 400) if not concept.held_out][:3]
    held = next(concept for concept in concepts(script, 400) if concept.held_out)
    walkers = [script.Concept(f"1f6b6{tail}", "walker", (), "people-body", "person") for tail in ("", "-200d-2642")]
    rows = [script.row_of(style, each) for each in [*kept, *walkers, held] for style in script.STYLES]
    images = {row["file_name"]: np.full((4, 4, 3), 99, np.uint8) for row in rows}
    even = script.even(rows, [*kept, *walkers, held], images)
    counts = Counter(row["root"] for row in even)
    assert counts == {
        **{concept.points: script.EVEN for concept in kept},
        walkers[0].points: 16,
    }  # 8 images, twice each
    assert {row["split"] for row in even} == {"train"}
    assert len({row["file_name"] for row in even}) == len(even)
    assert [row for row in even if "image" not in row] == [row for row in rows if row["split"] == "train"]
    for row in even:
        assert row.get("image", row["file_name"]) in images
        assert not re.search(r"(noto|fluent|gradient|3d) style", row["text"]) or row["text"].endswith(
            row["style"] + " style"
        )
    counted = json.loads(script.words_seen(even))
    assert counted["captions"] == 20
    assert counted["words"]["thing"] == 12  # images, however many captions each has


def test_further_captions_say_a_keyword_a_colour_or_that_it_is_an_emoji(script: ModuleType) -> None:
    every = concepts(script, 2000)
    texts = [script.other_caption(concept, "3d", 1, "blue") for concept in every]
    assert texts == [script.other_caption(concept, "3d", 1, "blue") for concept in every]
    assert texts != [script.other_caption(concept, "3d", 2, "blue") for concept in every]
    assert 0.77 < np.mean([text.endswith(", 3d style") for text in texts]) < 0.83
    assert 0.27 < np.mean(["blue" in text for text in texts]) < 0.33
    assert 0.17 < np.mean(["emoji" in text for text in texts]) < 0.23
    assert 0.12 < np.mean([concept.name not in text for concept, text in zip(every, texts)]) < 0.18
    assert not any("blue" in script.other_caption(concept, "3d", 1, "") for concept in every[:50])
    heart = script.Concept("2764", "red heart", (), "smileys-emotion", "heart")
    hearts = [script.other_caption(heart, "noto", i, "pink") for i in range(1, 60)]
    assert not any("pink red" in text for text in hearts)  # a name that has a colour keeps it


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((230, 30, 30), "red"), ((255, 140, 20), "orange"), ((250, 220, 30), "yellow"), ((40, 170, 60), "green"),
        ((40, 90, 220), "blue"), ((130, 60, 200), "purple"), ((240, 90, 180), "pink"), ((110, 70, 30), "brown"),
        ((20, 20, 20), "black"), ((235, 235, 235), "white"), ((130, 130, 130), "grey"),
    ],
)  # fmt: skip
def test_an_image_of_one_colour_has_its_name_and_one_of_two_has_none(
    script: ModuleType, rgb: tuple[int, int, int], name: str
) -> None:
    pixels = np.full((8, 8, 3), 255, np.uint8)
    pixels[:4] = rgb
    assert script.colour_of(pixels) == name
    pixels[:2] = (40, 170, 60) if name != "green" else (40, 90, 220)
    assert script.colour_of(pixels) == ""


def test_a_strangers_folder_a_wrong_size_and_a_damaged_package_are_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(Error, match="name a new folder"):
        script.build(tmp_path, tmp_path / "work", 64)
    with pytest.raises(Error, match="--size 512"):
        script.build(tmp_path / "new", tmp_path / "work", 512)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "icons.json").write_text('{"icons"')
    with pytest.raises(Error, match="damaged"):
        script.read_json(tmp_path / "icons.json")
