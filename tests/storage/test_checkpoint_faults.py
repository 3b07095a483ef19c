"""Saves under a failing file system: a crash, a torn write, an error or a full disk at every single operation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import harness, scenario
from kuosan.storage import checkpoint, files

SAVES = [2, 3, 4]  # on top of a first save at step 1: the last two delete an old one each


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: a kill means the same there, and fsync costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def shim(memory: Path) -> Path:
    (folder := memory / "shim").mkdir()
    library = harness.build(folder)
    if library is None:
        pytest.skip("fault tests need Linux and a C compiler (cc or gcc): none is here")
    return library


@pytest.fixture(scope="session")
def server(shim: Path) -> Iterator[harness.ForkServer]:
    server = harness.ForkServer(shim, ["torch", "faults.scenario"])
    yield server
    server.close()


@pytest.fixture
def run(memory: Path) -> Iterator[Path]:
    folder = memory / "run"
    checkpoint.save(folder, 1, **scenario.state_of(1))
    yield folder
    shutil.rmtree(folder)


def reset(run: Path) -> None:
    shutil.rmtree(run)
    checkpoint.save(run, 1, **scenario.state_of(1))


def check_after(run: Path, trial: harness.Outcome) -> None:
    """The last completed save (or a later one) is there bit for bit; the next save works and clears up."""
    completed = max([1] + [note["saved"] for note in trial.notes if "saved" in note])
    found = checkpoint.latest(run)
    assert found.path and not found.damaged
    assert checkpoint.step_of(found.path) >= completed
    assert scenario.same(checkpoint.load(run))
    checkpoint.save(run, 9, **scenario.state_of(9))
    assert scenario.same(checkpoint.load(run))
    left = sorted(path.name for path in (run / checkpoint.FOLDER).iterdir())
    assert len(left) == 2 and left[1] == "step-00000009" and left[0].startswith("step-"), left


def count(server: harness.ForkServer, run: Path) -> int:
    whole = server.run("faults.scenario:saves", run, SAVES, prefix=run)
    assert whole.status == 0 and whole.notes == [{"saved": step} for step in SAVES], whole.output
    return len(whole.ops)


@pytest.mark.parametrize("mode", ["kill", "torn"])
def test_a_crash_at_every_operation_of_three_saves_loses_no_completed_save(server, run, mode):
    total = count(server, run)
    assert total > 3 * 20
    for at in range(1, total + 1):
        reset(run)
        trial = server.run("faults.scenario:saves", run, SAVES, prefix=run, at=at, mode=mode)
        assert trial.status == harness.KILLED and len(trial.ops) == at
        check_after(run, trial)


def test_an_io_error_at_every_operation_is_named_and_the_next_save_works(server, run):
    total = count(server, run)
    failed = 0
    for at in range(1, total + 1):
        reset(run)
        trial = server.run("faults.scenario:saves", run, SAVES, prefix=run, at=at, mode="eio")
        assert trial.status == 0, trial.output
        for note in trial.notes:
            if "failed" in note:
                failed += 1
                assert "input/output error" in note["error"] and str(run) in note["error"], note
        assert sum("failed" in note for note in trial.notes) <= 1
        check_after(run, trial)
    assert failed == total  # every operation matters: none fails without a word


@pytest.mark.parametrize(
    "mode, words",
    [("enospc", "no space is left"), pytest.param("dead", "input/output error", marks=pytest.mark.slow)],
)
def test_a_disk_that_fails_from_any_operation_on_leaves_the_old_checkpoint_whole(server, run, mode, words):
    total = count(server, run)
    for at in range(1, total + 1):
        reset(run)
        trial = server.run("faults.scenario:saves", run, SAVES, prefix=run, at=at, mode=mode)
        assert trial.status == 0, trial.output
        errors = [note["error"] for note in trial.notes if "failed" in note]
        assert all(words in error and str(run / checkpoint.FOLDER / "step-") in error for error in errors), errors
        needs_space = mode == "dead" or any(op.name not in ("unlink", "rmdir") for op in trial.ops[at - 1 :])
        assert bool(errors) == needs_space
        if mode == "enospc" and errors:
            assert "free)" in errors[0]
        check_after(run, trial)


def unsynced(ops: list[harness.Op]) -> list[str]:
    """What a power cut could lose: names renamed before their content was fsynced, or never fsynced into the folder."""
    dirty: set[str] = set()
    faults = []
    pending = None  # the folder whose new name the disk does not have yet
    for op in ops:
        if pending and op.name == "fsync" and op.path == pending:
            pending = None
        elif pending:
            faults.append(f"{op.name} {op.path} before the fsync of {pending}")
            pending = None
        if op.name in ("open", "write", "pwrite", "writev", "ftruncate", "mkdir"):
            dirty |= {op.path, os.path.dirname(op.path)}
        elif op.name == "fsync":
            dirty.discard(op.path)
        elif op.name in ("rename", "exchange") and ".kuosan-partial-" not in op.to.rsplit("/", 1)[1]:
            inside = {path for path in dirty if path == op.path or path.startswith(op.path + "/")}
            faults += [f"{path} is not fsynced before its rename" for path in inside]
            pending = os.path.dirname(op.to)
    return faults + ([f"{pending} is never fsynced"] if pending else [])


def test_nothing_is_renamed_before_it_is_fsynced_and_the_folder_is_fsynced_next(server, run):
    trial = server.run("faults.scenario:saves", run, [*SAVES, 4], prefix=run)  # the last save exchanges
    assert sum(op.name == "exchange" for op in trial.ops) == 1
    assert sum(op.name == "rename" for op in trial.ops) == 3 + 2
    assert unsynced(trial.ops) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_trace_check_notices_a_missing_fsync(server, run, kind):
    ops = server.run("faults.scenario:saves", run, SAVES, prefix=run).ops
    ends = ".safetensors" if kind == "file" else checkpoint.FOLDER
    without = [op for op in ops if not (op.name == "fsync" and op.path.endswith(ends))]
    assert len(unsynced(without)) >= 3


def test_a_crash_while_a_checkpoint_is_replaced_keeps_one_of_the_two(server, run):
    whole = server.run("faults.scenario:saves", run, [1], prefix=run)
    assert any(op.name == "exchange" for op in whole.ops)
    for at in range(1, len(whole.ops) + 1):
        trial = server.run("faults.scenario:saves", run, [1], prefix=run, at=at, mode="torn")
        assert trial.status == harness.KILLED
        assert scenario.same(checkpoint.load(run))


def test_a_command_can_be_run_under_the_shim(shim, run):
    code = "import sys, pathlib; [pathlib.Path(sys.argv[1], str(i)).write_text('x') for i in range(9)]; print('end')"
    command = [sys.executable, "-c", code, str(run)]
    whole = harness.run_command(shim, command, prefix=run)
    assert whole.status == 0 and whole.output == "end\n" and [op.name for op in whole.ops] == ["open", "write"] * 9
    killed = harness.run_command(shim, command, prefix=run, at=6, mode="kill")
    assert killed.status == harness.KILLED and (run / "2").read_text() == ""
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert harness.run_command(shim, sleeping, prefix=run, kill_after=0.5).status == harness.KILLED


FULL = """
import sys, torch
from faults import scenario
from kuosan.errors import Error
from kuosan.storage import checkpoint, files
run, preflight = sys.argv[1], sys.argv[2] == "preflight"
if not preflight:
    files.room_for = lambda path, needed: None  # as if another program took the space meanwhile
state = scenario.state_of(1)
state["network"] = {"big": torch.ones(100_000)}
steps = []
for step in range(1, 9):
    try:
        checkpoint.save(run, step, **state, keep=8)
    except Error as error:
        print(error)
        break
    steps.append(step)
assert steps and steps[-1] < 8, steps
found = checkpoint.latest(run)
assert checkpoint.step_of(found.path) == steps[-1] and not found.damaged
checkpoint.load(run)
"""


@pytest.mark.parametrize("how", ["preflight", "midway"])
def test_a_real_disk_that_fills_up_keeps_the_last_save(tmp_path, how):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=2m kuosan {disk}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "sh", "-c", mount]).returncode:
        pytest.skip("this system lets nobody but root mount a small disk")
    script = f'{mount} && exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", script, "sh", sys.executable, "-c", FULL, str(disk / "run"), how]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = "no room for" if how == "preflight" else "no space is left"
    assert words in done.stdout and "needed" in done.stdout and "free" in done.stdout, done.stdout
    assert str(disk / "run") in done.stdout


def test_leftovers_of_a_crash_are_swept_but_a_save_in_progress_is_not(run):
    left = run / checkpoint.FOLDER / f"{files.PARTIAL}step-00000007-1"
    left.mkdir()
    (left / "config.yaml").write_text("half")
    with files.staged(run / checkpoint.FOLDER / "other") as staging:
        assert not left.exists()
        assert files.sweep(staging.parent) == [] and staging.is_dir()
    assert (run / checkpoint.FOLDER / "other" / "manifest.json").is_file()
