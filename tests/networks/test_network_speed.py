"""How much faster our U-Net is than diffusers' default with the same weights: `pytest -s --slow` prints it.

Processor time of one thread, interleaved, the best of each; the floors are far below what a quiet machine shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from kuosan import seeds
from kuosan.convert.diffusers import unet_to_diffusers
from kuosan.models.latents import prepare
from kuosan.networks.config import UNetConfig, default_unet
from kuosan.networks.unet import UNet

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow

CIFAR10 = UNetConfig(
    channels=128,
    multipliers=(1, 2, 2, 2),
    attention=(False, True, False, False),
    resample="conv_asymmetric",
    norm_eps=1e-6,
    cos_first=False,
    freq_shift=1,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seconds(rounds: int, **calls: Callable[[], Any]) -> dict[str, float]:
    """The best processor time of each call, taken in turns after one warm-up."""
    best = {}
    for i in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if i:
                best[name] = min(best.get(name, float("inf")), time.process_time() - start)
    return best


def peer(network: UNet) -> Any:
    config, weights = unet_to_diffusers(network.config, network.state_dict())
    model = diffusers.UNet2DModel.from_config(config)
    model.load_state_dict(weights)
    return model


def batch(size: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return seeds.normal([(0, "x", 0, i) for i in range(size)], (channels, 32, 32)), torch.linspace(0, 999, size)


def test_a_training_step_of_the_small_network_beats_diffusers() -> None:
    network = UNet(default_unet((1, 32, 32)))
    model, (x, t) = peer(network), batch(64, 1)

    def ours() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            out = network(x, t)
        (out - x).square().mean().backward()

    def theirs() -> None:
        (model(x, t).sample - x).square().mean().backward()

    best = seconds(3, ours=ours, theirs=theirs)
    print(f"training: {64 / best['ours']:.0f} images a core-second, {best['theirs'] / best['ours']:.2f}x diffusers")
    assert best["theirs"] > 1.2 * best["ours"]


def test_a_sampling_step_of_the_cifar10_shape_beats_diffusers() -> None:
    network = UNet(CIFAR10)
    model, (x, t), ready = peer(network).eval(), batch(8, 3), prepare(network, "cpu", torch.bfloat16)
    with torch.no_grad():
        best = seconds(3, ours=lambda: ready(x, t), theirs=lambda: model(x, t))
    print(f"sampling: {best['theirs'] / best['ours']:.2f}x diffusers")
    assert best["theirs"] > 1.2 * best["ours"]
