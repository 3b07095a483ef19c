"""A full disk never ends a training at once, and costs nothing: rows wait, saves are tried again, old ones stay."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kuosan import Error, checkpoint
from kuosan.journal import Log
from kuosan.train import saving
from train.made_runs import OwnNetwork, Stopping, differences, go, outcome, pictures

SETTINGS = {"train.max_steps": 10, "train.save_every": 2, "train.evaluate_every": 5, "train.preview_every": 4}
SETTINGS |= {"train.preview_pictures": 1, "train.preview_steps": 2}


class Disk:
    """Full while the training is at the steps given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full: range) -> None:
        self.full, self.failed = full, list[int]()
        save, append = checkpoint.save, Log.append

        def saved(run: Path, step: int, **parts: Any) -> Path:
            self.refuse(step)
            return save(run, step, **parts)

        def appended(log: Log, row: dict[str, Any]) -> None:
            self.now = max(self.now, row["step"])
            if self.now in self.full:
                raise Error("cannot write log.jsonl: no space is left on the disk.", exit_code=74)
            append(log, row)

        self.now = 0
        monkeypatch.setattr(checkpoint, "save", saved)
        monkeypatch.setattr(Log, "append", appended)
        monkeypatch.setattr(saving, "PAUSE", 0.0)

    def refuse(self, step: int) -> None:
        if step in self.full:
            self.failed.append(step)
            raise Error(f"cannot write step {step}: no space is left on the disk.", exit_code=74)


def refilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: range) -> tuple[Disk, Stopping]:
    disk, report = Disk(monkeypatch, full), Stopping()
    real = report.step

    def step(row: dict[str, Any], max_steps: int) -> None:
        disk.now = row["step"] + 1  # the next row meets the disk as it then is
        real(row, max_steps)

    report.step = step  # type: ignore[method-assign]
    go(tmp_path / "run", pictures(tmp_path / "pictures.npz"), SETTINGS, network=OwnNetwork(), report=report)
    return disk, report


def test_training_goes_on_over_a_full_disk_and_nothing_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        disk, report = refilled(tmp_path, patched, range(3, 6))
    assert disk.failed == [], "a save is not tried before the log has its rows"
    warnings = [line for line in report.said if line.startswith("warning")]
    assert sum("rows wait in memory" in line for line in warnings) == 1
    assert sum("the next save is tried in 2 steps" in line for line in warnings) == 1
    go(tmp_path / "whole", tmp_path / "pictures.npz", SETTINGS, network=OwnNetwork())
    assert not differences(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_three_failed_saves_in_a_row_end_the_run_with_exit_code_74(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Error, match="last good save, of step 2, is untouched") as e:
        refilled(tmp_path, patched, range(3, 99))
    assert e.value.exit_code == 74
    assert checkpoint.load(tmp_path / "run").step == 2
    go(tmp_path / "run", tmp_path / "pictures.npz", SETTINGS, network=OwnNetwork())
    go(tmp_path / "whole", tmp_path / "pictures.npz", SETTINGS, network=OwnNetwork())
    assert not differences(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_the_last_save_is_tried_three_times_and_its_failure_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Error, match="Step 10 is not saved") as e:
        refilled(tmp_path, patched, range(10, 99))
    assert e.value.exit_code == 74


def test_a_preview_or_curve_that_cannot_be_written_is_said_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kuosan.train import api, monitor

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    report, data = Stopping(), pictures(tmp_path / "pictures.npz")
    monkeypatch.setattr(monitor, "save_png", full)
    go(tmp_path / "run", data, SETTINGS, network=OwnNetwork(), report=report)
    assert sum("no preview of step" in line for line in report.said) == 3

    def broken(rows: Any, path: Path) -> None:
        raise Error("cannot write curve.png: no space is left on the disk.")

    from train.made_runs import begin

    monkeypatch.setattr(api, "draw", broken)
    assert api.train(begin(tmp_path / "run", data, SETTINGS, network=OwnNetwork(), report=report)) == 0
    assert "no curve" in report.said[-1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full_for_a_while_costs_no_bit(tmp_path: Path, small_disk: Path) -> None:
    report, data, ballast = Stopping(), pictures(tmp_path / "pictures.npz"), small_disk / "ballast"

    def step(row: dict[str, Any], max_steps: int) -> None:
        if row["step"] == 3:
            with contextlib.suppress(OSError), open(ballast, "wb") as stream:
                while True:
                    stream.write(bytes(4096))
                    stream.flush()
        if row["step"] == 5:
            ballast.unlink()

    report.step = step  # type: ignore[method-assign]
    go(small_disk / "run", data, SETTINGS, network=OwnNetwork(), report=report)
    warnings = [line for line in report.said if line.startswith("warning")]
    assert any("bytes free" in line or "kB free" in line for line in warnings), warnings
    go(tmp_path / "whole", data, SETTINGS, network=OwnNetwork())
    assert not differences(outcome(small_disk / "run"), outcome(tmp_path / "whole"))
