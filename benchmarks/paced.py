"""kuosan's own training loop as a contestant that waits for its turn after every step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from kuosan.train import loop
from kuosan.train.report import SilentTraining
from kuosan.train.saving import Stop

if TYPE_CHECKING:
    from kuosan.train.state import Run


class Turns(SilentTraining):
    """Hears a run, and lets it take as many steps as are asked for."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)

    def say(self, text: str) -> None:
        """Keep the line."""
        self.said.append(text)

    def step(self, row: dict, max_steps: int) -> None:
        """A step was taken: wait for the next turn."""
        self._done.release()
        self._go.acquire()

    def pace(self, run: Run) -> Callable[[int], None]:
        """Begin the run in a thread; `advance(n)` has it take n steps, as `loop.train` takes them."""

        def whole_run() -> None:
            self._go.acquire()
            for _ in loop.train(run, Stop()):
                pass

        threading.Thread(target=whole_run, daemon=True).start()

        def advance(steps: int) -> None:
            for _ in range(steps):
                self._go.release()
                self._done.acquire()

        return advance
