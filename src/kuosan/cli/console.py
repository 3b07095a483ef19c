"""What a person sees in the shell: lines and bars, on a terminal; plain lines where there is none."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kuosan.errors import escaped


class Terminal(Console):
    """rich's console, which leaves it to `main` to end where nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Raise what rich caught."""
        raise BrokenPipeError

    def print(self, *objects: Any, **options: Any) -> None:
        """rich's print; what in a text would steer the terminal (ESC, CR, bidirectional overrides) is written out."""
        super().print(*(escaped(each) if isinstance(each, str) else each for each in objects), **options)


console = Terminal(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line, as it is."""
    console.print(text, markup=False)


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
