"""The jobs of this room: what is measured, compared or reconstructed, as the shell and Python say it.

    plan = plan_evaluate(EvaluateJob(target="runs/mine"))      everything opened, resolved and refused, once
    for event in run_evaluate(plan): ...                       Progress ... Warned ... Wrote ... Finished

What config.yaml alone refuses is refused before torch is loaded, and what it resolves is not resolved again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kuosan import config as trees
from kuosan.data.config import PORTRAITS
from kuosan.errors import Error
from kuosan.evaluate import comparison
from kuosan.evaluate import config as sweep
from kuosan.evaluate.comparison import ComparisonConfig
from kuosan.evaluate.config import EvaluateConfig, ReconstructionConfig, require_autoencoder
from kuosan.events import Event, Fact, Finished, Progress, Warned

if TYPE_CHECKING:
    from kuosan.evaluate.compare import ComparePlan
    from kuosan.evaluate.config import Point
    from kuosan.evaluate.damage import Distance
    from kuosan.evaluate.prepare import EvaluatePlan
    from kuosan.evaluate.reconstruct import ReconstructPlan
    from kuosan.metrics.features.network import FeatureNetwork
    from kuosan.models.model import ModelConfig
    from kuosan.sample.pipeline import Pipeline
    from kuosan.sample.plan import Choice
    from kuosan.sample.request import Request

SAMPLING = "sampling"  # the Fact that comes once, after the first batch: how long the rest of the sampling takes
OnProgress = Callable[[str, int, int], None]


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


def finish(events: Iterator[Event], report: EvaluationReport) -> Any:
    """Run a job to its end, followed by a report; what it came to. A report that raises stops the job cleanly."""
    with closing(events):  # type: ignore[type-var]
        for event in events:
            match event:
                case Progress(what, done, of) if of is not None:
                    report.progress(what, done, of)
                case Warned(text):
                    report.say(f"warning: {text}")
                case Fact(name, values) if name == SAMPLING:
                    report.left(values["seconds"], values["evaluations"])
                case Finished(result):
                    return result
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


def plan_evaluate(
    job: EvaluateJob,
    *,
    model: Pipeline | None = None,
    network: FeatureNetwork | None = None,
    progress: OnProgress = lambda what, done, of: None,
) -> EvaluatePlan:
    """Open the target, the real images and the networks.

    Args:
        model: the target, where it is open already; `job.target` is its name.
        network: in the place of the feature network that the job names.
        progress: called as images are read.

    Raises:
        Error: something cannot be opened, sampled or measured.
    """
    points = sweep.points(job.request, job.sweep)
    foreseen = Foreseen() if model is not None else _foreseen(job.target, points)
    from kuosan.evaluate.prepare import open_evaluation

    return open_evaluation(model or job.target, job.settings, points, foreseen, progress, network)


def _foreseen(target: str, points: Sequence[Point]) -> Foreseen:
    """What can be refused without torch: no such target, an impossible point of a sweep. Raises: Error."""
    path = Path(target)
    if not path.exists() and target != PORTRAITS:
        raise Error(f"there is no {target}: give a run, a checkpoint, or a folder or zip of images.")
    model = stored_model(path) if (path / "checkpoints").is_dir() else None
    return Foreseen() if model is None else Foreseen(model, tuple(sweep.check_sweep(model, points)))


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


def plan_compare(
    job: CompareJob, *, distance: Distance | None = None, progress: OnProgress = lambda what, done, of: None
) -> ComparePlan:
    """Open the runs and the images, and damage these.

    Args:
        distance: in the place of the perceptual distance that the job names.
        progress: called as images are read.

    Raises:
        Error: what cannot be compared.
    """
    if job.images != PORTRAITS and not Path(job.images).expanduser().exists():
        raise Error(f"there is no {job.images}: give a folder, zip, npz or IDX file of images, or portraits.")
    found = comparison.contestants(job)
    foreseen = {}
    for one in found:
        path = Path(one.run)
        if not path.exists():
            raise Error(f"--with {one.text}: there is no run {path}; give a run's folder, RUN:METHOD or RUN,key=value.")
        if (model := stored_model(path)) is not None:
            foreseen[one.text] = ForeseenMethod(model, *one.resolved(model))
    from kuosan.evaluate.compare import open_comparison

    return open_comparison(job.settings, found, foreseen, progress, distance)


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


def plan_reconstruct(job: ReconstructJob, *, progress: OnProgress = lambda what, done, of: None) -> ReconstructPlan:
    """Open the autoencoder, the images and the networks that judge.

    Args:
        progress: called as images are read.

    Raises:
        Error: what cannot be measured.
    """
    run = Path(job.run)
    if not run.exists():
        raise Error(f"there is no run {run}: name the folder that kuosan train --objective autoencoder made.")
    model = stored_model(run)
    if model is not None and (run / "checkpoints").is_dir():
        require_autoencoder(model, run)
    if job.images not in ("", PORTRAITS) and not Path(job.images).expanduser().exists():
        raise Error(f"there is no {job.images}: give a folder, zip, npz or IDX file, an image, or portraits.")
    from kuosan.evaluate.reconstruct import open_reconstruction

    return open_reconstruction(job.run, job.settings, model, progress)


def stored_model(run: Path) -> ModelConfig | None:
    """The model of a run by its config.yaml; None where that is damaged or not there: the checkpoint's own decides."""
    from kuosan.models.model import ModelConfig

    if not (run / "config.yaml").is_file():
        return None
    try:
        return trees.build(ModelConfig, trees.load(run / "config.yaml").get("model", {}))
    except Error:
        return None


def _own(job: Any, of: type) -> dict[str, Any]:
    """The fields of a job that are those of a class it extends."""
    return {each.name: getattr(job, each.name) for each in fields(of)}
