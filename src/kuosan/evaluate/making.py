"""Pictures of a model for an evaluation: made batch by batch, kept as they are made, gone on with after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

import kuosan
from kuosan import config as trees
from kuosan.evaluate.config import USELESS
from kuosan.evaluate.real import as_bytes
from kuosan.evaluate.store import Part, Store
from kuosan.sample.generate import generate
from kuosan.tasks.labels import NULL
from kuosan.trained import guides_of

if TYPE_CHECKING:
    from kuosan.evaluate.progress import Report
    from kuosan.evaluate.sweep import Point
    from kuosan.sample.plan import Choice
    from kuosan.sample.request import Request
    from kuosan.tasks import Task
    from kuosan.trained import Trained

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: its multiples fill [0, 1) evenly, however many are taken (Weyl)


@dataclass(frozen=True)
class Job:
    """One point to sample: what it asks, where its pictures are kept, and what is told of their classes."""

    point: Point
    choice: Choice
    store: Store
    helpers: dict[str, Trained]  # the classifier and the weaker run that it names
    task: Task | None = None  # whose classes pictures are told; None: they have none
    shares: tuple[float, ...] = ()  # of the classes, where the request names none
    prompts: tuple[str, ...] = ()  # real pictures' captions, where the request names no prompts: in turn, by seed

    @property
    def request(self) -> Request:
        """What is asked."""
        return self.point.request

    def wanted(self, first: int, count: int) -> list[int]:
        """The classes by number that pictures `first` to `first + count - 1` are asked to be of; empty without."""
        if self.task is None:
            return []
        named = [self.task.label(name) for name in self.request.classes]
        if named:
            return [named[i % len(named)] for i in range(first, first + count)]
        return labels(range(self.request.seed + first, self.request.seed + first + count), self.shares)

    def part(self, first: int, count: int) -> Request:
        """The request for those pictures alone."""
        seed = self.request.seed + first
        request = replace(self.request, n=count, seed=seed, batch=count)
        if self.prompts:
            told = tuple(self.prompts[each % len(self.prompts)] for each in range(seed, seed + count))
            request = replace(request, prompts=told)
        elif request.prompts:
            at = first % len(request.prompts)
            request = replace(request, prompts=request.prompts[at:] + request.prompts[:at])
        if self.task is None:
            return request
        names = (*self.task.class_names, NULL)
        return replace(request, classes=tuple(names[i] for i in self.wanted(first, count)))


def labels(seeds: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Classes of pictures of these seeds, in the given shares, which any row of seeds has to within three pictures.

    Equal shares are each class in turn.
    """
    if len(set(shares)) == 1:
        return [seed % len(shares) for seed in seeds]
    ends = np.cumsum(np.asarray(shares, dtype=np.float64))
    places = [(seed * GOLDEN % 2**64) / 2**64 * ends[-1] for seed in seeds]
    return [min(int(np.searchsorted(ends, place, side="right")), len(shares) - 1) for place in places]


def about(
    trained: Trained,
    each: Point,
    choice: Choice,
    helpers: dict[str, Trained],
    shares: Sequence[float],
    prompts: Sequence[str] = (),
) -> Any:
    """All that the pictures of a point depend on, but n; as plain values."""
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


def make(trained: Trained, jobs: Sequence[Job], report: Report) -> None:
    """Make what the stores lack, one batch after another; each batch is kept when it is done."""
    before = {id(each): each.store.whole(each.request.n) for each in jobs}
    total = sum(each.request.n * each.choice.evaluations for each in jobs)
    done = sum(before[id(each)] * each.choice.evaluations for each in jobs)
    for each in jobs:
        for text in each.store.damaged:
            report.say(f"warning: kept pictures are damaged and made again: {text}")
    told = False
    for each in jobs:
        first, cost = before[id(each)], each.choice.evaluations
        while first < each.request.n:
            count = min(each.request.batch, each.request.n - first)
            begin = time.perf_counter()
            pictures = _batch(trained, each, first, count, partial(_tell, report, done, total))
            seconds = time.perf_counter() - begin
            each.store.add(Part(first, pictures, seconds / count))
            first, done = first + count, done + count * cost
            if not told and done < total:
                report.left(seconds / (count * cost) * (total - done), total - done)
            told = True


def _tell(report: Report, before: int, total: int, done: int) -> None:
    report.progress("sampling", before + done, total)


def _batch(trained: Trained, each: Job, first: int, count: int, hear: Callable[[int], None]) -> np.ndarray:
    """Pictures `first` to `first + count - 1` of a job: (count, C, H, W) uint8; `hear` is told the evaluations made."""
    found = []
    for frame in generate(trained.model, each.part(first, count), guides=guides_of(each.helpers)):
        hear(round((frame.first + len(frame.x) * frame.step / frame.steps) * each.choice.evaluations))
        if frame.done:
            found.append(as_bytes(frame.x.cpu().numpy()))
    return np.concatenate(found)
