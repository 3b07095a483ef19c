"""Sampling: a picture is its seed's alone, steps are counted, and stopping stops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kuosan.diffusion import names
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error
from kuosan.sample.generate import generate, picture_noise, sample, slerp
from kuosan.sample.plan import plan
from kuosan.sample.request import Request
from tiny_models import counted, threads, tiny_model

GREY = 2 / 255  # one grey level in [-1, 1]
NAMES = sorted(names.SAMPLERS)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_pictures_are_bit_equal_at_any_number_and_order(dtype: torch.dtype, count: int) -> None:
    model = tiny_model(dtype=dtype)
    with threads(count):
        whole = sample(model, Request(11, seed=3, steps=2, exact=True))
        for n, seed in ((1, 3), (1, 13), (2, 9), (7, 3), (8, 6)):
            part = sample(model, Request(n, seed=seed, steps=2, exact=True))
            assert torch.equal(part, whole[seed - 3 : seed - 3 + n]), (n, seed)


@pytest.mark.parametrize("name", NAMES)
def test_exact_pictures_of_every_sampler_are_their_own_seeds(name: str) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    whole = sample(model, Request(9, seed=0, sampler=name, steps=2, exact=True))
    for i in (4, 8):
        assert torch.equal(sample(model, Request(1, seed=i, sampler=name, steps=2, exact=True))[0], whole[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_without_exact_the_batch_moves_a_picture_less_than_a_grey_level(name: str, dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    whole = sample(model, Request(8, sampler=name, steps=2, batch=16))
    for size in (1, 3, 5) if name in ("ddpm", "unipc_3") else (3,):  # 1 by all samplers: the next test but one
        part = sample(model, Request(8, sampler=name, steps=2, batch=size))
        assert (part - whole).abs().max() < GREY, size


def test_a_deterministic_bf16_picture_does_not_depend_on_its_batch_at_all() -> None:
    # the time embedding, once for all pictures, was the one product whose rounding depended on the batch
    model = tiny_model(dtype=torch.bfloat16)
    whole = sample(model, Request(8, steps=3, batch=8))
    assert torch.equal(sample(model, Request(8, steps=3, batch=3)), whole)


@pytest.mark.parametrize("name", NAMES)
def test_picture_i_of_a_request_is_the_picture_of_its_own_seed(name: str) -> None:
    model = tiny_model()
    whole = sample(model, Request(4, seed=20, sampler=name, steps=4))
    for i in range(4):
        alone = sample(model, Request(1, seed=20 + i, sampler=name, steps=4))
        assert (alone[0] - whole[i]).abs().max() < GREY


def test_pictures_of_different_seeds_differ() -> None:
    pictures = sample(tiny_model(), Request(5, steps=3))
    gaps = [(pictures[i] - pictures[j]).abs().max() for i in range(5) for j in range(i)]
    assert min(gaps) > 0.1


@pytest.mark.parametrize("schedule", [Discrete(), Discrete(betas="cosine", zero_terminal_snr=True), Karras(), Flow()])
@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_walks_every_schedule(name: str, schedule: Any) -> None:
    model = tiny_model(schedule, {"karras": "edm", "flow": "flow"}.get(schedule.kind, "v"))
    pictures = sample(model, Request(2, sampler=name, steps=5))
    assert pictures.shape == (2, 3, 8, 8) and pictures.dtype == torch.float32
    assert pictures.isfinite().all()


def test_other_options_of_the_samplers_reach_them() -> None:
    model = tiny_model()
    ddim = sample(model, Request(2, sampler="ddim", steps=4))
    assert not torch.equal(sample(model, Request(2, sampler="ddim", steps=4, eta=1.0)), ddim)
    ddpm = sample(model, Request(2, sampler="ddpm", steps=4))
    assert not torch.equal(sample(model, Request(2, sampler="ddpm", steps=4, variance="posterior")), ddpm)
    assert not torch.equal(sample(model, Request(2, sampler="ddim", steps=4, spacing="leading")), ddim)
    assert torch.equal(sample(model, Request(2, sampler="DDIMScheduler", steps=4)), ddim)


def test_learned_variance_is_sampled() -> None:
    model = tiny_model(prediction="eps", learned_variance=True)
    learned = sample(model, Request(2, sampler="ddpm", steps=4, variance="learned"))
    assert learned.isfinite().all()
    assert not torch.equal(learned, sample(model, Request(2, sampler="ddpm", steps=4, variance="beta")))


def test_clip_keeps_the_predicted_picture_within_black_and_white() -> None:
    model = tiny_model(prediction="eps")
    frames = list(generate(model, Request(2, sampler="ddim", steps=4)))
    assert all(frame.x0.abs().max() <= 1 for frame in frames)
    loose = list(generate(model, Request(2, sampler="ddim", steps=4, clip=False)))
    assert any(frame.x0.abs().max() > 1 for frame in loose)


# Frames, evaluations, stopping


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_called_as_often_as_the_plan_says(name: str) -> None:
    model, network = counted(tiny_model())
    request = Request(3, sampler=name, steps=4, batch=3)
    sample(model, request)
    assert network.calls == plan(model.config, request).evaluations


def test_every_step_of_every_batch_is_a_frame() -> None:
    frames = list(generate(tiny_model(), Request(5, steps=3, batch=2)))
    assert [(frame.first, frame.step, len(frame.x)) for frame in frames] == [
        (first, step, size) for first, size in ((0, 2), (2, 2), (4, 1)) for step in (1, 2, 3)
    ]
    assert [frame.done for frame in frames] == [False, False, True] * 3
    sigmas = [float(frame.level.sigma) for frame in frames[:3]]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[-1] == 0


def test_exact_shows_no_padding() -> None:
    assert [len(frame.x) for frame in generate(tiny_model(), Request(3, steps=1, exact=True))] == [3]


def test_closing_the_generator_stops_the_network() -> None:
    model, network = counted(tiny_model())
    walk = generate(model, Request(4, steps=10, batch=2))
    next(walk)
    next(walk)
    walk.close()  # type: ignore[attr-defined]
    assert network.calls == 2
    assert next(walk, None) is None


def test_sampling_runs_without_gradients_and_leaves_the_callers_mode_alone() -> None:
    model, network = counted(tiny_model())
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    walk = generate(model, Request(1, steps=2))
    frame = next(walk)
    assert torch.is_grad_enabled()  # between two frames the caller's own mode is on
    assert not frame.x.requires_grad and not network.graded


def test_a_network_without_parameters_is_sampled_on_the_cpu() -> None:
    model = tiny_model()
    bare = replace(model, network=torch.nn.Identity())
    bare.network.forward = lambda x, t: x * 0  # type: ignore[method-assign]
    assert sample(bare, Request(2, steps=2)).shape == (2, 3, 8, 8)


# From a picture


START = torch.linspace(-1, 1, 3 * 8 * 8).reshape(3, 8, 8)


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.6, 1.0])
def test_a_walk_from_a_picture_begins_at_the_level_of_its_strength(strength: float) -> None:
    model, network = counted(tiny_model())
    request = Request(1, sampler="ddim", steps=10, image="x", strength=strength)
    whole = model.config.schedule.grid(10, "trailing")
    walk = plan(model.config, request)
    assert len(walk.levels) == walk.steps + 1 == round(10 * strength) + 1
    assert float(walk.levels.alpha[0]) == float(whole.alpha[10 - round(10 * strength)])
    frames = list(generate(model, request, start=START))
    assert len(frames) == network.calls == round(10 * strength)


def test_less_strength_stays_nearer_to_the_picture() -> None:
    model = tiny_model()
    gaps = [
        float(
            (sample(model, Request(4, sampler="ddim", steps=20, image="x", strength=s), start=START) - START)
            .abs()
            .mean()
        )
        for s in (0.05, 0.3, 1.0)
    ]
    assert gaps[0] < gaps[1] < gaps[2]


def test_full_strength_is_plain_sampling_where_the_grid_begins_at_pure_noise() -> None:
    model = tiny_model(Flow(), "flow")
    plain = sample(model, Request(2, sampler="euler", steps=5))
    assert torch.equal(sample(model, Request(2, sampler="euler", steps=5, image="x", strength=1.0), start=START), plain)


def test_full_strength_is_plain_sampling_up_to_the_trace_of_the_picture_elsewhere() -> None:
    model = tiny_model()
    alpha = float(plan(model.config, Request(1, steps=5)).levels.alpha[0])
    assert alpha < 0.01
    plain = next(generate(model, Request(2, sampler="ddim", steps=5, clip=False)))
    begun = next(generate(model, Request(2, sampler="ddim", steps=5, clip=False, image="x", strength=1.0), start=START))
    assert 0 < (begun.x - plain.x).abs().max() < 0.05


def test_each_picture_may_have_its_own_start() -> None:
    model = tiny_model()
    starts = torch.stack([START, -START, START * 0])
    request = Request(3, sampler="ddim", steps=4, image="x", strength=0.5, batch=2, exact=True)
    whole = sample(model, request, start=starts)
    for i in range(3):
        alone = sample(model, replace(request, n=1, seed=i), start=starts[i])
        assert torch.equal(alone[0], whole[i])


@pytest.mark.parametrize(
    ("request_", "given", "said"),
    [
        (Request(1, image="a.png"), {}, "no pixels were given"),
        (Request(1), {"start": START}, "has no image"),
        (Request(1, image="x"), {"start": START[:, :4]}, "resize it to 8 x 8"),
        (Request(2), {"noise": torch.zeros(1, 3, 8, 8)}, "this request needs"),
        (Request(1, image="x", strength=0.01, steps=10), {"start": START}, "no step at all"),
        (Request(2, between=(1, 2), sampler="ddpm"), {}, "draws some"),
        (Request(2, between=(1, 2), sampler="ddim", eta=0.5), {}, "draws some"),
        (Request(1, sampler="heun", eta=0.5), {}, "has no eta"),
        (Request(1, variance="learned", sampler="ddpm"), {}, "predicts no variance"),
        (Request(1, steps=1001), {}, "at most T=1000"),
        (Request(1, spacing="traling"), {}, "did you mean 'trailing'"),
        (Request(1, sampler="dimm"), {}, "did you mean 'ddim'"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_the_network_is_called(
    request_: Request, given: dict[str, Any], said: str
) -> None:
    model, network = counted(tiny_model())
    with pytest.raises(Error, match=said):
        list(generate(model, request_, **given))
    assert network.calls == 0


# Between two seeds


def test_the_ends_of_an_interpolation_are_the_two_seeds_own_pictures() -> None:
    model = tiny_model()
    between = sample(model, Request(5, sampler="ddim", steps=4, between=(7, 3), exact=True))
    for end, seed in ((0, 7), (-1, 3)):
        own = sample(model, Request(1, seed=seed, sampler="ddim", steps=4, exact=True))[0]
        assert torch.equal(between[end], own)
    steps = (between[1:] - between[:-1]).flatten(1).norm(dim=1)
    assert steps.max() < 3 * steps.min()  # no jump on the way


def test_slerp_keeps_noise_as_long_as_noise_is() -> None:
    a, b = picture_noise([1, 2], (3, 16, 16))
    way = slerp(a, b, torch.linspace(0, 1, 9))
    norms, low, high = way.flatten(1).norm(dim=1), min(a.norm(), b.norm()), max(a.norm(), b.norm())
    assert ((norms > low * 0.999) & (norms < high * 1.001)).all()
    assert torch.allclose(way[0], a, atol=1e-6) and torch.allclose(way[-1], b, atol=1e-6)
    assert torch.equal(slerp(a, a, torch.tensor([0.0, 0.4])), torch.stack([a, a]))


def test_given_noise_is_used_as_it_is() -> None:
    model = tiny_model()
    noise = picture_noise([5, 6], (3, 8, 8))
    request = Request(2, seed=5, sampler="ddim", steps=3)
    assert torch.equal(sample(model, request, noise=noise), sample(model, request))
