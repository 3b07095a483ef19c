"""An evaluation from end to end: `measure(target, ...) -> Result`.

`plan_evaluate` has opened everything and refused what cannot be measured; `run_evaluate` makes the images that are
lacking, measures them, and writes result.json, table.md, table.csv, sheets and plots.

The memorisation report of an evaluation: made images beside their nearest training images.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kuosan import config as trees
from kuosan.data.pixels import enlarge, save_png
from kuosan.errors import Error
from kuosan.evaluate import likelihood, plot, remarks
from kuosan.evaluate import result as measures
from kuosan.evaluate.config import EvaluateConfig, configured
from kuosan.evaluate.eval_images import memorisation_sides
from kuosan.evaluate.job import EvaluateJob, EvaluationReport, SilentEvaluation, finish, follow
from kuosan.evaluate.plan import plan_evaluate
from kuosan.evaluate.plot import memorisation_sheet
from kuosan.evaluate.prepare import EvaluatePlan, point_rows, side_rows
from kuosan.evaluate.result import Result, SettingResult
from kuosan.evaluate.sampling import images_of, make, seconds_an_image, share
from kuosan.events import Event, Finished, Wrote
from kuosan.metrics import memorisation
from kuosan.metrics.kid import kid_difference
from kuosan.sample.pipeline import spoken
from kuosan.sample.write import SIDE
from kuosan.storage import outputs

if TYPE_CHECKING:
    from kuosan.evaluate.sampling import PointPlan
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
        report: follows how it goes on.
        options: settings of `EvaluateConfig`, and of `Request`, by their own names.

    Raises:
        Error: what cannot be sampled or measured; nothing is made then.
    """
    if config is not None and options:
        raise Error(f"{', '.join(options)}: give a config or single settings, not both.")
    report = report or SilentEvaluation()
    config = config or configured(nested(options))
    model = None if isinstance(target, str | Path) else target
    job = EvaluateJob.of(str(target) if model is None else model.name, config)
    plan = plan_evaluate(job, follow(report), model=model, network=network)
    if plan.memorisation is not None:
        report.say(plan.memorisation.line(lambda seconds: f"{seconds:.0f} s"))
    found: Result = finish(run_evaluate(plan), report)
    return found


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """Settings by their own names as a tree: those of the request and of compute in their groups."""
    options = spoken(options)
    usual = trees.plain(EvaluateConfig())
    tree: dict[str, Any] = {}
    for name, value in options.items():
        groups = [group for group in ("request", "compute") if name in usual[group] and name not in usual]
        (tree.setdefault(groups[0], {}) if groups else tree)[name] = value
    return tree


def run_evaluate(plan: EvaluatePlan) -> Iterator[Event]:
    """Make what is lacking, measure, write; into a folder that holds no other result; ends with the `Result`.

    Raises:
        Error: the folder of --out holds something else, or another process writes there.
    """
    config = plan.config
    read = [config.against, "" if plan.model else plan.target]
    about, names = _identity(plan), _names(plan)
    with outputs.named(config.out, plan.folder, "evaluate", about, names, *read) as output:
        result = yield from _evaluated(replace(plan, folder=output.folder))
    yield Wrote(Path(str(result.folder)))
    yield Finished(result)


def _names(plan: EvaluatePlan) -> list[str]:
    """The files that are written."""
    names = ["result.json", "table.md"]
    if plan.network is not None:
        names += ["table.csv", "sheet.png", "real.png"]
    if plan.config.sweep:
        names.append("plot.png")
    if "memorisation" in plan.metrics:
        names += [name_of(each) for each in plan.points]
    return [*names, *([likelihood.CURVE] if plan.bits is not None else [])]


def _identity(plan: EvaluatePlan) -> Any:
    """All that the result follows from, as plain values."""
    made = None if plan.made is None else plan.made.images.fingerprint
    weights = None if plan.model is None else plan.model.weights
    network = None if plan.network is None else [plan.network.name, plan.network.hash]
    config = trees.plain(replace(plan.config, out=None))
    return [plan.target, config, weights, plan.reference.images.fingerprint, made, network]


def _evaluated(plan: EvaluatePlan) -> Generator[Event, None, Result]:
    """Make what is lacking, measure, write into a claimed folder."""
    begin = time.perf_counter()
    model, images = plan.model, plan.reference.images
    compared: dict[str, Any] = {}
    if plan.network is not None:
        compared = yield from _compared(plan, plan.network)
    bits = None
    if plan.bits is not None and plan.full is not None:
        bits = yield from likelihood.measured(plan.full, plan.bits, plan.config, plan.folder)
    result = Result(
        plan.target,
        plan.reference.what,
        len(plan.reference),
        images.config.path,
        images.fingerprint,
        **compared,
        step=None if model is None else model.step,
        weights=None if model is None else model.weights,
        compute=None if model is None else str(model.compute),
        judge=None if plan.judge is None else {"run": plan.config.judge, "weights": plan.judge.hash},
        likelihood=bits,
        seconds=round(time.perf_counter() - begin, 3),
        warnings=plan.warnings,
        folder=str(plan.folder),
    )
    if result.found:
        _draw(plan, result)
    result.write(plan.folder)
    return result


def _compared(plan: EvaluatePlan, network: FeatureNetwork) -> Generator[Event, None, dict[str, Any]]:
    """The figures of all images against real ones, and by what features."""
    if plan.model is not None:
        yield from make(plan.model, plan.points)
    reference = yield from side_rows(plan, plan.reference, network)
    found = yield from _found(plan, network, reference)
    floor, floor_of = yield from _floor(plan, network)
    sides = (("made", plan.made), ("real", plan.reference))
    return {
        "features": {"name": network.name, "hash": network.hash, "dim": network.dim, "size": network.size},
        "resize": network.resizing,
        "file_format": remarks.file_format(plan.made, plan.reference),
        "images": {name: remarks.facts(side) for name, side in sides if side is not None},
        "remarks": plan.described,
        "found": tuple(found),
        "floor": floor,
        "floor_of": floor_of,
    }


def _found(
    plan: EvaluatePlan, network: FeatureNetwork, reference: np.ndarray
) -> Generator[Event, None, list[SettingResult]]:
    """The figures of each point, or of the folder's images."""
    metrics, force, judge = plan.metrics, plan.config.force, plan.judge
    if plan.made is not None:
        made = yield from side_rows(plan, plan.made, network)
        found = SettingResult(
            plan.made.what, {}, len(made), measures.figures(plan.distances, made, reference, force=force)
        )
        if judge is not None:
            logits = yield from side_rows(plan, plan.made, judge)
            _add_labels(found, plan, logits, plan.made.labels())
        return [found]
    points: list[SettingResult] = []
    first: np.ndarray | None = None
    for each in plan.points:
        made = yield from point_rows(plan, each, network)
        found = _of_point(each, measures.figures(plan.distances, made, reference, force=force))
        if first is not None and "kid" in metrics:
            found.more["kid"] = kid_difference(made, first, reference)
        first = made if first is None else first
        if judge is not None:
            logits = yield from point_rows(plan, each, judge)
            _add_labels(found, plan, logits, np.array(each.wanted(0, found.n)))
        if "memorisation" in metrics:
            yield from add_memorisation(found, plan, network, each, made)
        points.append(found)
    return points


def _of_point(each: PointPlan, figures: dict[str, Estimate]) -> SettingResult:
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
        seconds_an_image(each.store, request.n),
        helpers={name: helper.weights for name, helper in each.helpers.items()},
        shares=each.shares,
        captions=len(each.prompts),
    )


def _add_labels(found: SettingResult, plan: EvaluatePlan, logits: np.ndarray, wanted: np.ndarray | None) -> None:
    """How many images the judge finds to be of the wanted class; those that are to be of none are left out."""
    assert plan.judge is not None and wanted is not None
    there = (wanted >= 0) & (wanted < plan.judge.dim)
    if not there.any():
        raise Error("label agreement has nothing to judge: every image is to be of no class.")
    found.figures["labels"], agreed = share(logits[there], wanted[there], plan.judge.classes)
    found.details["labels"] = {
        "pictures": int(there.sum()),
        "interval": [agreed.accuracy.low, agreed.accuracy.high],
        "classes": list(plan.judge.classes),
        "confusion": agreed.confusion.tolist(),
    }


def _floor(plan: EvaluatePlan, network: FeatureNetwork) -> Generator[Event, None, tuple[dict[str, Estimate], str]]:
    """The same figures of real images, and which those are."""
    one, other = plan.floor
    floor: dict[str, Estimate] = {}
    if plan.distances:
        pair = []
        for side in (one, other):
            pair.append((yield from side_rows(plan, side, network)))
        floor = measures.floor(plan.distances, *pair)
    labels, judge = plan.reference.labels(), plan.judge
    if judge is not None and labels is not None and plan.reference.images.classes == judge.classes:
        logits = yield from side_rows(plan, plan.reference, judge)
        floor["labels"] = share(logits[labels >= 0], labels[labels >= 0], judge.classes)[0]
    return floor, f"{len(one):,} {one.what} against {len(other):,} {other.what}"


def _draw(plan: EvaluatePlan, result: Result) -> None:
    """Sheets to look at, and the plot of a sweep."""
    if plan.made is not None:
        made = [("", plan.made.shown(plot.SHEET))]
    else:
        made = [(each.point.name, images_of(each.store, 0, min(plot.SHEET, each.request.n))) for each in plan.points]
    plot.sheet(plan.folder / "sheet.png", made)
    plot.sheet(plan.folder / "real.png", [("", plan.reference.shown(plot.SHEET))])
    if plan.config.sweep:
        plot.sweep(plan.folder / "plot.png", result)


SHOWN = 16  # images on the sheet


def add_memorisation(
    found: SettingResult,
    plan: EvaluatePlan,
    network: FeatureNetwork,
    each: PointPlan,
    made: np.ndarray,
) -> Generator[Event, None, None]:
    """Compare made features (N, D) with all training images', held-out ones as the baseline; write the sheet.

    The figure `nearer` is the chance that a made image lies closer to training than a held-out one does: 0.5 if
    nothing is memorised, 1 if all is.
    """
    own = plan.own
    assert own is not None
    train, held = memorisation_sides(own, found.n)
    held_rows = yield from side_rows(plan, held, network)
    train_rows = yield from side_rows(plan, train, network)
    compared = memorisation.memorisation(made, held_rows, train_rows)
    below = compared.below
    images = np.moveaxis(images_of(each.store, 0, found.n), 1, -1)
    known = np.moveaxis(train.bytes(), 1, -1)
    same = memorisation.copies(images, known)
    found.figures["nearer"] = compared.nearer
    found.details["memorisation"] = {
        "training_pictures": len(train),
        "compared_at": f"features of {network.name} ({network.resizing}); copies: whole pixels at "
        f"{known.shape[2]}x{known.shape[1]}",
        "held_out_pictures": len(held),
        "below": {"share": below.value, "interval": [below.low, below.high], "expected": compared.quantile},
        "p_value": compared.p_value,
        "flagged": compared.flagged,
        "distance_ratio": compared.ratio,
        "copies": len(same),
        "closest_seeds": [each.request.seed + int(i) for i in compared.closest(SHOWN)],
    }
    factor = max(1, SIDE // max(known.shape[1:3]))
    save_png(plan.folder / name_of(each), enlarge(memorisation_sheet(compared, images, known, SHOWN), factor))


def name_of(each: PointPlan) -> str:
    """The sheet of a point's closest images; a swept value may be a path."""
    return "-".join(["nearest", *re.findall(r"[\w.]+", each.point.name.replace(" ", ""))]) + ".png"
