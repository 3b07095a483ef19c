"""What to make (`Request`) and what an image went through (`Restoration`): for the shell, Python, recipes and servers.

    y = shrink(blur(x)) in grey, where known, + noise        every part is optional, in this order

A model that was trained to undo just this is given y; any other is held to y at every step by a method. Torch-free.
"""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from kuosan import options
from kuosan.data.config import RGBA
from kuosan.diffusion import registry
from kuosan.errors import Error
from kuosan.options import SET, one_of, only
from kuosan.tasks import Inpainting, SuperResolution
from kuosan.tasks.task import class_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kuosan.models.model import ModelConfig

METHODS = {  # by which a model that was not trained for it is held to what is known
    "ddnm": "DDNM (Wang et al. 2023)",
    "pigdm": "ΠGDM (Song et al. 2023)",
    "dps": "DPS (Chung et al. 2023)",
    "repaint": "RePaint (Lugmayr et al. 2022)",
}
GRADIENTS = ("pigdm", "dps")  # methods that also go backwards through the network at each evaluation
DEBLUR = 2.0  # pixels, where a person says no more than that it is blurred
JUMP, JUMPS = 10, 10  # RePaint's
BOX = re.compile(r"\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*")  # x,y,w,h: a mask as numbers
REPAINT_STEPS = 250  # RePaint's T
STEPS, ETA = 100, 0.85  # of the other methods, by ddim (Wang et al. 2023)
TRAINED_STEPS = 50  # of a model trained for it, by ddim with eta 1: its noise mends what earlier steps got wrong


@dataclass(frozen=True)
class Restoration:
    """One image's restoration."""

    image: str = field(
        metadata={"key": "picture", "option": False}
    )  # the file, or a name for pixels that were given from Python
    mask: str | None = None  # what is to be generated: a file (white), `alpha` (where transparent), or a box x,y,w,h
    outpaint: tuple[int, int, int, int] | None = field(
        default=None, metadata={"read": lambda text: margins(text), "typed": "PIXELS|LEFT,TOP,RIGHT,BOTTOM"}
    )  # pixels to add: one number for all sides, or LEFT,TOP,RIGHT,BOTTOM
    upscale: int | None = None  # how many times larger each side is to become
    down: Literal["area", "bicubic"] | None = field(
        default=None, metadata=only(upscale=SET)
    )  # with upscale: how the image was shrunk; none: area
    deblur: float | None = None  # std of the blur it went through, in pixels of the image before shrinking
    colorise: bool = field(default=False, metadata={"flags": ("colorise", "colorize")})  # make colours for a grey image
    noise: float = 0.0  # std of the noise in it, of 255
    operator: str | None = field(
        default=None, metadata={"option": False}
    )  # from Python: the name of a linear operator of one's own that it went through
    method: str | None = field(
        default=None, metadata=one_of(*METHODS)
    )  # ddnm, pigdm, dps, repaint; none: as trained, else pigdm for holes, ddnm for the rest
    push: float | None = field(
        default=None, metadata=only(method=GRADIENTS)
    )  # pigdm, dps: how strongly it is held; 1 is the published
    jump_length: int | None = None  # repaint: steps of each return; 10 if none. ddnm: with jumps, likewise
    jumps: int | None = field(
        default=None, metadata=only(method=(None, "ddnm", "repaint"))
    )  # how often each stretch is repeated; repaint 10, ddnm 1 if none
    fit: bool = False  # resize the image to the model's size first
    overlap: int | None = None  # of the tiles of an image larger than the model's, in pixels; none: a quarter

    def __post_init__(self) -> None:
        if self.outpaint is not None:
            object.__setattr__(self, "outpaint", tuple(self.outpaint))
        _check_damage(self)
        options.check(self)
        _check_method(self)

    @property
    def damage(self) -> tuple[str, ...]:
        """What the image went through, by the names of the settings."""
        said = (
            ("mask", self.missing),
            ("upscale", self.upscale),
            ("deblur", self.deblur),
            ("colorise", self.colorise),
            ("operator", self.operator),
        )
        return tuple(name for name, value in said if value is not None and value is not False)

    @property
    def returns(self) -> tuple[int, int]:
        """Of a trajectory with jumps: steps of each return, and how often each stretch is repeated."""
        return self.jump_length or JUMP, self.jumps or JUMPS

    @property
    def missing(self) -> bool:
        """Whether a part of the image is to be generated."""
        return self.mask is not None or self.outpaint is not None


NAMES = frozenset(field.name for field in fields(Restoration)) - {"image", "mask", "operator"}


def _check_damage(asked: Restoration) -> None:
    """Refuse damage that is none, or impossible. Raises: Error."""
    if not asked.damage and not asked.noise:
        raise Error(
            "nothing to restore: say what is wrong with the image: --mask MASK, --outpaint, --upscale 4, "
            "--deblur 2, --colorise or --noise 10."
        )
    if asked.upscale is not None and not 2 <= asked.upscale <= 16:
        raise Error(f"upscale = {asked.upscale} is not allowed: 2 to 16 times each side.")
    if asked.deblur is not None and not 0 < asked.deblur <= 32:
        raise Error(f"deblur = {asked.deblur} is not allowed: a blur's std in pixels, above 0 to 32; 2 is usual.")
    if not 0 <= asked.noise <= 128 or not math.isfinite(asked.noise):
        raise Error(f"noise = {asked.noise} is not allowed: its std of 255, 0 to 128; 10 is much.")
    if asked.outpaint is not None and (min(asked.outpaint) < 0 or not 0 < max(asked.outpaint) <= 4096):
        raise Error(f"outpaint = {asked.outpaint} is not allowed: pixels to add at each side, 0 to 4096, not all 0.")
    if asked.missing and asked.upscale is not None:
        raise Error("mask and upscale cannot both be given: fill the hole first, then enlarge the result.")
    if asked.operator is not None and len(asked.damage) > 1:
        raise Error(f"operator {asked.operator} beside {asked.damage[0]}: put both into one, with operators.Compose.")
    if asked.overlap is not None and asked.overlap < 0:
        raise Error(f"overlap = {asked.overlap} is not allowed: 0 or more pixels, at most half the model's side.")


def _check_method(asked: Restoration) -> None:
    """Refuse a method that cannot do this. Raises: Error."""
    method = asked.method
    if method == "repaint" and (asked.damage != ("mask",) or asked.noise):
        raise Error("method repaint fills holes in images without noise, and nothing else: use ddnm, pigdm or dps.")
    if asked.push is not None and not 0 < asked.push <= 100:
        raise Error(f"push = {asked.push} is not allowed: above 0 to 100; 1 is the published.")
    if asked.jump_length is not None and (asked.jumps == 1 or (asked.jumps is None and method != "repaint")):
        raise Error(f"jump_length = {asked.jump_length} has no effect without jumps: give --jumps 3, or leave it out.")
    for name in ("jumps", "jump_length"):
        value = getattr(asked, name)
        if value is not None and not 1 <= value <= 1000:
            raise Error(f"{name} = {value} is not allowed: 1 to 1000.")


def method(config: ModelConfig, asked: Restoration) -> str | None:
    """The method by which a model is held to an image; None for a model that was trained to undo just this.

    Raises:
        Error: a model trained for other damage than this.
    """
    task, chosen = config.task, asked.method
    if config.shape is not None and config.shape[0] == RGBA:
        _check_clear(asked)
    if task.kind != "generation" and asked.method is None and asked.jumps is not None:
        raise Error(f"jumps = {asked.jumps} belongs to the methods ddnm and repaint, and none is named; leave it out.")
    if isinstance(task, SuperResolution):
        _trained_for(asked, "upscale", "super_resolution")
        if asked.upscale != task.scale:
            raise Error(
                f"upscale = {asked.upscale}: this model was trained to enlarge {task.scale} times; say --upscale "
                f"{task.scale}, or use a model of whole images (trained with --task generation), which takes any."
            )
        if asked.method is None and asked.down not in (None, task.down):
            raise Error(
                f"down = {asked.down}: this model knows images shrunk by {task.down} and no others; "
                f"leave it out, or hold the model to yours by --method ddnm."
            )
        if asked.noise > task.noise:
            raise Error(
                f"noise = {asked.noise}: this model knows images with noise up to {task.noise:g} of 255; say no more "
                f"than that, or train with --noise {asked.noise:g}."
            )
    elif isinstance(task, Inpainting):
        _trained_for(asked, "mask", "inpainting")
        if asked.noise:
            raise Error(f"noise = {asked.noise}: this model was trained on clean images with holes; leave it out.")
        if asked.method not in (None, "repaint"):
            raise Error(
                f"method {asked.method}: this model was trained to fill holes and knows what is around them; leave it "
                f"out, or use repaint."
            )
    else:
        filled = asked.missing and _linear(config, asked)
        chosen = asked.method or ("pigdm" if filled and asked.jumps is None else "ddnm")
    if chosen == "pigdm":
        _check_pigdm(config, asked)
    return chosen


def _check_clear(asked: Restoration) -> None:
    """Refuse what has no meaning for a model of images with alpha. Raises: Error."""
    if asked.mask == "alpha":
        raise Error(
            "mask alpha: this model's images have alpha themselves (channels rgba), so a clear pixel is known to be "
            "clear, and is no hole. Give a mask file (white is generated), or a box x,y,w,h."
        )
    if asked.colorise:
        raise Error(
            "colorise: this model's images have alpha (channels rgba), and grey is made of colours alone; use a model "
            "trained with --channels rgb."
        )


def implied(config: ModelConfig, damage: Mapping[str, Any]) -> int | None:
    """The `upscale` that is meant where nothing else is said to be wrong: of a model trained to enlarge, its own.

    Args:
        damage: what a person said, by the fields of `Restoration`.
    """
    said = any(damage.get(name) not in (None, False) for name in ("mask", "outpaint", "deblur", "colorise", "operator"))
    own = None if said or not isinstance(config.task, SuperResolution) else config.task.scale
    given: int | None = damage.get("upscale")
    return own if given is None else given


def _linear(config: ModelConfig, asked: Restoration) -> bool:
    """Whether the damage is linear in what is denoised: pixels, or latents of which only a hole is missing."""
    return config.codec.kind == "pixels" or (asked.damage == ("mask",) and not asked.noise)


def _check_pigdm(config: ModelConfig, asked: Restoration) -> None:
    """Refuse PiGDM where it has no meaning. Raises: Error."""
    if _linear(config, asked):
        return
    what = [part for part in asked.damage if part != "mask"] or ["noise"]
    raise Error(
        f"method pigdm with {what[0]}: this is a model of latents, and PiGDM needs a linear damage of what is "
        f"denoised; through the decoder it is not linear. Use ddnm or dps; for holes alone pigdm works on the latents' "
        f"cells."
    )


def _trained_for(asked: Restoration, damage: str, name: str) -> None:
    other = [part for part in asked.damage if part != damage]
    if other or damage not in asked.damage:
        wrong = other[0] if other else "noise alone"
        raise Error(
            f"{wrong}: this model was trained for {name} only (--{damage}); use a model of whole images "
            f"(trained with --task generation), which undoes any of these."
        )


def usual(config: ModelConfig, request: Request, *, named: bool) -> Request:
    """A request for a restoration with the usual sampler and steps of its method, where a person named neither.

    Args:
        named: whether the request's sampler was asked for.

    Raises:
        Error: a model trained for other damage than this.
    """
    asked = request.restoration
    assert asked is not None
    chosen = method(config, asked)
    own: dict[str, Any] = {}
    if chosen == "repaint":
        own = {"sampler": "ddpm", "steps": REPAINT_STEPS}
    else:
        steps, eta = (TRAINED_STEPS, 1.0) if config.task.kind != "generation" else (STEPS, ETA)
        own = {"sampler": "ddim", "steps": steps, **({"eta": eta} if request.eta is None else {})}
    if named and own.get("sampler") != registry.sampler(request.sampler):
        own = {}
    if request.steps is not None:
        own.pop("steps", None)
    resolved = asked if config.task.kind != "generation" else replace(asked, method=chosen)
    return replace(request, restoration=resolved, **own)


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


_GUIDED = only(guidance=SET)
_FREE = only(restoration=None, otherwise="on a restoration: the image has its size; leave it out")


@dataclass(frozen=True)
class Request:
    """A request for images. Image i is drawn from seed + i alone, whatever stands beside it in its batch.

    Attributes:
        sampler: ddpm, ddim, euler, euler_ancestral, heun, dpm_solver_2s, dpm_solver_2m, dpm_solver_3m,
            dpm_solver_3m_corrected, dpm_solver_2s_sde, dpm_solver_2m_sde, dpm_solver_3m_sde, unipc, unipc_3, plms or
            pndm; other tools' names are understood.
    """

    n: int = field(default=16, metadata={"flags": ("-n",)})  # how many images
    seed: int = field(
        default=0, metadata=only(between=None, otherwise="with between, which names its own two seeds; leave it out")
    )  # the first image's seed; image i has seed + i
    sampler: str = "dpm_solver_2m"
    steps: int | None = None  # denoising steps; none: the sampler's own default
    spacing: str | None = None  # where the steps lie: trailing, leading, linspace, log_snr or karras; none: trailing
    eta: float | None = None  # DDIM's noise, 0 none to 1 DDPM's; only for samplers that have it
    variance: str | None = None  # DDPM's variance: beta, posterior or learned
    s_churn: float | None = None  # Heun's added noise over the whole trajectory (Karras et al. 2022); none: 0
    s_tmin: float | None = None  # with s_churn: the least sigma/alpha at which noise is added
    s_tmax: float | None = None  # with s_churn: the most
    s_noise: float | None = None  # with s_churn: the added noise's standard deviation; none: 1
    classes: tuple[str, ...] = field(
        default=(), metadata={"flags": ("class",), "whole": True}
    )  # image i is of class i mod their number, by name or number, or `none`; several with commas
    prompts: tuple[str, ...] = field(
        default=(), metadata={"flags": ("prompt",), "whole": True}
    )  # image i is of prompt i mod their number; (words:1.3) weighs words
    guidance: float | None = field(
        default=None, metadata={"flags": ("guidance", "guidance_scale", "cfg")}
    )  # classifier-free guidance: 1 is none, 0 the reference alone, 3 a usual scale
    negative: str | None = field(
        default=None, metadata=_GUIDED
    )  # with guidance: the words (or the class) to lead away from, instead of from nothing
    reference: str | None = field(
        default=None, metadata=_GUIDED
    )  # with guidance: a weaker run to lead away from (autoguidance)
    guidance_interval: tuple[float, float] | None = None  # guide only where sigma/alpha lies between these
    guidance_rescale: float | None = field(
        default=None, metadata=_GUIDED
    )  # with guidance: 0 none to 1, the contrast of the unguided (Lin et al. 2023)
    classifier: str | None = None  # the run of a noisy classifier to guide by
    classifier_scale: float | None = field(
        default=None, metadata=only(classifier=SET)
    )  # with classifier: how strongly; 1 if none
    threshold: float | None = None  # dynamic thresholding at this percentile of |x0|, in clip's place; 99.5 is usual
    clip: bool = True  # keep the predicted image within [-1, 1] at every step
    image: str | None = None  # start from this image instead of from noise alone
    strength: float | None = field(
        default=None, metadata=only(image=SET)
    )  # with image: how much is generated, above 0 (nothing) to 1 (everything); 0.6 if none
    between: tuple[int, int] | None = None  # n images from one seed's to another's, their noises interpolated
    restoration: Restoration | None = field(
        default=None, metadata={"option": False}
    )  # make what is missing of an image, instead of a whole new one
    size: tuple[int, int] | None = field(
        default=None, metadata={"read": lambda text: width_height(text), "typed": "WIDTHxHEIGHT", **_FREE}
    )  # width, height, of a model trained on several shapes; none: its own
    aspect: str | None = field(
        default=None, metadata=_FREE
    )  # instead of size: width to height, as 3:2, at about as many pixels as in training
    batch: int = 16  # images computed together
    exact: bool = False  # bit-equal images whatever n and batch: every batch is padded to 8

    def __post_init__(self) -> None:
        # a recipe holds our own name of a sampler; what is none is refused where the request meets a model
        object.__setattr__(self, "sampler", registry.SPELLINGS.get(registry.plain(self.sampler), self.sampler))
        object.__setattr__(self, "classes", class_words(self.classes))
        object.__setattr__(self, "prompts", tuple(self.prompts))
        _check_finite(self)
        options.check(self)
        _check_guidance(self)
        _check_words(self)
        if self.s_tmin is not None and self.s_tmax is not None and self.s_tmin > self.s_tmax:
            raise Error(f"s_tmin {self.s_tmin} above s_tmax {self.s_tmax}: s_churn would have no effect; swap them.")
        if not 1 <= self.n <= 1_000_000:
            raise Error(f"n = {self.n} is not allowed: 1 to 1,000,000 images.")
        if self.steps is not None and not 1 <= self.steps <= 10_000:
            raise Error(f"steps = {self.steps} is not allowed: 1 to 10,000.")
        if not 0 <= self.seed < 2**63 - 1_000_000:
            raise Error(f"seed = {self.seed} is not allowed: 0 to 2^63 - 1,000,001.")
        if self.between is not None and self.image is not None:
            raise Error("between and image cannot both be given: one starts from two seeds, the other from an image.")
        if self.between is not None and min(self.between) < 0:
            raise Error(f"between = {self.between} is not allowed: two seeds, each 0 or more.")
        for name in ("image", "between"):
            if self.restoration is not None and getattr(self, name) is not None:
                raise Error(f"{name} and restoration cannot both be given: a restoration starts from noise.")
        _check_size(self)
        if not 1 <= self.batch <= 4096:
            raise Error(f"batch = {self.batch} is not allowed: 1 to 4096.")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise Error(f"strength = {self.strength} is not allowed: above 0, at most 1.")


def _check_finite(request: Request) -> None:
    """Refuse infinities and NaN, which no recipe and no result can hold. Raises: Error."""
    for each in fields(request):
        value = getattr(request, each.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise Error(f"{each.name} = {number} is not allowed: a finite number, {FINITE[each.name]}.")


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
    """Refuse sizes that no image has, or that something else decides. Raises: Error."""
    if request.size is not None and not all(1 <= side <= MOST_SIDE for side in request.size):
        wide, high = request.size
        raise Error(f"size = {wide}x{high} is not allowed: width and height, 1 to {MOST_SIDE} pixels each.")
    if request.aspect is not None:
        ratio(request.aspect)
        if request.size is not None:
            raise Error("size and aspect cannot both be given: aspect is a size by its ratio alone.")


def margins(text: str) -> tuple[int, int, int, int]:
    """What --outpaint says, as pixels at the left, top, right and bottom.

    Raises:
        Error: neither one whole number nor four.
    """
    parts = text.replace(",", " ").split()
    if not all(part.isdigit() for part in parts) or len(parts) not in (1, 4):
        raise Error(f"outpaint = {text!r} is not allowed: one number of pixels, or LEFT,TOP,RIGHT,BOTTOM as 0,0,32,0.")
    left, top, right, bottom = [int(part) for part in parts] * (4 // len(parts))
    return left, top, right, bottom


def width_height(text: str) -> tuple[int, int]:
    """Width and height of 96x64, as one types it.

    Raises:
        Error: it is something else.
    """
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise Error(f"--size {text!r} is not width x height in pixels, as 96x64 is.")
    return int(parts[0]), int(parts[1])


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
    if request.negative is not None and request.reference is not None:
        raise Error("negative and reference cannot both be given: guidance leads away from one thing.")
    if request.guidance is not None and not 0 <= request.guidance <= 1000:
        raise Error(f"guidance = {request.guidance} is not allowed: 0 to 1000; 1 is no guidance, 3 a usual scale.")
    if request.guidance_rescale is not None and not 0 <= request.guidance_rescale <= 1:
        raise Error(f"guidance_rescale = {request.guidance_rescale} is not allowed: 0 (none) to 1.")
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
        raise Error("threshold bounds the predicted image in clip's place: leave --no-clip out.")
