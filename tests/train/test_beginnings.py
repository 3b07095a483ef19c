"""kill -9 or a full disk before and inside a run's first save, by every trainer: the same command goes on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.harness import build
from shell import mostly_slow
from train.beginnings import TRAINERS, Beginner

# Where each trainer is killed, of the way to its first save.
SOME = dict(zip(TRAINERS, (0.07, 0.35, 0.9, 0.2, 0.6, 0.97, 0.5, 0.75), strict=True))
DEFAULT = [(trainer, SOME[trainer]) for trainer in ("pixels", "text", "autoencoder")]


@pytest.fixture(scope="module")
def beginner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beginner]:
    shim = build(tmp_path_factory.mktemp("shim"))
    if shim is None:
        pytest.skip("no C compiler for the failing file system")
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None, prefix="kuosan-begin-"))
    made = Beginner(folder, shim)
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize(("trainer", "part"), mostly_slow(SOME.items(), *DEFAULT))
def test_a_run_killed_before_its_first_save_goes_on_whatever_trains(
    beginner: Beginner, trainer: str, part: float
) -> None:
    trial = beginner.trial(trainer, round(beginner.begin(trainer) * part), "kill")
    assert trial.hit and not trial.different


def test_a_latent_run_goes_on_wherever_its_set_up_ended(beginner: Beginner) -> None:
    last = beginner.begin("latents")
    trials = [beginner.trial("latents", last * i // 6, mode) for i, mode in ((2, "enospc"), (3, "torn"), (4, "kill"))]
    assert all(trial.hit for trial in trials)
    assert [trial for trial in trials if trial.different] == []


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("mode", ["kill", "torn", "enospc"])
def test_a_run_goes_on_from_every_instant_before_its_first_save(beginner: Beginner, trainer: str, mode: str) -> None:
    trials = [beginner.trial(trainer, at, mode) for at in beginner.instants(trainer, 0)]
    assert [trial for trial in trials if trial.different] == []
