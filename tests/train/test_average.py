"""The averaged weights against their closed form in float64, written here on its own; planted mistakes are caught."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kuosan import seeds
from kuosan.storage import checkpoint
from kuosan.train import api, loop
from kuosan.train.state import EMA, Run, exact, gamma_of
from train.made_runs import OwnNetwork, Stopping, begin, go, images, outcome

UPDATES = 10_000


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_gamma_is_the_published_one(width: float, gamma: float) -> None:
    """Karras et al. 2024, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert gamma_of(width) == pytest.approx(gamma, abs=0.005)


def closed_form(weights: np.ndarray, gamma: float) -> np.ndarray:
    """The average after each update: sum_k w_k p_n(k), p_n(k) = (1 - d_k) prod_{j>k} d_j, in logarithms; (N, D).

    prod_{j=k+1..n} (1 - 1/j)^(gamma+1) telescopes to (k/n)^(gamma+1).
    """
    k = np.arange(1, len(weights) + 1, dtype=np.float64)
    grown = k ** (gamma + 1) * (1 - (1 - 1 / k) ** (gamma + 1))
    return np.cumsum(grown[:, None] * weights, axis=0) / k[:, None] ** (gamma + 1)


def worst(make: Callable[[torch.Tensor], EMA]) -> float:
    """The largest relative difference from the closed form over 10,000 updates of a wandering float32 weight."""
    walk = seeds.rng(3, "test/walk").standard_normal((UPDATES, 5)).cumsum(0).astype(np.float32) * 0.01 + 1
    values = torch.zeros(5)
    ema = make(values)
    wanted = closed_form(walk.astype(np.float64), gamma_of(0.1))
    most = 0.0
    for n, weights in enumerate(walk):
        values.copy_(torch.from_numpy(weights))
        ema.update(values)
        most = max(most, float(np.abs(ema.values.numpy() / wanted[n] - 1).max()))
    return most


def test_the_average_is_its_closed_form_over_ten_thousand_updates() -> None:
    assert worst(lambda values: EMA(values, 0.1)) < 1e-6


class WrongPower(EMA):
    def decay(self, n: int) -> float:
        return (1 - 1 / n) ** self.gamma


class OffByOne(EMA):
    def decay(self, n: int) -> float:
        return super().decay(n + 1)


class Constant(EMA):
    def decay(self, n: int) -> float:
        return 0.999


class WarmedUp(EMA):
    def decay(self, n: int) -> float:
        return min(0.9999, (1 + n) / (10 + n))


class Swapped(EMA):
    def decay(self, n: int) -> float:
        return 1 - super().decay(n)


class Rounded(EMA):
    def update(self, values: torch.Tensor) -> None:
        super().update(values)
        self.values.copy_(self.values.float())


class Stale(EMA):
    def update(self, values: torch.Tensor) -> None:
        if self.updates % 100:
            super().update(values)
        else:
            self.updates += 1


@pytest.mark.parametrize("mistake", [WrongPower, OffByOne, Constant, WarmedUp, Swapped, Stale])
def test_mistakes_planted_in_the_average_are_caught(mistake: type[EMA]) -> None:
    assert worst(lambda values: mistake(values, 0.1)) > 1e-3


def test_an_average_kept_in_float32_drifts() -> None:
    assert worst(lambda values: Rounded(values, 0.1)) > 2 * worst(lambda values: EMA(values, 0.1))


def test_no_average_is_the_weights_themselves() -> None:
    values = torch.tensor([1.0, 2.0])
    ema = EMA(values, 0.0)
    values.add_(0.3)
    ema.update(values)
    assert torch.equal(ema.values.float(), values)


SETTINGS = {"train.max_steps": 8, "train.micro_batch": 2, "train.evaluate_every": 0, "train.lr": 0.01}


def trained(folder: Path, skip: int = -1) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The averaged state dict of a run as saved, and as the closed form has it of the raw weights after each step."""
    seen: list[np.ndarray] = []
    run = begin(folder / "run", images(folder / "pictures.npz"), SETTINGS, network=OwnNetwork())
    update = loop.update

    def watched(run: Run, loss: float, norm: float) -> dict[str, object]:
        row = update(run, math.nan if run.state.step == skip else loss, norm)
        if "skipped" not in row:
            seen.append(torch.cat([p.detach().flatten() for p in run.state.network.parameters()]).double().numpy())
        return row

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "update", watched)
        patched.setattr(api, "draw", lambda rows, path: None)
        api.train(run)
    flat = torch.from_numpy(closed_form(np.stack(seen), gamma_of(0.1))[-1])
    wanted, begin_ = {}, 0
    for name, p in run.state.network.named_parameters():
        wanted[name] = flat[begin_ : begin_ + p.numel()].view(p.shape)
        begin_ += p.numel()
    return checkpoint.load(folder / "run").ema, wanted


def farthest(saved: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    return max(float((saved[name].double() - value).abs().max() / value.abs().max()) for name, value in wanted.items())


@pytest.mark.parametrize("skip", [-1, 3])
def test_a_run_saves_the_closed_form_of_its_own_weights(skip: int, tmp_path: Path) -> None:
    """One update a step that was taken: none for a part of a batch, none for a skipped step."""
    saved, wanted = trained(tmp_path, skip)
    assert farthest(saved, wanted) < 1e-6
    assert torch.equal(saved["again.weight"], saved["middle.weight"]), "a shared weight is averaged under both names"
    assert float((saved["middle.weight"] - checkpoint.load(tmp_path / "run").network["middle.weight"]).abs().max()) > 0


def test_mistakes_planted_in_the_loop_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update, backward = loop.update, loop.backward

    def twice(run: Run, loss: float, norm: float) -> dict[str, object]:
        row = update(run, loss, norm)
        run.state.ema.update(run.state.parameters.values)
        return row

    def a_micro_step(run: Run, drawn: object) -> torch.Tensor:
        run.state.ema.update(run.state.parameters.values)
        return backward(run, drawn)  # type: ignore[arg-type]

    def before_the_step(run: Run, loss: float, norm: float) -> dict[str, object]:
        kept = run.state.parameters.values.clone()
        real, run.state.ema.update = run.state.ema.update, lambda values: real(kept)  # type: ignore[method-assign]
        try:
            return update(run, loss, norm)
        finally:
            run.state.ema.update = real  # type: ignore[method-assign]

    def of_skipped_ones(run: Run, loss: float, norm: float) -> dict[str, object]:
        row = update(run, loss, norm)
        if "skipped" in row:
            run.state.ema.update(run.state.parameters.values)
        return row

    for name, mistake in (
        ("update", twice),
        ("backward", a_micro_step),
        ("update", before_the_step),
        ("update", of_skipped_ones),
    ):
        folder = tmp_path / mistake.__name__
        folder.mkdir()
        with monkeypatch.context() as patched:
            patched.setattr(loop, name, mistake)
            assert farthest(*trained(folder, skip=3)) > 1e-5, mistake.__name__


def test_an_average_that_forgets_its_count_on_resume_would_be_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = images(tmp_path / "pictures.npz")
    go(tmp_path / "whole", data, SETTINGS, network=OwnNetwork())
    from kuosan.train.state import State

    restore = State.restore

    def forgetful(state: State, saved: checkpoint.Saved) -> None:
        restore(state, saved)
        state.ema.updates = 0

    monkeypatch.setattr(State, "restore", forgetful)
    go(tmp_path / "forgot", data, SETTINGS, network=OwnNetwork(), report=Stopping(3))
    go(tmp_path / "forgot", data, SETTINGS, network=OwnNetwork())
    assert outcome(tmp_path / "forgot") != outcome(tmp_path / "whole")


def test_a_device_without_float64_has_its_average_on_the_cpu() -> None:
    """Apple's GPUs raise a TypeError where a float64 tensor would be made on them."""
    held = torch.tensor([1.0, 0.1])
    apple = SimpleNamespace(device=torch.device("mps"), cpu=lambda: held)  # `.double()` would be an AttributeError
    assert torch.equal(exact(apple), held.double())  # type: ignore[arg-type]
    assert exact(held).dtype == torch.float64
