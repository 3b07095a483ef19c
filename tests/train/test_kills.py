"""kill -9 at random instants, half inside saves, then the same start again: nothing is different, nothing lost."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.harness import build
from train.killing import Killer

TRIALS = 20


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


def test_killed_runs_end_bit_for_bit_as_the_unkilled_one(killer: Killer) -> None:
    trials = [killer.trial(number) for number in range(TRIALS)]
    assert sum(trial.kills for trial in trials) >= 20, "the kills hit"
    assert sum(trial.inside for trial in trials) > 6, "some of them inside saves"
    assert [trial for trial in trials if trial.different or trial.lost] == []
