"""The starter weights: which runs begin with them unasked, how they go on, and whom their models must name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import kuosan
from kuosan import Error, options
from kuosan import config as trees
from kuosan.events import Event
from kuosan.models import starter
from kuosan.models.export import ExportJob, export, plan_export, run_export
from kuosan.storage import checkpoint
from kuosan.train import api
from kuosan.train.config import SHORT, RunConfig
from kuosan.train.job import TrainJob, TrainPlan, plan_train, run_train
from kuosan.train.report import noted
from shell import kuosan as shell
from train.made_runs import SMALL, images
from train.test_init import NETWORK, folder

CREDIT = "Things by Somebody, CC BY 4.0"
FEW = {key: value for key, value in SMALL.items() if not key.startswith("model.")} | {
    "train.max_steps": 2,
    "train.evaluate_every": 0,
}
PATCH = {"model.network.patch": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images, and starter weights of a small network."""
    at = tmp_path_factory.mktemp("starter")
    images(at / "plain.npz")
    folder(at / "large", 16)
    folder(at / "abc", classes="abc")
    folder(at / "captions", captions=True)
    run = kuosan.fit(data=at / "plain.npz", out=at / "run", **FEW | NETWORK | PATCH)
    saved = checkpoint.load(run, parts=("ema",))
    export(replace(saved, state={**saved.state, starter.FACT: [CREDIT]}), at / "starter")
    return at


@pytest.fixture(autouse=True)
def installed(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(starter, "folder", lambda: made / "starter")
    yield


def job(out: Path, data: Path | str, settings: Mapping[str, Any] = {}, **more: Any) -> TrainJob:
    """A training as the shell asks for it."""
    every = {**FEW, **NETWORK, **PATCH, "data.path": str(data), **settings}
    words = [word for key, value in every.items() for word in options.words(key, value)]
    more = {"starter": True, **more}
    return TrainJob(out, settings=options.parse(words, RunConfig, SHORT)[0], measure=False, **more)


def begun(asked: TrainJob, train: bool = False) -> tuple[TrainPlan, list[str]]:
    """The training opened, or taken to its end, and the lines that were said."""
    news: list[Event] = []
    with plan_train(asked, news.append) as plan:
        if train:
            news += list(run_train(plan))
        return plan, [line for line in map(noted, news) if line]


def is_of_the_starter(plan: TrainPlan, made: Path) -> bool:
    """Whether a run that was not trained has the starter's weights; what classes and captions add is new."""
    theirs = checkpoint.load(made / "starter", parts=("ema",)).ema
    mine = {name.removeprefix("network."): value for name, value in plan.run.state.network.state_dict().items()}
    same = [torch.equal(mine[name], theirs[name].float()) for name in theirs if mine[name].shape == theirs[name].shape]
    return sum(same) > 0.9 * len(theirs)


USED: dict[str, tuple[str, dict[str, Any]]] = {
    "the same": ("plain.npz", {}),
    "other rates": ("plain.npz", {"train.lr": 1e-4, "train.batch": 3}),
    "larger images": ("large", {}),
    "classes": ("abc", {"model.task.labels": True}),
    "captions": ("captions", {"text": "bytes", "model.text.width": 24, "model.text.heads": 2}),
    "holes": ("plain.npz", {"task": "inpainting"}),
    "dropout": ("plain.npz", {"model.network.dropout": 0.1}),
}


@pytest.mark.parametrize("what", USED)
def test_a_run_of_the_starters_network_begins_with_its_weights_and_goes_on_as_it_began(
    what: str, made: Path, tmp_path: Path
) -> None:
    data, settings = USED[what]
    asked = job(tmp_path / "run", made / data, settings)
    plan, said = begun(asked)
    assert is_of_the_starter(plan, made)
    assert sum("--init none starts from nothing" in line for line in said) == 1
    explicit, _ = begun(job(tmp_path / "explicit", made / data, settings, init=Path("starter")))
    assert explicit.run.config == plan.run.config
    ones, others = (each.run.state.network.state_dict() for each in (plan, explicit))
    assert all(torch.equal(value, others[name]) for name, value in ones.items())
    begun(asked, train=True)
    longer = {"train.max_steps": 3}
    again = (asked, TrainJob(tmp_path / "run", starter=True), job(tmp_path / "run", made / data, settings | longer),
             job(tmp_path / "run", made / data, settings | longer, starter=False))  # fmt: skip
    for each in again:
        plan, said = begun(each, train=each is again[2])
        assert plan.resumed and not any("starter weights" in line for line in said)
    assert checkpoint.load(tmp_path / "run").step == 3
    assert checkpoint.load(tmp_path / "run").state["init"] == "starter"


NOT_USED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "asked for nothing": ("plain.npz", {}, {"init": Path("none")}),
    "in Python": ("plain.npz", {}, {"starter": False}),
    "grey": ("plain.npz", {"channels": "grey"}, {}),
    "with alpha": ("plain.npz", {"channels": "rgba"}, {}),
    "another width": ("plain.npz", {"model.network.channels": 24}, {}),
    "more levels": ("large", {"model.network.multipliers": [1, 2, 2], "model.network.attention": ["false"] * 3}, {}),
    "other attention": ("plain.npz", {"model.network.attention": ["true", "true"]}, {}),
    "patches": ("plain.npz", {"model.network.patch": 2}, {}),
    "another prediction": ("plain.npz", {"model.prediction": "v"}, {}),
    "another schedule": ("plain.npz", {"schedule": "flow"}, {}),
    "another length": ("plain.npz", {"model.schedule.T": 50}, {}),
    "upscaling": ("large", {"task": "super_resolution", "model.task.scale": 2}, {}),
    "captions in its attention": ("captions", {"text": "bytes", "model.network.context_attention": "transformer"}, {}),
    "a classifier": ("abc", {"train.objective": "classifier", "model.network.head_channels": None}, {}),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_USED)
def test_another_run_begins_as_if_there_were_none(
    what: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, settings, more = NOT_USED[what]
    if settings.get("model.network.head_channels", 1) is None:
        monkeypatch.setitem(NETWORK, "model.network.head_channels", 8)
        settings = {key: value for key, value in settings.items() if "head" not in key}
    asked = job(tmp_path / "run", made / data, settings, **more)
    plan, said = begun(asked)
    assert not any("starter weights" in line for line in said)
    monkeypatch.setattr(starter, "folder", lambda: made / "nowhere")
    without, _ = begun(replace(asked, starter=True))
    assert without.run.config == plan.run.config
    ones, others = (each.run.state.network.state_dict() for each in (plan, without))
    assert all(torch.equal(value, others[name]) for name, value in ones.items())
    assert starter.FACT not in plan.run.extra


def test_the_portraits_and_recipes_begin_from_nothing(made: Path, tmp_path: Path) -> None:
    portraits = job(tmp_path / "a", "portraits", {"data.size": 8, "data.hold_out": 0})
    assert not is_of_the_starter(begun(portraits)[0], made)
    of_recipe = job(tmp_path / "b", made / "plain.npz", config="portraits")
    assert not is_of_the_starter(begun(of_recipe)[0], made)
    preset = job(tmp_path / "p", made / "plain.npz", config="quick")  # says how long, not what
    assert is_of_the_starter(begun(preset)[0], made)
    (tmp_path / "own.yaml").write_text("train: {lr: 0.001}\n")
    own = job(tmp_path / "c", made / "plain.npz", config=str(tmp_path / "own.yaml"))
    assert is_of_the_starter(begun(own)[0], made)


def test_asked_for_it_begins_other_models_too_as_any_run_does(made: Path, tmp_path: Path) -> None:
    plan, said = begun(job(tmp_path / "grey", made / "plain.npz", {"channels": "grey"}, init=Path("starter")))
    assert is_of_the_starter(plan, made) and any("grey images for RGB" in line for line in said)
    out = kuosan.fit(data=made / "plain.npz", out=tmp_path / "fit", init="starter", **FEW)
    assert checkpoint.load_config(out)["model"]["network"]["channels"] == NETWORK["model.network.channels"]
    out = kuosan.fit(data=made / "plain.npz", out=tmp_path / "nothing", init="none", **FEW | NETWORK)
    assert checkpoint.load(out).state["init"] is None
    with pytest.raises(Error, match="channels 24 against 16"):
        begun(job(tmp_path / "wide", made / "plain.npz", {"model.network.channels": 24}, init=Path("starter")))


def named(place: Path) -> list[str]:
    """Whom a folder's files name."""
    page = (place / starter.CREDITS).read_text()
    assert page.startswith(starter.HEADING)
    return [line.removeprefix("- ") for line in page.splitlines() if line.startswith("- ")]


def test_credits_go_with_every_run_save_and_export(made: Path, tmp_path: Path) -> None:
    begun(job(tmp_path / "run", made / "plain.npz"), train=True)
    list(run_export(plan_export(ExportJob(tmp_path / "run", tmp_path / "export"))))
    other = {"model.network.multipliers": [1, 2, 2], "model.network.attention": ["false", "true", "false"]}
    begun(job(tmp_path / "second", made / "large", other, init=tmp_path / "export"), train=True)
    begun(job(tmp_path / "third", made / "large", other, init=tmp_path / "second"), train=True)
    (tmp_path / "card.md").write_text("My model.\n")
    list(run_export(plan_export(ExportJob(tmp_path / "third", tmp_path / "last", card=tmp_path / "card.md"))))
    for name in ("run", "export", "second", "third", "last"):
        assert named(tmp_path / name) == [CREDIT], name
        saved = checkpoint.load(tmp_path / name, parts=())
        assert saved.state[starter.FACT] == [CREDIT], name
    assert starter.CREDITS in (tmp_path / "export" / "README.md").read_text()
    assert (tmp_path / "last" / "README.md").read_text() == "My model.\n"
    assert starter.CREDITS in json.loads((tmp_path / "last" / "manifest.json").read_text())["files"]
    (tmp_path / "run" / starter.CREDITS).unlink()
    begun(job(tmp_path / "run", made / "plain.npz", {"train.max_steps": 3}), train=True)
    assert named(tmp_path / "run") == [CREDIT]
    begun(job(tmp_path / "own", made / "plain.npz", init=Path("none")), train=True)
    assert not (tmp_path / "own" / starter.CREDITS).exists()


def test_a_run_of_no_step_begins_with_what_is_asked_for_now_or_with_what_it_was_begun_with(
    made: Path, tmp_path: Path
) -> None:
    def opened(asked: TrainJob) -> bool:
        """Begin, and stop before the first step; whether it began with the starter weights."""
        with plan_train(asked) as plan:
            api.begin(plan.run, plan.setup)
            return is_of_the_starter(plan, made)

    out, data = tmp_path / "run", made / "plain.npz"
    assert opened(job(out, data)) and (out / starter.CREDITS).exists()
    assert opened(TrainJob(out, starter=True))
    assert opened(TrainJob(out))
    assert not opened(job(out, data, init=Path("none"))) and not (out / starter.CREDITS).exists()
    assert not opened(TrainJob(out, starter=True))
    assert opened(job(out, data))
    assert not opened(job(out, data, {"channels": "grey"}))
    out = tmp_path / "of another"
    assert opened(job(out, data, init=made / "run")) is False  # its own weights, in full precision
    with plan_train(TrainJob(out, starter=True)) as plan:
        theirs = checkpoint.load(made / "run", parts=("ema",)).ema
        assert all(torch.equal(value, theirs[name]) for name, value in plan.run.state.network.state_dict().items())


def test_what_a_run_began_with_cannot_be_undone(made: Path, tmp_path: Path) -> None:
    begun(job(tmp_path / "run", made / "plain.npz"), train=True)
    with pytest.raises(Error, match=r"began with starter, so --init none would be ignored; leave it out, or --out AN"):
        begun(job(tmp_path / "run", made / "plain.npz", init=Path("none")))
    begun(job(tmp_path / "own", made / "plain.npz", init=Path("none")), train=True)
    for init in (None, Path("none")):
        plan, _ = begun(job(tmp_path / "own", made / "plain.npz", {"train.max_steps": 3}, init=init))
        assert plan.resumed
    with pytest.raises(Error, match="already holds a run, so --init starter would be ignored"):
        begun(job(tmp_path / "own", made / "plain.npz", init=Path("starter")))


def test_an_installation_without_them_says_so_when_asked(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(job(tmp_path / "run", made / "plain.npz"), train=True)
    monkeypatch.setattr(starter, "folder", lambda: tmp_path / "nowhere")
    plan, _ = begun(job(tmp_path / "run", made / "plain.npz", {"train.max_steps": 3}), train=True)
    assert plan.resumed and checkpoint.load(tmp_path / "run").step == 3
    with pytest.raises(Error, match=r"--init starter: the starter weights are not in this installation .*--init none"):
        begun(job(tmp_path / "new", made / "plain.npz", init=Path("starter")))
    assert not (tmp_path / "new").exists()


def test_damaged_ones_are_refused_with_the_cure(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.yaml", "ema.safetensors"):
        damaged = shutil.copytree(made / "starter", tmp_path / f"of {name}")
        content = bytearray((damaged / name).read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / name).write_bytes(content)
        monkeypatch.setattr(starter, "folder", lambda damaged=damaged: damaged)
        with pytest.raises(Error, match=f"{name}.*") as caught:
            begun(job(tmp_path / "run", made / "plain.npz"))
        assert "--init none" in str(caught.value)
        begun(job(tmp_path / "run", made / "plain.npz", init=Path("none")))


def test_a_run_of_that_name_goes_first(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("none", "starter"):
        shutil.copytree(made / "run", tmp_path / name)
        plan, said = begun(job(tmp_path / f"from {name}", made / "plain.npz", init=Path(name)))
        assert any(f"the averaged weights of {name}, step 2" in line for line in said)
        assert starter.FACT not in plan.run.extra


def test_the_shell_says_it_in_one_line_and_takes_none(made: Path, tmp_path: Path) -> None:
    every = {**FEW, **NETWORK, **PATCH}
    words = [word for key, value in every.items() for word in options.words(key, value)]
    said = shell("train", made / "plain.npz", "--out", tmp_path / "a", "--dry-run", *words)
    assert said.code == 0, said
    assert said.out.count("starter weights") == said.out.count("--init none starts from nothing") == 1
    said = shell("train", made / "plain.npz", "--out", tmp_path / "b", "--init", "none", *words)
    assert said.code == 0 and "starter weights" not in said.out, said
    assert trees.load(tmp_path / "b" / "data.json")["init"] is None
