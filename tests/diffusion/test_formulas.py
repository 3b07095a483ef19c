"""ddim, ddpm and heun read like their papers: they give what the arithmetic gave that they had before, in few lines and
with at most one temporary more.

Before, each step was one or two blends a·x + b·x0 whose float64 coefficients held the whole formula; that arithmetic is
kept here as the reference.
"""

from __future__ import annotations

import ast
import inspect
import math
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kuosan.diffusion.denoiser import Denoiser, Prediction
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import Noise, Step, ddim, ddpm, heun, pair
from kuosan.diffusion.samplers.step import blend
from kuosan.diffusion.schedule import Discrete, Flow, Karras

SHAPE = (3, 2, 8, 8)
GRIDS = {
    "linear": Discrete().grid(25),
    "every level": Discrete(T=40, beta_start=1e-3, beta_end=0.3).grid(40),
    "cosine": Discrete(betas="cosine").grid(20, "karras"),
    "leading": Discrete(betas="scaled_linear", beta_start=0.00085, beta_end=0.012).grid(9, "leading", "first", 1),
    "zero terminal SNR": Discrete(zero_terminal_snr=True).grid(12),
    "edm": Karras().grid(18),
    "flow": Flow(shift=3).grid(14),
}


def blended_ddim(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, eta: float = 0.0) -> Iterator[Step]:
    for i, (now, to) in enumerate(pairwise(levels)):
        p = pair(now, to)
        x0 = denoise(x, now).x0
        if not p.still:
            std = eta * math.sqrt(p.posterior)
            kept = math.sqrt(max(p.sigma_to**2 - std**2, 0.0)) / p.sigma
            x = blend(x, kept, x0, p.alpha_to - kept * p.alpha)
            if std > 0:
                z = noise(i, now, to)
                x = x.add_(z.to(x.dtype), alpha=std)
        yield Step(x, x0)


def blended_ddpm(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, variance: str = "beta") -> Iterator[Step]:
    for i, (now, to) in enumerate(pairwise(levels)):
        p = pair(now, to)
        z = noise(i, now, to) if not p.still and p.posterior > 0 else None
        x0, frac = denoise(x, now)
        if not p.still:
            mean = blend(x, p.alpha / p.alpha_to * p.sigma_to**2 / p.sigma**2, x0, p.alpha_to * p.s2 / p.sigma**2)
            if z is None:
                x = mean
            elif variance != "learned":
                x = mean.add_(z.to(mean.dtype), alpha=math.sqrt(p.s2 if variance == "beta" else p.posterior))
            else:
                assert frac is not None
                low, high = math.log(p.posterior), math.log(p.s2)
                x = mean.addcmul_(((high - low) / 2 * frac + low / 2).exp_(), z.to(mean.dtype))
        yield Step(x, x0)


def blended_heun(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise) -> Iterator[Step]:
    for now, to in pairwise(levels):
        p = pair(now, to)
        x0 = denoise(x, now).x0
        if not p.still:
            euler_x = blend(x, p.ratio, x0, p.alpha_to - p.ratio * p.alpha)
            if p.steep:
                x = euler_x
            else:
                x0_to = denoise(euler_x, to).x0
                s, s_to = p.sigma / p.alpha, p.sigma_to / p.alpha_to
                half = p.alpha_to * (s_to - s) / 2
                x_next = blend(x, p.alpha_to / p.alpha + half / (s * p.alpha), x0, -half / s)
                x = x_next.add_(euler_x, alpha=half / p.sigma_to).add_(x0_to.to(x.dtype), alpha=-half / s_to)
        yield Step(x, x0)


def cheap(x: Tensor, level: Level) -> Prediction:
    """A denoiser that keeps no temporary of its own beyond what it answers."""
    return Prediction(torch.tanh(x), torch.sigmoid(x))


def steady(x: Tensor, level: Level) -> Prediction:
    """The same answer wherever it is asked: what a step makes of one prediction, without a network's own curvature."""
    g = torch.Generator().manual_seed(int(1e6 * float(level.sigma)))
    return Prediction(torch.randn(x.shape, generator=g, dtype=torch.float64).tanh().to(x.dtype), torch.sigmoid(x))


def draw(i: int, now: Level, to: Level) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(i), dtype=torch.float64)


def start(levels: Level) -> Tensor:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return x * (levels.alpha[0] ** 2 + levels.sigma[0] ** 2).sqrt()


Walk = Callable[..., Iterator[Step]]
CASES: dict[str, tuple[Walk, Walk, dict[str, Any]]] = {
    "ddim": (ddim, blended_ddim, {}),
    "ddim, eta 0.5": (ddim, blended_ddim, {"eta": 0.5}),
    "ddim, eta 1": (ddim, blended_ddim, {"eta": 1.0}),
    "ddpm, beta": (ddpm, blended_ddpm, {"variance": "beta"}),
    "ddpm, posterior": (ddpm, blended_ddpm, {"variance": "posterior"}),
    "ddpm, learned": (ddpm, blended_ddpm, {"variance": "learned"}),
    "heun": (heun, blended_heun, {}),
}


def distance(a: Tensor, b: Tensor, x: Tensor) -> float:
    """The greatest difference, by the size of what the step was made of."""
    return float((a - b).abs().max() / torch.maximum(b.abs().max(), x.abs().max()))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("case", CASES)
def test_each_step_is_the_blended_one_to_1e15(case: str, grid: str) -> None:
    walk, before, options = CASES[case]
    levels, x = GRIDS[grid], start(GRIDS[grid])
    for i in range(len(levels) - 1):
        asked = (steady, x, levels[i : i + 2], lambda _, now, to, i=i: draw(i, now, to))
        new, old = next(walk(*asked, **options)), next(before(*asked, **options))
        assert torch.equal(new.x0, old.x0)
        assert distance(new.x, old.x, x) <= 1e-15, (i, distance(new.x, old.x, x))
        x = old.x


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("case", CASES)
def test_a_whole_float32_walk_differs_by_rounding_alone(case: str, grid: str) -> None:
    """Against the float64 walk, the new float32 one is as near as the blended float32 one was."""
    walk, before, options = CASES[case]
    levels, x = GRIDS[grid], start(GRIDS[grid])
    *_, exact = before(cheap, x, levels, draw, **options)
    *_, new = walk(cheap, x.float(), levels, draw, **options)
    *_, old = before(cheap, x.float(), levels, draw, **options)
    size = float(exact.x.abs().max())
    error, was = (float((each.x.double() - exact.x).abs().max()) / size for each in (new, old))
    assert error <= 3 * was + 3e-7, (error, was)


class Alive(TorchDispatchMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if size >= 1024 and key not in self.seen:
                    self.seen.add(key)
                    self.now += size
                    weakref.finalize(storage, self.gone, key, size)
        self.most = max(self.most, self.now)
        return out

    def gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def peak(walk: Walk, options: dict[str, Any]) -> tuple[int, int]:
    """The most bytes alive in a walk, in states of it, beside the state it starts from."""
    levels = GRIDS["linear"]
    x = torch.ones(1, 1, 64, 64)
    noise = torch.ones(1, 1, 64, 64)
    with Alive() as alive:
        for _ in walk(cheap, x, levels, lambda *_: noise.clone(), **options):
            pass
    return alive.most, x.nbytes


@pytest.mark.parametrize("case", CASES)
def test_a_step_keeps_at_most_one_temporary_more_than_the_blended_one(case: str) -> None:
    walk, before, options = CASES[case]
    (new, unit), (old, _) = peak(walk, options), peak(before, options)
    assert old >= 2 * unit
    assert new <= old + unit, (new / unit, old / unit)


@pytest.mark.parametrize("function", [ddim, ddpm, heun], ids=lambda function: function.__name__)
def test_each_fits_in_twelve_lines(function: Callable[..., object]) -> None:
    body = ast.parse(inspect.getsource(inspect.unwrap(function))).body[0]
    assert isinstance(body, ast.FunctionDef) and ast.get_docstring(body)
    last = body.body[-1].end_lineno
    assert last is not None and last - body.body[1].lineno + 1 <= 12
