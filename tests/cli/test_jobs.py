"""Verbs as jobs: everything is opened and refused once, in the plan, which leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from kuosan import Error, fit, load, options
from kuosan.data import doctor
from kuosan.data.config import DataConfig
from kuosan.data.job import DoctorJob, plan_doctor, run_doctor
from kuosan.events import Event, Fact, Finished, Preview, Progress, Wrote
from kuosan.models.export import ExportJob, plan_export, run_export
from kuosan.storage import checkpoint, manifest, tensors
from kuosan.train import api, job
from kuosan.train import resolve as resolving
from kuosan.train.config import SHORT, RunConfig
from kuosan.train.job import TrainJob, plan_train, run_train
from kuosan.train.report import SilentTraining, noted
from shell import QUICK, image_folder, kuosan, refused


@contextmanager
def calls_of(owner: Any, name: str) -> Iterator[list[tuple[Any, ...]]]:
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
    with calls_of(checkpoint, "load") as opened:
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
    with calls_of(doctor, "examine") as looked:
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
    refused("doctor", "a", "--workers", "2", naming=["--workers"])


PREVIEWED = [
    {"0": "100"}.get(word, word) if QUICK[i - 1] == "--preview-every" else word for i, word in enumerate(QUICK)
]


def job_of(out: Path, images: Path, steps: int = 3) -> TrainJob:
    """A training of seconds, with a preview at its end."""
    tree, _ = options.parse(PREVIEWED, RunConfig, SHORT)
    tree["data"]["path"], tree["train"]["max_steps"] = str(images), steps
    return TrainJob(out, settings=tree, measure=False)


def test_a_training_opens_and_resolves_once(tmp_path: Path) -> None:
    images, run = image_folder(tmp_path / "images", 6), tmp_path / "run"
    with (
        calls_of(resolving, "choose") as chosen,
        calls_of(api, "resolve") as resolved,
        calls_of(job, "check_tree") as checked,
        calls_of(api, "open_images") as read,
        calls_of(api, "open_run") as opened,
        calls_of(checkpoint, "load") as loaded,
    ):
        assert kuosan("train", images, "--out", run, *PREVIEWED).code == 0
    assert [len(calls) for calls in (chosen, resolved, checked, read, opened, loaded)] == [1, 1, 1, 1, 1, 0]
    with (
        calls_of(resolving, "choose") as chosen,
        calls_of(api, "resolve") as resolved,
        calls_of(api, "open_images") as read,
        calls_of(checkpoint, "_load") as loaded,
    ):
        assert kuosan("train", "--out", run, "--max-steps", 5).code == 0
    assert [len(calls) for calls in (chosen, resolved, read)] == [1, 1, 1]
    # the settings decide on what is read; the tensors are read when the folder is locked
    assert [tuple(call[1]) for call in loaded] == [(), checkpoint.PARTS]


@pytest.mark.parametrize(
    "words", [["--out", "RUN"], ["DATA", "--out", "RUN"], ["DATA", "--out", "NEW", "--init", "RUN"]]
)
def test_a_training_reads_every_file_of_a_save_once(words: list[str], trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    own = {"RUN": tmp_path / "run", "NEW": tmp_path / "new", "DATA": trained.parent / "images"}
    options = ["--max-steps", 5] if words[0] == "--out" else [{"3": "5"}.get(word, word) for word in QUICK]
    with (
        calls_of(manifest, "read") as lists,
        calls_of(checkpoint, "_text") as texts,
        calls_of(tensors, "read_hashed") as parts,
    ):
        assert kuosan("train", *(own.get(word, word) for word in words), *options).code == 0
    read = [*(path / "manifest.json" for path, *_ in lists), *(call[0] / call[1] for call in texts)]
    read += [path for path, *_ in parts]
    assert len(read) == len(set(read)) == (4 if "--init" in words else 6), read


def test_a_save_written_again_meanwhile_is_read_again(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    opened = checkpoint.load(run, parts=())
    assert checkpoint.load(run, opened=[opened]).config is opened.config
    os.utime(opened.path / "manifest.json")
    again = checkpoint.load(run, opened=[opened])
    assert again.config is not opened.config and again.config == opened.config


def test_python_takes_the_shells_way_and_no_other(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", 6)
    with calls_of(job, "plan_train") as planned, calls_of(job, "run_train") as ran:
        names = ["data.size" if name == "--size" else name.removeprefix("--") for name in QUICK[::2]]
        typed: dict[str, Any] = dict(zip(names, QUICK[1::2]))
        assert fit(None, images, tmp_path / "run", report=SilentTraining(), **typed) == tmp_path / "run"
    assert len(planned) == len(ran) == 1


def test_the_plan_of_a_training_refuses_and_writes_nothing(tmp_path: Path) -> None:
    images, run = image_folder(tmp_path / "images", 6), tmp_path / "run"
    before = files(tmp_path)
    with plan_train(job_of(run, images)) as plan:
        assert files(tmp_path) == before
        assert (plan.first, plan.resumed, plan.steps_left, plan.cost) == (True, False, 3, None)
        assert round(plan.epochs, 2) == round(3 * 4 / len(plan.setup.images.train), 2)
    assert files(tmp_path) == before
    with pytest.raises(Error, match="nowhere"):
        plan_train(replace(job_of(run, images), init=tmp_path / "nowhere"))
    with pytest.raises(Error, match=r"train\.loss = hybrid"):
        plan_train(replace(job_of(run, images), settings={"data": {"path": "portraits"}, "train": {"loss": "hybrid"}}))
    assert files(tmp_path) == before


def test_a_training_yields_what_happens(tmp_path: Path) -> None:
    images, run = image_folder(tmp_path / "images", 6), tmp_path / "run"
    with plan_train(job_of(run, images)) as plan:
        *events, last = run_train(plan)
    steps = [event for event in events if isinstance(event, Progress)]
    assert [(event.what, event.done, event.of) for event in steps] == [("training", n, 3) for n in (1, 2, 3)]
    rows = [event.values for event in events if isinstance(event, Fact)]
    assert [row["step"] for row in rows] == [1, 2, 3] and all(row["loss"] > 0 for row in rows)
    assert [event.path for event in events if isinstance(event, Wrote)] == [checkpoint.folder(run, n) for n in (0, 3)]
    (preview,) = [event for event in events if isinstance(event, Preview)]
    assert preview.step == 3 and preview.path is not None and preview.path.is_file()
    assert isinstance(last, Finished) and (last.result.step, last.result.stopped) == (3, 0)


def test_a_training_that_is_closed_keeps_its_saves_and_goes_on(tmp_path: Path) -> None:
    images, run = image_folder(tmp_path / "images", 6), tmp_path / "run"
    with plan_train(job_of(run, images, steps=4)) as plan:
        events = run_train(plan)
        while not isinstance(next(events), Progress):
            pass
        events.close()
    assert [path.name for path in checkpoint.checkpoints(run)] == ["step-00000000"]
    with plan_train(job_of(run, images, steps=4)) as plan:  # the lock was let go of
        assert plan.resumed and plan.steps_left == 4
        *_, last = run_train(plan)
    assert last.result.step == 4


def test_a_run_that_another_process_began_meanwhile_is_left_alone(tmp_path: Path) -> None:
    images, run = image_folder(tmp_path / "images", 6), tmp_path / "run"
    with plan_train(job_of(run, images)) as late:
        with plan_train(job_of(run, images)) as early:
            *_, last = run_train(early)
        assert last.result.step == 3
        with pytest.raises(Error, match="begun by another process meanwhile"):
            next(run_train(late))
    assert checkpoint.load(run).step == 3


def test_what_becomes_known_is_a_fact_whose_words_are_the_shells(trained: Path, tmp_path: Path) -> None:
    run, news = Path(shutil.copytree(trained, tmp_path / "run")), list[Event]()
    with plan_train(TrainJob(run, settings={"train": {"max_steps": 5}}, measure=False), news.append):
        pass
    (found,) = [event for event in news if isinstance(event, Fact) and event.name == "resumed"]
    assert found.values == {"step": 3, "of": 5, "folder": str(run)}
    assert noted(found) == f"going on from step 3 of 5: {run}"
    halved = {"what": "training", "step": 7, "size": 8, "reason": "full", "back": 5}
    assert noted(Fact("halved", halved)) == (
        "step 7: out of memory (full): micro-batch 8 -> 4 from here on; from the save of step 5 on, the steps are "
        "taken again with the same draws."
    )
    assert noted(Fact("step", {"loss": 1.0})) is None


def test_going_on_says_three_lines_before_it_does(trained: Path) -> None:
    said = kuosan("train", "--out", trained, "--max-steps", 4)
    lines = said.out.splitlines()
    assert said.code == 0 and lines[0].startswith("train.max_steps: 3 -> 4")  # what differs is said besides
    assert lines[1] == f"going on from step 3 of 4: {trained}"
    assert lines[2].startswith("images: ") and lines[2].endswith(" held out, the same as before")
    assert lines[3].startswith("training: 1 step left, about ") and "Ctrl-C saves and stops" in lines[3]
    assert lines[4].startswith("step 4/4")


def test_help_shows_the_options_that_people_use_and_where_the_rest_is() -> None:
    first, every = kuosan("train", "--help").out, kuosan("train", "--help-all").out
    used = [
        "out",
        "config",
        "network",
        "size",
        "minutes",
        "max-steps",
        "batch",
        "lr",
        "task",
        "labels",
        "text",
        "codec",
    ]
    used += ["objective", "precision", "init", "dry-run"]
    assert len(used) == 16 and re.findall(r"│ --([\w.-]+)", first) == used
    assert "kuosan train --help-all" in first
    listed = re.findall(r"│ --([\w.-]+)", every)
    assert len(listed) == len(options.options(RunConfig)) + 6 and set(used) <= set(listed)


def test_an_opened_model_says_in_a_line_what_it_is(trained: Path) -> None:
    said = repr(load(trained))
    assert said.startswith(f"<Pipeline '{trained}': step ") and ", 3x8x8 images, 0." in said and len(said) < 250
    assert "\n" not in said and "Conv2d" not in said


@pytest.mark.parametrize("verb", ["invert", "restore", "reconstruct"])
@pytest.mark.parametrize("typed", [["--run", "nowhere"], ["--run=nowhere"], ["nowhere"]])
def test_the_first_word_may_be_typed_as_an_option(tmp_path: Path, verb: str, typed: list[str]) -> None:
    words = [verb, "image.png", *typed] if len(typed) > 1 or "=" in typed[0] else [verb, *typed, "image.png"]
    said = refused(*words, *(["--upscale", "2"] if verb == "restore" else []), naming=[])
    assert "unknown option" not in said.err and ("nowhere" in said.err or "image.png" in said.err)
