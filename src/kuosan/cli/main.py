"""The shell's entry: signals are looked after before anything is imported that takes time; `verbs` does the rest."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from kuosan.errors import Error, Terminated, check_system

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(tokens: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake is one clear line and exit code 2, a signal one line, never a traceback."""
    # torch's worker threads spin while they wait: on a busy machine that costs 5-25x. Read when libgomp loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        check_system()
    except Error as error:
        print(f"kuosan: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    with Signals(last=tokens is None) as signals:
        try:
            from kuosan.cli import verbs

            code = verbs.ended(list(sys.argv[1:] if tokens is None else tokens))
        except SystemExit:
            raise
        except BaseException as error:
            # a library that was being loaded may have made another error of the interrupt
            if not signals.number and not isinstance(error, KeyboardInterrupt):
                raise
            with contextlib.suppress(OSError, ValueError):
                print("kuosan: stopped.", file=sys.stderr)
            code = 128 + (signals.number or signal.SIGINT)
        sys.exit(code)


class Signals:
    """Within the block SIGTERM and SIGHUP stop a verb as Ctrl-C does; ignored signals, and others' handlers, stay.

    Args:
        last: the program ends with the block: signals that come while Python ends change nothing any more.
    """

    def __init__(self, *, last: bool) -> None:
        self.number = 0  # of the signal that came
        self._last, self._process = last, os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        usual = {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
            signal.SIGHUP: signal.SIG_DFL,
        }
        for number, handler in usual.items():
            if signal.getsignal(number) == handler:
                with contextlib.suppress(ValueError):  # not in the main thread
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._stop:
                signal.signal(number, signal.SIG_IGN if self._last else handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child that was forked: as if it had never had this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.number = number
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


if __name__ == "__main__":
    main()
