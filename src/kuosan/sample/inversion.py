"""A picture to its noise and back: DDIM inversion with a model, and the same grid walked forwards again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kuosan.diffusion import names
from kuosan.diffusion.inversion import ddim_inversion
from kuosan.diffusion.samplers import ddim
from kuosan.diffusion.schedule import Flow
from kuosan.errors import Error
from kuosan.model import require_whole, require_wordless
from kuosan.sample.generate import slerp
from kuosan.tasks.condition import condition

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.diffusion.denoiser import Denoiser
    from kuosan.diffusion.level import Level
    from kuosan.model import Model

STEPS = 50
BATCH = 16  # pictures computed together


@dataclass(frozen=True)
class RoundTrip:
    """Pictures encoded to noise, and what DDIM makes of that noise again."""

    noise: Tensor  # (n, *model.walk_shape), near standard normal where the model knows such pictures
    back: Tensor  # (n, C, H, W) in [-1, 1]
    evaluations: int  # of the network a picture, both ways


@torch.no_grad()
def round_trip(
    model: Model,
    pictures: Tensor,
    *,
    steps: int = STEPS,
    spacing: str | None = None,
    iterations: int = 0,
    classes: Sequence[str] = (),
) -> RoundTrip:
    """Encode pictures (n, C, H, W) in [-1, 1] to noise along DDIM's path, and decode that noise again.

    Nothing is clipped on the way: what a bound takes away, no way back restores.

    Args:
        iterations: how often each step of the way to noise asks again (0 is the published inversion).
        classes: the pictures' classes, in turn; none: no class.

    Raises:
        Error: pictures of another shape, a class the model does not know, a schedule without a first trained level.
    """
    way = Way(model, steps, spacing, iterations, tuple(classes))
    noise = way.encode(pictures)
    return RoundTrip(noise, way.decode(noise).clamp(-1, 1), steps * (iterations + 2))


@torch.no_grad()
def between(
    model: Model,
    pictures: Tensor,
    n: int,
    *,
    steps: int = STEPS,
    spacing: str | None = None,
    iterations: int = 0,
    classes: Sequence[str] = (),
) -> Tensor:
    """`n` pictures on the way from one picture to another, (2, C, H, W) -> (n, C, H, W), the ends as they come back.

    Their noises (by inversion) are interpolated along the sphere, and decoded by DDIM (Song et al. 2021, section 5.3).

    Raises:
        Error: other than two pictures, fewer than 2 places, and what `round_trip` refuses.
    """
    check_ends(len(pictures), n, classes)
    way = Way(model, steps, spacing, iterations, tuple(classes))
    ends = way.encode(pictures)
    return way.decode(slerp(ends[0], ends[1], torch.linspace(0, 1, n))).clamp(-1, 1)


def check_ends(pictures: int, n: int, classes: Sequence[str]) -> None:
    """Refuse other than two pictures of one class, and fewer than 2 places. Raises: Error."""
    if pictures != 2:
        raise Error(f"{pictures} pictures: a way leads from one to another; give two.")
    if n < 2:
        raise Error(f"between = {n}: need 2 places (the ends) or more, as in 8.")
    if len(set(classes)) > 1:
        raise Error(f"classes {', '.join(classes)}: both ends and the way between them are of one class; give one.")


class Way:
    """DDIM's path between pictures and noise, walked both ways."""

    def __init__(
        self, model: Model, steps: int, spacing: str | None, iterations: int, classes: tuple[str, ...]
    ) -> None:
        require_whole(model.config, "inversion")
        require_wordless(model.config, "inversion")
        self.model, self.iterations, self.classes = model, iterations, classes
        self.levels = _levels(model, steps, spacing)
        self.prior = float(model.config.schedule.prior_std(self.levels[0]))
        self.device = next((parameter.device for parameter in model.network.parameters()), torch.device("cpu"))
        _labels(model, 1, classes)  # refused now

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (n, C, H, W) to their noise, near standard normal where the model knows such pictures."""
        if pictures.ndim != 4 or tuple(pictures.shape[1:]) != self.model.shape:
            wanted = ", ".join(map(str, self.model.shape))
            raise Error(f"pictures of shape {tuple(pictures.shape)}: this model inverts (n, {wanted}).")
        found = []
        encode, device = self.model.codec.encode, self.device
        latents = torch.cat([encode(x.float().to(device)) for x in torch.split(pictures, 1)])
        for denoise, x in self._parts(latents):
            for step in ddim_inversion(denoise, x, self.levels, self.iterations):
                x = step.x
            if not bool(x.isfinite().all()):
                raise Error(
                    f"inversion with {self.iterations} iterations a step diverged: this network changes too fast for "
                    f"them; use fewer iterations (0 is the published inversion), or more steps."
                )
            found.append(x / self.prior)
        return torch.cat(found).cpu()

    def decode(self, noise: Tensor) -> Tensor:
        """Noise (n, *model.walk_shape) to pictures (n, C, H, W); those of pixels not clipped."""
        found = []
        for denoise, x in self._parts(noise * self.prior):
            for step in ddim(denoise, x, self.levels, _silence):
                x = step.x
            found.append(self.model.codec.finish(x))
        return torch.cat(found).cpu()

    def _parts(self, x: Tensor) -> Iterator[tuple[Denoiser, Tensor]]:
        """Batches, each with the denoiser that knows its classes."""
        label = _labels(self.model, len(x), self.classes)
        for begin in range(0, len(x), BATCH):
            part = slice(begin, begin + BATCH)
            own = None if label is None else label[part].to(self.device)
            yield self.model.denoiser(condition(self.model.config.task, own)), x[part].to(self.device)


def _levels(model: Model, steps: int, spacing: str | None) -> Level:
    schedule = model.config.schedule
    if isinstance(schedule, Flow):
        raise Error(
            "inversion of a flow model: its schedule has no first trained level to begin at; "
            "use a discrete or karras one."
        )
    if names.starts_at_pure_noise(schedule):
        raise Error(
            "inversion with zero_terminal_snr: the noisiest state tells nothing of the picture, so none is found."
        )
    names.check_walk(schedule, steps, spacing, "first", 0)
    return schedule.grid(steps, spacing or names.default_spacing(schedule), last="first")


def _labels(model: Model, n: int, classes: Sequence[str]) -> Tensor | None:
    task = model.config.task
    if not task.labels:
        for name in classes:
            task.label(name)
        return None
    if not classes and not task.dropped:
        raise Error("inversion without a class: this model was trained with drop 0; name the pictures' (--class).")
    own = [task.label(name) for name in classes] or [task.null]
    return torch.tensor([own[i % len(own)] for i in range(n)])


def _silence(i: int, now: Level, to: Level) -> Tensor:
    raise AssertionError("DDIM with eta 0 asks for no noise")
