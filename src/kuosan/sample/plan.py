"""From a request and a model to the walk: which sampler, over which noise levels, with which options.

Refuses what cannot be sampled, before anything is computed; `choose` does so without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kuosan.diffusion import names
from kuosan.diffusion.schedule import Discrete
from kuosan.errors import Error

if TYPE_CHECKING:
    from kuosan.diffusion.level import Level
    from kuosan.model import ModelConfig
    from kuosan.sample.request import Request

STRENGTH = 0.6  # of an image-to-image request that names none


@dataclass(frozen=True)
class Choice:
    """A sampler by its canonical name, the steps of the whole grid and those walked, their spacing, the options."""

    sampler: str
    grid_steps: int
    steps: int
    spacing: str | None
    options: dict[str, Any]

    @property
    def evaluations(self) -> int:
        """Network evaluations a picture."""
        return names.SAMPLERS[self.sampler].evaluations(self.steps)


@dataclass(frozen=True)
class Plan(Choice):
    """A choice and its grid, noise first."""

    levels: Level


def choose(config: ModelConfig, request: Request) -> Choice:
    """What a request asks of a model, every name resolved and every combination checked. Torch-free.

    Raises:
        Error: an unknown name, an option that the sampler lacks, or a combination that cannot be sampled.
    """
    schedule = config.schedule
    sampler = names.sampler(request.sampler)
    spec = names.SAMPLERS[sampler]
    steps = request.steps
    if steps is None:
        steps = spec.default_steps
        if isinstance(schedule, Discrete):
            steps = schedule.T if sampler == "ddpm" else min(steps, schedule.T)
    spacing = request.spacing or names.default_spacing(schedule)
    variance = None if request.variance is None else names.variance(request.variance)
    options = {key: value for key, value in {"eta": request.eta, "variance": variance}.items() if value is not None}
    names.check(
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
    return Choice(sampler, steps, _walked(request, steps), spacing, options)


def plan(config: ModelConfig, request: Request) -> Plan:
    """The walk that a request asks of a model; an image-to-image walk is the last part of a grid.

    Raises:
        Error: as `choose`.
    """
    choice = choose(config, request)
    levels = config.schedule.grid(choice.grid_steps, choice.spacing)
    levels = levels[choice.grid_steps - choice.steps :]
    return Plan(choice.sampler, choice.grid_steps, choice.steps, choice.spacing, choice.options, levels)


def _walked(request: Request, steps: int) -> int:
    if request.image is None:
        return steps
    strength = STRENGTH if request.strength is None else request.strength
    walked = round(strength * steps)
    if walked < 1:
        raise Error(
            f"strength {strength} of {steps} steps is no step at all; "
            f"raise --strength to {1 / steps:.3f} or more, or --steps."
        )
    return walked
