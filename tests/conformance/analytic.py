"""Models with a closed form, seen through every prediction and guided in every way, and where a walk must arrive.

Data are Gaussian with a variance of its own in each of two dimensions. A state is (B, cells, 1, 2): each channel holds
one prediction under one guidance, so that one walk tests all of them. Guided denoisers are affine in x here, so a
sampler's result is exactly Gaussian, and its mean and variance are read from one walk over unit vectors: a row for the
origin, one for a unit of start, one for each draw of noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kuosan.diffusion.denoiser import Denoiser, Prediction, denoiser
from kuosan.diffusion.guidance import classifier, classifier_free
from kuosan.diffusion.level import Level

GUIDANCES = ("none", "classifier_free", "classifier")
SCALE = 2.0  # of classifier-free guidance; the closed form of `Goal.variance` is this scale's
SIGMA_DATA = 0.5

WANTED = torch.tensor([[0.4, -0.2], [0.16, 0.04]], dtype=torch.float64)  # mean and variance of the data wanted
OTHER = torch.tensor(
    [[-0.3, -0.2], [0.16, 0.30]], dtype=torch.float64
)  # the reference, and the classifier's other class
SHARE = 0.4  # of the class wanted, among the classifier's two


def posterior(data: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x0 | x] for data N(mean, variance): mean + alpha·v·(x - alpha·mean)/(alpha²·v + sigma²)."""
    gain, shift, *_ = constants(data, alpha, sigma)
    return torch.addcmul(shift, gain, x)


def log_density(data: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """log N(x; alpha·mean, alpha²·v + sigma²) without its constant: (B, cells)."""
    _, _, centre, halved, rest = constants(data, alpha, sigma)
    return rest - ((x - centre) ** 2 * halved).sum((-1, -2))


@lru_cache(64)
def constants(data: Tensor, alpha: float, sigma: float) -> tuple[Tensor, ...]:
    """What does not depend on x: `posterior` is shift + gain·x, `log_density` rest - sum (x - centre)²·halved."""
    mean, v = data
    spread = alpha**2 * v + sigma**2
    gain = alpha * v / spread
    return gain, mean - gain * alpha * mean, alpha * mean, 0.5 / spread, -spread.log().sum() / 2


def wanted(x: Tensor, alpha: float, sigma: float) -> Tensor:
    return posterior(WANTED, x, alpha, sigma)


def other(x: Tensor, alpha: float, sigma: float) -> Tensor:
    return posterior(OTHER, x, alpha, sigma)


def odds(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """log p(wanted, x) - log p(other, x): (B, cells)."""
    prior = torch.tensor(SHARE / (1 - SHARE), dtype=torch.float64).log()
    return log_density(WANTED, x, alpha, sigma) - log_density(OTHER, x, alpha, sigma) + prior


def mixed(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The mixture of both classes: each one's posterior mean by its chance."""
    chance = torch.sigmoid(odds(x, alpha, sigma))[..., None, None]
    return chance * wanted(x, alpha, sigma) + (1 - chance) * other(x, alpha, sigma)


def log_chance(x: Tensor, level: Level) -> Tensor:
    """log p(wanted | x), the exact classifier; cells are summed, so that each has its own gradient: (B,)."""
    return torch.nn.functional.logsigmoid(odds(x, float(level.alpha), float(level.sigma))).sum(1)


Model = Callable[[Tensor, float, float], Tensor]  # (x, alpha, sigma) -> x0


def output(prediction: str, x0: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """What a perfect network puts out, from the papers and not from kuosan's table."""
    eps = (x - alpha * x0) / sigma
    match prediction:
        case "eps":
            return eps
        case "x0":
            return x0
        case "v":  # Salimans & Ho 2022, section 4
            return alpha * eps - sigma * x0
        case "flow":  # Liu et al. 2022: the velocity from data to noise
            return eps - x0
        case "edm":  # Karras et al. 2022, table 1: (x0 - c_skip·x)/c_out, alpha times the data's std for theirs
            d2 = (alpha * SIGMA_DATA) ** 2 + sigma**2
            return (x0 - alpha * SIGMA_DATA**2 / d2 * x) * d2**0.5 / (sigma * SIGMA_DATA)
    raise AssertionError(prediction)


def through(model: Model, prediction: str) -> Denoiser:
    """The model as kuosan's denoiser of a network with this prediction; the network checks the clock it is told."""
    here: list[Level] = []

    def network(scaled: Tensor, t: Tensor) -> Tensor:
        (level,) = here
        assert t.dtype == torch.float32 and bool((t == level.t.float()).all())
        alpha, sigma = float(level.alpha), float(level.sigma)
        c_in = ((alpha * SIGMA_DATA) ** 2 + sigma**2) ** -0.5 if prediction == "edm" else 1.0
        x = scaled / c_in
        return output(prediction, model(x, alpha, sigma), x, alpha, sigma)

    plain = denoiser(network, prediction, sigma_data=SIGMA_DATA)

    def denoise(x: Tensor, level: Level) -> Prediction:
        here[:] = [level]
        return plain(x, level)

    return denoise


def side_by_side(parts: list[tuple[int, Denoiser]]) -> Denoiser:
    """Each part sees its own channels, as many as stand before it."""
    widths = [width for width, _ in parts]

    def denoise(x: Tensor, level: Level) -> Prediction:
        shares = x.split(widths, 1)
        return Prediction(torch.cat([part(share, level).x0 for (_, part), share in zip(parts, shares)], 1))

    return denoise


Cell = tuple[str, str]  # (guidance, prediction)


def every_cell(predictions: list[str]) -> list[Cell]:
    """Each prediction under each guidance."""
    return [(guidance, prediction) for guidance in GUIDANCES for prediction in predictions]


def some_cells(predictions: list[str], turn: int) -> list[Cell]:
    """Two predictions unguided, and one under each guidance, taking turns: a sampler sees no more of them than x0."""
    turns = [predictions[(turn + i) % len(predictions)] for i in range(len(predictions))]
    guided = [(guidance, turns[i % len(turns)]) for i, guidance in enumerate(GUIDANCES[1:])]
    return [("none", prediction) for prediction in turns[:2]] + guided


def in_cells(cells: list[Cell]) -> Denoiser:
    """A denoiser with a channel for each cell, those of one guidance side by side."""
    assert cells == sorted(cells, key=lambda cell: GUIDANCES.index(cell[0])), cells
    parts = []
    for guidance in dict.fromkeys(guidance for guidance, _ in cells):
        chosen = [prediction for other, prediction in cells if other == guidance]
        parts.append((len(chosen), guided(guidance, chosen)))
    return side_by_side(parts)


def guided(guidance: str, predictions: list[str]) -> Denoiser:
    """One guidance over a channel for each prediction."""

    def predicted(model: Model) -> Denoiser:
        return side_by_side([(1, through(model, prediction)) for prediction in predictions])

    match guidance:
        case "none":
            return predicted(wanted)
        case "classifier_free":
            return classifier_free(predicted(wanted), predicted(other), SCALE)
        case "classifier":
            return classifier(predicted(mixed), log_chance, 1.0)
    raise AssertionError(guidance)


@dataclass(frozen=True)
class Goal:
    """Where a guided walk must arrive: mean and variance of y = x/alpha at s = sigma/alpha, from those at s_start.

    The probability flow is dy/ds = g·(y - mean), g = s·sum_j w_j/(v_j + s²), over the Gaussians combined with weights
    w_j of sum 1; with the SDE's noise the drift doubles and 2s·ds of variance is added.
    """

    mean: Tensor
    terms: tuple[tuple[float, Tensor], ...]  # (w_j, v_j)

    def prior(self, s: float) -> Tensor:
        """The variance that walks begin with here: the data wanted, with noise."""
        return WANTED[1] + s * s

    def grown(self, s: float, s_from: float) -> Tensor:
        """The flow's factor of y - mean: prod_j ((v_j + s²)/(v_j + s_from²))^(w_j/2)."""
        factor = torch.ones(2, dtype=torch.float64)
        for w, v in self.terms:
            factor = factor * ((v + s * s) / (v + s_from * s_from)) ** (w / 2)
        return factor

    def flow(self, variance: Tensor, s: float, s_from: float) -> Tensor:
        """The variance after the probability flow."""
        return variance * self.grown(s, s_from) ** 2

    def jump(self, variance: Tensor, s: float) -> Tensor:
        """The variance of the data predicted from y at s: x0 - mean = (1 - s·g)·(y - mean)."""
        gain = 1 - sum((w * s * s / (v + s * s) for w, v in self.terms), torch.zeros(2, dtype=torch.float64))
        return variance * gain**2

    def reverse(self, variance: Tensor, s: float, s_from: float) -> Tensor:
        """The variance after the reverse SDE: the start's share, and the integral of 2u·(s <- u)⁴ du."""
        if len(self.terms) == 1:
            p, p_from = self.terms[0][1] + s * s, self.terms[0][1] + s_from * s_from
            added = p * p * (1 / p - 1 / p_from)
        else:  # weights 2 and -1: the integrand is (q + v_r)²/(q + v_c)⁴ in q = u², with q + v_r = p + d
            (_, v), (_, v_ref) = self.terms
            d, p, p_from = v_ref - v, v + s * s, v + s_from * s_from

            def integral(p: Tensor) -> Tensor:
                return -1 / p - d / p**2 - d**2 / (3 * p**3)

            added = (integral(p_from) - integral(p)) * p**4 / (v_ref + s * s) ** 2
        return variance * self.grown(s, s_from) ** 4 + added


GOALS = {
    "none": Goal(WANTED[0], ((1.0, WANTED[1]),)),
    "classifier_free": Goal(
        OTHER[0] + SCALE * (WANTED[0] - OTHER[0]), ((SCALE, WANTED[1]), (1 - SCALE, OTHER[1]))
    ),  # each dimension has either the same mean or the same variance in both, so the guided mean stands still
    "classifier": Goal(WANTED[0], ((1.0, WANTED[1]),)),
}
