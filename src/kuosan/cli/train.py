"""`kuosan train`: from a folder of images to a trained model; the same command again goes on where it stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shlex import quote
from typing import Any

import kuosan
from kuosan import config as trees
from kuosan.cli.console import TrainingBars, console, counting, duration, say
from kuosan.cli.flags import Verb
from kuosan.errors import Error, plural
from kuosan.events import Event, Finished, Progress
from kuosan.models.starter import NOTHING
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.options import Tree
from kuosan.storage.files import size_text
from kuosan.train.budget import process_began
from kuosan.train.config import GIVEN, SHORT
from kuosan.train.job import TrainedRun, TrainJob, TrainOptions, TrainPlan
from kuosan.train.report import noted
from kuosan.train.rules import shown_network

LONG = 20 * 60  # seconds; of a longer run the time budget is mentioned
SETTINGS = ("data", "model", "train", "compute")  # groups of a run's settings


def train(tree: Tree, words: list[str]) -> int:
    """Say what will be done, do it, and say what came of it; the exit code."""
    if len(words) > 1:
        raise Error(f"one data set at a time: {words[0]!r} and {words[1]!r} were given.")
    settings: Tree = {name: tree.pop(name) for name in SETTINGS if name in tree}
    if words and "path" in settings.get("data", {}):
        raise Error(f"the images are given twice: {words[0]!r} and --data.path {settings['data']['path']!r}.")
    if words:
        settings.setdefault("data", {})["path"] = words[0]
    if tree.get("init") == NOTHING:  # a word, which else is read as nothing said
        tree["init"] = Path(NOTHING)
    return train_job(trees.build(TrainJob, {**tree, "settings": settings, "begun": process_began(), "starter": True}))


def train_job(job: TrainJob) -> int:
    """Plan and run a job before a person's eyes; the exit code."""
    with _planned(job) as plan:
        if plan.first:
            _say_plan(plan)
        if job.dry_run:
            if plan.first:
                say("dry run: nothing was written.")
            return 0
        trained = _watched(plan)
    if plan.first:
        _say_end(trained, plan.setup.out)
    return 128 + trained.stopped if trained.stopped else 0


def _planned(job: TrainJob) -> TrainPlan:
    with counting("images") as progress:

        def show(event: Event) -> None:
            if isinstance(event, Progress):
                progress(event)
            elif line := noted(event):
                say(line)

        return kuosan.plan(job, show)


def _watched(plan: TrainPlan) -> TrainedRun:
    """Train, with a bar on the first process."""
    with closing(kuosan.run(plan)) as events:  # type: ignore[type-var]
        if not plan.first:
            return _result(event for event in events)
        with TrainingBars() as report:
            return _result(report.shown(event, noted(event)) for event in events)


def _result(events: Iterator[Event]) -> TrainedRun:
    """What the last event says."""
    last = None
    for event in events:
        last = event
    assert isinstance(last, Finished)
    trained: TrainedRun = last.result
    return trained


def _say_plan(plan: TrainPlan) -> None:
    """The compute device, the images, the model and the training; of a run that goes on, what is left of it."""
    if not plan.resumed:
        say(f"compute: {plan.setup.compute}")
    for line in plan.image_lines():
        say(line)
    cost, config = plan.cost, plan.run.config
    if cost is None or plan.seconds is None:
        return
    about = f"about {duration(plan.seconds)}, about {size_text(cost.memory)} of memory"
    every, budgeted = config.train.save_every, plan.run.budget is not None
    looks = f"every {plural(every, 'step')}" if every > 0 else "at every look"
    saved = f"saved {looks}; Ctrl-C saves and stops"
    if plan.resumed:
        say(f"training: {'about ' if budgeted else ''}{plural(plan.steps_left, 'step')} left, {about} ({saved})")
        return
    assert config.model.shape is not None
    say(
        f"model: {cost.parameters / 1e6:.2f} M parameters for {'x'.join(map(str, config.model.shape))} images"
        f"{_latents(config.model)}, {_purpose(config.model)}"
    )
    if network := shown_network(config.model):
        say(f"network: {network}")
    steps = f"{'about ' if budgeted else ''}{plural(plan.steps_left, 'step')} of {config.train.batch}"
    say(f"training: {steps} ({plan.epochs:.1f} epochs in all), {about}{_first_look(plan)}")
    say(f"run: {plan.run.folder} ({saved})")


def _first_look(plan: TrainPlan) -> str:
    """When there is something to look at."""
    if plan.first_look is None:
        return ""
    step, seconds = plan.first_look
    what = "preview" if plan.run.config.train.preview_every else "held-out loss"
    shorter = "; --minutes 10 trains for ten minutes" if plan.run.budget is None and (plan.seconds or 0) > LONG else ""
    return f"; first {what} at step {step}, in about {duration(seconds)}{shorter}"


def _latents(model: Any) -> str:
    """What is denoised of images, where it is not they themselves."""
    if model.codec.kind == "pixels":
        return ""
    return f" as {'x'.join(map(str, model.sample_shape))} latents of {model.codec.run}"


def _purpose(model: Any) -> str:
    """What a model is for: what it predicts, how many classes it distinguishes, or the latents it makes."""
    schedule, network = model.schedule, model.network
    if network.kind == "autoencoder":
        latent = "x".join(map(str, network.latent_shape(model.shape)))
        return f"turns them into latents of {latent} (factor {network.factor}) and back"
    detail = f"{schedule.betas}, T={schedule.T}" if schedule.kind == "discrete" else schedule.kind
    if network.kind != "classifier":
        return f"predicts {model.prediction}, schedule {detail}"
    return f"distinguishes {network.classes} classes, " + (
        f"schedule {detail}" if network.noisy else "clean images only"
    )


def _say_end(trained: TrainedRun, out: Path) -> None:
    folder, step, last, stopped = trained.folder, trained.step, trained.last, trained.stopped
    minutes = trained.config.train.minutes
    used = "" if trained.used is None else f", {trained.used / 60:.1f} of {minutes:g} minutes used"
    if stopped:
        console.print()
        say(
            f"stopped by {signal.Signals(stopped).name} at step {step} of {last}{used}, saved. "
            f"{'The same command' if folder == out else f'kuosan train --out {quote(str(folder))}'} goes on from there."
        )
        return
    say(f"done: {folder}, {plural(step, 'step')}{used}. The curve is {folder / 'curve.png'}.")
    if trained.config.train.objective == "classifier":
        _say_accuracy(trained)
        return
    if trained.config.train.objective == "autoencoder":
        _say_reconstruction(trained)
        return
    from kuosan.models.export import use

    command = use(trees.plain(trained.config.model), quote(str(folder)))[1]
    longer = f"--minutes {2 * minutes:g}" if minutes else f"--max-steps {2 * last}"
    say(f"next: {command}   (longer training: the same command with {longer})")


def _say_reconstruction(trained: TrainedRun) -> None:
    """An autoencoder's last validation, and what to do with it."""
    if trained.validation is not None:
        held, network = trained.validation["held_out"], trained.config.model.network
        assert isinstance(network, AutoencoderConfig) and trained.config.model.shape is not None
        say(
            f"reconstruction: PSNR {held['psnr']:.2f} dB of held-out images at step {trained.validation['step']}, "
            f"latents {'x'.join(map(str, network.latent_shape(trained.config.model.shape)))}."
        )
    folder = quote(str(trained.folder))
    say(f"next: kuosan reconstruct {folder} IMAGES, and kuosan train IMAGES --codec {folder}")


def _say_accuracy(trained: TrainedRun) -> None:
    """A classifier's last validation, and what to do with it."""
    if trained.validation is not None:
        held = trained.validation["held_out"]
        bands = [f"{value:.1%}" for value in held.get("accuracy_by_noise", []) if value is not None]
        by_noise = f"; from least to most noise: {', '.join(bands)}" if bands else ""
        say(f"accuracy: {held['accuracy']:.1%} of held-out images at step {trained.validation['step']}{by_noise}.")
    network = trained.config.model.network
    if isinstance(network, ClassifierConfig) and network.noisy:
        say(f"next: kuosan sample GENERATOR --classifier {quote(str(trained.folder))} --class NAME")


FIRST = (
    *(
        "out",
        "config",
        "network",
        "data.size",
        "train.minutes",
        "train.max_steps",
        "train.batch",
        "train.lr",
        "model.task.kind",
    ),
    *("model.task.labels", "model.text.kind", "model.codec.run", "train.objective", "compute.precision", "init"),
    "dry_run",
)
VERB = Verb(
    "train",
    TrainOptions,
    "DATA",
    "Train a diffusion model on DATA: a folder, a zip, tar, IDX, npz or npy file of images, or `portraits`.\n\n"
    "The same command again, or `kuosan train --out RUN` alone, goes on where the run stopped, bit for bit.\n"
    "A setting is given in a YAML file or as --key value, by its last part where that is unique (--max-steps 5000).",
    train,
    first=FIRST,
    defaults=GIVEN,
    short=SHORT,
    keyed=True,
)
