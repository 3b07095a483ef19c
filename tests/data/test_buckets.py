"""Aspect-ratio buckets: which shapes there are, where each image goes, what is cut, and that nothing is dropped."""

from __future__ import annotations

import csv
import math
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_files import drawn, saved

from kuosan.data.config import MOST_AREA_ERROR, DataConfig, cut, default_step, nearest, shapes, sorted_into
from kuosan.data.dataset import open_images
from kuosan.data.doctor import examine, write
from kuosan.data.pixels import cover
from kuosan.errors import Error

SIZES = [(64, 64)] * 3 + [(60, 90)] * 4 + [(90, 60)] * 2 + [(64, 70), (20, 300), (300, 20), (200, 120)]  # h, w


def folder(path: Path) -> DataConfig:
    path.mkdir(exist_ok=True)
    for i, (h, w) in enumerate(SIZES):
        (path / f"{i:02}.png").write_bytes(saved(drawn(h, w, 3, f"bucket {i}"), "PNG"))
    return DataConfig(str(path), size=32, resize="buckets", hold_out=0.0)


def test_the_shapes_are_the_square_and_pairs_of_about_as_many_pixels() -> None:
    assert shapes(64, 8, 2.0) == ((88, 48), (80, 48), (72, 56), (64, 64), (56, 72), (48, 80), (48, 88))
    assert shapes(512, 64, 2.0) == ((704, 384), (640, 384), (576, 448), (512, 512), (448, 576), (384, 640), (384, 704))
    assert shapes(64, 8, 1.0) == ((64, 64),)


@given(side=st.integers(2, 40), step=st.sampled_from([1, 2, 3, 4, 8, 16, 64]), aspect=st.floats(1, 8))
def test_every_shape_keeps_to_the_rule(side: int, step: int, aspect: float) -> None:
    size = side * step
    found = shapes(size, step, aspect)
    assert (size, size) in found and set(found) == {(w, h) for h, w in found}
    ratios = [w / h for h, w in found]
    assert ratios == sorted(set(ratios)) and max(ratios) <= aspect
    for h, w in found:
        assert h % step == w % step == 0 and abs(h * w - size**2) <= MOST_AREA_ERROR * size**2
        longer, shorter = max(h, w), min(h, w)
        assert all(
            abs(longer * s - size**2) >= abs(longer * shorter - size**2) for s in (shorter - step, shorter + step)
        )


@given(h=st.integers(1, 3000), w=st.integers(1, 3000), size=st.sampled_from([16, 64, 96]))
def test_an_image_goes_where_the_least_of_it_is_cut(h: int, w: int, size: int) -> None:
    every = shapes(size, default_step(size), 2.0)
    chosen = every[nearest(every, h, w)]
    scale = max(chosen[0] / h, chosen[1] / w)  # until it covers
    assert cut(chosen, h, w) == pytest.approx(1 - chosen[0] * chosen[1] / (h * w * scale**2), abs=1e-9)
    assert all(cut(chosen, h, w) <= cut(other, h, w) for other in every)
    near = min(every, key=lambda shape: abs(math.log(shape[1] / shape[0]) - math.log(w / h)))
    assert cut(near, h, w) == pytest.approx(cut(chosen, h, w), abs=1e-9)


def test_the_default_step_is_an_eighth_of_the_size_and_divides_it() -> None:
    assert [default_step(size) for size in (8, 16, 32, 64, 72, 96, 128, 256, 512, 1024)] == [
        4, 4, 4, 8, 8, 16, 16, 32, 64, 128,
    ]  # fmt: skip
    assert all(size % default_step(size) == 0 for size in range(8, 1025))


def test_covering_cuts_the_centre_evenly_and_copies_what_fits() -> None:
    pixels = drawn(48, 90)
    assert (cover(pixels, 48, 88) == pixels[:, 1:89]).all()
    assert (cover(pixels, 48, 90) == pixels).all()
    assert (cover(drawn(91, 48), 88, 48) == drawn(91, 48)[1:89]).all()
    made = cover(np.repeat(np.arange(240, dtype=np.uint8)[None, :, None], 60, 0).repeat(3, 2), 24, 40)
    assert made.shape == (24, 40, 3)  # 60 x 100 of 60 x 240 is kept, 70 columns are cut on either side
    assert abs(float(made[:, :, 0].mean()) - 119.5) < 1 and (made[:, 0] > 69).all() and (made[:, -1] < 170).all()


def test_every_image_is_used_in_the_bucket_of_its_shape(tmp_path: Path) -> None:
    config = folder(tmp_path / "data")
    images = open_images(config)
    assert len(images) == len(images.train) == len(SIZES) and images.shape == (3, 32, 32)
    every = shapes(32, 4, 2.0)
    for i, look in enumerate(images.scan.looks):
        place = nearest(every, look.height, look.width)
        assert images.buckets.shapes[images.buckets.of[i]] == every[place]
        assert images.batch([i]).x0.shape[2:] == every[place]
    assert images.pixels(0).flags["C_CONTIGUOUS"]
    assert {(44, 24), (24, 44)} <= set(images.buckets.shapes), "the widest and the tallest went somewhere too"


def test_in_memory_from_disk_from_a_zip_and_from_python_are_the_same(tmp_path: Path) -> None:
    config = folder(tmp_path / "data")
    whole = open_images(config)
    read = open_images(replace(config, memory_gib=0.0))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as packed:
        for file in sorted((tmp_path / "data").iterdir()):
            packed.write(file, file.name)
    zipped = open_images(replace(config, path=str(tmp_path / "data.zip")))
    assert whole.in_memory and zipped.in_memory and not read.in_memory
    assert whole.fingerprint == read.fingerprint == zipped.fingerprint
    groups = [np.flatnonzero(whole.buckets.of == place) for place in range(len(whole.buckets.shapes))]
    for made in (read, zipped):
        batches = list(made.batches([(ids, None) for ids in groups]))
        assert all(torch.equal(batch.x0, whole.batch(ids).x0) for batch, ids in zip(batches, groups))
    items = [(drawn(h, w, 3, f"bucket {i}"), i % 2) for i, (h, w) in enumerate(SIZES)]
    given = open_images(items, replace(config, path="items"))
    assert Counter(given.buckets.of.tolist()) == Counter(whole.buckets.of.tolist())
    assert given.buckets.shapes == whole.buckets.shapes and given.labels is not None


def test_a_batch_of_several_buckets_is_refused(tmp_path: Path) -> None:
    images = open_images(folder(tmp_path / "data"))
    with pytest.raises(Error, match="of several buckets"):
        images.batch(range(len(images)))


def test_one_bucket_alone_keeps_its_numbers(tmp_path: Path) -> None:
    images = open_images(replace(folder(tmp_path / "data"), hold_out=0.4))
    for place, shape in enumerate(images.buckets.shapes):
        some = images.only(shape)
        assert some.shape == (3, *shape)
        assert some.train.tolist() == [i for i in images.train if images.buckets.of[i] == place]
        assert some.held_out.tolist() == [i for i in images.held_out if images.buckets.of[i] == place]
    assert images.shape == (3, 32, 32)
    with pytest.raises(Error, match="no images of 64x64"):
        images.only((64, 64))


def test_mirroring_is_along_the_width_of_any_shape(tmp_path: Path) -> None:
    config = folder(tmp_path / "data")
    plain, flipped = open_images(config), open_images(replace(config, flip=True))
    assert plain.fingerprint != flipped.fingerprint
    wide = int(np.flatnonzero(plain.buckets.of == len(plain.buckets.shapes) - 1)[0])
    seen = [flipped.batch([wide], [(0, "augment", step, 0)]).x0 for step in range(20)]
    x0 = plain.batch([wide]).x0
    mirrored = [torch.equal(each, x0.flip(3)) for each in seen]
    assert all(same or torch.equal(each, x0) for same, each in zip(mirrored, seen)) and 3 < sum(mirrored) < 17


def test_square_images_give_one_bucket_and_the_pixels_of_a_crop(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(saved(drawn(40, 40, 3, f"{i}"), "PNG"))
    config = DataConfig(str(tmp_path), size=32, resize="buckets")
    square, cropped = open_images(config), open_images(replace(config, resize="crop"))
    assert square.buckets.shapes == cropped.buckets.shapes == ((32, 32),)
    assert torch.equal(square.batch(range(3)).x0, cropped.batch(range(3)).x0)


def test_without_square_images_the_shape_is_the_commonest_buckets(tmp_path: Path) -> None:
    for i, (h, w) in enumerate([(40, 60), (40, 60), (60, 40)]):
        (tmp_path / f"{i}.png").write_bytes(saved(drawn(h, w, 3, f"{i}"), "PNG"))
    images = open_images(DataConfig(str(tmp_path), size=64, resize="buckets", hold_out=0.0))
    assert images.buckets.shapes == ((80, 48), (48, 80)) and images.shape == (3, 48, 80)


def test_the_fingerprint_follows_the_shapes(tmp_path: Path) -> None:
    config = replace(folder(tmp_path / "data"), size=64)
    changes = ({}, {"bucket_step": 16}, {"bucket_aspect": 1.5}, {"size": 32})
    assert len({open_images(replace(config, **change)).fingerprint for change in changes}) == 4
    assert open_images(replace(config, bucket_step=8)).fingerprint == open_images(config).fingerprint


def test_sideways_photographs_go_to_the_bucket_they_are_seen_in(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by a quarter
    (tmp_path / "a.jpg").write_bytes(saved(drawn(40, 60), "JPEG", exif=exif))
    images = open_images(DataConfig(str(tmp_path), size=64, resize="buckets"))
    ((h, w),) = images.buckets.shapes
    assert h > w and images.pixels(0).shape == (h, w, 3)


def test_the_doctor_tells_the_buckets_with_their_counts_and_what_is_cut(tmp_path: Path) -> None:
    config = folder(tmp_path / "data")
    report = examine(config)
    told = report.summary()
    buckets = sorted_into(shapes(32, 4, 2.0), SIZES)
    assert told["buckets"] == {f"{w}x{h}": int(n) for (h, w), n in zip(buckets.shapes, np.bincount(buckets.of))}
    cuts = [min(cut(shape, *size) for shape in shapes(32, 4, 2.0)) for size in SIZES]
    assert told["cut_at_most"] == pytest.approx(max(cuts), abs=1e-4) and max(cuts) > 0.8  # 300 x 20
    assert told["cut_on_average"] == pytest.approx(sum(cuts) / len(cuts), abs=1e-4)
    assert told["resized"] == len(SIZES) and told["enlarged"] == 2
    (line,) = [line for line in report.lines() if "buckets" in line]
    assert "24x44 1" in line and f"at most {max(cuts):.1%} of an image is cut" in line
    accepted = list(csv.DictReader(write(report, tmp_path / "out")[0].read_text().splitlines()))
    assert Counter(row["to"] for row in accepted) == Counter(told["buckets"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bucket_step": 8, "resize": "crop"}, "bucket_step = 8 has no effect with resize crop"),
        (
            {"bucket_aspect": 3.0, "resize": "auto"},
            "bucket_aspect = 3.0 has no effect with resize auto: .* resize buckets",
        ),
        ({"bucket_step": 0}, "bucket_step 0 must be a whole number from 1"),
        ({"bucket_aspect": 0.5}, "bucket_aspect 0.5 must be a number from 1 to 8"),
    ],
)
def test_settings_of_buckets_are_checked(settings: dict[str, object], says: str) -> None:
    with pytest.raises(Error, match=says):
        DataConfig(**{"resize": "buckets", **settings})  # type: ignore[arg-type]


def test_a_step_that_leaves_squares_without_a_bucket_is_refused(tmp_path: Path) -> None:
    config = replace(folder(tmp_path / "data"), size=64, bucket_step=24)
    with pytest.raises(Error, match="bucket_step = 24 does not divide size = 64"):
        open_images(config)
