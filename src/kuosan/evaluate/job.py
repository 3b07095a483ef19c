"""The jobs of this room: what is measured, compared or reconstructed, as the shell and Python say it.

    plan = plan_evaluate(EvaluateJob(target="runs/mine"))      everything opened, resolved and refused, once
    for event in run_evaluate(plan): ...                       Progress ... Warned ... Wrote ... Finished

What config.yaml alone refuses is refused before torch is loaded, and what it resolves is not resolved again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

from kuosan.errors import Error
from kuosan.evaluate.comparison import ComparisonConfig
from kuosan.evaluate.config import EvaluateConfig, ReconstructionConfig
from kuosan.events import Event, Fact, Finished, OnEvent, Progress, Warned

if TYPE_CHECKING:
    from kuosan.models.model import ModelConfig
    from kuosan.sample.plan import Choice
    from kuosan.sample.request import Request

SAMPLING = "sampling"  # the Fact that comes once, after the first batch: how long the rest of the sampling takes


class EvaluationReport(Protocol):
    """Follows a job: the shell's bars, say."""

    def say(self, text: str) -> None:
        """A sentence."""

    def left(self, seconds: float, evaluations: int) -> None:
        """Called once, after the first batch: how long the rest of the sampling will take."""

    def progress(self, what: str, done: int, of: int) -> None:
        """Some work has come to `done`."""


class SilentEvaluation:
    """Nobody follows."""

    def say(self, text: str) -> None:
        """Nothing."""

    def left(self, seconds: float, evaluations: int) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, of: int) -> None:
        """Nothing."""


def follow(report: EvaluationReport) -> OnEvent:
    """What passes a job's events on to a report."""

    def on_event(event: Event) -> None:
        match event:
            case Progress(what, done, of) if of is not None:
                report.progress(what, done, of)
            case Warned(text):
                report.say(f"warning: {text}")
            case Fact(name, values) if name == SAMPLING:
                report.left(values["seconds"], values["evaluations"])

    return on_event


def finish(events: Iterator[Event], report: EvaluationReport) -> Any:
    """Run a job to its end, followed by a report; what it came to. A report that raises stops the job cleanly."""
    on_event = follow(report)
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Finished):
                return event.result
            on_event(event)
    raise AssertionError("a job ends with Finished")


@dataclass(frozen=True)
class EvaluateJob(EvaluateConfig):
    """Measure the images of a target: a run, a checkpoint, or a folder or zip of images."""

    target: str = field(default="", metadata={"option": False})
    dry_run: bool = False  # say what would be done, and do nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target:
            raise Error("nothing to measure: kuosan evaluate RUN, or a folder of images with --against PATH.")

    @classmethod
    def of(cls, target: str, config: EvaluateConfig, dry_run: bool = False) -> EvaluateJob:
        """The job of settings that are there."""
        return cls(**_own(config, EvaluateConfig), target=target, dry_run=dry_run)

    @property
    def settings(self) -> EvaluateConfig:
        """What the result depends on: all but the target."""
        return EvaluateConfig(**_own(self, EvaluateConfig))


@dataclass(frozen=True)
class Foreseen:
    """What a run's config.yaml says before anything is opened; the checkpoint's own may be another."""

    model: ModelConfig | None = None
    choices: tuple[Choice, ...] = ()  # of each point


@dataclass(frozen=True)
class CompareJob(ComparisonConfig):
    """Have runs restore damaged images, and measure how near the answers come to the truth."""

    dry_run: bool = False  # say what would be done, and do nothing

    @classmethod
    def of(cls, config: ComparisonConfig) -> CompareJob:
        """The job of settings that are there."""
        return cls(**_own(config, ComparisonConfig))

    @property
    def settings(self) -> ComparisonConfig:
        """What the result depends on."""
        return ComparisonConfig(**_own(self, ComparisonConfig))


@dataclass(frozen=True)
class ForeseenMethod:
    """What config.yaml says of a contestant before anything is opened."""

    model: ModelConfig
    request: Request
    choice: Choice


@dataclass(frozen=True)
class ReconstructJob(ReconstructionConfig):
    """Encode images and decode them again with the autoencoder of a run, and measure what was lost."""

    run: str = field(default="", metadata={"option": False})
    dry_run: bool = False  # say what would be done, and do nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.run:
            raise Error("no autoencoder to measure: kuosan reconstruct RUN, or RUN IMAGES.")

    @classmethod
    def of(cls, run: str, config: ReconstructionConfig) -> ReconstructJob:
        """The job of settings that are there."""
        return cls(**_own(config, ReconstructionConfig), run=run)

    @property
    def settings(self) -> ReconstructionConfig:
        """What the result depends on: all but the run."""
        return ReconstructionConfig(**_own(self, ReconstructionConfig))


def _own(job: Any, of: type) -> dict[str, Any]:
    """The fields of a job that are those of a class it extends."""
    return {each.name: getattr(job, each.name) for each in fields(of)}
