"""What to make: one dataclass for the shell, Python, and whatever serves pictures later."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, fields

from kuosan.errors import Error
from kuosan.sample.restoration import Restoration

MOST_SIDE = 16_384  # pixels
MOST_WORDS = 1 << 17  # characters of a prompt: the longest caption that is read, each of them escaped
FINITE = {  # what its numbers may be
    "eta": "0 or more, with ddim at most 1",
    "s_churn": "0 or more",
    "s_tmin": "0 or more",
    "s_tmax": "0 or more; for no upper bound a large one, as 1e9",
    "s_noise": "0 or more; 1 is usual",
    "guidance": "0 to 1000; 1 is none, 3 a usual scale",
    "guidance_interval": "0 or more; for no upper bound a large one, as 1e9",
    "guidance_rescale": "0 (none) to 1",
    "classifier_scale": "0 (none) to 1000; 1 is Bayes' rule",
    "threshold": "a percentile above 0, at most 100; 99.5 is usual",
    "strength": "above 0, at most 1",
}


@dataclass(frozen=True)
class Request:
    """A request for pictures. Picture i is drawn from seed + i alone, whatever stands beside it in its batch."""

    n: int = 16  # how many pictures
    seed: int = 0  # the first picture's seed; picture i has seed + i
    sampler: str = "dpm_solver_2m"  # ddpm, ddim, euler, heun, dpm_solver_2m, ...; other tools' spellings are understood
    steps: int | None = None  # denoising steps; none: the sampler's own default
    spacing: str | None = None  # where the steps lie: trailing, leading, linspace, log_snr or karras; none: trailing
    eta: float | None = None  # DDIM's noise, 0 none to 1 DDPM's; only for samplers that have it
    variance: str | None = None  # DDPM's variance: beta, posterior or learned
    s_churn: float | None = None  # Heun's added noise over the whole walk (Karras et al. 2022); none: 0
    s_tmin: float | None = None  # with s_churn: the least sigma/alpha at which noise is added
    s_tmax: float | None = None  # with s_churn: the most
    s_noise: float | None = None  # with s_churn: the added noise's standard deviation; none: 1
    classes: tuple[str, ...] = ()  # picture i is of class i mod their number, by name or number, or `none`
    prompts: tuple[str, ...] = ()  # picture i is of prompt i mod their number; (words:1.3) weighs words
    guidance: float | None = None  # classifier-free guidance: 1 is none, 0 the reference alone, 3 a usual scale
    negative: str | None = None  # with guidance: the words (or the class) to lead away from, instead of from nothing
    reference: str | None = None  # with guidance: a weaker run to lead away from (autoguidance)
    guidance_interval: tuple[float, float] | None = None  # guide only where sigma/alpha lies between these
    guidance_rescale: float | None = None  # with guidance: 0 none to 1, the contrast of the unguided (Lin et al. 2023)
    classifier: str | None = None  # the run of a noisy classifier to guide by
    classifier_scale: float | None = None  # with classifier: how strongly; 1 if none
    threshold: float | None = None  # dynamic thresholding at this percentile of |x0|, in clip's place; 99.5 is usual
    clip: bool = True  # keep the predicted picture within [-1, 1] at every step
    image: str | None = None  # start from this picture instead of from noise alone
    strength: float | None = None  # with image: how much is made anew, above 0 (nothing) to 1 (everything); 0.6 if none
    between: tuple[int, int] | None = None  # n pictures from one seed's to another's, their noises interpolated
    restoration: Restoration | None = None  # make what is missing of a picture, instead of a whole new one
    size: tuple[int, int] | None = None  # width, height, of a model trained on several shapes; none: its own
    aspect: str | None = None  # instead of size: width to height, as 3:2, at about as many pixels as in training
    batch: int = 16  # pictures computed together
    exact: bool = False  # bit-equal pictures whatever n and batch: every batch is padded to 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "prompts", tuple(self.prompts))
        _check_finite(self)
        _check_guidance(self)
        _check_words(self)
        if self.s_tmin is not None and self.s_tmax is not None and self.s_tmin > self.s_tmax:
            raise Error(f"s_tmin {self.s_tmin} above s_tmax {self.s_tmax}: s_churn would have no effect; swap them.")
        if not 1 <= self.n <= 1_000_000:
            raise Error(f"n = {self.n} is not allowed: 1 to 1,000,000 pictures.")
        if self.steps is not None and not 1 <= self.steps <= 10_000:
            raise Error(f"steps = {self.steps} is not allowed: 1 to 10,000.")
        if not 0 <= self.seed < 2**63 - 1_000_000:
            raise Error(f"seed = {self.seed} is not allowed: 0 to 2^63 - 1,000,001.")
        if self.between is not None and self.image is not None:
            raise Error("between and image cannot both be given: one starts from two seeds, the other from a picture.")
        if self.between is not None and self.seed:
            raise Error(f"seed = {self.seed} has no effect with between, which names its own two seeds; leave it out.")
        if self.between is not None and min(self.between) < 0:
            raise Error(f"between = {self.between} is not allowed: two seeds, each 0 or more.")
        for name in ("image", "between"):
            if self.restoration is not None and getattr(self, name) is not None:
                raise Error(f"{name} and restoration cannot both be given: a restoration starts from noise.")
        _check_size(self)
        if not 1 <= self.batch <= 4096:
            raise Error(f"batch = {self.batch} is not allowed: 1 to 4096.")
        if self.strength is not None and self.image is None:
            raise Error("strength has no effect without image: give --image PICTURE, or leave --strength out.")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise Error(f"strength = {self.strength} is not allowed: above 0, at most 1.")


def _check_finite(request: Request) -> None:
    """Refuse infinities and NaN, which no recipe and no result can hold. Raises: Error."""
    for field in fields(request):
        value = getattr(request, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise Error(f"{field.name} = {number} is not allowed: a finite number, {FINITE[field.name]}.")


def _check_words(request: Request) -> None:
    """Refuse prompts that say nothing, or more than anybody means. Raises: Error."""
    for name, text in [*(("prompt", text) for text in request.prompts), ("negative", request.negative)]:
        if text is None:
            continue
        if not text.strip():
            raise Error(f"the {name} is empty: say what is to be made in words, or leave it out.")
        if len(text) > MOST_WORDS:
            raise Error(f"the {name} has {len(text):,} characters; {MOST_WORDS:,} at most: shorten it.")


def _check_size(request: Request) -> None:
    """Refuse sizes that no picture has, or that something else decides. Raises: Error."""
    if request.size is not None and not all(1 <= side <= MOST_SIDE for side in request.size):
        wide, high = request.size
        raise Error(f"size = {wide}x{high} is not allowed: width and height, 1 to {MOST_SIDE} pixels each.")
    if request.aspect is not None:
        ratio(request.aspect)
        if request.size is not None:
            raise Error("size and aspect cannot both be given: aspect is a size by its ratio alone.")
    for name in ("size", "aspect"):
        if getattr(request, name) is not None and request.restoration is not None:
            raise Error(f"{name} has no effect on a restoration: the picture that is brought has its size.")


def ratio(aspect: str) -> float:
    """3:2 as 1.5.

    Raises:
        Error: it is no width to height.
    """
    parts = aspect.split(":")
    if len(parts) == 2:
        with contextlib.suppress(ValueError):
            wide, high = (float(part) for part in parts)
            if 0 < wide < MOST_SIDE and 0 < high < MOST_SIDE:
                return wide / high
    raise Error(f"aspect = {aspect!r} is not allowed: width to height, as 3:2 or 9:16.")


def _check_guidance(request: Request) -> None:
    """Refuse settings of guidance that are out of range or without effect. Raises: Error."""
    for name in ("negative", "reference", "guidance_rescale"):
        if getattr(request, name) is not None and request.guidance is None:
            raise Error(f"{name} has no effect without guidance: give --guidance 3, say, or leave it out.")
    if request.negative is not None and request.reference is not None:
        raise Error("negative and reference cannot both be given: guidance leads away from one thing.")
    if request.guidance is not None and not 0 <= request.guidance <= 1000:
        raise Error(f"guidance = {request.guidance} is not allowed: 0 to 1000; 1 is no guidance, 3 a usual scale.")
    if request.guidance_rescale is not None and not 0 <= request.guidance_rescale <= 1:
        raise Error(f"guidance_rescale = {request.guidance_rescale} is not allowed: 0 (none) to 1.")
    if request.classifier_scale is not None and request.classifier is None:
        raise Error("classifier_scale has no effect without classifier: name the run of a noisy classifier.")
    if request.classifier_scale is not None and not 0 <= request.classifier_scale <= 1000:
        raise Error(
            f"classifier_scale = {request.classifier_scale} is not allowed: 0 (none) to 1000; 1 is Bayes' rule."
        )
    if request.classifier is not None and request.classifier_scale is None:
        object.__setattr__(request, "classifier_scale", 1.0)
    if request.guidance_interval is not None:
        if request.guidance is None and request.classifier is None:
            raise Error("guidance_interval has no effect without guidance or classifier: give one, or leave it out.")
        low, high = request.guidance_interval
        if not 0 <= low < high:
            raise Error(f"guidance_interval = {low} to {high} in sigma/alpha is not allowed: need 0 <= low < high.")
    if request.threshold is not None and 0 < request.threshold <= 1:
        raise Error(
            f"threshold = {request.threshold} is not allowed: it is a percentile of 0 to 100; did you mean "
            f"{100 * request.threshold:g}?"
        )
    if request.threshold is not None and not 0 < request.threshold <= 100:
        raise Error(f"threshold = {request.threshold} is not allowed: a percentile above 0, at most 100.")
    if request.threshold is not None and not request.clip:
        raise Error("threshold bounds the predicted picture in clip's place: leave --no-clip out.")
