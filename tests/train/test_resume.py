"""A run that is stopped and started again is the run that was not: every bit of its weights, averages and losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from train.made_runs import OwnNetwork, Stopping, differences, go, images, outcome

KINDS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "accumulating, mirrored, moved, dropping out": {
        "train.micro_batch": 2,
        "data.flip": "true",
        "data.resize": "random_crop",
        "data.size": 16,
        "model.network.dropout": 0.2,
        "train.lr_shape": "cosine",
        "train.weight_decay": 0.1,
        "compute.precision": "bf16",
    },
    "a module of one's own": {"train.micro_batch": 3, "train.ema": 0.05},
}


def network_of(kind: str) -> torch.nn.Module | None:
    return OwnNetwork() if "own" in kind else None


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz", size=24)
    n = 12
    settings = {"data.size": 8, **KINDS[kind], "train.max_steps": n}
    seen: list[Any] = []
    assert go(tmp_path / "whole", data, settings, network=network_of(kind), seen=seen) == 0
    whole = outcome(tmp_path / "whole")
    assert len({row["loss"] for row in whole["rows"]}) == n
    for k in range(1, n) if "own" in kind else (2, 5, 9):  # at a save's eve, after one, in between
        out, again = tmp_path / f"at-{k}", list[Any]()
        stopping = Stopping(k)
        assert go(out, data, settings, network=network_of(kind), report=stopping, seen=again) == stopping.number
        taken = outcome(out)["step"]
        assert k <= taken <= k + 1, "it stops at once, or after the step in progress"
        assert go(out, data, settings, network=network_of(kind), seen=again) == 0
        assert again == seen, "images, levels and noise in the same order"
        assert not differences(outcome(out), whole), f"stopped at {k}"


@pytest.mark.slow
def test_a_longer_run_goes_on_bit_for_bit_from_each_of_24_steps(tmp_path: Path) -> None:
    data, settings = images(tmp_path / "pictures.npz"), {"train.max_steps": 24}
    go(tmp_path / "whole", data, settings)
    for k in range(24):
        assert go(tmp_path / f"at-{k}", data, settings, report=Stopping(k)) or k == 0
        go(tmp_path / f"at-{k}", data, settings)
        assert not differences(outcome(tmp_path / f"at-{k}"), outcome(tmp_path / "whole")), k


def test_five_resumes_in_a_row_leave_no_trace(tmp_path: Path) -> None:
    data, settings = images(tmp_path / "pictures.npz"), {"train.max_steps": 14}
    go(tmp_path / "whole", data, settings)
    for k in (1, 3, 6, 9, 12):
        assert go(tmp_path / "five", data, settings, report=Stopping(k))
    assert go(tmp_path / "five", data, settings) == 0
    assert not differences(outcome(tmp_path / "five"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize("shape", ["constant", "inverse_sqrt", "cosine"])
def test_a_run_in_two_halves_is_the_run_in_one(shape: str, tmp_path: Path) -> None:
    """Made longer on the way where the rate asks for no end; of a cosine, with its end named from the start."""
    data = images(tmp_path / "pictures.npz")
    settings = {"train.max_steps": 10, "train.evaluate_every": 5, "train.lr_shape": shape}
    go(tmp_path / "whole", data, settings)
    report = Stopping()
    if shape == "cosine":
        assert go(tmp_path / "halves", data, settings, report=Stopping(5)) == Stopping().number
        assert outcome(tmp_path / "halves")["step"] in (5, 6), "after the step in progress"
        go(tmp_path / "halves", data, settings, report=report)
        assert not any("train.max_steps:" in line for line in report.said)
    else:
        go(tmp_path / "halves", data, {**settings, "train.max_steps": 5})
        go(tmp_path / "halves", data, settings, report=report)
        assert "train.max_steps: 5 -> 10" in report.said, "and of no jump"
    assert not differences(outcome(tmp_path / "halves"), outcome(tmp_path / "whole"))


def test_a_cosine_that_is_made_longer_says_so_and_takes_the_longer_ones_rates(tmp_path: Path) -> None:
    """As docs/training.md promises of the usual rate: a jump at the step where it goes on, and that is said."""
    data, report = images(tmp_path / "pictures.npz"), Stopping()
    go(tmp_path / "whole", data, {"train.max_steps": 8})
    go(tmp_path / "longer", data, {"train.max_steps": 6})
    go(tmp_path / "longer", data, {"train.max_steps": 8}, report=report)
    [said] = [line for line in report.said if "train.max_steps:" in line]
    assert "6 -> 8" in said and "cosine over 8 steps, a jump from 6's" in said
    rates, wanted = ([row["lr"] for row in outcome(tmp_path / run)["rows"]] for run in ("longer", "whole"))
    cosines = {n: [1e-3 * 0.5 * (1 + math.cos(math.pi * k / (n - 3))) for k in range(n - 3)] for n in (6, 8)}
    warm = [1e-3 / 3, 2e-3 / 3, 1e-3]  # made_runs says how many steps
    assert wanted == pytest.approx(warm + cosines[8])
    assert rates == pytest.approx(warm + cosines[6] + cosines[8][3:])


def test_training_leaves_torchs_own_generator_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    data = images(tmp_path / "pictures.npz")
    go(tmp_path / "run", data, {"train.max_steps": 3, "model.network.dropout": 0.5})
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_drawn_anew_each_step_part_and_seed_and_the_same_again(tmp_path: Path) -> None:
    """The layers' stream depends on all of its key, and on nothing else."""
    from kuosan.train import saving
    from kuosan.train.loop import key_layers
    from train.made_runs import begin

    run = begin(tmp_path / "run", images(tmp_path / "pictures.npz"), {"train.max_steps": 3})

    def drawn(step: int, part: int, retry: int) -> float:
        run.state.step, run.batches.retry = step, retry
        key_layers(run, part)
        return float(torch.rand(()))

    with torch.random.fork_rng():
        keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
        assert len({drawn(*key) for key in keys}) == len(keys)
        torch.manual_seed(99)
        assert drawn(0, 0, 0) == drawn(0, 0, 0)
    saving.close(run)


def test_the_estimate_before_a_run_leaves_no_trace(tmp_path: Path) -> None:
    from kuosan.train import api
    from kuosan.train.loop import measure
    from train.made_runs import begin

    data, settings = images(tmp_path / "pictures.npz"), {"train.max_steps": 4}
    go(tmp_path / "plain", data, settings, network=OwnNetwork())
    run = begin(tmp_path / "measured", data, settings, network=OwnNetwork())
    assert measure(run).seconds > 0
    api.train(run)
    assert not differences(outcome(tmp_path / "measured"), outcome(tmp_path / "plain"))
