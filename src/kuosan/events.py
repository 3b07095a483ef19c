"""What a running job says: numbers and facts, which the shell, Python and a server put in their own words.

for event in run(plan(job)):        Progress ... Preview ... Warned ... Wrote ... Finished, which is the last
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """One thing that happened."""


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `of` parts of the work `what`; without `of` nobody knows how many there are."""

    what: str
    done: int
    of: int | None = None
    rate: float | None = None  # parts a second, lately
    seconds_left: float | None = None


@dataclass(frozen=True)
class Fact(Event):
    """Something that became known: its name, and plain values."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Warned(Event):
    """What a person should know, and work goes on: a sentence without its full stop."""

    text: str


@dataclass(frozen=True)
class Preview(Event):
    """A look at unfinished images: where they were written, or their pixels (B, C, H, W) in [-1, 1]."""

    step: int
    of: int
    path: Path | None = None
    images: Any = None


@dataclass(frozen=True)
class Wrote(Event):
    """A file, or a folder, that is whole from now on."""

    path: Path


@dataclass(frozen=True)
class Finished(Event):
    """The last event: what the job came to."""

    result: Any


OnEvent = Callable[[Event], None]
OnProgress = Callable[[str, int, int], None]  # (what, done, of), as work counts that is not a job


def counted(on_event: OnEvent | None) -> OnProgress:
    """What counts by (what, done, of) while a job is planned, as Progress; without `on_event` nothing is said."""

    def count(what: str, done: int, of: int) -> None:
        if on_event is not None:
            on_event(Progress(what, done, of))

    return count
