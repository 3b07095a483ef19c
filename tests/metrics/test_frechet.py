"""The Fréchet distance: pytorch-fid's formula with scipy's root, torchmetrics, closed forms, replicates."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch

from kuosan.errors import Error
from kuosan.metrics.estimate import Estimate
from kuosan.metrics.frechet import About, distance, floor, frechet, frechet_of_rows, gather, influence, label
from kuosan.metrics.kid import mmd2
from kuosan.seeds import rng


def skewed(purpose, n, width, scale=1.0, shift=0.0, id=0):
    """Correlated rows that are no Gaussian, with variances that fall off as features' do."""
    draws = rng(0, purpose, 0, id)
    turn = np.linalg.qr(rng(0, "turn").standard_normal((width, width)))[0]
    return (draws.gamma(2.0, 1.0, (n, width)) * np.exp(-np.arange(width) / 12) * scale) @ turn + shift


def pytorch_fid(x, y):
    """calculate_frechet_distance of pytorch-fid 0.3.0, in its own steps."""
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(cov_x @ cov_y)
    assert np.abs(np.imag(root)).max() < 1e-3
    shift = mean_x - mean_y
    return shift @ shift + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(np.real(root))


@pytest.mark.parametrize(("n", "m", "width"), [(300, 200, 8), (400, 300, 64), (900, 700, 200)])
def test_the_distance_is_pytorch_fids(n, m, width):
    x, y = skewed("x", n, width, 1.2, 0.1), skewed("y", m, width)
    assert frechet(gather([x]), gather([y])) == pytest.approx(pytorch_fid(x, y), rel=1e-6)


class Flat(torch.nn.Module):
    """Images (B, 3, 4, 4) as 48 features, for torchmetrics."""

    num_features = 48

    def forward(self, x):
        return x.flatten(1).float() / 64


def metric_of_torchmetrics(name, kind, x, y, **options):
    module = pytest.importorskip(f"torchmetrics.image.{name}", reason="torchmetrics is not installed")
    metric = getattr(module, kind)(feature=Flat(), **options)
    metric.update(x, real=True)
    metric.update(y, real=False)
    return metric.compute()


@pytest.fixture(scope="module")
def two_sets():
    def draw(purpose, low):
        return torch.from_numpy(rng(0, purpose).integers(low, 256, (200, 3, 4, 4), dtype=np.uint8))

    return draw("real", 0), draw("made", 40)


def test_the_distance_is_torchmetrics(two_sets):
    x, y = two_sets
    theirs = metric_of_torchmetrics("fid", "FrechetInceptionDistance", x, y)
    ours = frechet(gather([Flat()(x)]), gather([Flat()(y)]))
    assert ours == pytest.approx(float(theirs), abs=1e-3)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
def test_the_kernel_distance_is_torchmetrics(two_sets):
    x, y = two_sets
    mean, std = metric_of_torchmetrics("kid", "KernelInceptionDistance", x, y, subsets=2, subset_size=200)
    assert float(std) < 1e-4 * float(mean)  # a subset of everything: no draw is left, only its float32
    assert mmd2(Flat()(x), Flat()(y)) == pytest.approx(float(mean), rel=1e-4)


def test_gaussians_that_share_axes_have_a_closed_form():
    a, b = np.array([4.0, 1.0, 0.25, 0.0]), np.array([1.0, 1.0, 4.0, 0.0])
    turn = np.linalg.qr(rng(0, "axes").standard_normal((4, 4)))[0]
    shift = np.array([1.0, -2.0, 0.5, 0.0])
    value = distance(shift, turn * a @ turn.T, np.zeros(4), turn * b @ turn.T)
    assert value == pytest.approx(shift @ shift + ((a**0.5 - b**0.5) ** 2).sum(), rel=1e-7)


def test_the_distance_is_symmetric_and_zero_to_itself():
    a, b = gather([skewed("x", 100, 12)]), gather([skewed("y", 90, 12, 1.3)])
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-10)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a) >= 0


def test_singular_covariances_have_a_distance():
    # rows in a plane: the distance within it, found without the empty directions
    x, y = skewed("x", 60, 2, 1.0, 0.3), skewed("y", 60, 2, 1.4)
    flat = np.linalg.qr(rng(0, "plane").standard_normal((20, 2)))[0].T
    value = frechet(gather([x @ flat]), gather([y @ flat]))
    assert value == pytest.approx(frechet(gather([x]), gather([y])), rel=1e-6)
    one_sided = frechet_of_rows(x @ flat, skewed("z", 60, 20))
    assert np.isfinite([one_sided.value, one_sided.error]).all()


def test_too_few_images_are_refused_and_kid_is_named():
    few, many = skewed("x", 20, 20), skewed("y", 200, 20)
    with pytest.raises(Error, match=r"20 images on 20 features.*more than 20.*Use KID"):
        frechet_of_rows(many, few)
    with pytest.raises(Error, match="Use KID"):
        frechet(gather([few]), gather([many]))
    forced = frechet_of_rows(many, few, force=True)
    assert forced.value == pytest.approx(pytorch_fid(many, few), rel=1e-4) and forced.error > 0


def test_the_influence_is_the_derivative_of_the_distance():
    x, y = skewed("x", 40, 5, 1.2), skewed("y", 50, 5)
    whole, other = gather([x]), gather([y])
    step = 1e-5

    def weighted(i):
        """The distance where row i weighs a little more, and all others less."""
        weights = np.full(40, (1 - step) / 40)
        weights[i] += step
        mean = weights @ x
        return distance(mean, (x - mean).T * weights @ (x - mean), other.mean, other.cov)

    centred = x - whole.mean
    biased = centred.T @ centred / 40  # the weighted covariance at equal weights
    base = distance(whole.mean, biased, other.mean, other.cov)
    expected = np.array([(weighted(i) - base) / step for i in range(40)])
    ours = influence(x, gather([x]).__class__(40, whole.mean, biased), other)
    np.testing.assert_allclose(ours - ours.mean(), expected - expected.mean(), rtol=2e-3, atol=2e-3)


def test_the_error_is_what_other_images_show():
    pairs = [(skewed("x", 150, 12, 1.2, 0.1, id=i), skewed("y", 120, 12, id=i)) for i in range(120)]
    values = [frechet(gather([x]), gather([y])) for x, y in pairs]
    errors = [frechet_of_rows(x, y).error for x, y in pairs[:20]]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values, ddof=1), rel=0.25)


def test_the_floor_is_the_distance_of_two_samples_of_one_source():
    real = skewed("real", 900, 12)
    few, many = floor(real, 60, 60, repeats=8), floor(real, 400, 400, repeats=8)
    fresh = [frechet(gather([skewed("a", 60, 12, id=i)]), gather([skewed("b", 60, 12, id=i)])) for i in range(60)]
    assert few.value == pytest.approx(np.mean(fresh), abs=3 * few.error)
    assert many.value < 0.3 * few.value  # the bias falls with the rows
    assert floor(real, 60, 60) == floor(real, 60, 60)
    assert isinstance(few, Estimate)


@pytest.mark.parametrize(("n", "m", "repeats", "says"), [(500, 401, 3, "450 against 450"), (9, 9, 1, "at least 2")])
def test_floors_that_cannot_be_had_are_refused(n, m, repeats, says):
    with pytest.raises(Error, match=says):
        floor(skewed("real", 900, 4), n, m, repeats=repeats)


def test_only_the_standard_file_makes_it_fid():
    assert label(About("inception", "6726825d0af5f729")) == "FID"
    assert label(About("inception-bilinear", "6726825d0af5f729")) == "FID"
    assert label(About("inception", "0123")) == "FD (inception)"
    assert label(About("lite0-128", "6726825d")) == "FD (lite0-128)"
    assert label(About()) == "FD (unnamed features)"


def test_other_features_are_refused():
    a = gather([skewed("x", 30, 4)], About("lite0", "aa", "224 px"))
    for other in (About("lite0-128", "aa", "224 px"), About("lite0", "bb", "224 px"), About("lite0", "aa", "none")):
        with pytest.raises(Error, match="other features"):
            frechet(a, gather([skewed("y", 30, 4)], other))
    with pytest.raises(Error, match="4 and 5 wide"):
        frechet(a, gather([skewed("y", 30, 5)]))


def test_metrics_of_rows_need_no_torch():
    names = "frechet kid prdc memorisation estimate"
    code = f"import sys; {'; '.join(f'import kuosan.metrics.{name}' for name in names.split())}"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
