"""`kuosan.plan` and `kuosan.run`: one pair of names over all jobs, for Python as for the shell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import kuosan
from autoencoder_runs import autoencoder_run
from kuosan import jobs
from kuosan.device import ComputeConfig
from kuosan.evaluate import compare, prepare
from kuosan.events import Finished, Progress, Wrote
from kuosan.metrics.features.network import FeatureNetwork
from shell import QUICK, image_folder, smooth_folder
from shell import kuosan as shell

CPU = ComputeConfig(precision="fp32", threads=1)
SHORT = kuosan.Request(n=2, seed=3, steps=2)


def colours(images: torch.Tensor) -> torch.Tensor:
    """Features that cost nothing: the colours of a 2 x 2 grid."""
    return torch.nn.functional.adaptive_avg_pool2d(images / 255, 2).flatten(1)


class Means:
    """The difference of mean colours, in place of a network's distance."""

    name, hash, resizing = "means", "1" * 64, "not resized"

    def __call__(self, x: Any, y: Any) -> Any:
        return (x.float() - y.float()).abs().mean((1, 2, 3))


@pytest.fixture
def home(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, an autoencoder's run, images and others; networks that judge cost nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        prepare, "features", lambda name: FeatureNetwork.of("colours", colours, 12, None, hash="1" * 64)
    )
    monkeypatch.setattr(compare, "perceptual", lambda name: Means())
    shutil.copytree(trained_run, "run")
    image_folder(tmp_path / "images", 8, 16)
    smooth_folder(tmp_path / "others", 9, 16)
    autoencoder_run(tmp_path / "ae", "images")
    return tmp_path


def checkpoint_file() -> Path:
    """A tiny Stable Diffusion in a single file; written once."""
    stable_diffusion = pytest.importorskip("stable_diffusion", reason="needs diffusers")
    path = Path("sd.safetensors")
    written: Path = path if path.exists() else stable_diffusion.write_single(stable_diffusion.tiny("sd1"), path)
    return written


def train_job() -> kuosan.TrainJob:
    """A training of a step on the images; paths are texts, as people write them."""
    words = [word for word in QUICK if not word.startswith("--")]
    names = [word.removeprefix("--").replace("-", "_") for word in QUICK if word.startswith("--")]
    given: dict[str, Any] = dict(zip(names, words))
    network = {name: given[name] for name in ("multipliers", "attention", "groups")}
    network |= {"channels": given["model.network.channels"]}
    train = {name: given[name] for name in ("batch", "warmup", "evaluate_every", "preview_every")}
    return kuosan.TrainJob(
        out="new",
        settings={
            "data": {"path": "images", "size": 8, "workers": 0},
            "model": {"network": {k: [v] if k in ("multipliers", "attention") else v for k, v in network.items()}},
            "train": {"max_steps": 1, **train},
            "compute": {"precision": "fp32", "threads": 1},
        },
        measure=False,
    )


EVALUATED = replace(SHORT, n=8, batch=4)
JOBS: dict[str, Callable[[], Any]] = {
    "sample": lambda: kuosan.SampleJob("run", SHORT, "out", compute=CPU),
    "restore": lambda: kuosan.RestoreJob(
        "run", "images/1.png", kuosan.Restoration("", deblur=1), request=SHORT, out="out", compute=CPU
    ),
    "invert": lambda: kuosan.InvertJob("run", ("images/1.png", "images/2.png"), steps=2, out="out", compute=CPU),
    "train": train_job,
    "evaluate": lambda: kuosan.EvaluateJob(
        metrics=("kid",), against="others", force=True, request=EVALUATED, out="out", compute=CPU, target="run"
    ),
    "compare": lambda: kuosan.CompareJob(
        images="others", contestants=("run:ddnm,steps=2",), upscale=2, n=2, variants=1, out="out", compute=CPU
    ),
    "reconstruct": lambda: kuosan.ReconstructJob(run="ae", n=2, features="none", out="out", compute=CPU),
    "export": lambda: kuosan.ExportJob("run", Path("out")),
    "convert": lambda: kuosan.ConvertJob(checkpoint_file(), Path("out")),
    "doctor": lambda: kuosan.DoctorJob("out", kuosan.DataConfig("images")),
}  # fmt: skip


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_every_job_is_in_the_table_and_public() -> None:
    names = {name for name in kuosan.__all__ if name.endswith("Job")}
    assert {each.__name__ for each in jobs._JOBS} == names and len(names) == len(JOBS) == 10


@pytest.mark.parametrize("verb", JOBS)
def test_a_job_is_planned_without_writing_and_then_run(verb: str, home: Path) -> None:
    job, before, meanwhile = JOBS[verb](), files(home), []
    plan = kuosan.plan(job, meanwhile.append)
    assert files(home) == before
    assert {type(event).__name__ for event in meanwhile} <= {"Progress", "Fact", "Warned"}
    reads = verb not in ("sample", "export", "convert", "evaluate", "reconstruct")
    assert not reads or any(isinstance(event, Progress) and event.done == event.of for event in meanwhile)
    *events, last = kuosan.run(plan)
    assert isinstance(last, Finished) and not any(isinstance(event, Finished) for event in events)
    written = [event.path for event in events if isinstance(event, Wrote)]
    assert written and all(path.exists() for path in written)
    assert (home / ("new" if verb == "train" else "out")).is_dir()


def test_an_image_is_made_again_through_the_same_names(home: Path) -> None:
    *_, made = kuosan.run(kuosan.plan(JOBS["sample"]()))
    again = kuosan.SampleJob(like=str(made.result.files[1]), out="again.png", compute=CPU)
    before = files(home)
    plan = kuosan.plan(again)
    assert files(home) == before
    *events, last = kuosan.run(plan)
    assert isinstance(events[0], Progress) and events[-1] == Wrote(Path("again.png")) and not last.result.same
    assert Path("again.png").read_bytes() == made.result.files[1].read_bytes()


@pytest.mark.parametrize("value", [None, "runs/faces", kuosan.Request(), kuosan.SampleJob, 3])
def test_what_is_no_job_is_refused_with_the_list(value: Any) -> None:
    with pytest.raises(kuosan.Error) as refusal:
        kuosan.plan(value)
    said = str(refusal.value)
    assert (value.__name__ if isinstance(value, type) else type(value).__name__) in said
    assert all(f"kuosan.{each.__name__}" in said for each in jobs._JOBS)


def test_what_is_no_plan_is_refused_with_the_cure(home: Path) -> None:
    with pytest.raises(kuosan.Error, match=r"SampleJob is a job.*kuosan\.run\(kuosan\.plan\(job\)\)"):
        kuosan.run(JOBS["sample"]())
    with pytest.raises(kuosan.Error, match=r"NoneType is no plan.*kuosan\.plan\(job\)"):
        kuosan.run(None)
    with kuosan.plan(replace(train_job(), dry_run=True)) as plan, pytest.raises(kuosan.Error, match="dry_run = True"):
        kuosan.run(plan)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("verb", "words"),
    {
        "sample": ["run", "-n", 2, "--steps", 2],
        "restore": ["run", "images/1.png", "--deblur", 1, "--steps", 2],
        "invert": ["run", "images/1.png", "--steps", 2],
        "train": ["images", *QUICK, "--out", "new", "--dry-run"],
        "evaluate": ["run", "--against", "others", "--metrics", "kid", "-n", 8, "--steps", 2, "--force", "--dry-run"],
        "compare": ["others", "--with", "run:ddnm,steps=2", "--upscale", 2, "-n", 2, "--dry-run"],
        "reconstruct": ["ae", "--features", "none", "-n", 2],
        "export": ["run", "out"],
        "convert": ["sd.safetensors", "out"],
        "doctor": ["images"],
    }.items(),
)
def test_the_shell_takes_the_same_way(
    verb: str, words: list[object], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, planned, ran = [type(JOBS[verb]())], [], []
    plan, run = kuosan.plan, kuosan.run
    monkeypatch.setattr(kuosan, "plan", lambda job, *more: (planned.append(type(job)), plan(job, *more))[1])
    monkeypatch.setattr(kuosan, "run", lambda made: (ran.append(type(made.job)), run(made))[1])
    said = shell(verb, *words)
    assert said.code == 0, said
    assert planned == wanted and ran == ([] if "--dry-run" in words else wanted)


def test_a_sampled_image_is_what_the_shell_makes(home: Path) -> None:
    *_, made = kuosan.run(kuosan.plan(JOBS["sample"]()))
    words = ["-n", 2, "--seed", 3, "--steps", 2, "--precision", "fp32", "--threads", 1, "--out", "typed"]
    assert shell("sample", "run", *words).code == 0
    for path in made.result.files:
        with Image.open(path) as one, Image.open(Path("typed", path.name)) as other:
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--class", "cat,dog"], ("cat", "dog")),
        (["--class", "cat", "--class", "dog"], ("cat", "dog")),
        (["--class", "owl, snowy"], ("owl, snowy",)),
        (["--class", "owl, snowy", "--class", "cat,dog"], ("owl, snowy", "cat", "dog")),
        (["--class", "0,2"], ("0", "2")),
        (["--class", "none"], ("none",)),
    ],
)
@pytest.mark.parametrize("verb", ["sample", "restore", "invert", "evaluate"])
def test_classes_are_typed_alike_everywhere(
    verb: str, words: list[str], found: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    task = {"labels": True, "class_names": ["cat", "dog", "owl, snowy"]}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({"model": {"task": {"kind": "generation", **task}}}))
    jobs: list[Any] = []

    def planned(job: Any, *more: object) -> None:
        jobs.append(job)
        raise kuosan.Error("enough")

    monkeypatch.setattr(kuosan, "plan", planned)
    more = {"restore": ["a.png", "--deblur", 1], "invert": ["a.png"]}.get(verb, [])
    assert "enough" in shell(verb, tmp_path / "run", *more, *words).err
    assert (jobs[0].classes if verb == "invert" else jobs[0].request.classes) == found
