"""The pure parts of tools/build_photographs.py: the split, equal photographs, tiles, credits, resource files."""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from kuosan.errors import Error
from scripted import load_script

SCRIPT = Path(__file__).parents[2] / "tools" / "build_photographs.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("build_photographs")


def scene(seed: int, height: int = 300, width: int = 400) -> np.ndarray:
    """An image with structure at every size, as photographs have."""
    draw = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for side in (3, 6, 12, 24):
        coarse = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64) / 4
    return total.astype(np.uint8)


def test_the_split_depends_on_the_content_alone(script: ModuleType) -> None:
    hashes = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(2000)]
    before = {sha: script.is_held_out(sha) for sha in hashes[:1000]}
    after = {sha: script.is_held_out(sha) for sha in reversed(hashes)}
    assert all(after[sha] == held for sha, held in before.items())
    assert 0.12 < sum(after.values()) / len(after) < 0.18
    assert script.is_held_out("00000000" + "f" * 56)
    assert not script.is_held_out("ffffffff" + "0" * 56)


def test_other_sizes_of_one_photograph_are_one_group(script: ModuleType) -> None:
    one, other = scene(1), scene(2)
    smaller = np.asarray(Image.fromarray(one).resize((200, 150), Image.Resampling.LANCZOS))
    squeezed = np.asarray(Image.fromarray(one).resize((480, 300), Image.Resampling.LANCZOS))
    brighter = np.clip(one.astype(np.int16) + 12, 0, 255).astype(np.uint8)
    looks = np.stack([script.look(pixels) for pixels in (one, other, smaller, squeezed, brighter, scene(3))])
    assert script.group_alike(looks) == [[0, 2, 3, 4], [1], [5]]


def test_tiles_cover_the_middle_and_never_overlap(script: ModuleType) -> None:
    numbered = np.arange(300 * 401).reshape(300, 401)
    pixels = np.stack([numbered >> 16, numbered >> 8 & 255, numbered & 255], 2).astype(np.uint8)
    tiles = script.cut(pixels)
    assert [(row, column) for row, column, _ in tiles] == [(r, c) for r in range(2) for c in range(3)]
    assert all(tile.shape == (128, 128, 3) for _, _, tile in tiles)
    seen = np.concatenate([tile.reshape(-1, 3) for _, _, tile in tiles])
    assert len(np.unique(seen, axis=0)) == len(seen) == 6 * 128 * 128
    assert (tiles[0][2][0, 0] == pixels[22, 8]).all()
    assert script.cut(pixels[:100]) == []


def test_only_large_photographs_are_reduced_by_whole_numbers(script: ModuleType) -> None:
    assert script.reduced(np.zeros((1000, 1500, 3), np.uint8)).shape == (1000, 1500, 3)
    assert script.reduced(np.zeros((1080, 1920, 3), np.uint8)).shape == (540, 960, 3)
    assert script.reduced(np.zeros((4000, 2001, 3), np.uint8)).shape == (1333, 667, 3)


def test_flat_tiles_are_known(script: ModuleType) -> None:
    assert script.is_flat(np.full((128, 128, 3), 200, np.uint8))
    assert not script.is_flat(scene(4)[:128, :128])


def test_a_tile_that_was_seen_is_found(script: ModuleType) -> None:
    tiles = [tile for _, _, tile in script.cut(scene(5, 512, 512))]
    nearly = np.clip(tiles[3].astype(np.int16) + 1, 0, 255).astype(np.uint8)
    others = [tile for _, _, tile in script.cut(scene(6, 512, 512))]
    assert script.seen_in(tiles, others) == set()
    assert script.seen_in(tiles, [*others, tiles[7], nearly]) == {3, 7}


def test_evenly_takes_one_of_each_first(script: ModuleType) -> None:
    assert script.evenly({"a": ["a0", "a1", "a2"], "b": ["b0"], "c": ["c0", "c1"]}) == [
        *("a0", "b0", "c0"),
        *("a1", "c1"),
        "a2",
    ]
    assert script.evenly({}) == []


def test_credits_come_from_the_last_pattern_that_fits(script: ModuleType) -> None:
    text = """Format: x

Files: *
Copyright: 2001 Everybody <all@example.org>
License: GPL-3+

Files: nature/a*.jpg
       nature/b.jpg
Copyright: 2005, Ann Author <ann@example.org>
           2007-2009 Bob
License: CC-BY-4.0
Comment: none
"""
    assert script.credit_of(text, "nature/apple.webp", "pack") == ("Ann Author, Bob", "CC-BY-4.0")
    assert script.credit_of(text, "other/apple.webp", "pack") == ("the authors of pack", "GPL-3+")


def test_resource_files_are_read(script: ModuleType) -> None:
    def name(text: str) -> bytes:
        return struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")

    def held(content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + content

    names = name("") + name("pictures") + name("a.webp") + name("b.txt")
    at = [0, 6, 6 + 22, 6 + 22 + 18]
    packed = held(b"size" + zlib.compress(b"text"))
    data = held(b"RIFF") + packed
    nodes = [(at[0], 2, 1, 1), (at[1], 2, 2, 2), (at[2], 0, 0, 0), (at[3], 1, 0, 8)]
    tree = b"".join(struct.pack(">IHII", *node) for node in nodes)
    start = 20
    head = b"qres" + struct.pack(">4I", 1, start, start + len(tree), start + len(tree) + len(data))
    assert dict(script.resources(head + tree + data + names)) == {
        "/pictures/a.webp": b"RIFF",
        "/pictures/b.txt": b"text",
    }
    with pytest.raises(Error, match="--work"):
        dict(script.resources(b"PK\3\4"))


def test_a_missing_command_names_the_cure(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Error, match="is not installed: install it"):
        script.call(["no-such-command-here"], tmp_path, "install it")
    with pytest.raises(Error, match="do this instead"):
        script.call([sys.executable, "-c", "raise SystemExit('bad')"], tmp_path, "do this instead")


def test_a_strangers_folder_is_left_alone(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(Error, match="name a new folder"):
        script.build(tmp_path, tmp_path / "work")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
