"""Writes docs/conformance.md: which combinations are sampled, how well, with which order, and what is refused and why.

Command: python tools/build_conformance.py; tests/conformance fails while the page is not what this measures. The page
is measured with every prediction under every guidance; the tests let them take turns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "conformance.md"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "conformance")]

import budgets  # noqa: E402
from combinations import COARSE, FINE, ROWS, SCHEDULES, STEPS, WINDOWS, Results, measure  # noqa: E402

from kuosan.diffusion import registry  # noqa: E402
from kuosan.diffusion.grids import SPACINGS  # noqa: E402

HEAD = f"""\
# Conformance

*Written by `tools/build_conformance.py` from what it measures; `tests/conformance` measures it again.*

Every sampler, on every schedule, in every spacing, with every prediction, under every guidance, either samples a model
whose answer is known, or is refused with an error that says why.

The model: Gaussian data in two dimensions, the exact score seen through a network of each prediction. Guidance: none;
classifier-free between two Gaussians, scale 2; a classifier's exact log p(y | x) on a mixture of two. In all three the
probability flow and the reverse SDE have a closed form, and a sampler's result is exactly Gaussian: its mean and
variance are read from one walk over unit vectors, without sampling error.

## Orders

The power of the step with which the error in mean and standard deviation falls, from {COARSE} to {FINE} steps between
two levels of finite SNR: least to greatest over five predictions and three guidances. `heun, churn 4` is measured
against the exact flow between its own raised levels.

"""

MATRIX = f"""
## Errors after {STEPS} steps

The root mean square of the errors in mean and standard deviation (the data's are 0.2 and 0.4), the largest over
predictions and guidances, from the schedule's noisiest level to a clean image. The jump from the last noisy level to
the predicted image is the same for all samplers and not counted. {STEPS} steps are few for samplers of order 1 and
those with noise; the orders say how the errors fall.
"""

BUDGET = """
## Errors against network evaluations

A mixture of ten blobs of standard deviation 0.15 in 64 dimensions, 32 starts: the root mean square error a pixel from
the probability flow's end, all samplers from the same noise. Samplers with noise have no such error; euler is ddim.
A dash: too few evaluations for three steps.

"""


def page(results: Results, errors: dict[tuple[str, str, int], float | None]) -> str:
    """The whole page."""
    return "".join([HEAD, orders(results), MATRIX, matrix(results), refusals(results), BUDGET, budget(errors)])


def rows(head: list[str], body: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def orders(results: Results) -> str:
    body = []
    for row, (name, _) in ROWS.items():
        measured = [results.orders[row, window] for window in WINDOWS]
        ranges = [f"{float(values.min()):.2f} to {float(values.max()):.2f}" for values in measured]
        spec = registry.SAMPLERS[name]
        body.append([f"`{row}`", spec.title, str(spec.order), *ranges, str(spec.nfe(20))])
    return rows(["sampler", "what it is", "promised", *WINDOWS, "evaluations of 20 steps"], body)


def matrix(results: Results) -> str:
    text = ""
    for schedule in SCHEDULES:
        body = []
        for row in ROWS:
            found = {k.spacing: v for k, v in results.matrix.items() if (k.row, k.schedule) == (row, schedule)}
            cells = ["refused" if found[s] is None else f"{float(found[s].max()):.1e}" for s in SPACINGS]  # type: ignore[union-attr]
            body.append([f"`{row}`", *cells])
        text += f"\n### {schedule}\n\n" + rows(["sampler", *SPACINGS], body)
    return text


def refusals(results: Results) -> str:
    """Each reason, and the schedules, spacings and predictions it stands for; it is the same for every sampler."""
    body = []
    for reason, cases in results.refused.items():
        schedules = "; ".join(dict.fromkeys(case.schedule for case, _ in cases))
        spacings = ", ".join(dict.fromkeys(case.spacing for case, _ in cases))
        predictions = ", ".join(dict.fromkeys(prediction for _, prediction in cases))
        body.append([schedules, spacings, predictions, str(len(cases)), reason])
    sampled = sum(len(values) for values in results.matrix.values() if values is not None)
    refused = sum(len(cases) for cases in results.refused.values())
    text = (
        f"Of {sampled + 3 * refused} combinations {sampled} are sampled and {3 * refused} refused, by `registry.check` "
        "before anything is computed, and by the grid or the denoiser itself. The reasons are the same for every "
        "sampler and guidance; the number counts samplers, not guidances."
    )
    head = ["schedule", "spacing", "prediction", "combinations", "the error"]
    return f"\n## What is refused\n\n{text}\n\n{rows(head, body)}"


def budget(errors: dict[tuple[str, str, int], float | None]) -> str:
    head = ["sampler", *(f"{walk}: {k}" for walk in budgets.WALKS for k in budgets.BUDGETS)]
    body = []
    for name in budgets.DETERMINISTIC:
        found = [errors[name, walk, k] for walk in budgets.WALKS for k in budgets.BUDGETS]
        body.append([f"`{name}`", *("-" if value is None else f"{value:.1e}" for value in found)])
    return rows(head, body)


if __name__ == "__main__":
    PAGE.write_text(page(measure(thorough=True), budgets.table()), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
