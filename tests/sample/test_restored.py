"""Restoring with a model: what is known comes back, what cannot be done is refused, and every method is costed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kuosan import seeds
from kuosan.data.dataset import Given
from kuosan.data.pixels import as_written, from_uint8, to_uint8
from kuosan.device import ComputeConfig
from kuosan.device import choose as choose_compute
from kuosan.diffusion.operators import Greyscale, Identity, Mask, Measurement, area
from kuosan.errors import Error
from kuosan.models.model import Model
from kuosan.sample import inputs
from kuosan.sample import request as restoration
from kuosan.sample.generate import generate, sample
from kuosan.sample.pipeline import Pipeline
from kuosan.sample.plan import choose, plan
from kuosan.sample.request import Request, Restoration
from kuosan.tasks import Generation, Inpainting, SuperResolution
from tiny_models import counted, tiny_model, with_weights

METHODS = ("ddnm", "pigdm", "dps", "repaint")


def drawn(height: int = 8, width: int = 8, seed: int = 0, channels: int = 3) -> np.ndarray:
    return seeds.rng(seed, "test/picture").integers(0, 256, (height, width, channels), dtype=np.uint8)


def hole(height: int = 8, width: int = 8) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[2:6, 1:5] = True
    return mask


def restoring(task: SuperResolution | Inpainting, shape: tuple[int, int, int] = (3, 8, 8)) -> Model:
    """A tiny model that was trained for a task."""
    config = tiny_model(shape=shape).config
    network = replace(config.network, concat_channels=task.concat_channels(shape[0]))
    return with_weights(replace(config, network=network, task=task))


def made(model: Model, asked: Restoration, pixels: np.ndarray, mask: np.ndarray | None = None, **more: Any) -> Tensor:
    brought = inputs.prepare(model, asked, pixels, mask)
    request = restoration.usual(model.config, Request(n=2, restoration=asked, **more), named="sampler" in more)
    return brought.result(sample(brought.model, request, given=brought.given, measurement=brought.measurement))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(8, 8), (13, 19), (5, 6), (8, 30)])
def test_known_pixels_come_back_bit_for_bit(method: str, size: tuple[int, int]) -> None:
    pixels, mask = drawn(*size), hole(*size)
    asked = Restoration("x", mask="m", method=method, **({"jumps": 2, "jump_length": 2} if method == "repaint" else {}))
    images = to_uint8(made(tiny_model(), asked, pixels, mask, steps=4).numpy())
    assert images.shape == (2, *size, 3)
    for image in images:
        assert np.array_equal(image[~mask], pixels[~mask])
        assert not np.array_equal(image[mask], pixels[mask])
    assert not np.array_equal(images[0], images[1]), "another seed, another answer"


def test_a_trained_inpainting_model_keeps_known_pixels_too() -> None:
    pixels, mask = drawn(11, 9), hole(11, 9)
    images = to_uint8(made(restoring(Inpainting()), Restoration("x", mask="m"), pixels, mask, steps=3).numpy())
    assert all(np.array_equal(image[~mask], pixels[~mask]) for image in images)


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver_2m", "heun", "unipc", "dpm_solver_2m_sde"])
def test_ddnm_makes_images_that_shrink_to_the_one_that_was_given(sampler: str) -> None:
    pixels = drawn(2, 2)
    images = made(tiny_model(), Restoration("x", upscale=4), pixels, sampler=sampler, steps=5)
    small = F.avg_pool2d(images, 4)
    assert (small - torch.from_numpy(from_uint8(pixels))).abs().max() < 1e-4


def test_ddnm_colours_an_image_whose_grey_is_the_one_that_was_given() -> None:
    pixels = drawn(channels=1)
    images = made(tiny_model(), Restoration("x", colorise=True), pixels, steps=4)
    grey = Greyscale().apply(images)
    assert (grey - torch.from_numpy(from_uint8(pixels))).abs().max() < 1e-4
    assert (images[:, 0] - images[:, 1]).abs().max() > 0.01, "and it has colours"


def test_super_resolution_is_told_the_small_image() -> None:
    model, count = counted(restoring(SuperResolution(scale=4)))
    images = made(model, Restoration("x", upscale=4), drawn(2, 2), steps=3)
    assert images.shape == (2, 3, 8, 8) and count.calls == 3


def test_a_restored_image_is_its_own_seeds_whatever_is_beside_it() -> None:
    model = restoring(SuperResolution(scale=2, noise=10))
    given = Given(as_written(seeds.normal([(i, "t", 0, 0) for i in range(3)], (3, 4, 4)) / 2), noise=torch.zeros(3))
    asked = Restoration("x", upscale=2)
    whole = sample(model, Request(n=3, steps=3, restoration=asked, exact=True), given=given)
    for i in range(3):
        own = sample(model, Request(n=1, seed=i, steps=3, restoration=asked, exact=True), given=given.rows([i]))
        assert torch.equal(own[0], whole[i])


def test_images_of_one_batch_may_have_holes_of_their_own() -> None:
    model = tiny_model()
    y = as_written(seeds.normal([(i, "t", 0, 0) for i in range(4)], (3, 8, 8)) / 2)
    known = torch.from_numpy(np.stack([seeds.rng(i, "m").integers(0, 2, (1, 8, 8)) for i in range(4)])).float()
    request = Request(n=4, steps=3, batch=3, sampler="ddim", restoration=Restoration("x", mask="m", method="ddnm"))
    images = sample(model, request, measurement=Measurement(Mask(known), y * known))
    assert torch.equal(images * known, y * known)


def test_a_large_image_is_made_of_tiles_with_one_noise() -> None:
    brought = inputs.prepare(tiny_model(), Restoration("x", deblur=1.0), drawn(20, 14))
    assert brought.tiles == 3 * 2 and brought.model.shape == (3, 20, 14)
    assert "tiles of 8x8" in " ".join(brought.notes)


def test_only_the_surroundings_of_a_hole_are_made() -> None:
    mask = np.zeros((64, 64), bool)
    mask[30:33, 40:43] = True
    brought = inputs.prepare(tiny_model(), Restoration("x", mask="m"), drawn(64, 64), mask)
    assert brought.tiles == 1 and brought.model.shape == (3, 8, 8)
    assert brought.result(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 64, 64)


def test_an_image_smaller_than_the_model_is_extended_and_cut_again() -> None:
    for asked, size in ((Restoration("x", deblur=1.0), (3, 7)), (Restoration("x", upscale=2), (6, 14))):
        brought = inputs.prepare(tiny_model(), asked, drawn(3, 7))
        assert "extended" in " ".join(brought.notes)
        assert brought.result(torch.zeros(1, *brought.model.shape)).shape == (1, 3, *size)


def test_outpainting_makes_room_around_the_image() -> None:
    pixels = drawn(8, 8)
    images = to_uint8(made(tiny_model(), Restoration("x", outpaint=(3, 1, 0, 2)), pixels, steps=3).numpy())
    assert images.shape == (2, 11, 11, 3)
    assert np.array_equal(images[0, 1:9, 3:], pixels)


@pytest.mark.parametrize(
    "asked, steps, calls",
    [
        (Restoration("x", mask="m", method="ddnm"), 7, 7),
        (Restoration("x", mask="m", method="pigdm"), 7, 7),
        (Restoration("x", mask="m", method="repaint"), 250, 2410),
        (Restoration("x", mask="m", method="repaint", jumps=2, jump_length=3), 9, 9 + 2 * 3),
        (Restoration("x", mask="m", method="ddnm", jumps=3, jump_length=2), 8, 8 + 2 * 3 * 2),
    ],
)
def test_the_cost_that_is_said_is_the_cost_that_is_paid(asked: Restoration, steps: int, calls: int) -> None:
    model, count = counted(tiny_model())
    request = restoration.usual(model.config, Request(n=1, steps=steps, restoration=asked), named=False)
    assert choose(model.config, request).evaluations == calls
    if calls < 100:
        brought = inputs.prepare(model, asked, drawn(), hole())
        frames = list(generate(brought.model, request, measurement=brought.measurement))
        assert len(frames) == count.calls == calls
        assert [frame.done for frame in frames] == [False] * (calls - 1) + [True]


def test_the_usual_walks_are_the_methods_own() -> None:
    config = tiny_model().config
    for method, wanted in (("repaint", ("ddpm", 250)), ("ddnm", ("ddim", 100)), ("pigdm", ("ddim", 100))):
        request = Request(n=1, restoration=Restoration("x", mask="m", method=method))
        walk = plan(config, restoration.usual(config, request, named=False))
        assert (walk.sampler, walk.grid_steps) == wanted
    trained = restoring(SuperResolution()).config
    request = restoration.usual(trained, Request(n=1, restoration=Restoration("x", upscale=4)), named=False)
    walk = plan(trained, request)
    assert (walk.sampler, walk.grid_steps, walk.options, walk.method) == ("ddim", 50, {"eta": 1.0}, None)


class Halved:
    """A user's own operator: y = x/2, with no more than it needs."""

    def apply(self, x: Tensor) -> Tensor:
        return x / 2

    def adjoint(self, y: Tensor) -> Tensor:
        return y / 2


def test_an_operator_of_ones_own_is_held_to() -> None:
    model = tiny_model()
    y = seeds.normal([(0, "t", 0, 0)], (3, 8, 8)) / 4
    asked = Restoration("x", operator="Halved", method="ddnm")
    images = sample(
        model, Request(n=1, sampler="ddim", steps=4, restoration=asked), measurement=Measurement(Halved(), y)
    )
    assert torch.allclose(images / 2, y, atol=1e-5)


@pytest.mark.parametrize(
    "task, asked, why",
    [
        (SuperResolution(), Restoration("x", upscale=2), "trained to enlarge 4 times"),
        (SuperResolution(), Restoration("x", mask="m"), "trained for super_resolution only"),
        (SuperResolution(), Restoration("x", upscale=4, noise=5), "noise up to 0 of 255"),
        (SuperResolution(), Restoration("x", upscale=4, deblur=1), "deblur"),
        (SuperResolution(), Restoration("x", upscale=4, down="bicubic"), "images shrunk by area"),
        (Inpainting(), Restoration("x", upscale=4), "trained for inpainting only"),
        (Inpainting(), Restoration("x", noise=4), "noise alone"),
        (Inpainting(), Restoration("x", mask="m", jumps=3), "none is named"),
        (Inpainting(), Restoration("x", mask="m", method="pigdm"), "trained to fill holes"),
        (SuperResolution(down="any"), Restoration("x", upscale=4, down="area"), "knows images shrunk by any"),
    ],
)
def test_what_a_model_was_not_trained_for_is_refused(task: Any, asked: Restoration, why: str) -> None:
    with pytest.raises(Error, match=why):
        choose(restoring(task).config, Request(n=1, restoration=asked))


@pytest.mark.parametrize(
    "settings, why",
    [
        ({}, "nothing to restore"),
        ({"upscale": 1}, "upscale = 1"),
        ({"upscale": 4, "mask": "m"}, "cannot both be given"),
        ({"deblur": 0}, "deblur = 0"),
        ({"noise": -1}, "noise = -1"),
        ({"noise": float("nan")}, "noise = nan"),
        ({"mask": "m", "method": "repaimt"}, "did you mean 'repaint'"),
        ({"upscale": 2, "method": "repaint"}, "fills holes"),
        ({"mask": "m", "noise": 3, "method": "repaint"}, "fills holes"),
        ({"mask": "m", "push": 2.0}, "push = 2.0 has no effect with method not set: it belongs to method pigdm or dps"),
        (
            {"mask": "m", "method": "pigdm", "jumps": 3},
            "jumps = 3 has no effect with method pigdm: it belongs to method ddnm or repaint",
        ),
        ({"mask": "m", "jump_length": 3}, "no effect without jumps"),
        ({"colorise": True, "down": "bicubic"}, "no effect without upscale"),
        ({"outpaint": (0, 0, 0, 0)}, "outpaint"),
        ({"mask": "m", "overlap": -1}, "overlap = -1"),
        ({"operator": "A", "deblur": 2.0}, "operator A beside deblur"),
    ],
)
def test_impossible_restorations_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(Error, match=why):
        Restoration("x", **settings)


def test_what_is_known_and_what_is_asked_belong_together() -> None:
    model, y = tiny_model(), torch.zeros(1, 3, 8, 8)
    asked = Restoration("x", noise=5)
    known = Measurement(Identity(), y, 0.1)
    with pytest.raises(Error, match="no restoration"):
        sample(model, Request(n=1), measurement=known)
    with pytest.raises(Error, match="pass measurement="):
        sample(model, Request(n=1, restoration=asked))
    with pytest.raises(Error, match="no conditioning image"):
        sample(model, Request(n=1, restoration=asked), given=Given(y), measurement=known)
    with pytest.raises(Error, match="has 2 images"):
        sample(model, Request(n=3, restoration=asked), measurement=Measurement(Identity(), y.repeat(2, 1, 1, 1)))
    with pytest.raises(Error, match="both must be of one size"):
        sample(model, Request(n=1, restoration=asked), measurement=Measurement(area(2, (8, 8)), y))
    with pytest.raises(Error, match="pass what is known"):
        sample(restoring(Inpainting()), Request(n=1, restoration=Restoration("x", mask="m")))
    with pytest.raises(Error, match="kuosan restore RUN IMAGE"):
        sample(restoring(Inpainting()), Request(n=1))
    with pytest.raises(Error, match="starts from noise"):
        Request(n=1, restoration=asked, image="x.png")


def test_an_image_whose_class_nobody_says_is_of_none_and_not_of_its_seeds() -> None:
    config = restoring(Inpainting()).config
    found = []
    for drop in (0.1, 0.0):
        task = Inpainting(labels=True, drop=drop, class_names=("a", "b"))
        model = with_weights(replace(config, task=task, network=replace(config.network, classes=2)))  # type: ignore[call-arg]
        asked = Restoration("x", mask="m")
        if not drop:
            with pytest.raises(Error, match="say the image's"):
                made(model, asked, drawn(), hole(), steps=2)
            continue
        found = [made(model, asked, drawn(), hole(), steps=2, **more) for more in ({}, {"classes": ("none",)})]
    assert torch.equal(*found)
    assert not torch.equal(found[0], made(model, asked, drawn(), hole(), steps=2, classes=("a",))) if drop else True


@pytest.mark.parametrize("more", [{"threshold": 90.0}, {"guidance": 3.0, "guidance_rescale": 0.7}, {}])
def test_what_an_inpainting_model_says_outside_the_hole_does_not_matter(more: dict[str, Any]) -> None:
    config = restoring(Inpainting()).config
    task = Inpainting(labels=True, drop=0.1, class_names=("a", "b"))
    model = with_weights(replace(config, task=task, network=replace(config.network, classes=2)))  # type: ignore[call-arg]

    class Spoilt(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.network

        def forward(self, x: Tensor, t: Tensor, *, label: Tensor, concat: Tensor) -> Tensor:
            return self.network(x, t, label=label, concat=concat) + 50 * (1 - concat[:, 3:])  # type: ignore[no-any-return]

    asked = Restoration("x", mask="m")
    own = [made(each, asked, drawn(), hole(), steps=3, classes=("a",), **more)
           for each in (model, Model(model.config, Spoilt()))]  # fmt: skip
    assert torch.allclose(*own, atol=1e-4)


def test_a_grey_tensor_is_coloured_and_a_coloured_one_refused() -> None:
    model = tiny_model()
    grey = as_written(seeds.normal([(0, "t", 0, 0)], (1, 8, 8)) / 2)
    trained = Pipeline(model, choose_compute(ComputeConfig("cpu", "fp32")), "tiny", 0, "")
    one = trained.restore(grey, colorise=True, steps=3)
    assert torch.equal(one, trained.restore(grey.expand(-1, 3, -1, -1), colorise=True, steps=3))
    with pytest.raises(Error, match="make them grey first"):
        trained.restore(seeds.normal([(0, "c", 0, 0)], (3, 8, 8)) / 3, colorise=True)
    with pytest.raises(Error, match="both of them"):
        trained.restore(grey.expand(-1, 3, -1, -1), torch.ones(1, 1, 8, 8))


def test_restored_tensors_lie_between_black_and_white() -> None:
    trained = Pipeline(tiny_model(), choose_compute(ComputeConfig("cpu", "fp32")), "tiny", 0, "")
    sharp = as_written(seeds.normal([(0, "t", 0, 0)], (3, 8, 8)))
    assert float(trained.restore(sharp, deblur=1.5, steps=3).abs().max()) <= 1


def test_the_request_of_a_restoration_says_by_which_method() -> None:
    config = tiny_model().config
    request = restoration.usual(config, Request(n=1, restoration=Restoration("x", mask="m")), named=False)
    assert request.restoration is not None and request.restoration.method == "pigdm"


def test_a_model_with_classes_is_guided_while_it_restores() -> None:
    task = Inpainting(labels=True, drop=0.1, class_names=("a", "b"))
    config = restoring(Inpainting()).config
    model = with_weights(replace(config, task=task, network=replace(config.network, classes=2)))  # type: ignore[call-arg]
    pixels, mask = drawn(), hole()
    asked = Restoration("x", mask="m")
    answers = [made(model, asked, pixels, mask, steps=3, classes=("a",), guidance=g) for g in (None, 3.0)]
    assert not torch.equal(*answers)
    whole = with_weights(replace(tiny_model(task=Generation(labels=True, drop=0.1, class_names=("a", "b"))).config))
    assert made(whole, Restoration("x", mask="m", method="pigdm"), pixels, mask, steps=3, guidance=2.0).isfinite().all()


def test_an_inpainting_models_prediction_is_what_is_known_at_every_step() -> None:
    model, mask = restoring(Inpainting()), hole()
    brought = inputs.prepare(model, Restoration("x", mask="m"), drawn(), mask)
    request = Request(n=2, steps=4, restoration=Restoration("x", mask="m"))
    known = torch.from_numpy(~mask)
    assert brought.given is not None
    for frame in generate(brought.model, request, given=brought.given):
        assert torch.allclose(frame.x0[..., known], brought.given.image[..., known], atol=1e-6)
