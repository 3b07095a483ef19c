"""A comparison of restorers from end to end: `compare(images, runs, upscale=4) -> Comparison`.

`plan_compare` opens everything, damages the images and refuses what cannot be compared; `run_compare` has every method
restore them, and writes result.json, table.md and sheet.png after each, so that what is done is kept.

The image sheet of a comparison: a row an image: truth, degraded image, every method's first answer, with heads.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kuosan import config as trees
from kuosan.data.pixels import as_written, grid, save_png
from kuosan.data.reading import FACT
from kuosan.device import Compute, ComputeConfig, choose
from kuosan.errors import Error
from kuosan.evaluate import comparison, train_overlap
from kuosan.evaluate import damage as distortion
from kuosan.evaluate.comparison import NAME, SHEET, Comparison, ComparisonConfig, Contestant, Scores
from kuosan.evaluate.damage import Damaged, Distance, baselines, damage, measure
from kuosan.evaluate.job import SAMPLING
from kuosan.evaluate.report import TABLE
from kuosan.evaluate.train_overlap import Chosen, Schooling
from kuosan.events import Event, Fact, Finished, Progress, Wrote
from kuosan.metrics.image_quality import perceptual
from kuosan.models.model import ModelConfig, require_opaque
from kuosan.sample import pipeline
from kuosan.sample.constraint import conditioning_of
from kuosan.sample.generate import frames_of, resolve_request
from kuosan.sample.guidance_models import Guides
from kuosan.sample.pipeline import Pipeline, guides_of
from kuosan.sample.plan import SamplePlan, check_guides, check_request, with_levels
from kuosan.sample.request import Request
from kuosan.sample.write import GAP, cell
from kuosan.storage import manifest, outputs
from kuosan.storage.checkpoint import Saved
from kuosan.text.tokens import escaped

if TYPE_CHECKING:
    from kuosan.evaluate.job import CompareJob, ForeseenMethod
    from kuosan.events import OnProgress

MEASURED = 64  # answers of a rule measured at once
OWN = ("captions",)  # prompts=captions of a contestant: each image's own caption


@dataclass(frozen=True)
class MethodEntry:
    """A contestant, with what its request asks of its model."""

    name: str
    contestant: Contestant
    request: Request
    choice: SamplePlan


@dataclass(frozen=True)
class ComparePlan:
    """Which methods restore which images, everything opened; and where the result is kept."""

    job: CompareJob
    entries: tuple[MethodEntry, ...]
    chosen: Chosen
    damaged: Damaged
    distance: Distance
    features: dict[str, Any]
    compute: Compute
    folder: Path
    weights: tuple[str, ...] = ()  # sha256 of each contestant's
    saved: dict[str, Saved] = field(default_factory=dict, repr=False)  # the checkpoints of all runs, by their names

    @property
    def config(self) -> ComparisonConfig:
        """What the result depends on."""
        return self.job.settings

    @property
    def evaluations(self) -> int:
        """Network evaluations in all."""
        answers = len(self.damaged) * self.config.variants
        return answers * sum(entry.choice.evaluations for entry in self.entries)


def open_comparison(
    job: CompareJob,
    found: Sequence[Contestant],
    foreseen: Mapping[str, ForeseenMethod],
    progress: OnProgress,
    distance: Distance | None = None,
) -> ComparePlan:
    """Open the runs and the images, and damage these: what `plan_compare` does once torch is needed.

    Args:
        found: the contestants of the configuration.
        foreseen: of some of them, by what was typed, what config.yaml says.

    Raises:
        Error: what cannot be compared.
    """
    config, saved = job.settings, dict[str, Saved]()
    for run in (run for one in found for run in _runs(one)):
        saved[run] = saved[run] if run in saved else pipeline.saved_weights(run)
    models = {run: trees.build(ModelConfig, each.config.get("model", {})) for run, each in saved.items()}
    shape = _one_shape({one.run: models[one.run] for one in found})
    entries = []
    for name, one in zip(comparison.names(found), found):
        model, early = models[one.run], foreseen.get(one.text)
        known = early is not None and early.model == model
        request, choice = (early.request, early.choice) if early is not None and known else one.resolved(model)
        classifier, reference = (models[path] if path else None for path in (request.classifier, request.reference))
        check_guides(model, request, classifier, reference, choice.size)
        entries.append(MethodEntry(name, one, request, with_levels(model, choice)))
    schooling = {
        run: Schooling(each.config.get("data", {}), each.state.get("data"), each.state.get(FACT))
        for run, each in saved.items()
    }
    chosen = train_overlap.chosen(config, shape, schooling, progress)
    for entry in entries:
        if entry.request.prompts == OWN:
            _check_captions(models[entry.contestant.run], entry, _captions(chosen, entry))
    damaged = damage(config, chosen.images.batch(chosen.ids).x0)
    features: dict[str, Any] = {"name": "given", "hash": "", "resizing": ""}
    if distance is None:
        distance = perceptual(config.features)
        features = {"name": distance.name, "hash": distance.hash, "resizing": distance.resizing}
    compute = choose(config.compute)
    weights = tuple(manifest.read(each.path)["ema.safetensors"].sha256 for each in saved.values())
    return ComparePlan(
        job, tuple(entries), chosen, damaged, distance, features, compute, config.folder(), weights, saved
    )


def run_compare(plan: ComparePlan) -> Iterator[Event]:
    """Have every method restore the images, and write what was found; ends with the `Comparison`.

    Raises:
        Error: the folder of --out holds something else.
    """
    config = trees.plain(replace(plan.config, out=None, compute=ComputeConfig()))
    about = [config, plan.chosen.images.fingerprint, list(plan.chosen.names), list(plan.weights)]
    names, read = [NAME, TABLE, SHEET], plan.config.images
    with outputs.named(plan.config.out, plan.folder, "compare", about, names, read) as output:
        result = yield from _compared(replace(plan, folder=output.folder))
    yield Wrote(Path(result.folder))
    yield Finished(result)


def _compared(plan: ComparePlan) -> Generator[Event, None, Comparison]:
    """Have every method restore the images; the result is written again after each contestant."""
    sheet: dict[str, Tensor] = {}
    result = _begun(plan)
    rules = tuple(_by_rule(plan, name, sheet) for name in baselines(plan.damaged))
    result = replace(result, rules=rules)
    opened: dict[str, Pipeline] = {}
    for i, entry in enumerate(plan.entries):
        path = entry.contestant.run
        later = {other.contestant.run for other in plan.entries[i:]}
        opened = {name: each for name, each in opened.items() if name in later}
        if path not in opened:
            opened[path] = pipeline.of_saved(plan.saved[path], path, compute=plan.compute)
        scores = yield from _by_model(plan, entry, opened[path], sheet)
        result = replace(result, contestants=(*result.contestants, scores), lacking=result.lacking[1:])
        result.write(plan.folder)
        save_png(plan.folder / SHEET, comparison_sheet(plan.damaged, sheet))
    return result


def _captions(chosen: Chosen, entry: MethodEntry) -> list[str]:
    """The captions of the images compared on, as prompts. Raises: Error where one has none."""
    found = chosen.images.captions or [None] * len(chosen.images)
    own = [found[int(i)] for i in chosen.ids]
    if not all(own):
        name = chosen.names[own.index(next(text for text in own if not text))]
        raise Error(f"--with {entry.contestant.text}: {name} has no caption; say other prompts, or leave them out.")
    return [escaped(text) for text in own if text]


def _check_captions(model: ModelConfig, entry: MethodEntry, own: Sequence[str]) -> None:
    """Refuse captions that a model cannot read. Raises: Error."""
    try:
        check_request(model, replace(entry.request, prompts=tuple(own)))
    except Error as error:
        raise Error(f"--with {entry.contestant.text}: a caption of the images: {error}") from None


def _runs(one: Contestant) -> list[str]:
    """The runs that answer for a contestant: its own, and those that guide it."""
    return [run for run in (one.run, one.request.classifier, one.request.reference) if run is not None]


def _one_shape(models: dict[str, ModelConfig]) -> tuple[int, int, int]:
    shapes = {run: model.shape for run, model in models.items()}
    if len(set(shapes.values())) > 1:
        each = ", ".join(f"{run} {shape}" for run, shape in shapes.items())
        raise Error(f"the contestants make images of several shapes ({each}): compare those of one shape.")
    shape = next(iter(shapes.values()))
    assert shape is not None, "a trained model knows its shape"
    for model in models.values():
        require_opaque(model, "a comparison", "its measures know colours alone; look at the sheet of kuosan restore")
    return shape


def _begun(plan: ComparePlan) -> Comparison:
    """The result before any method was measured."""
    config, damaged = plan.config, plan.damaged
    floor = None
    if not config.noise:
        floor = float(distortion.consistency(damaged, distortion.levels(damaged.truth)).mean())
    return Comparison(
        config.damage,
        trees.plain(config),
        plan.chosen.images.shape,
        plan.chosen.names,
        plan.chosen.images.fingerprint,
        plan.features,
        floor,
        lacking=tuple(entry.name for entry in plan.entries),
        notes=plan.chosen.notes,
        compute=str(plan.compute),
        folder=str(plan.folder),
    )


def _by_rule(plan: ComparePlan, name: str, sheet: dict[str, Tensor]) -> Scores:
    """One of the ways without a model, measured."""
    damaged = plan.damaged
    begin = time.perf_counter()
    answers = baselines(damaged)[name](damaged)
    seconds = (time.perf_counter() - begin) / len(damaged)
    sheet[name] = as_written(answers[:ROWS])
    rounded = distortion.levels(answers)[:, None]
    parts = [
        measure(damaged.rows(first, first + MEASURED), rounded[first : first + MEASURED], plan.distance)
        for first in range(0, len(damaged), MEASURED)
    ]
    return Scores(name, _joined(parts), seconds=seconds)


def _by_model(
    plan: ComparePlan, entry: MethodEntry, model: Pipeline, sheet: dict[str, Tensor]
) -> Generator[Event, None, Scores]:
    """A contestant's answers, made and measured some images at a time."""
    damaged, config = plan.damaged, plan.config
    many = max(1, config.batch // config.variants)  # images at a time
    named = {"classifier": entry.request.classifier, "reference": entry.request.reference}
    helpers = {
        name: pipeline.of_saved(plan.saved[path], path, compute=plan.compute)
        for name, path in named.items()
        if path is not None
    }
    parts, first_answers, seconds = [], [], 0.0
    for first in range(0, len(damaged), many):
        part = damaged.rows(first, first + many)
        begin = time.perf_counter()
        answers = yield from _answers(plan, entry, model, guides_of(helpers), part, first)
        seconds += time.perf_counter() - begin
        rest = len(damaged) - first - len(part)
        if not first and rest:
            left = {
                "seconds": seconds * rest / len(part),
                "evaluations": rest * config.variants * entry.choice.evaluations,
            }
            yield Fact(SAMPLING, left)
        parts.append(measure(part, answers, plan.distance))
        first_answers.append(answers[:, 0])
    shown = torch.cat(first_answers)[:ROWS]
    sheet[entry.name] = shown.float() / 127.5 - 1
    made = {
        "text": entry.contestant.text,
        "settings": entry.contestant.settings,
        "run": entry.contestant.run,
        "step": model.step,
        "weights": model.weights,
        "helpers": {name: each.weights for name, each in helpers.items()},
        "method": entry.choice.method,
        "sampler": entry.choice.sampler,
        "steps": entry.choice.steps,
        "request": trees.plain(replace(entry.request, n=len(damaged) * config.variants)),
    }
    each = seconds / (len(damaged) * config.variants)
    return Scores(entry.name, _joined(parts), config.variants, entry.choice.evaluations, each, made)


def _answers(
    plan: ComparePlan,
    entry: MethodEntry,
    model: Pipeline,
    guides: Guides,
    part: Damaged,
    first: int,
) -> Generator[Event, None, Tensor]:
    """Answers to some images, the first of them number `first`: (N, V, C, H, W) uint8."""
    variants = plan.config.variants
    n = len(part) * variants
    request = replace(entry.request, n=n, seed=entry.request.seed + first * variants)
    if request.prompts == OWN:
        own = _captions(plan.chosen, entry)[first : first + len(part)]
        request = replace(request, prompts=tuple(text for text in own for _ in range(variants)))
    degraded = part.degraded.repeat_interleave(variants, 0)
    hole = None if part.hole is None else part.hole.repeat_interleave(variants, 0)
    assert request.restoration is not None
    given, measurement = conditioning_of(model.model, request.restoration, entry.choice.method, degraded, hole)
    total, before = len(plan.damaged) * variants, first * variants
    finished = []
    sampling = resolve_request(
        model.model, request, guides=guides, given=given, measurement=measurement, resolved=entry.choice
    )
    for frame in frames_of(sampling):
        done = frame.first * frame.steps + len(frame.x) * frame.step
        yield Progress(entry.name, before * frame.steps + done, total * frame.steps)
        if frame.done:
            finished.append(distortion.levels(frame.x))
    flat = torch.cat(finished)
    return flat.view(len(part), variants, *flat.shape[1:])


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, list[float]]:
    """The values of all images, by measure."""
    return {name: np.concatenate([part[name].numpy() for part in parts]).tolist() for name in parts[0]}


CELL = 128  # pixels a side at least: images are enlarged by whole factors to it
ROWS = 8  # images at most


def comparison_sheet(damaged: Damaged, answers: Mapping[str, Tensor]) -> np.ndarray:
    """The first images, (H', W', 3): truth, degraded, and answers (N, C, H, W) in [-1, 1] or uint8 by name."""
    height, width = damaged.truth.shape[-2:]
    factor = -(-CELL // min(height, width))
    columns = {"truth": damaged.truth, "degraded": damaged.degraded, **answers}
    rows = range(min(ROWS, len(damaged)))
    cells = [cell(images[r], (factor * width, factor * height)) for r in rows for images in columns.values()]
    return grid(cells, len(columns), GAP, labels=[*columns])
