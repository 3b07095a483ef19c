"""What a run reports to the person who started it. The shell draws bars; from Python a line is printed now and then.

Printing never ends a training: a line that a full disk, a gone reader or an encoding does not take is dropped.

The loss curve of a run as an image, from its log.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kuosan.errors import escaped
from kuosan.events import Event, Fact, Preview, Progress, Warned, Wrote
from kuosan.storage.files import write_atomic
from kuosan.storage.log import numbers

if TYPE_CHECKING:
    from kuosan.data.dataset import Images


class TrainingReport(Protocol):
    """What `kuosan.fit(report=...)` takes: an object that is called as a run goes on."""

    def say(self, text: str) -> None:
        """One line of news."""

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """A training step was taken; `row` is its line in the log."""


class SilentTraining:
    """Drops everything; for processes other than the first, and for tests."""

    def say(self, text: str) -> None:
        """Drop the line."""

    def fact(self, name: str, **values: Any) -> None:
        """What became known, of which `SENTENCES` makes words."""
        if line := SENTENCES[name](values):
            self.say(line)

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """Drop the row."""

    def wrote(self, path: Path) -> None:
        """A file or folder is whole from now on."""

    def preview(self, step: int, of: int, path: Path) -> None:
        """A grid of images was drawn."""


class EventReport(SilentTraining):
    """Makes events of what a run reports; `take` hands over those since the last time.

    Args:
        on_event: called with each event at once, until it is set to None.
    """

    def __init__(self, on_event: Callable[[Event], None] | None = None) -> None:
        self.on_event = on_event
        self._events: list[Event] = []
        self._begun: tuple[float, int] | None = None  # when the first step was reported, and which

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def say(self, text: str) -> None:
        """A warning, or a note."""
        warning = text.removeprefix("warning: ")
        self._add(Fact("note", {"text": text}) if warning == text else Warned(warning.removesuffix(".")))

    def fact(self, name: str, **values: Any) -> None:
        """A fact by its name, with its values."""
        self._add(Fact(name, values))

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """The step's progress, and its row: loss, and every now and then the validation loss (`held_out`)."""
        now, step = time.monotonic(), row["step"]
        begun, first = self._begun = self._begun or (now, step)
        left = (now - begun) / (step - first) * (max_steps - step) if step > first else None
        self._add(Progress("training", step, max_steps, row.get("images_per_s"), left))
        self._add(Fact("step", row))

    def wrote(self, path: Path) -> None:
        """A file or folder is whole from now on."""
        self._add(Wrote(path))

    def preview(self, step: int, of: int, path: Path) -> None:
        """A grid of images was drawn."""
        self._add(Preview(step, of, path))

    def _add(self, event: Event) -> None:
        if self.on_event is None:
            self._events.append(event)
        else:
            self.on_event(event)


class Lines(SilentTraining):
    """Prints news, and every `every`-th step."""

    def __init__(self, every: int = 100) -> None:
        self.every = every

    def say(self, text: str) -> None:
        """Print the line."""
        _print(escaped(text))

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """Print the row now and then."""
        if row["step"] % self.every == 0 or row["step"] == max_steps:
            _print(f"step {row['step']}/{max_steps}  loss {row['loss']:.4f}  {row['images_per_s']:.1f} images/s")


class TensorBoard:
    """A run's rows and previews as TensorBoard reads them, in RUN/tensorboard: the numbers that log.jsonl has.

    A run that goes on hides what was written of steps after its save, so each step counts once. What cannot be written
    ends no training: log.jsonl has it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self._open(step)

    def row(self, row: dict[str, Any]) -> None:
        """A step's numbers, each under its name in log.csv."""
        with suppress(OSError):
            for name, value in numbers(row).items():
                self._writer.add_scalar(name.replace(".", "/"), value, row["step"])

    def preview(self, step: int, path: Path) -> None:
        """A grid of images."""
        from PIL import Image

        with suppress(OSError), Image.open(path) as image:
            self._writer.add_image("preview", np.asarray(image.convert("RGB")), step, dataformats="HWC")
            self._writer.flush()

    def back_to(self, step: int) -> None:
        """Hide the rows of later steps, which are taken again."""
        self.close()
        self._open(step)

    def close(self) -> None:
        """Write what waits."""
        with suppress(OSError):
            self._writer.close()

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)


def noted(event: Event) -> str | None:
    """The line of an event that is one; None of others."""
    match event:
        case Warned(text):
            return f"warning: {text}."
        case Fact("note", values):
            return str(values["text"])
        case Fact(name, values) if name in SENTENCES:
            return SENTENCES[name](values)
    return None


def seconds_text(seconds: float) -> str:
    """A time with about two digits."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


Values = Mapping[str, Any]


def _halved(v: Values) -> str:
    back = v["back"]
    replayed = "the step is taken" if back is None else f"from the save of step {back} on, the steps are taken"
    doing, again = {
        "training": ("micro-batch", f"{replayed} again with the same draws."),
        "validation": ("images at once in validation", "the validation is made again."),
        "preview": ("images at once in previews", "the preview is made again."),
    }[v["what"]]
    fewer = f"{doing} {v['size']} -> {v['size'] // 2}"
    return f"step {v['step']}: out of memory ({v['reason']}): {fewer} from here on; {again}"


def _rolled_back(v: Values) -> str:
    return (
        f"step {v['step']}: too many steps in a row were not finite: back to the save of step {v['back']}, with other "
        f"noise (return {v['returns']} of at most {v['most']})."
    )


def _other_machine(v: Values) -> str:
    return (
        f"note: so far with {v['what']} {v['before']}, now {v['now']}; the run goes on, but no longer bit for bit as "
        f"it would have."
    )


def _latents_encoded(v: Values) -> str:
    return (
        f"latents: {v['images']:,} encoded in {seconds_text(v['seconds'])} and kept in {v['folder']}; the next run of "
        f"these images and this autoencoder saves that."
    )


def _latents_not_kept(v: Values) -> str:
    return (
        f"latents: resize {v['resize']} shows another window each time, so images are encoded as they are shown, and "
        f"nothing is kept; resize crop would keep them."
    )


def _planned(v: Values) -> str | None:
    """A time budget's plan; of one that is nearly as before, nothing."""
    steps, before = f"{v['last']:,} steps in all", v.get("before", {})
    if v["reason"] == "first":
        times = [f"{mark:g} s" if mark < 60 else f"{mark / 60:g} min" for mark in v["marks"]]
        looks = f" a look after about {', '.join(times)}" if times else " a look" if v["closing"] else " no look"
        looks += ("" if not times else " and one" if v["closing"] else ", none") + " at the end"
        return (
            f"budget: {v['minutes']:g} min, of which {v['used']:.0f} s are used: about {v['last']:,} steps of "
            f"{v['step_seconds']:.2g} s;{looks}"
        )
    if v["reason"] == "minutes":
        shape = {"cosine": ", and falls along a cosine to 0 at the end", "inverse_sqrt": ", and falls on"}
        return (
            f"step {v['step']}: {before['minutes']:g} -> {v['minutes']:g} min, of which {v['used'] / 60:.1f} are used: "
            f"about {steps}; the learning rate goes from {before['lr']:.2g} to {v['lr']:.2g}"
            f"{shape.get(v['lr_shape'], '')}."
        )
    if v["reason"] == "speed" and abs(v["last"] / before["last"] - 1) < SAID:
        return None
    pace = f"a step takes {v['step_seconds']:.2g} s in place of {before['step_seconds']:.2g} s"
    return f"step {v['step']}: {pace}: about {steps} in place of {before['last']:,}."


SAID = 0.1  # a plan is said where its end is so much of the run away from what it was
# The words of a training's facts, by their names.
SENTENCES: Mapping[str, Callable[[Values], str | None]] = {
    "budget": _planned,
    "captions_encoding": lambda v: f"{v['what']}: {v['done']:,} of {v['of']:,} encoded.",
    "config_by_hand": lambda v: (
        f"{v['path']} was written by hand: it is kept as {v['kept']}, and replaced by the whole one."
    ),
    "halved": _halved,
    "latents_cached": lambda v: f"latents: {v['images']:,} from the cache, about {seconds_text(v['seconds'])} saved.",
    "latents_encoded": _latents_encoded,
    "latents_encoding": lambda v: (
        f"latents: {v['done']:,} of {v['of']:,} encoded, about {seconds_text(v['seconds_left'])} left."
    ),
    "latents_measured": lambda v: f"latents: shift and scale are measured on {v['images']:,} of the training images.",
    "latents_not_kept": _latents_not_kept,
    "other_machine": _other_machine,
    "resumed": lambda v: f"going on from step {v['step']}{f' of {last}' if (last := v['of']) else ''}: {v['folder']}",
    "rolled_back": _rolled_back,
    "skipped": lambda v: f"step {v['step']}: {v['reason']}; the step was skipped ({v['in_a_row']} in a row).",
}


def image_lines(images: Images, *, resumed: bool, changed: bool, captions: bool) -> list[str]:
    """What is said of the images before a training starts: all of a new run's, a line of one that goes on.

    Args:
        changed: they are others than the run was trained on before.
        captions: the first ones are shown with theirs.
    """
    if resumed:
        what = "others than this run was trained on before" if changed else "the same as before"
        return [f"images: {len(images.train):,} to train on, {len(images.held_out):,} held out, {what}"]
    from kuosan.data.dataset import first_rows

    rows = first_rows(images) if captions else []
    return [f"images: {line}" for line in images.describe()] + [f"caption: {row}" for row in rows]


def _print(text: str) -> None:
    """One line on standard output, if it takes one."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError as error:
        plain = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
        if plain != text:
            _print(plain)
    except (OSError, ValueError):  # ValueError: it was closed
        pass


def smooth(losses: np.ndarray, width: int) -> np.ndarray:
    """A running mean over `width` steps, shorter at the beginning: (N,) -> (N,)."""
    total = np.concatenate([[0.0], np.cumsum(losses)])
    end = np.arange(1, len(losses) + 1)
    begin = np.maximum(0, end - width)
    mean: np.ndarray = (total[end] - total[begin]) / (end - begin)
    return mean


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the curve: every step's loss, its running mean, and the validation loss; beside it what else was measured,
    the loss by noise level and a classifier's accuracy.
    """
    from matplotlib.figure import Figure

    steps = np.array([row["step"] for row in rows if row.get("loss") is not None])
    losses = np.array([row["loss"] for row in rows if row.get("loss") is not None])
    if not len(steps):
        return
    held = [(row["step"], row["held_out"]) for row in rows if row.get("held_out")]
    beside = [panel for name, panel in PANELS.items() if held and name in held[0][1]]
    figure = Figure(figsize=(6.5 + 4.5 * len(beside), 4), layout="constrained")
    axes = figure.subplots(1, 1 + len(beside), squeeze=False)[0]
    axes[0].plot(steps, losses, lw=0.5, color="0.8", label="each step")
    axes[0].plot(steps, smooth(losses, max(1, len(losses) // 50)), color="tab:blue", label="running mean")
    if held:
        axes[0].plot(
            [s for s, _ in held],
            np.array([h["loss"] for _, h in held], dtype=float),
            "o-",
            ms=3,
            color="tab:orange",
            label="held out",
        )
        for axis, panel in zip(axes[1:], beside, strict=True):
            panel(axis, held)
    top = np.quantile(losses, 0.99) * 1.3
    axes[0].set(xlabel="step", ylabel="loss", ylim=(0, top if top > 0 else 1), title="training")
    axes[0].legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomic(path, buffer.getvalue())


def _by_noise(axis: Any, held: list[tuple[int, dict[str, Any]]]) -> None:
    _bands(axis, held, "by_noise")
    axis.set(xlabel="step", yscale="log", title="held-out loss by noise level, no weight")
    axis.legend()


def _accuracy(axis: Any, held: list[tuple[int, dict[str, Any]]]) -> None:
    if "accuracy_by_noise" in held[0][1]:
        _bands(axis, held, "accuracy_by_noise")
    whole = np.array([h["accuracy"] for _, h in held], dtype=float)
    axis.plot([s for s, _ in held], whole, "o-", ms=3, color="tab:orange", label=f"all: {whole[-1]:.1%} at last")
    axis.set(xlabel="step", ylim=(0, 1), title="held-out accuracy")
    axis.legend()


def _bands(axis: Any, held: list[tuple[int, dict[str, Any]]], name: str) -> None:
    """A line a noise level, from blue to red."""
    curves = np.array([h[name] for _, h in held], dtype=float)  # None, a band without images, becomes NaN
    bands = curves.shape[1]
    for band in range(bands):
        colour = (band / max(1, bands - 1), 0.2, 1 - band / max(1, bands - 1))
        label = {0: "least noise", bands - 1: "most noise"}.get(band)
        axis.plot([s for s, _ in held], curves[:, band], color=colour, label=label, lw=1)


def _psnr(axis: Any, held: list[tuple[int, dict[str, Any]]]) -> None:
    whole = np.array([h["psnr"] for _, h in held], dtype=float)
    axis.plot([s for s, _ in held], whole, "o-", ms=3, color="tab:orange", label=f"{whole[-1]:.2f} dB at last")
    axis.set(xlabel="step", ylabel="dB", title="held-out PSNR")
    axis.legend()


PANELS = {"psnr": _psnr, "by_noise": _by_noise, "accuracy": _accuracy}  # by the name of what was measured
