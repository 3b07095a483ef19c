"""The likelihood report: closed forms through a whole model, honest errors, conditions, refusals, words, the curve."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor, nn

import oracle
from kuosan import Error
from kuosan.diffusion.likelihood import traces
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.evaluate.likelihood import Likelihood, chain_of, draw, eight_bit, likelihood
from kuosan.models.latents import prepare
from kuosan.models.model import Model, ModelConfig, OwnNetwork
from kuosan.networks.config import UNetConfig
from kuosan.networks.unet import UNet
from kuosan.tasks.task import Generation

STD = 0.2
SMALL = Discrete(T=60, beta_start=0.0017, beta_end=0.25)


class Exact(nn.Module):
    """What a network trained on independent N(0, STD²) pixels would put out; `label` moves the mean."""

    def __init__(self, prediction: str, schedule: Any, learned: bool = False) -> None:
        super().__init__()
        self.prediction, self.schedule, self.learned = prediction, schedule, learned
        self.told: list[list[int]] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        if label is not None:
            self.told.append(label.tolist())
        denoise = oracle.gaussian(torch.zeros(x.shape[1:], dtype=torch.float64), torch.tensor(STD**2))
        out = oracle.network(denoise, self.prediction, self.schedule)(x.double(), t).float()
        return torch.cat([out, torch.full_like(out, 0.4)], 1) if self.learned else out


def model(schedule: Any = SMALL, prediction: str = "v", **more: Any) -> Model:
    config = ModelConfig((1, 3, 3), OwnNetwork(name="Exact"), schedule, prediction, **more)
    return Model(config, Exact(prediction, schedule, config.learned_variance))


def pixels(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of Gaussian pixels (n, 1, 3, 3), and each image's own surprise in bits a pixel."""
    draws = np.random.Generator(np.random.Philox(3)).normal(0, STD, (n, 1, 3, 3))
    grey = np.clip(np.rint((draws + 1) * 127.5), 0, 255).astype(np.uint8)
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 127.5 - 1, [np.inf]])
    chances = np.diff(stats.norm.cdf(edges, 0, STD))
    return grey, -np.log2(chances)[grey].mean((1, 2, 3))


@pytest.mark.parametrize(
    "schedule, prediction", [(Discrete(), "v"), (Karras(), "edm"), (Flow(), "flow")], ids=["discrete", "karras", "flow"]
)
def test_both_estimates_agree_with_the_pixels_own_distribution(schedule: Any, prediction: str) -> None:
    grey, surprise = pixels(60)
    made = likelihood(model(schedule, prediction), grey, evaluations=25, variance="beta", clip=False, ode_steps=25)
    assert made.ode is not None and made.gap is not None
    assert made.ode.total.value == pytest.approx(surprise.mean(), abs=0.03), "paired: the same images"
    error = made.bound.total.error
    assert error < 0.2 and abs(made.bound.total.value - surprise.mean() - 0.1) < 0.12 + 3 * error
    assert made.gap.value == pytest.approx(made.bound.total.value - made.ode.total.value)
    assert made.ode.solver_error < 0.02
    sums = made.bound.prior.value + made.bound.steps.value + made.bound.decoder.value
    assert sums == pytest.approx(made.bound.total.value)


def test_the_errors_are_those_of_other_images_rows_and_noise() -> None:
    """Twelve disjoint sets: their spread is what one set said of itself."""
    grey, _ = pixels(480)
    sets = [
        likelihood(model(), grey[40 * k : 40 * k + 40], ids=range(40 * k, 40 * k + 40), evaluations=8, ode_steps=4)
        for k in range(12)
    ]
    for name in ("bound", "ode"):
        totals = [getattr(made, name).total for made in sets]
        spread = np.std([each.value for each in totals], ddof=1)
        told = np.sqrt(np.mean([each.error**2 for each in totals]))
        assert 0.5 < spread / told < 1.7, name


def test_every_step_of_the_chain_and_drawn_ones_agree() -> None:
    grey, _ = pixels(80)
    whole = likelihood(model(), grey, evaluations=None, ode_images=0)
    drawn = likelihood(model(), grey, evaluations=12, ode_images=0, seed=1)
    assert whole.ode is None and whole.gap is None
    assert whole.bound.evaluations == whole.bound.chain == 60 and drawn.bound.evaluations == 12
    off = abs(whole.bound.total.value - drawn.bound.total.value)
    assert off < 4 * math.hypot(whole.bound.total.error, drawn.bound.total.error)
    for bound in (whole.bound, drawn.bound):
        assert sum(bound.size) == 60 and len(bound.t) == len(bound.term) == len(bound.error) == len(bound.size)
        curve = sum(term * size for term, size in zip(bound.term, bound.size))
        assert curve + bound.prior.value == pytest.approx(bound.total.value)
    assert whole.bound.t == tuple(float(t) for t in range(60))


def test_the_same_call_gives_the_same_numbers_at_any_batch_size() -> None:
    grey, _ = pixels(6)
    one, other = (likelihood(model(), grey, evaluations=5, ode_steps=3, probes=2, batch=size) for size in (6, 2))
    assert one.bound.total.value == pytest.approx(other.bound.total.value, rel=1e-5)
    assert one.ode is not None and other.ode is not None
    assert one.ode.total.value == pytest.approx(other.ode.total.value, rel=1e-5)
    assert one.ode.probe_error is not None and one.ode.probe_error >= 0


def test_a_learned_variance_is_used_where_there_is_one() -> None:
    grey, _ = pixels(4)
    learned = model(learned_variance=True)
    assert likelihood(learned, grey, evaluations=3, ode_images=0).bound.variance == "learned"
    assert likelihood(learned, grey, evaluations=3, ode_images=0, variance="fixed_large").bound.variance == "beta"
    with pytest.raises(Error, match="predicts no variance"):
        likelihood(model(), grey, evaluations=3, variance="learned")


def test_a_conditional_model_is_told_each_image_s_class() -> None:
    grey, _ = pixels(4)
    task = Generation(labels=True, drop=0.1, class_names=("a", "b"))
    told = model(task=task)
    likelihood(told, grey, labels=[1, 0, -1, 1], evaluations=2, ode_steps=1, batch=3)
    assert isinstance(told.network, Exact)
    assert [1, 0, 2] in told.network.told and [1] in told.network.told
    none = model(task=task)
    likelihood(none, grey, evaluations=2, ode_images=0)
    assert isinstance(none.network, Exact) and none.network.told[0] == [2, 2, 2, 2]
    with pytest.raises(Error, match="drop 0"):
        likelihood(model(task=Generation(labels=True, drop=0.0, class_names=("a",))), grey)
    with pytest.raises(Error, match="without classes"):
        likelihood(model(), grey, labels=[0, 0, 0, 0])
    with pytest.raises(Error, match="below 2"):
        likelihood(told, grey, labels=[0, 0, 0, 2])


def test_images_that_are_not_8_bit_or_too_few_are_refused() -> None:
    grey, _ = pixels(4)
    as_floats = torch.from_numpy(grey / np.float32(127.5) - 1)
    assert torch.equal(eight_bit(grey, (1, 3, 3)), eight_bit(as_floats, (1, 3, 3)))
    with pytest.raises(Error, match="not 8-bit"):
        likelihood(model(), as_floats + 0.001)
    with pytest.raises(Error, match="not 8-bit"):
        likelihood(model(), grey.astype(np.float32))
    with pytest.raises(Error, match=r"this model's are \(N, 1, 3, 3\)"):
        likelihood(model(), np.moveaxis(grey, 1, 3))
    for options in (
        {"images": grey[:1]},
        {"images": grey, "ids": [1, 1, 2, 3]},
        {"images": grey, "ode_images": 1},
    ):
        with pytest.raises(Error, match="at least 2"):
            likelihood(model(), **options)


def test_chains_of_schedules_without_steps_are_usual_grids() -> None:
    assert len(chain_of(SMALL)) == 60 and chain_of(SMALL).published
    for schedule in (Karras(), Flow(shift=3.0)):
        made = chain_of(schedule)
        assert len(made) == 1000 + isinstance(schedule, Flow) and not made.published
        assert float(made.now.log_snr[:-1].diff().diff().abs()[:-1].max()) < 1e-9, "even in log SNR"
        assert float(made.prior_std) == pytest.approx(80.0 if isinstance(schedule, Karras) else 1.0)


def test_the_u_net_s_trace_is_its_slopes_sum() -> None:
    """As it is prepared for use, without gradients of its weights: against differences of its answers."""
    config = UNetConfig(
        in_channels=1,
        out_channels=1,
        channels=8,
        multipliers=(1,),
        attention=(True,),
        groups=4,
        head_channels=8,
        blocks=1,
    )
    with torch.no_grad():
        net = UNet(config, seed=3)
        for p in net.parameters():  # the last layer begins at zero
            p.add_(0.05 * torch.sin(torch.arange(p.numel()).reshape(p.shape) * 1.7))
        made = Model(ModelConfig((1, 4, 4), config, SMALL, "x0"), prepare(net))
        level, x = SMALL.at_t(20), 0.5 * torch.sin(torch.arange(16.0)).reshape(1, 1, 4, 4)
        h, known = 1e-2, 0.0
        for d in range(16):
            step = h * torch.eye(16)[d].reshape(1, 1, 4, 4)
            ends = [made.denoiser()(x + sign * step, level).x0.flatten()[d] for sign in (1, -1)]
            known += float(ends[0] - ends[1]) / (2 * h)
    with torch.enable_grad():
        at = x.clone().requires_grad_()
        ours = float(traces(made.denoiser()(at, level).x0, at, None))
    assert abs(known) > 0.01 and ours == pytest.approx(known, rel=2e-2)


@pytest.fixture(scope="module")
def made() -> Likelihood:
    return likelihood(model(), pixels(6)[0], evaluations=6, ode_steps=4, ode_images=4)


def test_the_words_say_what_was_measured_and_why_they_differ(made: Likelihood) -> None:
    assert made.ode is not None
    bound, ode, gap = made.sentences()
    assert f"{made.bound.total.value:.3f} ±" in bound and "6 images" in bound and "posterior" in bound
    assert f"{made.ode.total.value:.3f} ±" in ode and "4 images" in ode and "rademacher" in ode
    for words in ("two models of the data", "60 random steps", "uniform noise of one grey level", "upper bounds"):
        assert words in gap
    assert gap.count(". ") == 1 and gap.endswith("ODEs with ODEs."), "one sentence behind the difference"
    alone = replace(made, ode=None, gap=None).sentences()
    assert alone[0] == bound and alone[1].startswith("Bits/dim are what a lossless code by this model needs")
    assert json.loads(json.dumps(made.plain()))["bound"]["n"] == 6


def test_the_curve_is_drawn_of_one_or_several(made: Likelihood, tmp_path: Path) -> None:
    draw(tmp_path / "one.png", {"simple": made.bound})
    draw(tmp_path / "two.png", {"simple": made.bound, "bound": made.bound})
    one, two = (np.array(Image.open(tmp_path / name).convert("RGB")) for name in ("one.png", "two.png"))
    assert one.shape == two.shape and (one != two).any() and one.std() > 5
