"""`kuosan evaluate`, as one would type it: it says what it will do, does it, and refuses at once what it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kuosan.cli.evaluate import VERB, read
from kuosan.evaluate import prepare
from kuosan.metrics.features.network import FeatureNetwork
from shell import QUICK as TRAIN
from shell import image_folder, kuosan, refused, tree

QUICK = ["--n", 6, "--batch", 4, "--precision", "fp32", "--threads", 1]


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Features that cost nothing in place of the network; what is written here is written into a scratch folder."""
    mean = FeatureNetwork.of(
        "means", lambda x: torch.nn.functional.adaptive_avg_pool2d(x / 255, 2).flatten(1), 12, hash="1"
    )
    monkeypatch.setattr(prepare, "features", lambda name: mean)
    monkeypatch.chdir(tmp_path)
    yield


def test_it_says_what_it_will_do_and_then_what_it_found(run: Path) -> None:
    said = kuosan("evaluate", run, "--steps", 2, "--metrics", "kid", *QUICK)
    assert said.code == 0 and said.err == ""
    for part in (
        "compute: cpu",
        "6 images by dpm_solver_2m, 2 steps (trailing), 2 network evaluations each",
        "against: 6 training images",
        "measured: kid, on means",
        "to make: 6 images, 12 network evaluations",
        "kept in: ",
        "sampling: about",
        "KID x 1000",
        "real images",
        "written: ",
    ):
        assert part in said.out, part
    folder = next((run / "evaluations").glob("dpm_solver_2m-2-n6-train-*"))
    assert {"result.json", "table.md", "table.csv", "sheet.png", "real.png"} == {path.name for path in folder.iterdir()}


def test_the_same_command_again_makes_nothing_and_says_so(run: Path) -> None:
    kuosan("evaluate", run, "--steps", 2, "--metrics", "kid", *QUICK)
    said = kuosan("evaluate", run, "--steps", 2, "--metrics", "kid,prdc", *QUICK)
    assert "to make: 0 images, 0 network evaluations; 6 images are there already" in said.out
    assert "precision" in said.out


def test_a_dry_run_writes_nothing(run: Path) -> None:
    before = tree(run)
    said = kuosan("evaluate", run, "--sweep", "steps=1,2", "--sweep", "sampler=ddim,heun", "--dry-run", *QUICK)
    assert said.code == 0 and "4 combinations of 6 images from the same seeds, 1 to 3 network evaluations" in said.out
    assert "nothing was written" in said.out and tree(run) == before


def test_a_sweep_writes_a_table_and_a_plot(run: Path) -> None:
    said = kuosan("evaluate", run, "--sweep", "steps=1,2", "--sweep", "sampler=ddim,euler", "--metrics", "kid", *QUICK)
    assert said.code == 0, said
    folder = next((run / "evaluations").glob("sweep-steps-sampler-*"))
    told = json.loads((folder / "result.json").read_text())
    assert [one["setting"] for one in told["found"]] == [
        {"steps": steps, "sampler": sampler} for steps in (1, 2) for sampler in ("ddim", "euler")
    ]
    assert (folder / "plot.png").stat().st_size > 10_000 and "plot.png" in said.out and "KID - first" in said.out
    assert len((folder / "table.csv").read_text().splitlines()) == 5


def test_impossible_combinations_are_listed_and_nothing_is_made(run: Path) -> None:
    said = refused(
        "evaluate", run, "--sweep", "sampler=ddim,heun,unipc", "--sweep", "eta=0,1",
        naming=["4 of 6 combinations", "sampler heun, eta 1", "sampler unipc, eta 0"],
    )  # fmt: skip
    assert "sampler ddim" not in said.err and not (run / "evaluations").exists()


def test_ctrl_c_says_what_is_kept_and_the_command_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kuosan.cli.evaluate import Bars

    progress = Bars.progress

    def interrupted(self: Bars, what: str, done: int, of: int) -> None:
        progress(self, what, done, of)
        if what == "sampling" and done > 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(Bars, "progress", interrupted)
    said = kuosan("evaluate", run, "--steps", 2, "--metrics", "kid", *QUICK)
    assert said.code == 130 and "4 of 6 images are kept in" in said.out and "the same command goes on" in said.out
    monkeypatch.setattr(Bars, "progress", progress)
    assert "to make: 2 images" in kuosan("evaluate", run, "--steps", 2, "--metrics", "kid", *QUICK).out


def test_a_folder_of_images_is_measured_against_another(tmp_path: Path) -> None:
    one, other = image_folder(tmp_path / "one", 8), image_folder(tmp_path / "other", 9)
    said = kuosan("evaluate", one, "--against", other, "--metrics", "kid")
    assert said.code == 0, said
    assert "8 images" in said.out and next((tmp_path / "evaluations").glob("one-against-other-*/result.json"))


def test_likelihood_alone_makes_no_images(tmp_path: Path) -> None:
    data, held = image_folder(tmp_path / "pictures", 30), tmp_path / "held"
    assert kuosan("train", data, "--out", held, "--hold-out", 0.4, *TRAIN).code == 0
    said = kuosan(
        "evaluate", held, "--likelihood", "--likelihood-pictures", 4, "--ode-pictures", 2,
        "--ode-steps", 2, "--threads", 1,
    )  # fmt: skip
    assert said.code == 0, said
    for part in ("bits/dim by the variational bound", "bits/dim by the probability-flow ODE", "Bound minus ODE"):
        assert part in said.out
    folder = next((tmp_path / "held" / "evaluations").glob("likelihood-*"))
    told = json.loads((folder / "result.json").read_text())["likelihood"]
    assert told["bound"]["n"] == 4 and told["ode"]["n"] == 2 and told["bound"]["total"]["error"] > 0
    assert {path.name for path in folder.iterdir()} == {"result.json", "table.md", "bound.png"}


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        ([], ["nothing to measure"]),
        (["RUN", "other"], ["one run or folder at a time"]),
        (["nowhere"], ["there is no nowhere"]),
        (["RUN", "--stepz", 3], ["unknown option --stepz", "--steps"]),
        (["RUN", "--metrics", "fid"], ["metric 'fid'", "say frechet", "inception:FILE"]),
        (["RUN", "--features", "inception"], ["inception:PATH"]),
        (["RUN", "--sweep", "stepz=3"], ["did you mean 'steps'"]),
        (["RUN", "--ode-steps", 50], ["--ode-steps = 50 has no effect without likelihood", "--likelihood"]),
        (["RUN", "--ode-steps", 10], ["--ode-steps = 10 has no effect without likelihood", "--likelihood"]),
        (["RUN", "--likelihood", "--steps", 3], ["likelihood alone makes no images"]),
        (["RUN", "--sampler", "dimm"], ["unknown sampler 'dimm'"]),
        (["RUN", "--class", "cat"], ["trained without classes"]),
        (["RUN", "--guidance", 3], ["trained without classes"]),
        (["RUN", "--metrics", "labels"], ["needs a judge"]),
    ],
)
def test_what_cannot_be_done_is_refused(run: Path, words: list[object], naming: list[str]) -> None:
    refused("evaluate", *[run if word == "RUN" else word for word in words], naming=naming)
    assert not (run / "evaluations").exists()


def test_images_that_were_moved_are_asked_for_by_the_command_that_names_them(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "images", 12)
    assert kuosan("train", data, "--out", "moved run", *TRAIN).code == 0
    data.rename(tmp_path / "elsewhere")
    gone = f"was trained on {data}, which is not here"
    refused("evaluate", "moved run", *QUICK, naming=[gone, "kuosan evaluate 'moved run' --data IMAGES", "--against"])
    refused("train", "--out", "moved run", naming=[gone, "kuosan train IMAGES --out 'moved run'"])
    assert kuosan("evaluate", "moved run", "--data", "elsewhere", *QUICK, "--dry-run").code == 0
    assert kuosan("train", "elsewhere", "--out", "moved run", *TRAIN).code == 0


def test_every_setting_is_in_the_help() -> None:
    said = kuosan("evaluate", "--help")
    assert said.code == 0
    for name in ("--against", "--sweep", "--steps", "--guidance", "--precision", "--dry-run", "--help-all"):
        assert name in said.out, name
    every = kuosan("evaluate", "--help-all").out
    for option in VERB.options():
        assert VERB.flag(option) in every, option.key
    for gone in ("--image ", "--strength", "--between", "--train.max_steps"):
        assert gone not in every


def test_several_classes_are_given_with_commas_or_one_by_one() -> None:
    job = read({"request": {"classes": ["cat,dog", "fox"]}}, ["runs/mine"])
    assert job.request.classes == ("cat", "dog", "fox")
