"""Restoration on latents of a rotation is restoration in pixels; known pixels come back bit for bit; what cannot work
says why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.diffusion.denoiser import Denoiser, Prediction
from kuosan.diffusion.level import Level
from kuosan.diffusion.operators import Measurement, area
from kuosan.diffusion.restoration import ddnm_through, seen
from kuosan.errors import Error
from kuosan.models.codec import Latents
from kuosan.models.latents import LatentCodec
from kuosan.models.model import Model
from kuosan.networks.autoencoder import Autoencoder
from kuosan.sample import inputs
from kuosan.sample import request as restoration
from kuosan.sample.constraint import known_cells
from kuosan.sample.generate import sample
from kuosan.sample.request import Request, Restoration
from latent_models import TINY
from sample.test_latent_sampling import CELLS, CONFIG, SHAPE, latent_model, normal, pixel_model
from tiny_models import tiny_model

HOLE = torch.zeros(1, 1, 4, 4)
HOLE[..., 2:, :2] = 1  # of whole cells


def alike(asked: Restoration, image: Tensor, hole: Tensor | None = None, atol: float = 2e-4) -> None:
    """A latent model and a pixel model give the same answers from the same noise."""
    latent, noise = latent_model(), normal("noise", 2, CELLS)
    request = Request(2, sampler="ddim", steps=8, eta=0.0, restoration=asked)
    answers = []
    for model in (latent, pixel_model()):
        own = replace(request, clip=model.codec.latent)
        own = restoration.usual(model.config, own, named=True)
        _, given, measurement = inputs.tensors(model, asked, image, hole)
        start = noise if model.codec.latent else latent.codec.decode(noise)
        answers.append(sample(model, own, noise=start, given=given, measurement=measurement).clamp(-1, 1))
    assert torch.allclose(*answers, atol=atol), (answers[0] - answers[1]).abs().max()
    assert (answers[0] - sample(latent, Request(2, sampler="ddim", steps=8), noise=noise)).abs().max() > 0.02


@pytest.mark.parametrize("method", ["pigdm", "ddnm", "dps"])
def test_holes_of_whole_cells_are_filled_as_in_pixels(method: str) -> None:
    image = (0.4 * normal("picture", 2, SHAPE)).clamp(-1, 1)
    alike(Restoration("x", mask="a tensor", method=method), image, HOLE)


@pytest.mark.parametrize(
    ("method", "damage"),
    [
        ("ddnm", {"upscale": 2}),
        ("ddnm", {"upscale": 2, "down": "bicubic"}),
        ("ddnm", {"colorise": True}),
        ("ddnm", {"deblur": 1.0}),
        ("ddnm", {"upscale": 2, "noise": 20.0}),
        ("dps", {"upscale": 2}),
        ("dps", {"colorise": True}),
    ],
)
def test_other_damage_is_undone_through_the_decoder_as_in_pixels(method: str, damage: dict[str, object]) -> None:
    side = 2 if "upscale" in damage else 4
    image = 0.4 * normal("picture", 2, (1 if "colorise" in damage else 3, side, side)).clamp(-1, 1)
    atol = 5e-3 if "deblur" in damage else 2e-4
    alike(Restoration("x", method=method, **damage), image, atol=atol)  # type: ignore[arg-type]


def test_known_pixels_come_back_bit_for_bit_though_the_autoencoder_loses_something() -> None:
    model = latent_model()
    hole = HOLE.clone()
    hole[..., 1, 3] = 1  # and a cell that is known in part
    image = (0.4 * normal("picture", 2, SHAPE)).clamp(-1, 1)
    for method in ("pigdm", "ddnm", "repaint"):
        asked = Restoration("x", mask="a tensor", method=method, **({"jumps": 1} if method == "repaint" else {}))
        request = restoration.usual(model.config, Request(2, steps=4, restoration=asked), named=False)
        _, _, measurement = inputs.tensors(model, asked, image, hole)
        made = sample(model, replace(request, steps=4), measurement=measurement)
        assert torch.equal((made * (1 - hole)), image * (1 - hole)), method
        assert not torch.equal(made * hole, image * hole)


def test_a_cell_is_known_only_if_all_its_pixels_are() -> None:
    known = torch.ones(2, 1, 4, 6)
    known[0, 0, 0, 0] = known[1, 0, 3, 4] = 0
    wanted = torch.ones(2, 1, 2, 3)
    wanted[0, 0, 0, 0] = wanted[1, 0, 1, 2] = 0
    assert torch.equal(known_cells(known, 2), wanted)
    with pytest.raises(Error, match=r"no whole cells of 4"):
        known_cells(known, 4)


def test_scattered_holes_that_leave_no_cell_whole_are_refused_but_for_dps() -> None:
    model, image = latent_model(), (0.4 * normal("picture", 1, SHAPE)).clamp(-1, 1)
    hole = torch.zeros(1, 1, 4, 4)
    hole[..., ::2, ::2] = 1
    for method, works in (("pigdm", False), ("dps", True)):
        asked = Restoration("x", mask="a tensor", method=method)
        request = restoration.usual(model.config, Request(1, steps=3, restoration=asked), named=False)
        _, _, measurement = inputs.tensors(model, asked, image, hole)
        if works:
            assert sample(model, request, measurement=measurement).shape == (1, *SHAPE)
            continue
        with pytest.raises(Error, match=r"leaves no cell of 2x2 pixels whole.*use --method dps"):
            sample(model, request, measurement=measurement)


def test_pigdm_through_a_decoder_is_refused_with_the_reason() -> None:
    config = latent_model().config
    for damage in ({"upscale": 2}, {"colorise": True}, {"noise": 5.0}, {"mask": "m", "noise": 5.0}):
        asked = Restoration("x", method="pigdm", **damage)  # type: ignore[arg-type]
        with pytest.raises(Error, match=r"PiGDM needs a linear damage .* Use ddnm or dps"):
            restoration.method(config, asked)
    assert restoration.method(config, Restoration("x", mask="m")) == "pigdm"
    assert restoration.method(config, Restoration("x", mask="m", noise=5.0)) == "ddnm"
    assert restoration.method(config, Restoration("x", upscale=2)) == "ddnm"


def test_larger_canvases_are_walked_in_tiles_of_latents_in_whole_cells() -> None:
    tiny = tiny_model(shape=(4, 4, 4))
    latents = Latents(network=TINY, shift=(0.0,) * 4, scale=(1.0,) * 4, weights="tiny")
    config = replace(tiny.config, shape=(3, 8, 8), codec=latents)
    model = Model(config, tiny.network, LatentCodec(latents, Autoencoder(TINY, 1).eval().requires_grad_(False)))
    large, count = inputs.tiled(model, (12, 16))
    assert large.walk_shape == (4, 6, 8) and count == 2 * 3
    assert sample(large, Request(1, steps=1)).shape == (1, 3, 12, 16)
    for canvas, overlap in (((11, 16), None), ((12, 16), 3)):
        with pytest.raises(Error, match=r"multiples of 2"):
            inputs.tiled(model, canvas, overlap)
    image = seeds.rng(0, "test/picture").integers(0, 256, (9, 13, 3), dtype=np.uint8)
    brought = inputs.prepare(model, Restoration("x", deblur=1.0, method="ddnm"), image)
    assert brought.model.shape == (3, 10, 14), "extended to whole cells"
    assert brought.result(torch.zeros(1, 3, 10, 14)).shape == (1, 3, 9, 13)


def test_a_decoders_slope_is_measured_as_it_is() -> None:
    def decode(z: Tensor) -> Tensor:
        return torch.tanh(z).repeat(1, 2, 1, 1)

    z, v = normal("z", 2, (2, 3, 3)), normal("v", 2, (4, 3, 3))
    found = seen(decode, z)
    slope = 1 - torch.tanh(z) ** 2
    assert torch.equal(found.shown, decode(z))
    assert torch.allclose(found.pull(v), slope * (v[:, :2] + v[:, 2:]), atol=1e-6)
    step = normal("step", 2, (2, 3, 3))
    assert torch.allclose(found.push(step), (slope * step).repeat(1, 2, 1, 1), atol=0.05)
    assert torch.equal(found.push(torch.zeros_like(z)), torch.zeros(2, 4, 3, 3))


def test_where_the_image_agrees_already_a_lossy_autoencoder_moves_nothing() -> None:
    def denoise(z: Tensor, level: Level) -> Prediction:
        return Prediction(z)

    def lossy(z: Tensor) -> Tensor:
        return (z * 0.5).round()

    z = normal("z", 1, (1, 4, 4))
    operator = area(2, (4, 4))
    level = CONFIG.schedule.grid(4, "trailing")[1]
    held: Denoiser = ddnm_through(denoise, Measurement(operator, operator.apply(lossy(z))), lossy, lossy, 1.0, 0.5)
    assert torch.equal(held(z, level).x0, z)
