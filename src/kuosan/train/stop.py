"""Stopping on purpose: SIGINT, SIGTERM and SIGHUP ask, the loop saves after the step in progress and returns.

A signal that is ignored when training begins stays ignored: so `nohup`, and a shell that starts a job in the
background, keep their meaning. So does a handler that was not installed from Python, which could not be put back.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Within `with Stop() as stop`, `stop.asked` is the signal's number once one came, else 0.

    Leaving the block puts every handler back as it was.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not None and before != signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:  # twice means now
            raise KeyboardInterrupt
        self.asked = number
