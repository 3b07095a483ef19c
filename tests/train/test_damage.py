"""Whatever file of a run is cut, corrupted or lost: an earlier save takes over, or an Error; no new beginning."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path

import pytest

from kuosan import Error
from kuosan.storage import checkpoint
from kuosan.storage.log import Log
from shell import mostly_slow
from train.made_runs import OwnNetwork, Stopping, differences, go, images, outcome

SETTINGS = {"train.max_steps": 8, "train.evaluate_every": 0}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def lose(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


WAYS = (cut, flip, lose, empty)
PARTS = ("config.yaml", "state.json", "manifest.json", *(f"{part}.safetensors" for part in checkpoint.PARTS))
# By default every part once and every way at least once; all pairs with --slow.
TABLE = mostly_slow(product(PARTS, WAYS), *zip(PARTS, cycle(WAYS)))
BESIDE = mostly_slow(product(("config.yaml", "data.json"), WAYS), ("config.yaml", empty), ("data.json", cut))


class Made:
    """A run stopped at step 7 with saves of steps 3, 6 and 7, the whole one beside it, copied for each damage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, images(folder / "pictures.npz")
        go(folder / "whole", self.data, SETTINGS, network=OwnNetwork())
        go(folder / "part", self.data, SETTINGS, network=OwnNetwork(), report=Stopping(6))
        self.whole = outcome(folder / "whole")

    def copy(self) -> Path:
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        return shutil.copytree(self.folder / "part", self.folder / "copy")

    def go_on(self, out: Path) -> list[str]:
        """Start the damaged run again; what it said. It must end as the whole run did."""
        report = Stopping()
        assert go(out, self.data, SETTINGS, network=OwnNetwork(), report=report) == 0
        assert not differences(outcome(out), self.whole)
        return report.said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("damage"))


@pytest.mark.parametrize(("name", "way"), TABLE)
def test_a_damaged_save_gives_way_to_the_one_before(made: Made, name: str, way: Callable[[Path], None]) -> None:
    out = made.copy()
    newest = checkpoint.latest(out).path
    assert newest is not None
    way(newest / name)
    said = made.go_on(out)
    assert any("damaged and passed over" in line and newest.name in line for line in said), said
    assert any("going on from step 6 " in line for line in said), said


@pytest.mark.parametrize(("name", "way"), BESIDE)
def test_a_damaged_copy_beside_the_saves_is_written_anew(made: Made, name: str, way: Callable[[Path], None]) -> None:
    out = made.copy()
    before = (out / name).read_text()
    way(out / name)
    said = made.go_on(out)
    assert any("going on from step 7 " in line for line in said), said
    assert (out / name).read_text() == before


def test_when_every_save_is_damaged_the_error_names_them_and_nothing_is_touched(made: Made) -> None:
    out = made.copy()
    for folder in checkpoint.checkpoints(out):
        flip(folder / "network.safetensors")
    log = (out / "log.jsonl").read_bytes()
    with pytest.raises(Error, match=r"(?s)no checkpoint of .* can be used.*step-00000007.*step-00000006"):
        go(out, made.data, SETTINGS, network=OwnNetwork())
    assert (out / "log.jsonl").read_bytes() == log
    assert len(checkpoint.checkpoints(out)) >= 2


def test_lost_saves_are_no_new_beginning(made: Made) -> None:
    out = made.copy()
    shutil.rmtree(out / "checkpoints")
    log = (out / "log.jsonl").read_bytes()
    with pytest.raises(Error, match="holds the log of a run but none of its saves"):
        go(out, made.data, SETTINGS, network=OwnNetwork())
    assert (out / "log.jsonl").read_bytes() == log


def test_a_lost_log_is_said_and_training_goes_on_exactly(made: Made) -> None:
    out = made.copy()
    lose(out / "log.jsonl")
    report = Stopping()
    go(out, made.data, SETTINGS, network=OwnNetwork(), report=report)
    assert any("lacks 7 of the 7 rows" in line for line in report.said), report.said
    saved, whole = checkpoint.load(out), checkpoint.load(made.folder / "whole")
    assert all((saved.network[name] == whole.network[name]).all() for name in whole.network)


def half(lines: list[bytes]) -> None:
    lines[2] = lines[2][: len(lines[2]) // 2] + b"\n"


def zeros(lines: list[bytes]) -> None:
    lines[2] = b"\0" * len(lines[2])


def joined(lines: list[bytes]) -> None:
    lines[2] = lines[2].rstrip(b"\n")


def flipped(lines: list[bytes]) -> None:
    lines[2] = lines[2].replace(b'"step": 3', b'"step": 7')


def foreign(lines: list[bytes]) -> None:
    lines.insert(2, b"\xff\xfe a line of something else\n")


def repeated(lines: list[bytes]) -> None:
    lines.insert(2, lines[2])


def swapped(lines: list[bytes]) -> None:
    lines[2], lines[3] = lines[3], lines[2]


def empty_line(lines: list[bytes]) -> None:
    lines.insert(2, b"\n")


def no_step(lines: list[bytes]) -> None:
    lines[2] = b'{"loss": 0.5}\n'


def of_another_kind(lines: list[bytes]) -> None:
    lines[2] = b'["step", 3]\n'


def all_of_it(lines: list[bytes]) -> None:
    lines[:] = [b"?\n" for _ in lines]


LOST = {half: 1, zeros: 2, joined: 2, flipped: 1, foreign: 0, repeated: 0, swapped: 1, empty_line: 0, no_step: 1}
LOST |= {of_another_kind: 1, all_of_it: 7}


def damaged(log: Path, change: Callable[[list[bytes]], None]) -> bytes:
    lines = log.read_bytes().splitlines(keepends=True)
    change(lines)
    log.write_bytes(b"".join(lines))
    return b"".join(lines)


@pytest.mark.parametrize("change", LOST)
def test_a_damaged_log_keeps_its_good_rows_and_the_file_as_it_was(
    made: Made, tmp_path: Path, change: Callable[[list[bytes]], None]
) -> None:
    path = Path(shutil.copy(made.folder / "part" / "log.jsonl", tmp_path / "log.jsonl"))
    content = damaged(path, change)
    log = Log(path)
    said = log.truncate_after(7)
    assert said is not None and "log.damaged.jsonl" in said and said.count("\n") == 0
    assert (tmp_path / "log.damaged.jsonl").read_bytes() == content
    log.append({"step": 8})
    log.close()
    steps = [row["step"] for row in Log(path).rows()]
    assert steps == sorted(set(steps)) and steps[-1] == 8 and len(steps) == 8 - LOST[change], steps


def test_a_run_with_a_damaged_log_goes_on_and_says_so_in_one_line(made: Made) -> None:
    out = made.copy()
    damaged(out / "log.jsonl", half)
    report = Stopping()
    assert go(out, made.data, SETTINGS, network=OwnNetwork(), report=report) == 0
    assert sum("log.damaged.jsonl" in line for line in report.said) == 1, report.said
    saved, whole = checkpoint.load(out), checkpoint.load(made.folder / "whole")
    assert all((saved.network[name] == whole.network[name]).all() for name in whole.network)


def test_a_log_that_lacks_its_last_line_end_keeps_its_last_row(made: Made) -> None:
    out = made.copy()
    (out / "log.jsonl").write_bytes((out / "log.jsonl").read_bytes().rstrip(b"\n"))
    made.go_on(out)
    assert not (out / "log.damaged.jsonl").exists()


def test_a_second_damage_keeps_the_first_file_too(made: Made, tmp_path: Path) -> None:
    path = Path(shutil.copy(made.folder / "part" / "log.jsonl", tmp_path / "log.jsonl"))
    for end in ("", "-2"):
        damaged(path, empty_line)
        Log(path).truncate_after(7)
        assert (tmp_path / f"log.damaged{end}.jsonl").is_file()


def test_a_log_line_torn_by_a_crash_is_cut_off_and_written_again(made: Made) -> None:
    out = made.copy()
    with open(out / "log.jsonl", "ab") as stream:
        stream.write(b'{"step": 8, "loss": 0.')
    made.go_on(out)


def test_the_states_of_another_optimiser_are_refused(made: Made) -> None:
    out = made.copy()
    saved = checkpoint.load(out)
    optimizer = {name: tensor for name, tensor in saved.optimizer.items() if name != "1.exp_avg"}
    checkpoint.save(
        out,
        saved.step,
        config=saved.config,
        ema=saved.ema,
        network=saved.network,
        optimizer=optimizer,
        state=saved.state,
    )
    with pytest.raises(Error, match="does not hold this run's state"):
        go(out, made.data, SETTINGS, network=OwnNetwork())
