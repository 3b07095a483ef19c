"""What would have no effect, or would fail only after minutes, is refused at once and leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import warm_processes
from shell import QUICK, picture_folder, refused


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


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


REFUSED_LATE = {
    "invert embedded IMAGE": "captions",
    "invert RUN IMAGE --class cat": "class",
    "invert RUN IMAGE --between 3": "give two",
    "invert RUN IMAGE --steps 5000": "steps",
    "invert RUN IMAGE --spacing x": "spacing",
    "sample RUN --class cat": "class",
    "sample RUN --size 9x9": "size",
    "sample embedded fox --size 9x9": "size",
    "sample RUN --reference RUN": "reference",
    "sample RUN --guidance 3": "guidance",
    "sample RUN --image IMAGE --strength 0.001 --steps 3": "no step",
    "sample RUN --columns 0": "columns",
    "restore RUN IMAGE --upscale 3 --method pigdm --overlap 7": "overlap",
    "restore RUN IMAGE --mask 90,90,3,3": "inside",
    "restore embedded IMAGE --deblur 2 --guidance 3": "guidance",
    "restore RUN IMAGE --colorise --class cat": "class",
    "evaluate RUN --against nowhere": "nowhere",
    "evaluate RUN --n 0": "n = 0",
    "evaluate IMAGES --against nowhere": "nowhere",
    "compare IMAGES --upscale 2 --with RUN --n x": "--n",
    "compare nowhere --upscale 2 --with RUN": "nowhere",
    "compare IMAGES --upscale 2 --with RUN:dpss": "dps",
    "reconstruct RUN IMAGES": "autoencoder",
    "export nowhere": "nowhere",
    "export RUN --card nowhere": "nowhere",
    "doctor nowhere": "nowhere",
    "demo --minutes 0": "minutes",
    "train IMAGES --network huge": "huge",
    "train IMAGES --size 7": "7",
    "train IMAGES --labels": "class",
    "train IMAGES --text bytes": "caption",
    "train IMAGES --codec RUN": "autoencoder",
    "train IMAGES --init nowhere": "nowhere",
}


@pytest.mark.parametrize("words", REFUSED_LATE)
def test_a_refusal_leaves_no_folder(words: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where --out says, nor where a verb writes by itself."""
    monkeypatch.chdir(tmp_path)
    shutil.move(run, "RUN")
    picture_folder(tmp_path / "IMAGES", 2)
    typed = [word.replace("IMAGE", "IMAGES/0.png") if word == "IMAGE" else word for word in words.split()]
    before = sorted(tmp_path.rglob("*"))
    for place in ([], ["--out", "new/folder"]):
        if place or typed[0] not in ("export", "demo"):
            refused(*typed, *place, naming=[REFUSED_LATE[words]])
            assert sorted(tmp_path.rglob("*")) == before, place
