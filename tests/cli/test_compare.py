"""`kuosan compare`, as one would type it: what it says, writes and keeps; what it refuses, with the cure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kuosan.evaluate import compare as comparing
from kuosan.evaluate.comparison import ComparisonConfig
from kuosan.evaluate.plan import compare
from kuosan.evaluate.train_overlap import Schooling, chosen
from kuosan.sample.generate import Sampling, frames_of
from kuosan.storage import checkpoint, outputs
from shell import QUICK as TRAIN
from shell import image_folder, kuosan, refused, smooth_folder

QUICK = ["-n", 3, "--variants", 2, "--batch", 4, "--precision", "fp32", "--threads", 1]
SHIFTS = {"shift_r", "shift_g", "shift_b"}
ALWAYS = {"psnr", "psnr_mean", "perceptual", *SHIFTS}


class Means:
    """The difference of mean colours, in place of a network's distance."""

    name, hash, resizing = "means", "1" * 64, "not resized"

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.float().mean(dim=(2, 3)) - y.float().mean(dim=(2, 3))).abs().mean(1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `whole`, a model of whole images, `twice`, which enlarges, and the `images` of both."""
    home = tmp_path_factory.mktemp("compared")
    for name, more in (("whole", ()), ("twice", ("--task", "super_resolution", "--scale", 2))):
        more = (*more, "--hold-out", 0)  # the images are few: all are trained on
        data = home / "pictures"
        if not data.exists():
            image_folder(data, 6)
        said = kuosan("train", data, "--out", home / name, *TRAIN, *more)
        assert said.code == 0, said
    return home


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Images that no run has seen, larger than the models'."""
    return smooth_folder(tmp_path / "others", 4, 16)


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A distance that costs nothing; what is written here is written into a scratch folder."""
    monkeypatch.setattr(comparing, "perceptual", lambda name: Means())
    monkeypatch.chdir(tmp_path)
    yield


def test_enlarging_by_a_trained_model_a_held_one_and_by_rule(runs: Path, others: Path) -> None:
    words = ["--with", runs / "twice", "--with", f"{runs / 'whole'}:ddnm,steps=3", "--with", f"{runs / 'whole'}:pigdm"]
    said = kuosan("compare", others, "--upscale", 2, *words, *QUICK)
    assert said.code == 0 and said.err == "", said
    for part in (
        "images: 3 of",
        "8x8 colour, 2 times smaller by area",
        "contestant: twice: as it was trained, ddim, 50 steps, 50 network evaluations an answer",
        "contestant: whole: ddnm: ddnm, ddim, 3 steps, 3 network evaluations an answer",
        "each with its gradient",
        "2 answers to each image, 6 by each contestant, 918 network evaluations",
        "The truth's own consistency is 0.",
        "PSNR - first",
        "written: ",
    ):
        assert part in said.out, f"{part!r} is missing in: {said.out}"
    (folder,) = Path("comparisons").iterdir()
    assert {path.name for path in folder.iterdir()} == {"result.json", "table.md", "sheet.png"}
    told = json.loads((folder / "result.json").read_text())
    assert [one["name"] for one in told["rules"]] == ["bicubic", "nearest"]
    assert [one["name"] for one in told["contestants"]] == ["twice", "whole: ddnm", "whole: pigdm"]
    assert len(told["pictures"]) == 3 and told["lacking"] == [] and told["features"]["hash"] == "1" * 64
    for one in told["contestants"]:
        assert set(one["values"]) == ALWAYS | {"consistency", "spread", "diversity"}
        assert all(len(values) == 3 for values in one["values"].values())
        assert len(one["made"]["weights"]) == 64 and one["made"]["request"]["restoration"]["upscale"] == 2
    assert set(told["rules"][0]["values"]) == ALWAYS | {"consistency"}
    first, second, _ = told["contestants"]
    more = np.subtract(second["values"]["psnr"], first["values"]["psnr"]).mean()
    assert second["figures"]["psnr_more"]["value"] == pytest.approx(more)
    assert "psnr_more" not in first["figures"]
    table = (folder / "table.md").read_text()
    assert all(f"| {name} |" in table for name in ("bicubic", "nearest", "twice", "whole: ddnm", "whole: pigdm"))
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width >= 7 * 128 and sheet.height >= 3 * 128


def test_holes_are_filled_and_what_is_known_stays(runs: Path, others: Path) -> None:
    words = ["--with", f"{runs / 'whole'}:repaint,steps=6,jumps=2,jump_length=2", "--with", f"{runs / 'whole'},steps=2"]
    said = kuosan("compare", others, "--mask", "half,sparse", *words, *QUICK, "--out", "filled")
    assert said.code == 0 and said.err == "", said
    told = json.loads(Path("filled/result.json").read_text())
    assert [one["name"] for one in told["rules"]] == ["nearest known", "harmonic"]
    for one in told["contestants"]:
        assert one["values"]["consistency"] == pytest.approx([0, 0, 0], abs=1e-3)
        assert "psnr_hole" in one["values"]
    assert [one["made"]["method"] for one in told["contestants"]] == ["repaint", "pigdm"]


def test_answers_do_not_depend_on_the_batch_and_those_of_one_run_share_noise(runs: Path, others: Path) -> None:
    asked = [f"{runs / 'whole'}:ddnm,steps=2", f"{runs / 'whole'}:ddnm,steps=2,eta=0.85"]
    compute = {"precision": "fp32", "threads": 1}
    found = [
        compare(others, asked, mask="box", n=4, variants=3, batch=batch, out=f"batch-{batch}", compute=compute)
        for batch in (1, 16)
    ]
    for name in ("psnr", "spread", "shift_r"):
        one, other = (result["whole: ddnm, steps 2"].values[name] for result in found)
        assert one == pytest.approx(other, abs=0.02)
        assert found[0]["whole: ddnm, steps 2, eta 0.85"].values[name] == found[0]["whole: ddnm, steps 2"].values[name]


def test_one_answer_to_a_noisy_image_has_neither_spread_nor_consistency(runs: Path, others: Path) -> None:
    result = compare(others, [f"{runs / 'whole'},steps=2"], noise=20, n=2, variants=1, distance=Means())
    assert [one.name for one in result.everybody] == ["as it is", "whole"]
    assert set(result.contestants[0].values) == ALWAYS and result.floor is None


def test_images_that_a_run_was_trained_on_are_refused(runs: Path, tmp_path: Path) -> None:
    words = ["--upscale", 2, "--with", runs / "twice,steps=2", *QUICK]
    said = refused("compare", runs / "pictures", *words, naming=["3 of the 3 images", "--unseen", "--force"])
    assert f"trained on by {runs / 'twice'}" in said.err and said.err.count(".png") == 3
    copies = tmp_path / "copies"
    copies.mkdir()
    for path in (runs / "pictures").iterdir():
        with Image.open(path) as image:
            image.save(copies / f"{path.stem}.bmp")  # the same pixels in another file
    refused("compare", copies, *words, naming=["3 of the 3 images were trained on by", "--unseen"])
    forced = kuosan("compare", copies, *words, "--force", "--dry-run")
    assert forced.code == 0 and "warning: 3 of the 3 images were trained on by" in forced.out
    assert not Path("comparisons").exists()


def test_unseen_leaves_training_images_out(runs: Path, others: Path) -> None:
    for path in (runs / "pictures").iterdir():
        shutil.copy(path, others / f"seen-{path.name}")
    words = ["--upscale", 2, "--with", runs / "twice", "-n", 10, "--unseen", "--dry-run"]
    said = kuosan("compare", others, *words)
    assert said.code == 0 and "6 images are left out: they were trained on" in said.out, said
    assert "there are 4 such images, not 10: all are taken" in said.out


def test_only_the_training_part_of_a_run_counts(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "some", 30)
    config = ComparisonConfig(str(folder), ("run",), upscale=2, n=30, unseen=True)
    found = chosen(config, (3, 8, 8), {"run": Schooling({"path": str(folder), "hold_out": 0.5}, None)})
    assert 2 <= len(found.ids) < 28
    portraits = ComparisonConfig("portraits", ("run",), upscale=2, n=400)
    data = {"path": "portraits", "size": 32}
    held = chosen(portraits, (3, 32, 32), {"run": Schooling(data, None)})
    assert len(held.ids) == 346 and set(held.ids) == set(held.images.held_out)


def test_data_that_are_gone_or_changed_are_said_aloud(runs: Path, others: Path, tmp_path: Path) -> None:
    config = ComparisonConfig(str(others), ("run",), upscale=2, n=4)
    gone = chosen(config, (3, 8, 8), {"run": Schooling({"path": str(tmp_path / "gone")}, "x")})
    assert "is not here: whether it saw these images is not known" in gone.notes[0]
    changed = chosen(config, (3, 8, 8), {"run": Schooling({"path": str(runs / "pictures")}, "x")})
    assert "has changed since run was trained on it" in changed.notes[0]


def test_a_stop_keeps_who_was_done(runs: Path, others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = frames_of, list[str]()

    def stopping(asked: Sampling) -> Iterator[object]:
        calls.append("")
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(asked)

    monkeypatch.setattr(comparing, "frames_of", stopping)
    words = ["--with", f"{runs / 'whole'}:ddnm,steps=2", "--with", f"{runs / 'twice'},steps=2"]
    said = kuosan("compare", others, "--upscale", 2, *words, *QUICK, "--out", "stopped")
    assert said.code == 130 and "contestants that were done are kept in stopped" in said.out
    told = json.loads(Path("stopped/result.json").read_text())
    assert [one["name"] for one in told["contestants"]] == ["whole: ddnm"] and told["lacking"] == ["twice"]
    made = {path.name for path in Path("stopped").iterdir()}
    assert made == {"result.json", "table.md", "sheet.png", outputs.UNFINISHED}


def test_mistakes_are_refused_at_once(runs: Path, others: Path, trained_run: Path, tmp_path: Path) -> None:
    whole, twice = runs / "whole", runs / "twice"
    for words, naming in (
        ([others, "--upscale", 2], ["nobody to compare", "--with"]),
        ([others, "--with", whole], ["nothing to restore"]),
        ([tmp_path / "none", "--upscale", 2, "--with", whole], ["there is no", "none"]),
        ([others, "--upscale", 2, "--with", tmp_path / "none:ddnm"], ["there is no run", "none"]),
        ([others, "--upscale", 4, "--with", twice], [f"--with {twice}: upscale = 4", "--upscale 2"]),
        ([others, "--mask", "half", "--with", twice], ["trained for super_resolution only"]),
        ([others, "--upscale", 2, "--with", f"{whole}:repaint"], ["repaint fills holes"]),
        ([others, "--mask", "half", "--with", f"{whole}:repaint,sampler=ddim"], ["sampler 'ddim' with method repaint"]),
        ([others, "--upscale", 3, "--with", whole], ["upscale = 3", "must divide both sides"]),
        ([others, "--mask", "4,4,8,8", "--with", whole], ["mask 4,4,8,8 is no part of the images, 8x8"]),
    ):
        refused("compare", *words, *QUICK, naming=naming)
    assert not Path("comparisons").exists()


def test_contestants_of_several_shapes_are_refused(runs: Path, others: Path, tmp_path: Path) -> None:
    small = [word if word != "rgb" else "grey" for word in TRAIN]
    assert kuosan("train", runs / "pictures", "--out", tmp_path / "grey", *small).code == 0
    words = ["--with", runs / "whole", "--with", tmp_path / "grey", "--upscale", 2]
    refused("compare", others, *words, naming=["several shapes", "(3, 8, 8)", "(1, 8, 8)"])
    alone = ["--with", tmp_path / "grey", "--colorise"]
    refused("compare", others, *alone, naming=["grey"])


def test_the_weights_it_names_are_the_checkpoints(runs: Path, others: Path) -> None:
    saved = checkpoint.load(runs / "whole", parts=())
    result = compare(others, [saved.path], upscale=2, n=2, variants=1, distance=Means(), compute={"threads": 1})
    (one,) = result.contestants
    assert one.name == f"whole {saved.path.name}" and one.made["step"] == saved.step
    assert torch.tensor(one.values["psnr"]).isfinite().all() and result.shape == (3, 8, 8)
