"""kill -9 at random instants, half inside saves, or a disk full from any operation on; then the same start again:
nothing is different, nothing lost.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.harness import build
from kuosan import checkpoint
from train.killing import Killer
from train.made_runs import differences, outcome


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    shim = build(tmp_path_factory.mktemp("shim"))
    if shim is None:
        pytest.skip("no C compiler for the failing file system")
    memory = Path("/dev/shm")  # what SIGKILL leaves is the same there; what power cuts leave, test_files.py says
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None, prefix="kuosan-kills-"))
    made = Killer(folder, shim)
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize("count", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_end_bit_for_bit_as_the_unkilled_one(killer: Killer, count: int) -> None:
    trials = [killer.trial(number) for number in range(count)]
    assert sum(trial.kills for trial in trials) >= count, "the kills hit"
    assert sum(trial.inside for trial in trials) > 0.3 * count, "some of them inside saves"
    assert [trial for trial in trials if trial.different or trial.lost] == []


def full_from(killer: Killer, at: int, mode: str) -> None:
    """Fail every operation of the run's folder from number `at` on; then start again without faults."""
    out = killer.folder / f"{mode}-{at}"
    ended = killer.run(out, "own", prefix=out, at=at, mode=mode)
    assert ended.status in (0, 74), ended.output
    said = next(entry for entry in ended.notes if "said" in entry)
    if ended.status == 74:
        assert "Traceback" not in ended.output
        assert str(out) in said["error"]
    completed = max([entry["saved"] for entry in ended.notes if "saved" in entry], default=-1)
    if completed >= 0:
        path = checkpoint.latest(out).path
        assert path is not None and checkpoint.step_of(path) >= completed
    assert killer.run(out, "own").status == 0
    assert not differences(outcome(out), killer.whole["own"]), f"{mode} at {at}"
    shutil.rmtree(out)


def operations(killer: Killer) -> int:
    counted = killer.run(killer.folder / "counted", "own", prefix=killer.folder / "counted")
    shutil.rmtree(killer.folder / "counted")  # else the next count is of a run that is done
    return len(counted.ops)


def test_a_disk_full_from_some_operation_on_costs_no_bit(killer: Killer) -> None:
    total = operations(killer)
    for at in range(1, total, total // 9):
        full_from(killer, at, "enospc")
    for at in range(2, total, total // 5):
        full_from(killer, at, "eio")


@pytest.mark.slow
def test_a_disk_full_from_any_operation_on_costs_no_bit(killer: Killer) -> None:
    for at in range(1, operations(killer) + 1):
        full_from(killer, at, "enospc")
