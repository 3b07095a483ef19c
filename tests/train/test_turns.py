"""Whose turn it is: every bucket within one turn of its exact share at every step, the same from any step, keyed."""

from __future__ import annotations

from fractions import Fraction
from math import gcd

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuosan.train.batches import Turns

COUNTS = st.lists(st.one_of(st.integers(1, 6), st.integers(1, 500)), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 2**40))
def test_every_bucket_stays_within_tijdemans_bound_of_its_share(counts: list[int], seed: int) -> None:
    """At most 1 - 1/(2k-2) of a turn from the exact share, after every step (1980, theorem 1)."""
    turns, taken, total, k = Turns(counts, seed), [0] * len(counts), sum(counts), len(counts)
    bound = 1 - Fraction(1, 2 * k - 2) if k > 1 else Fraction(0)
    for step in range(min(2 * turns.period + 3, 1500)):
        bucket, before = turns.at(step)
        assert before == taken[bucket], "as many of its turns came before as it says"
        taken[bucket] += 1
        for count, own in zip(counts, taken):
            assert abs(Fraction((step + 1) * count, total) - own) <= bound


def test_two_equal_buckets_come_once_each_in_every_pair_of_steps() -> None:
    turns = [Turns([5, 5], 3).at(step)[0] for step in range(20)]
    assert all(sorted(turns[i : i + 2]) == [0, 1] for i in range(0, 20, 2))


@settings(max_examples=30, deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 100), start=st.integers(0, 5000))
def test_any_step_can_be_asked_first(counts: list[int], seed: int, start: int) -> None:
    fresh, other = Turns(counts, seed), Turns(counts, seed)
    period = Turns(counts, seed).period
    wanted = [fresh.at(step) for step in range(start, start + 5)]
    other.at(0)
    assert [other.at(step) for step in range(start, start + 5)] == wanted
    assert [Turns(counts, seed).at(step) for step in range(start, start + 5)] == wanted
    assert fresh.at(0) == other.at(0), "and an earlier one afterwards"
    assert period == sum(counts) // gcd(*counts)


def test_after_a_period_every_count_is_exact() -> None:
    counts = [30, 20, 5, 45]
    turns = Turns(counts, 1)
    assert turns.period == 20
    for cycle in range(3):
        drawn = [turns.at(step)[0] for step in range(20 * cycle, 20 * (cycle + 1))]
        assert [drawn.count(bucket) for bucket in range(4)] == [6, 4, 1, 9]


def test_equal_claims_are_settled_by_the_seed_and_the_step() -> None:
    orders = {seed: [Turns([7, 7, 7], seed).at(step)[0] for step in range(30)] for seed in range(6)}
    assert len({tuple(order) for order in orders.values()}) == 6
    assert len({tuple(orders[0][i : i + 3]) for i in range(0, 30, 3)}) > 1, "not the same round again and again"


@pytest.mark.parametrize("step", [0, 1, 10**9])
def test_one_bucket_has_every_turn(step: int) -> None:
    assert Turns([123], 0).at(step) == (0, step)
