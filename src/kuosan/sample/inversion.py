"""A picture to its noise and back: DDIM inversion with a model, and the same grid walked forwards again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kuosan.diffusion import names
from kuosan.diffusion.inversion import ddim_inversion
from kuosan.diffusion.samplers import ddim
from kuosan.diffusion.schedule import Flow
from kuosan.errors import Error
from kuosan.tasks.generation import condition

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.diffusion.level import Level
    from kuosan.model import Model

STEPS = 50
BATCH = 16  # pictures computed together


@dataclass(frozen=True)
class RoundTrip:
    """Pictures encoded to noise, and what DDIM makes of that noise again."""

    noise: Tensor  # (n, C, H, W), near standard normal where the model knows such pictures
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
    if pictures.ndim != 4 or tuple(pictures.shape[1:]) != model.shape:
        wanted = ", ".join(map(str, model.shape))
        raise Error(f"pictures of shape {tuple(pictures.shape)}: this model inverts (n, {wanted}).")
    levels = _levels(model, steps, spacing)
    label = _labels(model, len(pictures), classes)
    device = next((parameter.device for parameter in model.network.parameters()), torch.device("cpu"))
    noises, backs = [], []
    for begin in range(0, len(pictures), BATCH):
        part = slice(begin, begin + BATCH)
        told = condition(model.config.task, None if label is None else label[part])
        denoise = model.denoiser({door: value.to(device) for door, value in told.items()})
        x = pictures[part].to(device)
        for step in ddim_inversion(denoise, x, levels, iterations):
            x = step.x
        if not bool(x.isfinite().all()):
            raise Error(
                f"inversion with {iterations} iterations a step diverged: this network changes too fast for them; "
                f"use fewer iterations (0 is the published inversion), or more steps."
            )
        noises.append(x / float(model.config.schedule.prior_std(levels[0])))
        for step in ddim(denoise, x, levels, _silence):
            x = step.x
        backs.append(x.clamp(-1, 1))
    return RoundTrip(torch.cat(noises).cpu(), torch.cat(backs).cpu(), steps * (iterations + 2))


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
