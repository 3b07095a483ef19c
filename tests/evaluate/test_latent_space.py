"""The latents' figures against closed forms, and what is warned of."""

from __future__ import annotations

from math import log2, pi, sqrt

import numpy as np
import pytest
import torch

from kuosan import seeds
from kuosan.evaluate.reconstruction_result import Channel, Gathered, latent_warnings
from kuosan.models.latents import measure
from kuosan.networks.autoencoder import Moments


def latents(means: list[float], stds: list[float], noise: list[float], n: int = 64) -> Moments:
    """Posteriors of n images whose means are normal, a mean, std and posterior std a channel."""
    shape = (len(means), 8, 8)
    drawn = seeds.normal([(0, "test/latents", 0, i) for i in range(n)], shape)
    m, s, e = (torch.tensor(values).view(1, -1, 1, 1) for values in (means, stds, noise))
    return Moments(m + s * drawn, (2 * e.log()).expand(n, *shape).clone())


def gathered(moments: Moments, parts: int = 1) -> tuple[Channel, ...]:
    found = Gathered()
    for mean, log_var in zip(moments.mean.chunk(parts), moments.log_var.chunk(parts)):
        found.add(Moments(mean, log_var))
    return found.channels()


def test_mean_std_and_noise_are_those_that_the_latents_were_drawn_with() -> None:
    one, two = gathered(latents([1.0, -20.0], [3.0, 0.5], [4.0, 0.05]))
    assert one.mean == pytest.approx(1, abs=0.2) and two.mean == pytest.approx(-20, abs=0.03)
    assert one.std == pytest.approx(5, rel=0.03) and two.std == pytest.approx(sqrt(0.25 + 0.0025), rel=0.03)
    assert one.noise == pytest.approx(4, rel=1e-6) and two.noise == pytest.approx(0.05, rel=1e-6)


def test_parts_add_up_and_shift_and_scale_are_those_that_stage_two_measures() -> None:
    moments = latents([1.0, -2.0, 0.0], [3.0, 0.5, 1.0], [0.1, 0.2, 0.3])
    whole, parts = gathered(moments), gathered(moments, 7)
    for one, other in zip(whole, parts):
        assert vars(other) == pytest.approx(vars(one), rel=1e-9)
    shift, scale = measure([(moments.mean, (moments.log_var / 2).exp())])
    assert [one.mean for one in whole] == pytest.approx(shift, rel=1e-4)
    assert [one.scale for one in whole] == pytest.approx(scale, rel=1e-4)


def test_bits_are_the_capacity_of_a_gaussian_channel() -> None:
    (one,) = gathered(latents([0.0], [3.0], [1.0], n=512))
    assert one.bits == pytest.approx(0.5 * log2(1 + 9), rel=0.01)  # Shannon 1948, theorem 17
    assert gathered(latents([5.0], [0.0], [1.0]))[0].bits == pytest.approx(0, abs=1e-9)


def test_bits_are_the_mean_divergence_to_the_channels_own_normal() -> None:
    moments = latents([1.0], [2.0], [0.5])
    moments = moments._replace(log_var=moments.log_var + 0.3 * moments.mean)  # of unequal noise
    (one,) = gathered(moments)
    posterior = torch.distributions.Normal(moments.mean.double(), (moments.log_var.double() / 2).exp())
    prior = torch.distributions.Normal(one.mean, one.std)
    nats = torch.distributions.kl_divergence(posterior, prior).mean()
    assert one.bits == pytest.approx(float(nats) / np.log(2), rel=1e-6)


def test_the_farthest_value_is_told_in_standard_deviations() -> None:
    moments = latents([0.0], [1.0], [1e-3])
    moments.mean[3, 0, 2, 1] = -40.0
    (one,) = gathered(moments)
    assert one.farthest == pytest.approx(abs(-40 - one.mean) / one.std, rel=1e-6)


def test_nothing_is_said_of_latents_as_they_should_be() -> None:
    assert latent_warnings(gathered(latents([0.3, -5.0], [5.0, 1.0], [0.05, 0.1]))) == []


@pytest.mark.parametrize(
    ("moments", "said"),
    [
        (latents([0.0] * 2, [0.01] * 2, [1.0] * 2), ["every latent channel says next to nothing"]),
        (latents([0.0] * 3, [1.0, 0.01, 1.0], [0.1, 1.0, 0.1]), ["latent channel 1 says next to nothing"]),
        (latents([0.0] * 2, [500.0, 1.0], [0.1] * 2), ["latent channel 0 has std"]),
        (latents([0.0] * 2, [1.0, 1e-3], [0.1, 1e-5]), ["latent channel 1 has std 0.001"]),
    ],
)
def test_collapsed_and_wild_latents_are_warned_of(moments: Moments, said: list[str]) -> None:
    found = latent_warnings(gathered(moments))
    assert len(found) == len(said)
    for line, part in zip(found, said):
        assert part in line


def test_an_outlier_is_warned_of() -> None:
    moments = latents([0.0], [1.0], [0.1])
    moments.mean[0, 0, 0, 0] = 100 * pi
    assert "std from its mean" in latent_warnings(gathered(moments))[0]
