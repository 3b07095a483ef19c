"""Rows on a shelf are those computed for this very key, whole and unharmed, or they are computed anew."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from faults.filling import AT_ONCE, COLUMNS, ROWS, columns_of, shelf
from faults.harness import KILLED, ForkServer, build
from kuosan.errors import Error
from kuosan.storage.cache import TAG, RowCache, cache_root

MODES = ("kill", "torn", "eio", "dead", "enospc")


def filled(root: Path, key: str = "a") -> RowCache:
    one = shelf(root, key)
    one.fill(columns_of, AT_ONCE)
    return one


def is_whole(one: RowCache) -> bool:
    found, wanted = one.open(), columns_of(range(one.rows))
    return all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_rows_come_back_as_they_were_put_mapped_and_read_only(tmp_path: Path) -> None:
    one, told = shelf(tmp_path), list[tuple[int, int]]()
    assert one.missing() == [range(ROWS)]
    one.fill(columns_of, AT_ONCE, lambda done, of: told.append((done, of)))
    assert told == [(0, ROWS), (4, ROWS), (8, ROWS), (ROWS, ROWS)]
    assert one.missing() == []
    again = shelf(tmp_path)
    assert again.path == one.path and again.missing() == [] and is_whole(again)
    found = again.open()
    for name, (dtype, shape) in COLUMNS.items():
        assert isinstance(found[name], np.memmap) and found[name].dtype == dtype and found[name].shape == (ROWS, *shape)
        with pytest.raises(ValueError, match="read-only"):
            found[name][0] = 0


def test_parts_come_in_any_order_and_size_and_what_is_here_is_left(tmp_path: Path) -> None:
    one = shelf(tmp_path)
    one.put(5, columns_of(range(5, 7)), seconds=4.0)
    one.put(0, columns_of(range(2)), seconds=1.0)
    assert one.missing() == [range(2, 5), range(7, ROWS)]
    one.put(1, {name: array + 1 for name, array in columns_of(range(1, 6)).items()}, seconds=10.0)  # 2 to 4 are new
    assert one.missing() == [range(7, ROWS)]
    assert one.seconds == pytest.approx(4 + 1 + 10 * 3 / 5)
    with pytest.raises(Error, match=r"lacks 4 of 11 rows, from row 7 on"):
        one.open()
    one.fill(columns_of, 100)
    found = one.open()["count"]
    assert found[[0, 1, 5, 6, 7]].tolist() == [0, 1, 25, 36, 49]
    assert found[2:5].tolist() == [5, 10, 17]


def test_the_seconds_that_rows_took_are_kept(tmp_path: Path) -> None:
    one = shelf(tmp_path)
    one.put(0, columns_of(range(6)), seconds=1.5)
    one.put(6, columns_of(range(6, ROWS)), seconds=0.25)
    assert shelf(tmp_path).seconds == pytest.approx(1.75)


@pytest.mark.parametrize(
    "other",
    [
        lambda root: shelf(root, key="b"),
        lambda root: shelf(root, rows=ROWS + 1),
        lambda root: RowCache(root, "embeddings", {"data": "a", "scale": 0.5}, ROWS, COLUMNS),
        lambda root: RowCache(root, "latents", {"data": "a", "scale": 0.25}, ROWS, COLUMNS),
        lambda root: RowCache(root, "latents", {"data": "a", "scale": 0.5}, ROWS, {**COLUMNS, "count": (np.int32, ())}),
        lambda root: RowCache(
            root, "latents", {"data": "a", "scale": 0.5}, ROWS, {**COLUMNS, "mean": (np.float16, (6,))}
        ),
    ],
)
def test_rows_of_another_key_shape_or_number_are_never_taken(tmp_path: Path, other: object) -> None:
    one = filled(tmp_path)
    another: RowCache = other(tmp_path)  # type: ignore[operator]
    assert another.path != one.path and another.missing() == [range(another.rows)]


def test_the_key_can_be_read_by_a_person_and_an_edited_one_is_refused(tmp_path: Path) -> None:
    one = filled(tmp_path)
    said = json.loads((one.path / "key.json").read_text())
    assert said["key"] == {"data": "a", "scale": 0.5} and said["rows"] == ROWS
    assert said["note"] == "made of fire and water"
    (one.path / "key.json").write_text(json.dumps({**said, "note": "another word"}))
    assert is_whole(shelf(tmp_path))
    (one.path / "key.json").write_text(json.dumps({**said, "key": {"data": "b", "scale": 0.5}}))
    with pytest.raises(Error, match=r"key.json is damaged or was edited.*delete"):
        shelf(tmp_path)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped", "short", "gone", "edited", "torn part"])
def test_a_damaged_part_is_reported_and_computed_again(tmp_path: Path, how: str) -> None:
    one = filled(tmp_path)
    rows, part = one.path / "mean.rows", one.path / "00000004-00000008.part"
    lost = [range(4, 8)]
    match how:
        case "flipped":
            flip(rows, 5 * 12)
        case "short":
            os.truncate(rows, 6 * 12)
            lost = [range(4, ROWS)]
        case "gone":
            rows.unlink()
            lost = [range(ROWS)]
        case "edited":
            part.write_text(part.read_text().replace('"last": 8', '"last": 7'))
        case "torn part":
            os.truncate(part, 40)
    told: list[str] = []
    again = RowCache(tmp_path, "latents", {"data": "a", "scale": 0.5}, ROWS, COLUMNS, say=told.append)
    assert again.missing() == lost
    assert told == again.damaged and len(told) >= 1
    assert all("is damaged" in line and str(one.path) in line for line in told)
    computed: list[range] = []
    again.fill(lambda rows: computed.append(rows) or columns_of(rows), 100)  # type: ignore[func-returns-value]
    assert computed == lost and is_whole(again) and is_whole(shelf(tmp_path))
    assert shelf(tmp_path).damaged == []


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: a kill means the same there, and fsync costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def server(memory: Path) -> Iterator[ForkServer]:
    (memory / "shim").mkdir()
    library = build(memory / "shim")
    if library is None:
        pytest.skip("fault tests need Linux and a C compiler (cc or gcc): none is here")
    server = ForkServer(library, ["numpy", "faults.filling"])
    yield server
    server.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_fault_at_every_operation_never_leaves_a_wrong_row(server: ForkServer, memory: Path, mode: str) -> None:
    folder = memory / mode
    whole = server.run("faults.filling:fill", str(folder / "whole"), prefix=folder / "whole")
    assert is_whole(shelf(folder / "whole")) and len(whole.ops) > 20
    for at in range(1, len(whole.ops) + 1):
        root = folder / str(at)
        trial = server.run("faults.filling:fill", str(root), prefix=root, at=at, mode=mode)
        assert trial.status == (KILLED if mode in ("kill", "torn") else 0), trial.output
        said = [word for word in trial.notes if isinstance(word, str)]
        assert all(str(root) in word for word in said)
        if mode == "enospc":
            assert said and "no space is left on the disk" in said[0] and "free" in said[0]
        told: list[str] = []
        one = RowCache(root, "latents", {"data": "a", "scale": 0.5}, ROWS, COLUMNS, say=told.append)
        left = one.missing()
        assert told == []  # a part that counts is never a damaged one
        finished = sum(1 for op in trial.ops[: at - 1] if op.name == "rename" and op.to.endswith(".part"))
        assert sum(map(len, left)) <= ROWS - min(ROWS, AT_ONCE * finished)
        one.fill(columns_of, AT_ONCE)
        assert is_whole(one) and is_whole(shelf(root))
        assert not [path.name for path in one.path.iterdir() if path.name.startswith(".kuosan-partial-")]


def test_a_part_has_its_name_only_after_its_rows_are_fsynced(server: ForkServer, tmp_path: Path) -> None:
    ops = server.run("faults.filling:fill", str(tmp_path / "run"), prefix=tmp_path / "run").ops
    unsynced: set[str] = set()
    renamed = 0
    for op in ops:
        if op.name in ("write", "pwrite", "ftruncate"):
            unsynced.add(op.path)
        elif op.name == "fsync":
            unsynced.discard(op.path)
        elif op.name == "rename" and op.to.endswith(".part"):
            renamed += 1
            assert not {path for path in unsynced if not path.endswith(".lock")}
    assert renamed == 3


TWO = """
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
sys.path.insert(0, {tests!r})
from faults.filling import columns_of, shelf
one = shelf(Path(sys.argv[1]), rows=200)
print(one.fill(lambda rows: columns_of(rows), 3) >= 0, len(one.damaged))
"""


def test_processes_that_fill_one_cache_at_once_do_it_no_harm(tmp_path: Path) -> None:
    code = TWO.format(tests=str(Path(__file__).parents[1]))
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["True 0"] * 3
    one = shelf(tmp_path, rows=200)
    assert is_whole(one) and one.damaged == []


def test_too_little_room_is_refused_before_the_first_part_is_written(tmp_path: Path) -> None:
    one = RowCache(tmp_path / "cache", "latents", {}, 1 << 40, {"x": (np.float32, (1024,))})
    with pytest.raises(Error, match=r"no room for .*4096\.0 TB needed, .* free"):
        one.put(0, {"x": np.zeros((1, 1024), np.float32)})
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_may_not_be_written_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)

    def refuse(path: object, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "read-only", str(path))
        return real(path, flags, mode, dir_fd=dir_fd)  # type: ignore[arg-type]

    real = os.open
    monkeypatch.setattr(os, "open", refuse)
    assert is_whole(shelf(tmp_path))
    with pytest.raises(Error, match="read-only"):
        filled(tmp_path, key="b")


def test_no_rows_are_a_full_cache(tmp_path: Path) -> None:
    one = shelf(tmp_path, rows=0)
    assert one.missing() == [] and one.open()["mean"].shape == (0, 2, 3)
    assert not one.path.exists()


def test_the_cache_is_where_one_says_else_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KUOSAN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / "home" / ".cache" / "kuosan"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # the standard: ignored
    assert cache_root() == tmp_path / "home" / ".cache" / "kuosan"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "kuosan"
    monkeypatch.setenv("KUOSAN_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    assert cache_root("~/here") == tmp_path / "home" / "here"
    assert not (tmp_path / "own").exists()
    with pytest.raises(Error, match="empty text"):
        cache_root(" ")


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert cache_root(str(tmp_path / "photos")) == tmp_path / "photos"  # empty
    (tmp_path / "photos" / "cat.png").write_bytes(b"a cat")
    with pytest.raises(Error, match=r"photos is no cache of kuosan: it holds cat.png"):
        cache_root(str(tmp_path / "photos"))
    (tmp_path / "photos" / TAG).write_text("Signature: 8a477f597d28d172789f06886806bc55\n# of another program\n")
    with pytest.raises(Error, match="is no cache of kuosan"):
        shelf(tmp_path / "photos")
    with pytest.raises(Error, match=r"cat.png is a file: name a folder"):
        cache_root(str(tmp_path / "photos" / "cat.png"))
    assert filled(tmp_path / "new").root == cache_root(str(tmp_path / "new"))
    assert (tmp_path / "new" / TAG).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def growing(folder: Path, key: str = "a", **options: object) -> RowCache:
    """Rows that lie in a folder of a run's results, as many as are put."""
    return RowCache(folder.parent, "images", {"data": key}, None, COLUMNS, at=folder, **options)  # type: ignore[arg-type]


def test_a_cache_that_grows_takes_rows_anywhere_and_gives_those_that_are_here(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "made"
    one = growing(folder)
    assert one.missing(0, 5) == [range(5)] and one.missing(3, 3) == [] and one.parts() == []
    assert {name: array.shape for name, array in one.open(2, 2).items()} == {"mean": (0, 2, 3), "count": (0,)}
    assert not folder.exists()  # until something is put
    one.put(4, columns_of(range(4, 7)), seconds=3.0)
    one.put(0, columns_of(range(2)), seconds=1.0)
    assert one.missing(0, 9) == [range(2, 4), range(7, 9)] and one.missing(1, 6) == [range(2, 4)]
    assert one.missing(5, 7) == [] and one.missing(20, 22) == [range(20, 22)]
    one.put(1, columns_of(range(1, 12)), seconds=11.0)  # 2, 3 and 7 to 11 are new
    again = growing(folder)
    assert again.missing(0, 12) == [] and again.missing(0, 14) == [range(12, 14)]
    assert [(each.first, each.last, each.seconds) for each in again.parts()] == [
        (0, 2, 1.0), (2, 4, 2.0), (4, 7, 3.0), (7, 12, 5.0)
    ]  # fmt: skip
    for begin, end in ((0, 12), (3, 8), (11, 12)):
        assert all(
            np.array_equal(array, columns_of(range(begin, end))[name]) for name, array in again.open(begin, end).items()
        )
    with pytest.raises(Error, match=r"made lacks 2 of 10 rows, from row 12 on"):
        again.open(4, 14)


def test_a_cache_in_a_folder_of_results_makes_no_cache_of_what_lies_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "made"
    folder.mkdir(parents=True)
    (folder.parent / "result.json").write_text("{}")
    growing(folder).put(0, columns_of(range(2)))
    assert not list(tmp_path.rglob(TAG)) and (folder.parent / "result.json").read_text() == "{}"
    with pytest.raises(Error, match=r"key\.json is damaged or was edited"):
        growing(folder, "b")


def test_damage_in_a_cache_that_grows_takes_only_the_part_that_has_it(tmp_path: Path) -> None:
    one = growing(tmp_path / "made")
    for first in (0, 4, 8):
        one.put(first, columns_of(range(first, first + 4)))
    path, row = tmp_path / "made" / "count.rows", 8
    content = bytearray(path.read_bytes())
    content[5 * row] ^= 1
    path.write_bytes(content)
    told: list[str] = []
    again = growing(tmp_path / "made", say=told.append)
    assert again.missing(0, 12) == [range(4, 8)]
    assert again.damaged == told and "00000004-00000008.part is damaged (count.rows was changed" in told[0]
    again.put(4, columns_of(range(4, 8)))
    assert np.array_equal(again.open(0, 12)["count"], columns_of(range(12))["count"])
    path.write_bytes(path.read_bytes()[: 9 * row])  # cut short
    assert growing(tmp_path / "made").missing(0, 12) == [range(8, 12)]


def test_rows_of_an_older_kuosan_are_taken_over_once_and_damaged_ones_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    for first, stop in ((0, 3), (3, 5)):
        np.savez(folder / f"{first}.npz", **columns_of(range(first, stop)))
    (folder / "7.npz").write_bytes((folder / "3.npz").read_bytes()[:-40])
    (folder / "notes.txt").write_text("mine")

    def read(path: Path) -> tuple[int, dict[str, np.ndarray], float]:
        with np.load(io.BytesIO(path.read_bytes())) as kept:
            return int(path.stem), dict(kept), 2.0

    one = growing(folder)
    one.adopt("*.npz", read)
    assert one.missing(0, 6) == [range(5, 6)] and is_whole_of(one, 5)
    assert [each.seconds for each in one.parts()] == [2.0, 2.0]
    assert len(one.damaged) == 1 and "7.npz is damaged" in one.damaged[0]
    assert not list(folder.glob("*.npz")) and (folder / "notes.txt").read_text() == "mine"
    again = growing(folder)
    again.adopt("*.npz", read)
    assert is_whole_of(again, 5) and again.damaged == []


def is_whole_of(one: RowCache, count: int) -> bool:
    return all(np.array_equal(array, columns_of(range(count))[name]) for name, array in one.open(0, count).items())
