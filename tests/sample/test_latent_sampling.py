"""Sampling latents of a linear autoencoder is sampling pixels in other coordinates; and a Gaussian's flow is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kuosan import seeds
from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.schedule import Discrete
from kuosan.errors import Error
from kuosan.evaluate.likelihood import likelihood
from kuosan.models.codec import Latents
from kuosan.models.model import Model, ModelConfig
from kuosan.sample.generate import generate, sample
from kuosan.sample.inversion import round_trip
from kuosan.sample.request import Request
from kuosan.sample.write import Film
from latent_models import Linear, linear_latents, linear_model
from oracle import gaussian, network
from tiny_models import tiny_model

SHAPE, CELLS = (3, 4, 4), (12, 2, 2)
CONFIG = ModelConfig(SHAPE, schedule=Discrete(betas="cosine"), prediction="v", sigma_data=0.5)


class Exact(nn.Module):
    """An exact denoiser as a network."""

    def __init__(self, denoise: Denoiser) -> None:
        super().__init__()
        self.call: Callable[[Tensor, Tensor], Tensor] = network(denoise, CONFIG.prediction, CONFIG.schedule)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.call(x, t)


def normal(purpose: str, n: int, shape: tuple[int, ...]) -> Tensor:
    return seeds.normal([(0, f"test/{purpose}", 0, i) for i in range(n)], shape)


def data() -> tuple[Tensor, Tensor]:
    """Mean (3, 4, 4) and covariance (48, 48) of Gaussian images."""
    spread = 0.05 * normal("spread", 48, (48,)).double()
    return 0.2 * normal("mean", 1, SHAPE)[0], spread @ spread.T + 0.01 * torch.eye(48)


def rotation(latents: Latents) -> Tensor:
    """(48, 48): the linear autoencoder's map of a flat image to its flat latents, scaled."""
    coder = Linear()
    z = coder.encode(torch.eye(48).reshape(48, *SHAPE)).mean.flatten(1)
    return z.T.double() * latents.scale[0]


def pixel_model() -> Model:
    return Model(CONFIG, Exact(gaussian(*data())))


def latent_model(shift: float = 0.0, scale: float = 1.0) -> Model:
    """The exact model of the same images' latents."""
    latents, (mean, cov) = linear_latents(shift=shift, scale=scale), data()
    map_ = rotation(latents)
    centre = (map_ @ mean.double().flatten()).reshape(CELLS) - shift * scale
    return linear_model(Exact(gaussian(centre, map_ @ cov @ map_.T)), CONFIG, latents)


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver_2m", "heun", "unipc"])
def test_latents_of_a_rotation_are_sampled_as_the_pixels_are(sampler: str) -> None:
    latent, noise = latent_model(), normal("noise", 3, CELLS)
    request = Request(3, sampler=sampler, steps=7)
    wanted = sample(pixel_model(), replace(request, clip=False), noise=latent.codec.decode(noise)).clamp(-1, 1)
    assert torch.allclose(sample(latent, request, noise=noise), wanted, atol=1e-4)


def test_shifted_and_scaled_latents_make_the_data_that_the_flow_of_a_gaussian_says() -> None:
    shift, scale = 0.3, 4.0
    model, noise = latent_model(shift, scale), normal("noise", 4, CELLS)
    request = Request(4, sampler="heun", steps=60)
    made = sample(model, request, noise=noise)
    mean, cov = data()
    map_ = rotation(linear_latents(shift=shift, scale=scale))
    level = CONFIG.schedule.grid(60, "trailing")[0]
    values, vectors = torch.linalg.eigh(map_ @ cov @ map_.T)
    centre = map_ @ mean.double().flatten() - shift * scale
    gain = (values / (level.alpha**2 * values + level.sigma**2)).sqrt()
    away = (noise.double().flatten(1) - level.alpha * centre) @ vectors
    z = (centre + (away * gain) @ vectors.T).reshape(4, *CELLS).float()
    assert torch.allclose(made, model.codec.decode(z).clamp(-1, 1), atol=5e-3)


def test_an_image_to_image_walk_starts_from_the_images_latents() -> None:
    latent, start = latent_model(), 0.3 * normal("start", 2, SHAPE)
    request = Request(2, sampler="ddim", steps=10, image="x", strength=0.1)
    made = sample(latent, request, start=start)
    assert (made - start).abs().mean() < 0.5 * (made - start.flip(0)).abs().mean()
    assert torch.equal(made[1], sample(latent, replace(request, n=1, seed=1), start=start[1])[0])


def test_inversion_goes_to_the_latents_noise_and_back_to_the_image() -> None:
    mean, cov = data()
    chosen = torch.linalg.cholesky(cov).float() @ normal("picture", 2, (48,)).T
    images = (mean.flatten()[:, None] + chosen).T.reshape(2, *SHAPE).clamp(-1, 1)
    found = round_trip(latent_model(), images, steps=60, iterations=2)
    assert found.noise.shape == (2, *CELLS) and found.back.shape == (2, *SHAPE)
    assert (found.back - images).abs().max() < 0.02


def test_frames_are_latents_until_the_image_is_done_and_show_what_they_look_like() -> None:
    frames = list(generate(latent_model(), Request(2, steps=3)))
    assert [tuple(frame.x.shape) for frame in frames] == [(2, *CELLS), (2, *CELLS), (2, *SHAPE)]
    assert all(tuple(frame.image().shape) == (2, *SHAPE) for frame in frames)
    assert torch.equal(frames[-1].image(), frames[-1].x)
    film = Film()
    for frame in frames:
        film.add(frame)
    assert {each.shape for each in film.frames} == {(2, 4, 4, 3)}


def test_noise_to_start_from_has_the_latents_shape() -> None:
    with pytest.raises(Error, match=r"noise has shape .* needs \(1, 12, 2, 2\)"):
        sample(latent_model(), Request(1, steps=2), noise=torch.zeros(1, *SHAPE))


def test_latents_are_never_bounded() -> None:
    model = latent_model(scale=30.0)  # latents far beyond [-1, 1]
    made = sample(model, Request(2, sampler="ddim", steps=20))
    assert made.abs().max() > 0.05 and made.std() > 0.05
    with pytest.raises(Error, match=r"threshold = 99.0: .* no black and white"):
        sample(model, Request(1, threshold=99.0))
    with pytest.raises(Error, match=r"clip = false has no effect: this is a model of latents"):
        sample(model, Request(1, clip=False))


def test_a_weaker_model_guides_only_with_the_same_autoencoder() -> None:
    from kuosan.sample.guidance_models import Guides

    model = latent_model()
    assert isinstance(model.config.codec, Latents)
    request = Request(1, steps=2, guidance=2.0, reference="weak")
    sample(model, request, guides=Guides(reference=latent_model()))
    other = replace(model, config=replace(model.config, codec=replace(model.config.codec, weights="other")))
    with pytest.raises(Error, match=r"reference 'weak' sees latents of another autoencoder"):
        sample(model, request, guides=Guides(reference=other))
    with pytest.raises(Error, match=r"reference 'weak' sees images themselves"):
        sample(model, request, guides=Guides(reference=tiny_model(CONFIG.schedule, shape=SHAPE)))


def test_a_likelihood_of_latents_is_refused() -> None:
    with pytest.raises(Error, match=r"a likelihood of a model of latents: it has a density of latents"):
        likelihood(latent_model(), torch.full((2, *SHAPE), -1.0))
