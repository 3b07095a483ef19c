"""The order of the images: every epoch each exactly once, whatever the batch, its parts, the processes, and stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kuosan.data.config import DataConfig
from kuosan.data.dataset import Images, open_images
from kuosan.train.batches import BatchStream
from train.made_runs import images, mixed


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Images:
    path = images(tmp_path_factory.mktemp("draws") / "pictures.npz", n=23)
    return open_images(DataConfig(str(path), hold_out=0.2, flip=True))


def draws(opened: Images, batch: int, rank: int = 0, size: int = 1, retry: int = 0, seed: int = 1) -> BatchStream:
    return BatchStream(opened, seed, batch, rank, size, retry)


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_each_epoch_shows_every_image_exactly_once(opened: Images, batch: int, seed: int) -> None:
    n = len(opened.train)
    made = draws(opened, batch, seed=seed)
    ids = np.concatenate([made.ids(step) for step in range(-(-4 * n // batch))])
    epochs = [ids[begin : begin + n] for begin in range(0, 4 * n, n)]
    assert all(sorted(epoch) == sorted(opened.train) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4, "in another order each"


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(2, 30), size=st.integers(2, 4), step=st.integers(0, 40))
def test_the_processes_share_a_steps_rows(opened: Images, batch: int, size: int, step: int) -> None:
    whole = draws(opened, batch).draw(step)
    shares = [draws(opened, batch, rank, size).draw(step) for rank in range(min(size, batch))]
    for rank, share in enumerate(shares):
        rows = slice(rank, batch, min(size, batch) if size > batch else size)
        assert torch.equal(share.batch.ids, whole.batch.ids[rows])
        assert torch.equal(share.batch.x0, whole.batch.x0[rows])
        assert torch.equal(share.eps, whole.eps[rows])
        assert np.array_equal(share.u, whole.u[rows])


def test_starting_anywhere_gives_the_same_steps(opened: Images) -> None:
    steps = list(draws(opened, 7).ahead(0, 12))
    for first in (1, 5, 11):
        for step, drawn in enumerate(draws(opened, 7).ahead(first, 12), start=first):
            assert torch.equal(drawn.batch.x0, steps[step].batch.x0)
            assert torch.equal(drawn.eps, steps[step].eps)
    assert list(draws(opened, 7).ahead(4, 4)) == []


def test_batches_of_another_size_walk_the_same_order(opened: Images) -> None:
    walks = [np.concatenate([draws(opened, batch).ids(step) for step in range(120 // batch)]) for batch in (1, 4, 10)]
    assert all((walk == walks[0]).all() for walk in walks)


def test_a_retry_draws_other_noise_for_the_same_images(opened: Images) -> None:
    first, again = draws(opened, 7).draw(3), draws(opened, 7, retry=1).draw(3)
    assert torch.equal(first.batch.x0, again.batch.x0)
    assert not torch.isclose(first.eps, again.eps).any()
    assert not np.array_equal(first.u, again.u)


def test_another_seed_is_another_run(opened: Images, tmp_path: Path) -> None:
    assert (draws(opened, 20).ids(0) != draws(opened, 20, seed=2).ids(0)).any()


def test_levels_and_noise_are_what_they_are_named_for(opened: Images) -> None:
    """u is uniform, eps standard normal: over 400 steps, to four standard errors."""
    made = [draws(opened, 16).draw(step) for step in range(100)]
    t = torch.from_numpy(np.concatenate([drawn.u for drawn in made]))
    eps = torch.cat([drawn.eps for drawn in made]).double()
    n = t.numel()
    assert abs(t.mean() - 0.5) < 4 / (12 * n) ** 0.5
    assert abs(eps.mean()) < 4 / eps.numel() ** 0.5
    assert abs(eps.var() - 1) < 4 * (2 / eps.numel()) ** 0.5


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Images of five shapes, 1 to 24 of each."""
    return open_images(mixed(tmp_path_factory.mktemp("buckets"), (24, 11, 5, 1, 2)))


def shapes_of(opened: Images, ids: np.ndarray) -> set[int]:
    return set(opened.buckets.of[ids].tolist())


@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_each_step_is_of_one_bucket_and_each_bucket_has_its_share(several: Images, batch: int, seed: int) -> None:
    """Within less than one batch of the exact share at every step, also of a bucket smaller than a batch."""
    made, n = draws(several, batch, seed=seed), len(several.train)
    counts = several.buckets.counts(several.train)
    assert n == 43 and sorted(counts) == [1, 2, 5, 11, 24]
    seen = np.zeros(len(counts))
    for step in range(150):
        ids = made.ids(step)
        assert len(ids) == batch and len(shapes_of(several, ids)) == 1
        seen[several.buckets.of[ids[0]]] += batch
        assert (np.abs(seen - (step + 1) * batch * counts / n) < batch).all()


@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_all_of_a_bucket_are_seen_once_before_any_is_seen_again(several: Images, batch: int, seed: int) -> None:
    made = draws(several, batch, seed=seed)
    stream = np.concatenate([made.ids(step) for step in range(43 * 4)])
    for bucket in range(len(several.buckets.shapes)):
        own = several.train[several.buckets.of[several.train] == bucket]
        shown = stream[several.buckets.of[stream] == bucket]
        whole = shown[: len(shown) // len(own) * len(own)].reshape(-1, len(own))
        assert len(whole) and (np.sort(whole, axis=1) == np.sort(own)).all()
        assert len(set(shown[len(whole) * len(own) :])) == len(shown) - whole.size
    assert np.bincount(stream, minlength=len(several))[several.train].tolist() == [batch * 4] * 43, "none is dropped"


def test_processes_share_the_rows_of_a_step_of_one_bucket(several: Images) -> None:
    for step in range(12):
        whole = draws(several, 7).draw(step)
        shape = tuple(whole.batch.x0.shape[1:])
        assert whole.eps.shape == (7, *shape)
        for rank in range(2):
            share = draws(several, 7, rank, 2).draw(step)
            assert torch.equal(share.batch.ids, whole.batch.ids[rank::2])
            assert torch.equal(share.batch.x0, whole.batch.x0[rank::2])
            assert torch.equal(share.eps, whole.eps[rank::2])


def test_starting_anywhere_gives_the_same_steps_of_buckets(several: Images) -> None:
    steps = list(draws(several, 6).ahead(0, 60))
    assert len({tuple(drawn.eps.shape) for drawn in steps}) >= 4
    for first in (1, 17, 59):
        for step, drawn in enumerate(draws(several, 6).ahead(first, 60), start=first):
            assert torch.equal(drawn.batch.x0, steps[step].batch.x0)
            assert torch.equal(drawn.eps, steps[step].eps)


def test_images_read_from_disk_are_drawn_as_those_in_memory(several: Images) -> None:
    read = open_images(replace(several.config, memory_gib=0.0))
    assert not read.in_memory and several.in_memory
    for one, other in zip(draws(several, 5).ahead(0, 20), draws(read, 5).ahead(0, 20)):
        assert torch.equal(one.batch.x0, other.batch.x0) and torch.equal(one.eps, other.eps)
