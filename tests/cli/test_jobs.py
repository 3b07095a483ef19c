"""Verbs as jobs: everything is opened and refused once, in the plan, which leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from kuosan import Error
from kuosan.data import doctor
from kuosan.data.config import DataConfig
from kuosan.data.job import DoctorJob, plan_doctor, run_doctor
from kuosan.events import Finished, Wrote
from kuosan.models.job import ExportJob, plan_export, run_export
from kuosan.storage import checkpoint
from shell import QUICK, image_folder, kuosan, refused


@contextmanager
def counted(owner: Any, name: str) -> Iterator[list[tuple[Any, ...]]]:
    """The arguments of every call of a function within the block."""
    calls: list[tuple[Any, ...]] = []
    real = getattr(owner, name)

    def call(*args: Any, **more: Any) -> Any:
        calls.append(args)
        return real(*args, **more)

    with patch.object(owner, name, call):
        yield calls


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on six images."""
    folder = tmp_path_factory.mktemp("jobs")
    assert kuosan("train", image_folder(folder / "images", 6), "--out", folder / "run", *QUICK).code == 0
    return folder / "run"


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_an_export_opens_its_checkpoint_once(trained: Path, tmp_path: Path) -> None:
    with counted(checkpoint, "load") as opened:
        assert kuosan("export", trained, tmp_path / "model").code == 0
    assert len(opened) == 1


def test_the_plan_of_an_export_refuses_and_writes_nothing(trained: Path, tmp_path: Path) -> None:
    plan = plan_export(ExportJob(trained, tmp_path / "model"))
    assert files(tmp_path) == []
    *events, last = run_export(plan)
    assert events == [Wrote(tmp_path / "model")]
    assert isinstance(last, Finished) and last.result.nbytes == sum(
        path.stat().st_size for path in files(last.result.path)
    )
    with pytest.raises(Error, match="nowhere"):
        plan_export(ExportJob(tmp_path / "nowhere", tmp_path / "other"))
    with pytest.raises(Error, match="card"):
        plan_export(ExportJob(trained, tmp_path / "other", card=tmp_path / "card"))


@pytest.mark.parametrize(
    ("words", "naming"),
    [([], ["RUN", "OUT"]), (["a"], ["OUT"]), (["a", "b", "c"], ["'c'"]), (["a", "--out", "b", "c"], ["'c'"])],
)
def test_an_export_says_which_words_it_takes(words: list[str], naming: list[str]) -> None:
    refused("export", *words, naming=[*naming, "kuosan export RUN OUT"])


def test_a_doctor_looks_once(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", 4)
    with counted(doctor, "examine") as looked:
        assert kuosan("doctor", images, "--out", tmp_path / "report").code == 0
    assert len(looked) == 1


def test_the_plan_of_a_doctor_refuses_and_writes_nothing(trained: Path, tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", 4)
    before = files(tmp_path)
    plan = plan_doctor(DoctorJob(tmp_path / "report", DataConfig(str(images))))
    assert files(tmp_path) == before and len(plan.report.scan.entries) == 4
    *events, last = run_doctor(plan)
    written = {event.path for event in events if isinstance(event, Wrote)}
    assert {path.name for path in written} == {"accepted.csv", "rejected.csv", "summary.json"}
    assert all(path.is_file() for path in written)
    assert isinstance(last, Finished) and last.result is plan.report
    with pytest.raises(Error, match="inside"):
        plan_doctor(DoctorJob(images / "report", DataConfig(str(images))))
    with pytest.raises(Error, match="nowhere"):
        plan_doctor(DoctorJob(None, DataConfig(str(tmp_path / "nowhere"))))
    own = plan_doctor(DoctorJob(None, DataConfig(str(trained), channels="grey")))
    assert (own.run, own.config.size, own.given) == (str(trained), 8, {"channels": "grey"})


def test_a_doctor_without_data_says_what_it_takes() -> None:
    refused("doctor", naming=["kuosan doctor FOLDER"])
    refused("doctor", "a", "b", naming=["'a'", "'b'"])
    refused("doctor", "a", "--workers", "2", naming=["--workers", "no option of `kuosan doctor`"])
