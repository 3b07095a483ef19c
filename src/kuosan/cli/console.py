"""What a person sees in the shell: lines and bars, on a terminal; plain lines where there is none.

All that is printed goes through `sys.stdout` and `sys.stderr`, which `standing` replaces while a verb runs: a full
disk, a reader that is gone, a closed or lost terminal and an encoding without the letters never end work.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kuosan.errors import Error, escaped


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
def counting(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar driven by (what, done, of) calls, as data loading makes them."""
    with bar() as progress:
        tasks: dict[str, Any] = {}

        def update(part: str, done: int, of: int) -> None:
            if part not in tasks:
                tasks[part] = progress.add_task(f"{what}: {part}", total=of)
            progress.update(tasks[part], completed=done, total=of)

        yield update


class TrainingReport:
    """Bars on a terminal; elsewhere a line every half minute."""

    def __init__(self) -> None:
        self.progress = bar(TextColumn("{task.fields[news]}"))
        self.task: Any = None
        self.said = time.monotonic()
        self.begun: tuple[float, int] | None = None  # when the first step was heard of, and which
        self.held_out: float | None = None

    def __enter__(self) -> TrainingReport:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """One line above the bar."""
        self.progress.console.print(text, markup=False)

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """Move the bar; say held-out losses and, without a terminal, a line now and then."""
        if row.get("held_out"):
            self.held_out = row["held_out"]["loss"]
        held = f"  held out {self.held_out:.4f}" if self.held_out is not None else ""
        news = f"loss {row['loss']:.4f}{held}  {row['images_per_s']:.0f} images/s"
        if self.task is None:
            self.task = self.progress.add_task("training", total=max_steps, completed=row["step"], news=news)
        self.progress.update(self.task, completed=row["step"], news=news)
        last = row["step"] == max_steps
        now = time.monotonic()
        self.begun = self.begun or (now, row["step"])
        if not sys.stdout.isatty() and (last or now - self.said > 30):
            self.said = now
            (begun, first), left = self.begun, max_steps - row["step"]
            ahead = (
                f"  {duration((now - begun) / (row['step'] - first) * left)} left"
                if row["step"] > first and left
                else ""
            )
            self.say(f"step {row['step']}/{max_steps}  {news}{ahead}")
