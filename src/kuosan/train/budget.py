"""A time budget: how many steps fit into it, measured while the run trains, and where its looks come.

A step's rate follows from the share of the run that is done, which grows evenly from each plan's own to 1 at its end:

    share(step) = begun + (1 - begun) · (step - first) / (last - first)

Where the machine becomes slower or faster, the rest is planned again: another `last`, the share going on where it is.
Time decides on a plan once. From then on it is step numbers, in the run's folder (`budget.json`) before its first step
is taken and in every later save: whoever goes on from an earlier save takes the same steps at the same rates, whatever
the time they take then.

What counts is wall time by a counter that nobody sets: all of the process from its start (images, measuring, saves,
looks), and of processes before it what the save knows. Steps that a kill lost do not count, nor does a machine's sleep.

Torch-free.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuosan.errors import Error
from kuosan.regular import read_regular
from kuosan.storage import files

if TYPE_CHECKING:
    from kuosan.storage.checkpoint import Saved
    from kuosan.train.config import TrainConfig

FILE = "budget.json"
KEPT = ("look_steps", "looked", "taken", "seconds_lately", "steps_lately")  # what a save knows of the machine's speed
LISTS = ("looks", "marks", "saves")  # fields of a plan that are several

LOOKS = (30, 60, 180, 600, 1800)  # seconds after which a run is validated, previewed and saved; then every half hour
SAVES = 300  # seconds between saves beside those
LATEST = 0.9  # of the budget; a look after that would be one just before the end's
CLOSING = 0.3  # the largest share that the look at the end may take; a longer one is left out
LOOKING = 0.2  # the largest share of the budget that looks may take, but for the one at the end
OLD = 30.0  # seconds in which Python starts, however busy the machine is
ENDING = 2.5  # seconds of a core's time for the curve and the process's end, after the last step
BUSIEST = 6.0  # times as long as a core alone would take, at most
LATELY = 0.05  # of the budget: after which time a step counts 1/e in the machine's speed,
SLOWEST = 0.75  # but after a single one not less than this
FEWEST = 3  # steps before the speed of real ones counts
OFF = 0.02  # of the budget: the end may be expected so far from it before the rest is planned again,
AHEAD = 0.1  # or so far in shares of the time that is left
PAUSE = 0.03  # of the budget, between two plans; near the end half of what is left
OVER = 0.1  # of the budget, by which a look at the end may be too late
FALLING = 0.04  # of the budget, which may be used beyond it so that the rate falls


def seconds_now() -> float:
    """Seconds, by a counter that nobody sets."""
    return time.monotonic()


def computed() -> float:
    """Seconds of cores' time that this process has used."""
    return time.process_time()


def process_began() -> float:
    """When this process began, by `seconds_now`: as the system says, or at least as long ago as it has computed.

    Now, of one so old that it did something else before.
    """
    age = time.process_time()
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = max(age, float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK"))
    return seconds_now() - (age if age < OLD else 0.0)


@dataclass(frozen=True)
class Planned:
    """The rest of a run, from a step on, in step numbers."""

    step: int  # steps taken before it
    retry: int  # returns to an earlier save before it
    last: int  # the run's last step
    share: float  # of the run that is done where it begins
    reached: float  # the largest share that was done before: what has begun by a share stays begun
    looks: tuple[int, ...]  # after which steps the run is validated, previewed and saved, beside the last
    marks: tuple[float, ...]  # of the looks, the seconds of the budget that they stand for
    saves: tuple[int, ...]  # after which it is saved
    closing: bool  # whether there is a look after the last step
    minutes: float  # the budget
    seconds: float  # of it used
    step_seconds: float  # that a step takes, as measured
    reason: str  # first, speed, minutes, return

    def share_at(self, step: int) -> float:
        """The share of the run that is done after so many steps."""
        part = (step - self.step) / max(1, self.last - self.step)
        return self.share + (1 - self.share) * min(1.0, max(0.0, part))

    def step_at(self, share: float) -> int:
        """After which step so much of the run is done, about."""
        part = (share - self.share) / max(1e-9, 1 - self.share)
        return self.step + round(part * (self.last - self.step))


@dataclass
class Budget:
    """One run's time, what it went by so far, and its plans."""

    minutes: float
    plans: list[Planned] = field(default_factory=list)  # by (retry, step)
    before: float = 0.0  # seconds used by earlier processes
    begun: float = field(default_factory=lambda: seconds_now())
    step_seconds: float = 0.0  # measured before the training; 0: not measured
    look_steps: float | None = None  # what the last look took, in steps of then; None: none was taken
    retry: int = 0  # as the state has it
    opened: tuple[float, float] = field(default_factory=lambda: (seconds_now(), computed()))
    ticked: float = 0.0  # when the last step ended
    looked: int = 0  # looks taken
    taken: int = 0  # steps whose time is known
    seconds_lately: float = 0.0  # of the last steps, older ones counting less
    steps_lately: float = 0.0  # their number, so counted

    @property
    def seconds(self) -> float:
        """The budget."""
        return 60 * self.minutes

    @property
    def used(self) -> float:
        """Seconds used of it."""
        return self.before + seconds_now() - self.begun

    @property
    def ending(self) -> float:
        """Seconds that the end takes after the last step: longer where other work shares the cores."""
        seconds, own = seconds_now() - self.opened[0], computed() - self.opened[1]
        return ENDING * (min(BUSIEST, max(1.0, seconds / own)) if own > 0 else 1.0)

    @property
    def pace(self) -> float:
        """Seconds a step, lately; what was measured before the training, as long as few steps were taken."""
        few = self.taken < FEWEST and self.seconds_lately < PAUSE * self.seconds
        return self.step_seconds if few and self.step_seconds else self.seconds_lately / self.steps_lately

    def plan(self, step: int) -> Planned:
        """The plan in force for the step after so many."""
        found = [each for each in self.plans if (each.retry, each.step) <= (self.retry, step)]
        return found[-1] if found else self.plans[0]

    def last(self, step: int) -> int:
        """The run's last step, as planned for the step after so many; without any plan there is always one more."""
        return self.plan(step).last if self.plans else step + 1

    def done(self, step: int) -> float:
        """The largest share of the run that was ever done."""
        if not self.plans:
            return 1.0  # of a step that is measured before any is taken
        plan = self.plan(step)
        return max(plan.reached, plan.share_at(step))

    def forget_later(self, step: int) -> None:
        """Give up the plans that would come into force from a step on."""
        self.plans = [each for each in self.plans if (each.retry, each.step) < (self.retry, step)] or self.plans[-1:]

    def returned(self, step: int) -> bool:
        """Whether this return to an earlier save was planned before, by a process that was killed since."""
        return any((each.retry, each.step) == (self.retry, step) for each in self.plans)

    @property
    def changed(self) -> bool:
        """Whether another budget than that of the plans is asked for."""
        return bool(self.plans) and self.plans[-1].minutes != self.minutes

    def plain(self) -> dict[str, Any]:
        """As a save holds it."""
        return {"seconds": self.used, "plans": self.plain_plans(), **{name: getattr(self, name) for name in KEPT}}

    def plain_plans(self) -> list[dict[str, Any]]:
        """The plans, as JSON holds them."""
        return [{**dataclasses.asdict(each), **{name: [*getattr(each, name)] for name in LISTS}} for each in self.plans]

    def step_taken(self) -> None:
        """A step has ended."""
        now = seconds_now()
        seconds, self.ticked = now - self.ticked, now
        kept = max(SLOWEST, math.exp(-seconds / (LATELY * self.seconds)))
        self.taken += 1
        self.seconds_lately = kept * self.seconds_lately + seconds
        self.steps_lately = kept * self.steps_lately + 1

    def step_over(self, looked: bool) -> None:
        """What came behind a step has ended: a look, or its row of the log, which is a part of the step."""
        now = seconds_now()
        seconds, self.ticked = now - self.ticked, now
        if looked:
            self.look_steps, self.looked = seconds / max(self.pace, 1e-6), self.looked + 1
        else:
            self.seconds_lately += seconds


def marks(seconds: float) -> list[float]:
    """When a run of so many seconds is looked at, in seconds from its start."""
    regular = range(2 * LOOKS[-1], math.ceil(seconds), LOOKS[-1])
    return [mark for mark in (*LOOKS, *regular) if mark <= LATEST * seconds]


def look_guess(train: TrainConfig, step_seconds: float) -> float:
    """Seconds that a look takes, before one was taken: by the images that pass the network, once in place of thrice."""
    images = train.preview_images * train.preview_steps if train.preview_every else 0
    images += train.evaluate_images if train.evaluate_every else 0
    return 0.5 + step_seconds * images / (3 * train.batch)


@dataclass(frozen=True)
class Aim:
    """What is left of a budget, in steps."""

    steps: int
    looks: tuple[int, ...]
    marks: tuple[float, ...]
    saves: tuple[int, ...]
    closing: bool
    off: float  # seconds that the plan in force would end too late


def aim(budget: Budget, train: TrainConfig, step: int) -> Aim:
    """What fits into the time that is left, from a step on."""
    used, pace = budget.used, max(budget.pace, 1e-6)
    look = look_guess(train, pace) if budget.look_steps is None else budget.look_steps * pace
    left = max(0.0, budget.seconds - used)
    plan = budget.plan(step) if budget.plans else None
    due = _due(budget, plan, step)
    every = due[: max(0, int(LOOKING * budget.seconds / look) - budget.looked)] if look > 0 else due
    closing = look <= CLOSING * budget.seconds and look + budget.ending <= max(left - pace, OVER * budget.seconds)
    steps = round((left - closing * look - budget.ending - len(every) * look) / pace)
    if plan is not None and plan.share_at(step) < LATEST:
        steps = max(steps, int(FALLING * budget.seconds / pace))
    steps = max(1, steps)
    begins = {mark - i * look: mark for i, mark in enumerate(every)}
    looks = _numbers([*begins], step, used, pace, step + steps)
    saves = _numbers([used + SAVES * (i + 1) for i in range(int(left // SAVES))], step, used, pace, step + steps)
    off = 0.0
    if plan is not None:
        ahead = sum(each > step for each in plan.looks)
        off = used + (plan.last - step) * pace + (ahead + plan.closing) * look + budget.ending - budget.seconds
    numbers, kept = tuple(number for number, _ in looks), tuple(begins[begin] for _, begin in looks)
    return Aim(steps, numbers, kept, tuple(number for number, _ in saves), closing, off)


def _due(budget: Budget, plan: Planned | None, step: int) -> list[float]:
    """The looks that are still to come, in seconds of the budget; one whose time has come waits for its step."""
    used = budget.used
    coming = [mark for mark in marks(budget.seconds) if mark > used]
    if plan is not None and not budget.changed:
        waiting = {mark for look, mark in zip(plan.looks, plan.marks, strict=True) if look > step}
        return sorted(waiting.union(coming))
    if used > LOOKS[0] and used + LOOKS[0] <= LATEST * budget.seconds:  # a start so long that the first one is missed
        return [used + LOOKS[0], *(mark for mark in coming if mark > used + LOOKS[0])]
    return coming


def _numbers(times: list[float], step: int, used: float, pace: float, last: int) -> list[tuple[int, float]]:
    """The steps after which these times have come, each once; none so near the end that it would be the end's."""
    found: dict[int, float] = {}
    for each in times:
        number = max(step + 1, step + round((each - used) / pace))
        if last - number > 0.05 * (last - step):
            found.setdefault(number, each)
    return sorted(found.items())


def is_off(budget: Budget, train: TrainConfig, step: int) -> bool:
    """Whether the plan in force would miss the budget's end, and another would not; never where one follows already."""
    latest = next(each for each in reversed(budget.plans) if each.retry <= budget.retry)
    if (latest.retry, latest.step) >= (budget.retry, step):
        return False
    left = max(0.0, budget.seconds - budget.used)
    since = abs(budget.used - latest.seconds)  # less is used than at a plan that was made before a kill
    if since < min(PAUSE * budget.seconds, 0.5 * max(0.0, budget.seconds - latest.seconds)):
        return False
    found = aim(budget, train, step)
    return abs(found.off) > max(OFF * budget.seconds, AHEAD * left) and step + found.steps != latest.last


def next_plan(budget: Budget, train: TrainConfig, step: int, reason: str) -> Planned:
    """The rest of the run from a step on, by the time that is left and by what steps took."""
    found, used = aim(budget, train, step), budget.used
    share = reached = 0.0
    if budget.plans:
        before = budget.plan(step)
        share, reached = before.share_at(step), budget.done(step)
        if budget.changed:
            share = min(1.0, used / budget.seconds)
    return Planned(
        step,
        budget.retry,
        step + found.steps,
        share,
        reached,
        found.looks,
        found.marks,
        found.saves,
        found.closing,
        budget.minutes,
        used,
        budget.pace,
        reason,
    )


def news(budget: Budget, new: Planned, old: Planned | None) -> dict[str, Any]:
    """What there is to say of a plan."""
    values: dict[str, Any] = {
        "step": new.step,
        "last": new.last,
        "minutes": new.minutes,
        "used": new.seconds,
        "reason": new.reason,
    }
    values |= {
        "step_seconds": new.step_seconds,
        "looks": list(new.looks),
        "marks": list(new.marks),
        "closing": new.closing,
    }
    if old is not None:
        values["before"] = {"last": old.last, "minutes": old.minutes, "step_seconds": old.step_seconds}
    return values


def write(folder: Path, budget: Budget) -> None:
    """Write the plans down. Raises: Error: they cannot be written."""
    files.write_atomic(folder / FILE, json.dumps(budget.plain_plans(), indent=1) + "\n")


def known(folder: Path, saved: Saved, notes: list[str]) -> tuple[list[Planned], dict[str, Any]]:
    """The plans of a run that goes on, those of its save and those that came after it, and what else a Budget keeps."""
    held = saved.state.get("budget")
    if held is None:
        return [], {}
    try:
        found = dict.fromkeys(_plans(held["plans"]))
        kept = {"before": held["seconds"], **{name: held[name] for name in KEPT}}
        for name, value in kept.items():
            absent = value is None and name == "look_steps"
            if not absent and (type(value) not in (int, float) or not 0 <= value < math.inf):
                raise ValueError(f"{name} = {value!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise Error(
            f"{saved.path}: state.json holds no plans of a time budget ({error}): it is damaged; use an earlier "
            f"checkpoint, or copy the folder again."
        ) from None
    path = folder / FILE
    try:
        with files.explained(path, doing="read"):
            later = _plans(json.loads(read_regular(path))) if path.is_file() else []
        found |= dict.fromkeys(later)
    except (Error, ValueError, TypeError, RecursionError) as error:
        notes.append(
            f"warning: {path} cannot be read ({error}); what was planned after step {saved.step} is not known."
        )
    return sorted(found, key=lambda each: (each.retry, each.step)), kept


def _plans(entries: Any) -> list[Planned]:
    """Raises: ValueError: they are something else."""
    kinds = {each.name: each.type for each in dataclasses.fields(Planned)}
    if not isinstance(entries, list) or not all(isinstance(each, dict) and set(each) == set(kinds) for each in entries):
        raise ValueError("it is no list of plans")
    return [_planned(each, kinds) for each in entries]


def _planned(entry: Mapping[str, Any], kinds: Mapping[str, Any]) -> Planned:
    for name, kind in kinds.items():
        value = entry[name]
        good = {
            "int": type(value) is int and 0 <= value < 1 << 62,
            "float": type(value) in (int, float) and 0 <= value < math.inf,
            "str": isinstance(value, str),
            "bool": isinstance(value, bool),
        }.get(kind, isinstance(value, list) and all(type(each) in (int, float) for each in value))
        if not good:
            raise ValueError(f"{name} = {value!r} is none of a plan's")
    if len(entry["looks"]) != len(entry["marks"]):
        raise ValueError(f"{len(entry['looks'])} looks, and times of {len(entry['marks'])}")
    return Planned(**{**entry, **{name: tuple(entry[name]) for name in LISTS}})
