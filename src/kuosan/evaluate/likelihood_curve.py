"""The variational bound over t, drawn: what each step costs, and how the costs add up from clean to noisy."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kuosan.files import write_atomic

if TYPE_CHECKING:
    from kuosan.evaluate.likelihood import Bound


def draw(path: Path, bounds: Mapping[str, Bound]) -> None:
    """Write a PNG of one or several models' bounds by name: bits/dim a step with their error, and added up."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    each, whole = figure.subplots(1, 2)
    for name, bound in bounds.items():
        t, term, error = (np.array(values) for values in (bound.t, bound.term, bound.error))
        (line,) = each.plot(t, term, marker=".", label=name)
        each.fill_between(t, np.maximum(term - 2 * error, 1e-12), term + 2 * error, color=line.get_color(), alpha=0.25)
        whole.plot(t, np.cumsum(term * np.array(bound.size)), label=f"{name}: {bound.total.value:.3f}")
    positive = min((value for bound in bounds.values() for value in bound.term if value > 0), default=1e-6)
    each.set(xlabel="t, from clean to noisy", ylabel="bits/dim a step (band: two errors)", yscale="log")
    each.set_ylim(bottom=positive / 2)
    whole.set(xlabel="t, from clean to noisy", ylabel="bits/dim up to t", ylim=(0, None))
    whole.legend(title="bound, with its prior")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(path, buffer.getvalue())
