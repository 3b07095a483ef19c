"""Tiles: where they lie, how they are blended, and that a network through them is the network."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kuosan import seeds
from kuosan.diffusion.denoiser import denoiser
from kuosan.diffusion.registry import PREDICTIONS
from kuosan.errors import Error
from kuosan.models.latents import prepare
from kuosan.models.tiling import Tiled, blend, shares, tiles, window
from kuosan.networks.unet import UNet
from tiny_models import UNET, tiny_model


def noise(*shape: int, name: str = "x") -> Tensor:
    return seeds.normal([(0, f"test/tiled/{name}", 0, i) for i in range(shape[0])], shape[1:])


class Pointwise(nn.Module):
    """2 x + t + label, or what is joined to it; it remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, ...]] = []

    def forward(
        self, x: Tensor, t: Tensor, *, label: Tensor | None = None, concat: Tensor | None = None, scale: Any = 2
    ) -> Tensor:
        self.asked.append(tuple(x.shape))
        scale = scale.view(-1, 1, 1, 1) if isinstance(scale, Tensor) else scale
        out = scale * x + t.view(-1, 1, 1, 1)
        return (out if label is None else out + label.view(-1, 1, 1, 1)) if concat is None else concat


class Marked(nn.Module):
    """A network that leaves a mark in the middle of a tile and another at its edge: seams, unless blended."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y, z = (torch.linspace(-1, 1, side) for side in x.shape[2:])
        return x + y[:, None] ** 3 + z


@given(st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_tiles_cover_an_axis_and_their_shares_add_up_to_one(side: int, data: st.DataObject) -> None:
    overlap, length = data.draw(st.integers(0, side // 2)), data.draw(st.integers(side, 5 * side))
    starts = tiles(length, side, overlap)
    assert starts[0] == 0 and starts[-1] == length - side
    steps = [b - a for a, b in pairwise(starts)]
    assert all(step == side - overlap for step in steps[:-1]) and all(0 < step <= side - overlap for step in steps)
    share = shares(starts, side, overlap)
    assert share.min() > 0
    ones = blend(torch.ones(len(starts), side, dtype=torch.float64), starts, overlap)
    assert (ones - 1).abs().max() < 1e-12
    total = torch.zeros(length, dtype=torch.float64)
    for start, row in zip(starts, share):
        total[start : start + side] += row
    assert (total - 1).abs().max() < 1e-12


def test_a_window_is_flat_inside_and_falls_smoothly_to_more_than_nothing() -> None:
    weight = window(16, 6)
    assert (weight[6:10] == 1).all() and weight[0] > 0
    assert torch.equal(weight, weight.flip(0))
    assert (weight[:7].diff() > 0).all()
    assert (weight[:6] + weight[10:] - 1).abs().max() < 1e-12  # a tile and the next
    assert torch.equal(window(5, 0), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("length", "side", "overlap", "wanted"),
    [(64, 64, 16, [0]), (112, 64, 16, [0, 48]), (113, 64, 16, [0, 48, 49]), (130, 64, 0, [0, 64, 66])],
)
def test_the_last_tile_is_flush_with_the_end(length: int, side: int, overlap: int, wanted: list[int]) -> None:
    assert tiles(length, side, overlap) == wanted


@pytest.mark.parametrize("t", [torch.tensor(3.0), torch.tensor([3.0]), torch.tensor([3.0, -1.0])])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (9, 31), (20, 8)])
@pytest.mark.parametrize("overlap", [0, 3, 4])
def test_a_pointwise_network_gives_the_same_on_any_size(t: Tensor, height: int, width: int, overlap: int) -> None:
    x, label = noise(2, 3, height, width), torch.tensor([5, 7])
    out = Tiled(Pointwise(), 8, overlap, batch=3)(x, t, label=label)
    assert out.shape == x.shape and out.is_contiguous()
    assert (out - Pointwise()(x, t, label=label)).abs().max() < 2e-6


def test_gradients_are_those_of_the_pointwise_network() -> None:
    x, weight = noise(2, 3, 13, 21).requires_grad_(), noise(2, 3, 13, 21, name="weight")
    t = torch.tensor([1.0, 2.0], requires_grad=True)
    tiled, plain = Tiled(Pointwise(), 8, 4, batch=5), Pointwise()
    first = torch.autograd.grad((tiled(x, t) ** 2 * weight).sum(), (x, t))
    second = torch.autograd.grad((plain(x, t) ** 2 * weight).sum(), (x, t))
    for ours, wanted in zip(first, second):
        assert (ours - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_gradients_agree_with_differences() -> None:
    network = Tiled(nn.Conv2d(1, 1, 3, padding=1).double(), 4, 2)
    network.network.forward = lambda x, t, forward=network.network.forward: torch.sin(forward(x)) * t
    x = noise(1, 1, 7, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: network(x, torch.tensor(2.0)), x)


def test_concat_is_cut_as_x_is() -> None:
    x, concat = noise(2, 3, 19, 11), noise(2, 5, 19, 11, name="concat")
    out = Tiled(Pointwise(), 8, 4)(x, torch.tensor(0.0), concat=concat)
    assert out.shape == concat.shape
    assert (out - concat).abs().max() < 1e-6


def test_other_conditioning_goes_by_image_or_as_it_is() -> None:
    x, t = noise(2, 3, 12, 12), torch.tensor(0.0)
    tiled = Tiled(Pointwise(), 8, 4)
    assert (
        tiled(x, t, scale=torch.tensor([3.0, 4.0])) - x * torch.tensor([3.0, 4.0]).view(2, 1, 1, 1)
    ).abs().max() < 2e-6
    assert (tiled(x, t, scale=5) - 5 * x).abs().max() < 2e-6


def test_no_more_tiles_than_the_batch_go_through_at_once_each_of_the_right_shape() -> None:
    inner = Pointwise()
    tiled = Tiled(inner, (8, 6), 2, batch=4)
    tiled(noise(3, 2, 14, 11), torch.tensor(0.0))
    assert tiled.tile_count(14, 11) == 2 * 3
    assert inner.asked == [(4, 2, 8, 6)] * 4 + [(2, 2, 8, 6)]


def test_blending_hides_what_tiles_disagree_about() -> None:
    x = torch.zeros(1, 1, 64, 64)
    hard, soft = (Tiled(Marked(), 16, overlap)(x, torch.tensor(0.0)) for overlap in (0, 8))
    assert hard.diff(dim=2).abs().max() > 1.9
    assert soft.diff(dim=2).abs().max() < 0.5


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_blending_outputs_is_blending_predicted_data(prediction: str) -> None:
    model = tiny_model()
    level, x = model.config.schedule.grid(10, "trailing")[4], noise(1, 3, 14, 8)
    tiled = Tiled(model.network, 8, 4)
    whole = denoiser(tiled, prediction)(x, level).x0
    rows = tiles(14, 8, 4)
    parts = torch.stack([denoiser(model.network, prediction)(x[:, :, top : top + 8], level).x0 for top in rows])
    assert (whole - blend(parts.mT, rows, 4).mT).abs().max() < 1e-4 * whole.abs().max()


def test_an_image_of_one_tile_gets_the_networks_very_bits() -> None:
    network, x = tiny_model().network, noise(3, 3, 8, 8)
    t = torch.tensor([3.0, 500.0, 999.0])
    assert torch.equal(Tiled(network, 8, 4, batch=1)(x, t), network(x, t))


def test_an_image_does_not_depend_on_what_stands_beside_it() -> None:
    config = replace(UNET, classes=3, concat_channels=2)
    network = UNet(config).eval()
    with torch.no_grad():
        for i, weight in enumerate(network.parameters()):
            weight.add_(0.05 * seeds.normal([(0, "test/weights", i, 0)], tuple(weight.shape))[0])
        tiled = Tiled(network, 8, 4, batch=5)
        x, concat = noise(3, 3, 16, 12), noise(3, 2, 16, 12, name="concat")
        t, label = torch.tensor([3.0, 500.0, 999.0]), torch.tensor([0, 1, 3])
        together = tiled(x, t, label=label, concat=concat)
        each = [slice(i, i + 1) for i in range(3)]
        alone = torch.cat([tiled(x[i], t[i], label=label[i], concat=concat[i]) for i in each])
    assert together.shape == x.shape
    assert (together - alone).abs().max() <= 1e-5 * together.abs().max()
    assert (together[0] - tiled(x, t, label=label, concat=0 * concat)[0]).abs().max() > 1e-3


def test_a_batch_doubled_for_guidance_gives_both_halves() -> None:
    network = Tiled(prepare(UNet(replace(UNET, classes=2))), 8, 2)
    x, label = noise(2, 3, 11 + 1, 16), torch.tensor([0, 1])
    with torch.no_grad():
        both = network(torch.cat([x, x]), torch.full((4,), 7.0), label=torch.cat([label, torch.full((2,), 2)]))
        asked, null = network(x, torch.full((2,), 7.0), label=label), network(x, torch.tensor(7.0), label=label * 0 + 2)
    assert (both - torch.cat([asked, null])).abs().max() <= 1e-5


def test_a_tiled_network_is_prepared_as_the_one_inside() -> None:
    network, x, t = UNet(UNET), noise(1, 3, 16, 16), torch.tensor(7.0)
    ready = prepare(Tiled(network, 8, 4), dtype=torch.bfloat16)
    assert (ready.side, ready.overlap, ready.batch) == ((8, 8), 4, 16)
    inside = prepare(network, dtype=torch.bfloat16)
    for ours, wanted in zip(ready.parameters(), inside.parameters()):
        assert ours.dtype == wanted.dtype and torch.equal(ours, wanted) and not ours.requires_grad
    assert next(network.parameters()).dtype == torch.float32
    assert ready(x, t).dtype == torch.float32
    assert torch.equal(ready(x[..., :8, :8], t), inside(x[..., :8, :8], t))


BAD_SIZES: list[tuple[Any, int, int, str]] = [
    (8, 5, 1, "overlap = 5 is not allowed with tiles of 8x8: 0 to 4, half a tile"),
    ((16, 6), 4, 1, "overlap = 4 is not allowed with tiles of 16x6: 0 to 3"),
    (8, -1, 1, "overlap = -1"),
    (0, 0, 1, "tiles of 0x0 pixels are not allowed"),
    (8, 2, 0, "batch = 0 is not allowed"),
]


@pytest.mark.parametrize(("side", "overlap", "batch", "message"), BAD_SIZES)
def test_tiles_that_cannot_be_laid_are_refused(side: Any, overlap: int, batch: int, message: str) -> None:
    with pytest.raises(Error, match=message):
        Tiled(Pointwise(), side, overlap, batch)


BAD_CALLS: list[tuple[dict[str, Tensor], str]] = [
    ({"x": torch.zeros(1, 3, 7, 16)}, "an image of 7x16 is smaller than a tile of 8x8.*enlarge or pad"),
    ({"x": torch.zeros(3, 16, 16)}, r"x has shape \(3, 16, 16\)"),
    ({"concat": torch.zeros(1, 3, 8, 8)}, r"concat is of shape \(1, 3, 8, 8\); it must be \(1, channels, 16, 16\)"),
    ({"concat": torch.zeros(2, 3, 16, 16)}, r"must be \(1, channels, 16, 16\)"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_CALLS)
def test_a_call_that_cannot_be_answered_is_refused(inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(Error, match=message):
        Tiled(Pointwise(), 8, 4)(**{"x": torch.zeros(1, 3, 16, 16), "t": torch.tensor(0.0), **inputs})


def test_a_network_that_puts_out_no_image_of_the_same_size_is_refused() -> None:
    inner = Pointwise()
    inner.forward = lambda x, t: x.mean((2, 3))  # type: ignore[method-assign,assignment]
    with pytest.raises(Error, match=r"put out \(4, 3\) for tiles of shape \(4, 3, 8, 8\)"):
        Tiled(inner, 8, 0)(torch.zeros(1, 3, 16, 16), torch.tensor(0.0))
    with pytest.raises(Error, match="7 pixels are less than a tile of 8"):
        tiles(7, 8, 0)
