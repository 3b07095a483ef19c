"""The critic of patches: what it sees, one score a patch, and hinge losses against their formulas."""

from __future__ import annotations

import pytest
import torch

from kuosan import seeds
from kuosan.networks.autoencoder import Discriminator, generator_loss, hinge_loss
from kuosan.networks.layers import initialise


def critic(layers: int) -> Discriminator:
    network = Discriminator(3, 8, layers)
    initialise(network, 0)
    return network


@torch.no_grad()
def test_three_layers_give_30_by_30_scores_of_256_pixels_as_published() -> None:
    assert critic(3)(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_score_sees_the_patch_that_isola_et_al_say(layers: int, field: int) -> None:
    """Receptive fields of 16, 34 and 70 pixels (Isola et al. 2017, section 4.4), of the convolutions alone."""
    network, side = critic(layers), 160
    for i in range(len(network.norms)):
        network.norms[i] = torch.nn.Identity()  # which spreads an image's mean and variance everywhere
    x = seeds.normal([(0, "test/x", 0, 0)], (3, side, side)).requires_grad_()
    scores = network(x)
    middle = scores.shape[-1] // 2
    (grad,) = torch.autograd.grad(scores[0, 0, middle, middle], x)
    seen = grad.abs().sum((0, 1)).ne(0)
    assert int(seen.any(0).sum()) == int(seen.any(1).sum()) == field


@torch.no_grad()
def test_an_images_scores_do_not_depend_on_what_stands_beside_it() -> None:
    network = critic(2).double()
    x = seeds.normal([(0, "test/x", 0, i) for i in range(3)], (3, 24, 24)).double()
    together, alone = network(x), torch.cat([network(each[None]) for each in x])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_the_smallest_image_of_each_depth_has_one_score() -> None:
    for layers in (1, 2, 3):
        assert critic(layers)(torch.zeros(1, 3, 3 << layers, 3 << layers)).shape[-2:] == (1, 1)
        with pytest.raises(RuntimeError):
            critic(layers)(torch.zeros(1, 3, 2 << layers, 2 << layers))


def test_losses_are_the_hinges() -> None:
    real = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]).view(2, 1, 1, 2)
    made = torch.tensor([[-3.0, 0.0], [1.0, -0.5]]).view(2, 1, 1, 2)
    torch.testing.assert_close(hinge_loss(real, made), torch.tensor([0.5 * (0.25 + 0.5), 0.5 * (1.0 + 1.25)]))
    torch.testing.assert_close(generator_loss(made), torch.tensor([1.5, -0.25]))
    assert hinge_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item() == 1
