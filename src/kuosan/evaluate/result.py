"""What an evaluation found, and all that the figures depend on; as JSON, markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import kuosan
from kuosan import config as trees
from kuosan.evaluate.estimate import Estimate, reach
from kuosan.evaluate.frechet import label
from kuosan.evaluate.statistics import About
from kuosan.evaluate.sweep import shown
from kuosan.files import write_atomic
from kuosan.sample.request import Request

FORMAT = 1
NAME = "result.json"


@dataclass(frozen=True)
class Found:
    """What was measured of the pictures of one request, or of a folder."""

    name: str  # the swept values, in words; empty where nothing was swept
    setting: dict[str, Any]  # the swept values
    n: int
    figures: dict[str, Estimate]
    seeds: tuple[int, int] | None = None  # of the first and the last picture; None for pictures from a folder
    request: dict[str, Any] | None = None
    sampler: str | None = None
    steps: int | None = None
    spacing: str | None = None
    evaluations: int = 0  # of the network, a picture
    seconds: float = 0.0  # of sampling, a picture, with the request's batch on `compute`
    more: dict[str, Estimate] = field(default_factory=dict)  # KID minus that of the sweep's first point, paired by seed
    helpers: dict[str, str] = field(default_factory=dict)  # sha256 of the weights of the runs that the request names
    shares: tuple[float, ...] = ()  # of the classes, where the request names none
    captions: int = 0  # of real pictures, told in turn where the request names no prompts; 0: none
    details: dict[str, Any] = field(default_factory=dict)  # what is more than a figure: confusion, copies

    def made(self) -> str:
        """How the pictures were made, where it is not swept and not usual; a sentence behind another."""
        if self.request is None:
            return ""
        usual, own = trees.plain(Request()), self.request | {"sampler": self.sampler, "steps": self.steps}
        told = {name: value for name, value in own.items() if name in ("sampler", "steps") or value != usual[name]}
        for name in (*self.setting, "n", "seed", "batch"):
            told.pop(name, None)
        words = (f"{name} {shown(tuple(value) if isinstance(value, list) else value)}" for name, value in told.items())
        captions = f" Told {self.captions:,} captions of the pictures compared with." if self.captions else ""
        return (f" Made with {', '.join(words)}." if told else "") + captions


@dataclass(frozen=True)
class Result:
    """Figures, and what they are of: never one without the other."""

    target: str
    against: str  # which real pictures
    real: int  # how many
    data: str  # their path
    fingerprint: str  # of that data set
    features: dict[str, Any] = field(default_factory=dict)  # name, hash of the weights, dim, size
    resize: str = ""
    file_format: str = ""
    images: dict[str, Any] = field(default_factory=dict)  # of both sides: sizes, formats, what was done or left out
    remarks: tuple[str, ...] = ()  # the same in sentences
    found: tuple[Found, ...] = ()  # empty where only the likelihood was asked for
    floor: dict[str, Estimate] = field(default_factory=dict)  # the same figures of real pictures
    floor_of: str = ""
    step: int | None = None  # of the checkpoint
    weights: str | None = None  # sha256
    compute: str | None = None
    judge: dict[str, Any] | None = None
    likelihood: dict[str, Any] | None = None
    seconds: float = 0.0  # the whole evaluation, without what was kept from an earlier one
    warnings: tuple[str, ...] = ()
    folder: str | None = None  # where it was written
    version: str = kuosan.__version__
    format: int = FORMAT

    @property
    def figures(self) -> dict[str, Estimate]:
        """The figures of the only, or the first, set of pictures."""
        return self.found[0].figures

    def heads(self) -> list[str]:
        """The table's columns."""
        swept = list(self.found[0].setting)
        named = swept or (["pictures"] if self.found[0].request is None else ["sampler", "steps"])
        cost = [] if self.found[0].request is None else ["evaluations", "seconds"]
        return [*named, *cost, *self.names(), *(["more"] if self.paired else [])]

    def title(self, head: str) -> str:
        """What a column is called: a Fréchet distance only FID where the features are FID's."""
        if head == "frechet":
            return label(About(self.features["name"], self.features["hash"]))
        return TITLES.get(head, head)

    def names(self) -> list[str]:
        """The figures that any set has, in the order of the first that has them."""
        return list(dict.fromkeys(name for one in self.found for name in one.figures))

    @property
    def paired(self) -> bool:
        """Whether the sweep's points are compared picture by picture."""
        return any(one.more for one in self.found)

    def rows(self) -> list[list[str]]:
        """The table: one row a point, the floor last."""
        rows = [self._row(one) for one in self.found]
        if self.floor:
            blank = len(self.heads()) - len(self.names()) - 1 - self.paired
            rows.append(
                ["real pictures", *[""] * blank, *(text(self.floor.get(name), name) for name in self.names())]
                + [""] * self.paired
            )
        return rows

    def _row(self, one: Found) -> list[str]:
        named = [shown(value) for value in one.setting.values()]
        if not named:
            named = [one.name] if one.request is None else [str(one.sampler), str(one.steps)]
        cost = [] if one.request is None else [str(one.evaluations), f"{one.seconds:.3f}"]
        row = [*named, *cost, *(text(one.figures.get(name), name) for name in self.names())]
        return [*row, text(one.more.get("kid"), "kid")] if self.paired else row

    def about(self) -> list[str]:
        """What the figures are of, in sentences: to stand above every table of them."""
        of = f", step {self.step}, weights {self.weights[:12]}" if self.weights else ""
        lines = [f"{self.target}{of}; data {self.fingerprint[:12]}."]
        if self.found:
            first, network = self.found[0], self.features
            seeds = f" (seeds {first.seeds[0]} to {first.seeds[1]})" if first.seeds else ""
            lines += [
                f"{first.n:,} pictures{seeds} against {self.real:,} {self.against}.{first.made()}",
                f"Features {network['name']} (weights {network['hash'][:12]}), {self.resize}; {self.file_format}.",
            ]
        lines += self.remarks
        if self.compute:
            lines.append(f"Computed on {self.compute}.")
        if self.judge:
            lines.append(f"Judge of classes: {self.judge['run']} (weights {self.judge['weights'][:12]}).")
        if self.floor:
            lines.append(f"The last row is the floor: {self.floor_of}.")
        if self.paired:
            lines.append("KID - first: how much more than the first row's, paired by seed.")
        return [*lines, *(f"Warning: {warning}" for warning in self.warnings)]

    def verdicts(self) -> list[str]:
        """What is to be said of memorisation, a sentence a point, and of the likelihood."""
        lines = list((self.likelihood or {}).get("sentences", []))
        for one in self.found:
            told = one.details.get("memorisation")
            if told is None:
                continue
            of = f"{one.name}: " if one.name else ""
            below = told["below"]
            lines.append(
                f"memorisation: {of}{'suspected' if told['flagged'] else 'none found'}. {100 * below['share']:.1f} % "
                f"of the pictures lie closer to training pictures than the closest {100 * below['expected']:.1f} % of "
                f"the held-out ones (p = {told['p_value']:.2g}); exact copies: {told['copies']}. Look at nearest*.png."
            )
        return lines

    def markdown(self) -> str:
        """The sentences and the table."""
        lines = [*self.about(), ""]
        if self.found:
            heads = [self.title(head) for head in self.heads()]
            lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
            lines += [*(f"| {' | '.join(row)} |" for row in self.rows()), ""]
        return "\n".join([*lines, *self.verdicts(), ""])

    def csv(self) -> str:
        """One line a point with full figures: a column for every value and one for its error."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        swept = list(self.found[0].setting)
        names = self.names()
        columns = [column for name in names for column in (name, f"{name}_error")]
        writer.writerow([*swept, "n", "evaluations", "seconds", *columns, "kid_more", "kid_more_error"])
        for one in self.found:
            values = [value for name in names for value in _both(one.figures.get(name))]
            settings = [shown(value) for value in one.setting.values()]
            writer.writerow([*settings, one.n, one.evaluations, one.seconds, *values, *_both(one.more.get("kid"))])
        return buffer.getvalue()

    def json(self) -> str:
        """Everything."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path) -> None:
        """result.json, and table.md and table.csv beside it."""
        write_atomic(folder / "table.md", self.markdown())
        if self.found:
            write_atomic(folder / "table.csv", self.csv())
        write_atomic(folder / NAME, self.json())


TITLES = {
    "kid": "KID x 1000",
    "labels": "label agreement",
    "nearer": "nearer than held out",
    "evaluations": "evaluations",
    "seconds": "s/picture",
    "more": "KID - first",
}
THOUSANDFOLD = ("kid",)


def text(estimate: Estimate | None, name: str) -> str:
    """A figure with its error as tables show it."""
    if estimate is None:
        return ""
    times = 1000 if name in THOUSANDFOLD else 1
    value, error = times * estimate.value, times * estimate.error
    digits = 1 if max(abs(value), error) >= 10 else 3 if max(abs(value), error) < 2 and times == 1 else 2
    below, above = (times * one for one in reach(estimate, name))
    if below < error or above < error:
        return f"{value:.{digits}f} +{above:.{digits}f} -{below:.{digits}f}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _both(estimate: Estimate | None) -> tuple[Any, Any]:
    return ("", "") if estimate is None else (estimate.value, estimate.error)
