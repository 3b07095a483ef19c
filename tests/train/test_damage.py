"""Whatever file of a run is cut, corrupted or lost: an earlier save takes over, or an Error; no new beginning."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kuosan import Error, checkpoint
from train.made_runs import OwnNetwork, Stopping, differences, go, outcome, pictures

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


class Made:
    """A run stopped at step 7 with saves of steps 3, 6 and 7, the whole one beside it, copied for each damage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, pictures(folder / "pictures.npz")
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PARTS)
def test_a_damaged_save_gives_way_to_the_one_before(made: Made, name: str, way: Callable[[Path], None]) -> None:
    out = made.copy()
    newest = checkpoint.latest(out).path
    assert newest is not None
    way(newest / name)
    said = made.go_on(out)
    assert any("damaged and passed over" in line and newest.name in line for line in said), said
    assert any("going on from step 6 " in line for line in said), said


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["config.yaml", "data.json"])
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


def test_a_damaged_line_of_the_log_is_an_error_that_names_it(made: Made) -> None:
    out = made.copy()
    lines = (out / "log.jsonl").read_bytes().splitlines(keepends=True)
    (out / "log.jsonl").write_bytes(b"".join([*lines[:2], b'{"step": 3, "lo\n', *lines[3:]]))
    with pytest.raises(Error, match=r"log\.jsonl, line 3 is damaged"):
        go(out, made.data, SETTINGS, network=OwnNetwork())


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
