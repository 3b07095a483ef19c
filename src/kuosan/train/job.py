"""Training as a job: `plan_train` opens and refuses everything once, `run_train` trains and yields events. Torch-free.

    plan = plan_train(TrainJob(out, settings={"data": {"path": "photos"}}))
    for event in run_train(plan): ...           Progress, Fact, Preview, Wrote, Warned; the last is Finished(TrainedRun)

`kuosan.fit` and `kuosan train` are both this.
"""

from __future__ import annotations

import dataclasses
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast, get_args

from kuosan import config as trees
from kuosan import options
from kuosan.data.config import PORTRAITS
from kuosan.errors import Error, shown, unknown
from kuosan.events import Event, Fact, Finished, Progress
from kuosan.models import starter
from kuosan.networks.config import Size
from kuosan.options import Tree
from kuosan.storage import files
from kuosan.train import rules
from kuosan.train.budget import aim, marks, seconds_now
from kuosan.train.config import CHANGEABLE, SHORT, RunConfig, recipe
from kuosan.train.resolve import check_tree, encoder_named, take_along

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from kuosan.storage.checkpoint import Saved
    from kuosan.train.api import TrainingSetup
    from kuosan.train.loop import StepCost
    from kuosan.train.report import EventReport, TrainingReport
    from kuosan.train.state import Run

CONFIG = "config.yaml"
OPTION = {"option": False}


def size_typed(text: str) -> Size:
    """A network's size as it is typed. Raises: Error: there is none of that name."""
    if text not in get_args(Size):
        raise unknown("--network", text, get_args(Size))
    return cast(Size, text)


@dataclass(frozen=True)
class TrainJob:
    """What to train on what; the same job again goes on where its run stopped.

    Attributes:
        settings: what was said of a `RunConfig`, as a tree; the rest follows from the images, the run or the defaults.
        module: a network of one's own.
        dataset: a torch Dataset in place of a path.
        begun: since when a time budget is used, by `budget.seconds_now`; None: since the job is planned.
        measure: time a step before the training begins, so that the plan knows what it will cost.
        starter: begin with the starter weights where nothing is said of `init` and they suit the model asked for.
    """

    out: Path | None = None  # the run's folder; runs/NAME OF THE DATA if not given
    config: str | None = None  # a YAML file of options, or a recipe by name (portraits); options given here win
    network: Size | None = field(
        default=None, metadata={"read": size_typed}
    )  # the network's size where its fields are not given; small if not said
    init: Path | None = None  # begin with the averaged weights, network and schedule of this run, or starter; or none
    accept_new_data: bool = False  # go on although the images are not the ones the run was trained on
    dry_run: bool = False  # say what would be done, and do nothing
    settings: Tree = field(default_factory=dict, metadata=OPTION)
    module: Any = field(default=None, metadata=OPTION)
    dataset: Any = field(default=None, metadata=OPTION)
    begun: float | None = field(default=None, metadata=OPTION)
    measure: bool = field(default=True, metadata=OPTION)
    starter: bool = field(default=False, metadata=OPTION)


@dataclass(frozen=True)
class TrainOptions(RunConfig, TrainJob):
    """All that a person may type of a job, its settings among them; nothing is ever made of it."""


@dataclass(frozen=True)
class SettledJob:
    """A job whose folder and settings are known and were checked, before anything is opened."""

    out: Path
    tree: Tree
    before: Tree | None  # the configuration of the run that is there
    checked: RunConfig
    typed: str  # the text encoder that a person named, which alone may be fetched
    saves: tuple[Saved, ...]  # what was read of saves: of the one to go on from, all but its tensors
    network: Size | None = None  # the network's size, as it was said
    origin: Tree | None = None  # the configuration of the run whose weights a new one begins with
    init: Path | None = None  # what it begins with, or began with
    nothing: bool = False  # it was said to start from nothing
    starter: bool = False  # it begins with the starter weights where they suit


@dataclass(frozen=True)
class TrainPlan:
    """A training with everything opened; leaving it as a context lets go of what was not run.

    Attributes:
        cost: what a step costs; None where none is to be taken, it was not asked for, or on processes but the first.
    """

    job: TrainJob
    setup: TrainingSetup
    run: Run
    report: EventReport
    cost: StepCost | None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.setup.world.first

    @property
    def resumed(self) -> bool:
        """Whether a run goes on, from a save."""
        return self.run.saved_at >= 0

    @property
    def steps_left(self) -> int:
        """Steps to be taken; under a time budget about so many."""
        budget, step = self.run.budget, self.run.state.step
        if budget is None or not (budget.changed or not budget.plans):
            return self.run.last - step
        return aim(budget, self.run.config.train, step).steps

    @property
    def epochs(self) -> float:
        """How often each training image is shown, in all."""
        steps = self.run.state.step + self.steps_left
        return steps * self.run.config.train.batch / len(self.setup.images.train)

    @property
    def seconds(self) -> float | None:
        """How long the steps will take, about."""
        if self.cost is None:
            return None
        budget = self.run.budget
        return self.cost.seconds * self.steps_left if budget is None else max(0.0, budget.seconds - budget.used)

    @property
    def first_look(self) -> tuple[int, float] | None:
        """After which step the first preview, or without any the first validation, comes, and in how many seconds."""
        train, budget, step = self.run.config.train, self.run.budget, self.run.state.step
        every = train.preview_every or train.evaluate_every
        if self.cost is None or not every:
            return None
        if budget is not None and every < 0:
            ahead = [mark - budget.used for mark in marks(budget.seconds) if mark > budget.used]
            seconds = ahead[0] if ahead else budget.seconds - budget.used
            return step + round(seconds / self.cost.seconds), seconds
        steps = min(every - step % every, self.steps_left)
        return step + steps, steps * self.cost.seconds

    def image_lines(self) -> list[str]:
        """What there is to say of the images."""
        from kuosan.train.report import image_lines

        run = self.run
        captions = run.config.model.task.text
        return image_lines(self.setup.images, resumed=self.resumed, changed=run.new_data, captions=captions)

    def __enter__(self) -> TrainPlan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from kuosan.train import api

        api.close(self.run, error)


@dataclass(frozen=True)
class TrainedRun:
    """What a training came to."""

    folder: Path
    config: RunConfig
    step: int
    last: int  # the last step, as it was planned
    used: float | None  # seconds of a time budget
    stopped: int  # the signal that asked it to stop; 0: it came to its last step
    validation: Mapping[str, Any] | None  # the last row of the log with a validation (`held_out`)


def settle(job: TrainJob) -> SettledJob:
    """Where a job goes and what it was asked for, refused where no image and no weight need be read for that.

    Raises:
        Error: impossible settings, no images, a folder of something else.
    """
    typed, asked, tree = encoder_named(job.settings), job.network, job.settings
    rules.check_length(tree, "")
    if job.config is not None:
        of_file, named = _groups(trees.load(recipe(job.config)))
        job = replace(job, network=asked or named)
        rules.check_length(of_file, f" in {job.config}")
        tree = trees.merge(rules.without_length(of_file, tree), tree)
    goes_on = "path" not in tree.get("data", {}) and job.dataset is None
    out, before = job.out, None
    saves: tuple[Saved, ...] = ()
    if goes_on:
        out = _required(out)
        from kuosan.train.resume import of_run

        before, tree, saves = of_run(out, tree)
        if asked is not None:
            raise Error(f"--network {asked} has no effect on {out}, which has its network already; leave it out.")
    _refuse_own(tree, job)
    nothing = starter.is_nothing(job.init)
    if job.init is None or nothing:
        try:
            checked = check_tree(tree)  # refused before any file is opened
        except Error:  # of settings that are impossible with what a run has, the changed ones are named
            if before is not None:
                from kuosan.train.resume import refuse_changes

                refuse_changes(before, tree, str(out), tuple(f"train.{name}" for name in CHANGEABLE))
            raise
    if out is None:
        name = re.sub(r"[^\w.-]+", "-", Path(tree["data"]["path"]).resolve().name).strip("-.") or "images"
        out = Path("runs") / name.removesuffix(".zip")
    if not goes_on and is_there(out):  # a folder of something else is refused before the images are read
        from kuosan.train.resume import begun

        before, saves = begun(out)
    origin, unasked = None, False
    init = None if nothing else job.init
    if job.init is None:
        # of a recipe of kuosan's the figures are of runs from nothing; of the portraits none would be held out
        is_own = job.config is not None and recipe(job.config).parent == recipe(PORTRAITS).parent
        may = (
            job.starter
            and not (is_own and "model" in of_file)
            and tree.get("data", {}).get("path", PORTRAITS) != PORTRAITS
        )
        init, unasked = (None, may) if before is None else _as_it_began(out, saves, goes_on, may)
    if init is not None:
        tree, origin = _begun_from(replace(job, init=init), out, before, tree)
        saves = (*saves, *((origin,) if origin is not None else ()))
        _refuse_own(tree, job)
        checked = check_tree(tree)
    if before is not None and not _untouched(out):
        rules.check_length_kept(out, before, tree, job.settings)
    of = None if origin is None else origin.config
    return SettledJob(out, dict(tree), before, checked, typed, saves, job.network, of, init, nothing, unasked)


def _as_it_began(out: Path, saves: tuple[Saved, ...], goes_on: bool, may: bool) -> tuple[Path | None, bool]:
    from kuosan.train.resume import beginning

    return beginning(out, saves, goes_on, may)


def _untouched(out: Path) -> bool:
    """Whether a run has no step yet, so that it may begin again with something else."""
    from kuosan.train.resume import untrained

    return untrained(out)


def _refuse_own(tree: Mapping[str, Any], job: TrainJob) -> None:
    if tree.get("model", {}).get("network", {}).get("kind") == "own" and job.module is None:
        raise Error(
            "model.network.kind = own: a network of your own is given from Python: "
            "kuosan.fit(MyNetwork(...), data, out=RUN); docs/python.md shows how."
        )


def _begun_from(job: TrainJob, out: Path, before: Tree | None, tree: Mapping[str, Any]) -> tuple[Tree, Saved | None]:
    """What was said over the model of `--init`, and that save without its tensors; a run that has begun needs it no
    more."""
    assert job.init is not None
    how = {"own": job.module is not None, "sized": job.network is not None}
    if before is not None and not (_untouched(out) and is_there(starter.opened(job.init))):
        return take_along(tree, before, str(job.init), begun=True, **how), None
    origin = starter.load(job.init)
    return take_along(tree, origin.config, str(job.init), **how), origin


def is_there(path: Path) -> bool:
    """Whether there is anything of that name. Raises: Error: it cannot be looked at."""
    with files.explained(path, doing="read"):
        return path.exists()


def _groups(tree: Tree) -> tuple[Tree, Size | None]:
    """A configuration file's tree, once each of its top keys is a known group of settings; and its network's size."""
    size = size_typed(tree.pop("network")) if isinstance(tree.get("network"), str) else None
    trees.build(RunConfig, {key: value for key, value in tree.items() if not isinstance(value, dict)})
    return trees.as_stored(RunConfig, tree), size  # options lie over it by their keys


def _required(out: Path | None) -> Path:
    if out is None:
        raise Error(
            "no images given: kuosan train FOLDER (or a zip, tar, IDX, npz or npy file; `portraits` are built in)."
        )
    return out


def plan_train(job: TrainJob, on_event: Callable[[Event], None] | None = None) -> TrainPlan:
    """Open the images, the save to go on from and the network; nothing is written into the run's folder.

    Args:
        on_event: called with what happens meanwhile: Progress of reading images, Warned, Fact("note").

    Raises:
        Error: whatever is impossible.
    """
    begun = seconds_now() if job.begun is None else job.begun
    settled = settle(job)
    return _opened(job, settled, on_event or (lambda event: None), begun)


def _opened(job: TrainJob, settled: SettledJob, on_event: Callable[[Event], None], begun: float) -> TrainPlan:
    from kuosan.train import api
    from kuosan.train.loop import measure
    from kuosan.train.report import EventReport, SilentTraining

    setup = api.prepare(
        settled.out,
        settled.tree,
        size=settled.network,
        network=job.module,
        dataset=job.dataset,
        progress=lambda what, done, of: on_event(Progress(what, done, of)),
        typed=settled.typed,
        before=settled.before,
        checked=settled.checked,
        origin=settled.origin,
        saves=settled.saves,
        begun=begun,
        starter=starter.described() if settled.starter else None,
    )
    report = EventReport(on_event)
    first = setup.world.first
    more: dict[str, Any] = {"init": settled.init, "nothing": settled.nothing}
    more |= {"accept_new_data": job.accept_new_data, "dry": job.dry_run}
    run = api.opened(setup, report if first else SilentTraining(), **more)
    try:
        budget = run.budget
        steps = run.last > run.state.step or (budget is not None and budget.changed)
        cost = measure(run) if (job.measure or budget is not None) and first and steps else None
        if budget is not None and cost is not None:
            budget.step_seconds = cost.seconds
    except BaseException as error:
        api.close(run, error)
        raise
    report.on_event = None  # from here on they are yielded
    return TrainPlan(job, setup, run, report, cost)


def run_train(plan: TrainPlan) -> Iterator[Event]:
    """Train. SIGINT, SIGTERM and SIGHUP save after the step in progress and end it; Finished says which came.

    Closed in between, it stops at once: what is saved stays.

    Raises:
        Error: a disk that is full, images that are gone, memory that does not suffice, a training that diverges.
    """
    from kuosan.train import api

    assert not plan.job.dry_run, "a dry run is planned, and that is all"
    run = plan.run
    api.begin(run, plan.setup)
    steps, stopped = api.training(run), -1
    try:
        while stopped < 0:
            try:
                next(steps)
            except StopIteration as end:
                stopped = int(end.value)
            yield from plan.report.take()
    except GeneratorExit:
        steps.close()
        raise
    except BaseException:
        yield from plan.report.take()
        raise
    rows = [row for row in run.log.rows() if row.get("held_out")] if run.log is not None else []
    used = None if run.budget is None else run.budget.used
    validation = rows[-1] if rows else None
    yield Finished(TrainedRun(run.folder, run.config, run.state.step, run.last, used, stopped, validation))


def fit(
    network: nn.Module | str | Path | None = None,
    data: Dataset[Any] | str | Path | None = None,
    out: str | Path | None = None,
    *,
    report: TrainingReport | None = None,
    size: Size | None = None,
    init: str | Path | None = None,
    accept_new_data: bool = False,
    **settings: Any,
) -> Path:
    """Train on a folder or a torch Dataset, kuosan's network or a module of one's own; returns the run's folder.

    The same call again goes on where the run stopped. Settings are those of the configuration, by their last name
    (`max_steps=1000`, or `minutes=10` from the call on) or dotted (`**{"train.batch": 32}`).

    Args:
        network: called as network(x, t) with x (B, C, H, W) float32, t (B,) float32; None builds the U-Net, or a
            transformer if `**{"network.kind": "dit"}`. Images alone may stand here too: `fit("photos")` trains as
            `kuosan train photos` does, into runs/photos.
        data: a Dataset of images (tensors (C, H, W) in [0, 1] or uint8, PIL images, or tuples that begin with one),
            or a path as the shell takes it.
        out: the run's folder; "run" if not given, runs/NAME where a path of images is all that stands first.
        settings: `schedule` may be a `Discrete`, `Karras` or `Flow` besides a word.
        init: a run, checkpoint or export to begin with; "starter" for kuosan's own weights, as the shell does unasked.
        size: of kuosan's network, tiny to large; small if none. The images' is `**{"data.size": 64}`.

    Raises:
        Error: whatever the shell's `train` refuses.
    """
    if network is not None and not callable(network):
        network, data, out = _images_first(network, data, out)
    elif out is None:
        out = "run"
    assert network is None or not isinstance(network, str | Path)
    if network is not None and size is not None:
        raise Error(
            f"size = {size!r} is of kuosan's networks, and a network of your own was given: leave it out. "
            'Pixels a side are **{"data.size": 64}.'
        )
    schedule = settings.pop("schedule") if dataclasses.is_dataclass(settings.get("schedule")) else None
    tokens = [word for key, value in settings.items() for word in options.words(key, value)]
    tree, _ = options.parse(tokens, RunConfig, SHORT)
    if schedule is not None:
        from kuosan.models.model import stored_schedule

        if also := tree.get("model", {}).get("schedule"):
            raise Error(
                f"schedule {shown(schedule)} holds all of its numbers, so {', '.join(also)} beside it is refused."
            )
        tree = trees.merge(tree, {"model": {"schedule": trees.plain(stored_schedule(schedule))}})
    dataset = None if isinstance(data, str | Path) else data
    if data is None and "path" not in tree.get("data", {}):
        raise Error("no images given: pass data=, a torch Dataset or a path ('portraits' are built in).")
    if isinstance(data, str | Path):
        tree.setdefault("data", {})["path"] = str(data)
    job = TrainJob(
        None if out is None else Path(out),
        network=size,
        init=None if init is None else Path(init),
        accept_new_data=accept_new_data,
        settings=tree,
        module=network,
        dataset=dataset,
        measure=False,
    )
    return _reported(job, report)


def _images_first(first: Any, data: Any, out: str | Path | None) -> tuple[nn.Module | None, Any, str | Path | None]:
    """Network, data and folder of a call whose first argument is no network, but images. Raises: Error: two of them."""
    if data is not None:
        what = "a path" if isinstance(first, str | Path) else f"a {type(first).__name__}"
        turn = "the other way round: kuosan.fit(network, data, out)" if callable(data) else "one or the other as data="
        raise Error(
            f"network = {shown(first)} is {what} and no network, which is called as network(x, t); data = "
            f"{shown(data)} is given as well: give them {turn}. Settings have names: kuosan.fit(data=IMAGES, out=RUN, "
            "max_steps=1000)."
        )
    return None, first, out if out is not None or isinstance(first, str | Path) else "run"


def _reported(job: TrainJob, report: TrainingReport | None) -> Path:
    """Plan and run a job, its events as calls of a report."""
    from kuosan.train.report import Lines, SilentTraining, noted

    news: list[Event] = []
    with plan_train(job, news.append) as plan:
        shown_to = report or (Lines() if plan.first else SilentTraining())
        for text in (*plan.image_lines(), *filter(None, map(noted, news))):
            shown_to.say(text)
        for event in run_train(plan):
            if line := noted(event):
                shown_to.say(line)
            elif isinstance(event, Fact) and event.name == "step":
                shown_to.step(event.values, plan.run.last)
            elif isinstance(event, Finished):
                trained: TrainedRun = event.result
    if trained.stopped:  # as if it had come now: KeyboardInterrupt, or the end of the process
        signal.raise_signal(signal.Signals(trained.stopped))
    return trained.folder
