"""Opened images: the split, the fingerprint, keyed draws, and the same bits whatever the workers."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import drawn, saved

from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.data.doctor import examine, write
from kuosan.data.sources import Folder
from kuosan.errors import Error
from kuosan.seeds import Key, permutation


def fill(folder: Path, count: int, first: int = 0, size: tuple[int, int] = (24, 20)) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(first, first + count):
        (folder / f"{i:04}.png").write_bytes(saved(drawn(*size, 3, f"file {i}"), "PNG"))


def keys_of(ids: np.ndarray, step: int = 0) -> list[Key]:
    return [(7, "augment", step, int(id)) for id in ids]


def test_any_number_of_workers_and_memory_give_the_same_bits(tmp_path: Path) -> None:
    fill(tmp_path, 40)
    (tmp_path / "bad.png").write_bytes(b"bad")
    config = DataConfig(path=str(tmp_path), size=16, resize="random_crop", flip=True)
    order = permutation(41 - 1, 3, 0)
    requests = [(ids := order[i : i + 7], keys_of(ids, i)) for i in range(0, 40, 7)]
    seen = []
    for memory, workers in ((2.0, 0), (2.0, 2), (0.0, 0), (0.0, 1), (0.0, 2), (0.0, 4)):
        images = open_images(replace(config, memory_gib=memory, workers=workers))
        assert images.in_memory == (memory > 0)
        seen.append((images.fingerprint, torch.cat([batch.x0 for batch in images.batches(requests)])))
        assert [id for batch in images.batches(requests) for id in batch.ids.tolist()] == order.tolist()
    for fingerprint, x0 in seen:
        assert fingerprint == seen[0][0]
        assert torch.equal(x0, seen[0][1])


def test_files_that_fail_only_when_decoded_leave_no_gap(tmp_path: Path) -> None:
    fill(tmp_path, 12)
    for i in (2, 5, 9):  # cut after the header, so that the first pass lets them in
        whole = saved(drawn(60, 60, 3, f"cut {i}"), "PNG")
        (tmp_path / f"cut {i}.png").write_bytes(whole[: len(whole) // 2])
    config = DataConfig(path=str(tmp_path), size=16)
    kept, streamed = open_images(config), open_images(replace(config, memory_gib=0))
    assert len(kept) == len(streamed) == 12 and len(kept.report.scan.refused) == 3
    assert torch.equal(kept.batch(range(12)).x0, streamed.batch(range(12)).x0)
    assert len({x0.numpy().tobytes() for x0 in kept.batch(range(12)).x0}) == 12


def test_a_stopped_loader_leaves_no_thread(tmp_path: Path) -> None:
    import threading

    fill(tmp_path, 12)
    images = open_images(DataConfig(path=str(tmp_path), size=8, memory_gib=0, workers=3))
    running = images.batches(([i], None) for i in range(12))
    assert next(running).ids.tolist() == [0]
    running.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kuosan-decode")]


def test_a_batch_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    images = open_images(DataConfig(path=str(tmp_path), size=16, flip=True, resize="random_crop"))
    ids = np.arange(10)
    together = images.batch(ids, keys_of(ids)).x0
    for i in (9, 4):
        assert torch.equal(images.batch([i], keys_of(ids[i : i + 1])).x0[0], together[i])


def test_half_of_the_images_are_mirrored_when_asked_and_none_otherwise() -> None:
    ids = np.arange(400)
    plain = open_images(DataConfig())
    flipped = open_images(DataConfig(flip=True))
    straight = plain.batch(ids, keys_of(ids)).x0
    assert torch.equal(straight, plain.batch(ids).x0) and torch.equal(straight, flipped.batch(ids).x0)
    mirrored = flipped.batch(ids, keys_of(ids)).x0
    turned = (mirrored == straight.flip(3)).flatten(1).all(1) & (mirrored != straight).flatten(1).any(1)
    same = (mirrored == straight).flatten(1).all(1)
    assert (turned | same).all()
    assert 150 < int(turned.sum()) < 250
    again = flipped.batch(ids, keys_of(ids, step=1)).x0
    assert not torch.equal(again, mirrored)


def test_a_random_crop_is_a_window_of_the_kept_image(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    images = open_images(DataConfig(path=str(tmp_path), size=16, resize="random_crop"))
    kept = images.pixels(1)
    assert kept.shape == (18, 18, 3) and images.shape == (3, 16, 16)
    windows = {kept[t : t + 16, l : l + 16].tobytes(): (t, l) for t in range(3) for l in range(3)}
    found = set()
    for step in range(60):
        x0 = images.batch([1], [(0, "augment", step, 1)]).x0[0]
        found.add(windows[((x0 + 1) * 127.5).round().byte().numpy().transpose(1, 2, 0).tobytes()])
    assert len(found) == 9
    middle = images.batch([1]).x0[0]
    assert (((middle + 1) * 127.5).round().byte().numpy().transpose(1, 2, 0) == kept[1:17, 1:17]).all()


def test_the_split_does_not_move_when_files_are_added_or_renamed(tmp_path: Path) -> None:
    fill(tmp_path, 120)
    config = DataConfig(path=str(tmp_path), size=8, hold_out=0.2)

    def split() -> dict[str, bool]:
        images = open_images(config)
        held = set(images.held_out.tolist())
        assert not held & set(images.train.tolist()) and len(held) + len(images.train) == len(images)
        return {images.scan.looks[i].key: i in held for i in range(len(images))}

    before = split()
    assert 10 < sum(before.values()) < 40
    fill(tmp_path, 60, first=500)
    (tmp_path / "0000.png").rename(tmp_path / "zzz.png")
    after = split()
    assert len(after) == 180
    assert {key: after[key] for key in before} == before


def test_a_renamed_file_changes_nothing_and_any_other_change_shows(tmp_path: Path) -> None:
    fill(tmp_path, 8)
    config = DataConfig(path=str(tmp_path), size=16)
    first = open_images(config)
    (tmp_path / "0003.png").rename(tmp_path / "moved.png")
    renamed = open_images(config)
    assert renamed.fingerprint == first.fingerprint
    assert torch.equal(renamed.batch(range(8)).x0, first.batch(range(8)).x0)
    prints = {first.fingerprint}
    changes = ({"size": 8}, {"flip": True}, {"channels": "grey"}, {"resize": "pad"}, {"background": "black"})
    for change in (*changes, {"hold_out": 0.5}):
        prints.add(open_images(replace(config, **change)).fingerprint)  # type: ignore[arg-type]
    (tmp_path / "moved.txt").write_text("a caption")
    prints.add(open_images(config).fingerprint)
    (tmp_path / "moved.txt").unlink()
    fill(tmp_path, 1, first=3)
    (tmp_path / "0003.png").write_bytes(saved(drawn(24, 20, 3, "other"), "PNG"))
    prints.add(open_images(config).fingerprint)
    assert len(prints) == 9
    for kept in ({"workers": 4}, {"memory_gib": 0.5}, {"max_pixels": 1000}):
        assert open_images(replace(config, **kept)).fingerprint in prints  # type: ignore[arg-type]


def test_the_same_content_twice_is_used_and_on_one_side_of_the_split(tmp_path: Path) -> None:
    fill(tmp_path, 60)
    for i in range(60):
        (tmp_path / f"copy {i}.png").write_bytes((tmp_path / f"{i:04}.png").read_bytes())
    images = open_images(DataConfig(path=str(tmp_path), size=8, hold_out=0.3))
    assert len(images) == 120
    keys = [look.key for look in images.scan.looks]
    assert not {keys[i] for i in images.train} & {keys[i] for i in images.held_out}
    assert len(images.report.duplicates) == 60
    assert any("60 images have the same pixels" in line for line in images.describe())


def test_grey_images_stored_as_colour_are_seen_as_grey(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(saved(np.repeat(drawn(8, 8, 1, f"{i}"), 3, 2), "PNG"))
    config = DataConfig(path=str(tmp_path))
    for memory in (2.0, 0.0):
        assert open_images(replace(config, memory_gib=memory)).batch([0]).x0.shape == (1, 1, 8, 8)
    assert open_images(replace(config, channels="rgb")).shape == (3, 8, 8)
    (tmp_path / "colour.png").write_bytes(saved(drawn(8, 8), "PNG"))
    assert open_images(config).shape == (3, 8, 8)
    assert open_images(replace(config, channels="grey")).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("sizes", "want"),
    [
        ([(28, 28)] * 3, (32, "centre")),
        ([(32, 32)] * 3, (32, "centre")),
        ([(64, 64)] * 3, (64, "centre")),
        ([(500, 400)] * 3, (64, "crop")),
        ([(50, 60), (70, 45)], (32, "crop")),
        ([(3, 3)] * 2, (8, "centre")),
        ([(40, 28)] * 2, (16, "crop")),
    ],
)
def test_the_size_follows_from_the_images(tmp_path: Path, sizes: list[tuple[int, int]], want: tuple[int, str]) -> None:
    for i, (h, w) in enumerate(sizes):
        (tmp_path / f"{i}.png").write_bytes(saved(drawn(h, w, 3, f"{i}"), "PNG"))
    images = open_images(DataConfig(path=str(tmp_path)))
    assert (images.plan.size, images.plan.rule) == want
    assert any(f"Size {want[0]}x{want[0]}" in line for line in images.describe())


def test_small_images_of_several_sizes_are_scaled_so_that_all_fill_the_square(tmp_path: Path) -> None:
    for i, side in enumerate((28, 30)):
        (tmp_path / f"{i}.png").write_bytes(saved(drawn(side, side, 3, f"{i}"), "PNG"))
    assert open_images(DataConfig(path=str(tmp_path), size=32)).plan.rule == "crop"
    (tmp_path / "1.png").unlink()
    assert open_images(DataConfig(path=str(tmp_path), size=32)).plan.rule == "centre"
    assert open_images(DataConfig(path=str(tmp_path), size=40)).plan.rule == "crop"


def test_small_images_that_are_enlarged_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, 2, size=(40, 40))
    fill(tmp_path, 3, first=5, size=(20, 90))
    report = examine(DataConfig(path=str(tmp_path), size=32))
    assert report.summary()["enlarged"] == 3 and report.summary()["resized"] == 5
    assert any("3 are smaller and were enlarged" in line for line in report.lines())


def test_the_doctor_writes_every_file_down_and_changes_none(tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out" / "lists"
    fill(folder, 5)
    (folder / "twin.png").write_bytes((folder / "0001.png").read_bytes())
    (folder / "bad, very.png").write_bytes(b"no")
    (folder / "0002.txt").write_text('a "quoted", caption')
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    report = examine(DataConfig(path=str(folder), size=16, hold_out=0.5))
    written = write(report, out)
    assert [file.name for file in written] == ["accepted.csv", "rejected.csv", "summary.json"]
    accepted = list(csv.DictReader(written[0].read_text().splitlines()))
    assert sorted(row["name"] for row in accepted) == [*(f"{i:04}.png" for i in range(5)), "twin.png"]
    assert {row["from"] for row in accepted} == {"20x24"} and {row["to"] for row in accepted} == {"16x16"}
    assert [row["caption"] for row in accepted if row["name"] == "0002.png"] == ['a "quoted", caption']
    assert [row["same_as"] for row in accepted if row["name"] == "twin.png"] == ["0001.png"]
    assert sum(row["held_out"] == "true" for row in accepted) == report.summary()["held_out"]
    rejected = list(csv.DictReader(written[1].read_text().splitlines()))
    assert [row["name"] for row in rejected] == ["bad, very.png"] and rejected[0]["reason"].startswith("not an image")
    summary = json.loads(written[2].read_text())
    assert (summary["used"], summary["skipped"], summary["captions"], summary["duplicates"]) == (6, 1, 1, 1)
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()} == before


def test_the_doctor_and_training_agree(tmp_path: Path) -> None:
    fill(tmp_path, 9)
    (tmp_path / "bad.png").write_bytes(b"no")
    config = DataConfig(path=str(tmp_path))
    assert examine(config).lines() == open_images(config).describe()
    assert examine(config).summary() == open_images(config).report.summary()


def test_progress_is_reported_to_the_caller(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    told: list[tuple[str, int, int]] = []
    open_images(DataConfig(path=str(tmp_path)), progress=lambda *step: told.append(step))
    looking, decoding = "looking at files", "decoding images"
    assert told == [*((looking, i, 5) for i in range(1, 6)), *((decoding, i, 5) for i in range(1, 6))]


def test_a_cache_saves_looking_again_at_files_that_did_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "pictures", tmp_path / "looks.json"
    fill(folder, 6)
    (folder / "bad.png").write_bytes(b"no")
    config = DataConfig(path=str(folder), workers=0)
    first = examine(config, cache=cache)
    reads: list[str] = []
    read = Folder.read
    monkeypatch.setattr(Folder, "read", lambda at, entry, i: reads.append(entry.name) or read(at, entry, i))  # type: ignore[func-returns-value]
    assert examine(config, cache=cache).lines() == first.lines()
    assert set(reads) == {"bad.png"}
    (folder / "0002.png").write_bytes(b"short")
    changed = examine(config, cache=cache)
    assert {name for name, _ in changed.scan.refused} == {"bad.png", "0002.png"}
    for damaged in ("{", "[]", '{"head": 1}', json.dumps({"head": {}, "rows": []})):
        cache.write_text(damaged)
        assert examine(config, cache=cache).lines() == changed.lines()
    with pytest.raises(Error):
        examine(config, cache=folder / "0001.png" / "x")


def test_unused_arguments_of_a_batch_are_none(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    batch = open_images(DataConfig(path=str(tmp_path), size=8)).batch([1, 0])
    assert batch.label is None and batch.caption is None
    assert batch.ids.tolist() == [1, 0] and batch.ids.dtype == torch.int64
    assert batch.x0.dtype == torch.float32 and batch.x0.is_contiguous() and batch.x0.abs().max() <= 1


def test_a_cache_made_for_grey_does_not_make_colour_grey(tmp_path: Path) -> None:
    folder, cache = tmp_path / "pictures", tmp_path / "looks.json"
    fill(folder, 3)
    config = DataConfig(path=str(folder), memory_gib=0)
    assert open_images(replace(config, channels="grey"), cache=cache).shape[0] == 1
    assert open_images(config, cache=cache).shape[0] == 3
