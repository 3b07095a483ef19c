"""`kuosan sample`: images from a trained model, each carrying the recipe that makes it again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import kuosan
from kuosan.cli.console import bar, say, warn
from kuosan.cli.flags import Verb
from kuosan.data.config import COLOUR_WORDS
from kuosan.device import ComputeConfig
from kuosan.errors import Error, plural
from kuosan.events import Finished, Progress, Warned, Wrote
from kuosan.options import Tree
from kuosan.regular import exists
from kuosan.sample import embedded
from kuosan.sample.job import SHEET, SampleJob, SampleJobPlan
from kuosan.sample.job import stored as stored
from kuosan.sample.request import Request

if TYPE_CHECKING:
    from kuosan.sample.job import Sampled


def sample(tree: Tree, words: list[str]) -> None:
    """Make the images that a person asked for."""
    asked = tree.setdefault("request", {})
    run, prompts = _words(words, asked.get("prompts", []))
    if prompts:
        asked["prompts"] = prompts
    list_classes(asked, run, asked.get("classifier"))
    read = run is None and bool(prompts) and tree.get("like") is None
    job: SampleJob = VERB.build({**tree, "run": embedded.NAME if read else str(run or "")})
    if job.like is not None:
        _again(job)
        return
    taken = read and bool(words) and " " not in prompts[0].strip()
    note = f"there is no run {prompts[0]!r} here: it is read as a prompt for the package's own model." if taken else ""
    run_job(job, note)


VERB = Verb(
    "sample",
    SampleJob,
    "[RUN] [PROMPT]",
    "Make N images with the model in RUN, of what PROMPT says if it understands words, and a sheet of them. RUN is a "
    "run's folder or one of its checkpoints; PROMPT stands in quotes. Without a run, as in kuosan sample \"a heart, "
    'fluent style", the small text-to-image model inside the package is used.',
    sample,
)


def list_classes(tree: Tree, *runs: object) -> None:
    """Split the classes that were typed at their commas; a class of the runs whose name has one stays whole."""
    if not any("," in each for each in tree.get("classes", ())):
        return
    found = [stored(Path(str(run))) for run in runs if run is not None]
    names = {name for config in found if config is not None for name in config.task.class_names}
    parts = [[each] if each in names else each.split(",") for each in tree["classes"]]
    tree["classes"] = [part for several in parts for part in several if part]


def _words(words: list[str], prompts: list[str]) -> tuple[Path | None, list[str]]:
    """The run, if one is named, and the prompts: of bare words, the first is a run where it is one or looks like one.

    Raises:
        Error: several bare words, which was one prompt without its quotes.
    """
    run, rest = None, list(words)
    first = rest[0] if rest and rest[0].strip() else ""  # a run is there, or looks like a path
    if first and (exists(first) or (os.sep in first and " " not in first) or first == embedded.NAME):
        run = Path(rest.pop(0))
    if len(rest) > 1:
        raise Error(f'{" ".join(rest)!r} are {len(rest)} words: put a prompt in quotes, "{" ".join(rest)}".')
    if rest and prompts:
        raise Error(f"the prompt is given twice: {rest[0]!r} and --prompt {prompts[0]!r}.")
    return run, rest or list(prompts)


def make(
    run: Path, request: Request, out: Path | None, columns: int | None, gif: bool, where: ComputeConfig
) -> tuple[float, int]:
    """Sample, write, and say what was made; the seconds of sampling and the network evaluations an image.

    Raises:
        Error: what the run cannot be sampled with, or a folder that cannot be written.
    """
    done = run_job(SampleJob(str(run), request, None if out is None else str(out), columns, gif, compute=where))
    return done.seconds, done.nfe


def run_job(job: SampleJob, note: str = "") -> Sampled:
    """Plan, say what will be done, do it with a bar, and say what was made; `note` is said first."""
    plan = kuosan.plan(job)
    assert isinstance(plan, SampleJobPlan), "no recipe is followed here"
    if note:
        say(note)
    _say_plan(plan)
    n, folder, files = plan.sampling.request.n, None, 0
    with bar() as progress:
        task = progress.add_task("sampling", total=None)
        try:
            for event in kuosan.run(plan):
                match event:
                    case Progress():
                        progress.update(task, completed=event.done, total=event.of)
                    case Wrote():
                        folder, files = folder or event.path, files + (folder is not None)
                    case Warned():
                        warn([event.text])
                    case Finished():
                        done: Sampled = event.result
        except KeyboardInterrupt:
            if folder is not None:
                say(f"stopped: {plural(files, 'image', 'is', of=n)} finished, in {folder}.")
            raise
    say(
        f"{plural(n, 'image')} in {done.seconds:.1f} s ({done.seconds / n:.2f} s each): {done.folder} "
        f"(sheet.png{f' of the first {SHEET}' * (n > SHEET)}{', denoising.gif' * job.gif})"
    )
    return done


def _say_plan(plan: SampleJobPlan) -> None:
    pipeline, trajectory, request = plan.pipeline, plan.sampling.plan, plan.sampling.request
    for text in pipeline.damaged:
        say(f"warning: a newer checkpoint is damaged and passed over: {text}")
    warn(plan.warnings)
    for note in plan.notes:
        say(note)
    channels, (width, height) = pipeline.model.shape[0], plan.recipe.size
    if pipeline.model.config.task.text and not request.prompts:
        say("no prompt: images of no text; say what to make in quotes behind the run, or with --prompt.")
    say(f"compute: {pipeline.compute}")
    say(
        f"model: {pipeline.name}, step {pipeline.step}, {width}x{height} {COLOUR_WORDS[channels]}; "
        f"{plural(request.n, 'image')} by {trajectory.sampler}, {plural(trajectory.steps, 'step')}"
        f"{f' ({trajectory.spacing})' if trajectory.spacing else ''}, "
        f"{plural(trajectory.evaluations, 'network evaluation')} each"
    )


def _again(job: SampleJob) -> None:
    """Make the image of a recipe again, and say so."""
    plan = kuosan.plan(job)
    assert not isinstance(plan, SampleJobPlan), "a recipe is followed here"
    warn(plan.pipeline.warnings)
    with bar() as progress:
        task = progress.add_task("sampling", total=None)
        for event in kuosan.run(plan):
            match event:
                case Progress():
                    progress.update(task, completed=event.done, total=event.of)
                case Finished():
                    done = event.result
    about = f"{plan.recipe.origin}, step {plan.pipeline.step} of {plan.home}"
    if done.same:
        say(f"made again: {done.path} holds these very bytes already ({about}).")
    else:
        say(f"made again: {done.path} ({about}; {plan.pipeline.compute})")
