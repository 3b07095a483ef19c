"""A run is gone on with only as what it is: every difference is named with both values and the choices."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import kuosan
from kuosan import Error
from kuosan import config as trees
from kuosan.errors import escaped
from kuosan.storage import checkpoint
from kuosan.train import api, saving
from kuosan.train.distributed import World
from kuosan.train.report import SilentTraining
from kuosan.train.resolve import check_tree, resolve
from kuosan.train.setup import _check_processes
from train.made_runs import OwnNetwork, Stopping, ask, begin, differences, go, images, outcome

SETTINGS = {"train.max_steps": 4, "train.evaluate_every": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, others, and a finished run of the U-Net on the first."""
    folder = tmp_path_factory.mktemp("refusals")
    images(folder / "pictures.npz")
    images(folder / "others.npz", seed=1)
    go(folder / "run", folder / "pictures.npz", SETTINGS)
    return folder


def refused(made: Path, settings: Mapping[str, Any] = SETTINGS, data: str = "pictures.npz", **more: Any) -> str:
    """What starting the run again so is answered with; nothing of it may change."""
    before = {path: path.read_bytes() for path in made.glob("run/**/*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(Error) as caught:
        begin(made / "run", made / data, {**SETTINGS, **settings}, **more)
    assert before == {path: path.read_bytes() for path in before}
    return str(caught.value)


def test_each_changed_value_is_named_with_the_choices(made: Path) -> None:
    text = refused(made, {"train.clip": 2e-3, "train.seed": 6, "model.network.groups": 4})
    for line in ("train.clip: the run has 1.0, now 0.002", "train.seed: the run has 0, now 6", "groups: the run"):
        assert line in text
    for choice in ("repeat the run's own values", "--out ANOTHER", f"--init {made / 'run'}"):
        assert choice in text


@pytest.mark.parametrize("key", ["seed", "clip", "warmup", "bad_steps", "offset_noise", "weight"])
def test_whatever_is_learned_from_is_fixed(made: Path, key: str) -> None:
    value = {"seed": 1, "bad_steps": 3, "warmup": 5, "weight": "p2"}.get(key, 0.2)
    assert f"train.{key}: the run has" in refused(made, {f"train.{key}": value})


def test_fewer_steps_than_were_taken_are_refused(made: Path) -> None:
    assert "train.max_steps = 3, but" in refused(made, {"train.max_steps": 3})


def test_other_images_are_refused_and_can_be_accepted(made: Path, tmp_path: Path) -> None:
    text = refused(made, data="others.npz")
    assert "not the ones this run was trained on" in text
    assert "--accept-new-data" in text and "--init" in text
    go(tmp_path / "run", made / "pictures.npz", SETTINGS)
    report, more = Stopping(), {"train.max_steps": 6, "train.evaluate_every": 0}
    go(tmp_path / "run", made / "others.npz", more, accept_new_data=True, report=report)
    assert any("going on with other images" in line for line in report.said)
    begin(tmp_path / "run", made / "others.npz", more).lock.release()  # type: ignore[union-attr]


def test_the_same_images_elsewhere_are_the_same(made: Path, tmp_path: Path) -> None:
    report = Stopping()
    copy = tmp_path / "moved.npz"
    copy.write_bytes((made / "pictures.npz").read_bytes())
    run = begin(made / "run", copy, SETTINGS, report=report)
    assert any("data.path:" in line for line in report.said)
    saving.close(run)


def test_what_changes_only_the_last_bits_is_allowed_and_said(made: Path) -> None:
    report = Stopping()
    run = begin(made / "run", made / "pictures.npz", SETTINGS | {"train.micro_batch": 2}, report=report)
    assert any("train.micro_batch: 0 -> 2; the run goes on, but no longer bit for bit" in s for s in report.said)
    saving.close(run)


def test_a_longer_cosine_is_allowed_and_its_jump_said(made: Path, tmp_path: Path) -> None:
    cosine, report = SETTINGS | {"train.lr_shape": "cosine"}, Stopping()
    go(tmp_path / "run", made / "pictures.npz", cosine)
    go(tmp_path / "run", made / "pictures.npz", cosine | {"train.max_steps": 6}, report=report)
    assert any("cosine over 6 steps" in line for line in report.said), report.said
    assert outcome(tmp_path / "run")["step"] == 6


def test_a_folder_of_something_else_is_left_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(Error, match=r"not empty and holds no run \(thesis\.tex\)"):
        begin(tmp_path, made / "pictures.npz", SETTINGS)
    with pytest.raises(Error, match="is a file, not a folder"):
        begin(tmp_path / "thesis.tex", made / "pictures.npz", SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_process_on_one_run_is_refused(made: Path) -> None:
    run = begin(made / "run", made / "pictures.npz", SETTINGS)
    assert f"is in use by process {os.getpid()}" in refused(made)
    saving.close(run)
    saving.close(begin(made / "run", made / "pictures.npz", SETTINGS))


def test_a_folder_that_forbids_writing_is_named(made: Path, tmp_path: Path) -> None:
    asked, root = ask(tmp_path / "run", made / "pictures.npz", SETTINGS), os.geteuid() == 0
    tmp_path.chmod(0o555)
    if root:  # whom no permission stops
        os.seteuid(65534)
    try:
        with pytest.raises(Error, match="permission is denied") as caught:
            api.start(asked, SilentTraining())
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o755)
    assert caught.value.exit_code == 74 and "/run" in str(caught.value)


def test_too_small_a_disk_is_refused_at_the_start(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(Error, match=r"no room for .*1000 bytes free") as caught:
        begin(tmp_path / "run", made / "pictures.npz", SETTINGS)
    assert caught.value.exit_code == 74


def test_a_run_can_begin_with_anothers_averaged_weights(made: Path, tmp_path: Path) -> None:
    out, init = tmp_path / "second", made / "run"
    settings = SETTINGS | {"train.seed": 5}
    report = Stopping()
    run = begin(out, made / "pictures.npz", settings, init=init, report=report)
    theirs = checkpoint.load(init).ema
    assert all(torch.equal(value, theirs[name]) for name, value in run.state.network.state_dict().items())
    assert any("starting from the averaged weights" in line for line in report.said)
    saving.close(run)  # as if it was killed before its first save: the same command begins again
    go(tmp_path / "whole", made / "pictures.npz", settings, init=init)
    go(out, made / "pictures.npz", settings, init=init, report=Stopping(1))
    go(out, made / "pictures.npz", settings, init=init)  # the same command again goes on
    assert not differences(outcome(out), outcome(tmp_path / "whole"))
    assert "already holds a run, so --init" in refused(made, init=tmp_path / "whole")


def test_weights_of_another_shape_are_refused_for_init(made: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match="channels 32 against 16"):
        begin(tmp_path / "run", made / "pictures.npz", SETTINGS | {"model.network.channels": 32}, init=made / "run")
    with pytest.raises(Error, match="is kuosan's unet, and the one asked for one of its owner's own"):
        begin(tmp_path / "own", made / "pictures.npz", SETTINGS, init=made / "run", network=OwnNetwork())


def test_other_circumstances_are_said(made: Path, tmp_path: Path) -> None:
    go(tmp_path / "run", made / "pictures.npz", SETTINGS)
    saved = checkpoint.load(tmp_path / "run")
    checkpoint.save(
        tmp_path / "run",
        saved.step,
        config=saved.config,
        ema=saved.ema,
        network=saved.network,
        optimizer=saved.optimizer,
        state=saved.state | {"torch": "2.0.0", "processes": 4},
    )
    report = Stopping()
    saving.close(begin(tmp_path / "run", made / "pictures.npz", SETTINGS, report=report))
    assert any("with torch 2.0.0" in line for line in report.said)
    assert any("with processes 4, now 1" in line for line in report.said)


def test_a_batch_smaller_than_the_processes_is_refused(made: Path) -> None:
    asked = ask(made / "none", made / "pictures.npz", SETTINGS)
    with pytest.raises(Error, match=r"train\.batch = 5 is fewer than the 6 processes"):
        _check_processes(World(0, 6), asked.config, asked.images)


def test_what_needs_no_images_is_refused_before_they_are_read() -> None:
    for tree, words in (
        ({"train": {"lr": -1.0}}, r"train\.lr"),
        ({"train": {"preview_steps": 2000}}, "previews cannot be sampled"),
        ({"model": {"learned_variance": True}}, "learned_variance"),
    ):
        with pytest.raises(Error, match=words):
            check_tree(tree)
    grey = {"multipliers": [1, 2], "attention": [False, True], "in_channels": 1, "out_channels": 1}
    check_tree({"model": {"network": grey}})  # whether it fits is known with the images
    resolve({"model": {"network": grey}}, (1, 32, 32))


def test_a_run_of_no_step_begins_anew_with_other_settings(tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz")
    run = begin(tmp_path / "run", data, SETTINGS)  # as a start that fails after the save of step 0
    saving.save(run, must=True)
    saving.close(run)
    go(tmp_path / "run", data, {**SETTINGS, "train.lr": 5e-4})
    assert outcome(tmp_path / "run")["rows"][0]["lr"] <= 5e-4
    assert trees.load(tmp_path / "run" / "config.yaml")["train"]["lr"] == 5e-4
    with pytest.raises(Error, match="another configuration") as refusal:
        go(tmp_path / "run", data, {**SETTINGS, "train.clip": 0.5})
    assert "\\n" not in escaped(str(refusal.value))  # its lines reach the terminal as lines


def test_fit_without_images_says_so() -> None:
    with pytest.raises(Error, match="no images given"):
        kuosan.fit()
