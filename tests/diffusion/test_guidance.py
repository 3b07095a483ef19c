"""Guidance away from a reference: its identities, against diffusers and closed forms, how often a network is asked."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor

from kuosan import seeds
from kuosan.diffusion.denoiser import Denoiser, Prediction, denoiser, target, to_eps
from kuosan.diffusion.guidance import (
    clamp,
    classifier_free,
    doubled,
    dynamic_threshold,
    interval,
    rescale,
    shared,
)
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import ddim
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error
from kuosan.models.latents import prepare
from kuosan.networks.config import UNetConfig
from kuosan.networks.unet import UNet

SHAPE = (3, 4, 6, 6)  # latent images: nothing here assumes three channels


def noise(name: str, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return seeds.normal([(0, name, 0, i) for i in range(shape[0])], shape[1:]).to(dtype)


X = noise("x", *SHAPE)
LEVEL = Discrete().at_t(400)


class Asked:
    """A denoiser of its own image that counts how often it is asked."""

    def __init__(self, name: str, size: float = 0.7, frac: float | None = None) -> None:
        self.x0 = noise(name, *SHAPE) * size
        self.frac, self.calls = frac, 0

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        self.calls += 1
        x0 = self.x0.to(x.dtype) + 0.1 * x
        return Prediction(x0, None if self.frac is None else torch.full_like(x0, self.frac))


def test_scale_one_is_the_denoiser_and_scale_zero_the_reference_and_neither_asks_the_other() -> None:
    denoise, reference = Asked("a"), Asked("b")
    assert classifier_free(denoise, reference, 1.0) is denoise
    assert classifier_free(denoise, reference, 0.0) is reference


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0, 7.5])
def test_classifier_free_guidance_is_the_pipelines_in_every_prediction(scale: float) -> None:
    denoise, reference = Asked("a", frac=0.3), Asked("b", frac=0.9)
    guided = classifier_free(denoise, reference, scale)(X, LEVEL)
    assert guided.frac is not None and (guided.frac == 0.3).all()
    for prediction in ("eps", "x0", "v", "flow", "edm"):
        outs = []
        for source in (denoise, reference):
            x0 = source(X, LEVEL).x0
            outs.append(target(prediction, x0, to_eps("x0", x0, X, LEVEL), LEVEL))
        cond, uncond = outs
        out = uncond + scale * (cond - uncond)  # diffusers' pipelines, Ho & Salimans 2022 with w = scale - 1
        theirs = denoiser(lambda x, t, out=out: out, prediction)(X, LEVEL).x0
        torch.testing.assert_close(guided.x0, theirs, rtol=1e-10, atol=1e-10)


def test_the_guided_score_of_gaussians_is_the_tilted_gaussians() -> None:
    """p(x|y)^w p(x)^(1-w), differentiated by torch, at one level; x0 = (x + sigma²·score)/alpha."""
    w, alpha, sigma = 3.0, float(LEVEL.alpha), float(LEVEL.sigma)
    parts = [(0.8, 0.3), (-0.2, 0.9)]  # mean and standard deviation of the data: of the class, of all

    def denoise(mean: float, std: float) -> Denoiser:
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return lambda x, level: Prediction(mean + gain * (x - alpha * mean))

    leaf = X.clone().requires_grad_()
    noisy = [
        torch.distributions.Normal(*torch.tensor([alpha * m, math.hypot(alpha * s, sigma)], dtype=torch.float64))
        for m, s in parts
    ]
    (w * noisy[0].log_prob(leaf) + (1 - w) * noisy[1].log_prob(leaf)).sum().backward()
    assert leaf.grad is not None
    guided = classifier_free(denoise(*parts[0]), denoise(*parts[1]), w)(X, LEVEL).x0
    torch.testing.assert_close(guided, (X + sigma**2 * leaf.grad) / alpha, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [-1.0, math.inf, math.nan])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(Error, match=r"guidance scale .* 1 \(no guidance\)"):
        classifier_free(Asked("a"), Asked("b"), scale)


def test_an_interval_asks_the_plain_denoiser_once_outside_and_never_inside() -> None:
    levels = Discrete().grid(20)
    s = (levels.sigma / levels.alpha)[:-1]
    low, high = float(s[15]), float(s[5])
    guided, plain = Asked("a"), Asked("b")
    within = interval(guided, plain, low, high)
    for now, _ in pairwise(levels):
        before = (guided.calls, plain.calls)
        out = within(X, now).x0
        inside = low < float(now.sigma / now.alpha) <= high  # Kynkäänniemi et al. 2024, eq. 5: half open
        assert (guided.calls - before[0], plain.calls - before[1]) == ((1, 0) if inside else (0, 1))
        assert torch.equal(out, (guided if inside else plain)(X, now).x0)
    assert interval(guided, plain) is guided


def test_an_interval_knows_each_image_of_a_batch_of_levels_and_pure_noise() -> None:
    guided, plain = Asked("a", frac=0.1), Asked("b", frac=0.2)
    level = Level.of([1.0, 2.0, 3.0], [0.9, 0.5, 0.0], [0.1, 0.5, 1.0])
    out = interval(guided, plain, 0.5, 5.0)(X, level)
    wanted = [plain, guided, plain]
    for i, source in enumerate(wanted):
        assert torch.equal(out.x0[i], source(X, level).x0[i])
        assert out.frac is not None and (out.frac[i] == source.frac).all()
    assert torch.equal(interval(guided, plain, 0.5)(X, level[2]).x0, guided(X, level).x0)


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (1.0, 1.0), (-0.1, 1.0), (math.nan, 1.0)])
def test_empty_intervals_are_refused(low: float, high: float) -> None:
    with pytest.raises(Error, match=r"guidance interval .* low < high"):
        interval(Asked("a"), Asked("b"), low, high)


@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow"])
def test_rescale_is_diffusers_on_the_named_output(prediction: str, phi: float) -> None:
    plain, reference = Asked("a", frac=0.3), Asked("b")
    guided = classifier_free(plain, reference, 6.0)

    def output(source: Denoiser) -> Tensor:
        x0 = source(X, LEVEL).x0
        return target(prediction, x0, to_eps("x0", x0, X, LEVEL), LEVEL)

    theirs = rescale_noise_cfg(output(guided), output(plain), phi)
    ours = rescale(guided, plain, phi, prediction)(X, LEVEL)
    wanted = denoiser(lambda x, t: theirs, prediction)(X, LEVEL).x0
    torch.testing.assert_close(ours.x0, wanted, rtol=1e-9, atol=1e-9)
    assert ours.frac is not None and (ours.frac == 0.3).all()


def test_rescale_by_one_gives_each_image_the_plain_spread() -> None:
    plain = Asked("a")
    ours = rescale(classifier_free(plain, Asked("b"), 9.0), plain, 1.0)(X, LEVEL).x0
    torch.testing.assert_close(ours.flatten(1).std(1), plain(X, LEVEL).x0.flatten(1).std(1))


def test_rescale_by_nothing_is_the_guided_denoiser_and_a_flat_image_stays_as_it_is() -> None:
    guided, plain = Asked("a"), Asked("b")
    assert rescale(guided, plain, 0.0) is guided
    out = rescale(lambda x, level: Prediction(torch.full_like(x, 0.5)), plain, 0.7)(X, LEVEL).x0
    assert (out == 0.5).all()
    with pytest.raises(Error, match=r"rescale 1\.5"):
        rescale(guided, plain, 1.5)
    with pytest.raises(Error, match="rescale of 'edm'"):
        rescale(guided, plain, 0.5, "edm")


def test_wrappers_around_one_shared_denoiser_ask_its_network_once_a_step() -> None:
    conditional, reference = Asked("a"), Asked("b")
    plain = shared(conditional)
    chain = clamp(interval(rescale(classifier_free(plain, reference, 4.0), plain, 0.7), plain, 0.5, 3.0))
    levels = Discrete().grid(10)
    s = levels.sigma[:-1] / levels.alpha[:-1]
    inside = int(((s > 0.5) & (s <= 3.0)).sum())
    alone = clamp(
        interval(rescale(classifier_free(conditional, reference, 4.0), conditional, 0.7), conditional, 0.5, 3.0)
    )
    *_, wanted = ddim(alone, X, levels, None)
    assert (conditional.calls, reference.calls) == (10 + inside, inside)
    conditional.calls = reference.calls = 0
    *_, last = ddim(chain, X, levels, None)
    assert (conditional.calls, reference.calls) == (10, inside) and 0 < inside < 10
    assert torch.equal(last.x, wanted.x)


def test_a_shared_denoiser_is_evaluated_again_for_another_x_level_or_gradient_mode() -> None:
    asked = Asked("a")
    once, x = shared(asked), X.clone()
    once(x, LEVEL), once(x, LEVEL)
    assert asked.calls == 1
    x.add_(1)  # in place: the same tensor, another image
    assert torch.equal(once(x, LEVEL).x0, Asked("a")(x, LEVEL).x0) and asked.calls == 2
    once(x.clone(), LEVEL)
    once(x, Discrete().at_t(400))
    assert asked.calls == 4
    with torch.no_grad():
        once(x, Discrete().at_t(400))
    assert asked.calls == 5


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.5, 100.0])
@pytest.mark.parametrize("size", [0.2, 1.0, 4.0])
def test_dynamic_thresholding_is_diffusers(percentile: float, size: float) -> None:
    scheduler = diffusers.DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=percentile / 100, sample_max_value=1e9
    )  # without that maximum (1) diffusers only clips
    x0 = (noise("t", 3, 3, 7, 9) * size).float()
    ours = dynamic_threshold(lambda x, level: Prediction(x0, x0 * 0 + 0.4), percentile)(x0, LEVEL)
    torch.testing.assert_close(ours.x0, scheduler._threshold_sample(x0), rtol=1e-5, atol=1e-6)
    assert ours.frac is not None and (ours.frac == 0.4).all()


def test_an_image_within_bounds_keeps_its_bits_whatever_stands_beside_it() -> None:
    quiet, loud = noise("q", 1, 3, 5, 5).clamp(-1, 1), noise("l", 1, 3, 5, 5) * 9
    both = torch.cat([quiet, loud])
    out = dynamic_threshold(lambda x, level: Prediction(both))(both, LEVEL).x0
    assert torch.equal(out[:1], quiet)
    assert out[1:].abs().max() == 1


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.5, math.nan])
def test_impossible_percentiles_are_refused(percentile: float) -> None:
    with pytest.raises(Error, match=r"percentile .* 99.5 is common"):
        dynamic_threshold(Asked("a"), percentile)


def lively(**fields: Any) -> UNet:
    config = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(False, True), groups=8, **fields)
    network = UNet(config, 0).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.add_(noise(name, *weight.shape).float() * (0.3 / max(1, weight[0].numel()) ** 0.5))
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "edm"])
def test_the_doubled_batch_is_the_two_calls(prediction: str, dtype: torch.dtype) -> None:
    network = prepare(lively(classes=5, out_channels=6), dtype=dtype)
    sizes: list[int] = []
    network.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    options: dict[str, Any] = {"sigma_data": 0.5, "learned_variance": True}
    x, label, null = noise("x", 4, 3, 16, 16).float(), torch.tensor([0, 3, 1, 4]), torch.full((4,), 5)
    with torch.no_grad():
        for level in (LEVEL, Discrete().at_t([3, 400, 700, 999])):
            two = [denoiser(network, prediction, cond={"label": c}, **options) for c in (label, null)]
            wanted = rescale(classifier_free(two[0], two[1], 3.0), two[0], 0.7)(x, level)
            sizes.clear()
            one = doubled(network, prediction, {"label": label}, {"label": null}, **options)
            ours = rescale(classifier_free(*one, 3.0), one[0], 0.7)(x, level)
            assert sizes == [8]
            # at one time, bf16 rounds an image alike beside any; else 2^-8 times guidance 3, about
            one_level = 0.0 if level.t.ndim == 0 else 2e-2
            rounding = 1e-5 if dtype == torch.float32 else one_level
            scale = float(wanted.x0.abs().max())
            assert float((ours.x0 - wanted.x0).abs().max()) <= rounding * scale
            assert ours.frac is not None and wanted.frac is not None
            assert float((ours.frac - wanted.frac).abs().max()) <= rounding


def test_the_doubled_batch_wants_both_conditions_of_the_same_inputs() -> None:
    with pytest.raises(Error, match=r"\['label'\] and \[\]: both must have the same inputs"):
        doubled(lively(classes=5), "v", {"label": torch.zeros(1).long()}, {})


@pytest.mark.parametrize("schedule", [Discrete(), Discrete(betas="cosine"), Karras(), Flow()])
def test_guidance_towards_itself_changes_no_walk(schedule: Discrete | Karras | Flow) -> None:
    """Where condition and reference agree, every scale is no guidance."""
    denoise = Asked("a")
    levels = schedule.grid(5)
    *_, plain = ddim(denoise, X * float(schedule.prior_std(levels[0])), levels, None)
    *_, guided = ddim(classifier_free(denoise, Asked("a"), 5.0), X * float(schedule.prior_std(levels[0])), levels, None)
    torch.testing.assert_close(guided.x, plain.x, rtol=1e-12, atol=1e-12)
