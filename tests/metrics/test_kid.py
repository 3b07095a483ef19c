"""KID against closed forms, an independent implementation, and what must not change it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from kuosan.errors import Error
from kuosan.metrics.estimate import checked
from kuosan.metrics.kid import kid, kid_by_subsets, kid_difference, kid_of_pairs, mmd2, pairs
from kuosan.seeds import rng


def gaussian(purpose, n, width, mean=0.0, id=0):
    return rng(0, purpose, 0, id).standard_normal((n, width)) + mean


def kernel_mean(mu, nu):
    """E (x.y / D + 1)^3 for x ~ N(mu, I), y ~ N(nu, I), by the moments of x.y given y ~ N(mu.y, |y|^2)."""
    d, dot, m, n = len(mu), mu @ nu, mu @ mu, nu @ nu
    first, second = dot, dot**2 + m + n + d
    third = dot**3 + 3 * dot * m + 3 * dot * (n + d + 2)
    return third / d**3 + 3 * second / d**2 + 3 * first / d + 1


def brute(x, y):
    """MMD^2 by two plain loops over all pairs."""

    def k(a, b):
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    def within(z):
        return np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])

    return within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_mmd2_is_the_mean_over_all_pairs_written_as_loops():
    x, y = gaussian("x", 13, 5), gaussian("y", 9, 5, 0.3)
    assert mmd2(x, y) == pytest.approx(brute(x, y), rel=1e-12)


def test_mmd2_equals_torchmetrics():
    kid_module = pytest.importorskip("torchmetrics.image.kid")
    import torch

    for width, shift in ((4, 0.0), (64, 0.2), (1280, 0.05)):
        x, y = np.abs(gaussian("x", 200, width)), np.abs(gaussian("y", 200, width, shift))
        theirs = kid_module.poly_mmd(torch.from_numpy(x), torch.from_numpy(y)).item()
        assert mmd2(x, y) == pytest.approx(theirs, abs=1e-6 * max(1, abs(theirs)))
        assert mmd2(torch.from_numpy(x), torch.from_numpy(y)) == mmd2(x, y)


def test_shifted_gaussians_give_the_kernels_closed_form():
    width, mean = 8, np.linspace(-0.2, 0.6, 8)
    zero = np.zeros(width)
    exact = kernel_mean(zero, zero) + kernel_mean(mean, mean) - 2 * kernel_mean(zero, mean)
    estimate = kid(gaussian("x", 3000, width), gaussian("y", 2000, width, mean))
    assert estimate.error < 0.1 * exact
    assert abs(estimate.value - exact) < 3 * estimate.error


def test_one_distribution_gives_zero_within_its_error_and_the_error_is_the_spread():
    trials = [kid(gaussian("x", 100, 6, id=i), gaussian("y", 80, 6, id=i)) for i in range(200)]
    values = np.array([trial.value for trial in trials])
    errors = np.array([trial.error for trial in trials])
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert values.min() < 0 < values.max()
    # at the null the jackknife of a degenerate U-statistic errs on the safe side, by about sqrt(2)
    assert 0.9 < errors.mean() / values.std() < 1.8


def test_the_jackknife_error_is_the_spread_of_repeated_samples_when_the_sets_differ():
    trials = [kid(gaussian("x", 150, 6, id=i), gaussian("y", 120, 6, 0.7, id=i)) for i in range(200)]
    spread = np.std([trial.value for trial in trials])
    assert np.mean([trial.error for trial in trials]) == pytest.approx(spread, rel=0.15)


def test_a_row_left_out_is_the_distance_without_it():
    x, y = gaussian("x", 12, 4), gaussian("y", 7, 4, 0.5)
    sums = pairs(x, y)
    np.testing.assert_allclose(sums.without_x(), [mmd2(np.delete(x, i, 0), y) for i in range(12)], rtol=1e-10)
    np.testing.assert_allclose(sums.without_y(), [mmd2(x, np.delete(y, j, 0)) for j in range(7)], rtol=1e-10)


def test_the_order_of_the_images_and_of_the_sets_changes_nothing():
    x, y = gaussian("x", 300, 16), gaussian("y", 250, 16, 0.1)
    order_x, order_y = rng(1, "x").permutation(300), rng(1, "y").permutation(250)
    here, there, back = kid(x, y), kid(x[order_x], y[order_y]), kid(y, x)
    assert there.value == pytest.approx(here.value, rel=1e-9)
    assert there.error == pytest.approx(here.error, rel=1e-9)
    assert back.value == pytest.approx(here.value, rel=1e-9)
    assert back.error == pytest.approx(here.error, rel=1e-9)


def test_chunks_change_nothing():
    x, y = checked(gaussian("x", 70, 8), gaussian("y", 50, 8), least=2, metric="KID")
    whole, parts = pairs(x, y), pairs(x, y, chunk=16)
    np.testing.assert_allclose(parts.xx, whole.xx, rtol=1e-12)
    np.testing.assert_allclose(parts.yx, whole.yx, rtol=1e-12)
    assert parts.mmd2() == pytest.approx(whole.mmd2(), rel=1e-9)


def test_subsets_are_keyed_and_agree_with_all_pairs():
    x, y = gaussian("x", 400, 12), gaussian("y", 400, 12, 0.3)
    drawn = kid_by_subsets(x, y, subsets=60, size=100, seed=3)
    assert drawn == kid_by_subsets(x, y, subsets=60, size=100, seed=3)
    assert drawn != kid_by_subsets(x, y, subsets=60, size=100, seed=4)
    assert drawn.mean == pytest.approx(mmd2(x, y), abs=4 * drawn.error)
    assert drawn.error == pytest.approx(drawn.std / 60**0.5)


def test_a_subset_of_everything_is_all_pairs():
    x, y = gaussian("x", 50, 5), gaussian("y", 50, 5, 0.2)
    assert kid_by_subsets(x, y, subsets=2, size=50).mean == pytest.approx(mmd2(x, y), rel=1e-9)


def test_a_paired_difference_is_surer_than_two_distances():
    y, x = gaussian("y", 300, 10), gaussian("x", 300, 10, 0.3)
    near = x + 0.02 * gaussian("nudge", 300, 10)
    difference = kid_difference(near, x, y)
    assert difference.value == pytest.approx(kid(near, y).value - kid(x, y).value, rel=1e-9)
    assert difference.error < 0.3 * kid(x, y).error
    assert kid_difference(x, x, y).error == 0


def test_kid_of_pairs_is_the_mean_over_all_pairs_of_pairs_but_each_with_itself():
    x, n = gaussian("x", 9, 5), 9
    y = 0.8 * x + 0.3 * gaussian("y", 9, 5, 0.4)

    def k(a, b):
        return (float(np.dot(a, b)) / 5 + 1) ** 3

    def h(keep):
        return [k(x[i], x[j]) + k(y[i], y[j]) - 2 * k(x[i], y[j]) for i in keep for j in keep if i != j]

    found = kid_of_pairs(x, y)
    assert found.value == pytest.approx(np.mean(h(range(n))), rel=1e-10)
    left_out = np.array([np.mean(h([j for j in range(n) if j != i])) for i in range(n)])
    assert found.error == pytest.approx(np.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum()), rel=1e-8)


def test_images_given_back_as_they_were_have_no_distance_and_the_plain_one_is_below_it():
    x = gaussian("x", 40, 8)
    assert kid_of_pairs(x, x).value == pytest.approx(0, abs=1e-15)
    assert kid_of_pairs(x, x).error == pytest.approx(0, abs=1e-15)
    assert kid(x, x).value < -1e-3  # each met itself


def test_kid_of_pairs_is_right_on_average_where_that_of_sets_is_not():
    shift, n, d = 0.5, 30, 4
    mu, nu = np.zeros(d), np.full(d, shift)
    truth = kernel_mean(mu, mu) + kernel_mean(nu, nu) - 2 * kernel_mean(mu, nu)
    draws = [gaussian("draw", n, d, id=i) for i in range(400)]
    values = np.array([kid_of_pairs(x, x + shift).value for x in draws])
    plain = np.array([kid(x, x + shift).value for x in draws])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - truth) < 3 * error
    assert plain.mean() < truth - 5 * error


def test_kid_of_pairs_needs_pairs():
    with pytest.raises(Error, match="5 rows against 4"):
        kid_of_pairs(np.eye(5), np.eye(5)[:4])


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.zeros((2, 4)), np.zeros((5, 4)), "2 images"),
        (np.zeros((5, 4)), np.zeros((5, 3)), "4 and 3 wide"),
        (np.zeros(5), np.zeros((5, 3)), "shape"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "not finite: 5 of 5 rows"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(x, y, says):
    with pytest.raises(Error, match=says):
        kid(x, y)


def test_subsets_that_cannot_be_drawn_are_refused():
    x = gaussian("x", 20, 3)
    with pytest.raises(Error, match="2 to 20"):
        kid_by_subsets(x, x, size=21)
    with pytest.raises(Error, match="at least 2"):
        kid_by_subsets(x, x, size=5, subsets=1)
    with pytest.raises(Error, match="paired"):
        kid_difference(x, x[:19], x)


def test_kid_needs_no_torch():
    code = (
        "import sys, numpy as np; from kuosan.metrics.kid import kid; "
        "kid(np.eye(4), np.eye(4)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
