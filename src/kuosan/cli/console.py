"""What a person sees in the shell: lines and bars on a terminal, plain lines where there is none.

All that is printed goes through `sys.stdout` and `sys.stderr`, which `standing` replaces while a verb runs: a full
disk, a reader that is gone, a closed or lost terminal and an encoding without the letters never end work.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kuosan.errors import Error, escaped
from kuosan.events import Event, Fact, OnEvent
from kuosan.events import Progress as Step

if TYPE_CHECKING:
    pass


class Terminal(Console):
    """rich's console, safe against what texts from elsewhere hold."""

    def print(self, *objects: Any, **options: Any) -> None:
        """rich's print; what in a text would steer the terminal (ESC, CR, bidirectional overrides) is written out."""
        super().print(*(escaped(each) if isinstance(each, str) else each for each in objects), **options)


console = Terminal(highlight=False, soft_wrap=True)

# Failures after which a later write may succeed: the disk has room again, the reader is slow. Others are for good.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN)


class ReaderGone(Exception):
    """Nobody reads what a short verb prints; `main` ends it as the shell expects, with exit code 141."""


class Standing:
    """A standard stream whose failures end nothing: what cannot be written is dropped.

    The first failure is said once on `other`. With `brief` it ends the verb instead, as nothing else is its work.

    Raises:
        ReaderGone: from `write` and `flush`, with `brief`, where the reader of a pipe is gone.
        Error: likewise, for any other failure.
    """

    def __init__(self, stream: TextIO, name: str, other: Standing | None = None, *, brief: bool = False) -> None:
        self._stream, self._name, self._other, self._brief = stream, name, other, brief
        self._failed = False
        with suppress(AttributeError, OSError, ValueError):  # a test's own stream has no encoding to change
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError as error:
            plain = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
            return self.write(plain) if plain != text else 0
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._lose(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Each of some lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Send what waits."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def isatty(self) -> bool:
        """Whether somebody may be looking."""
        with suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def _lose(self, error: OSError | ValueError) -> None:
        """Drop what waits to be written, else it fails again, and once more when Python ends."""
        number = getattr(error, "errno", None)
        with suppress(OSError, ValueError):
            handle, null = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            aside = os.dup(handle) if number in _PASSING else -1
            os.dup2(null, handle)
            os.close(null)
            with suppress(OSError, ValueError):
                self._stream.flush()
            if aside >= 0:
                os.dup2(aside, handle)
                os.close(aside)
        first, self._failed = not self._failed, True
        cause = "its reader is gone" if number == errno.EPIPE else getattr(error, "strerror", None) or str(error)
        if self._brief and number == errno.EPIPE:
            raise ReaderGone
        if self._brief:
            raise Error(f"{self._name} cannot be written: {cause}.", exit_code=74) from error
        if first and self._other is not None:
            self._other.write(f"kuosan: {self._name} cannot be written ({cause}); the work goes on without it.\n")
            self._other.flush()


@contextmanager
def standing(*, brief: bool) -> Iterator[None]:
    """While the block runs, printing ends nothing (with `brief`: ends the verb quietly); `sys` is put back afterwards.

    Streams that were closed from the start become the null device, so that no file of ours takes their numbers.
    """
    before = sys.stdout, sys.stderr
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the smallest number that is free: this one
            os.set_inheritable(handle, True)
    lost = io.StringIO()
    errors = Standing(before[1] or lost, "standard error")
    sys.stdout, sys.stderr = Standing(before[0] or lost, "standard output", errors, brief=brief), errors
    try:
        yield
        sys.stdout.flush()
    finally:
        with suppress(ReaderGone, Error):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def say(text: str) -> None:
    """One line, as it is."""
    console.print(text, markup=False)


def warn(texts: Iterable[str]) -> None:
    """A line on standard error for each."""
    for text in texts:
        print(f"kuosan: warning: {escaped(text)}.", file=sys.stderr)


def say_table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """A table in its full width, its first `left` columns of words; a narrow screen wraps it and cuts nothing off."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))
    wide = Console(file=io.StringIO(), width=1000)
    wide.print(table)
    for line in wide.file.getvalue().splitlines():  # type: ignore[attr-defined]
        say(line.rstrip())


def duration(seconds: float) -> str:
    """A time as people say it: 8 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def bar(*columns: Any) -> Progress:
    """A progress bar that is gone when done, and silent without a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        *columns,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not sys.stdout.isatty(),
    )


@contextmanager
def counting(what: str) -> Iterator[OnEvent]:
    """A bar for each work whose Progress comes, as a job's plan reports it."""
    with bar() as progress:
        tasks: dict[str, Any] = {}

        def update(event: Event) -> None:
            if not isinstance(event, Step):
                return
            if event.what not in tasks:
                tasks[event.what] = progress.add_task(f"{what}: {event.what}", total=event.of)
            progress.update(tasks[event.what], completed=event.done, total=event.of)

        yield update


class TrainingBars:
    """A training's events as a bar on a terminal; elsewhere a line every half minute."""

    def __init__(self) -> None:
        self.progress = bar(TextColumn("{task.fields[news]}"))
        self.task: Any = None
        self.said = time.monotonic()
        self.validation: float | None = None  # the last validation loss
        self.at: Step | None = None  # the step that was reported last

    def __enter__(self) -> TrainingBars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """One line above the bar."""
        self.progress.console.print(text, markup=False)

    def shown(self, event: Event, line: str | None) -> Event:
        """Show an event: its line if it is one, else a step; and give it back."""
        if line is not None:
            self.say(line)
        match event:
            case Step("training"):
                self.at = event
            case Fact("step", row) if self.at is not None:
                self._step(self.at, row)
        return event

    def _step(self, at: Step, row: Mapping[str, Any]) -> None:
        """Move the bar; without a terminal, a line now and then."""
        if row.get("held_out"):
            self.validation = row["held_out"]["loss"]
        held = f"  held out {self.validation:.4f}" if self.validation is not None else ""
        news = f"loss {row['loss']:.4f}{held}  {row['images_per_s']:.0f} images/s"
        if self.task is None:
            self.task = self.progress.add_task("training", total=at.of, completed=at.done, news=news)
        self.progress.update(self.task, completed=at.done, news=news)
        now = time.monotonic()
        if not sys.stdout.isatty() and (at.done == at.of or now - self.said > 30):
            self.said = now
            ahead = f"  {duration(at.seconds_left)} left" if at.seconds_left else ""
            self.say(f"step {at.done}/{at.of}  {news}{ahead}")
