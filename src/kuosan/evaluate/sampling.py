"""Images kept on disk as they are made, so that a killed evaluation goes on and a larger one only adds to them.

    FOLDER/about.json                      what the images depend on: weights, request, precision; checked when opened
    FOLDER/00000000-00000050.npz           images 0 to 49, as bytes, and the seconds each took

A part is written whole or not at all; one that cannot be read is made again.

What is made in an evaluation that does not say: images of which classes, of which captions.

Images of a model for an evaluation: made batch by batch, kept as they are made, gone on with after a kill.
"""

from __future__ import annotations

import io
import json
import re
import time
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import kuosan
from kuosan import config as trees
from kuosan.errors import Error
from kuosan.evaluate.config import USELESS
from kuosan.evaluate.eval_images import as_bytes
from kuosan.evaluate.job import SAMPLING
from kuosan.events import Event, Fact, Progress, Warned
from kuosan.sample.generate import Sampling, frames_of
from kuosan.sample.pipeline import guides_of
from kuosan.sample.plan import check_request
from kuosan.storage.files import explained, write_atomic
from kuosan.tasks.task import NULL
from kuosan.text.prompts import escaped

if TYPE_CHECKING:
    from kuosan.data.dataset import Images
    from kuosan.evaluate.config import EvaluateConfig, Point
    from kuosan.evaluate.eval_images import Side
    from kuosan.evaluate.images import ImageFiles
    from kuosan.sample.pipeline import Pipeline
    from kuosan.sample.plan import Choice, SamplePlan
    from kuosan.sample.request import Request
    from kuosan.tasks import Task

ABOUT = "about.json"
_PART = re.compile(r"(\d{8})-(\d{8})\.npz")


class ImagePart(NamedTuple):
    """Images `first` to `first + len(images) - 1`."""

    first: int
    images: np.ndarray  # (B, C, H, W) uint8
    seconds: float  # an image


def key(about: Mapping[str, Any]) -> str:
    """What a folder of these images is called: a hash of all that makes them what they are."""
    return sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


class ImageCache:
    """The images of one request in `folder`, which is made when there are some; `about` is all that they depend on.

    Attributes:
        damaged: parts that could not be read, and are made again.

    Raises:
        Error: the folder holds images of something else, or cannot be read.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.damaged: list[str] = []
        self._about = json.dumps(about, indent=1, sort_keys=True) + "\n"
        path = folder / ABOUT
        with explained(path, doing="read"):
            before = path.read_text(encoding="utf-8") if path.is_file() else None
        if before not in (None, self._about):
            raise Error(f"{folder} holds images of other settings than its name says ({path}): delete the folder.")

    def add(self, part: ImagePart) -> None:
        """Keep a part. Raises: Error if the disk does not."""
        if not (self.folder / ABOUT).is_file():
            write_atomic(self.folder / ABOUT, self._about)
        write_atomic(self._path(part.first, len(part.images)), _npz(part))

    def parts(self, n: int, begin: int = 0) -> Iterator[ImagePart]:
        """Images `begin` to n - 1, or as many of them as are kept, each once and in order.

        A part that cannot be read ends them: it is removed, to be made again.
        """
        end = begin
        for first, stop, path in self._names():
            if not first <= end < min(stop, n):
                continue
            try:
                with np.load(io.BytesIO(path.read_bytes())) as kept:  # given a path, numpy leaves a damaged file open
                    images, seconds = kept["pictures"], float(kept["seconds"])
                if len(images) != stop - first or images.dtype != np.uint8:
                    raise ValueError(f"{images.shape} {images.dtype}")
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                self.damaged.append(f"{path}: {error}")
                path.unlink(missing_ok=True)
                return
            yield ImagePart(end, images[end - first : n - first], seconds)
            end = min(stop, n)

    def images(self, begin: int, end: int) -> np.ndarray:
        """Images `begin` to `end` - 1, all of which are kept: (end - begin, C, H, W) uint8."""
        found = [part.images for part in self.parts(end, begin)]
        if sum(map(len, found)) != end - begin:
            raise Error(f"images in {self.folder} are damaged: {self.damaged}; give the command again to make them.")
        return np.concatenate(found)

    def whole(self, n: int) -> int:
        """How many of the first n are kept and can be read; the damaged are removed."""
        return sum(len(part.images) for part in self.parts(n))

    def seconds(self, n: int) -> float:
        """What an image took: the median over the parts, which one slow start does not move."""
        return float(np.median([part.seconds for part in self.parts(n)]))

    def _names(self) -> list[tuple[int, int, Path]]:
        """The parts there by first and last image, of two that begin alike the longer first."""
        if not self.folder.is_dir():
            return []
        with explained(self.folder, doing="read"):
            matches = [(_PART.fullmatch(path.name), path) for path in self.folder.iterdir()]
        found = [(int(match[1]), int(match[2]), path) for match, path in matches if match]
        return sorted(found, key=lambda item: (item[0], -item[1]))

    def _path(self, first: int, count: int) -> Path:
        return self.folder / f"{first:08d}-{first + count:08d}.npz"


def _npz(part: ImagePart) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, pictures=part.images, seconds=np.float64(part.seconds))
    return buffer.getvalue()


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
    store: ImageCache
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
            yield Warned(f"kept images are damaged and made again: {text}")
    estimated = False
    for each in points:
        first, cost = each.kept, each.choice.evaluations
        while first < each.request.n:
            count = min(each.request.batch, each.request.n - first)
            begin = time.perf_counter()
            images = yield from _batch(model, each, first, count, done, total)
            seconds = time.perf_counter() - begin
            each.store.add(ImagePart(first, images, seconds / count))
            first, done = first + count, done + count * cost
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
