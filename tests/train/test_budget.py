"""A time budget ends when it should, whatever the machine does, and a run that goes on takes the same steps."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from kuosan import fit, seeds
from kuosan.errors import Error
from kuosan.events import Fact
from kuosan.storage import checkpoint
from kuosan.train import api, budget, config, loop
from kuosan.train.budget import Budget, Planned, marks
from kuosan.train.config import TrainConfig
from kuosan.train.report import Lines, noted
from kuosan.train.resolve import resolve
from kuosan.train.saving import Stop
from kuosan.train.state import Run, learning_rate
from shell import QUICK, image_folder, kuosan, refused
from train.made_runs import Stopping, begin, differences, images, outcome

LOOKING = {"train.save_every": -1, "train.evaluate_every": 0, "train.preview_every": 0}


class Watch:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    monkeypatch.setattr(budget, "seconds_now", made)
    monkeypatch.setattr(budget, "computed", made)
    return made


Pace = Callable[[int, float], float]  # seconds of a step, by its number and the seconds used before it


class Situation:
    """What a machine does with a run of ten minutes."""

    def __init__(self, pace: Pace, guess: float = 2.0, look: float = 3.0, start: float = 20.0) -> None:
        self.pace, self.guess, self.look, self.start = pace, guess, look, start


def noisy(step: int, used: float) -> float:
    """Twice as slow or fast as usual by the minute, and again by the step."""
    minute, own = seeds.rng(0, "test/minute", int(used // 40)), seeds.rng(0, "test/step", step)
    return float(2 * math.exp(0.35 * minute.standard_normal() + 0.3 * own.standard_normal()))


SITUATIONS = {
    "steady": Situation(lambda step, used: 2.0),
    "quick": Situation(lambda step, used: 0.25, guess=0.25),
    "halves midway": Situation(lambda step, used: 2.0 if used < 300 else 4.0),
    "doubles midway": Situation(lambda step, used: 2.0 if used < 300 else 1.0),
    "noisy": Situation(noisy),
    "slow start": Situation(lambda step, used: 15.0 if step < 6 else 2.0),
    "a long start": Situation(lambda step, used: 2.0, start=240.0),
    "looks that cost much": Situation(lambda step, used: 2.0, look=45.0),
    "looks that cost nothing": Situation(lambda step, used: 2.0, look=0.0),
    "four times slower than measured": Situation(lambda step, used: 8.0),
    "four times quicker than measured": Situation(lambda step, used: 0.5),
    "slower at the end": Situation(lambda step, used: 2.0 if used < 540 else 6.0),
    "stands still for a minute": Situation(lambda step, used: 62.0 if step == 150 else 2.0),
    "a handful of steps": Situation(lambda step, used: 90.0, guess=90.0),
    "a handful, four times slower": Situation(lambda step, used: 90.0, guess=22.0),
}


@contextmanager
def imagined(watch: Watch, case: Situation) -> Iterator[None]:
    """Within the block steps and looks take the time of a situation, and do nothing else."""

    def step(run: Run, *_: Any) -> tuple[float, int, None]:
        assert run.budget is not None
        watch.now += case.pace(run.state.step, run.budget.used)
        return 0.1, 0, None

    def taken(run: Run, *_: Any) -> dict[str, Any]:
        run.state.step += 1
        return {"step": run.state.step, "loss": 0.1}

    def look(run: Run, *_: Any) -> None:
        if run.state.step and run.is_time(-1):
            watch.now += case.look

    def save(run: Run, **_: Any) -> None:
        run.tried_at = run.state.step

    with patch.multiple(loop, gradients=step, taken=taken, preview=look, save=save, log_step=lambda *_: None):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("budget") / "images.npz")


@pytest.mark.parametrize("name", SITUATIONS)
def test_ten_minutes_are_ten_minutes(name: str, data: Path, tmp_path: Path, watch: Watch) -> None:
    case = SITUATIONS[name]
    run = begin(tmp_path / "run", data, {**LOOKING, "train.minutes": 10, "train.batch": 1})
    assert run.budget is not None
    run.budget.step_seconds = case.guess
    watch.now += case.start
    with imagined(watch, case):
        for _ in loop.train(run, Stop()):
            pass
    used, plans = run.budget.used, run.budget.plans
    api.close(run)
    assert used == pytest.approx(600, rel=0.1)
    assert run.state.step == run.last >= 2
    even = {"steady", "quick", "a long start", "looks that cost nothing", "a handful of steps"}
    assert (len(plans) == 1) == (name in even) and len(plans) < 60
    for one, two in pairwise(plans):
        assert two.step > one.step and two.share == pytest.approx(one.share_at(two.step)), "no jump of the rate"
    rates = [learning_rate(run.config.train, step, run.budget.plan(step)) for step in range(run.state.step)]
    assert max(rates) <= 1e-3 and (rates[-1] < 2e-4 or run.state.step < 12), "it has fallen where the run ends"


def test_looks_come_after_their_times_and_not_where_they_cost_too_much(
    data: Path, tmp_path: Path, watch: Watch
) -> None:
    assert marks(600) == [30, 60, 180] and marks(30) == [] and marks(60) == [30]
    assert marks(3 * 3600) == [30, 60, 180, 600, 1800, 3600, 5400, 7200, 9000]
    looked: dict[str, list[float]] = {}
    for name in ("steady", "halves midway", "looks that cost much", "a long start"):
        case, times = SITUATIONS[name], looked.setdefault(name, [])
        run = begin(tmp_path / name, data, {**LOOKING, "train.minutes": 10, "train.batch": 1})
        assert run.budget is not None
        run.budget.step_seconds = case.guess
        watch.now += case.start
        with imagined(watch, case):
            for _ in loop.train(run, Stop()):
                if run.state.step and run.is_time(-1):
                    times.append(run.budget.used - case.look)
        api.close(run)
    assert looked["steady"][:3] == pytest.approx([30, 60, 180], abs=6) and len(looked["steady"]) == 4
    assert looked["halves midway"][:3] == looked["steady"][:3] and len(looked["halves midway"]) == 4
    assert looked["looks that cost much"][0] == pytest.approx(30, abs=3)
    assert len(looked["looks that cost much"]) == 3, "the one at three minutes is left out"
    assert looked["a long start"][0] == pytest.approx(270, abs=3) and len(looked["a long start"]) == 2


def test_a_start_as_long_as_the_budget_leaves_one_step_and_no_look(data: Path, tmp_path: Path, watch: Watch) -> None:
    case = Situation(lambda step, used: 2.0, look=40.0, start=63.0)
    run = begin(tmp_path / "run", data, {**LOOKING, "train.minutes": 1, "train.batch": 1})
    assert run.budget is not None
    run.budget.step_seconds, run.budget.look_steps = case.guess, 20.0
    watch.now += case.start
    with imagined(watch, case):
        for _ in loop.train(run, Stop()):
            pass
    assert (run.state.step, run.budget.used) == (1, 65.0)
    api.close(run)


def test_a_plan_that_never_changes_has_the_rates_of_a_run_of_so_many_steps() -> None:
    plan = Planned(0, 0, 400, 0.0, 0.0, (), (), (), True, 10, 0, 1, "first")
    for shape in ("constant", "cosine", "inverse_sqrt"):
        for warmup in (0.1, 25, 0):
            timed = TrainConfig(minutes=10, max_steps=0, lr_shape=shape, warmup=warmup)
            counted = TrainConfig(max_steps=400, lr_shape=shape, warmup=warmup)
            if shape == "cosine" and warmup == 25:  # the share of a warm-up in steps is not known beforehand
                continue
            rates = [learning_rate(timed, step, plan) for step in range(400)]
            assert rates == pytest.approx([learning_rate(counted, step) for step in range(400)]), (shape, warmup)


def paced(watch: Watch, pace: Callable[[int], float], until: int = -1) -> Any:
    """Real steps that take imagined time; at one of them the process dies."""
    real = loop.gradients

    def timed(run: Run, *more: Any) -> Any:
        if run.state.step == until:
            raise Killed
        watch.now += pace(run.state.step)
        return real(run, *more)

    return patch.object(loop, "gradients", timed)


class Killed(BaseException):
    """The process is gone."""


def timed_run(out: Path, data: Path, watch: Watch, *, guess: float = 1.0, **settings: Any) -> Run:
    run = begin(
        out, data, {**LOOKING, **{f"train.{name}": value for name, value in settings.items()}}, report=Stopping()
    )
    assert run.budget is not None
    run.budget.step_seconds = guess
    return run


def slowing(step: int) -> float:
    return 1.0 if step < 32 else 2.0


@pytest.mark.parametrize("at", [20, 33, 40, 55])
def test_a_run_killed_around_a_plan_goes_on_bit_for_bit(
    at: int, data: Path, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "look_guess", lambda *_: 0.0)  # as looks take here; a save knows nothing of its own
    with patch.object(api, "draw"), paced(watch, slowing):
        api.train(timed_run(tmp_path / "whole", data, watch, minutes=2))
    whole = outcome(tmp_path / "whole")
    plans = [(plan["step"], plan["last"]) for plan in whole["state"]["budget"]["plans"]]
    assert len(plans) > 1 and 32 < plans[1][0] < 40, plans
    with patch.object(api, "draw"), paced(watch, slowing, until=at), pytest.raises(Killed):
        api.train(timed_run(tmp_path / "killed", data, watch, minutes=2))
    assert checkpoint.load(tmp_path / "killed").step < at
    with patch.object(api, "draw"), paced(watch, slowing):
        api.train(timed_run(tmp_path / "killed", data, watch, minutes=2))
    killed = outcome(tmp_path / "killed")
    for state in (killed["state"], whole["state"]):  # a save is written before its own time is known
        for name in budget.KEPT:
            del state["budget"][name]
    assert differences(killed, whole) == []
    assert whole["state"]["budget"]["seconds"] == pytest.approx(120, rel=0.1)


def test_plans_made_before_a_kill_stand_whatever_the_clock_says_later(data: Path, tmp_path: Path, watch: Watch) -> None:
    with patch.object(api, "draw"), paced(watch, slowing, until=45), pytest.raises(Killed):
        api.train(timed_run(tmp_path / "run", data, watch, minutes=2))
    made = json.loads((tmp_path / "run" / "budget.json").read_text())
    rates = [row["lr"] for row in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())]
    with patch.object(api, "draw"), paced(watch, lambda step: 0.2):  # ten times as quick
        api.train(timed_run(tmp_path / "run", data, watch, minutes=2, guess=0.2))
    after = outcome(tmp_path / "run")
    assert after["state"]["budget"]["plans"][: len(made)] == made and len(after["state"]["budget"]["plans"]) > len(made)
    later = made[-1]["step"]
    assert [row["lr"] for row in after["rows"]][: later + 1] == rates[: later + 1]
    assert after["step"] > made[-1]["last"] and after["state"]["budget"]["seconds"] == pytest.approx(120, rel=0.1)


def test_a_lost_list_of_plans_is_said(data: Path, tmp_path: Path, watch: Watch) -> None:
    with patch.object(api, "draw"), paced(watch, slowing, until=45), pytest.raises(Killed):
        api.train(timed_run(tmp_path / "run", data, watch, minutes=2))
    (tmp_path / "run" / "budget.json").write_text("[{}]")
    run = timed_run(tmp_path / "run", data, watch, minutes=2)
    assert isinstance(run.report, Stopping) and any("budget.json cannot be read" in line for line in run.report.said)
    api.close(run)


def test_a_return_to_an_earlier_save_plans_from_there(data: Path, tmp_path: Path, watch: Watch) -> None:
    real, spoilt = loop.backward, {"left": 10}

    def backward(run: Run, drawn: Any) -> Any:
        losses = real(run, drawn)
        if run.state.step >= 70 and spoilt["left"]:
            spoilt["left"] -= 1
            return losses * math.nan
        return losses

    with patch.object(api, "draw"), paced(watch, lambda step: 1.0), patch.object(loop, "backward", backward):
        api.train(timed_run(tmp_path / "run", data, watch, minutes=2))
    first = outcome(tmp_path / "run")
    returned = [plan for plan in first["state"]["budget"]["plans"] if plan["reason"] == "return"]
    assert [(plan["step"], plan["retry"]) for plan in returned] == [(60, 1)], "to the look of a minute"
    assert first["step"] < 110 and first["state"]["budget"]["seconds"] == pytest.approx(120, rel=0.1)
    spoilt["left"] = 10
    with patch.object(api, "draw"), patch.object(loop, "backward", backward):
        with paced(watch, lambda step: 1.0, until=70), pytest.raises(Killed):
            api.train(timed_run(tmp_path / "again", data, watch, minutes=2))
        shutil.copy(tmp_path / "run" / "budget.json", tmp_path / "again")  # killed after the return, say
        with paced(watch, lambda step: 1.0):
            api.train(timed_run(tmp_path / "again", data, watch, minutes=2))
    again = outcome(tmp_path / "again")
    assert again["step"] == first["step"] and [row["lr"] for row in again["rows"]] == [r["lr"] for r in first["rows"]]


def test_more_minutes_make_a_finished_run_longer_and_say_the_rates_course(
    data: Path, tmp_path: Path, watch: Watch
) -> None:
    with patch.object(api, "draw"), paced(watch, lambda step: 1.0):
        api.train(timed_run(tmp_path / "run", data, watch, minutes=1))
        first = outcome(tmp_path / "run")
        again = timed_run(tmp_path / "run", data, watch, minutes=1)
        assert again.last == again.state.step
        api.train(again)
        assert differences(outcome(tmp_path / "run"), first) == [], "the same command has nothing left to do"
        run = timed_run(tmp_path / "run", data, watch, minutes=2)
        api.train(run)
    assert isinstance(run.report, Stopping)
    line = next(line for line in run.report.said if "1 -> 2 min" in line)
    assert "the learning rate goes from" in line and "falls along a cosine to 0 at the end" in line
    after, step = outcome(tmp_path / "run"), first["step"]
    rates = [row["lr"] for row in after["rows"]]
    assert rates[step - 1] < 1e-4 < 4e-4 < rates[step] and rates[-1] < 1e-5
    assert after["state"]["budget"]["seconds"] == pytest.approx(120, rel=0.1)
    with pytest.raises(Error, match=r"train.minutes = 1.5, but .* has used 2.0 minutes already"):
        timed_run(tmp_path / "run", data, watch, minutes=1.5)


def test_what_begins_by_a_share_of_the_run_stays_begun() -> None:
    held = Budget(10, [Planned(0, 0, 100, 0.0, 0.0, (), (), (), True, 10, 0, 1, "first")])
    assert [held.done(step) >= 0.5 for step in (49, 50, 99)] == [False, True, True]
    held.plans.append(Planned(100, 0, 1000, 0.1, held.done(100), (), (), (), True, 100, 600, 1, "minutes"))
    assert held.done(101) == 1.0 and held.done(49) < 0.5


def test_a_discriminator_begins_at_its_share_of_the_time(data: Path, tmp_path: Path, watch: Watch) -> None:
    settings = {
        "train.objective": "autoencoder", "model.network.channels": 8, "model.network.multipliers": [1, 1],
        "model.network.groups": 4, "model.network.blocks": 1, "model.network.critic_layers": 1,
        "train.autoencoder.perceptual": 0, "train.autoencoder.critic_start": 0.5,
        "train.warmup": 0.1, "train.minutes": 1, **LOOKING,
    }  # fmt: skip
    run = begin(tmp_path / "run", data, settings)
    assert run.budget is not None
    run.budget.step_seconds = 1.0
    with patch.object(api, "draw"), paced(watch, lambda step: 1.0 if step < 12 else 3.0):
        api.train(run)
    rows, budgeted = outcome(tmp_path / "run")["rows"], run.budget
    played = [row["step"] for row in rows if "critic" in row]
    assert len(budgeted.plans) > 1 and played == [*range(played[0], rows[-1]["step"] + 1)]
    assert budgeted.done(played[0] - 2) < 0.5 <= budgeted.done(played[0] - 1)


def test_a_clock_decides_nothing_where_a_plan_follows_already(watch: Watch) -> None:
    plan = Planned(0, 0, 100, 0.0, 0.0, (), (), (), True, 10, 0, 1, "first")
    held = Budget(10, [plan, replace(plan, step=50, share=0.5, last=90)], step_seconds=1.0)
    watch.now += 500
    train = TrainConfig(minutes=10, max_steps=0)
    assert [budget.is_off(held, train, step) for step in (20, 50, 51)] == [False, False, True]


def test_the_recipe_of_a_budget_is_a_row_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in config.BUDGET_ROWS:  # which fit together, each size from no time on
        assert config.budget_row(row.pixels, 0).pixels == row.pixels
    rows = config.BUDGET_ROWS
    wide = rows[0]._replace(minutes=20, network="medium", batch=64, lr=5e-4, ema=0.05)
    monkeypatch.setattr(config, "BUDGET_ROWS", (*rows[:2], wide, *rows[2:]))

    def made(minutes: float, **more: Any) -> tuple[int, float, float, int]:
        train = {"minutes": minutes, **more.pop("train", {})}
        found = resolve({"train": train}, (3, 32, 32), **more)
        assert found.train.max_steps == 0 and found.train.warmup == 0.1 and found.train.save_every == -1
        return found.train.batch, found.train.lr, found.train.ema, found.model.network.channels  # type: ignore[union-attr]

    quick, long = made(10), made(20)
    assert quick[:3] == (16, 1e-3, 0.1) and long[:3] == (64, 5e-4, 0.05) and long[3] > quick[3]
    assert made(20, train={"batch": 8}, size="small") == (8, 5e-4, 0.05, quick[3]), "what is said wins"
    begun = {"train": {"planned_minutes": 10}, "defaults": 3}
    assert made(20, before=begun) == quick, "a run keeps to what it began with"
    assert made(20, before={**begun, "defaults": 2}) == (32, *quick[1:]), "and to the table of its time"
    assert made(2)[3] < quick[3] == made(2, cores=4.0)[3], "a faster machine gets the larger network sooner"


def without_steps() -> list[str]:
    """The quick settings without a number of steps."""
    at = QUICK.index("--max-steps")
    return QUICK[:at] + QUICK[at + 2 :]


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "both lengths": (["DATA", "--minutes", "10", "--max-steps", "100"], ["10", "100", "--max-steps"]),
    "both in a file": (["DATA", "--config", "BOTH"], ["10", "500", "both.yaml"]),
    "below nothing": (["DATA", "--minutes", "-3"], ["train.minutes", "-3"]),
    "for ever": (["DATA", "--minutes", "1e9"], ["train.minutes", "1000000000.0", "100,000"]),
    "no number": (["DATA", "--minutes", "ten"], ["ten"]),
    "looks without a budget": (["DATA", "--max-steps", "9", "--save-every", "-1"], ["save_every", "-1", "1 or more"]),
    "steps for a run of minutes": (["--out", "TIMED", "--max-steps", "9"], ["minutes = 0.05", "9", "--minutes 0.05"]),
    "a run of minutes without any": (["DATA", "--out", "TIMED"], ["minutes = 0.05", "--minutes 0.05", "--init"]),
    "minutes for a run of steps": (["--out", "COUNTED", "--minutes", "9"], ["minutes = 9", "--max-steps", "--init"]),
    "less than is used": (["--out", "TIMED", "--minutes", "0.001"], ["0.001", "already", "0.05"]),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of a time and of steps, images, a file that asks for both."""
    home = tmp_path_factory.mktemp("refused")
    own = {"DATA": image_folder(home / "data", 6), "TIMED": home / "timed", "COUNTED": home / "counted"}
    (home / "both.yaml").write_text("train: {minutes: 10, max_steps: 500}\n")
    assert kuosan("train", own["DATA"], "--out", own["TIMED"], "--minutes", 0.05, *without_steps()).code == 0
    assert kuosan("train", own["DATA"], "--out", own["COUNTED"], *QUICK).code == 0
    return {**own, "BOTH": home / "both.yaml"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_with_a_budget_is_refused_with_the_cure(name: str, shelf: dict[str, Path]) -> None:
    words, naming = REFUSED[name]
    refused("train", *(shelf.get(word, word) for word in words), naming=naming)


def test_minutes_lie_over_the_steps_of_a_recipe(shelf: dict[str, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("train: {max_steps: 70, save_every: 7, evaluate_every: 9, preview_every: 0, batch: 3}\n")
    words = ["--config", recipe, "--minutes", 5, "--size", 8, "--dry-run", "--threads", 1]
    said = kuosan("train", shelf["DATA"], "--out", tmp_path / "run", *words)
    assert said.code == 0 and re.search(r"about (4\.\d|5\.0) min", said.out) and "steps of 3" in said.out
    assert not (tmp_path / "run").exists()


def test_the_shell_says_what_a_budget_becomes(shelf: dict[str, Path], tmp_path: Path) -> None:
    words = [*without_steps(), "--minutes", 0.1]
    said = kuosan("train", shelf["DATA"], "--out", tmp_path / "run", *words)
    assert said.code == 0, said
    assert "budget: 0.1 min, of which" in said.out and "saved at every look" in said.out
    assert "of 0.1 minutes used" in said.out and "--minutes 0.2" in said.out
    tree = checkpoint.load_config(tmp_path / "run")["train"]
    assert (tree["minutes"], tree["planned_minutes"], tree["max_steps"], tree["save_every"]) == (0.1, 0.1, 0, -1)


def test_without_a_budget_the_plan_says_how_long_and_when_the_first_look_comes(
    shelf: dict[str, Path], tmp_path: Path
) -> None:
    words = [*without_steps(), "--max-steps", 1000000, "--dry-run"]
    at = words.index("--preview-every")
    words[at + 1] = "40"
    said = kuosan("train", shelf["DATA"], "--out", tmp_path / "run", *words)
    assert said.code == 0 and "first preview at step 40, in about " in said.out
    assert "--minutes 10 trains for ten minutes" in said.out


def test_python_trains_for_minutes_too(tmp_path: Path) -> None:
    said: list[str] = []

    class Said(Lines):
        def say(self, text: str) -> None:
            said.append(text)

    typed: dict[str, Any] = {"data.size": 8, "model.network.channels": 32, "model.network.multipliers": [1]}
    typed |= {"model.network.attention": ["false"], "model.network.groups": 8, "preview_every": 0, "threads": 1}
    run = fit(None, image_folder(tmp_path / "data", 6), tmp_path / "run", minutes=0.05, report=Said(), **typed)
    saved = checkpoint.load(run)
    assert saved.step >= 1 and saved.state["budget"]["seconds"] < 30
    assert any(line.startswith("budget: 0.05 min") for line in said)


def test_small_changes_of_a_plan_are_facts_without_a_line() -> None:
    values = {"step": 5, "last": 104, "reason": "speed", "step_seconds": 1.0}
    before = {"last": 100, "step_seconds": 1.1}
    assert noted(Fact("budget", {**values, "before": before})) is None
    line = noted(Fact("budget", {**values, "last": 150, "before": before}))
    assert line == "step 5: a step takes 1 s in place of 1.1 s: about 150 steps in all in place of 100."
