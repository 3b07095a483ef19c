"""The perceptual loss: zero for equals, blur and noise found, gradients to one side only, the same everywhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kuosan import seeds
from kuosan.errors import Error
from kuosan.metrics.features import features, names
from kuosan.metrics.features.lite0 import EfficientNetLite0
from kuosan.metrics.features.names import perceptual_features
from kuosan.metrics.image_quality import RandomPyramid, perceptual, perceptual_loss

NAMES = ("random", "lite0")


def images(n: int = 2, channels: int = 3, side: int = 32) -> torch.Tensor:
    """Smooth images with edges."""
    coarse = seeds.normal([(0, "test/pictures", 0, i) for i in range(n)], (channels, 4, 4)).clamp(-1, 1)
    return F.interpolate(coarse, (side, side), mode="nearest")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_images_are_at_zero_and_damage_counts_more_the_more_there_is(name: str, channels: int) -> None:
    loss = perceptual_loss(name)
    assert loss is not None
    x = images(channels=channels)
    noise = seeds.normal([(1, "test/noise", 0, i) for i in range(2)], x.shape[1:])
    assert loss(x, x).tolist() == [0, 0]
    far = [loss(x, x + sigma * noise) for sigma in (0.02, 0.1, 0.4)]
    assert far[0].shape == (2,) and torch.all(far[0] > 0) and torch.all(far[1] > far[0]) and torch.all(far[2] > far[1])
    assert torch.all(far[2] <= 4)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_second_image_alone_and_lower_the_loss(name: str) -> None:
    loss = perceptual_loss(name)
    assert loss is not None
    x, y = images().requires_grad_(), (0.8 * images().roll(3, -1)).requires_grad_()
    before = loss(x, y)
    before.sum().backward()
    assert x.grad is None and y.grad is not None and torch.all(y.grad.flatten(1).norm(dim=1) > 0)
    assert all(p.grad is None and not p.requires_grad for p in loss.network.parameters())
    with torch.no_grad():
        assert torch.all(loss(x, y - 0.1 * y.grad / y.grad.norm()) < before)


def test_lite0_measures_what_the_distance_of_that_name_does() -> None:
    """The metric sums over five layers and rounds to 8 bits: of images that are 8 bits it is five times the loss."""
    loss, metric = perceptual_loss("lite0"), perceptual("lite0")
    assert loss is not None and isinstance(features("lite0").network, EfficientNetLite0)
    x, y = (((images(side=224) + shift).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1 for shift in (0, 0.2))
    torch.testing.assert_close(5 * loss(x, y), metric(x, y), rtol=1e-3, atol=1e-5)
    assert loss.hash == metric.hash


def test_random_features_are_the_same_on_every_machine() -> None:
    loss = perceptual_loss("random")
    assert loss is not None
    assert loss.hash == "d116779dcc69564363a4b4e1e538271335c53b4d238f9f893d73f0382808475f"
    (x,) = images(1)
    layers = RandomPyramid()(x[None])
    assert [tuple(layer.shape[1:]) for layer in layers] == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]
    assert RandomPyramid()(torch.ones(1, 3, 1, 1))[2].shape == (1, 128, 1, 1), "a pixel is not halved"


def test_auto_is_lite0_where_installed_and_random_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert perceptual_features("auto") == "lite0"
    monkeypatch.setattr(names, "find_spec", lambda package: None)
    assert perceptual_features("auto") == "random" and perceptual_features("lite0") == "lite0"
    assert perceptual_loss("none") is None
    with pytest.raises(Error, match=r"perceptual features 'lite'.*did you mean.*lite0"):
        perceptual_features("lite")


@pytest.mark.parametrize("size", [(16, 16), (24, 24), (8, 40)])
def test_images_too_small_for_lite0_are_seen_enlarged(size: tuple[int, int]) -> None:
    loss = perceptual_loss("lite0")
    assert loss is not None
    x = torch.linspace(-1, 1, 2 * 3 * size[0] * size[1]).reshape(2, 3, *size)
    y = (-x).requires_grad_()
    far = loss(x, y)
    far.sum().backward()
    assert far.shape == (2,) and bool((far > 0).all()) and y.grad is not None and bool(y.grad.isfinite().all())
    assert float(loss(x, x).abs().max()) == 0
