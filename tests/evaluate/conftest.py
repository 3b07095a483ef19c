"""Runs that several tests measure; each copies what it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from measured import folder, train

JUDGE = ("--objective", "classifier", "--no-noisy", "--max-steps", 40, "--lr", 3e-3)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 images of two classes: enough to hold out the 20 that memorisation is judged by."""
    return folder(tmp_path_factory.mktemp("evaluated") / "pictures", 150)


@pytest.fixture(scope="session")
def plain_run(data: Path) -> Path:
    """A model without classes."""
    return train(data.parent / "plain", data)


@pytest.fixture(scope="session")
def labelled_run(data: Path) -> Path:
    """A model that is told classes."""
    return train(data.parent / "labelled", data, "--labels")


@pytest.fixture(scope="session")
def judge_run(data: Path) -> Path:
    """A classifier of clean images."""
    return train(data.parent / "judge", data, *JUDGE)
