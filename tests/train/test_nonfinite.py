"""NaN and infinity, wherever they come from: the step is skipped, nothing of it stays, and too many lead back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kuosan import Error
from kuosan.storage import checkpoint
from kuosan.storage.log import Log
from kuosan.train import api, loop, saving
from kuosan.train.batches import BatchStream
from kuosan.train.state import Run
from train.made_runs import OwnNetwork, Stopping, begin, differences, digest, go, images, outcome

SETTINGS = {"train.max_steps": 9, "train.evaluate_every": 0, "train.bad_steps": 2, "train.save_every": 3}
BAD = (math.nan, math.inf, -math.inf)


def into_batch(run: Run, drawn: Any, value: float) -> None:
    drawn.batch.x0[1, 0, 2, 2] = value


def into_noise(run: Run, drawn: Any, value: float) -> None:
    drawn.eps[0, 0, 0, 0] = value


def everything(run: Run) -> dict[str, str]:
    """Every bit that training changes."""
    optimizer = {
        f"{i}.{name}": digest(value)
        for i, state in enumerate(run.state.optimizer.state.values())
        for name, value in state.items()
    }
    network = {name: digest(value) for name, value in run.state.network.state_dict().items()}
    return {**network, **optimizer, "ema": digest(run.state.ema.values), "updates": str(run.state.ema.updates)}


def watch(run: Run, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[int, Any], float | None]) -> None:
    """Spoil what `spoil(step, drawn)` will; a step it spoils must leave every bit as it was."""
    backward, update = loop.backward, loop.update
    before: dict[int, dict[str, str]] = {}

    def spoiled(run: Run, drawn: Any) -> torch.Tensor:
        before[run.state.step] = everything(run)
        loss = spoil(run.state.step, drawn)
        real = backward(run, drawn)
        late = spoil(-1 - run.state.step, drawn)
        return next((real * value for value in (late, loss) if value is not None), real)

    def checked(run: Run, loss: float, norm: float) -> dict[str, Any]:
        step = run.state.step
        row = update(run, loss, norm)
        if "skipped" in row:
            assert everything(run) == before[step], f"the bad step {step} left something"
            assert not run.state.parameters.grads.any()
        else:
            assert everything(run) != before[step]
        return row

    monkeypatch.setattr(loop, "backward", spoiled)
    monkeypatch.setattr(loop, "update", checked)
    monkeypatch.setattr(api, "draw", lambda rows, path: None)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("where", ["batch", "noise", "loss", "gradient"])
def test_a_bad_step_is_skipped_and_leaves_every_bit(
    where: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Stopping()
    network = OwnNetwork()
    data = images(tmp_path / "pictures.npz")
    run = begin(tmp_path / "run", data, SETTINGS, network=network, report=report)

    def spoil(step: int, drawn: Any) -> float | None:
        if step in (1, 6):
            if where == "batch":
                into_batch(run, drawn, value)
            if where == "noise":
                into_noise(run, drawn, value)
            if where == "loss":
                return value
        if -1 - step in (1, 6) and where == "gradient":
            run.state.parameters.grads[17] = value
        return None

    watch(run, monkeypatch, spoil)
    assert api.train(run) == 0
    rows = list(Log(tmp_path / "run" / "log.jsonl").rows())
    assert [row["step"] for row in rows if "skipped" in row] == [2, 7]
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert run.state.skipped == 2 and run.state.retry == 0 and run.state.ema.updates == 7
    assert sum("was skipped" in line for line in report.said) == 2


def test_too_many_bad_steps_return_to_the_last_good_save_with_other_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, noises = Stopping(), list[tuple[int, int, str]]()
    run = begin(tmp_path / "run", images(tmp_path / "pictures.npz"), SETTINGS, report=report, network=OwnNetwork())

    def spoil(step: int, drawn: Any) -> float | None:
        if step >= 0:
            noises.append((step, run.state.retry, digest(drawn.eps)))
        return math.nan if step in (4, 5) and run.state.retry == 0 else None

    watch(run, monkeypatch, spoil)
    assert api.train(run) == 0
    assert [(step, retry) for step, retry, _ in noises] == [
        *[(step, 0) for step in range(6)],
        *[(step, 1) for step in range(3, 9)],
    ]
    by_retry = {(step, retry): noise for step, retry, noise in noises}
    assert by_retry[3, 0] != by_retry[3, 1], "the same images, other noise"
    assert any("back to the save of step 3, with other noise" in line for line in report.said), report.said
    assert outcome(tmp_path / "run")["state"]["retry"] == 1
    assert outcome(tmp_path / "run")["state"]["skipped"] == 2


def test_a_spoiled_weight_is_caught_the_same_step_and_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path / "run", images(tmp_path / "pictures.npz"), SETTINGS, network=OwnNetwork())

    def spoil(step: int, drawn: Any) -> float | None:
        if step == 4 and run.state.retry == 0:
            run.state.parameters.values[3] = math.nan
        return None

    backward = loop.backward

    def spoiled(run: Run, drawn: Any) -> torch.Tensor:
        spoil(run.state.step, drawn)
        return backward(run, drawn)

    monkeypatch.setattr(loop, "backward", spoiled)
    monkeypatch.setattr(api, "draw", lambda rows, path: None)
    assert api.train(run) == 0
    assert run.state.retry == 1 and run.state.skipped == 2
    for path in checkpoint.checkpoints(tmp_path / "run"):
        saved = checkpoint.load(path)
        assert all(torch.isfinite(value).all() for value in saved.network.values() if value.is_floating_point())


def test_a_signal_amid_bad_steps_does_not_move_where_they_return_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save that a signal makes is none to return to: else an interrupted run would end elsewhere."""
    backward = loop.backward

    def spoiled(run: Run, drawn: Any) -> torch.Tensor:
        losses = backward(run, drawn)
        return losses * math.nan if run.state.step in (5, 6, 7) and run.state.retry == 0 else losses

    monkeypatch.setattr(loop, "backward", spoiled)
    data, settings = images(tmp_path / "pictures.npz"), SETTINGS | {"train.bad_steps": 3}
    go(tmp_path / "whole", data, settings, network=OwnNetwork())
    for at in (3, 5):
        assert go(tmp_path / "stopped", data, settings, network=OwnNetwork(), report=Stopping(at))
    assert go(tmp_path / "stopped", data, settings, network=OwnNetwork()) == 0
    assert outcome(tmp_path / "whole")["state"]["retry"] == 1
    assert not differences(outcome(tmp_path / "stopped"), outcome(tmp_path / "whole"))


def test_three_returns_without_progress_are_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Stopping()
    run = begin(tmp_path / "run", images(tmp_path / "pictures.npz"), SETTINGS, report=report, network=OwnNetwork())
    backward = loop.backward

    def spoiled(run: Run, drawn: Any) -> torch.Tensor:
        return backward(run, drawn) * (math.nan if run.state.step >= 4 else 1)

    monkeypatch.setattr(loop, "backward", spoiled)
    with pytest.raises(Error, match=r"after 3 returns to the save of step 3, which is untouched\. Lower --train\.lr"):
        api.train(run)
    assert run.state.retry == loop.MOST_RETURNS
    saved = checkpoint.load(tmp_path / "run")
    assert saved.step == 3 and not saved.damaged
    assert run.lock is not None and run.lock._handle == -1, "the run is free for others"


def test_no_save_is_due_while_steps_are_bad(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", images(tmp_path / "pictures.npz"), SETTINGS, network=OwnNetwork())
    run.state.step, run.state.bad = 3, 1
    assert not saving.is_due(run)
    run.state.step, run.state.bad = 4, 0
    assert saving.is_due(run), "but at the next good step"
    run.tried_at = 4
    assert not saving.is_due(run), "and once"
    saving.close(run)


@pytest.mark.parametrize("at", [4, 6], ids=["at once", "after two steps"])
def test_a_data_error_after_a_return_goes_on_there_and_not_from_the_save_that_was_given_up(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saves of 4, which was due, and of 7, where the run was interrupted; back to 4; no image at step `at`."""
    backward, ahead, failing = loop.backward, BatchStream.ahead, [False]

    def spoiled(run: Run, drawn: Any) -> torch.Tensor:
        return backward(run, drawn) * (math.nan if run.state.step == 7 and run.state.retry == 0 else 1)

    def broken(draws: BatchStream, step: int, last: int) -> Iterator[Any]:
        for i, drawn in enumerate(ahead(draws, step, last), start=step):
            if failing[0] and draws.retry == 1 and i == at:
                raise Error("an image is gone.")
            yield drawn

    monkeypatch.setattr(loop, "backward", spoiled)
    monkeypatch.setattr(BatchStream, "ahead", broken)
    data, settings = images(tmp_path / "pictures.npz"), SETTINGS | {"train.bad_steps": 1, "train.save_every": 4}
    go(tmp_path / "whole", data, settings, network=OwnNetwork())
    assert go(tmp_path / "run", data, settings, network=OwnNetwork(), report=Stopping(6))
    assert checkpoint.load(tmp_path / "run").step == 7
    failing[0] = True
    with pytest.raises(Error, match=f"an image is gone. Step {at} is saved: the same command goes on there"):
        go(tmp_path / "run", data, settings, network=OwnNetwork())
    assert checkpoint.load(tmp_path / "run").step == at
    failing[0], report = False, Stopping()
    go(tmp_path / "run", data, settings, network=OwnNetwork(), report=report)
    assert any(f"going on from step {at}" in line for line in report.said), report.said
    assert not differences(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
