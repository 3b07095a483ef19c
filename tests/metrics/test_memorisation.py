"""Memorisation: planted copies are found, fresh images are not accused, and its numbers are scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from kuosan.errors import Error
from kuosan.evaluate.plot import memorisation_sheet
from kuosan.metrics.estimate import wilson
from kuosan.metrics.memorisation import SHOWN, copies, mann_whitney, memorisation, nearest, tail
from kuosan.seeds import rng


def source(purpose, n, id=0, width=24):
    """Rows from one distribution of clusters, as features of images are."""
    draws = rng(0, purpose, 0, id)
    centres = 3 * rng(0, "centres").standard_normal((10, width))
    return centres[draws.integers(0, 10, n)] + draws.standard_normal((n, width))


@pytest.fixture(scope="module")
def train():
    return source("train", 2000)


def planted(train, share, n=300, id=0, noise=0.05):
    """Fresh rows, of which `share` are training rows with a little noise."""
    made = source("made", n, id)
    count = round(share * n)
    chosen = rng(0, "chosen", 0, id).choice(len(train), count, replace=False)
    made[:count] = train[chosen] + noise * rng(0, "noise", 0, id).standard_normal((count, train.shape[1]))
    return made, chosen


def test_five_percent_of_copies_are_found_and_named(train):
    made, chosen = planted(train, 0.05)
    report = memorisation(made, source("held_out", 500), train)
    assert report.flagged and report.p_value < 1e-4
    assert report.below.count >= 15 and report.below.low > report.quantile
    assert set(report.closest(15)) == set(range(15))
    assert (report.made.index[:15, 0] == chosen).all()


def test_fresh_images_are_flagged_no_more_often_than_chance(train):
    reports = [memorisation(source("made", 200, i), source("held_out", 200, i), train[:1000]) for i in range(40)]
    assert sum(report.flagged for report in reports) <= 3  # one in a hundred on average
    mean = np.mean([report.nearer.value for report in reports])
    assert mean == pytest.approx(0.5, abs=0.02)
    assert np.std([report.nearer.value for report in reports]) == pytest.approx(reports[0].nearer.error, rel=0.4)
    assert np.mean([report.below.value for report in reports]) == pytest.approx(reports[0].quantile, rel=0.6)
    assert np.mean([report.ratio for report in reports]) == pytest.approx(1, abs=0.02)


def test_images_that_are_all_close_to_training_shift_the_whole_distribution(train):
    made, _ = planted(train, 1.0, noise=0.5)
    report = memorisation(made, source("held_out", 500), train)
    assert report.nearer.value > 0.95 and report.ratio < 0.8 and report.flagged


def test_dull_images_are_near_and_no_copies(train):
    # between all clusters, nearest training row closer than usual in no relative sense
    dull = 0.05 * rng(0, "dull").standard_normal((300, 24))
    assert not memorisation(dull, source("held_out", 500), train).flagged


def test_duplicates_in_the_data_hide_no_copies_and_make_none(train):
    held_out, _ = planted(source("train", 2000), 0.03, n=500, id=7, noise=0)
    some, _ = planted(train, 0.03, id=8, noise=0)
    many, _ = planted(train, 0.3, id=9, noise=0)
    honest, guilty = memorisation(some, held_out, train), memorisation(many, held_out, train)
    assert not honest.flagged and honest.quantile == pytest.approx(16 / 501)
    assert guilty.flagged and guilty.below.count >= 90


def test_the_nearest_are_scipys(train, monkeypatch):
    rows = source("rows", 40)
    tree_distance, tree_index = scipy.spatial.KDTree(train).query(rows, k=50)
    for chunk in (4096, 77):
        monkeypatch.setattr("kuosan.metrics.memorisation.CHUNK", chunk)
        found = nearest(rows, train)
        assert (found.index == tree_index[:, :SHOWN]).all()
        np.testing.assert_allclose(found.distance, tree_distance[:, 0], rtol=1e-9)
        np.testing.assert_allclose(found.relative, tree_distance[:, 0] / tree_distance.mean(axis=1), rtol=1e-9)


def test_the_chance_of_being_nearer_is_mann_whitneys():
    x, y = rng(0, "x").integers(0, 9, 40).astype(float), rng(0, "y").integers(2, 11, 30).astype(float)  # with ties
    statistic = scipy.stats.mannwhitneyu(y, x).statistic  # pairs with y above x
    assert mann_whitney(x, y).value == pytest.approx(statistic / (40 * 30), rel=1e-12)


def test_its_error_is_what_other_samples_show():
    found = [mann_whitney(source("x", 60, i)[:, 0], source("y", 50, i)[:, 0] + 1) for i in range(200)]
    true = np.std([each.value for each in found], ddof=1)
    assert np.mean([each.error for each in found]) == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize(
    ("count", "n", "rank", "m"), [(0, 20, 1, 50), (3, 20, 1, 50), (12, 300, 5, 500), (300, 300, 1, 9)]
)
def test_the_p_value_is_beta_binomials(count, n, rank, m):
    expected = scipy.stats.betabinom(n, rank, m + 1 - rank).sf(count - 1)
    assert tail(count, n, rank, m) == pytest.approx(expected, rel=1e-9)


def test_copies_and_mirrored_copies_are_counted_byte_for_byte():
    train = rng(0, "train").integers(0, 256, (30, 6, 6, 3), dtype=np.uint8)
    made = rng(0, "made").integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
    made[2], made[5] = train[7], train[11][:, ::-1]
    made[6] = train[9]
    made[6, 0, 0, 0] ^= 1
    assert copies(made, train) == [(2, 7), (5, 11)]


def test_the_sheet_shows_each_image_beside_its_nearest():
    train = rng(0, "train").integers(0, 256, (60, 5, 4, 1), dtype=np.uint8)
    held_out = rng(0, "held").integers(0, 256, (20, 5, 4, 1), dtype=np.uint8)
    made = rng(0, "made").integers(0, 256, (20, 5, 4, 1), dtype=np.uint8)
    made[3] = train[41]
    report = memorisation(made.reshape(20, -1), held_out.reshape(20, -1), train.reshape(60, -1))
    found = memorisation_sheet(report, made, train, count=2)
    assert found.shape == (2 * (5 + 2) + 2, (1 + SHOWN) * (4 + 2) + 2, 1)
    assert (found[2:7, 2:6] == made[3]).all() and (found[2:7, 8:12] == train[41]).all()
    assert report.made.distance[3] == 0 and report.closest(1).tolist() == [3]
    with pytest.raises(Error, match="20 made images; got 19"):
        memorisation_sheet(report, made[:19], train)
    with pytest.raises(Error, match="one size"):
        memorisation_sheet(report, made[:, :4], train)


@pytest.mark.parametrize(
    ("made", "held", "train", "quantile", "says"),
    [
        ((20, 3), (20, 3), (50, 3), 0.01, "at least 51"),
        ((20, 3), (20, 3), (60, 4), 0.01, "one width"),
        ((19, 3), (20, 3), (60, 3), 0.01, "19 made images"),
        ((20, 3), (19, 3), (60, 3), 0.01, "19 held-out images"),
        ((20, 3), (20, 3), (60, 3), 0.0, "quantile 0"),
    ],
)
def test_reports_without_ground_are_refused(made, held, train, quantile, says):
    with pytest.raises(Error, match=says):
        memorisation(np.ones(made), np.ones(held), np.ones(train), quantile=quantile)


def test_what_is_no_image_has_no_copies():
    with pytest.raises(Error, match="float64"):
        copies(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4, 1), np.uint8))
    with pytest.raises(Error, match="one size"):
        copies(np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 4, 5, 1), np.uint8))


def test_wilsons_interval_is_scipys():
    for count, n in ((0, 10), (3, 10), (10, 10), (950, 1000)):
        theirs = scipy.stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
        ours = wilson(count, n)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert ours.value == count / n
    for count, n in ((0, 0), (4, 3), (-1, 3)):
        with pytest.raises(Error, match="share"):
            wilson(count, n)
