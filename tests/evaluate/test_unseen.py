"""Which images of a data set may be measured on, and which of them a run was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.errors import Error
from kuosan.evaluate import eval_images
from kuosan.evaluate.config import ReconstructionConfig
from kuosan.evaluate.train_overlap import Schooling, chosen
from kuosan.seeds import rng

SHAPE = (3, 8, 8)


def write(path: Path, i: int, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng(i, "test/unseen").integers(0, 256, (side, side, 3)).astype(np.uint8)).save(path)


def asked(path: Path, **options: Any) -> ReconstructionConfig:
    return ReconstructionConfig(str(path), features="none", **{"n": 9, **options})


def names(path: Path, runs: dict[str, Schooling], **options: Any) -> list[str]:
    return sorted(chosen(asked(path, **options), SHAPE, runs).names)


@pytest.mark.parametrize(("split_version", "size"), [(2, 8), (2, 16), (1, 8)])
def test_the_same_pixels_in_another_container_are_known_at_every_size(
    tmp_path: Path, split_version: int, size: int
) -> None:
    for i in range(3):
        write(tmp_path / "trained" / f"{i}.png", i, 24)
        write(tmp_path / "others" / f"{i + 2}.bmp", i + 2, 24)
        write(tmp_path / "others" / f"{i + 2}.tiff", i + 2, 24)  # each twice: both copies are known
    data = {"path": str(tmp_path / "trained"), "size": size, "hold_out": 0.0, "split_version": split_version}
    runs = {"run": Schooling(data, None)}
    with pytest.raises(Error, match="2 of the 6 images were trained on by run"):
        chosen(asked(tmp_path / "others"), SHAPE, runs)
    assert names(tmp_path / "others", runs, unseen=True) == ["3.bmp", "3.tiff", "4.bmp", "4.tiff"]


def test_images_kept_for_testing_are_measured_on_beside_those_for_validation(tmp_path: Path) -> None:
    for place, part in enumerate(("train", "train", "val", "test", "test")):
        write(tmp_path / "images" / part / f"{place}.png", place)
    runs = {"run": Schooling({"path": "nowhere", "size": 8}, None)}
    assert names(tmp_path / "images", runs) == ["test/3.png", "test/4.png", "val/2.png"]


def test_which_images_are_taken_does_not_depend_on_the_first_runs_version(tmp_path: Path) -> None:
    for place, part in enumerate(("train", "train", "test", "test", "test")):
        write(tmp_path / "images" / part / f"{place}.png", place)
    old = Schooling({"path": "nowhere", "size": 8, "layout": 1, "split_version": 1}, None)
    new = Schooling({"path": "nowhere", "size": 8}, None)
    found = [
        chosen(asked(tmp_path / "images", n=2), SHAPE, dict(runs)).names
        for runs in ((("old", old),), (("new", new),), (("old", old), ("new", new)), (("new", new), ("old", old)))
    ]
    assert len(set(found)) == 1 and all(name.startswith("test/") for name in found[0])


def test_no_image_is_on_both_sides_of_a_floor_whatever_its_container(tmp_path: Path) -> None:
    rows = []
    for i in range(12):
        for kind in ("png", "bmp"):
            write(tmp_path / f"{i}.{kind}", i)
            rows.append({"file_name": f"{i}.{kind}", "split": "val" if kind == "bmp" else "train"})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = open_images(DataConfig(str(tmp_path), size=8))
    one, other = (eval_images.Side.of("images", images, ids) for ids in (images.train, images.held_out))
    assert len(one) == len(other) == 12
    assert not len(one.without(other)), "each has a copy of its pixels on the other side"
