"""The images of an evaluation, made for its seeds and conditions and kept; and what classes a classifier sees there."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import kuosan
from kuosan import config as trees
from kuosan.data.pixels import from_uint8
from kuosan.errors import Error
from kuosan.evaluate.config import USELESS
from kuosan.evaluate.eval_images import as_bytes
from kuosan.evaluate.job import SAMPLING
from kuosan.events import Event, Fact, Progress, Warned
from kuosan.metrics.estimate import Agreement, Estimate, agreement
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.sample import pipeline
from kuosan.sample.generate import Sampling, frames_of
from kuosan.sample.pipeline import guides_of
from kuosan.sample.plan import check_request
from kuosan.storage.cache import Older, RowCache
from kuosan.tasks.task import NULL
from kuosan.text.tokens import escaped

if TYPE_CHECKING:
    import numpy as np

    from kuosan.data.dataset import Images
    from kuosan.device import Compute
    from kuosan.evaluate.config import EvaluateConfig, Point
    from kuosan.evaluate.eval_images import Side
    from kuosan.evaluate.images import ImageFiles
    from kuosan.sample.pipeline import Pipeline
    from kuosan.sample.plan import Choice, SamplePlan
    from kuosan.sample.request import Request
    from kuosan.tasks import Task

ABOUT = "about.json"  # what older caches say of themselves


def key(about: Mapping[str, Any]) -> str:
    """What a folder of these images is called: a hash of all that makes them what they are."""
    return sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def image_cache(folder: Path, about: Mapping[str, Any], shape: tuple[int, int, int]) -> RowCache:
    """The images (C, H, W) of one request in `folder`; `about` is all that they depend on.

    Raises:
        Error: the folder holds images of something else, or cannot be read.
    """
    plain = json.loads(json.dumps(about), parse_constant=str)
    cache = RowCache(folder.parent, "images", plain, None, {"images": (np.uint8, shape)}, at=folder)
    cache.adopt("*-*.npz", partial(_older, shape=shape))
    (folder / ABOUT).unlink(missing_ok=True)
    return cache


def _older(path: Path, shape: tuple[int, int, int]) -> Older:
    """Images as they were kept before: bytes, and the seconds that each took. Raises: ValueError, KeyError, OSError."""
    with np.load(io.BytesIO(path.read_bytes())) as kept:  # given a path, numpy leaves a damaged file open
        images, seconds = kept["pictures"], float(kept["seconds"])
    if images.shape[1:] != shape or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"{images.shape} {images.dtype}")
    return int(path.stem.partition("-")[0]), {"images": images}, seconds * len(images)


def lacking(cache: RowCache, n: int) -> int:
    """How many of the first n images are not kept."""
    return sum(map(len, cache.missing(0, n)))


def images_of(cache: RowCache, begin: int, end: int) -> np.ndarray:
    """Images `begin` to `end` - 1, (N, C, H, W) uint8 in memory. Raises: Error: they are not all kept."""
    return np.array(cache.open(begin, end)["images"])


def seconds_an_image(cache: RowCache, n: int) -> float:
    """What an image took: the median over the parts, which one slow start does not move."""
    return float(np.median([each.seconds / (each.last - each.first) for each in cache.parts() if each.first < n]))


def captions(model: Pipeline, config: EvaluateConfig, reference: Side) -> tuple[str, ...]:
    """The captions of the images compared with, by which a text model that is given no prompts makes its own.

    Raises:
        Error: those images have none, or one that the model cannot read.
    """
    if not model.model.config.task.text or config.request.prompts or not config.sampled:
        return ()
    every = reference.images.captions
    found = tuple(escaped(text) for text in (every[i] for i in reference.ids) if text) if every else ()
    if not found:
        raise Error(
            f"{model.name} makes images of what a prompt says, and the {reference.what} have no captions: give "
            f"--prompts (again and again for several), or compare with images that have."
        )
    _check(model, config, reference, found)
    return found


def _check(model: Pipeline, config: EvaluateConfig, reference: Side, found: tuple[str, ...]) -> None:
    """Refuse captions that the model cannot read, before anything is made. Raises: Error."""
    try:
        check_request(model.model.config, replace(config.request, prompts=found))
        encoder = model.model.encoder
        if encoder is not None:
            for text in found:
                encoder.count_read(text)
    except Error as error:
        raise Error(f"a caption of the {reference.what}: {error} Or say what is to be made: --prompts.") from None


def shares(task: Task, images: Images | ImageFiles) -> tuple[float, ...]:
    """How the classes are shared out: as in the images compared with, where those have the same; else equally."""
    count = len(task.class_names)
    if images.labels is None or tuple(images.classes) != task.class_names:
        return (1 / count,) * count
    counts = np.bincount(images.labels[images.train][images.labels[images.train] >= 0], minlength=count)
    return tuple(round(float(share), 9) for share in counts / max(1, counts.sum()))


GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: its multiples fill [0, 1) evenly, however many are taken (Weyl)


@dataclass(frozen=True)
class PointPlan:
    """One point to sample: its request, resolved; where its images are kept; of which classes and captions they are."""

    point: Point
    choice: SamplePlan
    store: RowCache
    kept: int  # images that are there
    helpers: dict[str, Pipeline]  # the classifier and the weaker run that it names
    task: Task | None = None  # whose classes the images are of; None: of none
    shares: tuple[float, ...] = ()  # of the classes, where the request names none
    prompts: tuple[str, ...] = ()  # real images' captions, where the request names no prompts: in turn, by seed

    @property
    def request(self) -> Request:
        """How its images are made."""
        return self.point.request

    def wanted(self, first: int, count: int) -> list[int]:
        """The classes by number that images `first` to `first + count - 1` are to be of; empty without."""
        if self.task is None:
            return []
        named = [self.task.label(name) for name in self.request.classes]
        if named:
            return [named[i % len(named)] for i in range(first, first + count)]
        return labels(range(self.request.seed + first, self.request.seed + first + count), self.shares)

    def part(self, first: int, count: int) -> Request:
        """The request for those images alone."""
        seed = self.request.seed + first
        request = replace(self.request, n=count, seed=seed, batch=count)
        if self.prompts:
            own = tuple(self.prompts[each % len(self.prompts)] for each in range(seed, seed + count))
            request = replace(request, prompts=own)
        elif request.prompts:
            at = first % len(request.prompts)
            request = replace(request, prompts=request.prompts[at:] + request.prompts[:at])
        if self.task is None:
            return request
        names = (*self.task.class_names, NULL)
        return replace(request, classes=tuple(names[i] for i in self.wanted(first, count)))


def labels(seeds: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Classes of images of these seeds, in the given shares, which any row of seeds has to within three images.

    Equal shares are each class in turn.
    """
    if len(set(shares)) == 1:
        return [seed % len(shares) for seed in seeds]
    ends = np.cumsum(np.asarray(shares, dtype=np.float64))
    places = [(seed * GOLDEN % 2**64) / 2**64 * ends[-1] for seed in seeds]
    return [min(int(np.searchsorted(ends, place, side="right")), len(shares) - 1) for place in places]


def about(
    trained: Pipeline,
    each: Point,
    choice: Choice,
    helpers: dict[str, Pipeline],
    shares: Sequence[float],
    prompts: Sequence[str] = (),
) -> Any:
    """All that the images of a point depend on, but n; as plain values."""
    request = trees.plain(
        replace(each.request, sampler=choice.sampler, steps=choice.grid_steps, spacing=choice.spacing)
    )
    for name in ("n", "batch", *USELESS):
        del request[name]
    return {
        "weights": trained.weights,
        "request": request | {name: helper.weights for name, helper in helpers.items()},
        "shares": list(shares),
        **({"captions": sha256("\0".join(prompts).encode()).hexdigest()} if prompts else {}),
        "dtype": str(trained.compute.dtype),
        "device": trained.compute.device.type,
        "kuosan": kuosan.__version__,
    }


def make(model: Pipeline, points: Sequence[PointPlan]) -> Iterator[Event]:
    """Make what the caches lack, one batch after another; each batch is kept when it is done."""
    total = sum(each.request.n * each.choice.evaluations for each in points)
    done = sum(each.kept * each.choice.evaluations for each in points)
    for each in points:
        for text in each.store.damaged:
            yield Warned(f"kept images: {text}")
    estimated = False
    for each in points:
        cost = each.choice.evaluations
        while gaps := each.store.missing(0, each.request.n):
            first, count = gaps[0].start, min(each.request.batch, len(gaps[0]))
            begin = time.perf_counter()
            images = yield from _batch(model, each, first, count, done, total)
            seconds = time.perf_counter() - begin
            each.store.put(first, {"images": images}, seconds)
            done += count * cost
            if not estimated and done < total:
                left = seconds / (count * cost) * (total - done)
                yield Fact(SAMPLING, {"seconds": left, "evaluations": total - done})
            estimated = True


def _batch(
    model: Pipeline, each: PointPlan, first: int, count: int, done: int, total: int
) -> Generator[Event, None, np.ndarray]:
    """Images `first` to `first + count - 1` of a point: (count, C, H, W) uint8; `done` evaluations were made before."""
    found = []
    part = Sampling(model.model, each.part(first, count), each.choice, guides_of(each.helpers))
    for frame in frames_of(part):
        own = round((frame.first + len(frame.x) * frame.step / frame.steps) * each.choice.evaluations)
        yield Progress("sampling", done + own, total)
        if frame.done:
            found.append(as_bytes(frame.x.cpu().numpy()))
    return np.concatenate(found)


BATCH = 64


@dataclass(frozen=True)
class Judge:
    """Reads images as `rows.Reader` does: a row of logits an image."""

    run: Pipeline

    @property
    def name(self) -> str:
        """For the folder its logits are kept in."""
        return "judge"

    @property
    def hash(self) -> str:
        """Of its weights."""
        return self.run.weights

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes it knows."""
        return self.run.model.config.task.class_names

    @property
    def dim(self) -> int:
        """How many classes."""
        return len(self.classes)

    @torch.no_grad()
    def __call__(self, images: Tensor, /) -> Tensor:
        """Logits of uint8 images (B, C, H, W): (B, classes) float32."""
        found = []
        for part in torch.split(images, BATCH):
            x = torch.from_numpy(from_uint8(part.movedim(1, -1).numpy())).to(self.run.compute.device)
            found.append(self.run.model.network(x).float().cpu())
        return torch.cat(found)


def open_judge(run: str, shape: tuple[int, int, int], classes: Sequence[str], compute: Compute) -> Judge:
    """The classifier of a run, for images of `shape` (C, H, W) and `classes`.

    Raises:
        Error: it is no judge of clean images, or of other images or classes.
    """
    opened = pipeline.load(run, compute=compute)
    network = opened.model.config.network
    if not isinstance(network, ClassifierConfig):
        raise Error(f"judge {run!r} is no classifier: train one with --objective classifier --no-noisy.")
    if network.noisy:
        raise Error(f"judge {run!r} was trained on noisy images to guide; judge with one of clean ones (--no-noisy).")
    judge = Judge(opened)
    if opened.model.shape != shape:
        raise Error(f"judge {run!r} reads images of {opened.model.shape}, these are {shape}.")
    if judge.classes != tuple(classes):
        raise Error(f"judge {run!r} knows the classes {', '.join(judge.classes)}; these are {', '.join(classes)}.")
    return judge


def share(logits: np.ndarray, wanted: np.ndarray, classes: tuple[str, ...]) -> tuple[Estimate, Agreement]:
    """The share of images that the judge finds to be of the wanted class, with its standard error."""
    found = agreement(logits, wanted, classes)
    return Estimate(found.accuracy.value, (found.accuracy.high - found.accuracy.low) / (2 * 1.96)), found
