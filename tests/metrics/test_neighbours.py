"""Precision, recall, density, coverage: a plain re-implementation, identities, toys, replicates."""

from __future__ import annotations

import numpy as np
import pytest

from kuosan.errors import Error
from kuosan.metrics.prdc import balls, density_coverage, distances, expected_coverage, precision_recall
from kuosan.seeds import rng


def gaussian(purpose, n, width=4, mean=0.0, id=0):
    return rng(0, purpose, 0, id).standard_normal((n, width)) + mean


def plain(real, made, k):
    """The four of Kynkäänniemi et al. 2019 (eq. 1-3) and Naeem et al. 2020 (eq. 3, 4) from one matrix of distances."""

    def apart(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    def radii(a):
        return np.sort(apart(a, a), axis=1)[:, k]  # column 0 is the row itself

    cross = apart(real, made)
    in_real, in_made = (cross <= radii(real)[:, None]), (cross <= radii(made)[None]).T
    return (
        in_real.any(axis=0).mean(),
        in_made.any(axis=0).mean(),
        in_real.sum() / (k * len(made)),
        in_real.any(axis=1).mean(),
    )


def ours(real, made, k):
    shares, rest = precision_recall(real, made, k=k), density_coverage(real, made, k=k)
    return tuple(each.value for each in (shares.precision, shares.recall, rest.density, rest.coverage))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m", "mean"), [(60, 40, 0.0), (33, 57, 0.8), (300, 270, 1.5)])
def test_the_four_are_the_papers(n, m, mean, k):
    real, made = gaussian("real", n), gaussian("made", m, mean=mean)
    assert ours(real, made, k) == pytest.approx(plain(real, made, k), rel=1e-12)


def test_radii_without_a_group_are_the_remaining_rows_radii():
    rows = gaussian("rows", 90)
    around = balls(rows, 3, seed=0)
    for g in range(len(around.without)):
        kept = around.number != g
        assert (around.without[g][~kept] == -1).all()
        d2 = ((rows[kept][:, None] - rows[kept][None]) ** 2).sum(-1)
        np.testing.assert_allclose(around.without[g][kept], np.sort(d2, axis=1)[:, 3], rtol=1e-9)


def test_equal_sets_are_wholly_inside_each_other():
    rows = gaussian("rows", 80)
    shares, rest = precision_recall(rows, rows), density_coverage(rows, rows)
    assert (shares.precision.value, shares.recall.value, rest.coverage.value) == (1, 1, 1)
    assert rest.density.value == pytest.approx(1 + 1 / rest.k)  # each ball holds its k neighbours and its own centre


def test_sets_far_apart_share_nothing():
    real, made = gaussian("real", 80), gaussian("made", 70, mean=100)
    assert ours(real, made, 3) == (0, 0, 0, 0)


def test_one_repeated_image_is_faithful_and_not_diverse():
    real = gaussian("real", 200)
    made = np.repeat(real[:1], 100, axis=0)
    precision, recall, _, coverage = ours(real, made, 3)
    assert (precision, recall) == (1, 1 / 200)  # the copies' balls have radius 0 and hold their original alone
    assert coverage < 0.1


def test_an_outlier_lifts_recall_and_precision_but_not_density():
    # Naeem et al. 2020, figure 2: one far real image makes a ball that swallows everything between
    real, made = gaussian("real", 200), gaussian("made", 200, mean=3)
    with_outlier = np.concatenate([real, np.full((1, 4), 12.0)])
    without, spoiled = ours(real, made, 3), ours(with_outlier, made, 3)
    assert spoiled[0] - without[0] > 0.5
    assert spoiled[2] - without[2] < 0.35


def test_equal_distributions_have_density_one_and_the_papers_coverage():
    found = [density_coverage(gaussian("real", 80, id=i), gaussian("made", 60, id=i)) for i in range(150)]
    coverage, density = ([getattr(each, name).value for each in found] for name in ("coverage", "density"))
    assert np.mean(density) == pytest.approx(1, abs=4 * np.std(density) / 150**0.5)
    assert np.mean(coverage) == pytest.approx(expected_coverage(80, 60, 5), abs=4 * np.std(coverage) / 150**0.5)


def test_the_expected_coverage_is_the_papers_for_large_sets():
    assert expected_coverage(10_000, 10_000, 5) == pytest.approx(1 - 2**-5, abs=1e-3)  # Naeem et al. 2020, section 3.3
    assert expected_coverage(2, 1, 1) == 0.5  # two others, one of them made: nearest or not


def test_the_errors_are_what_other_images_show():
    def found(i):
        real, made = gaussian("real", 250, id=i), gaussian("made", 200, mean=0.7, id=i)
        shares, rest = precision_recall(real, made), density_coverage(real, made)
        return shares.precision, shares.recall, rest.density, rest.coverage

    samples = [found(i) for i in range(60)]
    for each in zip(*samples):
        true = np.std([one.value for one in each], ddof=1)
        told = np.sqrt(np.mean([one.error**2 for one in each]))
        assert 0.75 * true < told < 1.9 * true


def test_chunks_change_nothing_and_equal_rows_are_at_no_distance():
    x, y = gaussian("x", 50) + 1e3, gaussian("y", 30) + 1e3
    whole = np.concatenate([d2 for _, d2 in distances(x, y)])
    parts = np.concatenate([d2 for _, d2 in distances(x, y, chunk=7)])
    np.testing.assert_allclose(parts, whole, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(whole, ((x[:, None] - y[None]) ** 2).sum(-1), rtol=1e-6, atol=1e-8)
    assert all((np.diag(d2) == 0).all() for _, d2 in distances(x, x))


@pytest.mark.parametrize("measure", [precision_recall, density_coverage])
@pytest.mark.parametrize(
    ("real", "made", "k", "says"),
    [
        ((5, 4), (5, 3), 3, "4 and 3 wide"),
        ((5, 4), (5, 4), 5, "k = 5: allowed is 1 to 4"),
        ((5, 4), (5, 4), 0, "k = 0: allowed is 1 to 4"),
        ((1, 4), (5, 4), 3, "1 image"),
    ],
)
def test_what_has_no_neighbours_is_refused(measure, real, made, k, says):
    with pytest.raises(Error, match=says):
        measure(np.ones(real), np.ones(made), k=k)
