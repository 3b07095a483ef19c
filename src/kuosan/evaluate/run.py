"""An evaluation from end to end: `measure(target, ...) -> Result`.

`prepare` has opened everything and refused what cannot be measured; `run` makes the images that are lacking,
measures them, and writes result.json, table.md, table.csv, sheets and plots.

The memorisation report of an evaluation: made images beside their nearest training images.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kuosan import config as trees
from kuosan.data.images import enlarge, save_png
from kuosan.errors import Error
from kuosan.evaluate import likelihood, plot, remarks
from kuosan.evaluate import result as measures
from kuosan.evaluate.class_accuracy import share
from kuosan.evaluate.config import HELD_OUT, TRAIN, EvaluateConfig, configured
from kuosan.evaluate.eval_images import Side, shuffled
from kuosan.evaluate.plot import memorisation_sheet
from kuosan.evaluate.prepare import EvaluationSetup, job_rows, prepare, side_rows
from kuosan.evaluate.result import EvaluationReport, Result, SettingResult, SilentEvaluation
from kuosan.evaluate.sampling import make
from kuosan.metrics import memorisation
from kuosan.metrics.kid import kid_difference
from kuosan.sample.write import SIDE
from kuosan.storage import outputs

if TYPE_CHECKING:
    from kuosan.evaluate.prepare import EvaluationSetup
    from kuosan.evaluate.result import EvaluationReport, SettingResult
    from kuosan.evaluate.sampling import Job
    from kuosan.metrics.estimate import Estimate
    from kuosan.metrics.features.network import FeatureNetwork
    from kuosan.sample.pipeline import Pipeline


def measure(
    target: str | Path | Pipeline,
    config: EvaluateConfig | None = None,
    *,
    network: FeatureNetwork | None = None,
    report: EvaluationReport | None = None,
    **options: Any,
) -> Result:
    """Measure a run, a checkpoint, or a folder of images against real ones: measure("runs/mine", n=500, steps=10).

    Args:
        network: the feature network, where it is none of the named ones.
        report: hears how it goes on.
        options: settings of `EvaluateConfig`, and of `Request`, by their own names.

    Raises:
        Error: what cannot be sampled or measured; nothing is made then.
    """
    if config is not None and options:
        raise Error(f"{', '.join(options)}: give a config or single settings, not both.")
    report = report or SilentEvaluation()
    config = config or configured(nested(options))
    return run(prepare(target, config, report.progress, network=network), report)


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """Settings by their own names as a tree: those of the request and of compute in their groups."""
    usual = trees.plain(EvaluateConfig())
    tree: dict[str, Any] = {}
    for name, value in options.items():
        groups = [group for group in ("request", "compute") if name in usual[group] and name not in usual]
        (tree.setdefault(groups[0], {}) if groups else tree)[name] = value
    return tree


def run(prepared: EvaluationSetup, report: EvaluationReport) -> Result:
    """Make what is lacking, measure, write; into a folder that holds no other result.

    Raises:
        Error: the folder of --out holds something else, or another process writes there.
    """
    config = prepared.config
    read = [config.against, "" if prepared.model else prepared.target]
    about, names = _identity(prepared), _names(prepared)
    with outputs.named(config.out, prepared.folder, "evaluate", about, names, *read) as output:
        return _run(replace(prepared, folder=output.folder), report)


def _names(prepared: EvaluationSetup) -> list[str]:
    """The files that are written."""
    names = ["result.json", "table.md"]
    if prepared.network is not None:
        names += ["table.csv", "sheet.png", "real.png"]
    if prepared.config.sweep:
        names.append("plot.png")
    if "memorisation" in prepared.metrics:
        names += [name_of(each) for each in prepared.jobs]
    return [*names, *([likelihood.CURVE] if prepared.bits is not None else [])]


def _identity(prepared: EvaluationSetup) -> Any:
    """All that the result follows from, as plain values."""
    made = None if prepared.made is None else prepared.made.images.fingerprint
    weights = None if prepared.model is None else prepared.model.weights
    network = None if prepared.network is None else [prepared.network.name, prepared.network.hash]
    config = trees.plain(replace(prepared.config, out=None))
    return [prepared.target, config, weights, prepared.reference.images.fingerprint, made, network]


def _run(prepared: EvaluationSetup, report: EvaluationReport) -> Result:
    """Make what is lacking, measure, write into a claimed folder."""
    begin = time.perf_counter()
    model, images = prepared.model, prepared.reference.images
    compared: dict[str, Any] = {}
    if prepared.network is not None:
        compared = _compared(prepared, prepared.network, report)
    told = None
    if prepared.bits is not None and model is not None:
        told = likelihood.measure(model, prepared.bits, prepared.config, prepared.folder, report)
    result = Result(
        prepared.target,
        prepared.reference.what,
        len(prepared.reference),
        images.config.path,
        images.fingerprint,
        **compared,
        step=None if model is None else model.step,
        weights=None if model is None else model.weights,
        compute=None if model is None else str(model.compute),
        judge=None if prepared.judge is None else {"run": prepared.config.judge, "weights": prepared.judge.hash},
        likelihood=told,
        seconds=round(time.perf_counter() - begin, 3),
        warnings=prepared.warnings,
        folder=str(prepared.folder),
    )
    if result.found:
        _draw(prepared, result)
    result.write(prepared.folder)
    return result


def _compared(prepared: EvaluationSetup, network: FeatureNetwork, report: EvaluationReport) -> dict[str, Any]:
    """The figures of all images against real ones, and by what features."""
    if prepared.model is not None:
        make(prepared.model, prepared.jobs, report)
    reference = side_rows(prepared, prepared.reference, network, report)
    found = tuple(_found(prepared, network, reference, report))
    floor, floor_of = _floor(prepared, network, report)
    sides = (("made", prepared.made), ("real", prepared.reference))
    return {
        "features": {"name": network.name, "hash": network.hash, "dim": network.dim, "size": network.size},
        "resize": network.resizing,
        "file_format": remarks.file_format(prepared.made, prepared.reference),
        "images": {name: remarks.facts(side) for name, side in sides if side is not None},
        "remarks": tuple(line for _, side in sides if side is not None for line in remarks.described(side, network)),
        "found": found,
        "floor": floor,
        "floor_of": floor_of,
    }


def _found(
    prepared: EvaluationSetup, network: FeatureNetwork, reference: np.ndarray, report: EvaluationReport
) -> list[SettingResult]:
    """The figures of each point, or of the folder's images."""
    metrics, force, judge = prepared.metrics, prepared.config.force, prepared.judge
    if prepared.made is not None:
        made = side_rows(prepared, prepared.made, network, report)
        found = SettingResult(
            prepared.made.what, {}, len(made), measures.figures(prepared.distances, made, reference, force=force)
        )
        if judge is not None:
            _add_labels(found, prepared, side_rows(prepared, prepared.made, judge, report), prepared.made.labels())
        return [found]
    points: list[SettingResult] = []
    first: np.ndarray | None = None
    for each in prepared.jobs:
        made = job_rows(prepared, each, network, report)
        found = _of_job(each, measures.figures(prepared.distances, made, reference, force=force))
        if first is not None and "kid" in metrics:
            found.more["kid"] = kid_difference(made, first, reference)
        first = made if first is None else first
        if judge is not None:
            _add_labels(found, prepared, job_rows(prepared, each, judge, report), np.array(each.wanted(0, found.n)))
        if "memorisation" in metrics:
            add(found, prepared, network, each, made, report)
        points.append(found)
    return points


def _of_job(each: Job, figures: dict[str, Estimate]) -> SettingResult:
    request, choice = each.request, each.choice
    return SettingResult(
        each.point.name,
        each.point.setting,
        request.n,
        figures,
        (request.seed, request.seed + request.n - 1),
        trees.plain(request),
        choice.sampler,
        choice.steps,
        choice.spacing,
        choice.evaluations,
        each.store.seconds(request.n),
        helpers={name: helper.weights for name, helper in each.helpers.items()},
        shares=each.shares,
        captions=len(each.prompts),
    )


def _add_labels(found: SettingResult, prepared: EvaluationSetup, logits: np.ndarray, wanted: np.ndarray | None) -> None:
    """How many images the judge finds to be of the class asked for; those asked to be of none are left out."""
    assert prepared.judge is not None and wanted is not None
    there = (wanted >= 0) & (wanted < prepared.judge.dim)
    if not there.any():
        raise Error("label agreement has nothing to judge: every image is asked to be of no class.")
    found.figures["labels"], agreed = share(logits[there], wanted[there], prepared.judge.classes)
    found.details["labels"] = {
        "pictures": int(there.sum()),
        "interval": [agreed.accuracy.low, agreed.accuracy.high],
        "classes": list(prepared.judge.classes),
        "confusion": agreed.confusion.tolist(),
    }


def _floor(
    prepared: EvaluationSetup, network: FeatureNetwork, report: EvaluationReport
) -> tuple[dict[str, Estimate], str]:
    """The same figures of real images, and which those are."""
    one, other = prepared.floor
    floor: dict[str, Estimate] = {}
    if prepared.distances:
        pair = [side_rows(prepared, side, network, report) for side in (one, other)]
        floor = measures.floor(prepared.distances, *pair)
    labels, judge = prepared.reference.labels(), prepared.judge
    if judge is not None and labels is not None and prepared.reference.images.classes == judge.classes:
        logits = side_rows(prepared, prepared.reference, judge, report)
        floor["labels"] = share(logits[labels >= 0], labels[labels >= 0], judge.classes)[0]
    return floor, f"{len(one):,} {one.what} against {len(other):,} {other.what}"


def _draw(prepared: EvaluationSetup, result: Result) -> None:
    """Sheets to look at, and the plot of a sweep."""
    if prepared.made is not None:
        made = [("", prepared.made.shown(plot.SHEET))]
    else:
        made = [(each.point.name, each.store.images(0, min(plot.SHEET, each.request.n))) for each in prepared.jobs]
    plot.sheet(prepared.folder / "sheet.png", made)
    plot.sheet(prepared.folder / "real.png", [("", prepared.reference.shown(plot.SHEET))])
    if prepared.config.sweep:
        plot.sweep(prepared.folder / "plot.png", result)


SHOWN = 16  # images on the sheet
MOST = 1000  # held-out images of the baseline, or as many as are made


def add(
    found: SettingResult,
    prepared: EvaluationSetup,
    network: FeatureNetwork,
    each: Job,
    made: np.ndarray,
    report: EvaluationReport,
) -> None:
    """Compare made features (N, D) with all training images', held-out ones as the baseline; write the sheet.

    The figure `nearer` is the chance that a made image lies closer to training than a held-out one does: 0.5 if
    nothing is memorised, 1 if all is.
    """
    own = prepared.own
    assert own is not None
    train = Side.of("training images", own, shuffled(own, TRAIN))
    held = Side.of("held-out images", own, shuffled(own, HELD_OUT), 0, max(found.n, MOST))
    told = memorisation.memorisation(
        made,
        side_rows(prepared, held, network, report),
        side_rows(prepared, train, network, report),
    )
    images = np.moveaxis(each.store.images(0, found.n), 1, -1)
    known = np.moveaxis(train.bytes(), 1, -1)
    same = memorisation.copies(images, known)
    found.figures["nearer"] = told.nearer
    found.details["memorisation"] = {
        "training_pictures": len(train),
        "compared_at": f"features of {network.name} ({network.resizing}); copies: whole pixels at "
        f"{known.shape[2]}x{known.shape[1]}",
        "held_out_pictures": len(held),
        "below": {"share": told.below.value, "interval": [told.below.low, told.below.high], "expected": told.quantile},
        "p_value": told.p_value,
        "flagged": told.flagged,
        "distance_ratio": told.ratio,
        "copies": len(same),
        "closest_seeds": [each.request.seed + int(i) for i in told.closest(SHOWN)],
    }
    factor = max(1, SIDE // max(known.shape[1:3]))
    save_png(prepared.folder / name_of(each), enlarge(memorisation_sheet(told, images, known, SHOWN), factor))


def name_of(each: Job) -> str:
    """The sheet of a point's closest images; a swept value may be a path."""
    return "-".join(["nearest", *re.findall(r"[\w.]+", each.point.name.replace(" ", ""))]) + ".png"
