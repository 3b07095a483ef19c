"""Features of images, kept on disk chunk by chunk (`storage.cache`): computed once, and a killed computation goes on.

The plan of an evaluation: all that it needs, opened and checked once, before anything is made.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kuosan import config as trees
from kuosan.data.config import RGBA, DataConfig
from kuosan.device import choose as choose_compute
from kuosan.errors import Error, plural
from kuosan.evaluate import config as sweep
from kuosan.evaluate import eval_images, likelihood, remarks, result, sampling
from kuosan.evaluate.config import HELD_OUT, TRAIN, EvaluateConfig
from kuosan.evaluate.eval_images import MemorisationCost, Side, memorisation_sides
from kuosan.evaluate.images import ImageFiles, open_images
from kuosan.evaluate.sampling import Judge, PointPlan, about, image_cache, images_of, key, lacking, open_judge
from kuosan.events import Event, Progress
from kuosan.metrics.features import features
from kuosan.metrics.memorisation import LEAST, NEIGHBOURS
from kuosan.models.model import require_opaque, require_pixels, require_whole, require_wordless
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.sample import pipeline
from kuosan.sample import plan as sizes
from kuosan.sample.plan import check_guides, with_levels
from kuosan.storage import checkpoint
from kuosan.storage.cache import Older, RowCache

if TYPE_CHECKING:
    from kuosan.data.dataset import Images
    from kuosan.evaluate.config import Point
    from kuosan.evaluate.eval_images import Side
    from kuosan.evaluate.job import EvaluateJob, Foreseen
    from kuosan.evaluate.sampling import PointPlan
    from kuosan.events import OnProgress
    from kuosan.metrics.features.network import FeatureNetwork
    from kuosan.sample.pipeline import Pipeline
    from kuosan.sample.plan import Choice
    from kuosan.storage.checkpoint import Saved
    from kuosan.tasks import Task

CHUNK = 256  # images a file


class Reader(Protocol):
    """What makes a row of numbers of an image: a feature network, or a classifier."""

    @property
    def name(self) -> str:
        """Its name, fit for a folder's."""

    @property
    def hash(self) -> str:
        """Of its weights."""

    @property
    def dim(self) -> int:
        """Numbers an image."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """uint8 (B, C, H, W) -> (B, dim)."""


@dataclass
class FeatureCaches:
    """The rows that an evaluation has read, by place; those of a network without a hash go when it ends."""

    caches: dict[Path, RowCache] = field(default_factory=dict)

    def at(self, place: Path, reader: Reader, of: str) -> RowCache:
        """The rows that a reader makes of some images. Raises: Error: the folder cannot be read."""
        if place not in self.caches:
            folder = place
            if not reader.hash:  # another network of the same name would be taken for it
                passing = tempfile.mkdtemp(prefix="kuosan-features-")
                weakref.finalize(self, shutil.rmtree, passing, ignore_errors=True)
                folder = Path(passing) / reader.name
            self.caches[place] = _row_cache(folder, reader, of)
            self.caches[place].adopt("*.npy", partial(_older, dim=reader.dim))
        return self.caches[place]


def _row_cache(folder: Path, reader: Reader, of: str) -> RowCache:
    """What a reader makes of some images, kept in a folder."""
    key = {"network": reader.name, "hash": reader.hash, "of": of}
    return RowCache(folder.parent, "features", key, None, {"rows": (np.float32, (reader.dim,))}, at=folder)


def rows(
    network: Reader,
    images: Callable[[int, int], Iterable[np.ndarray]],
    begin: int,
    end: int,
    folder: Path,
    what: str,
    memory: FeatureCaches,
) -> Generator[Event, None, np.ndarray]:
    """The features of images `begin` to `end` - 1, (N, D) float32; no image is read that was read before.

    Args:
        images: (first, last) -> runs of (b, C, H, W) uint8, called only for what is not kept.
        folder: where they are kept, of these images alone.
        what: this work, in words.
        memory: what this evaluation has read, to which is added.
    """
    cache = memory.at(folder / f"{network.name.replace(' ', '-')}-{network.hash[:12]}", network, folder.name)
    for gap in cache.missing(begin, end):
        at = gap.start
        while at < gap.stop:
            last = min(at - at % CHUNK + CHUNK, gap.stop)
            new = [network(torch.from_numpy(part)).float().cpu().numpy() for part in images(at, last)]
            cache.put(at, {"rows": np.concatenate(new)})
            at = last
            yield Progress(what, at - begin, end - begin)
    return np.array(cache.open(begin, end)["rows"])


def side_rows(plan: EvaluatePlan, side: Side, reader: Reader) -> Generator[Event, None, np.ndarray]:
    """What a network reads of real images, kept for every later evaluation against the same ones."""
    folder, what = plan.home / "features" / side.key, f"{reader.name} of {side.what}"
    every = yield from rows(reader, side.parts, side.begin, side.end, folder, what, plan.memory)
    found: np.ndarray = every[side.counted]
    return found


def point_rows(plan: EvaluatePlan, each: PointPlan, reader: Reader) -> Generator[Event, None, np.ndarray]:
    """What a network reads of a point's images, kept beside them."""
    what = f"{reader.name} {each.point.name}".strip()

    def made(first: int, last: int) -> Iterator[np.ndarray]:
        yield images_of(each.store, first, last)

    found = yield from rows(reader, made, 0, each.request.n, each.store.path / "features", what, plan.memory)
    return found


def _older(path: Path, dim: int) -> Older:
    """Features as they were kept before. Raises: ValueError, OSError."""
    kept: np.ndarray = np.load(path)
    good = kept.ndim == 2 and kept.shape[1] == dim and kept.dtype == np.float32 and bool(np.isfinite(kept).all())
    if not good or not len(kept):
        raise ValueError(f"{kept.shape} {kept.dtype}")
    return int(path.stem), {"rows": kept}, 0.0


FOLDER = "evaluations"
FEW = 10_000  # training images up to which memorisation is looked for where no metric is named: it reads them all
TIMED = 16  # images that are read to say how long all of them take


@dataclass(frozen=True)
class EvaluatePlan:
    """What is measured, against what, by what; and where it is kept."""

    target: str
    job: EvaluateJob
    folder: Path  # where the result is written
    home: Path  # where images and features are kept
    network: FeatureNetwork | None  # None: nothing is compared
    metrics: tuple[str, ...]
    reference: Side
    floor: tuple[Side, Side]
    model: Pipeline | None = None  # None: the images of `made` are judged
    points: tuple[PointPlan, ...] = ()
    made: Side | None = None
    own: Images | None = None  # what the model was trained on
    bits: Side | None = None  # images whose likelihood is measured
    full: Pipeline | None = None  # the model in float32, by which that is done
    judge: Judge | None = None
    warnings: tuple[str, ...] = ()
    described: tuple[str, ...] = ()  # what was done to the images of both sides, in sentences
    memorisation: MemorisationCost | None = None  # None: it is not measured, or all is kept from before
    memory: FeatureCaches = field(default_factory=FeatureCaches, repr=False)  # rows that were read

    @property
    def config(self) -> EvaluateConfig:
        """What the result depends on, but for the target."""
        return self.job.settings

    @property
    def distances(self) -> list[str]:
        """The metrics of two sets of feature rows."""
        return [name for name in self.metrics if name in result.DISTANCES]

    @property
    def lacking(self) -> tuple[int, int]:
        """Images and network evaluations still to be made."""
        missing = [each.request.n - each.kept for each in self.points]
        return sum(missing), sum(n * each.choice.evaluations for n, each in zip(missing, self.points))

    @property
    def made_now(self) -> int:
        """Images that are kept by now; the plan knows how many there were when it was made."""
        return sum(each.request.n - lacking(each.store, each.request.n) for each in self.points)


def is_run(target: str | Path) -> bool:
    """Whether a path is a run or a checkpoint, not images."""
    path = Path(target)
    return any((path / name).exists() for name in (checkpoint.FOLDER, "manifest.json", checkpoint.CONFIG))


def open_evaluation(
    job: EvaluateJob,
    points: Sequence[Point],
    foreseen: Foreseen,
    progress: OnProgress,
    model: Pipeline | None = None,
    network: FeatureNetwork | None = None,
) -> EvaluatePlan:
    """Open the target, the real images and the networks: what `plan_evaluate` does once torch is needed.

    Raises:
        Error: something cannot be opened, sampled or measured.
    """
    if model is None and not is_run(job.target):
        return _of_images(job, network or features(job.features), progress)
    network = (network or features(job.features)) if job.settings.sampled else None
    plan = _of_model(job, model, points, foreseen, network, progress)
    return replace(plan, memorisation=_memorisation_cost(plan))


def _memorisation_cost(plan: EvaluatePlan) -> MemorisationCost | None:
    """What looking for copies still reads; a few images are read, and forgotten, to know how long that takes."""
    if "memorisation" not in plan.metrics or plan.own is None or plan.network is None:
        return None
    network, sides = plan.network, memorisation_sides(plan.own, plan.config.request.n)
    lacking = sum(side.end - side.begin - _kept_of(plan, side, network) for side in sides)
    if lacking <= 0:
        return None
    some = next(iter(sides[0].parts(sides[0].begin, sides[0].begin + 2)))
    network(torch.from_numpy(some))  # the first call is slower
    n, begin = min(TIMED, len(sides[0])), time.perf_counter()
    for part in sides[0].parts(sides[0].begin, sides[0].begin + n):
        network(torch.from_numpy(part))
    seconds = lacking * (time.perf_counter() - begin) / n
    others = tuple(name for name in plan.metrics if name not in ("memorisation", "labels"))
    return MemorisationCost(len(sides[0]), lacking, seconds, others)


def _kept_of(plan: EvaluatePlan, side: Side, reader: Reader) -> int:
    """How many rows of a side are kept from before; nothing is written to know it."""
    place = plan.home / "features" / side.key / f"{reader.name}-{reader.hash[:12]}"
    if not reader.hash or not place.is_dir():
        return 0
    missing = _row_cache(place, reader, side.key).missing(side.begin, side.end)
    return side.end - side.begin - sum(map(len, missing))


def _of_model(
    job: EvaluateJob,
    model: Pipeline | None,
    points: Sequence[Point],
    foreseen: Foreseen,
    network: FeatureNetwork | None,
    progress: OnProgress,
) -> EvaluatePlan:
    config = job.settings
    saved, model = _opened(model or job.target, config)
    if isinstance(model.model.config.network, ClassifierConfig):
        raise Error(f"{model.name} is a classifier, which makes no images: `kuosan train` reports its accuracy, and "
                    "--judge takes it as the judge of another run.")  # fmt: skip
    require_whole(model.model.config, "an evaluation")
    if config.likelihood:
        require_pixels(model.model.config, "a likelihood")
        require_wordless(model.model.config, "a likelihood")
        require_opaque(model.model.config, "a likelihood", "its densities are of bytes: measure KID instead")
    if network is not None and model.model.shape[0] == RGBA:
        network = network.twice()
    known = foreseen.model == model.model.config
    choices = foreseen.choices if known else sweep.check_sweep(model.model.config, points)
    size = choices[0].size  # which all points share
    model = model if size is None else replace(model, model=sizes.sized(model.model, size))
    images, own, warnings = _real_images(model, saved, config, progress)
    reference, floor = eval_images.sides(images, config.against, config.real, config.request.n)
    prompts = sampling.captions(model, config, reference)
    path = Path(model.name).resolve()
    home = checkpoint.home(Path(model.name)) / FOLDER
    if checkpoint.is_exported(path):  # which holds nothing else
        home = Path(FOLDER) / path.name
    plans = _point_plans(model, points, choices, home, images, prompts) if config.sampled else ()
    judge = None if config.judge is None else _judge(config, images, model.compute, [each.task for each in plans])
    metrics = () if network is None else _metrics(config, config.request.n, len(reference), network.dim, own, judge)
    bits = likelihood.likelihood_side(config, own)
    return EvaluatePlan(
        model.name,
        job,
        Path(config.out) if config.out else home / _name(config, plans, model.weights, images.fingerprint),
        home,
        network,
        metrics,
        reference,
        floor,
        model,
        plans,
        own=own,
        judge=judge,
        bits=bits,
        full=None if bits is None else likelihood.full_precision(model, saved),
        warnings=(*model.warnings, *warnings, *remarks.warnings(None, reference, config.request.n, metrics)),
        described=() if network is None else tuple(remarks.described(reference, network)),
    )


def _opened(target: str | Path | Pipeline, config: EvaluateConfig) -> tuple[Saved | None, Pipeline]:
    """The checkpoint that is read, unless the caller has opened it, and its model."""
    if isinstance(target, pipeline.Pipeline):
        return None, target
    saved = pipeline.saved_weights(target)
    return saved, pipeline.of_saved(saved, target, compute=choose(config))


def _real_images(
    model: Pipeline, saved: Saved | None, config: EvaluateConfig, progress: OnProgress
) -> tuple[Images | ImageFiles, Images | None, tuple[str, ...]]:
    """The data set to compare with, the one trained on where it is at hand, and warnings."""
    saved = saved or checkpoint.load(model.name, parts=())
    data = trees.build(DataConfig, saved.config.get("data", {}))
    if config.against not in (TRAIN, HELD_OUT):
        found = open_images(config.against, model.reading, model.model.shape, progress, data.label_column)
        return found, None, model.damaged
    every = eval_images.own(data, config.data, model.name, progress)
    images, noted = _of_one_shape(model, every)
    if images.shape != model.model.shape:
        raise Error(f"{images.config.path} gives images {images.shape}, the model makes {model.model.shape}.")
    known = saved.state.get("data")
    if known is None or images.has_fingerprint(known):
        return images, images, (*model.damaged, *noted)
    text = f"{images.config.path} does not hold the images that {model.name} was trained on"
    if not config.force:
        raise Error(
            f"{text}: give --data PATH for where they are now, --against PATH to compare with others, or --force."
        )
    return images, images, (*model.damaged, *noted, text)


def _of_one_shape(model: Pipeline, images: Images) -> tuple[Images, tuple[str, ...]]:
    """Of aspect-ratio buckets the one whose shape is made: others are not compared with it; and that it is so."""
    if not model.model.config.shapes:
        return images, ()
    _, height, width = model.model.shape
    some = images.only((height, width))
    return some, (
        f"{model.name} was trained on {len(model.model.config.shapes)} shapes; images of {width}x{height} alone are "
        f"made and compared ({len(some.train):,} of {len(images.train):,} trained on): --size W,H measures another",
    )


def _point_plans(
    model: Pipeline,
    points: Sequence[Point],
    choices: Sequence[Choice],
    home: Path,
    images: Images | ImageFiles,
    prompts: tuple[str, ...],
) -> tuple[PointPlan, ...]:
    """Each point ready to be sampled. Helpers that several points name are opened once."""
    opened: dict[tuple[str, str], Pipeline] = {}
    found = []
    for point, choice in zip(points, choices):
        named = {name: getattr(point.request, name) for name in ("classifier", "reference")}
        for name, path in named.items():
            if path is not None and (name, path) not in opened:
                opened[name, path] = pipeline.load(path, compute=model.compute)
        helpers = {name: opened[name, path] for name, path in named.items() if path is not None}
        known = {name: helpers[name].model.config if name in helpers else None for name in named}
        check_guides(model.model.config, point.request, known["classifier"], known["reference"], choice.size)
        labelled = model if model.model.config.task.labels else helpers.get("classifier")
        task = None if labelled is None else labelled.model.config.task
        shares = () if task is None or point.request.classes else sampling.shares(task, images)
        own = () if point.request.prompts else prompts
        depends = about(model, point, choice, helpers, shares, own)
        width, height = choice.size or sizes.of(model.model.config, point.request)
        folder = home / "pictures" / f"{choice.sampler}-{choice.steps}-{key(depends)}"
        store = image_cache(folder, depends, (model.model.shape[0], height, width))
        planned, kept = with_levels(model.model.config, choice), point.request.n - lacking(store, point.request.n)
        found.append(PointPlan(point, planned, store, kept, helpers, task, shares, own))
    return tuple(found)


def _judge(config: EvaluateConfig, images: Images | ImageFiles, compute: Any, tasks: Sequence[Task | None]) -> Judge:
    """The judge, where there are classes to judge."""
    assert config.judge is not None
    classes = next((task.class_names for task in tasks if task is not None), tuple(images.classes))
    if any(task is None for task in tasks) or not classes:
        raise Error(f"judge {config.judge!r} has nothing to judge: the images are to be of no class.")
    assert images.shape is not None, "images against a model have its shape"
    return open_judge(config.judge, images.shape, classes, compute)


def _metrics(
    config: EvaluateConfig, made: int, reference: int, dim: int, own: Images | None, judge: Judge | None
) -> tuple[str, ...]:
    """What is measured: what is named, or all that can be."""
    named = config.metrics
    if "memorisation" in named and own is None:
        raise Error("memorisation looks for copies of training images: it needs a run, --against train or held_out.")
    wanted = [name for name in named if name in result.DISTANCES]
    found = result.distances_of(wanted, made, reference, dim, config.force) if wanted or not named else ()
    lacking = "" if own is None else _lacking(made, own)
    if "memorisation" in named and lacking:
        raise Error(f"memorisation has too few images: {lacking}. Give --n, or leave that metric out.")
    few = own is not None and len(own.train) <= FEW and not lacking
    memorised = "memorisation" in named or (not named and few and not config.sweep)
    return (*found, *(["memorisation"] if memorised else []), *(["labels"] if judge is not None else []))


def _lacking(made: int, own: Images) -> str:
    """Of which images memorisation has too few to be found; empty where it has enough."""
    sides = (
        (made, LEAST, "made"),
        (len(own.held_out), LEAST, "held out"),
        (len(own.train), NEIGHBOURS + 1, "trained on"),
    )
    return ", ".join(f"{count} {what}, at least {least} are needed" for count, least, what in sides if count < least)


def _of_images(job: EvaluateJob, network: FeatureNetwork, progress: OnProgress) -> EvaluatePlan:
    """A folder of images against another."""
    target, config, usual = job.target, job.settings, EvaluateConfig()
    if config.against in (TRAIN, HELD_OUT):
        raise Error(f"{target} is no run, so it has no images of its own to compare with: give --against PATH.")
    request = replace(config.request, n=usual.request.n)
    given = [name for name in trees.plain(request) if getattr(request, name) != getattr(usual.request, name)]
    given += [name for name in ("sweep", "likelihood") if getattr(config, name)]
    if given:
        raise Error(f"{given[0]} has no effect on {target}, which holds images and no model; leave it out.")
    images = open_images(config.against, progress=progress)
    theirs = open_images(target, progress=progress)
    made = Side.of(f"images of {target}", theirs, eval_images.shuffled(theirs, "all"), 0, config.request.n)
    if len(made) < eval_images.LEAST:
        raise Error(f"{target} holds {plural(len(made), 'image')}, too few for a distance.")
    reference, floor = eval_images.sides(images, config.against, config.real, len(made))
    judge = None
    if config.judge is not None:
        if not theirs.classes:
            raise Error(f"judge {config.judge!r} has nothing to judge: the images of {target} have no classes.")
        judge = _judge_of_images(config, theirs, images)
    home = Path(config.out or FOLDER)
    digest = _digest([theirs.fingerprint, images.fingerprint, trees.plain(replace(config, out=None))])
    name = f"{_word(target)}-against-{_word(config.against)}-{digest}"
    folder = Path(config.out) if config.out else home / name
    metrics = _metrics(config, len(made), len(reference), network.dim, None, judge)
    warnings = tuple(remarks.warnings(made, reference, config.request.n, metrics))
    described = tuple(line for side in (made, reference) for line in remarks.described(side, network))
    return EvaluatePlan(target, job, folder, home, network, metrics, reference, floor, made=made, judge=judge,
                        warnings=warnings, described=described)  # fmt: skip


def _judge_of_images(config: EvaluateConfig, theirs: ImageFiles, images: ImageFiles) -> Judge:
    """The judge of a folder's classes, which reads images of its own size alone. Raises: Error for others."""
    assert config.judge is not None
    for files in (theirs, images):
        if files.shape is None:
            raise Error(f"judge {config.judge!r} reads images of one size, those of {files.path} are of several: "
                        "resize them first, or leave --judge out.")  # fmt: skip
    assert theirs.shape is not None
    return open_judge(config.judge, theirs.shape, theirs.classes, choose(config))


def choose(config: EvaluateConfig) -> Any:
    """The device and precision."""
    return choose_compute(config.compute)


def _name(config: EvaluateConfig, points: Sequence[PointPlan], *hashes: str) -> str:
    """A folder's name that no evaluation with other settings has."""
    digest = _digest([*hashes, trees.plain(replace(config, out=None))])
    if not points:
        return f"likelihood-n{config.likelihood_images}-{digest}"
    swept = list(dict.fromkeys(key for each in points for key in each.point.setting))
    first = points[0].choice
    what = f"sweep-{'-'.join(swept)}" if swept else f"{first.sampler}-{first.steps}"
    return f"{what}-n{config.request.n}-{_word(config.against)}-{digest}"


def _digest(values: Any) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _word(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", Path(text).name if "/" in text else text).strip("-.")[:40] or "pictures"
