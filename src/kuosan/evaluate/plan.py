"""From a job of this room to its plan: what config.yaml refuses is refused without torch; all else is opened once.

`compare` and `reconstruct` are the same way for Python: a plan, run to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuosan import config as trees
from kuosan.data.config import PORTRAITS
from kuosan.errors import Error
from kuosan.evaluate import comparison
from kuosan.evaluate import config as sweep
from kuosan.evaluate.comparison import Comparison, ComparisonConfig
from kuosan.evaluate.config import ReconstructionConfig, require_autoencoder
from kuosan.evaluate.job import (
    CompareJob,
    EvaluateJob,
    EvaluationReport,
    Foreseen,
    ForeseenMethod,
    ReconstructJob,
    SilentEvaluation,
    finish,
    follow,
)
from kuosan.events import OnEvent, counted
from kuosan.sample.job import stored

if TYPE_CHECKING:
    from kuosan.evaluate.compare import ComparePlan
    from kuosan.evaluate.config import Point
    from kuosan.evaluate.damage import Distance
    from kuosan.evaluate.prepare import EvaluatePlan
    from kuosan.evaluate.reconstruct import ReconstructPlan
    from kuosan.evaluate.reconstruction_result import Reconstructed
    from kuosan.metrics.features.network import FeatureNetwork
    from kuosan.sample.pipeline import Pipeline


def compare(
    images: str | Path,
    runs: Sequence[str | Path],
    *,
    report: EvaluationReport | None = None,
    distance: Distance | None = None,
    **options: Any,
) -> Comparison:
    """How well runs restore damaged images: compare("portraits", ["runs/a:ddnm", "runs/b"], upscale=4, n=16).

    Args:
        report: follows how it goes on.
        distance: of uint8 images pair by pair, in place of the named perceptual distance.
        options: further settings of `ComparisonConfig`.

    Raises:
        Error: what cannot be compared; nothing is made then.
    """
    tree = {"pictures": str(images), "contestants": [str(run) for run in runs], **options}
    from kuosan.evaluate.compare import run_compare

    report = report or SilentEvaluation()
    plan = plan_compare(CompareJob.of(trees.build(ComparisonConfig, tree)), follow(report), distance=distance)
    found: Comparison = finish(run_compare(plan), report)
    return found


def plan_evaluate(
    job: EvaluateJob,
    on_event: OnEvent | None = None,
    *,
    model: Pipeline | None = None,
    network: FeatureNetwork | None = None,
) -> EvaluatePlan:
    """Open the target, the real images and the networks.

    Args:
        on_event: called with the Progress of reading images.
        model: the target, where it is open already; `job.target` is its name.
        network: in the place of the feature network that the job names.

    Raises:
        Error: something cannot be opened, sampled or measured.
    """
    points = sweep.points(job.request, job.sweep)
    foreseen = Foreseen() if model is not None else _foreseen(job.target, points)
    from kuosan.evaluate.prepare import open_evaluation

    return open_evaluation(job, points, foreseen, counted(on_event), model, network)


def _foreseen(target: str, points: Sequence[Point]) -> Foreseen:
    """What can be refused without torch: no such target, an impossible point of a sweep. Raises: Error."""
    path = Path(target)
    if not path.exists() and target != PORTRAITS:
        raise Error(f"there is no {target}: give a run, a checkpoint, or a folder or zip of images.")
    model = stored(path) if (path / "checkpoints").is_dir() else None
    return Foreseen() if model is None else Foreseen(model, tuple(sweep.check_sweep(model, points)))


def plan_compare(job: CompareJob, on_event: OnEvent | None = None, *, distance: Distance | None = None) -> ComparePlan:
    """Open the runs and the images, and damage these.

    Args:
        on_event: called with the Progress of reading images.
        distance: in the place of the perceptual distance that the job names.

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
        if (model := stored(path)) is not None:
            foreseen[one.text] = ForeseenMethod(model, *one.resolved(model))
    from kuosan.evaluate.compare import open_comparison

    return open_comparison(job, found, foreseen, counted(on_event), distance)


def plan_reconstruct(job: ReconstructJob, on_event: OnEvent | None = None) -> ReconstructPlan:
    """Open the autoencoder, the images and the networks that judge.

    Args:
        on_event: called with the Progress of reading images.

    Raises:
        Error: what cannot be measured.
    """
    run = Path(job.run)
    if not run.exists():
        raise Error(f"there is no run {run}: name the folder that kuosan train --objective autoencoder made.")
    model = stored(run)
    if model is not None and (run / "checkpoints").is_dir():
        require_autoencoder(model, run)
    if job.images not in ("", PORTRAITS) and not Path(job.images).expanduser().exists():
        raise Error(f"there is no {job.images}: give a folder, zip, npz or IDX file, an image, or portraits.")
    from kuosan.evaluate.reconstruct import open_reconstruction

    return open_reconstruction(job, model, counted(on_event))


def reconstruct(
    target: str | Path, images: str | Path = "", *, report: EvaluationReport | None = None, **options: Any
) -> Reconstructed:
    """How well a run's autoencoder gives images back: reconstruct("runs/ae", "photos", n=64).

    Args:
        target: the run of an autoencoder, or of a model of latents.
        images: a data set or an image file; those that the run held out if empty.
        report: follows how it goes on.
        options: further settings of `ReconstructionConfig`.

    Raises:
        Error: no autoencoder, or images that cannot be used.
    """
    from kuosan.evaluate.reconstruct import run_reconstruct

    report = report or SilentEvaluation()
    config = trees.build(ReconstructionConfig, {"images": str(images), **options})
    plan = plan_reconstruct(ReconstructJob.of(str(target), config), follow(report))
    found: Reconstructed = finish(run_reconstruct(plan), report)
    return found
