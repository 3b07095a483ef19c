"""The waist: a model is built from its configuration alone, and refuses what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kuosan.diffusion.level import Level
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error
from kuosan.models.model import ModelConfig, OwnNetwork, build
from kuosan.networks.unet import UNet
from tiny_models import UNET, tiny_model

SHAPE = (3, 8, 8)


def test_weights_are_a_function_of_the_configuration_and_the_seed() -> None:
    config = ModelConfig(SHAPE, UNET)
    first, again, other = (build(config, seed).network.state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    before = torch.random.get_rng_state()
    build(config, 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_of_ones_own_is_used_as_it_is() -> None:
    network = nn.Conv2d(3, 3, 1)
    assert build(ModelConfig(SHAPE, OwnNetwork(name="Conv2d")), network=network).network is network
    assert isinstance(build(ModelConfig(SHAPE, UNET)).network, UNet)


def test_a_missing_or_superfluous_network_is_refused() -> None:
    with pytest.raises(Error, match=r"network of your own \(Mine\).*kuosan.load\(run, network=Mine"):
        build(ModelConfig(SHAPE, OwnNetwork(name="Mine")))
    with pytest.raises(Error, match=r"network= was given \(Conv2d\)"):
        build(ModelConfig(SHAPE, UNET), network=nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prediction": "epz"}, "did you mean 'eps'"),
        ({"prediction": "eps", "schedule": Flow()}, "predict v"),
        ({"prediction": "eps", "schedule": Discrete(zero_terminal_snr=True)}, "zero_terminal_snr"),
        ({"sigma_data": 0.0}, "sigma_data = 0.0"),
        ({"sigma_data": float("nan")}, "sigma_data = nan"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Error, match=said):
        ModelConfig(SHAPE, UNET, **settings)


def test_diffusers_words_for_predictions_are_understood() -> None:
    assert ModelConfig(SHAPE, UNET, prediction="v_prediction").prediction == "v"
    assert ModelConfig(SHAPE, UNET, prediction="epsilon").prediction == "eps"


def test_the_denoiser_is_the_networks_with_the_models_prediction() -> None:
    model = tiny_model(Karras(), "edm")
    level = Level.of(0.0, 1.0, 2.0)
    x = torch.ones(2, *SHAPE)
    x0, frac = model.denoiser()(x, level)
    c_skip, c_out, c_in = 0.25 / (4 + 0.25), 2 * 0.5 / (4.25**0.5), 1 / 4.25**0.5  # Karras et al. 2022, table 1
    expected = c_skip * x + c_out * model.network(c_in * x, torch.zeros(2))
    assert frac is None and torch.allclose(x0, expected, atol=1e-5)
    assert model.shape == SHAPE


def test_learned_variance_comes_with_the_denoiser() -> None:
    frac = (
        tiny_model(prediction="eps", learned_variance=True)
        .denoiser()(torch.ones(1, *SHAPE), Level.of(5.0, 0.8, 0.6))
        .frac
    )
    assert frac is not None and frac.shape == (1, *SHAPE)
