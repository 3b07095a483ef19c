"""Guidance: denoiser in, denoiser out. Each wrapper is written once and works with every sampler.

    classifier-free: x0 = ref + scale·(x0 - ref)          classifier: x0 + scale·sigma²/alpha·grad_x log p(y | x)

Every wrapper has a setting that is no guidance at all, and there it returns the denoiser it was given: the same bits,
and no network call more. `shared` lets several wrappers ask one denoiser and its network be called once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from kuosan.diffusion import registry
from kuosan.diffusion.denoiser import Denoiser, Prediction, denoiser, target, timestep, to_eps, to_x0
from kuosan.diffusion.level import Level, mix, over
from kuosan.diffusion.network import Network, call
from kuosan.diffusion.schedule import Schedule
from kuosan.errors import Error

LogProb = Callable[[Tensor, Level], Tensor]  # log p(y | x_t) of each image: (B, ...), level -> (B,)
Answer = TypeVar("Answer")


def classifier_free(denoise: Denoiser, reference: Denoiser, scale: float) -> Denoiser:
    """Away from a reference: x0 = ref + scale·(x0 - ref) (Ho & Salimans 2022, with scale = 1 + their w).

    The reference is the same network with the null label, with another class (a negative condition), or a weaker
    network (autoguidance, Karras et al. 2024, eq. 3). Scale 1 is `denoise` itself, scale 0 `reference` itself; between,
    the learned variance is `denoise`'s.
    """
    if not 0 <= scale < math.inf:
        raise Error(f"guidance scale {scale}: need 0 (the reference alone), 1 (no guidance) or more, as in 3.")
    if scale in (0, 1):
        return denoise if scale == 1 else reference

    def guided(x: Tensor, level: Level) -> Prediction:
        prediction = denoise(x, level)
        return prediction._replace(x0=torch.lerp(reference(x, level).x0, prediction.x0, scale))

    return guided


def interval(guided: Denoiser, plain: Denoiser, low: float = 0.0, high: float = math.inf) -> Denoiser:
    """Guidance only where low < sigma/alpha <= high, else the plain denoiser (Kynkäänniemi et al. 2024, eq. 5).

    0 to infinity is `guided` itself.
    """
    if not 0 <= low < high:
        raise Error(f"guidance interval {low} to {high} in sigma/alpha: need 0 <= low < high, as in 0.3 and 5.")
    if low == 0 and high == math.inf:
        return guided

    def within(x: Tensor, level: Level) -> Prediction:
        s = level.sigma / level.alpha  # infinite at alpha = 0
        inside = (s > low) & (s <= high)
        if inside.all() or not inside.any():
            return (guided if inside.all() else plain)(x, level)
        return _choose(inside, guided(x, level), plain(x, level))

    return within


def rescale(guided: Denoiser, plain: Denoiser, phi: float, prediction: str = "x0") -> Denoiser:
    """Give the guided prediction the spread of the plain one (Lin et al. 2023, eq. 15-16); phi 0 is `guided` itself.

    out' = phi·out·std(plain)/std(out) + (1 - phi)·out, each image's std over channels and pixels. The quantity is x0
    by default: its spread is the contrast that guidance overdoes, and the result does not depend on what the network
    predicts. The paper rescales the network's output: name it (`prediction`) for the published form, without edm.
    Give both denoisers one `shared` plain denoiser, or its network is called twice.
    """
    if not 0 <= phi <= 1:
        raise Error(f"guidance rescale {phi}: need 0 (none) to 1 (the plain prediction's spread); 0.7 is the paper's.")
    if prediction not in ("x0", "eps", "v", "flow"):
        raise Error(f"rescale of {prediction!r}: allowed are x0, eps, v and flow; x0 suits every network.")
    if phi == 0:
        return guided

    def rescaled(x: Tensor, level: Level) -> Prediction:
        strong = guided(x, level)
        out = _output(prediction, strong.x0, x, level)
        wanted = _spread(_output(prediction, plain(x, level).x0, x, level))
        factor = 1 + phi * (wanted / _spread(out) - 1).nan_to_num(0.0, 0.0, 0.0)  # a flat image stays flat
        return strong._replace(x0=to_x0(prediction, out * factor, x, level))

    return rescaled


def clamp(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Keep the predicted data within [low, high]; samplers recompute eps from it (diffusers' DDIM does so with
    `use_clipped_model_output=True`). The learned variance passes unchanged.
    """
    if not low < high:
        raise Error(f"clamp from {low} to {high}: low must be below high, as in -1 and 1.")

    def clamped(x: Tensor, level: Level) -> Prediction:
        prediction = denoise(x, level)
        return prediction._replace(x0=prediction.x0.clamp(low, high))

    return clamped


def dynamic_threshold(denoise: Denoiser, percentile: float = 99.5) -> Denoiser:
    """Imagen's dynamic thresholding (Saharia et al. 2022, appendix B): clamp to ±s and divide by s, with s the
    percentile of an image's |x0|, at least 1. For images in [-1, 1]; one already within keeps its bits.
    """
    if not 0 < percentile <= 100:
        raise Error(f"dynamic threshold at percentile {percentile}: need above 0, at most 100; 99.5 is common.")

    def thresholded(x: Tensor, level: Level) -> Prediction:
        prediction = denoise(x, level)
        s = _percentile(prediction.x0.abs().flatten(1), percentile).clamp(min=1).reshape(-1, *[1] * (x.ndim - 1))
        return prediction._replace(x0=prediction.x0.clamp(-s, s) / s)

    return thresholded


def classifier(denoise: Denoiser, log_prob: LogProb, scale: float) -> Denoiser:
    """Along a classifier's gradient: x0 + scale·sigma²/alpha·grad_x log p(y | x) (Dhariwal & Nichol 2021, algorithm 2).

    For the exact p(y | x_t), scale 1 is exactly the conditional denoiser (Bayes). Scale 0 is `denoise` itself. Where
    alpha = 0 the image says nothing and neither does the classifier: the prediction stays as it is, nobody is asked.
    Algorithm 1's shift of DDPM's mean is docs/mathematics.md's "Guidance". Works under no_grad.
    """
    if not 0 <= scale < math.inf:
        raise Error(f"classifier scale {scale}: need 0 (no guidance) or more, as in 1 or 10.")
    if scale == 0:
        return denoise

    def guided(x: Tensor, level: Level) -> Prediction:
        prediction = denoise(x, level)
        if not level.alpha.any():
            return prediction
        gain = torch.where(level.alpha > 0, scale * level.sigma**2 / level.alpha, 0.0)
        return prediction._replace(x0=mix(prediction.x0, torch.ones_like(gain), gradient(log_prob, x, level), gain))

    return guided


def gradient(log_prob: LogProb, x: Tensor, level: Level) -> Tensor:
    """grad_x log p(y | x), each image its own: like x. Enables gradients itself.

    Raises: Error for a function that gives anything but one number an image, or none that depends on x.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = log_prob(leaf, level)
        if value.shape != x.shape[:1]:
            raise Error(f"log_prob gave {tuple(value.shape)}; it must give one number an image, ({len(x)},).")
        if not value.requires_grad:
            raise Error("log_prob does not depend on x (no_grad or detach inside?): there is no gradient to follow.")
        return torch.autograd.grad(value.sum(), leaf)[0]


def log_prob(
    network: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, label: Tensor, sampled: Schedule | None = None
) -> LogProb:
    """log p(label | x_t) by a classifier `network(x, t)` -> logits (B, K) trained on `schedule`.

    x (B, ...), t (B,) float32 as a denoising network gets it, label (B,) int64, the class of each image.
    At the levels of another schedule (`sampled`) it is asked at its own level of equal log SNR, x scaled to that: the
    same image and noise in the same proportion.
    Raises: Error for labels that are no class numbers; when asked, for a level that the classifier was not trained at,
    and for logits or labels that do not fit the images.
    """
    if label.ndim != 1 or label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise Error(f"label of shape {tuple(label.shape)}, {label.dtype}: need one class number an image, (B,) int64.")
    label = label.long()

    def class_log_prob(x: Tensor, level: Level) -> Tensor:
        own = level
        if sampled is not None and sampled != schedule:
            try:
                own = schedule.at_log_snr(level.log_snr)
            except Error as error:
                raise Error(f"the classifier does not know this noise: {error} Or guide within an interval.") from None
            x = x * over(own.alpha / level.alpha, x)
        logits = call(network, x, timestep(own, x))
        if logits.ndim != 2 or len(logits) != len(x):
            raise Error(f"the classifier gave {tuple(logits.shape)} for {len(x)} images: need logits (B, classes).")
        if len(label) != len(x):
            raise Error(f"{len(label)} labels for {len(x)} images: need one class number each, (B,).")
        low, high = int(label.min()), int(label.max())
        if low < 0 or high >= logits.shape[1]:
            raise Error(f"labels {low} to {high}: this classifier has classes 0 to {logits.shape[1] - 1}.")
        return logits.log_softmax(dim=1).gather(1, label.to(x.device)[:, None]).squeeze(1)

    return class_log_prob


def doubled(
    network: Network,
    prediction: str,
    cond: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    *,
    sigma_data: float = 0.5,
    learned_variance: bool = False,
) -> tuple[Denoiser, Denoiser]:
    """The denoisers of two conditions that share one network call on a batch of 2B, for `classifier_free`, `rescale`.

    Asking either calls the network for both, so give `interval` a denoiser of its own as the plain one.
    """
    if set(cond) != set(reference):
        raise Error(f"conditions by {sorted(cond)} and {sorted(reference)}: both must have the same inputs.")
    both = {name: torch.cat([value, reference[name]]) for name, value in cond.items()}
    denoise = denoiser(network, prediction, sigma_data=sigma_data, learned_variance=learned_variance, cond=both)

    def call(x: Tensor, level: Level) -> tuple[Prediction, Prediction]:
        twice = level if level.t.ndim == 0 else Level(level.t.repeat(2), level.alpha.repeat(2), level.sigma.repeat(2))
        x0, frac = denoise(torch.cat([x, x]), twice)
        first, second = x0.chunk(2)
        frac_first, frac_second = (None, None) if frac is None else frac.chunk(2)
        return Prediction(first, frac_first), Prediction(second, frac_second)

    remembered = _remember(call)
    return (lambda x, level: remembered(x, level)[0]), (lambda x, level: remembered(x, level)[1])


def shared(denoise: Denoiser) -> Denoiser:
    """The same denoiser, asked once where several wrappers ask it in turn for one x and level."""
    return _remember(denoise)


def _remember(call: Callable[[Tensor, Level], Answer]) -> Callable[[Tensor, Level], Answer]:
    """`call`, its last answer given again to the very same x (unchanged in place) and level."""
    asked: tuple[Tensor, Level] | None = None  # kept, so that their identities stay their own
    state: tuple[int, bool]
    answer: Answer

    def remembered(x: Tensor, level: Level) -> Answer:
        nonlocal asked, state, answer
        now = (x._version, torch.is_grad_enabled())
        if asked is None or asked[0] is not x or asked[1] is not level or state != now:
            answer = call(x, level)
            asked, state = (x, level), now
        return answer

    return remembered


def _choose(inside: Tensor, guided: Prediction, plain: Prediction) -> Prediction:
    """Each image's prediction of its own kind: inside (B,)."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(inside.to(a.device).reshape(-1, *[1] * (a.ndim - 1)), a, b)

    frac = None if guided.frac is None or plain.frac is None else pick(guided.frac, plain.frac)
    return Prediction(pick(guided.x0, plain.x0), frac)


def _output(prediction: str, x0: Tensor, x: Tensor, level: Level) -> Tensor:
    """What a network of this prediction would have put out for x0."""
    return x0 if registry.prediction(prediction) == "x0" else target(prediction, x0, to_eps("x0", x0, x, level), level)


def _spread(x: Tensor) -> Tensor:
    """The standard deviation of each image, (B, 1, 1, 1)."""
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)


def _percentile(values: Tensor, percentile: float) -> Tensor:
    """(B, D) -> (B,), linear between neighbours; torch.quantile refuses more than 2^24 numbers."""
    place = percentile / 100 * (values.shape[1] - 1)
    low = values.kthvalue(math.floor(place) + 1, dim=1).values
    high = values.kthvalue(math.ceil(place) + 1, dim=1).values
    return torch.lerp(low, high, place - math.floor(place))
