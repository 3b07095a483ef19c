"""What would have no effect, or would fail only after minutes, is refused at once and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

import warm_processes
from shell import QUICK, picture_folder, refused


@pytest.mark.parametrize(
    "door, why", [("classes", "--labels sets it"), ("concat-channels", "but task generation joins 0")]
)
def test_a_door_that_nothing_enters_by_is_refused_before_a_folder_is_made(door: str, why: str, tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures")
    words = ["train", pictures, "--out", tmp_path / "run", *QUICK, f"--model.network.{door}", "2"]
    refused(*words, naming=[f"model.network.{door.replace('-', '_')} = 2", why])
    assert not (tmp_path / "run").exists()


def test_a_network_size_is_refused_for_a_run_that_goes_on(trained_run: Path) -> None:
    refused(
        "train", "--out", trained_run, "--network", "large", naming=["--network large", "no effect", "leave it out"]
    )


def test_a_seed_beside_two_seeds_is_refused(trained_run: Path) -> None:
    words = ["sample", trained_run, "--sampler", "ddim", "--seed", 5, "--between", 1, 2]
    refused(*words, naming=["seed = 5", "between"])


@pytest.mark.parametrize("minutes", ["nan", "inf", "0", "-1"])
def test_a_demo_of_no_time_is_refused(minutes: str, tmp_path: Path) -> None:
    refused("demo", f"--minutes={minutes}", "--out", tmp_path / "demo", naming=["minutes"])
    assert not (tmp_path / "demo").exists()


def test_a_demo_with_an_impossible_seed_is_refused_before_it_trains(tmp_path: Path) -> None:
    refused("demo", "--seed=-101", "--out", tmp_path / "demo", naming=["seed"])
    assert not (tmp_path / "demo").exists()


def test_an_environment_of_several_processes_without_a_rank_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    pictures = picture_folder(tmp_path / "pictures")
    refused("train", pictures, "--out", tmp_path / "run", *QUICK, naming=["WORLD_SIZE=2", "not RANK", "torchrun"])


def test_several_processes_do_a_dry_run_together(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures")
    words = ["train", str(pictures), "--out", str(tmp_path / "run"), *QUICK, "--device", "cpu", "--dry-run"]
    processes = [warm_processes.kuosan(*words, env=env) for env in warm_processes.ranks(2)]
    said = [process.communicate(timeout=150) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sum(out.count("dry run: nothing was written.") for out, _ in said) == 1
    assert not (tmp_path / "run").exists()
