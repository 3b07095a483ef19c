"""Nothing is written over that is not provably the same result; a part of a set never looks like the whole."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kuosan import outputs
from kuosan.errors import Error
from kuosan.files import staged, write_atomic

NAMES = ["a.png", "sheet.png"]


@pytest.fixture(autouse=True, params=["attributes", "a record"])
def marked_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where marks are kept: in extended attributes, or beside the files where there are none."""
    if request.param == "a record":

        def unsupported(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "setxattr", unsupported)
    return str(request.param)


def make(folder: Path, about: object = 1, content: str = "x", names: list[str] | None = None) -> None:
    with outputs.claimed(folder, "sample", about, names or NAMES) as output:
        for name in names or NAMES:
            write_atomic(output.folder / name, f"{name} {content}")


def made(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def test_the_same_result_may_be_written_again(tmp_path: Path) -> None:
    make(tmp_path / "out")
    make(tmp_path / "out", content="with other last bits")
    assert made(tmp_path / "out") == {name: f"{name} with other last bits" for name in NAMES}


def a_users_file(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.png").write_text("holiday")


def another_recipe(folder: Path) -> None:
    make(folder, about=2)


def edited(folder: Path) -> None:
    make(folder)
    (folder / "a.png").write_text("retouched")


def a_link(folder: Path) -> None:
    folder.mkdir()
    (folder.parent / "photo.png").write_text("holiday")
    (folder / "a.png").symlink_to(folder.parent / "photo.png")


def a_dead_link(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.png").symlink_to(folder.parent / "nowhere.png")


def a_folder_of_the_name(folder: Path) -> None:
    (folder / "a.png").mkdir(parents=True)


def ours_moved_aside_and_replaced(folder: Path) -> None:
    make(folder)
    (folder / "a.png").rename(folder / "kept.png")
    (folder / "a.png").write_text("holiday")


def another_verb(folder: Path) -> None:
    with outputs.claimed(folder, "restore", 1, NAMES) as output:
        write_atomic(output.folder / "a.png", "restored")


def a_damaged_record(folder: Path) -> None:
    make(folder)
    if (folder / outputs.RECORD).exists():
        (folder / outputs.RECORD).write_text('{"name": 3}\nnot json\n[1]\n{"name": "a.png"}\n')
    else:
        os.setxattr(folder / "a.png", outputs.MARK_NAME, b"[1, 2]")


IN_THE_WAY: list[Callable[[Path], None]] = [
    a_users_file, another_recipe, edited, a_link, a_dead_link, a_folder_of_the_name, ours_moved_aside_and_replaced,
    another_verb, a_damaged_record,
]  # fmt: skip


@pytest.mark.parametrize("case", IN_THE_WAY, ids=lambda case: case.__name__)
def test_what_is_not_provably_this_result_stays(case: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    case(folder)
    before = {path: (os.readlink(path) if path.is_symlink() else path.read_bytes())
              for path in tmp_path.rglob("*") if path.is_symlink() or path.is_file()}  # fmt: skip
    with pytest.raises(Error, match=r"a\.png.*nothing is written over: name another --out"):
        make(folder)
    after = {path: (os.readlink(path) if path.is_symlink() else path.read_bytes())
             for path in tmp_path.rglob("*") if path.is_symlink() or path.is_file()}  # fmt: skip
    assert after == before
    with outputs.claimed_unused(folder, "sample", 1, NAMES) as output:
        assert output.folder == tmp_path / "out-2"


@pytest.mark.parametrize("case", IN_THE_WAY, ids=lambda case: case.__name__)
def test_what_comes_in_the_way_while_a_result_is_made_stays(case: Callable[[Path], None], tmp_path: Path) -> None:
    case(tmp_path / "late")
    with (
        pytest.raises(Error, match="nothing is written over"),
        outputs.claimed(tmp_path / "out", "sample", 1, ["sheet.png"]) as output,
    ):
        (tmp_path / "late" / "a.png").rename(output.folder / "a.png")
        write_atomic(output.folder / "a.png", "new")


def test_other_files_of_a_folder_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "holiday.png").write_text("mine")
    make(tmp_path / "out")
    assert made(tmp_path / "out")["holiday.png"] == "mine"


@pytest.mark.parametrize("about", [1, [1, {"a": None}], "text"])
def test_a_part_of_a_set_says_so_until_it_is_whole(about: object, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), outputs.claimed(tmp_path / "out", "sample", about, NAMES) as output:
        write_atomic(output.folder / "a.png", "first")
        raise KeyboardInterrupt
    assert outputs.unfinished(tmp_path / "out") and set(made(tmp_path / "out")) == {"a.png", outputs.UNFINISHED}
    make(tmp_path / "out", about)
    assert not outputs.unfinished(tmp_path / "out") and set(made(tmp_path / "out")) == set(NAMES)


def test_a_write_that_never_came_leaves_the_older_result_known(tmp_path: Path, marked_by: str) -> None:
    make(tmp_path / "out")
    record = tmp_path / "out" / outputs.RECORD
    assert record.exists() == (marked_by == "a record")
    if record.exists():
        line = record.read_text().splitlines()[0]
        record.write_text(record.read_text() + line.replace('sha256": "', 'sha256": "f') + "\n" + line[:20])
    make(tmp_path / "out", content="again")


def test_a_users_file_of_the_markers_name_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / outputs.UNFINISHED).write_text("my symphony")
    make(tmp_path / "out")
    assert (tmp_path / "out" / outputs.UNFINISHED).read_text() == "my symphony"


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    held = """
import sys
from pathlib import Path
from kuosan import outputs
with outputs.claimed(Path(sys.argv[1]), "sample", 1, ["a.png"]):
    print("held", flush=True)
    sys.stdin.read()
"""
    words = [sys.executable, "-c", held, str(tmp_path / "out")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(Error, match="another process is writing into"):
            make(tmp_path / "out")
        with outputs.claimed_unused(tmp_path / "out", "sample", 1, NAMES) as output:
            assert output.folder.name == "out-2"
        other.communicate("")
    make(tmp_path / "out")


def test_what_is_no_folder_to_write_into_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "photo.png").write_text("mine")
    (tmp_path / "to-in").symlink_to(tmp_path / "in")
    for place, words in (("file", "is a file"), ("dead", "is a link to")):
        with pytest.raises(Error, match=words):
            make(tmp_path / place)
    for place in ("in", "to-in"):
        for read in ("in", "in/photo.png", "to-in/photo.png"):
            claim = outputs.claimed(tmp_path / place, "restore", 1, NAMES, inputs=[tmp_path / read])
            with pytest.raises(Error, match="holds the images that are read"), claim:
                pass
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(Error, match="permission is denied"):
        make(tmp_path / "out")


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make(tmp_path / "link")
    assert set(made(tmp_path / "real")) == set(NAMES)
    with pytest.raises(Error, match="nothing is written over"):
        make(tmp_path / "real", about=2)


def test_each_file_may_follow_from_something_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "b", "a"):
        with outputs.claimed(
            tmp_path / "out", "restore", "request", {"request": "request", f"{name}.png": name}
        ) as output:
            write_atomic(output.folder / "request", "request")
            write_atomic(output.folder / f"{name}.png", name)
            sheet = output.free("sheet.png", name)
            write_atomic(output.folder / sheet, f"sheet of {name}")
    assert made(tmp_path / "out") == {
        "a.png": "a", "b.png": "b", "request": "request", "sheet.png": "sheet of a", "sheet-2.png": "sheet of b",
    }  # fmt: skip
    claim = outputs.claimed(tmp_path / "out", "restore", "request", {"a.png": "another a"})
    with pytest.raises(Error, match=r"a\.png"), claim:
        pass


def test_a_single_file_is_written_over_only_by_the_same(tmp_path: Path) -> None:
    path = tmp_path / "again.png"
    outputs.new_file(path, lambda there: False)
    path.write_text("mine")
    outputs.new_file(path, lambda there: True)
    (tmp_path / "link.png").symlink_to(path)
    for place, same in ((path, False), (tmp_path / "link.png", True), (tmp_path, True)):
        with pytest.raises(Error, match="nothing is written over"):
            outputs.new_file(place, lambda there, same=same: same)  # type: ignore[misc]


def test_a_new_folder_takes_nobodys_place(tmp_path: Path) -> None:
    with pytest.raises(Error, match="there already"), staged(tmp_path / "out", new=True) as staging:
        (staging / "weights").write_text("ours")
        (tmp_path / "out").mkdir()  # another process was faster
        (tmp_path / "out" / "weights").write_text("theirs")
    assert (tmp_path / "out" / "weights").read_text() == "theirs"


@pytest.mark.parametrize(
    "home", ["~/photos", "~/photos/", "{}/photos", "~nobody-of-this-name/photos", "", "~/data.npz"]
)
def test_a_folder_that_is_read_is_known_by_every_way_to_name_it(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    (tmp_path / "data.npz").write_text("images")
    name = home.format(tmp_path)
    with contextlib.ExitStack() as stack:
        if os.path.isdir(os.path.expanduser(name)):
            stack.enter_context(pytest.raises(Error, match="holds the images that are read"))
        with outputs.named(str(tmp_path / "photos"), tmp_path / "usual", "evaluate", 1, NAMES, "", name):
            pass
    with outputs.named(str(tmp_path), tmp_path / "usual", "evaluate", 1, NAMES, name):
        pass  # beside what is read, as ever


def test_an_error_before_anything_is_written_leaves_no_folder(tmp_path: Path) -> None:
    for number, written in ((1, False), (2, True)):
        home = tmp_path / f"new{number}"
        with pytest.raises(Error, match="cannot"), outputs.claimed(home / "a" / "b", "sample", 1, NAMES) as output:
            if written:
                write_atomic(output.folder / NAMES[0], b"x")
            raise Error("it cannot be done")
        assert home.exists() == written
    (tmp_path / "mine").mkdir()
    with pytest.raises(Error, match="cannot"), outputs.claimed(tmp_path / "mine", "sample", 1, NAMES):
        raise Error("it cannot be done")
    assert (tmp_path / "mine").is_dir()
