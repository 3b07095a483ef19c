"""What a picture went through, and how that is undone: one dataclass for the shell, Python and a recipe. Torch-free.

    y = shrink(blur(x)) in grey, where known, + noise        every part is optional, in this order

A model that was trained to undo just this is simply given y; any other is held to y at every step by a method.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from kuosan.diffusion import names
from kuosan.diffusion.resampling import repaint_evaluations as repaint_evaluations
from kuosan.errors import Error, unknown
from kuosan.tasks import Inpainting, SuperResolution

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kuosan.model import ModelConfig
    from kuosan.sample.request import Request

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
    """One picture's restoration."""

    picture: str  # the file, or a name for pixels that were given from Python
    mask: str | None = None  # what is to be made anew: a file (white), `alpha` (where transparent), or a box x,y,w,h
    outpaint: tuple[int, int, int, int] | None = None  # pixels to add at the left, top, right and bottom
    upscale: int | None = None  # how many times larger each side is to become
    down: Literal["area", "bicubic"] | None = None  # with upscale: how the picture was shrunk; none: area
    deblur: float | None = None  # std of the blur it went through, in pixels of the picture before shrinking
    colorise: bool = False  # make colours for a grey picture
    noise: float = 0.0  # std of the noise in it, of 255
    operator: str | None = None  # from Python: the name of a linear operator of one's own that it went through
    method: str | None = None  # ddnm, pigdm, dps, repaint; none: as trained, else pigdm for holes, ddnm for the rest
    push: float | None = None  # pigdm, dps: how strongly it is held; 1 is the published
    jump_length: int | None = None  # repaint: steps of each return; 10 if none. ddnm: with jumps, likewise
    jumps: int | None = None  # how often each stretch is walked; repaint 10, ddnm 1 if none
    fit: bool = False  # bring the picture to the model's size first
    overlap: int | None = None  # of the tiles of a picture larger than the model's, in pixels; none: a quarter

    def __post_init__(self) -> None:
        if self.outpaint is not None:
            object.__setattr__(self, "outpaint", tuple(self.outpaint))
        _check_damage(self)
        _check_method(self)

    @property
    def damage(self) -> tuple[str, ...]:
        """What the picture went through, by the names of the settings."""
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
        """Of a walk with jumps: steps of each return, and how often each stretch is walked."""
        return self.jump_length or JUMP, self.jumps or JUMPS

    @property
    def missing(self) -> bool:
        """Whether a part of the picture is to be made anew."""
        return self.mask is not None or self.outpaint is not None


NAMES = frozenset(field.name for field in fields(Restoration)) - {"picture", "mask", "operator"}


def _check_damage(asked: Restoration) -> None:
    """Refuse damage that is none, or impossible. Raises: Error."""
    if not asked.damage and not asked.noise:
        raise Error(
            "nothing to restore: say what is wrong with the picture: --mask MASK, --outpaint, --upscale 4, "
            "--deblur 2, --colorise or --noise 10."
        )
    if asked.upscale is not None and not 2 <= asked.upscale <= 16:
        raise Error(f"upscale = {asked.upscale} is not allowed: 2 to 16 times each side.")
    if asked.upscale is None and asked.down is not None:
        raise Error(f"down = {asked.down} has no effect without upscale: give --upscale 4, or leave it out.")
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
    """Refuse a method that cannot do this, or settings that it lacks. Raises: Error."""
    method = asked.method
    if method is not None and method not in METHODS:
        raise unknown("method", method, METHODS)
    if method == "repaint" and (asked.damage != ("mask",) or asked.noise):
        raise Error("method repaint fills holes in pictures without noise, and nothing else: use ddnm, pigdm or dps.")
    if asked.push is not None and method not in GRADIENTS:
        raise Error(f"push = {asked.push} belongs to the methods {' and '.join(GRADIENTS)}; leave it out.")
    if asked.push is not None and not 0 < asked.push <= 100:
        raise Error(f"push = {asked.push} is not allowed: above 0 to 100; 1 is the published.")
    if asked.jumps is not None and method not in (None, "ddnm", "repaint"):
        raise Error(f"jumps = {asked.jumps} belongs to the methods ddnm and repaint; leave it out.")
    if asked.jump_length is not None and (asked.jumps == 1 or (asked.jumps is None and method != "repaint")):
        raise Error(f"jump_length = {asked.jump_length} has no effect without jumps: give --jumps 3, or leave it out.")
    for name in ("jumps", "jump_length"):
        value = getattr(asked, name)
        if value is not None and not 1 <= value <= 1000:
            raise Error(f"{name} = {value} is not allowed: 1 to 1000.")


def method(config: ModelConfig, asked: Restoration) -> str | None:
    """The method by which a model is held to a picture; None for a model that was trained to undo just this.

    Raises:
        Error: a model trained for other damage than this.
    """
    task, chosen = config.task, asked.method
    if task.kind != "generation" and asked.method is None and asked.jumps is not None:
        raise Error(f"jumps = {asked.jumps} belongs to the methods ddnm and repaint, and none is named; leave it out.")
    if isinstance(task, SuperResolution):
        _trained_for(asked, "upscale", "super_resolution")
        if asked.upscale != task.scale:
            raise Error(
                f"upscale = {asked.upscale}: this model was trained to enlarge {task.scale} times; say --upscale "
                f"{task.scale}, or use a model of whole pictures (trained with --task generation), which takes any."
            )
        if asked.method is None and asked.down not in (None, task.down):
            raise Error(
                f"down = {asked.down}: this model knows pictures shrunk by {task.down} and is told of no other; "
                f"leave it out, or hold the model to yours by --method ddnm."
            )
        if asked.noise > task.noise:
            raise Error(
                f"noise = {asked.noise}: this model knows pictures with noise up to {task.noise:g} of 255; say no more "
                f"than that, or train with --noise {asked.noise:g}."
            )
    elif isinstance(task, Inpainting):
        _trained_for(asked, "mask", "inpainting")
        if asked.noise:
            raise Error(f"noise = {asked.noise}: this model was trained on clean pictures with holes; leave it out.")
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
            f"{wrong}: this model was trained for {name} only (--{damage}); use a model of whole pictures "
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
    if named and own.get("sampler") != names.sampler(request.sampler):
        own = {}
    if request.steps is not None:
        own.pop("steps", None)
    resolved = asked if config.task.kind != "generation" else replace(asked, method=chosen)
    return replace(request, restoration=resolved, **own)
