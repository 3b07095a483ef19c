"""What to look at: sheets of images, and a sweep's quality against its cost."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kuosan.data.pixels import grid, save_png
from kuosan.errors import Error
from kuosan.evaluate.config import shown
from kuosan.metrics.estimate import reach
from kuosan.metrics.memorisation import SHOWN, Images, Memorisation
from kuosan.sample.write import enlarged
from kuosan.storage.files import write_atomic

if TYPE_CHECKING:
    from kuosan.evaluate.result import Result, SettingResult

SHEET = 64  # images on a sheet
ROW = 12  # images of each point on a sweep's sheet
ROWS = 40  # points on it at most


def sheet(path: Path, made: Sequence[tuple[str, np.ndarray]]) -> None:
    """Images (N, C, H, W) uint8 as a grid; of several points one row each, the same seeds below each other."""
    if len(made) == 1:
        save_png(path, grid(enlarged(np.moveaxis(made[0][1], 1, -1))))
        return
    rows = [enlarged(np.moveaxis(images[:ROW], 1, -1)) for _, images in made[:ROWS]]
    across = max(map(len, rows))
    blank = np.full_like(rows[0][0], 255)
    cells = [image for row in rows for image in (*row, *[blank] * (across - len(row)))]
    save_png(path, grid(cells, across, titles=[brief(name) for name, _ in made]))


def sweep(path: Path, result: Result) -> None:
    """Quality against cost, and of a guidance sweep what it trades: fidelity, diversity, agreement with the class."""
    from matplotlib.figure import Figure

    swept = list(result.found[0].setting)
    scale = next((name for name in SCALES if name in swept), None)
    names = result.names()
    panels: list[Any] = []
    if scale is not None:
        panels += [lambda axis: _by_scale(axis, result, scale)] if set(names) & set(SHARES) else []
        panels += [lambda axis: _trade(axis, result, scale)] if {"precision", "recall"} <= set(names) else []
        panels += [lambda axis: _one_by_scale(axis, result, scale, "labels")] if "labels" in names else []
        panels += [lambda axis: _one_by_scale(axis, result, scale, _quality(names))]
    if scale is None or len(swept) > 1:
        panels += [lambda axis: _cost(axis, result, "evaluations"), lambda axis: _cost(axis, result, "seconds")]
        panels += [lambda axis: _paired(axis, result)] if result.paired else []
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.4 * columns, 4.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, draw in zip(axes, panels):
        draw(axis)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    features = result.features["name"]
    figure.suptitle(
        f"{Path(result.target).name}: {result.found[0].n:,} images a point against {result.real:,} {result.against}, "
        f"features {features}",
        fontsize=10,
    )
    _save(figure, path)


SCALES = ("guidance", "classifier_scale")  # what steers; a sweep of it trades one figure for another
SHARES = ("precision", "recall", "density", "coverage")
LABELS = {
    "kid": "KID x 1000",
    "labels": "share with the class asked for",
    "evaluations": "network evaluations an image",
    "seconds": "seconds an image",
    "guidance": "guidance scale",
    "classifier_scale": "classifier scale",
}


def _quality(names: Sequence[str]) -> str:
    """The figure that shows quality by itself: KID if it is there, else the first."""
    return "kid" if "kid" in names else names[0]


def _lines(result: Result, along: str) -> dict[str, list[SettingResult]]:
    """The points by all that was swept but `along`, in the order of `along`."""
    lines: dict[str, list[SettingResult]] = {}
    for one in result.found:
        rest = ", ".join(
            shown(value) if key == "sampler" else f"{key} {shown(value)}"
            for key, value in one.setting.items()
            if key != along
        )
        lines.setdefault(brief(rest), []).append(one)
    return lines


def brief(name: str) -> str:
    """A name that leaves room for the axes: the end of a long one, where paths differ."""
    return name if len(name) <= 48 else "..." + name[-45:]


def _log_ticks(axis: Any, values: Sequence[float], form: str) -> None:
    """A log axis whose ticks are the values themselves."""
    ticks = _apart(sorted(set(values)))
    axis.set_xscale("log")
    axis.set_xticks(ticks, [format(tick, form) for tick in ticks])
    axis.minorticks_off()


def _apart(ticks: Sequence[float]) -> list[float]:
    """Those of ascending ticks whose labels do not touch on a log axis."""
    gap = (ticks[-1] / ticks[0]) ** 0.1 if ticks[0] > 0 else 1.0
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick >= kept[-1] * gap:
            kept.append(tick)
    return kept


def _times(name: str) -> int:
    return 1000 if name == "kid" else 1


def _cost(axis: Any, result: Result, cost: str) -> None:
    """Quality by what an image costs, a line for everything swept but the steps."""
    name = _quality(result.names())
    lines = _lines(result, "steps")
    for (label, line), mark in zip(lines.items(), _marks()):
        line = sorted(line, key=lambda one: float(getattr(one, cost)))
        there = [one for one in line if name in one.figures]
        _errors(axis, [getattr(one, cost) for one in there], there, name, label, mark)
    if name in result.floor:
        _level(axis, result, name)
    _log_ticks(axis, [float(getattr(one, cost)) for one in result.found], ".2g" if cost == "seconds" else "g")
    axis.set(xlabel=LABELS[cost], ylabel=LABELS.get(name) or result.title(name))
    axis.grid(alpha=0.25)
    if len(lines) > 1 or name in result.floor:
        _legend(axis)


def _paired(axis: Any, result: Result) -> None:
    """KID minus the first point's, by evaluations: paired by seed, with the error by which two points differ."""
    lines = _lines(result, "steps")
    for (label, line), mark in zip(lines.items(), _marks()):
        line = sorted(line, key=lambda one: one.evaluations)
        more = [one.more.get("kid") for one in line]
        values, errors = ([1000 * getattr(one, part) if one else 0.0 for one in more] for part in ("value", "error"))
        axis.errorbar([one.evaluations for one in line], values, errors, marker=mark, ms=4.5, lw=1.3, capsize=2.5,
                      label=label or None)  # fmt: skip
    axis.axhline(0, color="0.45", lw=1, ls="--", label=f"the first: {brief(result.found[0].name)}")
    _log_ticks(axis, [float(one.evaluations) for one in result.found], "g")
    axis.set(xlabel=LABELS["evaluations"], ylabel="KID x 1000 more than the first, paired")
    axis.grid(alpha=0.25)
    _legend(axis)


def _by_scale(axis: Any, result: Result, scale: str) -> None:
    """Precision, recall, density and coverage by the scale."""
    for (label, line), style in zip(_lines(result, scale).items(), ("-", "--", ":", "-.") * 9):
        line = sorted(line, key=lambda one: float(one.setting[scale]))
        for name, colour in zip(SHARES, ("tab:blue", "tab:orange", "tab:green", "tab:red")):
            there = [one for one in line if name in one.figures]
            if not there:
                continue
            values = [one.figures[name].value for one in there]
            errors = np.array([reach(one.figures[name], name) for one in there]).T
            axis.errorbar([one.setting[scale] for one in there], values, errors, ls=style, marker="o", ms=3.5,
                          color=colour, capsize=2, lw=1.3, label=f"{name} {label}".strip())  # fmt: skip
    axis.set(xlabel=LABELS[scale], ylabel="share of images", ylim=(0, None))
    axis.grid(alpha=0.25)
    _legend(axis)


def _trade(axis: Any, result: Result, scale: str) -> None:
    """Precision against recall, each point named by its scale."""
    for (label, line), mark in zip(_lines(result, scale).items(), _marks()):
        line = sorted(line, key=lambda one: float(one.setting[scale]))
        recalls = [one.figures["recall"] for one in line]
        precisions = [one.figures["precision"] for one in line]
        axis.errorbar(
            [one.value for one in recalls], [one.value for one in precisions],
            np.array([reach(one, "precision") for one in precisions]).T,
            np.array([reach(one, "recall") for one in recalls]).T,
            marker=mark, ms=4, lw=1, elinewidth=0.6, capsize=1.5, label=label or None,
        )  # fmt: skip
        for one, recall, precision in zip(line, recalls, precisions):
            axis.annotate(shown(one.setting[scale]), (recall.value, precision.value), textcoords="offset points",
                          xytext=(5, 5), fontsize=8)  # fmt: skip
    if {"precision", "recall"} <= set(result.floor):
        x_real, y_real = result.floor["recall"].value, result.floor["precision"].value
        x = [one.figures["recall"].value for one in result.found]
        y = [one.figures["precision"].value for one in result.found]
        far = x_real - max(x) > 2 * (max(x) - min(x)) or y_real - max(y) > 2 * (max(y) - min(y))
        where = ([], []) if far else ([x_real], [y_real])
        said = f"real images: recall {x_real:.2f}, precision {y_real:.2f}"
        axis.plot(*where, "*", color="0.4", ms=11, label=said)
    axis.set(xlabel="recall (diversity)", ylabel="precision (fidelity)", title=f"numbers: {LABELS[scale]}")
    axis.title.set_fontsize(9)
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[1]:
        _legend(axis)


def _one_by_scale(axis: Any, result: Result, scale: str, name: str) -> None:
    """One figure by the scale."""
    lines = _lines(result, scale)
    for (label, line), mark in zip(lines.items(), _marks()):
        there = [one for one in sorted(line, key=lambda one: float(one.setting[scale])) if name in one.figures]
        _errors(axis, [one.setting[scale] for one in there], there, name, label, mark)
    if name in result.floor:
        _level(axis, result, name)
    axis.set(xlabel=LABELS[scale], ylabel=LABELS.get(name) or result.title(name))
    axis.grid(alpha=0.25)
    if len(lines) > 1 or name in result.floor:
        _legend(axis)


def _errors(axis: Any, x: Sequence[Any], line: Sequence[SettingResult], name: str, label: str, mark: str) -> None:
    values = [_times(name) * one.figures[name].value for one in line]
    errors = _times(name) * np.array([reach(one.figures[name], name) for one in line]).T
    axis.errorbar(x, values, errors if line else None, marker=mark, ms=4.5, lw=1.3, capsize=2.5, label=label or None)


def _level(axis: Any, result: Result, name: str) -> None:
    """Where real images lie, with the error as a band; said in the legend alone where it lies far off."""
    floor = result.floor[name]
    value, error = _times(name) * floor.value, _times(name) * floor.error
    shown_values = [_times(name) * one.figures[name].value for one in result.found if name in one.figures]
    low, high = min(shown_values), max(shown_values)
    if max(low - value, value - high) > 2 * (high - low):
        axis.plot([], [], color="0.45", ls="--", label=f"real images: {value:.3g} ± {error:.2g}")
        return
    axis.axhline(value, color="0.45", lw=1, ls="--", label="real images")
    below, above = (_times(name) * one for one in reach(floor, name))
    axis.axhspan(value - below, value + above, color="0.45", alpha=0.15, lw=0)


def _legend(axis: Any) -> None:
    """Below the axes, where it covers nothing."""
    count = len(axis.get_legend_handles_labels()[1])
    axis.legend(
        fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=min(count, 3), frameon=False, columnspacing=1
    )


def _marks() -> list[str]:
    return ["o", "s", "^", "D", "v", "P", "X", "<", ">", "*"] * 50


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomic(path, buffer.getvalue())


def memorisation_sheet(report: Memorisation, made: Images, train: Images, count: int = 16) -> Images:
    """The `count` closest made images, one a row, and right of each its nearest training images: (H', W', C).

    `made` (N, H, W, C) and `train` (T, H, W, C) in the order of the rows the report is of.

    Raises:
        Error: not as many images as the report has rows, or of other shapes.
    """
    if len(made) != len(report.made.distance) or report.made.index.max() >= len(train):
        raise Error(f"the report is of {len(report.made.distance)} made images; got {len(made)} and {len(train)}.")
    if made.shape[1:] != train.shape[1:]:
        raise Error(f"a sheet of images {made.shape[1:]} beside {train.shape[1:]}: give both in one size.")
    chosen = report.closest(count)
    rows = [np.concatenate([made[i : i + 1], train[report.made.index[i]]]) for i in chosen]
    return grid(np.concatenate(rows), columns=1 + SHOWN)
