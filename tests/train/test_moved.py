"""A run whose folder is moved, deleted or replaced while it trains: it goes on there, or ends, and nothing is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kuosan import Error
from kuosan.storage import checkpoint
from kuosan.storage.files import Lock
from train.made_runs import OwnNetwork, Stopping, differences, go, images, outcome

SETTINGS = {"train.max_steps": 8, "train.evaluate_every": 0, "train.preview_every": 0}


class Acting(Stopping):
    """Does something to the run's folder after the step `at`."""

    def __init__(self, act: Callable[[], Any], at: int = 4) -> None:
        super().__init__()
        self.act, self.when = act, at

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """Act when its step was taken."""
        if row["step"] == self.when:
            self.act()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moved")
    go(folder / "whole", images(folder / "pictures.npz"), SETTINGS, network=OwnNetwork())
    return folder


def train(home: Path, out: Path, act: Callable[[], Any]) -> list[str]:
    report = Acting(act)
    assert go(out, home / "pictures.npz", SETTINGS, network=OwnNetwork(), report=report) == 0
    return report.said


def test_a_moved_run_is_gone_on_with_where_it_is(home: Path, tmp_path: Path) -> None:
    said = train(home, tmp_path / "run", lambda: (tmp_path / "run").rename(tmp_path / "elsewhere"))
    assert not (tmp_path / "run").exists()
    assert not differences(outcome(tmp_path / "elsewhere"), outcome(home / "whole"))
    assert sum("was moved to" in line and f"--out {tmp_path / 'elsewhere'}" in line for line in said) == 1, said


def test_a_folder_in_the_place_of_a_moved_run_is_left_alone(home: Path, tmp_path: Path) -> None:
    def replace() -> None:
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine.txt").write_text("a user's")

    train(home, tmp_path / "run", replace)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]
    assert not differences(outcome(tmp_path / "elsewhere"), outcome(home / "whole"))


def test_a_deleted_run_ends_and_is_not_made_again(home: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"run was deleted .* Step 6 is not saved") as raised:
        train(home, tmp_path / "run", lambda: shutil.rmtree(tmp_path / "run"))
    assert raised.value.exit_code == 74
    assert list(tmp_path.iterdir()) == []


def test_a_lost_lock_file_is_made_again_and_another_training_refused(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def lose() -> None:
        (out / ".lock").unlink()

    train(home, out, lose)
    assert (out / ".lock").is_file()
    assert not differences(outcome(out), outcome(home / "whole"))

    other: list[Lock] = []

    def take() -> None:
        (out / ".lock").unlink()
        other.append(Lock(out))

    shutil.rmtree(out)
    with pytest.raises(Error, match=r"in use by process .* Step 6 is not saved"):
        train(home, out, take)
    other[0].release()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_log_that_is_deleted_or_replaced_is_written_again(home: Path, tmp_path: Path, replaced: bool) -> None:
    log = tmp_path / "run" / "log.jsonl"

    def change() -> None:
        log.unlink()
        if replaced:
            log.write_text("an editor's copy\n")

    said = train(home, tmp_path / "run", change)
    assert not differences(outcome(tmp_path / "run"), outcome(home / "whole"))
    assert sum("it is written again" in line for line in said) == 1, said
    assert (log.with_name("log.damaged.jsonl").exists()) == replaced


def test_a_relative_run_follows_its_working_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train(home, Path("run"), lambda: os.rename(tmp_path / "here", tmp_path / "there"))
    assert checkpoint.load(tmp_path / "there" / "run", parts=()).step == 8
    assert not (tmp_path / "here").exists()
