"""A data set whose items raise: named by item, and the state saved, so that the same call goes on there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kuosan import Error, fit, seeds
from kuosan.storage import checkpoint
from kuosan.train import saving
from train.made_runs import SMALL, Stopping, begin, differences, images, outcome

SETTINGS = {**SMALL, "train.max_steps": 8, "train.save_every": 100, "data.memory_gib": 0.0, "data.hold_out": 0.0}


class Items:
    """Twelve images; from the call number `after` on, each reading of an item in `bad` raises `error`."""

    def __init__(self, error: Exception | None = None, after: int = 0) -> None:
        self.error, self.after, self.calls = error, after, 0
        self.images = seeds.rng(0, "test/items").integers(0, 255, (12, 3, 8, 8)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        self.calls += 1
        if self.error is not None and self.calls > self.after:
            raise self.error
        return self.images[i]


ERRORS = [ValueError("broken pixel"), OSError(5, "Input/output error"), KeyError("x"), IndexError(), StopIteration()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_item_that_raises_at_the_first_look_is_named(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(Error, match=rf"item 0 of Items .*{type(error).__name__}"):
        fit(None, Items(error), tmp_path / "run", report=Stopping(), **SETTINGS)
    assert not (tmp_path / "run").exists()


def test_an_item_that_raises_later_costs_no_step(tmp_path: Path) -> None:
    whole = Items()
    fit(None, whole, tmp_path / "whole", report=Stopping(), **SETTINGS)
    after = whole.calls - 12  # some steps before the end
    with pytest.raises(Error, match=r"item \d+ of Items .*ValueError: broken pixel.* Step \d is saved") as raised:
        fit(None, Items(ValueError("broken\npixel"), after), tmp_path / "run", report=Stopping(), **SETTINGS)
    step = checkpoint.load(tmp_path / "run", parts=()).step
    assert 0 < step < 8 and f"Step {step} is saved" in str(raised.value)
    assert isinstance(raised.value.__cause__, Error | ValueError)
    report = Stopping()
    fit(None, Items(), tmp_path / "run", report=report, **SETTINGS)
    assert any(f"going on from step {step} " in line for line in report.said)
    assert not differences(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize("saved_at", [-1, 5], ids=["saved now", "saved before"])
@pytest.mark.parametrize("error", [ValueError("broken"), OSError(5, "disk"), Error("an image is gone")], ids=str)
def test_no_error_is_its_own_cause(error: Exception, saved_at: int, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", images(tmp_path / "images.npz"))
    run.saved_at, error = saved_at, type(error)(*error.args)  # a note stays on an error

    def failing() -> Iterator[Any]:
        yield None
        raise error

    try:
        with pytest.raises(type(error), match=re.escape(str(error))) as raised:
            list(saving.save_before_error(run, failing()))
    finally:
        saving.close(run)
    assert raised.value is error or raised.value.__cause__ is error
    assert raised.value.__cause__ is not raised.value and error.__cause__ is None
    said = [str(raised.value), *getattr(raised.value, "__notes__", [])]
    assert any("tep 0 is saved" in text for text in said) == (saved_at < 0)
