"""`--init` takes the network along: what a new run has of the old one's model, what is new in it, what is refused."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kuosan
from autoencoder_runs import autoencoder_run, latent_run
from kuosan import Error, options
from kuosan import config as trees
from kuosan.events import Event
from kuosan.models.export import ExportJob, plan_export, run_export
from kuosan.storage import checkpoint
from kuosan.train import api
from kuosan.train.config import SHORT, RunConfig
from kuosan.train.job import TrainJob, TrainPlan, plan_train, run_train
from kuosan.train.report import noted
from train.made_runs import SMALL, OwnNetwork, images

TRAIN = {key: value for key, value in SMALL.items() if not key.startswith("model.")} | {
    "train.max_steps": 2,
    "train.evaluate_every": 0,
}
NETWORK = {
    "model.network.channels": 16,
    "model.network.groups": 8,
    "model.network.head_channels": 8,
    "model.network.multipliers": [1, 2],
    "model.network.attention": ["false", "true"],
    "model.network.blocks": 1,
}
DIT = {"model.network.kind": "dit", "model.network.width": 32, "model.network.depth": 1, "model.network.heads": 2}


def job(out: Path, data: Path, settings: Mapping[str, Any] = {}, **more: Any) -> TrainJob:
    """A training as the shell asks for it."""
    every = {**TRAIN, "data.path": str(data), **settings}
    words = [word for key, value in every.items() for word in options.words(key, value)]
    return TrainJob(out, settings=options.parse(words, RunConfig, SHORT)[0], measure=False, **more)


def begun(asked: TrainJob, train: bool = False) -> tuple[TrainPlan, list[str]]:
    """The training opened, or taken to its end, and the lines that were said."""
    news: list[Event] = []
    with plan_train(asked, news.append) as plan:
        if train:
            news += list(run_train(plan))
        return plan, [line for line in map(noted, news) if line]


def folder(path: Path, size: int = 8, classes: str = "", captions: bool = False) -> Path:
    """Twelve images, in folders of classes, with captions beside them."""
    draw = np.random.default_rng(0)
    for i in range(12):
        place = path / (classes[i % len(classes)] if classes else ".") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(place)
        if captions:
            place.with_suffix(".txt").write_text(f"a thing {i % 3}")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images of several kinds, and runs that were trained on some."""
    at = tmp_path_factory.mktemp("init")
    images(at / "plain.npz")
    folder(at / "large", 16)
    folder(at / "abc", classes="abc")
    folder(at / "bcd", classes="bcd")
    folder(at / "captions", captions=True)
    folder(at / "long", captions=True)
    (at / "long" / "0.txt").write_text("one two three four five six seven eight nine ten")
    flow = {"schedule": "flow", "model.network.patch": 1}
    for name, data, settings in (
        ("flow", "plain.npz", NETWORK | flow),
        ("patch", "plain.npz", NETWORK | {"model.network.patch": 2}),
        ("variance", "plain.npz", NETWORK | {"model.learned_variance": True, "train.loss": "hybrid"}),
        ("dit", "plain.npz", DIT),
        ("classes", "abc", NETWORK | {"model.task.labels": True, "model.task.drop": 0.2}),
        ("text", "captions", NETWORK | {"text": "bytes", "model.text.width": 24, "model.text.heads": 2}),
        ("upscaling", "large", NETWORK | {"task": "super_resolution", "model.task.scale": 2, "data.size": 16}),
    ):
        begun(job(at / name, at / data, settings), train=True)
    return at


def model_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = trees.load(run / "config.yaml")["model"]
    return found


BEGINNINGS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], str]] = {
    # old run, images, what is said; what the new model has, what is said of it
    "the same": ("flow", "plain.npz", {}, {}, "step 2, with its network, schedule, prediction, sigma_data."),
    "another schedule": ("flow", "plain.npz", {"schedule": "karras"}, {"prediction": "edm", "schedule.kind": "karras"},
                         "note: those were trained with model.prediction flow, now edm"),
    "another prediction": ("flow", "plain.npz", {"model.prediction": "v"}, {"prediction": "v"}, "flow, now v"),
    "larger images": ("flow", "large", {}, {"shape": [3, 16, 16]}, "8 cells a side at its coarsest for 4"),
    "larger patches": ("patch", "large", {"model.network.patch": 4}, {"network.patch": 4}, "patches of 4 x 4"),
    "a level more": ("flow", "large", {"model.network.multipliers": [1, 2, 2],
                     "model.network.attention": ["false", "true", "false"]}, {"network.multipliers": [1, 2, 2]},
                     "1 level behind the coarsest"),
    "larger, of tokens": ("dit", "large", {}, {"network.grid": 8}, "positions stretched over 8 tokens"),
    "tokens": ("dit", "plain.npz", {}, {"network.grid": 0}, "with its network"),
    "grey": ("flow", "plain.npz", {"channels": "grey"}, {"network.in_channels": 1}, "grey images for RGB"),
    "classes": ("flow", "abc", {"model.task.labels": True}, {"network.classes": 3}, "3 classes, which begin as no"),
    "other classes": ("classes", "bcd", {}, {"task.class_names": ["b", "c", "d"], "task.drop": 0.2},
                      "1 of 3 classes (d)"),
    "no classes": ("classes", "plain.npz", {"model.task.labels": False}, {"network.classes": 0}, "no classes"),
    "captions": ("flow", "captions", {"text": "bytes"}, {"network.context_attention": "cross"}, "captions, whose"),
    "the same captions": ("text", "captions", {}, {"text.width": 24, "network.context_attention": "transformer"},
                          "text."),
    "longer captions": ("text", "long", {}, {"text.length": 16}, "captions of 15 tokens for 7"),
    "inpainting": ("flow", "plain.npz", {"task": "inpainting"}, {"network.concat_channels": 4}, "inpainting joins"),
    "super-resolution": ("flow", "plain.npz", {"task": "super_resolution"}, {"network.concat_skip": False}, "joins"),
    "upscaling": ("upscaling", "large", {"data.size": 16}, {"task.scale": 2, "network.concat_skip": True}, "with its"),
    "a variance": ("variance", "plain.npz", {}, {"learned_variance": True}, "with its network"),
    "no variance": ("variance", "plain.npz", {"model.learned_variance": False}, {"network.out_channels": 3},
                    "no learned"),
}  # fmt: skip


@pytest.mark.parametrize("what", BEGINNINGS)
def test_a_new_run_has_the_old_ones_model_unless_asked_otherwise(what: str, made: Path, tmp_path: Path) -> None:
    name, data, settings, has, words = BEGINNINGS[what]
    old, out = shutil.copytree(made / name, tmp_path / "old"), tmp_path / "new"
    asked = job(out, made / data, settings, init=old)
    _, said = begun(asked, train=True)
    assert any(words in line for line in said), said
    mine, theirs = model_of(out), model_of(old)
    for key, value in has.items():
        part, _, leaf = key.rpartition(".")
        assert (mine[part] if part else mine)[leaf] == value, key
    changed = {key.partition(".")[0] for key in has}
    for key in {"schedule", "prediction", "sigma_data"} - changed:
        assert mine[key] == theirs[key]
    fields = ("width", "depth") if name == "dit" else ("channels", "groups", "head_channels", "blocks")
    assert all(mine["network"][field] == theirs["network"][field] for field in fields)
    shutil.rmtree(old)  # the new run needs it no more
    for again in (asked, job(out, made / data, {**settings, "train.max_steps": 3}, init=old)):
        plan, said = begun(again, train=again is not asked)
        assert not any("starting" in line for line in said) and plan.resumed
    assert checkpoint.load_config(out)["model"] == mine
    assert checkpoint.load(out).step == 3


def test_a_model_of_latents_takes_its_autoencoder_along(made: Path, tmp_path: Path) -> None:
    old = latent_run(tmp_path / "old", autoencoder_run(tmp_path / "autoencoder", made / "large"))
    shutil.rmtree(tmp_path / "autoencoder")
    asked = job(tmp_path / "new", made / "large", {"data.size": 16}, init=old)
    _, said = begun(asked, train=True)
    assert any("with its network" in line for line in said), said
    mine, theirs = model_of(tmp_path / "new"), model_of(old)
    assert mine["codec"]["weights"] == theirs["codec"]["weights"] and mine["codec"]["run"] == str(old)
    assert mine["sigma_data"] == theirs["sigma_data"]
    shutil.rmtree(old)
    for settings in ({}, {"data.size": 16, "train.max_steps": 3}):
        again = job(tmp_path / "new", made / "large", settings, init=old if settings else None)
        if not settings:  # from the run alone
            again = TrainJob(tmp_path / "new", measure=False)
        plan, _ = begun(again, train=True)
        assert plan.resumed and plan.run.config.model.codec.kind == "latents"
    with pytest.raises(Error, match="it denoises latents of 4 channels, not of 3"):
        old = latent_run(tmp_path / "old", autoencoder_run(tmp_path / "autoencoder", made / "large"))
        begun(job(tmp_path / "pixels", made / "large", {"model.codec.kind": "pixels"}, init=old))


def test_a_classifier_is_begun_from_a_classifier(made: Path, tmp_path: Path) -> None:
    objective = {"train.objective": "classifier"}
    small = {key: value for key, value in NETWORK.items() if "head" not in key}
    begun(job(tmp_path / "old", made / "abc", objective | small), train=True)
    _, said = begun(job(tmp_path / "new", made / "bcd", objective, init=tmp_path / "old"), train=True)
    assert "new in it: 1 of 3 classes (d), which begin at zero." in said
    assert model_of(tmp_path / "new")["network"] == model_of(tmp_path / "old")["network"]
    with pytest.raises(Error, match=r"it is a classifier \(objective classifier\).*say --objective classifier"):
        begun(job(tmp_path / "third", made / "bcd", init=tmp_path / "old"))


OLD = {"labels": ("labels-47b8b58.zip", "labels"), "latents": ("latents-47b8b58.zip", "latents"),
       "autoencoder": ("latents-47b8b58.zip", "ae")}  # fmt: skip


@pytest.mark.parametrize("what", OLD)
def test_a_run_of_an_earlier_version_is_begun_from(what: str, tmp_path: Path) -> None:
    name, run = OLD[what]
    with zipfile.ZipFile(Path(__file__).parent / name) as archive:
        archive.extractall(tmp_path)
    old = next(path for path in tmp_path.rglob(run) if (path / "checkpoints").is_dir())
    pictures = next(path for path in tmp_path.rglob("images*") if path.suffix in (".npz", "") and path.exists())
    settings = {"data.size": 16, "train.batch": 2}
    if what == "autoencoder":
        settings |= {"train.objective": "autoencoder", "train.autoencoder.critic_start": 1}
    asked = job(tmp_path / "new", pictures, settings, init=old)
    begun(asked, train=True)
    mine, theirs = model_of(tmp_path / "new"), checkpoint.load_config(old)["model"]
    assert mine["network"]["channels"] == theirs["network"]["channels"]
    assert mine["prediction"] == theirs["prediction"]


@pytest.mark.parametrize("how", ["run", "checkpoint", "export"])
def test_it_begins_from_a_run_a_checkpoint_and_an_export(how: str, made: Path, tmp_path: Path) -> None:
    source = {"run": made / "text", "checkpoint": checkpoint.folder(made / "text", 2), "export": tmp_path / "export"}[
        how
    ]
    if how == "export":
        list(run_export(plan_export(ExportJob(made / "text", source))))
    with plan_train(job(tmp_path / "new", made / "captions", init=source)) as plan:
        state = plan.run.state
        theirs = checkpoint.load(made / "text").ema
        for name, value in state.network.state_dict().items():
            wanted = theirs[name].bfloat16().float() if how == "export" else theirs[name]
            assert torch.equal(value, wanted), name
        assert torch.equal(state.ema.values.float(), state.parameters.values)


REFUSED: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "width": ("flow", "plain.npz", {"model.network.channels": 32}, ("channels 32 against 16", "Allowed are", "leave")),
    "kind": ("flow", "plain.npz", DIT, ("kind dit against unet",)),
    "captions away": ("text", "plain.npz", {"text": "none"}, ("reads captions", "leave --text none out")),
    "no classes there": ("classes", "plain.npz", {}, ("the images have none", "--labels false")),
    "no captions there": ("text", "plain.npz", {}, ("has no captions", "leave --text out")),
    "an odd size": ("flow", "large", {"data.size": 9}, ("9 x 9 do not fit this network", "--data.size")),
    "a classifier": ("flow", "abc", {"train.objective": "classifier"}, ("is a unet (objective diffusion)", "leave")),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_go_is_refused_before_anything_is_written(what: str, made: Path, tmp_path: Path) -> None:
    name, data, settings, words = REFUSED[what]
    with pytest.raises(Error) as caught:
        begun(job(tmp_path / "new", made / data, settings, init=made / name))
    assert all(word in str(caught.value) for word in words), caught.value
    assert not any(path.suffix for path in tmp_path.rglob("*") if path.is_file())


def test_a_size_that_was_said_is_compared(made: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match="channels 32 against 16"):
        begun(job(tmp_path / "new", made / "plain.npz", init=made / "flow", network="tiny"))


def test_fit_takes_the_network_along(made: Path, tmp_path: Path) -> None:
    few = {"max_steps": 1, "batch": 4, "preview_every": 0, "evaluate_every": 0}
    out = kuosan.fit(data=made / "plain.npz", out=tmp_path / "new", init=made / "flow", **few)
    assert model_of(out)["network"] == model_of(made / "flow")["network"]
    own = kuosan.fit(OwnNetwork(), made / "plain.npz", tmp_path / "own", schedule="flow", **few)
    kuosan.fit(OwnNetwork(), made / "plain.npz", tmp_path / "second", init=own, **few)
    assert model_of(tmp_path / "second")["schedule"]["kind"] == "flow"
    with pytest.raises(Error, match=r"kuosan's unet, and the one asked for one of its owner's own"):
        kuosan.fit(OwnNetwork(), made / "plain.npz", tmp_path / "third", init=made / "flow", **few)
    with pytest.raises(Error, match="given from Python"):
        kuosan.fit(None, made / "plain.npz", tmp_path / "third", init=own, **few)


def test_a_start_that_came_to_no_step_begins_again(made: Path, tmp_path: Path) -> None:
    with plan_train(job(tmp_path / "new", made / "plain.npz", init=made / "flow")) as plan:
        api.begin(plan.run, plan.setup)
    _, said = begun(job(tmp_path / "new", made / "plain.npz", init=made / "patch"))
    assert any(str(made / "patch") in line for line in said), said
