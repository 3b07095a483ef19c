"""What one training step sees: pictures, where on the schedule, noise; each a pure function of (seed, step, row).

Rows of a step are numbered over all processes, and the order of the pictures is a keyed permutation an epoch, one
after the other: each epoch shows every picture exactly once, at any batch size and on any number of processes.

With aspect-ratio buckets every step is of one bucket, whose turn it is by its share of the pictures (`turns`): after s
steps of B pictures, a bucket of n of the N has had s·B·n/N of them, to within less than one batch. Each bucket has its
own epochs: all of its pictures are seen once before any is seen again.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from kuosan import seeds
from kuosan.errors import Error, is_out_of_memory
from kuosan.tasks import Generation
from kuosan.tasks.condition import degrade
from kuosan.train import memory
from kuosan.train.turns import Turns

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.data.pictures import Batch, Pictures
    from kuosan.tasks import Task
    from kuosan.train.texts import Texts


@dataclass(frozen=True)
class Drawn:
    """One process's share of a step: B pictures, their levels and their noise."""

    batch: Batch
    u: np.ndarray  # (B,) uniform in [0, 1): where the objective draws each picture's level
    eps: Tensor  # (B, C, H, W), or of latents
    drop: np.ndarray  # (B,) uniform in [0, 1): whether a picture is shown without its condition
    step: int = 0  # steps taken before this one

    def part(self, rows: slice) -> Drawn:
        """Some of its pictures."""
        batch = self.batch._replace(
            x0=self.batch.x0[rows],
            ids=self.batch.ids[rows],
            label=None if self.batch.label is None else self.batch.label[rows],
            caption=None if self.batch.caption is None else self.batch.caption[rows],
            given=None if self.batch.given is None else self.batch.given.rows(rows),
            text=None if self.batch.text is None else {door: told[rows] for door, told in self.batch.text.items()},
        )
        return Drawn(batch, self.u[rows], self.eps[rows], self.drop[rows], self.step)


@dataclass
class Draws:
    """The endless sequence of steps of one run."""

    pictures: Pictures
    seed: int
    batch: int
    rank: int = 0
    size: int = 1
    retry: int = 0  # counts returns to an earlier save, so that the same steps draw other noise
    offset: float = 0.0  # strength of the noise that all pixels of a channel share
    task: Task = Generation()  # noqa: RUF009 (frozen); by which pictures are degraded
    threads: int = 1  # that draw a step's noise; never changes a bit
    noise_shape: tuple[int, int, int] | None = None  # of one picture's noise; None: the picture's own
    texts: Texts | None = None  # what is told of each picture's caption
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        train, of = self.pictures.train, self.pictures.buckets.of
        self._groups = [train[of[train] == bucket] for bucket in np.unique(of[train])]
        self._turns = Turns([len(group) for group in self._groups], self.seed)

    def ids(self, step: int) -> np.ndarray:
        """The pictures of all rows of a step, which are of one bucket: (batch,)."""
        bucket, before = self._turns.at(step)
        n = len(self._groups[bucket])
        places = np.arange(before * self.batch, (before + 1) * self.batch)
        return np.array([self._order(bucket, int(place) // n)[place % n] for place in places])

    def draw(self, step: int) -> Drawn:
        """This process's rows of a step."""
        return self._with_noise(step, self.pictures.batch(*self._request(step)))

    def _request(self, step: int) -> tuple[np.ndarray, list[seeds.Key]]:
        rows = self._rows
        return self.ids(step)[list(rows)], [self._key("train/augment", step, row) for row in rows]

    def _with_noise(self, step: int, batch: Batch) -> Drawn:
        rows, again = self._rows, f"/{self.retry}" if self.retry else ""
        if not isinstance(self.task, Generation):  # which brings nothing
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
                    f"step {step + 1}: out of memory in reading its {self.batch} images ({reason}). Lower "
                    f"--train.batch, --data.workers or --data.memory-gib; what was saved before is untouched.",
                    exit_code=memory.CODE,
                )
            alone = True

    def _ahead(self, first: int, last: int) -> Iterator[Drawn]:
        batches = self.pictures.batches(self._request(step) for step in range(first, last))

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

    @property
    def _rows(self) -> range:
        return range(self.rank, self.batch, self.size)

    def _key(self, purpose: str, step: int, row: int) -> seeds.Key:
        return (self.seed, purpose, step, row)

    def _order(self, bucket: int, epoch: int) -> np.ndarray:
        """A bucket's pictures as its epoch shows them."""
        if (bucket, epoch) not in self._orders:
            group = self._groups[bucket]
            self._orders = {
                key: order for key, order in self._orders.items() if key[0] != bucket or key[1] >= epoch - 1
            }
            self._orders[bucket, epoch] = group[seeds.permutation(len(group), self.seed, epoch, bucket)]
        return self._orders[bucket, epoch]
