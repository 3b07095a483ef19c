"""Near duplicates on one side of the split, and what makes an image the same one."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kuosan.data.config import DataConfig, as_begun
from kuosan.data.doctor import Report, examine
from kuosan.data.pictures import Pictures, open_pictures
from kuosan.data.portraits import load_sheet
from kuosan.data.twins import _candidates, groups, near_duplicates
from kuosan.data.views import View
from kuosan.errors import Error
from kuosan.seeds import rng


def scene(i: int, side: int = 64) -> np.ndarray:
    """A smooth colour image with shapes and grain, (side, side, 3)."""
    draw = rng(0, "test/scene", 0, i)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3)).astype(np.uint8)).resize((side, side), 3)
    pixels = np.asarray(coarse).astype(float)
    y, x = np.mgrid[0:side, 0:side] / side
    for _ in range(5):
        cy, cx, radius = draw.random(3)
        pixels[(y - cy) ** 2 + (x - cx) ** 2 < (radius / 4) ** 2] = draw.integers(0, 256, 3)
    return np.clip(pixels + draw.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def lossy(kind: str, quality: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: np.asarray(Image.open(io.BytesIO(encoded(pixels, kind, quality=quality))).convert("RGB"))


def resized(factor: float, how: Image.Resampling = Image.Resampling.BICUBIC) -> Callable[[np.ndarray], np.ndarray]:
    return lambda p: np.asarray(
        Image.fromarray(p).resize((round(p.shape[1] * factor), round(p.shape[0] * factor)), how)
    )


def cropped(pixels: np.ndarray) -> np.ndarray:
    cut = max(1, round(0.02 * len(pixels)))
    return pixels[cut:-cut, cut:-cut]


PLANTED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg 95": lossy("JPEG", 95),
    "jpeg 75": lossy("JPEG", 75),
    "jpeg 50": lossy("JPEG", 50),
    "webp 80": lossy("WEBP", 80),
    "webp 50": lossy("WEBP", 50),
    "half": resized(0.5),
    "half, box": resized(0.5, Image.Resampling.BOX),
    "half, lanczos": resized(0.5, Image.Resampling.LANCZOS),
    "three quarters": resized(0.75),
    "one and a half": resized(1.5),
    "twice": resized(2.0),
    "cropped": cropped,
    "cropped, jpeg 75": lambda pixels: lossy("JPEG", 75)(cropped(pixels)),
    "brighter": lambda pixels: np.clip(np.rint(pixels * 1.05), 0, 255).astype(np.uint8),
    "darker": lambda pixels: np.rint(pixels * 0.95).astype(np.uint8),
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("of", ["scenes", "portraits"])
def test_a_planted_near_duplicate_is_found_and_nothing_else(kind: str, of: str) -> None:
    own = [scene(i) for i in range(25)] if of == "scenes" else list(load_sheet()[0][:2500:100])
    views = [View.of(pixels) for pixels in [*own, *map(PLANTED[kind], own)]]
    found = {(a, b) for a, b, _ in near_duplicates(views)}
    assert {(a, b) for a, b in found if b - a != len(own)} == set()
    assert len(found) >= len(own) - 2


@pytest.mark.parametrize("kind", ["flat", "noise", "lines", "one shape moved"])
def test_images_that_are_not_the_same_are_not_found(kind: str) -> None:
    draw = rng(0, "test/others")
    made = {
        "flat": [np.full((40, 40, 3), 5 * i, np.uint8) for i in range(40)],
        "noise": [draw.integers(0, 256, (40, 40, 3)).astype(np.uint8) for _ in range(40)],
        "lines": [np.where(draw.random((8, 8, 1)).repeat(8, 0).repeat(8, 1) < 0.5, 0, 255).astype(np.uint8)] * 0,
        "one shape moved": [],
    }
    for i in range(40):
        sheet = np.full((48, 48, 1), 255, np.uint8)
        for y, x, length in draw.integers(4, 40, (6, 3)):
            sheet[y, x : x + length] = 0
            sheet[y : y + length // 2, x] = 0
        made["lines"].append(sheet)
        moved = scene(0)
        moved[4 + i : 16 + i, 20:32] = 255 * (i % 2)
        made["one shape moved"].append(moved)
    assert list(near_duplicates([View.of(pixels) for pixels in made[kind]])) == []


def test_an_image_between_two_that_are_not_alike_joins_the_nearer_and_moves_neither() -> None:
    one = scene(1, 96)
    chain = [one, one[2:-2, 2:-2], one[4:-4, 4:-4]]
    views, keys = [View.of(pixels) for pixels in chain], ["a", "b", "c"]
    before = groups([views[0], views[2]], ["a", "c"])
    after = groups(views, keys)
    if before.leader[0] != before.leader[1]:
        assert after.leader[0] != after.leader[2]
        assert after.across
    else:
        assert len(set(after.leader.tolist())) == 1


def folder(path: Path, images: dict[str, bytes]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in images.items():
        (path / name).write_bytes(content)
    return path


def sides(path: Path, **settings: object) -> dict[str, bool]:
    """Whether each file is held out."""
    opened = open_pictures(replace(DataConfig(str(path), hold_out=0.3), **settings))  # type: ignore[arg-type]
    held = set(opened.held_out.tolist())
    return {opened.name(i): i in held for i in range(len(opened))}


def test_a_hundred_images_saved_again_are_on_the_side_of_the_first(tmp_path: Path) -> None:
    images = {f"{i}.png": encoded(scene(i, 32), "PNG") for i in range(100)}
    again = [("BMP", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {}), ("PNG", {"compress_level": 0})]
    for i in range(100):
        kind, options = again[i % len(again)]
        images[f"again {i}.{kind.lower()}"] = encoded(scene(i, 32), kind, **options)
    found = sides(folder(tmp_path / "a", images))
    by_number = [{side for name, side in found.items() if name.split(".")[0].split()[-1] == str(i)} for i in range(100)]
    assert all(len(own) == 1 for own in by_number)
    assert 15 <= sum(own == {True} for own in by_number) <= 45


def test_an_added_copy_joins_its_side_and_moves_nobody(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", {f"{i}.png": encoded(scene(i), "PNG") for i in range(30)})
    before, wrong, moved = sides(path), 0, 0
    kinds = [PLANTED[kind] for kind in ("jpeg 75", "jpeg 50", "half", "cropped, jpeg 75", "webp 50")]
    for i in range(30):
        folder(path, {f"copy {i}.png": encoded(kinds[i % len(kinds)](scene(i)), "PNG")})
    after = sides(path)
    for i in range(30):
        wrong += after[f"copy {i}.png"] != after[f"{i}.png"]
        moved += after[f"{i}.png"] != before[f"{i}.png"]
    assert (wrong, moved) == (0, 0)


def test_the_doctor_counts_groups_and_says_where_they_lie(tmp_path: Path) -> None:
    images = {f"{i}.png": encoded(scene(i), "PNG") for i in range(12)}
    images |= {f"copy {i}.jpg": encoded(scene(i), "JPEG", quality=80) for i in range(3)}
    report = examine(DataConfig(str(folder(tmp_path / "a", images))))
    assert any("3 groups of near duplicates, 6 images; each kept on one side" in line for line in report.lines())
    assert report.summary()["near_groups"] == 3
    rows = [f'{{"file_name": "{name}", "split": "{"test" if "copy" in name else "train"}"}}' for name in images]
    folder(tmp_path / "a", {"metadata.jsonl": "\n".join(rows).encode()})
    report = examine(DataConfig(str(tmp_path / "a")))
    assert report.summary()["near_parted"] == 3
    assert any(
        "near duplicates lie on both sides of the split that the data set has" in line for line in report.lines()
    )


def opened(path: Path, version: int = 2) -> Pictures:
    return open_pictures(DataConfig(str(path), split_version=version))


def test_the_fingerprint_is_of_pixels_and_of_what_a_run_uses(tmp_path: Path) -> None:
    images = {f"{i}.png": encoded(scene(i, 16), "PNG") for i in range(8)} | {"0.txt": b"a hill"}
    path = folder(tmp_path / "a", images)
    first = opened(path)
    folder(path, {"3.png": encoded(scene(3, 16), "BMP")})  # the name says nothing
    again = opened(path)
    assert again.fingerprint == first.fingerprint
    assert [again.name(i) for i in range(8)] == [first.name(i) for i in range(8)]
    assert opened(path, 1).fingerprint != opened(folder(tmp_path / "b", images), 1).fingerprint
    folder(path, {"0.txt": b"a sea"})
    edited = opened(path)
    assert edited.fingerprint_of(True, False) == first.fingerprint_of(True, False)
    assert edited.fingerprint_of(True, True) != first.fingerprint_of(True, True)
    assert edited.has_fingerprint(first.fingerprint_of(False, False)) and not edited.has_fingerprint(first.fingerprint)
    folder(path, {"3.png": encoded(scene(9, 16), "PNG")})
    assert opened(path).fingerprint_of(False, False) != first.fingerprint_of(False, False)


def test_what_was_begun_without_a_split_version_is_version_1() -> None:
    assert as_begun({"data": {"path": "a"}, "train": {}})["data"] == {"path": "a", "layout": 1, "split_version": 1}
    assert as_begun({"data": {"split_version": 2}})["data"]["split_version"] == 2
    assert as_begun({"train": {}}) == {"train": {}}
    with pytest.raises(Error, match="split_version"):
        DataConfig(split_version=3)


class Counting:
    """Keeps results in memory, and counts."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.computed = 0

    def get(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def once(self, name: str, compute: Callable[[], bytes]) -> bytes:
        if name not in self.kept:
            self.kept[name] = compute()
            self.computed += 1
        return self.kept[name]


def some_images(path: Path) -> Path:
    images = {f"{i}.png": encoded(scene(i, 32), "PNG") for i in range(12)}
    return folder(path, images | {f"copy {i}.jpg": encoded(scene(i, 32), "JPEG", quality=80) for i in range(3)})


def test_near_duplicates_are_kept_and_compared_again_only_where_a_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kuosan.data.scan.REMEMBERED", 10)
    path, memory, said = some_images(tmp_path / "a"), Counting(), list[str]()
    config = DataConfig(str(path), hold_out=0.3)
    plain = open_pictures(config)
    for _ in range(3):
        opened = open_pictures(config, memory=memory, progress=lambda what, done, of: said.append(what))
        assert opened.report.roles == plain.report.roles
        assert opened.report.near is not None and plain.report.near is not None
        assert opened.report.near.groups == plain.report.near.groups
        assert opened.fingerprint == plain.fingerprint
    assert memory.computed == 1 and any(opened.scan.looks) and not any(look.view for look in opened.scan.looks)
    assert "comparing images" in said
    assert examine(config, memory=memory).summary()["near_groups"] == 3
    folder(path, {"0.png": encoded(scene(40, 32), "PNG")})
    assert examine(config, memory=memory).summary()["near_groups"] == 2
    assert memory.computed == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: b"",
        lambda kept: b"[]",
        lambda kept: kept[:-9],
        lambda kept: kept.replace(b'"pixels": "', b'"pixels": "0'),
        lambda kept: kept.replace(b'"leaders": [[', b'"leaders": [[99, 0], ['),
        lambda kept: kept.replace(b'"leaders": [[', b'"leaders": [[0, -4], ['),
        lambda kept: kept.replace(b'"own": "', b'"own": "zz'),
    ],
)
def test_a_kept_comparison_that_is_not_of_these_images_is_made_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kuosan.data.scan.REMEMBERED", 10)
    memory, config = Counting(), DataConfig(str(some_images(tmp_path / "a")))
    before = examine(config, memory=memory)
    memory.kept = {name: damage(kept) for name, kept in memory.kept.items()}
    after = examine(config, memory=memory)
    assert after.roles == before.roles and after.summary() == before.summary()


def test_thousands_of_images_that_are_nearly_black_are_compared_with_few_others_each_and_the_report_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = rng(0, "test/dark")
    dark = np.zeros((3000, 16, 16, 1), np.uint8)
    dark[:, 5:8, 5:8] = 40
    dark += draw.integers(0, 3, dark.shape).astype(np.uint8)
    views = [View.of(pixels) for pixels in dark]
    monkeypatch.setattr("kuosan.data.twins.MOST_PAIRS", 30_000)
    pairs, crowded = _candidates(views)
    assert len(pairs) <= 2 * 3000 * 10 and crowded == 3000
    assert len(np.unique(pairs)) == 3000
    monkeypatch.setattr("kuosan.data.twins.CLOSEST", 64)
    assert groups(views[:70], [str(i) for i in range(70)]).crowded == 70
    assert groups(views[:20], [str(i) for i in range(20)]).crowded == 0  # each counts with its crops


def test_the_report_says_how_many_images_were_compared_with_the_nearest_alone(tmp_path: Path) -> None:
    report = examine(DataConfig(str(some_images(tmp_path / "a"))))
    assert not any("at a glance" in line for line in report.lines())
    near = report.scan.near
    assert near is not None
    crowded = replace(near, found=replace(near.found, crowded=12))
    lines = Report(report.config, replace(report.scan, near=crowded)).lines()
    assert any(
        "12 images are at a glance like so many others that they are compared with the nearest" in x for x in lines
    )
