"""Whose turn it is: the bucket that each step's batch is drawn from, as often as its share of the images. Torch-free.

Of k buckets with shares p (adding up to 1), let d_b = s p_b - (turns of b before step s, counted from 1). The turn goes
to that one with d_b >= 1/(2k-2) which has the least (1 - 1/(2k-2) - d_b) / p_b. Then every |d_b| stays below 1, at most
1 - 1/(2k-2) after each step; no rule keeps a smaller bound for all shares (Tijdeman 1980, "The chairman assignment
problem", theorem 1).

Which t are drawn how often, by how large their losses were (Nichol & Dhariwal 2021, section 3.3).

    p_t ~ sqrt(mean of the last 10 squared losses at t),      a loss drawn so counts 1/(T·p_t)

The mean over draws stays what it is under uniform t, with less noise where few t make up most of it. Uniform until
every t has ten losses, and always a thousandth so. A history is a part of the run's state; u alone is drawn ahead.

What one training step sees: images, where on the schedule, noise; each a pure function of (seed, step, row).

Rows of a step are numbered over all processes, and the order of the images is a keyed permutation an epoch, one
after the other: each epoch shows every image exactly once, at any batch size and on any number of processes.

With aspect-ratio buckets every step is of one bucket, whose turn it is by its share of the images (`turns`): after s
steps of B images, a bucket of n of the N has had s·B·n/N of them, to within less than one batch. Each bucket has its
own epochs: all of its images are seen once before any is seen again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.errors import Error, is_out_of_memory
from kuosan.tasks import Generation
from kuosan.tasks.condition import degrade
from kuosan.train import memory

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.data.dataset import Batch, Images
    from kuosan.tasks import Task
    from kuosan.train.distributed import World
    from kuosan.train.text_conditioning import Texts


class Turns:
    """The turns of buckets with `counts` images each; equal claims are settled by a draw keyed by (seed, step).

    In whole numbers, so that all processes agree. After as many steps as there are images, less common factors, every
    count is exact and the rule begins again: a step's turn needs those of its own period alone.
    """

    def __init__(self, counts: Sequence[int], seed: int) -> None:
        common = gcd(*counts)
        self.shares = tuple(count // common for count in counts)
        self.seed, self.period = seed, sum(self.shares)
        self._counts: dict[tuple[int, int], int] = {}
        self._begin(0)

    def taken(self, bucket: int, step: int) -> int:
        """How many of the steps before a step were a bucket's."""
        if len(self.shares) == 1:
            return step
        if (bucket, step) not in self._counts:
            self.at(step)
            before = self._turns[: step % self.period]
            count = step // self.period * self.shares[bucket] + sum(each == bucket for each, _ in before)
            self._counts[bucket, step] = count
        return self._counts[bucket, step]

    def at(self, step: int) -> tuple[int, int]:
        """The bucket of a step's batch, and how many earlier steps were this bucket's."""
        if len(self.shares) == 1:
            return 0, step
        cycle, place = divmod(step, self.period)
        if cycle != self._cycle:
            self._begin(cycle)
        while len(self._turns) <= place:
            self._next()
        bucket, before = self._turns[place]
        return bucket, cycle * self.shares[bucket] + before

    def _begin(self, cycle: int) -> None:
        self._cycle = cycle
        self._turns: list[tuple[int, int]] = []
        self._taken = [0] * len(self.shares)
        self._due = [0] * len(self.shares)  # period * d_b, without this step's share

    def _next(self) -> None:
        """Give one more turn of the period."""
        whole, k = self.period, len(self.shares)
        self._due = [due + share for due, share in zip(self._due, self.shares)]
        claims = {
            i: ((2 * k - 3) * whole - (2 * k - 2) * due) / share  # true division: equal claims are equal floats
            for i, (due, share) in enumerate(zip(self._due, self.shares))
            if (2 * k - 2) * due >= whole
        }
        least = min(claims.values())
        equal = [i for i, claim in claims.items() if claim == least]
        step = self._cycle * whole + len(self._turns)
        chosen = equal[int(seeds.rng(self.seed, "train/bucket", step).integers(len(equal)))] if equal[1:] else equal[0]
        self._turns.append((chosen, self._taken[chosen]))
        self._taken[chosen] += 1
        self._due[chosen] -= whole


KEPT = 10  # losses of each t
UNIFORM = 0.001  # share of draws that are uniform whatever the losses


class LossAwareSampler:
    """The last losses of each of T timesteps, and which timesteps are drawn by them."""

    def __init__(self, T: int) -> None:
        self.losses = torch.zeros(T, KEPT, dtype=torch.float64)
        self.counts = torch.zeros(T, dtype=torch.int64)  # losses ever seen of each t

    @property
    def warm(self) -> bool:
        """Whether every t has its losses."""
        return bool((self.counts >= KEPT).all())

    def chances(self) -> np.ndarray:
        """p_t, of sum 1: (T,) float64."""
        size = self.losses.square().mean(1).sqrt().numpy()
        total = size.sum()
        if not self.warm or total == 0:
            return np.full(len(size), 1 / len(size))
        return np.asarray((1 - UNIFORM) * size / total + UNIFORM / len(size))

    def times(self, u: np.ndarray) -> np.ndarray:
        """t of uniform draws u (B,): the inverse of p's distribution function; (B,) int64."""
        T = len(self.counts)
        if not self.warm:
            return np.asarray(np.floor(u * T), dtype=np.int64)
        return np.asarray(np.minimum(np.searchsorted(np.cumsum(self.chances()), u, side="right"), T - 1))

    def scale(self, t: np.ndarray) -> np.ndarray:
        """1/(T·p_t), which a loss at t counts: (B,) float64."""
        return np.asarray(1 / (len(self.counts) * self.chances()[t]))

    def update_history(self, u: np.ndarray, losses: np.ndarray) -> None:
        """Take in one step's scaled losses (B,), drawn by u under the chances up to now, in the rows' order."""
        t = self.times(u)
        for time, loss in zip(t.tolist(), (losses / self.scale(t)).tolist(), strict=True):
            self.losses[time, int(self.counts[time]) % KEPT] = loss
            self.counts[time] += 1

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        return {"importance.losses": self.losses, "importance.counts": self.counts}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take `tensors()` out of these and become it. Raises: KeyError, RuntimeError: none, or of another T."""
        for name, own in self.tensors().items():
            own.copy_(tensors.pop(name))


def gathered(world: World, batch: int, device: torch.device, u: np.ndarray, losses: Tensor) -> np.ndarray:
    """u and losses of all of a step's rows from those of each process (row r is process r mod size's): (2, batch)."""
    own = np.stack([u, losses.cpu().numpy()])
    if world.size == 1:
        return own
    every = torch.zeros(2, batch, dtype=torch.float64, device=device)
    every[:, world.rank :: world.size] = torch.from_numpy(own).to(device)
    return np.asarray(world.sum(every).cpu().numpy())


@dataclass(frozen=True)
class Drawn:
    """One process's share of a step: B images, their levels and their noise."""

    batch: Batch
    u: np.ndarray  # (B,) uniform in [0, 1): where the objective draws each image's level
    eps: Tensor  # (B, C, H, W), or of latents
    drop: np.ndarray  # (B,) uniform in [0, 1): whether an image is shown without its condition
    step: int = 0  # steps taken before this one

    def part(self, rows: slice) -> Drawn:
        """Some of its images."""
        batch = self.batch._replace(
            x0=self.batch.x0[rows],
            ids=self.batch.ids[rows],
            label=None if self.batch.label is None else self.batch.label[rows],
            caption=None if self.batch.caption is None else self.batch.caption[rows],
            given=None if self.batch.given is None else self.batch.given.rows(rows),
            text=None if self.batch.text is None else {name: x[rows] for name, x in self.batch.text.items()},
        )
        return Drawn(batch, self.u[rows], self.eps[rows], self.drop[rows], self.step)


@dataclass
class BatchStream:
    """The endless sequence of steps of one run.

    Where the batch changes at a step, the images go on where they were: of each bucket one endless row of images, epoch
    after epoch, of which each of its steps takes the next as many as its batch has. So an epoch still shows every
    image once, and which images a step sees follows from the seed, the step and the changes before it.
    """

    images: Images
    seed: int
    batch: int
    rank: int = 0
    size: int = 1
    retry: int = 0  # counts returns to an earlier save, so that the same steps draw other noise
    offset: float = 0.0  # strength of the noise that all pixels of a channel share
    task: Task = Generation()  # noqa: RUF009 (frozen); by which images are degraded
    threads: int = 1  # that draw a step's noise; never changes a bit
    noise_shape: tuple[int, int, int] | None = None  # of one image's noise; None: the image's own
    texts: Texts | None = None  # what the network is given of each image's caption
    sizes: tuple[tuple[int, int], ...] = ()  # (from a step on, images a step), rising from step 0; none: always `batch`
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        train, of = self.images.train, self.images.buckets.of
        self._groups = [train[of[train] == bucket] for bucket in np.unique(of[train])]
        self._turns = Turns([len(group) for group in self._groups], self.seed)

    def size_at(self, step: int) -> int:
        """Images of a step."""
        return [size for begin, size in self.sizes if begin <= step][-1] if self.sizes else self.batch

    def ids(self, step: int) -> np.ndarray:
        """The images of all rows of a step, which are of one bucket: (its batch,)."""
        bucket, before = self._turns.at(step)
        n, first = len(self._groups[bucket]), self._shown(bucket, before, step)
        places = np.arange(first, first + self.size_at(step))
        return np.array([self._order(bucket, int(place) // n)[place % n] for place in places])

    def _shown(self, bucket: int, before: int, step: int) -> int:
        """How many images of a bucket the steps before a step have had, `before` of which were the bucket's."""
        shown = counted = 0
        for (_, size), (end, _) in pairwise((*self.sizes, (step, 0))):
            if end < step:
                taken = self._turns.taken(bucket, end)
                shown, counted = shown + (taken - counted) * size, taken
        return shown + (before - counted) * self.size_at(max(step - 1, 0))

    def draw(self, step: int) -> Drawn:
        """This process's rows of a step."""
        return self._with_noise(step, self.images.batch(*self._request(step)))

    def _request(self, step: int) -> tuple[np.ndarray, list[seeds.Key]]:
        rows = self._rows(step)
        return self.ids(step)[list(rows)], [self._key("train/augment", step, row) for row in rows]

    def _with_noise(self, step: int, batch: Batch) -> Drawn:
        rows, again = self._rows(step), f"/{self.retry}" if self.retry else ""
        if not isinstance(self.task, Generation):  # which damages nothing
            rngs = [seeds.rng(*self._key("train/degrade", step, row)) for row in rows]
            batch = batch._replace(given=degrade(self.task, batch.x0, rngs))
        batch = batch.denoised
        u = seeds.uniform(self._key(f"train/level{again}", step, row) for row in rows)
        noise = (self._key(f"train/noise{again}", step, row) for row in rows)
        eps = seeds.normal(noise, self.noise_shape or tuple(batch.x0.shape[1:]), self.threads)
        if self.offset:
            shared = (eps.shape[1], 1, 1)
            eps += self.offset * seeds.normal((self._key(f"train/offset{again}", step, row) for row in rows), shared)
        drop = seeds.uniform(self._key("train/drop", step, row) for row in rows)
        if self.texts is not None:
            batch = batch._replace(text=self.texts.of(batch.ids.numpy(), drop < self.task.dropped))
        return Drawn(batch, u, eps, drop, step)

    def ahead(self, first: int, last: int) -> Iterator[Drawn]:
        """The steps `first` to `last - 1`, the next one drawn while the current one is used.

        Where memory runs out in drawing one, it is drawn again with none ahead of it.

        Raises:
            Error: there is not enough memory for one batch alone.
        """
        step, alone = first, False
        while step < last:
            try:
                for drawn in [self.draw(step)] if alone else self._ahead(step, last):
                    step, alone = step + 1, False
                    yield drawn
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = memory.said(error)
            memory.free()
            if alone:
                raise Error(
                    f"step {step + 1}: out of memory in reading its {self.size_at(step)} images ({reason}). Lower "
                    f"--train.batch, --data.workers or --data.memory-gib; what was saved before is untouched.",
                    exit_code=memory.CODE,
                )
            alone = True

    def _ahead(self, first: int, last: int) -> Iterator[Drawn]:
        batches = self.images.batches(self._request(step) for step in range(first, last))

        def drawn_at(step: int) -> Drawn:
            return self._with_noise(step, next(batches))

        with ThreadPoolExecutor(1, "draws") as worker:
            waiting = worker.submit(drawn_at, first) if first < last else None
            for step in range(first + 1, last + 1):
                assert waiting is not None
                drawn = waiting.result()
                if step < last:
                    waiting = worker.submit(drawn_at, step)
                yield drawn

    def _rows(self, step: int) -> range:
        return range(self.rank, self.size_at(step), self.size)

    def _key(self, purpose: str, step: int, row: int) -> seeds.Key:
        return (self.seed, purpose, step, row)

    def _order(self, bucket: int, epoch: int) -> np.ndarray:
        """A bucket's images as its epoch shows them."""
        if (bucket, epoch) not in self._orders:
            group = self._groups[bucket]
            self._orders = {
                key: order for key, order in self._orders.items() if key[0] != bucket or key[1] >= epoch - 1
            }
            self._orders[bucket, epoch] = group[seeds.permutation(len(group), self.seed, epoch, bucket)]
        return self._orders[bucket, epoch]
