"""What a run tells the person who started it. The shell draws bars; from Python a line is printed now and then."""

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
        print(escaped(text), flush=True)

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """Print the row now and then."""
        if row["step"] % self.every == 0 or row["step"] == max_steps:
            print(
                f"step {row['step']}/{max_steps}  loss {row['loss']:.4f}  {row['images_per_s']:.1f} images/s",
                flush=True,
            )
