"""Rate, rate shape, weight decay, averaging and batch may change on the way: aloud, recorded, and exact on resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kuosan import Error
from kuosan import config as trees
from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.train import saving
from kuosan.train.batches import BatchStream, Turns
from kuosan.train.config import Course, TrainConfig, read_course
from kuosan.train.resume import _number
from kuosan.train.state import learning_rate
from train.made_runs import Stopping, begin, differences, go, images, mixed, outcome

START = {"train.max_steps": 9, "train.evaluate_every": 0, "train.save_every": 2}
AT = 4  # steps taken before the change

CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "lr": ({"train.lr": 5e-4}, "from step 5 on: lr 1e-3 -> 5e-4."),
    "lr_shape": ({"train.lr_shape": "constant"}, "from step 5 on: lr_shape cosine -> constant."),
    "weight_decay": ({"train.weight_decay": 0.1}, "weight_decay 0 -> 0.1."),
    "ema": ({"train.ema": 0.05}, "ema 0.1 -> 0.05."),
    "no ema": ({"train.ema": 0.0}, "ema 0.1 -> 0."),
    "batch": ({"train.batch": 7}, "batch 5 -> 7."),
    "all": ({"train.lr": 2e-3, "train.batch": 3, "train.ema": 0.2}, "lr 1e-3 -> 2e-3, ema 0.1 -> 0.2, batch 5 -> 3."),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and a run of `AT` steps on them."""
    folder = tmp_path_factory.mktemp("changes")
    images(folder / "pictures.npz")
    go(
        folder / "run", folder / "pictures.npz", START | {"train.lr_shape": "cosine"}, report=Stopping(AT - 1)
    )  # the next step is the last
    return folder


def unsaid(settings: dict[str, Any]) -> dict[str, Any]:
    """The same run asked for without a word of what may change: it is as the run has it."""
    from train.made_runs import SMALL

    return {key: value for key, value in SMALL.items() if key not in ("train.lr", "train.batch")} | settings


@pytest.fixture
def words_unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    from train import made_runs

    monkeypatch.setattr(made_runs, "SMALL", unsaid({}))


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.usefixtures("words_unsaid")
def test_a_change_is_said_recorded_and_kept_bit_for_bit(what: str, made: Path, tmp_path: Path) -> None:
    changes, words = CHANGES[what]
    data, whole, report = made / "pictures.npz", tmp_path / "whole", Stopping()
    shutil.copytree(made / "run", whole)
    seen: list[Any] = []
    go(whole, data, START | changes, report=report, seen=seen)
    assert any(words in line for line in report.said), report.said
    for at in (AT + 1, AT + 2):  # stopped at a save that is due and between two, and gone on with without a word of it
        stopped, said = tmp_path / f"stopped {at}", Stopping(at)
        shutil.copytree(made / "run", stopped)
        go(stopped, data, START | changes, report=said)
        again = Stopping()
        go(stopped, data, START, report=again)
        assert not differences(outcome(stopped), outcome(whole))
        assert not any(" on: " in line for line in again.said)
    saved = outcome(whole)["state"]["changes"]
    assert [each["step"] for each in saved] == [0, AT] == [each["step"] for each in _file(whole)]
    config = trees.load(whole / "config.yaml")["train"]
    for key, value in changes.items():
        name = key.removeprefix("train.")
        assert saved[1][name] == config[name] == value != saved[0][name]
    assert [row["lr"] for row in outcome(whole)["rows"]][:AT] == [row["lr"] for row in outcome(made / "run")["rows"]]
    batch = changes.get("train.batch", 5)
    assert [len(ids) for _, ids, *_ in seen] == [batch] * (9 - AT)


def _file(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "changes.json").read_text())
    return found


@pytest.mark.usefixtures("words_unsaid")
def test_a_change_is_known_from_earlier_saves_and_without_its_file(made: Path, tmp_path: Path) -> None:
    data, whole = made / "pictures.npz", tmp_path / "whole"
    change = {"train.lr": 5e-4, "train.batch": 7}
    shutil.copytree(made / "run", whole)
    go(whole, data, START | change)
    before, damaged = tmp_path / "before", tmp_path / "damaged"
    for place in (before, damaged):
        shutil.copytree(made / "run", place)
        go(place, data, START | change, report=Stopping(AT + 1))
    (before / "checkpoints" / f"step-{AT + 2:08d}" / "ema.safetensors").write_bytes(b"torn")
    go(before, data, START)  # from the save before the change, which the run's folder knows
    assert not differences(outcome(before), outcome(whole))
    (damaged / "changes.json").write_text("[{]")
    report = Stopping()
    go(damaged, data, START, report=report)
    assert any("changes.json cannot be read" in line for line in report.said)
    assert not differences(outcome(damaged), outcome(whole)) and _file(damaged) == _file(whole)


@pytest.mark.usefixtures("words_unsaid")
def test_a_second_change_replaces_what_was_planned(made: Path, tmp_path: Path) -> None:
    run, data = shutil.copytree(made / "run", tmp_path / "run"), made / "pictures.npz"
    saving.close(begin(run, data, START | {"train.lr": 5e-4}))  # as if it was killed before its next save
    report = Stopping(AT + 1)
    go(run, data, START | {"train.lr": 2e-4}, report=report)
    assert any("from step 5 on: lr 5e-4 -> 2e-4." in line for line in report.said), report.said
    report = Stopping()
    go(run, data, START | {"train.lr": 1e-3}, report=report)
    assert any("from step 7 on: lr 2e-4 -> 1e-3." in line for line in report.said)
    assert [(each["step"], each["lr"]) for each in _file(run)] == [(0, 1e-3), (AT, 2e-4), (AT + 2, 1e-3)]


@pytest.mark.usefixtures("words_unsaid")
def test_what_is_not_said_stays_as_the_run_has_it(made: Path, tmp_path: Path) -> None:
    run = begin(made / "run", made / "pictures.npz", START)
    train = run.config.train
    saving.close(run)
    assert (train.lr, train.batch, train.lr_shape) == (1e-3, 5, "cosine")
    with pytest.raises(Error, match=r"train\.clip: the run has 1\.0, now 0\.5") as caught:
        begin(made / "run", made / "pictures.npz", START | {"train.clip": 0.5, "train.lr": 2e-3})
    assert "train.lr" not in str(caught.value)


def test_a_return_to_an_earlier_save_has_the_settings_of_its_steps(made: Path, tmp_path: Path) -> None:
    run = begin(
        shutil.copytree(made / "run", tmp_path / "run"),
        made / "pictures.npz",
        START | {"train.batch": 7, "train.lr_shape": "cosine"},
    )
    now = run.train
    run.state.step = AT - 1
    then = run.train
    saving.close(run)
    assert (now.batch, then.batch) == (7, 5) and run.batches.size_at(AT - 1) == 5
    rate = learning_rate(then, AT - 1)
    assert rate == outcome(made / "run")["rows"][-1]["lr"]


@pytest.mark.parametrize("counts", [(30,), (8, 6, 4, 4, 4)], ids=["one shape", "buckets"])
def test_with_another_batch_the_images_go_on_where_they_were(counts: tuple[int, ...], tmp_path: Path) -> None:
    if len(counts) == 1:
        opened = open_images(DataConfig(str(images(tmp_path / "pictures.npz"))))
    else:
        opened = open_images(mixed(tmp_path / "mixed", counts))
    sizes = ((0, 5), (7, 3), (11, 8))
    stream, expected = BatchStream(opened, 3, 8, sizes=sizes), {}
    for step in range(40):
        bucket, _ = stream._turns.at(step)
        ids = stream.ids(step)
        assert len(ids) == stream.size_at(step) == (5 if step < 7 else 3 if step < 11 else 8)
        expected.setdefault(bucket, []).extend(ids.tolist())
        assert np.array_equal(BatchStream(opened, 3, 8, sizes=sizes).ids(step), ids)  # whatever was asked before
        assert np.array_equal(BatchStream(opened, 3, 5).ids(step), ids) or step >= 7
    for bucket, ids in expected.items():  # whole epochs, one after the other
        n = len(stream._groups[bucket])
        for begin_ in range(0, len(ids) - n + 1, n):
            assert sorted(ids[begin_ : begin_ + n]) == sorted(stream._groups[bucket].tolist())


def test_turns_are_counted_of_every_bucket() -> None:
    counts = (8, 6, 4, 4, 3)
    turns, fresh = Turns(counts, 1), Turns(counts, 1)
    taken = [0] * len(counts)
    for step in range(60):
        assert [turns.taken(bucket, step) for bucket in range(len(counts))] == taken
        taken[fresh.at(step)[0]] += 1


def test_a_course_is_read_strictly() -> None:
    course = Course().changed(3, TrainConfig(), TrainConfig(lr=5e-4)).changed(7, TrainConfig(), TrainConfig(batch=8))
    assert read_course(course.plain()) == course and read_course([]) == Course()
    assert [course.at(step, TrainConfig(batch=8)).lr for step in (0, 2, 3, 6, 7)] == [2e-4, 2e-4, 5e-4, 5e-4, 2e-4]
    (first, *rest) = course.plain()
    for wrong in (
        {},
        [1],
        [first | {"seed": 1}],
        [first | {"step": "0"}],
        rest,
        [first, *reversed(rest)],
        [first, first],
    ):
        with pytest.raises(ValueError, match=r".+"):
            read_course(wrong)
    with pytest.raises(Error, match=r"lr = -1\.0 is not allowed"):
        read_course([first | {"lr": -1.0}])


@pytest.mark.parametrize(
    ("value", "text"),
    [(5e-4, "5e-4"), (1e-3, "1e-3"), (1.25e-5, "1.25e-5"), (0.1, "0.1"), (0.0, "0"), ("cosine", "cosine"), (32, "32")],
)
def test_numbers_are_said_as_they_are_typed(value: object, text: str) -> None:
    assert _number(value) == text
