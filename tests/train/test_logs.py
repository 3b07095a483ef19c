"""What a run's rows are written into beside log.jsonl: a table, and TensorBoard's files where they are asked for."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from made_runs import check_table

from kuosan.storage.log import Log, numbers
from kuosan.train import rules
from shell import QUICK, kuosan, refused

ROWS = [
    {"step": 1, "loss": 0.1 + 0.2, "lr": 1e-3},
    {"step": 2, "loss": math.nan, "lr": 1e-3, "skipped": "loss, or gradient,\nis not finite"},
    {"step": 3, "loss": 0.5, "held_out": {"loss": 1e-9, "by_noise": [0.25, None, 3]}},
    {"step": 4, "loss": 4},
]


def quick(**given: object) -> list[object]:
    """`QUICK` with other values."""
    words: list[object] = list(QUICK)
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_table_has_a_column_a_value_with_the_logs_very_digits(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl", table=True)
    log.truncate_after(0)
    for row in ROWS:
        log.append(row)
    found = table(tmp_path / "log.csv")
    assert list(found[0]) == [
        "step",
        "loss",
        "lr",
        "skipped",
        "held_out.loss",
        "held_out.by_noise.1",
        "held_out.by_noise.3",
    ]
    assert [row["loss"] for row in found] == ["0.30000000000000004", "", "0.5", "4"]
    assert found[1]["skipped"] == ROWS[1]["skipped"] and found[2]["held_out.loss"] == "1e-09"


@pytest.mark.parametrize("harm", ["deleted", "cut", "lengthened", "a folder in its place"])
def test_a_table_that_does_not_match_the_log_is_made_again(tmp_path: Path, harm: str) -> None:
    log, path = Log(tmp_path / "log.jsonl", table=True), tmp_path / "log.csv"
    log.truncate_after(0)
    log.append({"step": 1, "loss": 1.0})
    if harm == "cut":
        path.write_text(path.read_text()[:-2])
    elif harm == "lengthened":
        path.write_text(path.read_text() + "9,")
    else:
        path.unlink()
    if harm == "a folder in its place":
        path.mkdir()
    log.append({"step": 2, "loss": 2.0})  # never an error
    if harm == "a folder in its place":
        path.rmdir()
        log.flush()
    assert [row["step"] for row in table(path)] == ["1", "2"]


def test_steps_that_are_taken_again_have_one_row(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl", table=True)
    log.truncate_after(0)
    for row in ROWS:
        log.append(row)
    log.truncate_after(2)
    log.append({"step": 3, "loss": 7.0})
    assert [(row["step"], row["loss"]) for row in table(tmp_path / "log.csv")][1:] == [("2", ""), ("3", "7.0")]


def test_a_log_that_is_only_read_writes_no_table(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.append(ROWS[0])
    assert list(log.rows()) and not (tmp_path / "log.csv").exists()


def test_a_rows_numbers_are_those_that_are_known() -> None:
    assert numbers(ROWS[1]) == {"lr": 1e-3}
    assert numbers(ROWS[2]) == {
        "loss": 0.5,
        "held_out.loss": 1e-9,
        "held_out.by_noise.1": 0.25,
        "held_out.by_noise.3": 3,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("logs") / "images"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i, 200, 10)).save(folder / f"{i}.png")
    return folder


def test_a_run_and_its_continuation_write_one_table(data: Path, tmp_path: Path) -> None:
    words = ["train", data, "--out", tmp_path / "run", *quick(hold_out=0.3, evaluate_every=2)]
    assert kuosan(*words).code == 0
    check_table(tmp_path / "run")
    (tmp_path / "run" / "log.csv").unlink()  # as runs of older versions have none
    assert kuosan("train", "--out", tmp_path / "run", "--max-steps", 5).code == 0
    check_table(tmp_path / "run")
    assert [row["step"] for row in table(tmp_path / "run" / "log.csv")] == ["1", "2", "3", "4", "5"]


class Writer:
    """TensorBoard's, as far as it is used: keeps what it is given."""

    opened: ClassVar[list[Writer]] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.scalars, self.images = (
            folder,
            purge_step,
            dict[str, list[Any]](),
            list[int](),
        )
        self.opened.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((step, value))

    def add_image(self, name: str, image: Any, step: int, dataformats: str) -> None:
        assert dataformats == "HWC" and image.ndim == 3
        self.images.append(step)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(rules, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(Writer, "opened", [])
    return Writer.opened


def test_tensorboard_is_given_the_rows_numbers_and_the_previews(
    data: Path, tmp_path: Path, writers: list[Writer]
) -> None:
    out = tmp_path / "run"
    words = quick(hold_out=0.3, evaluate_every=2, preview_every=2, preview_steps=2, log_to="tensorboard")
    assert kuosan("train", data, "--out", out, *words).code == 0
    (writer,) = writers
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert writer.folder == str(out / "tensorboard") and writer.purge_step == 1
    assert writer.scalars["loss"] == [(row["step"], row["loss"]) for row in rows]
    assert writer.scalars["held_out/loss"] == [
        (row["step"], row["held_out"]["loss"]) for row in rows if "held_out" in row
    ]
    assert writer.images == [2, 3]
    assert kuosan("train", "--out", out, "--max-steps", 4).code == 0, "it goes on with what it was begun with"
    assert writers[-1].purge_step == 4 and [step for step, _ in writers[-1].scalars["loss"]] == [4]
    said = kuosan("train", "--out", out, "--max-steps", 5, "--log-to", "files")  # and may be changed
    assert said.code == 0 and "train.log_to: tensorboard -> files" in said.out and len(writers) == 2


def test_tensorboard_without_its_package_is_refused_with_the_command(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "find_spec", lambda name: None)
    refused(
        "train", data, "--log-to", "tensorboard", naming=["needs the Python package tensorboard", "install tensorboard"]
    )
    refused("train", data, "--log-to", "wandb", naming=["log_to", "files", "tensorboard"])


def test_tensorboards_own_files_hold_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard's files (pip install tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from kuosan.train.report import TensorBoard

    board = TensorBoard(tmp_path, 0)
    for step in (1, 2, 3):
        board.row({"step": step, "loss": float(step), "held_out": {"by_noise": [0.5, None]}})
    board.back_to(2)
    board.row({"step": 3, "loss": 30.0})
    board.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert "held_out/by_noise/1" in found.Tags()["scalars"]
