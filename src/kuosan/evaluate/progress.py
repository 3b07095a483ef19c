"""Who hears how an evaluation goes on."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """The shell's bars, say."""

    def say(self, text: str) -> None:
        """A sentence."""

    def left(self, seconds: float, evaluations: int) -> None:
        """Told once, after the first batch: how long the rest of the sampling will take."""

    def progress(self, what: str, done: int, of: int) -> None:
        """Some work has come to `done`."""


class Silent:
    """Nobody listens."""

    def say(self, text: str) -> None:
        """Nothing."""

    def left(self, seconds: float, evaluations: int) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, of: int) -> None:
        """Nothing."""
