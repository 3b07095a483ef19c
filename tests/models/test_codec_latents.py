"""Codecs: shift and scale are the data's, a linear autoencoder loses nothing, and latent spaces are told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kuosan import seeds
from kuosan.errors import Error
from kuosan.models.codec import PIXELS, Latents, Pixels, apart
from kuosan.models.latents import LatentCodec, measure
from kuosan.networks.autoencoder import Autoencoder
from latent_models import TINY, linear_codec, linear_latents


def images(n: int = 4, side: int = 8) -> torch.Tensor:
    return seeds.normal([(0, "test/pictures", 0, i) for i in range(n)], (3, side, side)).mul(0.3).clamp(-1, 1)


def test_a_linear_autoencoder_gives_back_the_image_whatever_its_shift_and_scale() -> None:
    codec = linear_codec(linear_latents(shift=0.3, scale=2.5))
    x = images()
    z = codec.encode(x)
    assert z.shape == (4, 12, 4, 4)
    assert torch.allclose(codec.decode(z), x, atol=1e-6)
    assert torch.allclose(codec.raw(codec.scaled(z)), z, atol=1e-6)


def test_encoding_with_noise_draws_from_the_posterior() -> None:
    codec = linear_codec(linear_latents(scale=2.0))
    codec.network.std = 0.1
    x, noise = images(), seeds.normal([(0, "test/noise", 0, i) for i in range(4)], (12, 4, 4))
    assert torch.allclose(codec.encode(x, noise), codec.encode(x) + 2 * 0.1 * noise, atol=1e-5)


def test_finished_images_lie_within_black_and_white_and_one_by_one_they_do_not_depend_on_the_batch() -> None:
    config = Latents(network=TINY, shift=(0.1,) * 4, scale=(1.0,) * 4, weights="x")
    codec = LatentCodec(config, Autoencoder(TINY, 1).eval().requires_grad_(False))
    z = 20 * seeds.normal([(0, "test/z", 0, i) for i in range(5)], (4, 8, 8))
    whole = codec.finish(z)
    assert whole.abs().max() <= 1
    assert torch.equal(codec.finish(z[1:2]), whole[1:2])
    assert torch.equal(codec.finish(z.flip(0)), whole.flip(0))


def test_measured_latents_have_mean_zero_and_standard_deviation_one() -> None:
    draw = seeds.rng(0, "test/latents")
    mean = torch.from_numpy(
        draw.standard_normal((64, 3, 4, 4)) * [[[[5.0]], [[0.2]], [[1.0]]]] + [[[[3.0]], [[-1]], [[0]]]]
    )
    std = torch.full_like(mean, 0.5)
    shift, scale = measure([(mean[:40], std[:40]), (mean[40:], std[40:])])
    drawn = mean + std * torch.from_numpy(draw.standard_normal(mean.shape))
    z = (drawn - torch.tensor(shift).reshape(1, 3, 1, 1)) * torch.tensor(scale).reshape(1, 3, 1, 1)
    assert np.allclose(z.mean((0, 2, 3)), 0, atol=0.05)
    assert np.allclose(z.std((0, 2, 3)), 1, atol=0.05)
    assert np.allclose(shift, mean.mean((0, 2, 3)), rtol=1e-5)  # of all parts, weighted by their size


def test_a_latent_channel_that_holds_nothing_is_named() -> None:
    mean = torch.zeros(2, 3, 4, 4)
    mean[:, :2] = images(2, 4)[:, :2]
    with pytest.raises(Error, match=r"latent channel 2 .* holds nothing: train the autoencoder longer"):
        measure([(mean, torch.zeros_like(mean))])


def test_latents_say_their_shape_and_refuse_images_that_do_not_fit() -> None:
    latents = Latents(network=TINY)
    assert latents.sample_shape((3, 16, 24)) == (4, 8, 12)
    assert Pixels().sample_shape((3, 16, 24)) == (3, 16, 24)
    with pytest.raises(Error, match="3 channel"):
        latents.sample_shape((1, 16, 16))
    with pytest.raises(Error, match="multiples of 2"):
        latents.sample_shape((3, 15, 16))


def test_impossible_measurements_are_refused() -> None:
    with pytest.raises(Error, match="3 numbers for 4 latent channels"):
        Latents(network=TINY, scale=(1.0, 1.0, 1.0))
    with pytest.raises(Error, match=r"scale .* is not allowed"):
        Latents(network=TINY, scale=(1.0, 1.0, 1.0, 0.0))
    with pytest.raises(Error, match=r"shift .* is not allowed"):
        Latents(network=TINY, shift=(1.0, 1.0, 1.0, float("nan")))


def test_two_latent_spaces_are_the_same_only_with_the_same_autoencoder_and_nearly_the_same_measurement() -> None:
    one = Latents(network=TINY, run="a", shift=(0.5,) * 4, scale=(2.0,) * 4, weights="1" * 64)
    assert apart(one, one) is None and apart(Pixels(), Pixels()) is None
    assert apart(one, replace(one, run="elsewhere", scale=(2.01,) * 4)) is None
    assert "another autoencoder" in str(apart(one, replace(one, weights="2" * 64)))
    assert "other images" in str(apart(one, replace(one, shift=(0.6,) * 4)))
    assert "images themselves, and this model an autoencoder's latents" in str(apart(one, Pixels()))


def test_the_codec_of_pixels_changes_nothing() -> None:
    x = images()
    assert PIXELS.encode(x) is x and PIXELS.decode(x) is x and PIXELS.finish(x) is x and PIXELS.tiled(8) is PIXELS
