"""Initial weights are a function of the seed alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from kuosan.networks.config import UNetConfig
from kuosan.networks.layers import initialise
from kuosan.networks.unet import UNet

SMALL = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(False, True), groups=8, classes=3)


def test_equal_seeds_give_equal_weights_and_other_seeds_others() -> None:
    first, second, third = UNet(SMALL, 1).state_dict(), UNet(SMALL, 1).state_dict(), UNet(SMALL, 2).state_dict()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert not torch.equal(first["encoder.entrance.weight"], third["encoder.entrance.weight"])


def test_making_a_network_leaves_the_global_generator_untouched() -> None:
    before = torch.random.get_rng_state()
    UNet(SMALL, 1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_another_layer_leaves_the_draws_of_the_others() -> None:
    plain, deeper = UNet(SMALL).state_dict(), UNet(replace(SMALL, attention=(True, True))).state_dict()
    for name in plain:
        assert torch.equal(plain[name], deeper[name]), name


def test_a_network_begins_with_an_output_of_zero_and_blocks_that_are_their_shortcuts() -> None:
    network = UNet(SMALL)
    x, t, label = torch.ones(1, 3, 16, 16), torch.tensor([5.0]), torch.tensor([1])
    assert network(x, t, label=label).abs().max() == 0
    encoding = network.encoder(x, t, label=label)
    assert torch.equal(encoding.skips[0], encoding.skips[1])


def test_the_variance_is_that_of_the_averaged_fan() -> None:
    network = UNet(UNetConfig(channels=64, groups=32, multipliers=(1, 2), attention=(False, False)))
    weight = network.encoder.levels[1].blocks[0].conv1.weight  # 64 -> 128, 3 x 3
    wanted = 2 / (9 * (64 + 128))
    assert abs(weight.var().item() / wanted - 1) < 0.02
    assert abs(weight.mean().item()) < 1e-3


def test_initialise_overwrites_whatever_was_there() -> None:
    network = UNet(SMALL, 1)
    initialise(network, 2)
    for name, weight in UNet(SMALL, 2).state_dict().items():
        assert torch.equal(weight, network.state_dict()[name]), name
