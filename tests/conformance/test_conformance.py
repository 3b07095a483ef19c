"""Every combination is sampled right or refused, as docs/conformance.md says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import budgets
import pytest
import torch
from combinations import (
    ROWS,
    SCHEDULES,
    STEPS,
    WINDOWS,
    Combination,
    Results,
    allowed,
    combinations,
    measure,
    refusal,
    some_cells,
)

from kuosan.diffusion import registry
from kuosan.diffusion.grids import SPACINGS
from kuosan.diffusion.schedule import Flow

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "conformance.md"


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "thorough"])
def results(request: pytest.FixtureRequest) -> Results:
    return measure(thorough=request.param)


def test_every_combination_is_sampled_or_refused_and_none_is_both(results: Results) -> None:
    assert len(results.matrix) == len(ROWS) * len(SCHEDULES) * len(SPACINGS)
    for combination, values in results.matrix.items():
        predictions, reasons = allowed(combination)
        assert set(predictions) | set(reasons) == set(registry.PREDICTIONS) and not set(predictions) & set(reasons)
        assert (values is None) == (not predictions)
        if values is not None:
            assert values.isfinite().all(), combination


def test_every_sampled_combination_has_the_right_mean_and_variance(results: Results) -> None:
    """Loosely: 16 steps are few. How the error falls with the steps is the next test's."""
    for combination, values in results.matrix.items():
        if values is not None:
            name, options = ROWS[combination.row]
            noisy = registry.SAMPLERS[name].stochastic(options)
            assert float(values.max()) < (0.35 if noisy else 0.2), (combination, values)


@pytest.mark.slow
def test_more_steps_are_less_error_in_every_sampled_combination(results: Results) -> None:
    for turn, (combination, values) in enumerate(results.matrix.items()):
        if values is not None:
            cells = some_cells(allowed(combination)[0], turn)[-3:]
            coarse, fine = (float(combination.walk(cells, steps).max()) for steps in (STEPS, 8 * STEPS))
            assert fine < max(0.6 * coarse, 0.01), (combination, coarse, fine)


def test_what_a_network_predicts_makes_no_difference(results: Results) -> None:
    """The first cells are the unguided ones: two predictions, which take turns, or all."""
    for combination, values in results.matrix.items():
        if values is not None:
            unguided = values[: results.unguided[combination]]
            assert len(unguided) >= min(2, len(allowed(combination)[0]))
            assert float(unguided.max() - unguided.min()) < 1e-9, combination


def test_an_exact_classifier_of_scale_1_is_the_exact_conditional_model(results: Results) -> None:
    """Bayes: its cell, the last, has the unguided one's error; but from alpha = 0, where no classifier is asked."""
    for combination, values in results.matrix.items():
        schedule = SCHEDULES[combination.schedule]
        if values is not None and not registry.starts_at_pure_noise(schedule):
            assert float(values[-1]) == pytest.approx(float(values[0]), rel=1e-6, abs=1e-9), combination


@pytest.mark.parametrize("row", ROWS)
def test_the_measured_order_is_the_promised_one(row: str, results: Results) -> None:
    promised = registry.SAMPLERS[ROWS[row][0]].order
    measured = torch.cat([results.orders[row, window] for window in WINDOWS])
    assert float(measured.median()) == pytest.approx(promised, abs=0.35)
    assert float(measured.min()) > promised - 0.55


def test_what_is_refused_by_name_cannot_be_walked_either() -> None:
    steps = dict.fromkeys((c.schedule, c.spacing) for c in combinations())
    for schedule, spacing in steps:
        cases = [Combination(row, schedule, spacing) for row in ROWS]
        grid = refusal(lambda s=schedule, p=spacing: SCHEDULES[s].grid(STEPS, p))  # type: ignore[misc]
        for case in cases:
            predictions, reasons = allowed(case)
            if grid is not None:
                assert not predictions and all(spacing in reasons[p] for p in reasons if p != "eps"), case
            elif float(SCHEDULES[schedule].grid(STEPS, spacing).alpha[0]) == 0:
                assert list(reasons) == ["eps"]
                assert "alpha = 0" in str(refusal(lambda c=case: c.walk([("none", "eps")]))), case  # type: ignore[misc]


def test_eps_is_refused_exactly_where_it_cannot_be_trained(results: Results) -> None:
    for combination in results.matrix:
        schedule = SCHEDULES[combination.schedule]
        pure = isinstance(schedule, Flow) or getattr(schedule, "zero_terminal_snr", False)
        predictions, _ = allowed(combination)
        assert not predictions or ("eps" not in predictions) == pure


NUMBER = re.compile(r"\d+\.\d+e[+-]\d+|\d+\.\d\d\b")


def test_the_page_says_what_is_measured(results: Results) -> None:
    """Words and what is refused exactly; errors within a tenth, orders within 0.15."""
    spec = importlib.util.spec_from_file_location("build_conformance", ROOT / "tools" / "build_conformance.py")
    assert spec is not None and spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    written, measured = PAGE.read_text(encoding="utf-8"), builder.page(results, budgets.table())
    count = r"Of \d+ combinations \d+ are sampled"  # the page's has every prediction under every guidance
    plain = [re.sub(count, "", NUMBER.sub("#", text)) for text in (written, measured)]
    assert plain[0] == plain[1], "run tools/build_conformance.py"
    for ours, theirs in zip(NUMBER.findall(written), NUMBER.findall(measured), strict=True):
        near = {"rel": 0.1, "abs": 1e-7} if "e" in ours else {"abs": 0.15}
        assert float(ours) == pytest.approx(float(theirs), **near), "run tools/build_conformance.py"


def test_the_page_counts_every_combination() -> None:
    total, sampled, refused = map(
        int,
        re.findall(r"Of (\d+) combinations (\d+) are sampled and (\d+) refused", PAGE.read_text(encoding="utf-8"))[0],
    )
    assert total == sampled + refused == len(ROWS) * len(SCHEDULES) * len(SPACINGS) * len(registry.PREDICTIONS) * 3
