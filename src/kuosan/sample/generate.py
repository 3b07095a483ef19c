"""Model + Request -> steps -> images: the one place where kuosan samples.

`generate` yields after every denoising step, so that a caller can draw a bar, show a preview, write an animation or
stop; it owns no bar itself. Trainer's previews, evaluation and the shell all come through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch

from kuosan import seeds
from kuosan.data.config import RGBA
from kuosan.diffusion import registry, restoration
from kuosan.diffusion.grids import repaint_times
from kuosan.diffusion.samplers import SAMPLERS
from kuosan.errors import Error, plural
from kuosan.models.codec import PIXELS, Codec
from kuosan.sample import constraint
from kuosan.sample import plan as sizes
from kuosan.sample.guidance_models import Guides, check, guided
from kuosan.sample.plan import SamplePlan, plan
from kuosan.sample.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.data.dataset import Given
    from kuosan.diffusion.denoiser import Denoiser
    from kuosan.diffusion.level import Level
    from kuosan.diffusion.operators import Measurement
    from kuosan.diffusion.samplers import Sampler
    from kuosan.diffusion.samplers.step import Noise, Step
    from kuosan.models.model import Model

NOBODY = Guides()
EXACT_BATCH = 8  # every batch of an exact request is padded to this
# Alpha of made images, 0 to 1, that is as good as none and as good as whole: what lies between is the edge.
# Measured on icons and on images of a model of them (docs/data.md): below and above lies haze.
CLEAR, SOLID = 1 / 8, 7 / 8


@dataclass(frozen=True)
class Frame:
    """One denoising step of one batch: images `first` to `first + len(x0) - 1` after step `step` of `steps`."""

    first: int
    step: int  # 1 .. steps
    steps: int
    level: Level  # the noise that `x` still has
    x0: Tensor  # (B, C, H, W) float32, the image predicted so far
    x: Tensor  # (B, C, H, W) float32, the sampler's state; the image itself when done
    codec: Codec = PIXELS  # of what is denoised: until it is done, `x` and `x0` are latents of a latent model

    @property
    def done(self) -> bool:
        """Whether `x` is the finished image."""
        return self.step == self.steps

    def image(self) -> Tensor:
        """What the state looks like, (B, C, H, W) about [-1, 1]: noise and image at an image's scale."""
        scale = float((self.level.alpha**2 + self.level.sigma**2).sqrt())
        return self.x if self.done else self.codec.finish(self.x / scale)


@dataclass(frozen=True)
class RequestImages:
    """What is known of the images of a request."""

    given: Given | None
    measurement: Measurement | None

    def of(self, rows: Sequence[int], device: torch.device) -> tuple[Given | None, Measurement | None]:
        """What is known of some of them, on a device."""
        given, measurement = self.given, self.measurement
        if given is not None:
            given = (given.rows(rows) if len(given.image) > 1 else given.expanded(len(rows))).to(device)
        if measurement is not None:
            measurement = constraint.moved(constraint.rows(measurement, rows), device)
        return given, measurement


@dataclass(frozen=True)
class Sampling:
    """A request that was resolved against its models: all that is needed to sample, and nothing to ask any more."""

    model: Model  # making images of the request's size
    request: Request
    plan: SamplePlan
    guides: Guides = NOBODY
    start: Tensor | None = None
    noise: Tensor | None = None
    known: RequestImages = RequestImages(None, None)


class RequestInputs(TypedDict, total=False):
    """What a request is sampled from and led by, all of it opened.

    Attributes:
        start: (C, H, W) or (n, C, H, W) images in [-1, 1] to start from (image to image), with `request.strength`.
        noise: (n, *model.sample_shape) standard normal noise to start from instead of the seeds'; for interpolation.
        guides: the classifier and the weaker model that the request names.
        given: what is known of the images, where the model was trained to restore: one row, or one an image.
        measurement: what is known of them, where `request.restoration` holds the model to it by a method.
    """

    start: Tensor | None
    noise: Tensor | None
    guides: Guides
    given: Given | None
    measurement: Measurement | None


def resolve_request(
    model: Model,
    request: Request,
    *,
    start: Tensor | None = None,
    noise: Tensor | None = None,
    guides: Guides = NOBODY,
    given: Given | None = None,
    measurement: Measurement | None = None,
    resolved: SamplePlan | None = None,
) -> Sampling:
    """Resolve and check a request once; the arguments are those of `RequestInputs`.

    Args:
        resolved: the plan of this very request, with its guides checked, where the caller has it.

    Raises:
        Error: what this model cannot be sampled with.
    """
    trajectory = plan(model.config, request) if resolved is None else resolved
    if resolved is None:
        check(model, request, guides, trajectory.size)
    if trajectory.size is not None:
        model = sizes.sized(model, trajectory.size)
    _check_shapes(model, request, start, noise)
    constraint.check(model, request, trajectory, given, measurement)
    return Sampling(model, request, trajectory, guides, start, noise, RequestImages(given, measurement))


@torch.no_grad()
def generate(model: Model, request: Request, **inputs: Unpack[RequestInputs]) -> Iterator[Frame]:
    """Sample what the request asks for, batch by batch, step by step.

    Args:
        inputs: start, noise, guides, given, measurement: see `RequestInputs`.

    Raises:
        Error: a sampler, spacing, number of steps or option that this model cannot be sampled with.
    """
    yield from frames_of(resolve_request(model, request, **inputs))


@torch.no_grad()
def frames_of(asked: Sampling) -> Iterator[Frame]:
    """Sample what was resolved, batch by batch, step by step."""
    request = asked.request
    size = EXACT_BATCH if request.exact else min(request.batch, request.n)
    for first in range(0, request.n, size):
        rows = range(first, min(first + size, request.n))
        yield from _batch(asked, rows, size if request.exact else len(rows))


def sample(
    model: Model,
    request: Request,
    *,
    on_step: Callable[[Frame], None] | None = None,
    **inputs: Unpack[RequestInputs],
) -> Tensor:
    """The finished images of a request: (n, C, H, W) float32 in [-1, 1], on the model's device."""
    images = []
    for frame in generate(model, request, **inputs):
        if on_step is not None:
            on_step(frame)
        if frame.done:
            images.append(frame.x)
    return torch.cat(images)


def snap_alpha(x: Tensor) -> Tensor:
    """Made images (..., 4, H, W) in [-1, 1] without haze: alpha below `CLEAR` is 0, above `SOLID` 1, colour within it.

    Outside of a shape all channels are -1; between the two alpha stays as it is. What is snapped stays so.
    """
    alpha = x[..., 3:, :, :].add(1).div(2)
    edge = alpha.clamp(0, 1).masked_fill(alpha < CLEAR, 0.0).masked_fill(alpha > SOLID, 1.0)
    colour = x[..., :3, :, :].add(1).div(2) * (edge / alpha.clamp(CLEAR, 1))
    return torch.cat([colour.clamp(min=0).minimum(edge), edge], -3).mul(2).sub(1)


def image_noise(seeds_: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """The noise that images of these seeds start from: (len(seeds_), *shape) standard normal."""
    return seeds.normal([(seed, "sample/start", 0, 0) for seed in seeds_], shape)


def request_noise(request: Request, rows: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """The noise that these images of a request start from; on an arc between two seeds' where it asks for that."""
    if request.between is None:
        return image_noise([request.seed + row for row in rows], shape)
    ends = image_noise(request.between, shape)
    places = torch.tensor([row / max(1, request.n - 1) for row in rows])
    return slerp(ends[0], ends[1], places)


def slerp(a: Tensor, b: Tensor, places: Tensor) -> Tensor:
    """Spherical interpolation, which keeps noise as long as noise is: a, b (C, H, W), places (N,) in [0, 1].

    Shoemake 1985: sin((1-s)w)/sin(w) a + sin(sw)/sin(w) b with w the angle between a and b.
    """
    cosine = (a.double() * b.double()).sum() / (a.double().norm() * b.double().norm())
    angle = torch.arccos(cosine.clamp(-1, 1))  # rounding may carry the same noise twice past 1
    s = places.double().reshape(-1, *[1] * a.ndim)
    if angle < 1e-6:  # the same noise twice
        return a.expand(len(places), *a.shape).clone()
    return ((torch.sin((1 - s) * angle) * a + torch.sin(s * angle) * b) / torch.sin(angle)).float()


def _batch(asked: Sampling, rows: range, size: int) -> Iterator[Frame]:
    model, request, trajectory, start, noise = asked.model, asked.request, asked.plan, asked.start, asked.noise
    device = next((parameter.device for parameter in model.network.parameters()), torch.device("cpu"))
    keep = len(rows)
    padded = [*rows, *[rows[-1]] * (size - keep)]
    own_seeds = [request.seed + row for row in padded]

    def step_noise(i: int, now: Level, to: Level) -> Tensor:
        keys = [(seed, "sample/step", i, 0) for seed in own_seeds]
        drawn = seeds.normal(keys, model.sample_shape, seeds.BESIDE_A_GPU if device.type == "cuda" else 1)
        return drawn.to(device, non_blocking=True)

    first_noise = (
        noise[padded].cpu().float() if noise is not None else request_noise(request, padded, model.sample_shape)
    )
    x = _start(model, trajectory, first_noise, None if start is None else _encoded(model, start, padded, device))
    given, measurement = asked.known.of(padded, device)
    denoise = guided(model, request, asked.guides, padded, device, given)
    shown = None if measurement is None else constraint.in_space(model, trajectory, measurement)
    if shown is not None:
        denoise = constraint.held(denoise, model, trajectory, request, shown)
    taken = _steps(model, request, trajectory, denoise, x.to(device), step_noise, shown)
    steps = len(trajectory.levels) - 1 if trajectory.jumping is None else trajectory.jumping
    for i, (step, level) in enumerate(islice(taken, steps), start=1):
        last = step.x
        if i == steps:  # one by one on a processor, where that costs little
            image = model.codec.finish(last.float(), alone=device.type == "cpu" or request.exact)
            image = snap_alpha(image) if model.shape[0] == RGBA else image
            last = constraint.finish(image, given, measurement)
        yield Frame(rows[0], i, steps, level, step.x0[:keep].float(), last[:keep].float(), model.codec)


def _steps(
    model: Model,
    request: Request,
    trajectory: SamplePlan,
    denoise: Denoiser,
    x: Tensor,
    noise: Noise,
    measurement: Measurement | None,
) -> Iterator[tuple[Step, Level]]:
    """The steps of a trajectory, each with the level that it ends at."""
    options, asked = dict(trajectory.options), request.restoration
    if trajectory.jumping is not None:
        assert asked is not None and measurement is not None
        length, jumps = asked.returns
        times = repaint_times(len(trajectory.levels) - 1, length, jumps)
        ends = [trajectory.levels[to] for now, to in pairwise(times) if to > now]
        if trajectory.method == "repaint":
            steps = restoration.repaint(denoise, x, trajectory.levels, noise, measurement, length, jumps, **options)
        else:
            steps = restoration.resampled(denoise, x, trajectory.levels, noise, length, jumps, **options)
        yield from zip(steps, ends)
        return
    if registry.SAMPLERS[trajectory.sampler].at_log_snr:
        options["at_log_snr"] = model.config.schedule.at_log_snr
    sampler: Sampler = SAMPLERS[trajectory.sampler]
    yield from zip(sampler(denoise, x, trajectory.levels, noise, **options), trajectory.levels[1:])


def _encoded(model: Model, start: Tensor, rows: Sequence[int], device: torch.device) -> Tensor:
    """The images that these rows start from as what is denoised, each by itself; one stands for all."""
    if not model.codec.latent:
        return start[list(rows)] if start.ndim == 4 else start
    own = {row: start[row] for row in rows} if start.ndim == 4 else {row: start for row in rows[:1]}
    found = {row: model.codec.encode(x[None].float().to(device)).cpu() for row, x in own.items()}
    return torch.cat([found[row if start.ndim == 4 else rows[0]] for row in rows])


def _start(model: Model, trajectory: SamplePlan, noise: Tensor, start: Tensor | None) -> Tensor:
    level = trajectory.levels[0]
    if start is None:
        return noise * float(model.config.schedule.prior_std(level))
    return float(level.alpha) * start.cpu().float() + float(level.sigma) * noise


def _check_shapes(model: Model, request: Request, start: Tensor | None, noise: Tensor | None) -> None:
    if noise is not None and tuple(noise.shape) != (request.n, *model.sample_shape):
        raise Error(f"noise has shape {tuple(noise.shape)}; this request needs {(request.n, *model.sample_shape)}.")
    if start is not None and tuple(start.shape) not in (model.shape, (request.n, *model.shape)):
        raise Error(
            f"the image to start from has shape {tuple(start.shape)}; this model makes {model.shape}: "
            f"resize it to {model.shape[1]} x {model.shape[2]} with {plural(model.shape[0], 'channel')}."
        )
    if start is None and request.image is not None:
        raise Error(f"the request starts from {request.image!r}, but no pixels were given: pass them as start=.")
    if start is not None and request.image is None:
        raise Error(
            "start= was given, but the request has no image: set image= (any name) and, if you like, strength=."
        )
    if start is not None and noise is not None:
        raise Error("start= and noise= cannot both be given: an image starts from its own noise or from yours.")
