"""What a user would bring of an image, and what a network is told of it: the same code in training and sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kuosan import seeds
from kuosan.data.dataset import Given
from kuosan.data.pixels import as_written, from_uint8, to_uint8
from kuosan.errors import Error
from kuosan.tasks import Generation, Inpainting, SuperResolution, Task
from kuosan.tasks.condition import condition, degrade, enlarged, filled

TASKS: list[Task] = [
    SuperResolution(),
    SuperResolution(scale=2, down="bicubic"),
    SuperResolution(scale=4, down="any", blur=2, noise=12, jpeg=30),
    Inpainting(),
    Inpainting(masks=("half", "sparse")),
]


def images(n: int = 6, side: int = 16) -> torch.Tensor:
    coarse = seeds.normal([(i, "test/coarse", 0, 0) for i in range(n)], (3, 4, 4))
    return F.interpolate(coarse, (side, side), mode="bilinear").mul(0.5).clamp(-1, 1)


def rngs(n: int = 6, seed: int = 0) -> list[np.random.Generator]:
    return [seeds.rng(seed, "test/degrade", 3, i) for i in range(n)]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_an_images_damage_is_its_own_generators_whatever_is_beside_it(task: Task) -> None:
    x0 = images()
    whole = degrade(task, x0, rngs())
    assert whole is not None
    for i in range(len(x0)):
        alone = degrade(task, x0[i : i + 1], rngs()[i : i + 1])
        assert alone is not None
        for part, own in zip(whole.rows([i]), alone):
            assert (part is None) == (own is None)
            assert part is None or torch.allclose(part, own, atol=1e-6)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_condition_has_the_channels_that_the_task_says(task: Task) -> None:
    x0 = images()
    told = condition(task, None, degrade(task, x0, rngs()))
    assert set(told) == {"concat"}
    assert told["concat"].shape == (6, task.concat_channels(3), 16, 16)


def test_generation_has_no_conditioning() -> None:
    assert degrade(Generation(), images(), rngs()) is None
    assert condition(Generation(), None) == {}


def test_area_shrinking_is_the_mean_of_squares_rounded_to_bytes() -> None:
    x0 = images()
    given = degrade(SuperResolution(scale=4), x0, rngs())
    assert given is not None
    assert torch.equal(given.image, as_written(given.image)), "as a file would hold it"
    assert (given.image - F.avg_pool2d(x0, 4)).abs().max() <= 1 / 255 + 1e-6


def test_bicubic_shrinking_is_the_antialiased_one() -> None:
    x0 = images()
    given = degrade(SuperResolution(scale=2, down="bicubic"), x0, rngs())
    wanted = F.interpolate(x0, (8, 8), mode="bicubic", antialias=True, align_corners=False)
    assert given is not None and (given.image - wanted.clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-5


def test_noise_is_as_strong_as_the_conditioning_says() -> None:
    x0 = torch.zeros(64, 3, 64, 64)
    given = degrade(SuperResolution(scale=2, noise=40), x0, rngs(64))
    assert given is not None and given.noise is not None
    stds = given.noise * 127.5
    assert 0 <= float(stds.min()) < 5 and 35 < float(stds.max()) <= 40, "from none to the most"
    measured = given.image.flatten(1).std(dim=1)
    assert torch.allclose(measured, given.noise, rtol=0.05, atol=0.004)  # 8 bits add a little
    told = condition(SuperResolution(scale=2, noise=40), None, given)["concat"]
    assert torch.equal(told[:, 3, 0, 0], given.noise) and torch.equal(told[:, 3, 5, 60], given.noise)


def test_jpeg_and_blur_change_images_and_the_settings_do_not_move_each_others_draws() -> None:
    x0 = images(6, 32)
    plain = degrade(SuperResolution(scale=2), x0, rngs())
    assert plain is not None
    for more in ({"jpeg": 20}, {"blur": 3.0}):
        other = degrade(SuperResolution(scale=2, **more), x0, rngs())  # type: ignore[arg-type]
        assert other is not None and not torch.equal(other.image, plain.image)
    quiet = degrade(SuperResolution(scale=2, noise=10), x0, rngs())
    both = degrade(SuperResolution(scale=2, noise=10, jpeg=20), x0, rngs())
    assert quiet is not None and both is not None and torch.equal(quiet.noise, both.noise)  # type: ignore[arg-type]


def test_the_known_part_of_an_image_with_a_hole_is_given_exactly_and_the_rest_is_not() -> None:
    x0 = images()
    given = degrade(Inpainting(), x0, rngs())
    assert given is not None and given.mask is not None
    told = condition(Inpainting(), None, Given(x0, given.mask))["concat"]  # even if the whole image were given
    hole = given.mask.expand(-1, 3, -1, -1) > 0
    assert torch.equal(told[:, :3][~hole], x0[~hole])
    assert torch.equal(told, condition(Inpainting(), None, given)["concat"]), "what is in the hole tells nothing"
    assert torch.equal(told[:, 3:], given.mask)


def test_a_hole_is_filled_from_what_is_around_it() -> None:
    flat = torch.full((1, 3, 13, 17), 0.4)
    mask = torch.zeros(1, 1, 13, 17)
    mask[..., 2:11, 3:17] = 1
    assert torch.allclose(filled(flat * (1 - mask), mask), flat, atol=1e-6)
    halves = torch.cat([torch.full((1, 1, 16, 8), -0.5), torch.full((1, 1, 16, 8), 0.5)], 3)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    value = filled(halves, mask)[0, 0]
    assert torch.equal(value[:4], halves[0, 0, :4]) and float(value.abs().max()) <= 0.5
    assert (value[4:12, 4:12].diff(dim=1) >= -1e-6).all(), "from the dark side to the bright one"
    one = torch.zeros(1, 1, 16, 16)
    one[..., 3, 5] = 0.7
    known = 1 - (one > 0).float()
    assert torch.allclose(filled(one, known), torch.full_like(one, 0.7)), "a single known pixel fills all"


def test_every_kind_of_mask_is_drawn_and_only_those_asked_for() -> None:
    half = degrade(Inpainting(masks=("half",)), torch.zeros(40, 1, 16, 16), rngs(40))
    assert half is not None and half.mask is not None
    lines = half.mask[:, 0]
    straight = [bool((m == m[:1]).all() or (m == m[:, :1]).all()) for m in lines]
    assert all(straight), "a half is whole rows or whole columns"


def test_labels_stand_beside_what_is_given() -> None:
    task = SuperResolution(labels=True, class_names=("a", "b"))
    told = condition(task, torch.tensor([0, -1]), degrade(task, images(2), rngs(2)), np.array([0.5, 0.5]))
    assert told["label"].tolist() == [0, 2] and told["concat"].shape[1] == 3


def test_what_is_given_goes_through_a_codec_and_masks_are_given_as_shares_of_its_cells() -> None:
    def encode(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_unshuffle(x, 2)

    x0 = images()
    for task in (SuperResolution(scale=2, noise=5.0), Inpainting()):
        given = degrade(task, x0, rngs())
        plain, told = condition(task, None, given)["concat"], condition(task, None, given, encode=encode)["concat"]
        assert told.shape == (len(x0), 13, *(side // 2 for side in x0.shape[2:]))
        assert torch.equal(told[:, :12], encode(plain[:, :3]))
        assert torch.allclose(told[:, 12:], encode(plain[:, 3:]).mean(1, keepdim=True))


def test_enlarging_a_constant_is_that_constant() -> None:
    assert torch.allclose(enlarged(torch.full((1, 3, 5, 4), 0.3), 4), torch.full((1, 3, 20, 16), 0.3))


def test_images_as_written_are_those_that_come_back_from_bytes() -> None:
    x = seeds.normal([(0, "test/x", 0, 0)], (3, 16, 16)) * 0.8
    assert np.array_equal(as_written(x).numpy(), from_uint8(to_uint8(x.numpy())))


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda: SuperResolution(scale=1), "scale = 1"),
        (lambda: SuperResolution(blur=-1), "blur = -1"),
        (lambda: SuperResolution(noise=200), "noise = 200"),
        (lambda: SuperResolution(jpeg=99), "jpeg = 99"),
        (lambda: Inpainting(masks=()), "masks is empty"),
        (lambda: Inpainting(masks=("boxes",)), "did you mean 'box'"),
        (lambda: SuperResolution(drop=0.2), "no effect without classes or captions"),
    ],
)
def test_impossible_settings_are_refused(make: Any, why: str) -> None:
    with pytest.raises(Error, match=why):
        make()
