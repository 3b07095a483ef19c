"""A network prepared for bf16 gives the images of the float32 one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from kuosan import seeds
from kuosan.models.latents import prepare
from kuosan.networks.config import UNetConfig
from kuosan.networks.unet import UNet

SMALL = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(False, True), groups=8, dropout=0.1)


def lively(config: UNetConfig) -> UNet:
    network = UNet(config)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            noise = torch.from_numpy(seeds.rng(0, name).standard_normal(tuple(weight.shape), dtype=np.float32))
            weight.add_(noise * (0.5 / max(1, weight[0].numel()) ** 0.5))
    return network


def ddim(network: nn.Module, x: Tensor, steps: int = 50) -> Tensor:
    """DDIM with eta 0 on DDPM's linear betas (Song et al. 2021, eq. 12), the state in float32.

    The network is read as v (Salimans & Ho 2022): a random one read as eps would be amplified by 1/alpha and clipped,
    which no trained network is.
    """
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    times = list(range(0, 1000, 1000 // steps))[::-1]
    with torch.no_grad():
        for t, after in zip(times, [*times[1:], None], strict=True):
            now, to = alpha_bar[t], 1.0 if after is None else alpha_bar[after]
            v = network(x, torch.tensor([float(t)]))
            x0, eps = now**0.5 * x - (1 - now) ** 0.5 * v, (1 - now) ** 0.5 * x + now**0.5 * v
            x = to**0.5 * x0 + (1 - to) ** 0.5 * eps
    return x


def test_fifty_ddim_steps_in_bf16_stay_within_two_hundredths_of_float32() -> None:
    network = lively(SMALL)
    x = seeds.normal([(0, "x", 0, i) for i in range(2)], (3, 16, 16))
    exact, low = ddim(prepare(network), x), ddim(prepare(network, dtype=torch.bfloat16), x)
    assert 0.3 < exact.std() < 3
    assert (exact - x).std() > 0.2  # the network had its say
    assert 0 < (exact - low).abs().max() < 0.02


def test_preparing_copies_and_leaves_the_network_as_it_was() -> None:
    network = lively(SMALL).train()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    ready = prepare(network, "cpu", torch.bfloat16)
    assert network.training and not ready.training
    assert all(not weight.requires_grad for weight in ready.parameters())
    for name, weight in network.named_parameters():
        assert torch.equal(weight, before[name]) and weight.dtype == torch.float32 and weight.requires_grad


def test_convolutions_are_bf16_and_channels_last_the_time_embedding_and_norms_float32() -> None:
    ready = prepare(lively(replace(SMALL, classes=2)), "cpu", torch.bfloat16)
    convolution = ready.encoder.levels[0].blocks[0].conv1.weight
    assert convolution.dtype == torch.bfloat16
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    kept = [*ready.encoder.time.parameters(), ready.encoder.conditioning.weight, ready.encoder.label.weight]
    for weight in [*kept, ready.decoder.norm.weight, ready.decoder.conditioning.bias]:
        assert weight.dtype == torch.float32


def test_float32_in_float32_out() -> None:
    ready = prepare(lively(SMALL), "cpu", torch.bfloat16)
    assert ready(torch.zeros(1, 3, 16, 16), torch.tensor([1.0])).dtype == torch.float32


def test_bf16_tells_neighbouring_times_apart() -> None:
    ready = prepare(lively(SMALL), "cpu", torch.bfloat16)
    x = seeds.normal([(0, "x", 0, 0)], (3, 16, 16))
    assert not torch.equal(ready(x, torch.tensor([999.0])), ready(x, torch.tensor([998.0])))


def test_training_under_autocast_gives_float32_gradients_near_the_exact_ones() -> None:
    network = lively(replace(SMALL, dropout=0.0))
    x, t = seeds.normal([(0, "x", 0, i) for i in range(4)], (3, 16, 16)), torch.tensor([1.0, 300.0, 600.0, 999.0])
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = network(x, t)
        assert out.dtype == torch.float32
        (out - x).square().mean().backward()
        assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in network.parameters())
        gradients.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
    exact, low = gradients
    assert not torch.equal(exact, low)
    assert (exact - low).norm() < 0.05 * exact.norm()
