"""One report, whatever was measured: sections of sentences and tables, as Markdown, JSON and CSV.

A result says its sentences, its tables and its values; this module alone knows how each is written, and where.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from kuosan.metrics.estimate import Estimate
from kuosan.storage.files import write_atomic

TABLE, ROWS = "table.md", "table.csv"


@dataclass(frozen=True)
class FigureTable:
    """Heads and rows of text; the first `left` columns are words, the others numbers."""

    heads: list[str]
    rows: list[list[str]]
    left: int = 1
    aligned: bool = True  # Markdown, too, sets numbers to the right

    def lines(self) -> list[str]:
        """As Markdown has it."""
        words = self.left if self.aligned else len(self.heads)
        rules = "---|" * words + "---:|" * (len(self.heads) - words)
        return [_row(self.heads), f"|{rules}", *map(_row, self.rows)]


Section = FigureTable | Sequence[str]  # a table, or sentences


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        name: the file that holds every value, as JSON.
        sections: what a person reads, in this order.
        tree: every value, for JSON.
        rows: the figures as values, the columns' names first, for CSV; empty where nobody wants it.
    """

    name: str
    sections: Sequence[Section]
    tree: Any
    rows: Sequence[Sequence[Any]] = field(default=())

    def markdown(self) -> str:
        """The sections with a blank line behind each."""
        lines = [line for each in self.sections for line in (*section_lines(each), "")]
        return "\n".join(lines)

    def json(self) -> str:
        """Every value; what JSON cannot say, NaN and infinities, is null."""
        return json.dumps(finite(self.tree), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def csv(self) -> str:
        """The rows, one a line."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(self.rows)
        return buffer.getvalue()

    def write(self, folder: Path) -> None:
        """table.md, table.csv where there are rows, and last the file of all values."""
        write_atomic(folder / TABLE, self.markdown())
        if self.rows:
            write_atomic(folder / ROWS, self.csv())
        write_atomic(folder / self.name, self.json())


class ReportedResult:
    """A result that knows its report, and so can be written."""

    def report(self) -> Report:
        """All that is to be said of it."""
        raise NotImplementedError

    def markdown(self) -> str:
        """The sentences and the tables."""
        return self.report().markdown()

    def json(self) -> str:
        """Every value."""
        return self.report().json()

    def csv(self) -> str:
        """The figures as values, a line each; empty where there are none to compare."""
        return self.report().csv()

    def write(self, folder: Path) -> None:
        """The report's files."""
        self.report().write(folder)


def section_lines(section: Section) -> Sequence[str]:
    """A section as Markdown has it."""
    return section.lines() if isinstance(section, FigureTable) else section


def figure(
    estimate: Estimate | None,
    digits: int,
    *,
    times: float = 1,
    signed: bool = False,
    ends: tuple[float, float] | None = None,
) -> str:
    """A figure with its error as tables show it: 1.20 ± 0.10; empty for none.

    Args:
        times: the table shows the figure so many times larger.
        signed: with its sign, as differences are.
        ends: how far below and above the figure can be, which shortens the error: 0.98 +0.02 -0.10.
    """
    if estimate is None:
        return ""
    value = f"{times * estimate.value:{'+' if signed else ''}.{digits}f}"
    error = times * estimate.error
    if not isfinite(error):
        return value
    below, above = (times * end for end in ends or (estimate.error, estimate.error))
    if below < error or above < error:
        return f"{value} +{above:.{digits}f} -{below:.{digits}f}"
    return f"{value} ± {error:.{digits}f}"


def finite(tree: Any) -> Any:
    """A tree of plain values with None in the place of what JSON cannot say."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not isfinite(tree) else tree


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
