"""`kuosan evaluate`: how good a run's pictures are, in one command; given again, it goes on where it stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kuosan import config as trees
from kuosan import options
from kuosan.cli.console import bar, console, duration, say, say_table
from kuosan.errors import Error
from kuosan.evaluate import sweep
from kuosan.evaluate.config import USELESS, EvaluateConfig, configured
from kuosan.options import Option

if TYPE_CHECKING:
    from kuosan.evaluate.prepare import Prepared
    from kuosan.evaluate.result import Result

SHORT = {
    "class": "request.classes",
    "guidance_scale": "request.guidance",
    "cfg": "request.guidance",
}
ORDER = ("", "request", "compute")


def evaluate(
    *tokens: Annotated[str, Parameter(allow_leading_hyphen=True)],
    dry_run: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Measure the pictures of TARGET: a run, a checkpoint, or a folder or zip of pictures (with --against PATH).

    Pictures are sampled as `kuosan sample` would, and kept: given again, the command goes on where it stopped, and a
    larger --n only adds to them. Every setting below is given as --key value.

    Parameters
    ----------
    tokens
        What to measure, and settings.
    dry_run
        Say what would be done, and do nothing.
    """
    target, config = read(tokens)
    _refuse_early(target, config)
    from kuosan.evaluate.prepare import prepare

    with Bars() as report:
        prepared = prepare(target, config, report.progress)
    for line in plan(prepared):
        say(line)
    if dry_run:
        say("dry run: nothing was written.")
        return
    show(_run(prepared))


def read(tokens: Sequence[str]) -> tuple[str, EvaluateConfig]:
    """What a person typed: the target and the settings.

    Raises:
        Error: no target or several, an unknown key, a value that is impossible.
    """
    tree, words = options.parse(
        ["--n" if word == "-n" else word for word in tokens], EvaluateConfig, SHORT, ["dry-run"]
    )
    if len(words) > 1:
        raise Error(f"one run or folder at a time: {words[0]!r} and {words[1]!r} were given.")
    config = configured(tree)
    if not words:
        raise Error("nothing to measure: kuosan evaluate RUN, or a folder of pictures with --against PATH.")
    return words[0], config


def settings() -> list[Option]:
    """What `kuosan evaluate` takes, with its own defaults; what is of no use to it is left out."""
    usual = trees.plain(EvaluateConfig())
    found = []
    for option in options.options(EvaluateConfig).values():
        group, _, name = option.key.rpartition(".")
        if not set(option.key.split(".")).isdisjoint(USELESS):
            continue
        default = (usual[group] if group else usual)[name]
        found.append(Option(option.key, option.type, None if default is False else default, option.doc))
    return sorted(found, key=lambda option: ORDER.index(option.key.rpartition(".")[0]))


def _refuse_early(target: str, config: EvaluateConfig) -> None:
    """What can be refused without loading torch: an impossible point of a sweep, a run that is no run."""
    points = sweep.points(config.request, config.sweep)
    path = Path(target)
    if not path.exists() and target != "portraits":
        raise Error(f"there is no {target}: give a run, a checkpoint, or a folder or zip of pictures.")
    if not (path / "config.yaml").is_file() or not (path / "checkpoints").is_dir():
        return
    from kuosan.model import ModelConfig

    try:
        model = trees.build(ModelConfig, trees.load(path / "config.yaml").get("model", {}))
    except Error:
        return  # a damaged copy: the checkpoint's own decides
    sweep.check(model, points)


def plan(prepared: Prepared) -> list[str]:
    """What will be done, in lines."""
    side, other = prepared.reference, prepared.floor
    lines = [f"warning: {warning}" for warning in prepared.warnings]
    if prepared.model is not None:
        model = prepared.model
        channels, height, width = model.model.shape
        lines.append(f"compute: {model.compute}")
        lines.append(
            f"model: {model.name}, step {model.step}, {width}x{height} {'grey' if channels == 1 else 'colour'}"
            + (f"; {_points(prepared)}" if prepared.jobs else "")
        )
    if prepared.network is not None:
        network = prepared.network
        lines.append(
            f"against: {len(side):,} {side.what} ({side.pictures.config.path}); "
            f"floor: {len(other[0]):,} {other[0].what} against {len(other[1]):,} {other[1].what}"
        )
        from kuosan.evaluate.remarks import described

        for one in (prepared.made, side):
            lines += [] if one is None else described(one, network)
        lines.append(f"measured: {', '.join(prepared.metrics) or 'nothing'}, on {network.name} ({network.resizing})")
    if prepared.bits is not None:
        config = prepared.config
        by_ode = min(config.ode_pictures, len(prepared.bits))
        lines.append(
            f"likelihood: of {len(prepared.bits):,} {prepared.bits.what}, {by_ode:,} of them by the ODE "
            f"({4 * config.ode_steps} network evaluations each, and their gradients), in fp32"
        )
    if prepared.jobs:
        pictures, evaluations = prepared.lacking
        kept = sum(each.request.n for each in prepared.jobs) - pictures
        lines.append(
            f"to make: {pictures:,} pictures, {evaluations:,} network evaluations"
            + (f"; {kept:,} pictures are there already" if kept else "")
        )
    lines.append(
        f"kept in: {prepared.home}; the result in {prepared.folder}{' (Ctrl-C keeps all)' * bool(prepared.jobs)}"
    )
    return lines


def _points(prepared: Prepared) -> str:
    jobs = prepared.jobs
    n = jobs[0].request.n
    if len(jobs) == 1:
        choice = jobs[0].choice
        return (
            f"{n:,} pictures by {choice.sampler}, {choice.steps} steps"
            f"{f' ({choice.spacing})' if choice.spacing else ''}, {choice.evaluations} network evaluations each"
        )
    costs = [each.choice.evaluations for each in jobs]
    return (
        f"{len(jobs)} combinations of {n:,} pictures from the same seeds, "
        f"{min(costs)} to {max(costs)} network evaluations a picture"
    )


def _run(prepared: Prepared) -> Result:
    from kuosan.evaluate.run import run

    try:
        with Bars() as report:
            return run(prepared, report)
    except KeyboardInterrupt:
        missing, _ = prepared.lacking
        every = sum(each.request.n for each in prepared.jobs)
        if prepared.jobs:
            where = prepared.home / "pictures"
            say(f"stopped: {every - missing:,} of {every:,} pictures are kept in {where}; the same command goes on.")
        raise


def show(result: Result) -> None:
    """The figures, what they are of, and where they were written."""
    console.print()
    for line in result.about():
        say(line)
    if result.found:
        say_table([result.title(head) for head in result.heads()], result.rows())
    for line in result.verdicts():
        say(line)
    names = ", ".join(sorted(path.name for path in Path(str(result.folder)).glob("[!.]*")))
    say(f"written: {result.folder} ({names})")


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
        self.say(f"sampling: about {duration(seconds)} for the {evaluations:,} network evaluations left")

    def progress(self, what: str, done: int, of: int) -> None:
        """Move a bar, or say a line now and then."""
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=of)
        self.bars.update(self.tasks[what], completed=done, total=of, visible=done < of)
        if not sys.stdout.isatty() and time.monotonic() - self.said > 30:
            self.said = time.monotonic()
            self.say(f"{what}: {done:,} of {of:,}")
