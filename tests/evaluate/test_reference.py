"""PSNR and SSIM: the formula window by window, torchmetrics and scikit-image where they are installed, closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from kuosan.errors import Error
from kuosan.metrics import image_quality
from kuosan.metrics.image_quality import psnr, ssim
from kuosan.seeds import rng


@pytest.fixture(scope="module", params=[(1, 24, 20), (3, 16, 31)], ids=["grey", "rgb"])
def pair(request):
    x = gaussian_filter(rng(0, "x").standard_normal((4, *request.param)), (0, 0, 1.5, 1.5)) * 300 + 128
    y = x + 12 * rng(0, "y").standard_normal(x.shape)
    return tuple(torch.from_numpy(each.clip(0, 255).round().astype(np.uint8)) for each in (x, y))


def signed(x):
    return x.double() / 127.5 - 1


def test_a_known_error_has_its_known_ratio():
    x = torch.full((2, 1, 4, 4), 100, dtype=torch.uint8)
    y = x + 1
    assert psnr(x, y).tolist() == pytest.approx([20 * np.log10(255)] * 2)  # 48.13 dB
    assert psnr(x, x).tolist() == [float("inf")] * 2


def test_bytes_and_their_signed_form_give_the_same(pair):
    x, y = pair
    torch.testing.assert_close(psnr(x, y), psnr(signed(x), signed(y)), rtol=1e-12, atol=0)
    torch.testing.assert_close(ssim(x, y), ssim(signed(x), signed(y)), rtol=1e-10, atol=0)
    assert psnr(x, y).dtype == torch.float64 and psnr(x, y).shape == (4,)


def test_an_image_is_its_own_likeness(pair):
    assert ssim(pair[0], pair[0]).tolist() == pytest.approx([1.0] * 4)


def test_structural_similarity_is_the_papers_window_by_window(pair):
    x, y = (each.numpy().astype(float) for each in pair)
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i in range(x.shape[2] - 10):
        for j in range(x.shape[3] - 10):
            a, b = x[..., i : i + 11, j : j + 11], y[..., i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum((-2, -1)), (window * b).sum((-2, -1))
            da, db = a - mean_a[..., None, None], b - mean_b[..., None, None]
            aa, bb, ab = ((window * product).sum((-2, -1)) for product in (da * da, db * db, da * db))
            bright = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            values.append(bright * (2 * ab + c2) / (aa + bb + c2))
    expected = np.mean(values, axis=0).mean(axis=1)
    assert expected.min() > 0.3 and expected.max() < 0.98
    np.testing.assert_allclose(ssim(*pair).numpy(), expected, rtol=1e-9)


def test_a_large_image_is_compared_in_strips_with_the_same_result(pair, monkeypatch):
    whole = ssim(*pair)
    for rows in (1, 4, 5):
        monkeypatch.setattr(image_quality, "STRIP", rows)
        torch.testing.assert_close(ssim(*pair), whole, rtol=1e-12, atol=0)


def test_both_are_torchmetrics(pair):
    functional = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")
    x, y = (each.double() for each in pair)
    _, everywhere = functional.structural_similarity_index_measure(
        x, y, data_range=255.0, reduction="none", return_full_image=True
    )
    inside = everywhere[..., 5:-5, 5:-5]  # it mirrors images at their borders and averages over those, too
    torch.testing.assert_close(ssim(*pair), inside.mean(dim=(1, 2, 3)), rtol=1e-9, atol=0)
    ratio = functional.peak_signal_noise_ratio(x, y, data_range=255.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(*pair), ratio, rtol=1e-6, atol=0)


def test_both_are_scikit_images(pair):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    for i, (x, y) in enumerate(zip(*(each.numpy() for each in pair))):
        theirs = metrics.structural_similarity(
            x, y, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert float(ssim(*pair)[i]) == pytest.approx(theirs, abs=1e-6)
        assert float(psnr(*pair)[i]) == pytest.approx(metrics.peak_signal_noise_ratio(x, y), rel=1e-9)


BYTES = torch.zeros(1, 1, 12, 12, dtype=torch.uint8)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (BYTES, BYTES[..., :11], "one shape"),
        (BYTES[0], BYTES[0], "one shape"),
        (BYTES[:0], BYTES[:0], "one shape"),
        (BYTES, BYTES.float(), "one kind"),
        (BYTES.int(), BYTES.int(), "int32"),
        (BYTES.float() + 1.5, BYTES.float(), "clamp"),
        (BYTES.float() * float("nan"), BYTES.float(), "finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(metric, x, y, says):
    with pytest.raises(Error, match=says):
        metric(x, y)


def test_an_image_below_the_window_has_no_similarity():
    with pytest.raises(Error, match="11 pixels; use PSNR"):
        ssim(BYTES[..., :10], BYTES[..., :10])
