"""What a comparison of restorers found: every picture's values, and the tables made of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import kuosan
from kuosan.evaluate.estimate import Estimate, mean
from kuosan.files import write_atomic

FORMAT = 1
NAME, TABLE, SHEET = "result.json", "table.md", "sheet.png"

NEAR = {  # the first table's columns: a measure's name -> its title and digits
    "psnr": ("PSNR", 2),
    "psnr_mean": ("PSNR of the mean", 2),
    "psnr_hole": ("PSNR in the hole", 2),
    "ssim": ("SSIM", 4),
    "perceptual": ("perceptual", 3),
    "psnr_more": ("PSNR - first", 2),
    "perceptual_more": ("perceptual - first", 3),
}
APART = {  # the second's
    "consistency": ("consistency", 2),
    "spread": ("std of answers", 2),
    "diversity": ("perceptual of two", 3),
    "shift": ("shift", 2),
    "shift_r": ("shift R", 2),
    "shift_g": ("shift G", 2),
    "shift_b": ("shift B", 2),
}
PAIRED = ("psnr", "perceptual")
EXPLAINED = (
    "PSNR (dB), SSIM: higher is nearer; perceptual: lower is nearer. - first: how much more than the first "
    "contestant's, picture by picture. Consistency: grey levels (of 255) between what was brought and the answers "
    "damaged again; std, shift: grey levels. ± one standard error over the pictures."
)


@dataclass(frozen=True)
class Scores:
    """One way to restore, measured; `values` holds a number a picture for each measure, its answers averaged."""

    name: str
    values: dict[str, list[float]]
    variants: int = 1
    evaluations: int | None = None  # of the network, an answer; None for a rule
    seconds: float = 0.0  # an answer
    made: dict[str, Any] = field(default_factory=dict)  # run, step, weights, request, ...: empty for a rule

    @property
    def figures(self) -> dict[str, Estimate]:
        """The mean of each measure with its standard error over the pictures."""
        return {name: mean(values) for name, values in self.values.items()}

    def more(self, first: Scores) -> dict[str, Estimate]:
        """How much more than another's, picture by picture."""
        return {f"{name}_more": mean(np.subtract(self.values[name], first.values[name])) for name in PAIRED}


@dataclass(frozen=True)
class Comparison:
    """Everybody's scores on the same damaged pictures, and all that they depend on."""

    damage: str  # in words
    settings: dict[str, Any]
    shape: tuple[int, int, int]
    pictures: tuple[str, ...]
    fingerprint: str  # of their data set
    features: dict[str, Any]  # of the perceptual distance: name, hash, resizing
    floor: float | None  # the truth's own consistency: what rounding leaves
    rules: tuple[Scores, ...] = ()
    contestants: tuple[Scores, ...] = ()
    lacking: tuple[str, ...] = ()  # contestants that were not reached
    notes: tuple[str, ...] = ()
    compute: str = ""
    folder: str = ""
    version: str = kuosan.__version__
    format: int = FORMAT

    @property
    def everybody(self) -> tuple[Scores, ...]:
        """Rules first."""
        return (*self.rules, *self.contestants)

    def __getitem__(self, name: str) -> Scores:
        """The scores of one, by its name."""
        return next(one for one in self.everybody if one.name == name)

    def about(self) -> list[str]:
        """What the figures are of, in sentences."""
        channels, height, width = self.shape
        colour = "grey" if channels == 1 else "colour"
        asked = self.settings
        lines = [
            f"{len(self.pictures):,} pictures of {asked['pictures']} ({self.fingerprint[:12]}), {width}x{height} "
            f"{colour}, {self.damage}; {asked['variants']} answers each, from seed {asked['seed']}.",
            *(f"{note[0].upper()}{note[1:]}." for note in self.notes),
            *(described(one) for one in self.contestants),
            f"Perceptual: {self.features['name']} (weights {self.features['hash'][:12]}), {self.features['resizing']}.",
        ]
        if self.floor is not None:
            lines.append(f"The truth's own consistency is {self.floor:.2f}: what rounding leaves.")
        if self.compute:
            lines.append(f"Computed on {self.compute}.")
        return lines + ([f"Not finished: {', '.join(self.lacking)}."] if self.lacking else [])

    def tables(self) -> list[tuple[list[str], list[list[str]]]]:
        """Heads and rows: how near the answers come; how they keep to what was brought, and what they cost."""
        near, apart = self._table(NEAR), self._table(APART)
        apart[0].extend(["evaluations", "s/answer"])
        for row, one in zip(apart[1], self.everybody):
            row.extend(["" if one.evaluations is None else str(one.evaluations), f"{one.seconds:.3g}"])
        return [near, apart]

    def _table(self, columns: dict[str, tuple[str, int]]) -> tuple[list[str], list[list[str]]]:
        found = [self._figures(one) for one in self.everybody]
        names = [name for name in columns if any(name in figures for figures in found)]
        rows = [
            [one.name, *(text(figures.get(name), columns[name][1], name) for name in names)]
            for one, figures in zip(self.everybody, found)
        ]
        return ["", *(columns[name][0] for name in names)], rows

    def _figures(self, one: Scores) -> dict[str, Estimate]:
        first = self.contestants[0] if self.contestants else None
        return one.figures | (one.more(first) if first is not None and one is not first else {})

    def markdown(self) -> str:
        """The sentences and the tables."""
        lines = [*self.about(), ""]
        for heads, rows in self.tables():
            lines += [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
            lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
        return "\n".join([*lines, EXPLAINED, ""])

    def json(self) -> str:
        """Everything, with each picture's values."""
        tree = asdict(self)
        for part, scores in (("rules", self.rules), ("contestants", self.contestants)):
            for told, one in zip(tree[part], scores):
                told["figures"] = {name: asdict(estimate) for name, estimate in self._figures(one).items()}
        return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path) -> None:
        """result.json and table.md."""
        write_atomic(folder / TABLE, self.markdown())
        write_atomic(folder / NAME, self.json())


def described(one: Scores) -> str:
    """A contestant in a sentence."""
    made = one.made
    weights = f"{made['run']}, step {made['step']:,}, weights {made['weights'][:12]}"
    how = f"{made['method'] or 'as it was trained'}, {made['sampler']}, {made['steps']} steps"
    more = "".join(f"{key} {value}, " for key, value in made["settings"].items() if key not in ("sampler", "steps"))
    return f"{one.name}: {weights}; {how}, {more}{one.evaluations:,} network evaluations an answer."


def text(estimate: Estimate | None, digits: int, name: str) -> str:
    """A figure with its error as the tables show it; differences and shifts with their sign."""
    if estimate is None:
        return ""
    sign = "+" if name.endswith("_more") or name.startswith("shift") else ""
    return f"{estimate.value:{sign}.{digits}f} ± {estimate.error:.{digits}f}"
