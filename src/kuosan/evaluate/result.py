"""Which metric gives which figures: `kid` one, `prdc` four. All are functions of two sets of feature rows.

What an evaluation found, and all that the figures depend on; as JSON, markdown and CSV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import kuosan
from kuosan import config as trees
from kuosan.errors import Error, plural
from kuosan.evaluate.config import shown
from kuosan.evaluate.report import FigureTable, Report, ReportedResult, Section, figure
from kuosan.metrics.estimate import Estimate, reach
from kuosan.metrics.frechet import About, enough, frechet_of_rows, label
from kuosan.metrics.kid import kid
from kuosan.metrics.prdc import density_coverage, precision_recall
from kuosan.sample.request import Request

Figures = dict[str, Estimate]


def _kid(made: np.ndarray, real: np.ndarray, force: bool) -> Figures:
    return {"kid": kid(made, real)}


def _frechet(made: np.ndarray, real: np.ndarray, force: bool) -> Figures:
    return {"frechet": frechet_of_rows(made, real, force=force)}


def _prdc(made: np.ndarray, real: np.ndarray, force: bool) -> Figures:
    shares, balls = precision_recall(real, made), density_coverage(real, made)
    return {
        "precision": shares.precision,
        "recall": shares.recall,
        "density": balls.density,
        "coverage": balls.coverage,
    }


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray, bool], Figures]] = {
    "kid": _kid,
    "frechet": _frechet,
    "prdc": _prdc,
}
LEAST = {"kid": 3, "frechet": 4, "prdc": 6}  # rows a side, without which there is no figure at all


def distances_of(named: Sequence[str], made: int, real: int, dim: int, force: bool) -> tuple[str, ...]:
    """The distances to take: those named, or all that so many images allow.

    Raises:
        Error: one that is named needs more images.
    """
    if not named:
        allowed = [name for name in DISTANCES if min(made, real) >= LEAST[name]]
        return tuple(name for name in allowed if name != "frechet" or min(made, real) > dim or force)
    for name in named:
        if min(made, real) < LEAST[name]:
            raise Error(
                f"{name} of {made} images against {real}: at least {LEAST[name]} a side are needed; give --n or "
                f"--real {LEAST[name]} or more."
            )
    if "frechet" in named:
        for n in (made, real):
            enough(n, dim, force=force)
    return tuple(name for name in DISTANCES if name in named)


def figures(names: Sequence[str], made: np.ndarray, real: np.ndarray, *, force: bool = False) -> Figures:
    """All figures of made (N, D) against real (M, D) features."""
    return {key: value for name in names for key, value in DISTANCES[name](made, real, force).items()}


def floor(names: Sequence[str], one: np.ndarray, other: np.ndarray) -> Figures:
    """The same figures of real images, as far as there are enough of them."""
    few = min(len(one), len(other))
    possible = [name for name in names if few >= LEAST[name] and (name != "frechet" or few > one.shape[1])]
    return figures(possible, one, other)


FORMAT = 1
NAME = "result.json"


@dataclass(frozen=True)
class SettingResult:
    """What was measured of the images of one request, or of a folder."""

    name: str  # the swept values, in words; empty where nothing was swept
    setting: dict[str, Any]  # the swept values
    n: int
    figures: dict[str, Estimate]
    seeds: tuple[int, int] | None = None  # of the first and the last image; None for images from a folder
    request: dict[str, Any] | None = None
    sampler: str | None = None
    steps: int | None = None
    spacing: str | None = None
    evaluations: int = 0  # of the network, an image
    seconds: float = 0.0  # of sampling, an image, with the request's batch on `compute`
    more: dict[str, Estimate] = field(default_factory=dict)  # KID minus that of the sweep's first point, paired by seed
    helpers: dict[str, str] = field(default_factory=dict)  # sha256 of the weights of the runs that the request names
    shares: tuple[float, ...] = ()  # of the classes, where the request names none
    captions: int = 0  # of real images, each in turn the prompt where the request names none; 0: none
    details: dict[str, Any] = field(default_factory=dict)  # what is more than a figure: confusion, copies

    def made(self) -> str:
        """How the images were made, where it is not swept and not usual; a sentence behind another."""
        if self.request is None:
            return ""
        usual, own = trees.plain(Request()), self.request | {"sampler": self.sampler, "steps": self.steps}
        other = {name: value for name, value in own.items() if name in ("sampler", "steps") or value != usual[name]}
        for name in (*self.setting, "n", "seed", "batch"):
            other.pop(name, None)
        words = (f"{name} {shown(tuple(value) if isinstance(value, list) else value)}" for name, value in other.items())
        captions = f" By {plural(self.captions, 'caption')} of the images compared with." if self.captions else ""
        return (f" Made with {', '.join(words)}." if other else "") + captions


@dataclass(frozen=True)
class Result(ReportedResult):
    """Figures, and what they are of: never one without the other."""

    target: str
    against: str  # which real images
    real: int  # how many
    data: str  # their path
    fingerprint: str  # of that data set
    features: dict[str, Any] = field(default_factory=dict)  # name, hash of the weights, dim, size
    resize: str = ""
    file_format: str = ""
    images: dict[str, Any] = field(default_factory=dict)  # of both sides: sizes, formats, what was done or left out
    remarks: tuple[str, ...] = ()  # the same in sentences
    found: tuple[SettingResult, ...] = ()  # empty where only the likelihood was wanted
    floor: dict[str, Estimate] = field(default_factory=dict)  # the same figures of real images
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
        """The figures of the only, or the first, set of images."""
        return self.found[0].figures

    def heads(self) -> list[str]:
        """The table's columns."""
        swept = list(self.found[0].setting)
        named = swept or (["images"] if self.found[0].request is None else ["sampler", "steps"])
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
        """Whether the sweep's points are compared image by image."""
        return any(one.more for one in self.found)

    def rows(self) -> list[list[str]]:
        """The table: one row a point, the floor last."""
        rows = [self._row(one) for one in self.found]
        if self.floor:
            blank = len(self.heads()) - len(self.names()) - 1 - self.paired
            rows.append(
                ["real images", *[""] * blank, *(text(self.floor.get(name), name) for name in self.names())]
                + [""] * self.paired
            )
        return rows

    def _row(self, one: SettingResult) -> list[str]:
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
                f"{plural(first.n, 'image')}{seeds} against {self.real:,} {self.against}.{first.made()}",
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
            found = one.details.get("memorisation")
            if found is None:
                continue
            of = f"{one.name}: " if one.name else ""
            below = found["below"]
            lines.append(
                f"memorisation: {of}{'suspected' if found['flagged'] else 'none found'}. {100 * below['share']:.1f} % "
                f"of the images lie closer to training images than the closest {100 * below['expected']:.1f} % of "
                f"the held-out ones (p = {found['p_value']:.2g}); exact copies: {found['copies']}. "
                f"Look at nearest*.png."
            )
        return lines

    def report(self) -> Report:
        """Sentences, one table of all sets, what is to be said of memorisation and likelihood; every value."""
        sections: list[Section] = [self.about()]
        if self.found:
            sections.append(FigureTable([self.title(head) for head in self.heads()], self.rows(), aligned=False))
        return Report(NAME, [*sections, self.verdicts()], asdict(self), self._values() if self.found else ())

    def _values(self) -> list[list[Any]]:
        """One row a set with full figures: a column for every value and one for its error; the columns' names first."""
        swept = list(self.found[0].setting)
        names = self.names()
        columns = [column for name in names for column in (name, f"{name}_error")]
        rows: list[list[Any]] = [[*swept, "n", "evaluations", "seconds", *columns, "kid_more", "kid_more_error"]]
        for one in self.found:
            values = [value for name in names for value in _both(one.figures.get(name))]
            settings = [shown(value) for value in one.setting.values()]
            rows.append([*settings, one.n, one.evaluations, one.seconds, *values, *_both(one.more.get("kid"))])
        return rows


TITLES = {
    "kid": "KID x 1000",
    "labels": "label agreement",
    "nearer": "nearer than held out",
    "evaluations": "evaluations",
    "seconds": "s/image",
    "more": "KID - first",
}
THOUSANDFOLD = ("kid",)


def text(estimate: Estimate | None, name: str) -> str:
    """A figure with its error as tables show it, with as many digits as its size wants."""
    if estimate is None:
        return ""
    times = 1000 if name in THOUSANDFOLD else 1
    largest = times * max(abs(estimate.value), estimate.error)
    digits = 1 if largest >= 10 else 3 if largest < 2 and times == 1 else 2
    return figure(estimate, digits, times=times, ends=reach(estimate, name))


def _both(estimate: Estimate | None) -> tuple[Any, Any]:
    return ("", "") if estimate is None else (estimate.value, estimate.error)
