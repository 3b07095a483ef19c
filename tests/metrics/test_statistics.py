"""Statistics: numpy's mean and covariance however the rows come, and files that damage cannot pass."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from kuosan.errors import Error
from kuosan.metrics.frechet import About, Statistics, gather, load, merge, save
from kuosan.seeds import rng

LITE = About("lite0", "ab12", "224 px, bicubic, antialiased", "portraits")


def rows(n, width=6, id=0):
    return rng(0, "rows", 0, id).standard_normal((n, width)) * np.arange(1, width + 1) + 100


@pytest.mark.parametrize("sizes", [[50], [20, 30], [1, 49], [1] * 50, [0, 50, 0]])
def test_parts_give_numpys_mean_and_covariance(sizes):
    whole = rows(50)
    found = gather(np.split(whole, np.cumsum(sizes)[:-1]), LITE)
    assert (found.n, found.dim, found.about) == (50, 6, LITE)
    np.testing.assert_allclose(found.mean, whole.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.cov, np.cov(whole, rowvar=False), rtol=1e-9, atol=1e-10)


def test_float32_rows_far_from_zero_lose_nothing():
    whole = (rows(4000) + 1e4).astype(np.float32)
    found = gather(torch.from_numpy(whole).split(64))
    np.testing.assert_allclose(found.cov, np.cov(whole.astype(np.float64), rowvar=False), rtol=1e-8, atol=1e-8)


def test_merging_names_both_sources():
    other = About(LITE.features, LITE.hash, LITE.resize, "faces")
    both = merge(gather([rows(5)], LITE), gather([rows(7, id=1)], other))
    assert both.n == 12 and both.about.data == "portraits+faces"


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([], "0 images"),
        ([np.zeros((1, 3))], "1 image:"),
        ([np.zeros((4, 3)), np.zeros((4, 2))], "3 and 2 wide"),
        ([np.full((4, 3), np.inf)], "not finite: 4 of 4"),
        ([np.zeros(4)], "shape"),
    ],
)
def test_rows_without_statistics_are_refused(parts, says):
    with pytest.raises(Error, match=says):
        gather(parts)


def test_a_file_gives_back_what_was_saved(tmp_path):
    before = gather([rows(30)], LITE)
    save(tmp_path / "real.npz", before)
    after = load(tmp_path / "real.npz")
    assert (after.n, after.about) == (30, LITE)
    assert np.array_equal(after.mean, before.mean) and np.array_equal(after.cov, before.cov)


def test_pytorch_fid_reads_our_file_and_we_read_its(tmp_path):
    before = gather([rows(30)], LITE)
    save(tmp_path / "ours.npz", before)
    with np.load(tmp_path / "ours.npz") as file:  # as pytorch-fid 0.3.0 does
        assert np.array_equal(file["mu"][:], before.mean) and np.array_equal(file["sigma"][:], before.cov)
    np.savez_compressed(tmp_path / "theirs.npz", mu=before.mean, sigma=before.cov)
    theirs = load(tmp_path / "theirs.npz", n=30, about=LITE)
    assert isinstance(theirs, Statistics) and np.array_equal(theirs.cov, before.cov) and theirs.n == 30
    with pytest.raises(Error, match="does not say n"):
        load(tmp_path / "theirs.npz", about=LITE)
    with pytest.raises(Error, match="itself says n = 30"):
        load(tmp_path / "ours.npz", n=30)


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "code.npz", mu=np.array([object()]), sigma=np.eye(1))
    with pytest.raises(Error, match="holds no statistics"):
        load(tmp_path / "code.npz", n=3, about=LITE)


def test_a_file_cut_anywhere_or_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "cut.npz"
    save(path, gather([rows(30)], LITE))
    whole = path.read_bytes()
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(Error, match=r"cut\.npz"):
            load(path)
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.zeros(3), sigma=np.zeros((2, 2)), n=4, about=np.array("{}"))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(Error, match=r"mu \(3,\) and sigma \(2, 2\)"):
        load(path)
    with pytest.raises(Error, match="gone"):
        load(tmp_path / "nosuch.npz")


def test_a_flipped_byte_is_noticed_or_changes_nothing(tmp_path):
    path, before = tmp_path / "flipped.npz", gather([rows(30)], LITE)
    save(path, before)
    whole, noticed = path.read_bytes(), 0
    for at in range(0, len(whole), 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            after = load(path)
        except Error as error:
            noticed += "flipped.npz" in str(error)
        else:  # a byte of the archive that nobody reads, such as the hour of writing
            assert np.array_equal(after.cov, before.cov) and np.array_equal(after.mean, before.mean)
            assert (after.n, after.about) == (before.n, before.about)
    assert noticed > 0.7 * len(whole) / 11
