"""Draws are functions of their key: the same everywhere, and independent of each other."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import torch

from kuosan import seeds


def test_the_same_key_gives_the_same_bits_in_another_process() -> None:
    code = "from kuosan import seeds; print(seeds.rng(7, 'a', 3, 5).standard_normal(4).tobytes().hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == seeds.rng(7, "a", 3, 5).standard_normal(4).tobytes().hex()


def test_the_bits_are_those_of_the_first_release() -> None:
    # a change here changes every image and every resumed run
    assert seeds.rng(0, "sample/start").integers(2**32, size=3).tolist() == EXPECTED


EXPECTED = [2222471643, 3922683754, 3396631064]


def test_every_part_of_the_key_matters() -> None:
    keys = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (0, "a\0", 0, 0)]
    drawn = seeds.normal(keys, (64,))
    assert len({row.numpy().tobytes() for row in drawn}) == len(keys)


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    keys = [(seed, "x", 0, seed) for seed in range(5)]
    together = seeds.normal(keys, (3, 4, 4))
    assert together.dtype == torch.float32 and together.shape == (5, 3, 4, 4)
    for i in (0, 3):
        assert torch.equal(seeds.normal([keys[i]], (3, 4, 4))[0], together[i])
    uniform = seeds.uniform(keys)
    assert uniform.dtype == np.float64 and uniform[2] == seeds.uniform([keys[2]])[0]


def test_many_keys_draw_what_each_draws_alone_on_any_number_of_threads() -> None:
    keys = [(seed, "x/y", 3, id) for seed in (0, 2**40) for id in range(5)]
    for shape in ((), (7,), (3, 5, 5)):
        alone = np.stack([seeds.rng(*key).standard_normal(shape, dtype=np.float32) for key in keys])
        for threads in (1, 2, 16):
            assert seeds.normal(keys, shape, threads).numpy().tobytes() == alone.tobytes()
    assert seeds.uniform(keys).tolist() == [seeds.rng(*key).random() for key in keys]
    assert seeds.normal([], (2,)).shape == (0, 2)


def test_normal_is_normal_and_uniform_uniform() -> None:
    n = 4096
    x = seeds.normal([(i, "test", 0, 0) for i in range(64)], (64,)).flatten().double()
    assert abs(float(x.mean())) < 5 / math.sqrt(n) and abs(float(x.var()) - 1) < 5 * math.sqrt(2 / n)
    u = np.sort(seeds.uniform([(0, "test", 0, i) for i in range(n)]))
    assert u[0] >= 0 and u[-1] < 1
    assert np.abs(u - (np.arange(n) + 0.5) / n).max() < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, p = 0.001


def test_streams_of_neighbouring_keys_are_uncorrelated() -> None:
    x = seeds.normal([(seed, "test", 0, 0) for seed in range(200)], (1000,)).double()
    gram = (x @ x.T) / 1000
    off = gram[~torch.eye(200, dtype=torch.bool)]
    assert float(off.abs().max()) < 6 / math.sqrt(1000)


def test_a_permutation_holds_every_image_once_and_changes_with_the_epoch() -> None:
    first, second = seeds.permutation(100, 1, 0), seeds.permutation(100, 1, 1)
    assert sorted(first) == list(range(100)) and not np.array_equal(first, second)
    assert np.array_equal(first, seeds.permutation(100, 1, 0))
    assert seeds.permutation(0, 1, 0).tolist() == []
