"""One pair of names over all jobs: `plan(job)` opens and refuses everything once, `run(plan)` does it. Torch-free.

    for event in kuosan.run(kuosan.plan(kuosan.SampleJob("runs/faces", kuosan.Request(n=4)))): ...

The shell, Python and whatever else takes jobs go through these two; each job lives in the room that does its work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from kuosan import options
from kuosan.data.job import DoctorJob, plan_doctor, run_doctor
from kuosan.errors import Error
from kuosan.evaluate.job import CompareJob, EvaluateJob, ReconstructJob
from kuosan.evaluate.plan import plan_compare, plan_evaluate, plan_reconstruct
from kuosan.events import Event, OnEvent
from kuosan.models.convert import ConvertJob, plan_convert, run_convert
from kuosan.models.export import ExportJob, plan_export, run_export
from kuosan.sample.invert import InvertJob, plan_invert, run_invert
from kuosan.sample.job import SampleJob, plan_sample, run_sample
from kuosan.sample.restore import RestoreJob, plan_restore, run_restore
from kuosan.train.job import TrainJob, plan_train, run_train

if TYPE_CHECKING:
    from kuosan.data.job import DoctorPlan
    from kuosan.evaluate.compare import ComparePlan
    from kuosan.evaluate.prepare import EvaluatePlan
    from kuosan.evaluate.reconstruct import ReconstructPlan
    from kuosan.models.convert import ConvertPlan
    from kuosan.models.export import ExportPlan
    from kuosan.sample.invert import InvertPlan
    from kuosan.sample.job import SampleJobPlan
    from kuosan.sample.replay import ReplayPlan
    from kuosan.sample.restore import RestorePlan
    from kuosan.train.job import TrainPlan

    Job = (
        SampleJob
        | RestoreJob
        | InvertJob
        | TrainJob
        | EvaluateJob
        | CompareJob
        | ReconstructJob
        | ExportJob
        | ConvertJob
        | DoctorJob
    )
    Plan = (
        SampleJobPlan | ReplayPlan | RestorePlan | InvertPlan | TrainPlan | EvaluatePlan | ComparePlan
        | ReconstructPlan | ExportPlan | ConvertPlan | DoctorPlan
    )  # fmt: skip

J = TypeVar("J")


@overload
def plan(job: SampleJob, on_event: OnEvent | None = None) -> SampleJobPlan | ReplayPlan: ...
@overload
def plan(job: RestoreJob, on_event: OnEvent | None = None) -> RestorePlan: ...
@overload
def plan(job: InvertJob, on_event: OnEvent | None = None) -> InvertPlan: ...
@overload
def plan(job: TrainJob, on_event: OnEvent | None = None) -> TrainPlan: ...
@overload
def plan(job: EvaluateJob, on_event: OnEvent | None = None) -> EvaluatePlan: ...
@overload
def plan(job: CompareJob, on_event: OnEvent | None = None) -> ComparePlan: ...
@overload
def plan(job: ReconstructJob, on_event: OnEvent | None = None) -> ReconstructPlan: ...
@overload
def plan(job: ExportJob, on_event: OnEvent | None = None) -> ExportPlan: ...
@overload
def plan(job: ConvertJob, on_event: OnEvent | None = None) -> ConvertPlan: ...
@overload
def plan(job: DoctorJob, on_event: OnEvent | None = None) -> DoctorPlan: ...
def plan(job: Job, on_event: OnEvent | None = None) -> Plan:
    """Open all that a job needs, resolve it and refuse what is impossible, each once. Nothing is written.

    The plan of a training holds a lock: run it, or leave it as a context (`with kuosan.plan(job) as plan`).

    Args:
        on_event: called with what happens meanwhile, as Progress of reading images.

    Raises:
        Error: what is no job; anything that is missing, damaged or impossible.
    """
    if type(job) not in _JOBS:
        raise Error(f"{_named(job)} is no job. Jobs are {', '.join(f'kuosan.{each.__name__}' for each in _JOBS)}.")
    found: Plan = _JOBS[type(job)].plan(_fitted(job), on_event)
    return found


def run(plan: Plan) -> Iterator[Event]:
    """Do what a plan says: Progress, Fact, Preview, Warned and Wrote as they come; Finished, with the result, is last.

    Closed in between, or interrupted, it stops cleanly: what is whole stays.

    Raises:
        Error: what is no plan, or one of a dry run; a folder that holds something else, a full disk, and the like.
    """
    job = getattr(plan, "job", None)
    if type(plan) in _JOBS:
        raise Error(f"{_named(plan)} is a job and not planned yet: kuosan.run(kuosan.plan(job)).")
    if type(job) not in _JOBS:
        raise Error(f"{_named(plan)} is no plan: kuosan.plan(job) makes one of a job.")
    if getattr(job, "dry_run", False):
        raise Error("dry_run = True: this job is planned, and that is all; leave it out to run it.")
    return _JOBS[type(job)].run(plan)


class _Way(NamedTuple):
    """How a job is planned and run."""

    plan: Callable[[Any, OnEvent | None], Any]
    run: Callable[[Any], Iterator[Event]]


def _plan_sample(job: SampleJob, on_event: OnEvent | None) -> SampleJobPlan | ReplayPlan:
    if job.like is None:
        return plan_sample(job)
    from kuosan.sample.replay import plan_replay

    return plan_replay(job)


def _run_sample(plan: SampleJobPlan | ReplayPlan) -> Iterator[Event]:
    from kuosan.sample.replay import ReplayPlan, run_replay

    return run_replay(plan) if isinstance(plan, ReplayPlan) else run_sample(plan)


def _run_evaluate(plan: EvaluatePlan) -> Iterator[Event]:
    from kuosan.evaluate.run import run_evaluate

    return run_evaluate(plan)


def _run_compare(plan: ComparePlan) -> Iterator[Event]:
    from kuosan.evaluate.compare import run_compare

    return run_compare(plan)


def _run_reconstruct(plan: ReconstructPlan) -> Iterator[Event]:
    from kuosan.evaluate.reconstruct import run_reconstruct

    return run_reconstruct(plan)


_JOBS: dict[type, _Way] = {
    SampleJob: _Way(_plan_sample, _run_sample),
    RestoreJob: _Way(plan_restore, run_restore),
    InvertJob: _Way(plan_invert, run_invert),
    TrainJob: _Way(plan_train, run_train),
    EvaluateJob: _Way(plan_evaluate, _run_evaluate),
    CompareJob: _Way(plan_compare, _run_compare),
    ReconstructJob: _Way(plan_reconstruct, _run_reconstruct),
    ExportJob: _Way(lambda job, _: plan_export(job), run_export),
    ConvertJob: _Way(lambda job, _: plan_convert(job), run_convert),
    DoctorJob: _Way(plan_doctor, run_doctor),
}


def _fitted(job: J) -> J:
    """The job with its paths as its fields have them: a Path or a text where the other was given, one for a list."""
    types: Mapping[str, Any] = options.hints(type(job))  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for each in fields(job):  # type: ignore[arg-type]
        value, kinds = getattr(job, each.name), options.members(types[each.name])
        if isinstance(value, str) and Path in kinds and str not in kinds:
            changes[each.name] = Path(value)
        elif isinstance(value, Path) and str in kinds and Path not in kinds:
            changes[each.name] = str(value)
        elif isinstance(value, str | Path) and options.is_list(types[each.name]):
            changes[each.name] = (str(value),)
    return replace(job, **changes) if changes else job  # type: ignore[type-var]


def _named(value: object) -> str:
    """An object in a message: a class by its name, anything else by its own class's."""
    return f"{value.__name__} itself" if isinstance(value, type) else f"an object of {type(value).__name__}"
