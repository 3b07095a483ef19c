"""From a request and a model's configuration to what will be done: sampler, spacing, guidance, size; or refused.

Which sizes a model makes: its own, or with aspect-ratio buckets any whose sides are multiples of what its network
takes, whose width over height lies between the trained extremes, and whose pixels are at most a quarter more or fewer
than in training. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil, gcd, log
from typing import TYPE_CHECKING, Any

from kuosan.data import config as buckets
from kuosan.diffusion import registry
from kuosan.diffusion.grids import repaint_nfe
from kuosan.diffusion.schedule import Discrete
from kuosan.errors import Error
from kuosan.models.codec import apart
from kuosan.models.model import OwnNetwork, require_denoiser
from kuosan.networks.text_config import ByteText
from kuosan.sample import request as restoring
from kuosan.sample.request import ratio
from kuosan.tasks.task import NULL
from kuosan.text import tokens

if TYPE_CHECKING:
    from kuosan.diffusion.level import Level
    from kuosan.models.model import Model, ModelConfig
    from kuosan.sample.request import Request
    from kuosan.tasks import Task

OPTIONS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")  # of samplers, by the names of a request's fields
STRENGTH = 0.6  # of an image-to-image request that names none


@dataclass(frozen=True)
class Choice:
    """A sampler by its canonical name, the steps of the whole grid and those taken, their spacing, the options."""

    sampler: str
    grid_steps: int
    steps: int
    spacing: str | None
    options: dict[str, Any]
    passes: int = 1  # of the network at each evaluation: two under classifier-free guidance
    method: str | None = None  # by which a restoration is held to what is known; none: as the model was trained
    jumping: int | None = None  # evaluations of a trajectory that goes back up again and again
    size: tuple[int, int] | None = None  # width, height of the images; none: of a model that does not know its shape

    @property
    def evaluations(self) -> int:
        """Network evaluations an image; under a guidance interval fewer are made."""
        once = registry.SAMPLERS[self.sampler].nfe(self.steps) if self.jumping is None else self.jumping
        return self.passes * once

    @property
    def graded(self) -> bool:
        """Whether each evaluation goes backwards through the network as well, at about three times the cost."""
        return self.method in restoring.GRADIENTS


@dataclass(frozen=True)
class SamplePlan(Choice):
    """A choice and its grid, noise first."""

    levels: Level = field(kw_only=True)


def choose(config: ModelConfig, request: Request) -> Choice:
    """What a request asks of a model, every name resolved and every combination checked. Torch-free.

    Raises:
        Error: an unknown name, an option that the sampler lacks, or a combination that cannot be sampled.
    """
    require_denoiser(config)
    schedule = config.schedule
    sampler = registry.sampler(request.sampler)
    spec = registry.SAMPLERS[sampler]
    steps = request.steps
    if steps is None:
        steps = spec.default_steps
        if isinstance(schedule, Discrete):
            steps = schedule.T if sampler == "ddpm" else min(steps, schedule.T)
    spacing = request.spacing or registry.default_spacing(schedule)
    variance = None if request.variance is None else registry.variance(request.variance)
    asked = {"variance": variance} | {name: getattr(request, name) for name in OPTIONS}
    options = {key: value for key, value in asked.items() if value is not None}
    registry.check(
        schedule,
        config.prediction,
        sampler=sampler,
        steps=steps,
        spacing=spacing,
        learned_variance=config.learned_variance,
        options=options,
    )
    if request.between is not None and spec.stochastic(options):
        raise Error(
            f"between needs a sampler without noise of its own, and {sampler!r} draws some: "
            f"use ddim (eta 0), euler, heun or dpm_solver_2m."
        )
    check_request(config, request)
    known = config.shape is not None or request.size is not None or request.aspect is not None
    size = of(config, request) if known else None
    _check_bounds(config, request)
    alone = request.guidance in (None, 1) or (request.guidance == 0 and not request.guidance_rescale)
    passes = 1 if alone else 2
    method, jumping = _restored(config, request, sampler, options, steps)
    return Choice(sampler, steps, _steps_taken(request, steps), spacing, options, passes, method, jumping, size)


def _check_bounds(config: ModelConfig, request: Request) -> None:
    """Refuse bounds on what has none. Raises: Error."""
    if config.codec.kind == "pixels":
        return
    if request.threshold is not None:
        raise Error(
            f"threshold = {request.threshold}: this is a model of latents, which have no black and white to be kept "
            f"within; leave it out. --guidance-rescale reduces too much contrast."
        )
    if not request.clip:
        raise Error("clip = false has no effect: this is a model of latents, which are never clipped; leave it out.")


def plan(config: ModelConfig, request: Request) -> SamplePlan:
    """The trajectory that a request asks of a model; an image-to-image trajectory is the last part of a grid.

    Raises:
        Error: as `choose`.
    """
    return with_levels(config, choose(config, request))


def with_levels(config: ModelConfig, choice: Choice) -> SamplePlan:
    """A choice with the noise levels that it takes."""
    levels = config.schedule.grid(choice.grid_steps, choice.spacing)
    levels = levels[choice.grid_steps - choice.steps :]
    return SamplePlan(**vars(choice), levels=levels)


def _restored(
    config: ModelConfig, request: Request, sampler: str, options: dict[str, Any], steps: int
) -> tuple[str | None, int | None]:
    """The method of a restoration, and the evaluations of its trajectory where that has jumps. Raises: Error."""
    asked = request.restoration
    if asked is None:
        if config.task.kind != "generation":
            raise Error(
                f"this model was trained for {config.task.kind} and makes no image from nothing: give it one to "
                f"restore: kuosan restore RUN IMAGE."
            )
        return None, None
    method = restoring.method(config, asked)
    if not (method == "repaint" or (method == "ddnm" and (asked.jumps or 1) > 1)):
        return method, None
    wanted = "ddpm" if method == "repaint" else "ddim"
    if sampler != wanted:
        raise Error(f"sampler {sampler!r} with method {method} and jumps, which samples by {wanted}: say {wanted!r}.")
    if options.get("variance") == "learned":
        raise Error("variance 'learned' with method repaint: use beta or posterior.")
    jump_length, jumps = asked.returns
    if jumps > 1 and jump_length >= steps:
        raise Error(f"jump_length = {jump_length} of {steps} steps leaves no room to return: less, or more --steps.")
    return method, repaint_nfe(steps, jump_length, jumps)


def check_request(config: ModelConfig, request: Request) -> None:
    """Refuse classes and guidance that a model by itself cannot give. Raises: Error."""
    task = config.task
    if task.labels:
        for name in request.classes:
            task.label(name)
    elif request.classes and request.classifier is None:
        task.label(request.classes[0])
    _check_prompts(config, request)
    if request.guidance is None or request.reference is not None:
        return
    if not task.conditioned:
        raise Error(
            f"guidance = {request.guidance}: this model was trained without classes and captions, so there is nothing "
            f"to be guided by; train with --labels or --text, or name a weaker run (--reference) or a classifier "
            f"(--classifier)."
        )
    if not task.labels and not request.prompts:
        raise Error(f"guidance = {request.guidance} leads to a prompt, and none is given: say one, or leave it out.")
    if request.negative is not None:
        if not task.text:
            task.label(request.negative)
    elif not task.dropped:
        raise Error(
            f"guidance = {request.guidance}: this model was trained with drop 0 and knows no image without its "
            f"class or caption; lead away from one (--negative) or a weaker run (--reference), or train with --drop."
        )


def _check_prompts(config: ModelConfig, request: Request) -> None:
    """Refuse prompts to a model that knows none, or that it cannot read. Raises: Error."""
    task = config.task
    if request.prompts and not task.text:
        raise Error(
            f"prompt {request.prompts[0]!r}: this model was trained without captions and understands no words; train "
            f"one with --text bytes."
        )
    if not task.text:
        return
    if not request.prompts and not task.dropped:
        raise Error("this model was trained with drop 0 and makes no image without a prompt: say one.")
    own = () if request.negative is None else (request.negative,)
    for prompt in (*request.prompts, *own):
        segments = tokens.parse(prompt)
        if isinstance(config.text, ByteText):
            count = 1 + sum(tokens.length(segment) - 1 for segment, _ in segments)
            if count > config.text.length:
                raise tokens.too_long(prompt, count, config.text.length)


def refuse_to_itself(config: ModelConfig, request: Request) -> None:
    """Refuse guidance from a class to the same one, as a person may ask; a part of a request may well be that.

    Raises: Error.
    """
    task = config.task
    for name in ("negative", "reference", "guidance_rescale"):
        if request.guidance == 1 and getattr(request, name):
            raise Error(
                f"{name} has no effect with guidance 1, which is none: give --guidance 3, say, or leave it out."
            )
    if request.guidance is not None and request.prompts and set(request.prompts) == {request.negative}:
        raise Error(f"guidance = {request.guidance} from a prompt to itself has no effect: the negative is the prompt.")
    if request.guidance is None or request.reference is not None or not task.labels or not request.classes:
        return
    if task.text:
        return
    away = NULL if request.negative is None else request.negative
    if all(task.label(name) == task.label(away) for name in request.classes):
        raise Error(
            f"guidance = {request.guidance} from class {away!r} to itself has no effect; name another class, or leave "
            f"--guidance out."
        )


def check_guides(
    config: ModelConfig,
    request: Request,
    classifier: ModelConfig | None,
    reference: ModelConfig | None,
    size: tuple[int, int] | None = None,
) -> None:
    """Refuse a classifier or a weaker model that does not fit the model; `size` is the images', where it is known.

    Raises: Error.
    """
    for name, other in (("classifier", classifier), ("reference", reference)):
        if other is None:
            continue
        if other.network.kind == "autoencoder":
            raise Error(f"{name} {getattr(request, name)!r} is an autoencoder, which guides nothing: name another run.")
        if (other.network.kind == "classifier") != (name == "classifier"):
            raise Error(
                f"{name} {getattr(request, name)!r} is "
                + ("no classifier: train one with --objective classifier." if name == "classifier" else "a classifier.")
            )
        if other.network.kind == "classifier" and not other.network.noisy:
            raise Error(
                f"classifier {request.classifier!r} is a judge of clean images: it cannot guide in noise; "
                f"name one trained without --no-noisy."
            )
        why = apart(config.codec, other.codec)
        if why is not None:
            raise Error(f"{name} {getattr(request, name)!r} {why}: both must be trained on the same latents.")
        assert config.shape is not None and other.shape is not None, "trained models know their shapes"
        width, height = size = size or of(config, request)
        shape = (config.shape[0], height, width)
        if other.shape[0] != shape[0] or not allowed(other, size):
            raise Error(f"{name} {getattr(request, name)!r} sees images of {other.shape}, this model {shape}.")
        if config.task.labels and other.task.labels and other.task.class_names != config.task.class_names:
            raise Error(
                f"{name} {getattr(request, name)!r} knows the classes {', '.join(other.task.class_names)}, this model "
                f"{', '.join(config.task.class_names)}: both must be trained on the same."
            )
    if reference is not None and not _one_task(config.task, reference.task):
        raise Error(
            f"reference {request.reference!r} was trained for another task ({reference.task.kind}) than this model "
            f"({config.task.kind}), or for other damage: both must be shown the same."
        )
    if reference is not None and (reference.schedule != config.schedule or reference.task.labels > config.task.labels):
        raise Error(
            f"reference {request.reference!r} has another schedule or task than this model: both must be alike."
        )
    if reference is not None and reference.task.text > config.task.text:
        raise Error(f"reference {request.reference!r} takes captions, and this model does not: both must be alike.")
    if reference is not None and reference.task.labels:
        for name in request.classes:
            reference.task.label(name)  # one trained with drop 0 knows no `none`
    if classifier is not None and not config.task.labels:
        for name in request.classes:
            classifier.task.label(name)
    if classifier is not None and NULL in request.classes and NULL not in classifier.task.class_names:
        raise Error("class 'none' with a classifier: it has no such class to lead to; name one.")


def _one_task(one: Task, other: Task) -> bool:
    """Whether two models can be shown the same of an image."""
    shown = ("kind", "scale", "noise")
    return all(getattr(one, name, None) == getattr(other, name, None) for name in shown)


def _steps_taken(request: Request, steps: int) -> int:
    if request.image is None:
        return steps
    strength = STRENGTH if request.strength is None else request.strength
    taken = round(strength * steps)
    if taken < 1:
        raise Error(
            f"strength {strength} of {steps} steps is no step at all; "
            f"raise --strength to {1 / steps:.3f} or more, or --steps."
        )
    return taken


Size = tuple[int, int]  # width, height, as people say them
TOLERANCE = 0.25  # of the pixels of the smallest and the largest trained shape


def factor(config: ModelConfig) -> int:
    """The sides of a model's images are multiples of this; of a caller's network, as all it was trained on are."""
    if isinstance(config.network, OwnNetwork):
        return gcd(*(side for shape in config.shapes or (_own(config),) for side in shape))
    return config.codec.factor * config.network.factor


def text(size: Size) -> str:
    """96x64: width, then height."""
    return f"{size[0]}x{size[1]}"


def allowed(config: ModelConfig, size: Size) -> bool:
    """Whether a model makes images of a size."""
    return size == _own(config) or (bool(config.shapes) and _why_not(config, size) is None)


def of(config: ModelConfig, request: Request) -> Size:
    """The size of the images that a request asks of a model: as it says, else the model's own.

    Raises:
        Error: the model was not trained for that size.
    """
    own = _own(config)
    if request.aspect is not None:
        return _of_aspect(config, request.aspect)
    size = own if request.size is None else request.size
    if size == own:
        return own
    if not config.shapes:
        raise Error(
            f"size {text(size)}: this model was trained on images of {text(own)} alone and has never seen another "
            f"shape; leave --size out, or train on several with --data.resize buckets."
        )
    reason = _why_not(config, size)
    if reason is not None:
        near = _nearest(config, size[0] / size[1])
        raise Error(f"size {text(size)}: {reason}. {text(near)} would do.")
    return size


def sized(model: Model, size: Size) -> Model:
    """The same model making images of a size, which is allowed."""
    if size == _own(model.config):
        return model
    return replace(model, config=replace(model.config, shape=(model.shape[0], size[1], size[0])))


def asked(model: Model, request: Request) -> Model:
    """The model as it makes what a request asks for. Raises: Error for a size that it was not trained for."""
    return sized(model, of(model.config, request))


def taking(model: Model, size: Size) -> Model:
    """The model making images of a size, where its network takes them whole; else the model as it is."""
    return sized(model, size) if allowed(model.config, size) else model


def nearest_trained(config: ModelConfig, size: Size) -> Size:
    """The trained size whose aspect ratio is nearest to that of a size."""
    if not config.shapes:
        return _own(config)
    height, width = config.shapes[buckets.nearest(config.shapes, size[1], size[0])]
    return width, height


def _own(config: ModelConfig) -> Size:
    assert config.shape is not None, "a built model knows its shape"
    return config.shape[2], config.shape[1]


def _of_aspect(config: ModelConfig, aspect: str) -> Size:
    wanted = ratio(aspect)
    if not config.shapes:
        width, height = own = _own(config)
        if abs(width / height / wanted - 1) < 1e-6:
            return own
        raise Error(
            f"aspect {aspect}: this model was trained on images of {text(own)} alone and has never seen another "
            f"shape; leave --aspect out, or train on several with --data.resize buckets."
        )
    ratios = [w / h for h, w in config.shapes]
    if not min(ratios) * (1 - 1e-6) <= wanted <= max(ratios) * (1 + 1e-6):
        tall, wide = ((w, h) for h, w in (config.shapes[0], config.shapes[-1]))
        raise Error(
            f"aspect {aspect}: this model was trained on images from {text(tall)} to {text(wide)}, and this lies "
            f"beyond them; give one between, or --size {text(wide if wanted > 1 else tall)}."
        )
    return _nearest(config, wanted)


def _why_not(config: ModelConfig, size: Size) -> str | None:
    """What is wrong with a size for a model of buckets, in words."""
    width, height = size
    whole = factor(config)
    if width % whole or height % whole:
        return f"both sides must be multiples of {whole}, which this model's network takes"
    ratios, pixels = [w / h for h, w in config.shapes], [h * w for h, w in config.shapes]
    tall, wide = ((w, h) for h, w in (config.shapes[0], config.shapes[-1]))
    if not min(ratios) <= width / height <= max(ratios):
        return f"this model was trained on images from {text(tall)} to {text(wide)}, and this lies beyond them"
    low, high = (1 - TOLERANCE) * min(pixels), (1 + TOLERANCE) * max(pixels)
    if not low <= width * height <= high:
        return (
            f"this model was trained on images of {min(pixels):,} to {max(pixels):,} pixels, and {width * height:,} "
            f"are too {'many' if width * height > high else 'few'}"
        )
    return None


def _nearest(config: ModelConfig, wanted: float) -> Size:
    """The allowed size of the nearest ratio and number of pixels, which counts a quarter; if alike a trained one."""
    whole, shapes = factor(config), config.shapes
    middle = sum(h * w for h, w in shapes) / len(shapes)
    low, high = ((1 - TOLERANCE) * min(h * w for h, w in shapes), (1 + TOLERANCE) * max(h * w for h, w in shapes))
    every = (
        (w, h)
        for w in range(whole, 2 * max(max(shape) for shape in shapes), whole)
        for h in range(ceil(low / w / whole) * whole, int(high / w) + 1, whole)
    )

    def far(size: Size) -> float:
        w, h = size
        return abs(log(w / h / wanted)) + 0.25 * abs(log(w * h / middle)) * ((h, w) not in shapes)

    return min((size for size in every if _why_not(config, size) is None), key=far)
