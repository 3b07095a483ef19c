"""Results that are computed once: kept, checked, and computed by one process while others wait."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from kuosan.data import twins
from kuosan.errors import Error
from kuosan.shelf import Results
from shell import QUICK, kuosan, picture_folder


def test_what_was_computed_is_kept_and_what_was_damaged_is_computed_again(tmp_path: Path) -> None:
    results, calls = Results(tmp_path / "cache", "near"), list[int]()

    def compute() -> bytes:
        calls.append(1)
        return b"a\nresult"

    assert results.get("x") is None
    assert [results.once("x", compute) for _ in range(3)] == [b"a\nresult"] * 3 and len(calls) == 1
    assert results.get("x") == b"a\nresult" and results.get("y") is None
    file = tmp_path / "cache" / "near" / "x.result"
    for content in (b"", file.read_bytes()[:-1], b"0" * 64 + b"\na\nresult"):
        file.write_bytes(content)
        assert results.get("x") is None
    assert results.once("x", compute) == b"a\nresult" and len(calls) == 2


def slow(root: str, counted: str) -> None:
    def compute() -> bytes:
        with open(counted, "a") as stream:
            stream.write("x")
        time.sleep(0.3)
        return b"result"

    assert Results(Path(root), "near").once("x", compute) == b"result"


def test_of_several_processes_one_computes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=slow, args=(str(tmp_path / "cache"), str(tmp_path / "counted"))) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "counted").read_text() == "x"


def test_a_disk_that_takes_nothing_only_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert Results(tmp_path / "file", "near").once("x", lambda: b"result") == b"result"
    (tmp_path / "somebody's").mkdir()
    (tmp_path / "somebody's" / "notes").write_bytes(b"")
    monkeypatch.setenv("KUOSAN_CACHE", str(tmp_path / "somebody's"))
    assert Results.at(None, "near") is None
    with pytest.raises(Error, match="no cache of kuosan"):
        Results.at(str(tmp_path / "somebody's"), "near")


def test_doctor_training_going_on_and_evaluation_compare_the_same_images_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUOSAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("kuosan.data.scan.REMEMBERED", 10)
    compared, groups = list[int](), twins.groups
    monkeypatch.setattr(twins, "groups", lambda views, *rest: (compared.append(len(views)), groups(views, *rest))[1])
    images, run = picture_folder(tmp_path / "images", 12), tmp_path / "run"
    assert kuosan("doctor", images).code == 0
    assert compared == [12] and len(list((tmp_path / "cache" / "near").glob("*.result"))) == 1
    few = [*QUICK[: QUICK.index("--max-steps")], *QUICK[QUICK.index("--max-steps") + 2 :]]
    settings = [*few, "--resize", "auto", "--hold-out", "0.3"]
    for steps in (2, 3):
        assert kuosan("train", images, "--out", run, *settings, "--max-steps", steps).code == 0
    assert kuosan("evaluate", run, "--n", 4, "--dry-run").code == 0
    assert compared == [12]
