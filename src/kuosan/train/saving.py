"""Stopping on purpose: SIGINT, SIGTERM and SIGHUP ask, the loop saves after the step in progress and returns.

A signal that is ignored when training begins stays ignored: so `nohup`, and a shell that starts a job in the
background, keep their meaning. So does a handler that was not installed from Python, which could not be put back.

Saves and log rows of a run, on disks that may be full: what fails is said and tried again, and nothing is lost.

a row       kept in memory until the log takes it
a save      that fails leaves the old ones; it is tried again when the next is due, and three in a row end the run
the last    save before the run ends is tried three times at once
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from shlex import quote
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from kuosan.config import plain
from kuosan.errors import Error, plural
from kuosan.storage import checkpoint

if TYPE_CHECKING:
    from kuosan.train.batches import Drawn
    from kuosan.train.state import Run

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


MOST_FAILED = 3  # failed saves in a row before giving up
PAUSE = 1.0  # seconds between attempts at a save that must not fail


def is_due(run: Run) -> bool:
    """Whether a save is due: `save_every` was reached since the last one, and the step just taken was finite.

    Under a time budget, its next look, or one of the saves between them.
    """
    state, every = run.state, run.config.train.save_every
    since = max(state.good_step, run.tried_at)
    if every > 0:
        return state.bad == 0 and state.step // every > since // every
    if run.budget is None or not run.budget.plans:  # before the first step
        return False
    plan = run.budget.plan(state.step - 1)
    return state.bad == 0 and any(since < each <= state.step for each in (*plan.looks, *plan.saves))


def save(run: Run, *, must: bool, alone: bool = False) -> None:
    """Write a checkpoint. A failure keeps the old one, is said, and is tried again when the next is due.

    Args:
        alone: exchange no word with the other processes, which may wait elsewhere.

    Raises:
        Error: on every process, after three failures in a row, or of one that `must` succeed.
    """
    state = run.state
    before = state.good_step, state.returns
    if is_due(run):
        state.good_step, state.returns = state.step, 0
    run.tried_at = state.step
    if _written(run, must) if alone else run.world.on_first(lambda: _written(run, must)):
        run.saved_at, run.failed_saves = state.step, 0
    else:
        state.good_step, state.returns = before


def _written(run: Run, must: bool) -> bool:
    """Whether the checkpoint was written; `must` tries at once again, but for a run's very first."""
    try:
        follow(run)
    except Error as error:
        raise Error(f"{error} Step {run.state.step} is not saved, and the training ends.", exit_code=74) from error
    for attempt in range(MOST_FAILED):
        try:
            _flush(run)
            if run.budget is not None:
                run.extra["budget"] = run.budget.plain()
            run.state.save(run.folder, plain(run.config), run.config.train.keep, run.extra)
            return True
        except Error as error:
            run.failed_saves += 1
            if run.saved_at < 0 or attempt + 1 == MOST_FAILED or (not must and run.failed_saves >= MOST_FAILED):
                kept = f" The last good save, of step {run.saved_at}, is untouched." if run.saved_at >= 0 else ""
                raise Error(f"{error} Step {run.state.step} is not saved.{kept}", exit_code=74) from error
            if not must:
                every = run.config.train.save_every
                when = f"in {plural(every, 'step')}" if every > 0 else "when the next is due"
                run.report.say(f"warning: {error} Training goes on; the next save is tried {when}.")
                return False
            run.report.say(f"warning: {error} Trying again.")
            time.sleep(PAUSE)
    raise AssertionError("the last attempt raises or returns")


def follow(run: Run) -> None:
    """See that the run's folder is where it was, before anything is written there; where it was moved, go on there.

    Raises:
        Error: it was deleted, or another training has it now.
    """
    if run.lock is None:
        return
    place = run.lock.place()
    if place == run.folder:
        return
    run.report.say(
        f"warning: {run.folder} was moved to {place} while it was trained: the run goes on there. To go on with it "
        f"later: kuosan train --out {quote(str(place))}"
    )
    run.folder = place
    if run.log is not None:
        run.log.path = place / run.log.path.name
    if run.monitor is not None:
        run.monitor.folder = place


def _is_there(run: Run) -> bool:
    """Whether there is still a folder of this run's to write into."""
    try:
        follow(run)
    except Error:
        return False
    return True


def save_before_error(run: Run, batches: Iterator[Drawn]) -> Iterator[Drawn]:
    """The batches; where the next one cannot be made, the state up to it is saved before the error goes on.

    So an image that has gone, or a data set that raises, costs no step: the same command goes on with that very batch.
    """
    try:
        yield from batches
    except Exception as error:
        raise_saved(run, error)


def raise_saved(run: Run, error: Exception) -> NoReturn:
    """Raise the error of reading data, with a word on the state, which is saved by the first process before."""
    state = run.state
    try:
        if run.world.first and (state.step > run.saved_at or _was_given_up(run)) and state.is_finite():
            save(run, must=True, alone=True)
    except Error as unsaved:
        run.report.say(f"warning: {unsaved}")
    if run.saved_at != state.step:
        raise error
    if isinstance(error, Error):
        text = f"{error} Step {state.step} is saved: the same command goes on there."
        raise Error(text, exit_code=error.exit_code) from error
    error.add_note(f"kuosan: step {state.step} is saved: the same command goes on there.")
    raise error


def _was_given_up(run: Run) -> bool:
    """Whether saves of later steps, which a return gave up, still lie there, so that a next start would take them."""
    there = checkpoint.checkpoints(run.folder)
    return bool(there) and checkpoint.step_of(there[-1]) > run.state.step


def write_row(run: Run, row: dict[str, Any]) -> None:
    """Put a row into the log; on a full disk it waits in memory, with those after it, for the next row or save."""
    waiting = bool(run.unwritten)
    run.unwritten.append(row)
    try:
        _write_rows(run)
    except Error as error:
        if not waiting:
            run.report.say(f"warning: {error} Training goes on; the log's rows wait in memory.")
    if run.board is not None:
        run.board.row(row)


def last_good(run: Run) -> checkpoint.Saved:
    """The save to go back to: the last one that was due after a finite step; the newest good one if it is damaged."""
    try:
        return checkpoint.load(checkpoint.folder(run.folder, run.state.good_step))
    except Error:
        return checkpoint.load(run.folder)


def forget_rows(run: Run) -> None:
    """Drop the rows of steps after the state's, written and not; the repeated steps write them again."""
    run.unwritten = [row for row in run.unwritten if row["step"] <= run.state.step]
    if run.log is not None and (damage := run.log.truncate_after(run.state.step)):
        run.report.say(f"warning: {damage}")
    if run.board is not None:
        run.board.back_to(run.state.step)


def close(run: Run) -> None:
    """Write what waits, and let go of log and lock; what cannot be written is said."""
    if run.board is not None:
        run.board.close()
    try:
        if run.log is not None:
            try:
                if _is_there(run):
                    _flush(run)
            finally:
                run.log.close()
    except Error as error:
        run.report.say(f"warning: {error} The log lacks its last {plural(len(run.unwritten), 'row')}.")
    finally:
        if run.lock is not None:
            run.lock.release()


def _write_rows(run: Run) -> None:
    assert run.log is not None
    while run.unwritten:
        run.log.append(run.unwritten[0])
        del run.unwritten[0]


def _flush(run: Run) -> None:
    """The log, whole up to this step, on the disk: a checkpoint vouches for its rows."""
    _write_rows(run)
    assert run.log is not None
    if damage := run.log.follow():
        run.report.say(f"warning: {damage}")
    run.log.flush()
