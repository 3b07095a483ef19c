"""Whose turn it is: the bucket that each step's batch is drawn from, as often as its share of the pictures. Torch-free.

Of k buckets with shares p (adding up to 1), let d_b = s p_b - (turns of b before step s, counted from 1). The turn goes
to that one with d_b >= 1/(2k-2) which has the least (1 - 1/(2k-2) - d_b) / p_b. Then every |d_b| stays below 1, at most
1 - 1/(2k-2) after each step; no rule keeps a smaller bound for all shares (Tijdeman 1980, "The chairman assignment
problem", theorem 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from kuosan import seeds


class Turns:
    """The turns of buckets with `counts` pictures each; equal claims are settled by a draw keyed by (seed, step).

    In whole numbers, so that all processes agree. After as many steps as there are pictures, less common factors, every
    count is exact and the rule begins anew: a step's turn needs those of its own period alone.
    """

    def __init__(self, counts: Sequence[int], seed: int) -> None:
        common = gcd(*counts)
        self.shares = tuple(count // common for count in counts)
        self.seed, self.period = seed, sum(self.shares)
        self._begin(0)

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
