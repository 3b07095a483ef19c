"""`kuosan evaluate`: how good a run's images are, in one command; given again, it goes on where it stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kuosan
from kuosan import config as trees
from kuosan import options
from kuosan.cli.console import bar, console, duration, say, say_table
from kuosan.cli.flags import Verb
from kuosan.cli.sample import list_classes
from kuosan.data.config import COLOUR_WORDS
from kuosan.errors import Error, plural
from kuosan.evaluate.config import USELESS, configured
from kuosan.evaluate.job import EvaluateJob, finish, follow
from kuosan.evaluate.report import FigureTable, Report
from kuosan.options import Tree

if TYPE_CHECKING:
    from kuosan.evaluate.prepare import EvaluatePlan
    from kuosan.evaluate.result import Result
    from kuosan.events import Event

DRY = "dry run: nothing was written."


def evaluate(tree: Tree, words: list[str]) -> None:
    """Plan, say what will be done, do it, say what was found."""
    job = read(tree, words)
    with Bars() as bars:
        plan = kuosan.plan(job, follow(bars))
    for line in planned(plan):
        say(line)
    if job.dry_run:
        say(DRY)
        return
    try:
        result = followed(kuosan.run(plan))
    except KeyboardInterrupt:
        every = sum(each.request.n for each in plan.points)
        if plan.points:
            where = plan.home / "pictures"
            say(f"stopped: {plural(plan.made_now, 'image', 'is', of=every)} kept in {where}; the same command goes on.")
        raise
    show(result)


def read(tree: Tree, words: list[str]) -> EvaluateJob:
    """The job that a person typed. Raises: Error: no target or several, a value that is impossible."""
    if len(words) > 1:
        raise Error(f"one run or folder at a time: {words[0]!r} and {words[1]!r} were given.")
    dry_run = tree.pop("dry_run", False)
    list_classes(tree.get("request", {}), *words, tree.get("request", {}).get("classifier"))
    job = EvaluateJob.of("".join(words), configured(tree), dry_run)
    options.check(job, given=tree)
    return job


def planned(plan: EvaluatePlan) -> list[str]:
    """What will be done, in lines."""
    side, other = plan.reference, plan.floor
    lines = [f"warning: {warning}" for warning in plan.warnings]
    if plan.model is not None:
        model = plan.model
        channels, height, width = model.model.shape
        lines.append(f"compute: {model.compute}")
        lines.append(
            f"model: {model.name}, step {model.step}, {width}x{height} {COLOUR_WORDS[channels]}"
            + (f"; {_points(plan)}" if plan.points else "")
        )
    if plan.network is not None:
        network = plan.network
        lines.append(
            f"against: {len(side):,} {side.what} ({side.images.config.path}); "
            f"floor: {len(other[0]):,} {other[0].what} against {len(other[1]):,} {other[1].what}"
        )
        lines += plan.described
        lines.append(f"measured: {', '.join(plan.metrics) or 'nothing'}, on {network.name} ({network.resizing})")
    if plan.memorisation is not None:
        lines.append(plan.memorisation.line(duration))
    if plan.bits is not None:
        config = plan.config
        by_ode = min(config.ode_images, len(plan.bits))
        lines.append(
            f"likelihood: of {len(plan.bits):,} {plan.bits.what}, {by_ode:,} of them by the ODE "
            f"({4 * config.ode_steps} network evaluations each, and their gradients), in fp32"
        )
    if plan.points:
        images, evaluations = plan.lacking
        kept = sum(each.request.n for each in plan.points) - images
        lines.append(
            f"to make: {plural(images, 'image')}, {plural(evaluations, 'network evaluation')}"
            + (f"; {plural(kept, 'image', 'is')} there already" if kept else "")
        )
    lines.append(f"kept in: {plan.home}; the result in {plan.folder}{' (Ctrl-C keeps all)' * bool(plan.points)}")
    return lines


def _points(plan: EvaluatePlan) -> str:
    points = plan.points
    n = points[0].request.n
    if len(points) == 1:
        choice = points[0].choice
        return (
            f"{plural(n, 'image')} by {choice.sampler}, {plural(choice.steps, 'step')}"
            f"{f' ({choice.spacing})' if choice.spacing else ''}, {plural(choice.evaluations, 'network evaluation')} "
            "each"
        )
    costs = [each.choice.evaluations for each in points]
    return (
        f"{plural(len(points), 'combination')} of {plural(n, 'image')} from the same seeds, "
        f"{min(costs)} to {max(costs)} network evaluations an image"
    )


def show(result: Result) -> None:
    """The figures, what they are of, and where they were written."""
    console.print()
    show_report(result.report())
    say_written(str(result.folder))


def say_written(folder: str) -> None:
    """Where the files of a result are."""
    names = ", ".join(sorted(path.name for path in Path(folder).glob("[!.]*")))
    say(f"written: {folder} ({names})")


def show_report(report: Report) -> None:
    """A report's sentences and tables."""
    for section in report.sections:
        if isinstance(section, FigureTable):
            say_table(section.heads, section.rows, section.left)
            continue
        for line in section:
            say(line)


def followed(events: Iterator[Event]) -> Any:
    """Run a job with its bars; what it came to."""
    with Bars() as bars:
        return finish(events, bars)


class Bars:
    """A bar for each kind of work on a terminal; elsewhere a line every half minute."""

    def __init__(self) -> None:
        self.bars = bar()
        self.tasks: dict[str, Any] = {}
        self.said = time.monotonic()

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        """One line above the bars."""
        self.bars.console.print(text, markup=False)

    def left(self, seconds: float, evaluations: int) -> None:
        """How long the sampling will take."""
        self.say(f"sampling: about {duration(seconds)} for the {plural(evaluations, 'network evaluation')} left")

    def progress(self, what: str, done: int, of: int) -> None:
        """Move a bar, or say a line now and then."""
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=of)
        self.bars.update(self.tasks[what], completed=done, total=of, visible=done < of)
        if not sys.stdout.isatty() and time.monotonic() - self.said > 30:
            self.said = time.monotonic()
            self.say(f"{what}: {done:,} of {of:,}")


VERB = Verb(
    "evaluate",
    EvaluateJob,
    "TARGET",
    "Measure the images of TARGET: a run, a checkpoint, or a folder or zip of images (with --against PATH). Images are "
    "sampled as `kuosan sample` would, and kept: given again, the command goes on where it stopped, and a larger --n "
    "only adds to them.",
    evaluate,
    first=(
        "metrics", "against", "request.n", "request.sampler", "request.steps", "request.guidance", "request.classes",
        "request.prompts", "request.seed", "request.batch", "features", "judge", "likelihood", "sweep", "out",
        "compute.device", "compute.precision", "dry_run",
    ),
    defaults={f"request.{name}": value for name, value in trees.plain(configured({}).request).items()},
    hidden=tuple(f"request.{name}" for name in USELESS),
)  # fmt: skip
