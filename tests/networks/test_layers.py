"""Our formulations of group norm, attention and resampling equal torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan import seeds
from kuosan.networks import norm
from kuosan.networks.layers import DownConv, UpConv, attend, time_features
from kuosan.networks.norm import GroupNorm


def noise(name: str, *shape: int, grad: bool = True) -> Tensor:
    return seeds.normal([(0, name, 0, i) for i in range(shape[0])], shape[1:]).requires_grad_(grad)


def plain_norm(layer: GroupNorm, x: Tensor, act: bool, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = F.group_norm(x + bias[:, :, None, None], layer.num_groups, layer.weight, layer.bias, layer.eps)
    y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(y) if act else y


@pytest.mark.parametrize("act", [False, True])
@pytest.mark.parametrize("cached", [1, 1 << 19])  # one image at a time, all at once
def test_group_norm_and_its_gradients_equal_torchs(act: bool, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "_CACHED", cached)
    layer = GroupNorm(4, 16)
    layer.weight.data, layer.bias.data = noise("w", 1, 16, grad=False)[0], noise("b", 1, 16, grad=False)[0]
    x = (3 + 2 * noise("x", 3, 16, 8, 6, grad=False)).requires_grad_()
    extras = [noise(name, 3, 16) for name in ("bias", "scale", "shift")]
    y = layer(x, act=act, bias=extras[0], scale=extras[1], shift=extras[2])
    z = plain_norm(layer, x, act, *extras)
    assert (y - z).abs().max() < 1e-5
    dy, parts = noise("dy", 3, 16, 8, 6, grad=False), [x, *extras, layer.weight, layer.bias]
    for ours, theirs in zip(torch.autograd.grad(y, parts, dy), torch.autograd.grad(z, parts, dy), strict=True):
        assert (ours - theirs).abs().max() < 2e-5 * (1 + theirs.abs().max())


def test_group_norm_does_not_change_what_it_is_given() -> None:
    layer, x = GroupNorm(4, 16), noise("x", 2, 16, 4, 4, grad=False).contiguous(memory_format=torch.channels_last)
    kept, dy = x.clone(), noise("dy", 2, 16, 4, 4, grad=False).contiguous(memory_format=torch.channels_last)
    kept_dy = dy.clone()
    for act in (False, True):
        layer(x.requires_grad_(), act=act).backward(dy)
    assert torch.equal(x, kept) and torch.equal(dy, kept_dy)


def test_group_norm_in_bf16_is_as_good_as_bf16_can_be() -> None:
    layer, x = GroupNorm(4, 16), noise("x", 2, 16, 8, 8, grad=False)
    exact = layer(x, act=True)
    low = layer(x.bfloat16(), act=True)
    assert low.dtype == torch.bfloat16
    assert (low - exact).abs().max() < 0.02


def test_group_norm_in_double_precision_passes_gradcheck() -> None:
    layer = GroupNorm(2, 4).double()
    x, bias = noise("x", 2, 4, 2, 2).double(), noise("b", 2, 4).double()
    assert torch.autograd.gradcheck(lambda x, b: layer(x, act=True, bias=b), (x, bias))


@pytest.mark.parametrize("side", [8, 16])  # below and above the size where kernels are summed first
def test_the_up_convolution_equals_enlarging_and_convolving(side: int) -> None:
    layer, x = UpConv(4), noise("x", 2, 4, side, side + 2)
    y, z = layer(x), F.conv2d(F.interpolate(x, scale_factor=2.0), layer.weight, layer.bias, padding=1)
    assert (y - z).abs().max() < 1e-5
    parts, dy = [x, layer.weight, layer.bias], noise("dy", *z.shape, grad=False)
    for ours, theirs in zip(torch.autograd.grad(y, parts, dy), torch.autograd.grad(z, parts, dy), strict=True):
        assert (ours - theirs).abs().max() < 2e-5 * (1 + theirs.abs().max())


def test_the_asymmetric_down_convolution_pads_right_and_below() -> None:
    layer, x = DownConv(4, asymmetric=True), noise("x", 1, 4, 8, 8, grad=False)
    wanted = nn.functional.conv2d(F.pad(x, (0, 1, 0, 1)), layer.weight, layer.bias, stride=2)
    assert torch.equal(layer(x), wanted)
    assert layer(x).shape == DownConv(4, asymmetric=False)(x).shape == (1, 4, 4, 4)


def test_attention_is_the_softmax_average_in_every_precision() -> None:
    q, k, v = (noise(name, 2, 3, 10, 8) for name in "qkv")
    wanted = torch.softmax(q.double() @ k.double().transpose(-1, -2) / math.sqrt(8), -1) @ v.double()
    assert (attend(q, k, v) - wanted).abs().max() < 1e-5
    assert (attend(q.bfloat16(), k.bfloat16(), v.bfloat16()) - wanted).abs().max() < 0.05
    with torch.no_grad():
        assert (attend(q.detach().bfloat16(), k.bfloat16(), v.bfloat16()) - wanted).abs().max() < 0.05


def test_time_features_are_those_of_both_papers() -> None:
    t = torch.tensor([0.0, 2.5])
    ddpm = time_features(t, 8, cos_first=False, freq_shift=1, dtype=torch.float64)
    frequencies = torch.tensor([10000 ** (-i / 3) for i in range(4)], dtype=torch.float64)
    assert torch.allclose(ddpm[1], torch.cat([(2.5 * frequencies).sin(), (2.5 * frequencies).cos()]))
    assert torch.equal(ddpm[0], torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.float64))
    adm = time_features(t, 8, cos_first=True, freq_shift=0, dtype=torch.float64)
    frequencies = torch.tensor([10000 ** (-i / 4) for i in range(4)], dtype=torch.float64)
    assert torch.allclose(adm[1], torch.cat([(2.5 * frequencies).cos(), (2.5 * frequencies).sin()]))
