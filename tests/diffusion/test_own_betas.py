"""Schedules of one's own betas and alphas_cumprod: diffusers' tables, closed forms, and what is none."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import kuosan
from kuosan.diffusion import registry
from kuosan.diffusion.denoiser import denoiser
from kuosan.diffusion.loss import discrete_chain
from kuosan.diffusion.samplers import SAMPLERS
from kuosan.diffusion.schedule import Discrete, Schedule
from kuosan.errors import Error
from kuosan.models.model import ModelConfig

BETAS = np.linspace(1e-4, 0.02, 1000)
OWN = 0.001 + 0.01 * np.sin(np.linspace(0.1, 3, 200)) ** 2  # neither rises nor falls all the way
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(2 * x + t.reshape(-1, 1, 1, 1) / 300)


@pytest.mark.parametrize(
    "given",
    [BETAS, BETAS.tolist(), torch.from_numpy(BETAS), torch.from_numpy(BETAS).requires_grad_()],
    ids=["array", "list", "tensor", "parameter"],
)
def test_the_betas_of_a_known_schedule_give_it(given: Any) -> None:
    own, known = kuosan.Discrete.from_betas(given), Discrete()
    np.testing.assert_array_equal(own.alpha_bar, known.alpha_bar)
    for mine, theirs in ((own.grid(10), known.grid(10)), (own.grid(7, "karras"), known.grid(7, "karras"))):
        for name in ("t", "alpha", "sigma"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), rtol=1e-12, atol=1e-12)


def test_the_levels_are_the_product_in_closed_form() -> None:
    own = Discrete.from_betas([0.5, 0.25, 0.2])
    np.testing.assert_allclose(own.alpha_bar, [0.5, 0.375, 0.3], rtol=1e-15)
    level = own.at_t([0, 2, -1])
    np.testing.assert_allclose(level.alpha.numpy() ** 2, [0.5, 0.3, 1.0], rtol=1e-15)
    np.testing.assert_allclose(level.sigma.numpy() ** 2, [0.5, 0.7, 0.0], atol=1e-15)
    assert own.T == 3 and isinstance(own, Schedule) and isinstance(own, Discrete)
    assert not own.alpha_bar.flags.writeable


def test_a_walk_of_trained_betas_is_diffusers() -> None:
    theirs = diffusers.DDIMScheduler(
        num_train_timesteps=200, trained_betas=OWN.tolist(), clip_sample=False, timestep_spacing="trailing"
    )
    own = Discrete.from_betas(OWN)
    np.testing.assert_allclose(own.alpha_bar, theirs.alphas_cumprod.numpy(), rtol=2e-5)
    theirs.set_timesteps(20)
    x = X
    for t in theirs.timesteps:
        x = theirs.step(network(x, t[None]), t, x).prev_sample
    *_, last = SAMPLERS["ddim"](denoiser(network, "epsilon"), X, own.grid(20))
    torch.testing.assert_close(last.x, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zero", [False, True])
def test_the_alphas_cumprod_of_diffusers_schedulers_are_taken(zero: bool) -> None:
    theirs = diffusers.DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=zero)
    own = Discrete.from_alphas_cumprod(theirs.alphas_cumprod)
    np.testing.assert_array_equal(own.alpha_bar, theirs.alphas_cumprod.double().numpy())
    assert own.zero_terminal_snr is (float(theirs.alphas_cumprod[-1]) == 0)


def test_a_last_beta_of_1_is_pure_noise() -> None:
    own = Discrete.from_betas([0.1, 0.2, 1.0])
    assert own.zero_terminal_snr and own.alpha_bar[-1] == 0
    first = own.grid(3)[0]
    assert float(first.alpha) == 0 and float(first.sigma) == 1
    with pytest.raises(Error, match="zero_terminal_snr"):
        registry.check(own, "eps")
    with pytest.raises(Error, match="zero_terminal_snr"):
        own.grid(3, "karras")
    *_, last = SAMPLERS["ddim"](denoiser(network, "v"), X, own.grid(3))
    assert last.x.isfinite().all()


def test_levels_in_between_and_the_bound_know_the_table() -> None:
    own = Discrete.from_betas(OWN)
    log_snr = own.log_snr
    torch.testing.assert_close(own.at_log_snr(log_snr).t, torch.arange(200, dtype=torch.float64), rtol=0, atol=1e-9)
    assert len(discrete_chain(own)) == 200
    assert own == Discrete.from_betas(OWN) and hash(own) == hash(Discrete.from_betas(OWN))
    assert own != Discrete.from_betas(OWN / 2) and own != Discrete(T=200)
    assert "T=200" in repr(own) and len(repr(own)) < 120


def test_a_table_given_is_copied() -> None:
    given = OWN.copy()
    own = Discrete.from_alphas_cumprod(np.cumprod(1 - given))
    before = own.alpha_bar.copy()
    given[:] = 0.5
    np.testing.assert_array_equal(own.alpha_bar, before)


NAN = [0.1, float("nan"), 0.2]
WRONG: list[tuple[str, Any, str]] = [
    ("betas", [], "betas of shape (0,): need one number a step"),
    ("betas", 0.1, "betas of shape ()"),
    ("betas", [[0.1, 0.2]], "betas of shape (1, 2)"),
    ("betas", "linear", "need an array or tensor of T numbers"),
    ("betas", None, "betas"),
    ("betas", NAN, "betas[1] = nan: need finite numbers"),
    ("betas", torch.tensor(NAN), "betas[1] = nan"),
    ("betas", [0.1, float("inf")], "betas[1] = inf"),
    ("betas", [0.1, 0.0, 0.1], "betas[1] = 0: need each above 0, below 1"),
    ("betas", [0.1, -0.2], "betas[1] = -0.2"),
    ("betas", [0.1, 1.2], "betas[1] = 1.2"),
    ("betas", [0.1, 1.0, 0.2], "betas[1] = 1: need 1 only at the last step"),
    ("betas", [1.0], "of one step is 0"),
    ("betas", [1e-30, 0.1], "need each above 0, below 1; the last may be 0"),
    ("betas", [1.0, *np.linspace(0.99, 0.01, 9)], "look like alphas_cumprod: use from_alphas_cumprod"),
    ("betas", np.zeros(100_001), "100,001 steps: allowed are at most 100,000"),
    ("alphas_cumprod", [0.9, 0.9], "alphas_cumprod[1] = 0.9 after 0.9: need a table that falls; each step adds noise"),
    ("alphas_cumprod", [0.1, 0.5, 0.9], "turn the table round: t = 0 is the least noise"),
    ("alphas_cumprod", [0.9, 0.5, 0.6], "alphas_cumprod[2] = 0.6 after 0.5"),
    ("alphas_cumprod", [1.0, 0.5], "alphas_cumprod[0] = 1: need each above 0, below 1"),
    ("alphas_cumprod", [0.9, -0.1], "alphas_cumprod[1] = -0.1"),
    ("alphas_cumprod", [0.9, 0.0, 0.0], "alphas_cumprod[1] = 0: need 0 only at the last step"),
    ("alphas_cumprod", [0.0], "of one step is 0"),
    ("alphas_cumprod", [0.9, float("nan")], "alphas_cumprod[1] = nan"),
]


@pytest.mark.parametrize("kind, given, words", WRONG, ids=[words for _, _, words in WRONG])
def test_what_makes_no_schedule_is_refused_by_its_place(kind: str, given: Any, words: str) -> None:
    with pytest.raises(Error) as caught:
        getattr(Discrete, f"from_{kind}")(given)
    assert words in str(caught.value)


def test_a_run_s_configuration_refuses_a_table_that_it_would_not_hold() -> None:
    with pytest.raises(Error, match=r"a table of your own \(200 steps\)"):
        ModelConfig(schedule=Discrete.from_betas(OWN))
