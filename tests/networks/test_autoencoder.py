"""The autoencoder: shapes and factors, the posterior's closed forms, weights of a seed, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.errors import Error
from kuosan.models.latents import prepare
from kuosan.networks.autoencoder import Autoencoder, Moments, parameter_count, weights_alone
from kuosan.networks.autoencoder_config import AutoencoderConfig, default_autoencoder

TINY = AutoencoderConfig(channels=8, multipliers=(1, 2, 2), blocks=1, groups=4, critic_channels=8, critic_layers=1)


def noise(*shape: int, purpose: str = "test/x") -> Tensor:
    return seeds.normal([(0, purpose, 0, i) for i in range(shape[0])], shape[1:])


def moved(config: AutoencoderConfig) -> Autoencoder:
    """A network none of whose weights is zero."""
    network = Autoencoder(config, seed=1)
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.add_(0.1 * noise(1, *parameter.shape, purpose=f"test/{i}")[0])
    return network


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        (TINY, 4),
        (replace(TINY, multipliers=(1, 1), patch=2), 4),
        (replace(TINY, multipliers=(1, 2, 2), patch=2, latent_channels=3), 8),
        (replace(TINY, multipliers=(2,), patch=4, middle_attention=False, in_channels=1), 4),
    ],
)
@torch.no_grad()
def test_latents_are_factor_times_smaller_and_images_come_back_in_their_size(
    config: AutoencoderConfig, factor: int
) -> None:
    assert config.factor == factor
    network, x = moved(config), noise(2, config.in_channels, 16, 32)
    moments = network.encode(x)
    assert moments.mean.shape == (2, *config.latent_shape((config.in_channels, 16, 32)))
    assert moments.mean.shape == moments.log_var.shape == (2, config.latent_channels, 16 // factor, 32 // factor)
    assert network.decode(moments.mean).shape == x.shape


def test_weights_are_a_function_of_config_and_seed_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (Autoencoder(TINY, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["encoder.entrance.weight"], other["encoder.entrance.weight"])
    without = Autoencoder(TINY.alone, 3).state_dict()
    assert weights_alone(one).keys() == without.keys() and "critic.exit.weight" in one
    assert all(torch.equal(one[name], without[name]) for name in without), "a critic changes no other weight"


def test_the_kl_is_that_of_torchs_distributions_and_draws_have_the_posteriors_moments() -> None:
    moments = Moments(noise(3, 4, 2, 2, purpose="test/mean"), noise(3, 4, 2, 2, purpose="test/log_var"))
    posterior = torch.distributions.Normal(moments.mean, (0.5 * moments.log_var).exp())
    normal = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    wanted = torch.distributions.kl_divergence(posterior, normal).flatten(1).sum(1)
    torch.testing.assert_close(moments.kl(), wanted)
    one = Moments(*(part[:1] for part in moments))
    draws = one.sample(noise(20_000, 4, 2, 2, purpose="test/eps"))
    std = (0.5 * one.log_var[0]).exp()
    assert ((draws.mean(0) - one.mean[0]).abs() / std).max() < 5 / 20_000**0.5
    torch.testing.assert_close(draws.std(0), std, rtol=0.03, atol=0)


@torch.no_grad()
def test_log_variances_are_clamped_as_stable_diffusions() -> None:
    network = Autoencoder(TINY)
    assert network.quant_conv.bias is not None
    network.quant_conv.bias[4:6], network.quant_conv.bias[6:] = -1e4, 1e4
    log_var = network.encode(noise(1, 3, 8, 8)).log_var
    assert torch.all(log_var[:, :2] == -30) and torch.all(log_var[:, 2:] == 20)


@torch.no_grad()
def test_without_attention_a_cell_knows_only_its_surroundings_up_to_the_norms() -> None:
    """Fully convolutional: the same network takes images of any size that the factor divides."""
    network = moved(replace(TINY, middle_attention=False))
    for side in (8, 20, 36):
        assert network(noise(1, 3, side, side), noise(1, 4, side // 4, side // 4)).image.shape[-1] == side


def test_recomputing_blocks_changes_no_gradient() -> None:
    x, eps, grads = noise(1, 3, 8, 8), noise(1, 4, 2, 2), []
    for checkpointing in (False, True):
        network = moved(replace(TINY.alone, checkpointing=checkpointing))
        network(x, eps).image.square().sum().backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_prepared_in_bf16_it_gives_float32_moments_near_the_exact_ones() -> None:
    network, x = moved(TINY), noise(2, 3, 16, 16).clamp(-1, 1)
    ready = prepare(network, dtype=torch.bfloat16)
    exact, near = network.encode(x), ready.encode(x)
    assert near.mean.dtype == near.log_var.dtype == ready.decode(near.mean).dtype == torch.float32
    for wanted, given in ((exact.mean, near.mean), (network.decode(exact.mean), ready.decode(exact.mean))):
        assert (wanted - given).square().mean() < 1e-3 * wanted.square().mean()


@torch.no_grad()
def test_an_images_latent_does_not_depend_on_what_stands_beside_it() -> None:
    network, x = moved(TINY).double(), noise(3, 3, 16, 16).double()
    together = network.encode(x).mean
    alone = torch.cat([network.encode(each[None]).mean for each in x])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"latent_channels": 0}, "latent_channels is 0"),
        ({"patch": 3}, "patch is 3"),
        ({"multipliers": ()}, "multipliers"),
        ({"groups": 3}, "groups is 3.*divisors"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"critic_channels": 6}, "critic_channels is 6.*multiples of 4"),
        ({"critic_layers": 0}, "critic_layers is 0"),
    ],
)
def test_impossible_configs_are_refused(fields: dict[str, object], named: str) -> None:
    with pytest.raises(Error, match=named):
        replace(TINY, **fields)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_with_the_cure() -> None:
    network = Autoencoder(TINY)
    with pytest.raises(Error, match=r"10x8 do not fit an autoencoder of factor 4.*multiples of 4"):
        network.encode(torch.zeros(1, 3, 10, 8))
    with pytest.raises(Error, match="3 channel"):
        network.encode(torch.zeros(1, 1, 8, 8))
    with pytest.raises(Error, match=r"decodes latents \(B, 4, h, w\)"):
        network.decode(torch.zeros(1, 3, 2, 2))
    with pytest.raises(Error, match="network size"):
        default_autoencoder((3, 64, 64), "huge")  # type: ignore[arg-type]
    with pytest.raises(Error, match="factor = 6"):
        default_autoencoder((3, 60, 60), factor=6)
    with pytest.raises(Error, match="30x30 do not fit"):
        default_autoencoder((3, 30, 30))


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_the_default_of_each_factor_has_it(factor: int) -> None:
    sizes = [default_autoencoder((3, 64, 64), size, factor) for size in ("tiny", "small", "medium", "large")]
    assert all(config.factor == factor and not config.critic_channels for config in sizes)
    counts = [parameter_count(config) for config in sizes]
    assert (
        counts == sorted(counts) and default_autoencoder((3, 64, 64), factor=factor, discriminator=True).critic_channels
    )
    assert not default_autoencoder((3, 512, 512), factor=8).middle_attention
