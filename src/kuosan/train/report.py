"""What a run tells the person who started it. The shell draws bars; from Python a line is printed now and then.

Printing never ends a training: a line that a full disk, a gone reader or an encoding does not take is dropped.
"""

from __future__ import annotations

from typing import Any, Protocol

from kuosan.errors import escaped


class Report(Protocol):
    """Whoever wants to hear of a run."""

    def say(self, text: str) -> None:
        """One line of news."""

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """A training step was taken; `row` is its line in the log."""


class Silent:
    """Hears nothing; for processes other than the first, and for tests."""

    def say(self, text: str) -> None:
        """Drop the line."""

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """Drop the row."""


class Lines(Silent):
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
