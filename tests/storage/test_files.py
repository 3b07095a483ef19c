"""Atomic writing, folders with a manifest, the run's lock and the log."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kuosan.errors import Error
from kuosan.storage import files, manifest
from kuosan.storage.log import Log


def fill(folder: Path, text: str = "one") -> Path:
    with files.staged(folder) as staging:
        (staging / "a.txt").write_text(text)
        (staging / "inner").mkdir()
        (staging / "inner" / "b.bin").write_bytes(bytes(range(256)))
    return folder


def test_an_atomic_write_replaces_the_file_leaves_nothing_beside_and_obeys_the_umask(tmp_path):
    path = tmp_path / "deep" / "er" / "x.yaml"
    old = os.umask(0o027)
    try:
        files.write_atomic(path, "eins")
        files.write_atomic(path, "zwei ä".encode())
    finally:
        os.umask(old)
    assert path.read_text() == "zwei ä"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.yaml"]
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_failed_atomic_write_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "x.yaml"
    files.write_atomic(path, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        Error, match=r"cannot write .*x\.yaml: no space is left on the disk \(3 bytes needed, .* free\)"
    ) as e:
        files.write_atomic(path, "new")
    assert e.value.exit_code == 74
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_staged_folder_appears_whole_with_its_manifest(tmp_path):
    folder = tmp_path / "made" / "folder"
    with files.staged(folder) as staging:
        (staging / "a.txt").write_text("one")
        assert staging.parent == folder.parent and staging.name.startswith(files.PARTIAL)
        assert not folder.exists()
    assert [entry.name for entry in folder.parent.iterdir()] == ["folder"]
    body = json.loads((folder / "manifest.json").read_text())
    assert body["format"] == 1
    assert body["files"] == {
        "a.txt": {"size": 3, "sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"}
    }
    files.verify(folder)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_while_staging_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    folder = fill(tmp_path / "folder")
    with pytest.raises(error), files.staged(folder) as staging:
        (staging / "a.txt").write_text("two")
        raise error
    files.verify(folder)
    assert (folder / "a.txt").read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_staging_over_a_folder_exchanges_it(tmp_path):
    folder = fill(tmp_path / "folder")
    fill(folder, "two")
    files.verify(folder)
    assert (folder / "a.txt").read_text() == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_file_system_that_cannot_exchange_names_gets_two_renames(tmp_path, monkeypatch):
    folder = fill(tmp_path / "folder")
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())  # a libc without renameat2
    fill(folder, "two")
    files.verify(folder)
    assert (folder / "a.txt").read_text() == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def spoil(folder: Path, how: str) -> None:
    a = folder / "a.txt"
    match how:
        case "flip":
            a.write_text("onf")
        case "cut":
            a.write_text("on")
        case "gone":
            a.unlink()
        case "extra":
            (folder / "inner" / "c.txt").write_text("c")
        case "link":
            a.rename(folder.parent / "elsewhere")
            a.symlink_to(folder.parent / "elsewhere")
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "manifest edited":
            text = (folder / "manifest.json").read_text()
            (folder / "manifest.json").write_text(text.replace('"size": 3', '"size": 4'))


@pytest.mark.parametrize(
    "how, words",
    [
        ("flip", r"a\.txt is damaged or was edited: its sha256 is"),
        ("cut", r"a\.txt is damaged: 2 bytes instead of 3"),
        ("gone", r"a\.txt is missing"),
        ("extra", r"inner/c\.txt is not in its manifest"),
        ("link", r"a\.txt is not a plain file"),
        ("no manifest", r"manifest\.json is missing"),
        ("manifest edited", r"manifest\.json is damaged"),
    ],
)
def test_damage_is_named_with_the_file_and_how(tmp_path, how, words):
    folder = fill(tmp_path / "folder")
    files.verify(folder)
    spoil(folder, how)
    with pytest.raises(Error, match=rf"{folder}.*{words}"):
        files.verify(folder)


def test_a_desktops_hidden_file_does_no_harm(tmp_path):
    folder = fill(tmp_path / "folder")
    (folder / ".DS_Store").write_text("x")
    files.verify(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"sha256": 1, "files": 3}'])
def test_any_nonsense_for_a_manifest_is_an_error(tmp_path, content):
    folder = fill(tmp_path / "folder")
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(Error, match=r"manifest\.json is damaged"):
        files.verify(folder)


def test_a_newer_format_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", 2)
    folder = fill(tmp_path / "folder")
    monkeypatch.undo()
    with pytest.raises(Error, match="written in format 2, this kuosan reads 1; update kuosan"):
        files.verify(folder)


def test_too_little_room_is_refused_before_anything_is_written(tmp_path):
    words = r"no room for .*folder: .* TB needed, .* free; free some space"
    with pytest.raises(Error, match=words), files.staged(tmp_path / "folder", needed=1 << 60):
        raise AssertionError("the block must not run")
    assert list(tmp_path.iterdir()) == []
    files.room_for(tmp_path / "not" / "there" / "yet", 1)


def test_a_read_only_disk_and_missing_permission_are_named(tmp_path):
    script = (
        f"mount -t tmpfs -o size=1m x {tmp_path} && mount -o remount,ro {tmp_path} && exec {sys.executable} -c "
        f'\'from kuosan.storage import files; files.write_atomic("{tmp_path}/x", b"1")\''
    )
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody but root mount a small disk")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, env=env)
    assert "the file system is read-only" in done.stderr and f"{tmp_path}/x" in done.stderr
    with pytest.raises(Error, match=r"cannot write .*/x: permission is denied"), files.explained(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "Permission denied")


HOLD = """
import sys, time
from kuosan.storage.files import Lock
lock = Lock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_on_a_run_is_refused_by_name_until_the_first_dies(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env=env, text=True)
    try:
        assert first.stdout and first.stdout.readline() == "held\n"
        with pytest.raises(Error, match=rf"{tmp_path} is in use by process {first.pid} on .*; wait for it, stop it"):
            files.Lock(tmp_path)
    finally:
        first.kill()
        first.communicate()
    with files.Lock(tmp_path) as lock:
        assert lock.held
        with pytest.raises(Error, match=f"process {os.getpid()}"):
            files.Lock(tmp_path)
    files.Lock(tmp_path).release()


def test_a_worker_that_outlives_a_run_does_not_keep_its_lock(tmp_path):
    lock = files.Lock(tmp_path)
    reader, writer = os.pipe()
    born, birth = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(writer)
        os.write(birth, b"x")
        os.read(reader, 1)  # returns when the parent closes its end
        os._exit(0)
    try:
        os.read(born, 1)
        lock.release()
        with files.Lock(tmp_path) as again:
            assert again.held
    finally:
        os.close(writer)
        os.waitpid(worker, 0)
        for handle in (reader, born, birth):
            os.close(handle)


def rows(path: Path) -> list[int]:
    return [row["step"] for row in Log(path).rows()]


def test_a_log_resumed_from_a_step_has_no_row_twice_and_none_missing(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    log = Log(path)
    for step in range(1, 8):
        log.append({"step": step, "loss": 1 / step})
        if step == 5:
            log.append({"step": step, "held_out": 0.5})
    log.flush()
    resumed = Log(path)
    resumed.truncate_after(5)
    for step in range(6, 10):
        resumed.append({"step": step, "loss": 1 / step})
    resumed.close()
    assert rows(path) == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    assert [row["loss"] for row in Log(path).rows() if "loss" in row] == [1 / step for step in range(1, 10)]
    Log(path).truncate_after(0)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b"\0" * 40, b'{"step": 3}\n\0\0\0\n\0\0\0'])
def test_a_torn_last_line_is_cut_off_on_opening(tmp_path, tail):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    log = Log(path)
    log.truncate_after(2)
    log.append({"step": 3})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n{"stxp": 2}\n{"step": 3}\n')
    with pytest.raises(Error, match=r"log\.jsonl, line 2 is damaged"):
        rows(path)
    assert path.read_bytes() == b'{"step": 1}\n{"stxp": 2}\n{"step": 3}\n'


def test_where_a_run_goes_on_a_damaged_line_in_the_middle_is_named_and_the_file_kept_beside(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(damaged := b'{"step": 1}\n{"stxp": 2}\n{"step": 3}\n')
    said = Log(path).truncate_after(2)
    assert said is not None and "log.jsonl: line 2 damaged" in said and "log.damaged.jsonl" in said
    assert (tmp_path / "log.damaged.jsonl").read_bytes() == damaged
    assert rows(path) == [1]


def test_what_is_not_finite_is_null_in_the_log(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.append({"step": 1, "loss": float("nan"), "held_out": {"by_noise": [1.0, float("inf")]}})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "loss": null, "held_out": {"by_noise": [1.0, null]}}\n'


def test_a_row_that_fails_halfway_leaves_the_log_whole(tmp_path, monkeypatch):
    log = Log(tmp_path / "log.jsonl")
    log.append({"step": 1})
    write = os.write

    def half(handle: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", full)
        return write(handle, data[: len(data) // 2])

    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(Error, match=r"log\.jsonl: no space is left"):
        log.append({"step": 2})
    monkeypatch.undo()
    log.append({"step": 2})
    assert rows(tmp_path / "log.jsonl") == [1, 2]
