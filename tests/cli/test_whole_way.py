"""Train, go on, sample, look, and make an image again, as a person would type it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from kuosan.sample import recipe as recipes
from shell import QUICK, image_folder, kuosan, refused, tree

SAMPLE = ["--precision", "fp32", "--threads", 1]


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def test_training_says_what_it_will_do_before_and_what_to_do_next(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "pictures")
    said = kuosan("train", images, "--out", tmp_path / "run", *QUICK)
    assert said.code == 0 and said.err == ""
    for part in (
        "compute: cpu",
        "6 images used",
        "model:",
        "predicts x0",
        "training: 3 steps of 4",
        "of memory",
        "run: ",
    ):
        assert part in said.out
    assert f"next: kuosan sample {tmp_path / 'run'}" in said.out
    files = tree(tmp_path / "run")
    assert {"config.yaml", "log.jsonl", "curve.png"} <= set(files)


def test_the_run_alone_goes_on_and_further(run: Path) -> None:
    said = kuosan("train", "--out", run, "--max-steps", 5)
    assert said.code == 0, said
    assert "going on from step 3 of 5" in said.out and "5 steps" in said.out
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_a_finished_run_is_not_trained_again(run: Path) -> None:
    before = {name: data for name, data in tree(run).items() if name.startswith("checkpoints")}
    said = kuosan("train", "--out", run)
    assert said.code == 0
    assert {name: data for name, data in tree(run).items() if name.startswith("checkpoints")} == before


def test_a_grey_run_goes_on_too(tmp_path: Path) -> None:
    words = [word if word != "rgb" else "grey" for word in QUICK]
    assert kuosan("train", image_folder(tmp_path / "grey"), "--out", tmp_path / "run", *words).code == 0
    said = kuosan("train", "--out", tmp_path / "run", "--max-steps", 4)
    assert said.code == 0, said


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    said = kuosan("train", image_folder(tmp_path / "pictures"), "--out", tmp_path / "run", "--dry-run", *QUICK)
    assert said.code == 0 and "nothing was written" in said.out and "training: 3 steps" in said.out
    assert not (tmp_path / "run").exists()


def test_settings_from_a_file_give_way_to_those_on_the_command_line(tmp_path: Path) -> None:
    settings = {"data": {"path": str(image_folder(tmp_path / "pictures"))}, "train": {"lr": 0.5, "seed": 9}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    said = kuosan("train", "--config", tmp_path / "mine.yaml", "--out", tmp_path / "run", "--lr", "1e-3", *QUICK)
    assert said.code == 0, said
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["train"]["lr"] == 1e-3 and stored["train"]["seed"] == 9


def test_init_starts_from_another_runs_weights(run: Path, tmp_path: Path) -> None:
    said = kuosan("train", image_folder(tmp_path / "more"), "--out", tmp_path / "second", "--init", run, *QUICK)
    assert said.code == 0 and "starting from the averaged weights" in said.out


def test_sixteen_images_a_sheet_and_their_recipe_are_written(run: Path) -> None:
    said = kuosan("sample", run, "-n", 16, "--steps", 2, "--seed", 7, *SAMPLE)
    assert said.code == 0, said
    folder = run / "samples" / "dpm_solver_2m-2-seed7"
    assert str(folder) in said.out
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["recipe.json", *[f"seed-{i:08d}.png" for i in range(7, 23)], "sheet.png"]
    with Image.open(folder / "seed-00000007.png") as image:
        assert image.size == (8, 8) and image.mode == "RGB"
        record = json.loads(image.text["kuosan"])  # type: ignore[attr-defined]
        line = image.text["parameters"]  # type: ignore[attr-defined]
    assert "Steps: 2, Sampler: dpm_solver_2m, Seed: 7, Size: 8x8, Model hash: " in line
    assert record["request"]["seed"] == 7 and record["picture"] == 0 and len(record["weights"]) == 64
    with Image.open(folder / "sheet.png") as image:
        assert image.size[0] == image.size[1] > 4 * 100  # 4 x 4, enlarged for people


def test_columns_shape_the_sheet(run: Path) -> None:
    kuosan("sample", run, "-n", 4, "--steps", 1, "--columns", 4, "--out", run / "row", *SAMPLE)
    with Image.open(run / "row" / "sheet.png") as image:
        assert image.size[0] > 3 * image.size[1]


def test_the_animation_has_the_denoising_in_it(run: Path) -> None:
    said = kuosan("sample", run, "-n", 4, "--steps", 6, "--gif", "--out", run / "film", *SAMPLE)
    assert "denoising.gif" in said.out
    with Image.open(run / "film" / "denoising.gif") as film:
        assert film.n_frames == 6  # type: ignore[attr-defined]
        assert film.info["loop"] == 0
        first = np.asarray(film.convert("RGB"), dtype=float)
        film.seek(5)
        last = np.asarray(film.convert("RGB"), dtype=float)
    with Image.open(run / "film" / "sheet.png") as sheet:
        final = np.asarray(sheet, dtype=float)
    assert np.abs(last - final).mean() < np.abs(first - final).mean()


def test_a_second_request_never_overwrites_the_first_ones_images(run: Path) -> None:
    kuosan("sample", run, "-n", 2, "--sampler", "ddim", "--steps", 2, *SAMPLE)
    before = tree(run / "samples" / "ddim-2-seed0")
    said = kuosan("sample", run, "-n", 2, "--sampler", "ddim", "--steps", 2, "--eta", 1, *SAMPLE)
    assert "ddim-2-seed0-2" in said.out and tree(run / "samples" / "ddim-2-seed0") == before
    again = kuosan("sample", run, "-n", 2, "--sampler", "ddim", "--steps", 2, *SAMPLE)
    assert "ddim-2-seed0-2" not in again.out and tree(run / "samples" / "ddim-2-seed0") == before


def test_a_sampler_by_another_tools_name_is_the_same_request(run: Path) -> None:
    said = kuosan("sample", run, "-n", 1, "--seed", 3, "--sampler", "DPM++ 2M", "--steps", 2, *SAMPLE)
    folder = run / "samples" / "dpm_solver_2m-2-seed3"
    before = tree(folder)
    assert said.code == 0 and recipes.read(folder / "seed-00000003.png").request.sampler == "dpm_solver_2m"
    again = kuosan("sample", run, "-n", 1, "--seed", 3, "--sampler", "dpm_solver_2m", "--steps", 2, *SAMPLE)
    assert "seed3-2" not in again.out and tree(folder) == before
    refused("sample", run, "--sampler", "dpmp_2m", *SAMPLE, naming=["did you mean 'dpmpp_2m', here 'dpm_solver_2m'?"])


def test_a_checkpoint_is_sampled_and_stays_as_it_was(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-00000000"
    before = tree(checkpoint)
    said = kuosan("sample", checkpoint, "-n", 1, "--steps", 1, *SAMPLE)
    assert said.code == 0 and "step 0" in said.out
    assert tree(checkpoint) == before and (run / "samples" / "dpm_solver_2m-1-seed0").is_dir()
    refused("sample", run, "-n", 1, "--steps", 1, "--out", checkpoint / "x", *SAMPLE, naming=["inside the checkpoint"])
    assert tree(checkpoint) == before


REQUESTS = {
    "batch": ["-n", 5, "--seed", 5, "--batch", 2],
    "stochastic": ["-n", 3, "--seed", 5, "--sampler", "ddpm"],
    "exact": ["-n", 5, "--seed", 5, "--exact"],
    "between": ["-n", 3, "--sampler", "ddim", "--between", 4, 9],
    "image": ["-n", 3, "--seed", 5, "--image", "IMAGE", "--strength", "0.7"],
    "bf16": ["-n", 3, "--seed", 5, "--precision", "bf16"],
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_like_makes_the_very_same_bytes_again(
    run: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a recipe opens what lies below the working folder
    start = image_folder(tmp_path / "start", 1, side=20) / "0.png"
    words = [start if word == "IMAGE" else word for word in REQUESTS[kind]]
    common = ["--threads", 1] if kind == "bf16" else SAMPLE
    assert kuosan("sample", run, *words, "--steps", 3, "--out", tmp_path / "made", *common).code == 0
    for image in sorted((tmp_path / "made").glob("[sp]*-0*.png")):
        said = kuosan("sample", "--like", image)
        assert said.code == 0, said
        assert image.with_name(f"{image.stem}-again.png").read_bytes() == image.read_bytes(), image.name


def test_like_finds_a_run_that_was_moved_with_its_images(run: Path, tmp_path: Path) -> None:
    kuosan("sample", run, "-n", 1, "--steps", 1, *SAMPLE)
    moved = Path(shutil.move(run, tmp_path / "elsewhere"))
    said = kuosan("sample", "--like", moved / "samples" / "dpm_solver_2m-1-seed0" / "seed-00000000.png")
    assert said.code == 0, said


def test_like_refuses_other_weights_and_another_start(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = image_folder(tmp_path / "start", 2) / "0.png"
    made = tmp_path / "made"
    assert kuosan("sample", run, "-n", 1, "--steps", 2, "--image", start, "--out", made, *SAMPLE).code == 0
    image = made / "seed-00000000.png"
    shutil.copy(tmp_path / "start" / "1.png", start)
    refused("sample", "--like", image, naming=["0.png", "other pixels"])
    start.unlink()
    refused("sample", "--like", image, naming=["0.png"])
    kuosan("train", "--out", run, "--max-steps", 5, "--keep", 2, "--save-every", 1)
    assert not (run / "checkpoints" / "step-00000003").exists()
    refused("sample", "--like", image, naming=["other weights", "step 3", "checkpoint is gone"])
    refused("sample", "--like", image, tmp_path / "nowhere", naming=["nowhere"])


def test_relative_paths_are_looked_for_and_the_message_says_where(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shelf").mkdir()
    shutil.move(run, tmp_path / "shelf" / "own")
    start = image_folder(tmp_path / "shelf" / "start", 1) / "0.png"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path / "shelf")
    words = ["-n", 1, "--steps", 2, "--image", "start/0.png"]
    assert kuosan("sample", "own", *words, *SAMPLE).code == 0
    inside = next((tmp_path / "shelf" / "own" / "samples").rglob("seed-00000000.png"))
    apart = Path(shutil.copy(inside, elsewhere / "mine.png"))
    monkeypatch.chdir(elsewhere)
    # the run above the image shows where the path begins: a stranger's recipe still opens nothing there unasked
    said = refused("sample", "--like", inside, naming=[f"--allow-path {start}", f"in {tmp_path / 'shelf'}", "yours"])
    assert "not made by you" not in said.err
    for allowed in (start, start.parent, tmp_path / "shelf"):
        out = tmp_path / f"{allowed.name}.png"
        out.unlink(missing_ok=True)
        assert kuosan("sample", "--like", inside, "--allow-path", allowed, "--out", out).code == 0
        assert out.read_bytes() == inside.read_bytes()
    # nothing shows it: what was looked for, where, and the ways on
    ways = ["'own'", f"{elsewhere / 'own'}", "the folder in which the image was made", "--allow-path FOLDER"]
    refused("sample", "--like", apart, naming=[*ways, f"kuosan sample RUN --like {apart}"])
    assert kuosan("sample", "--like", apart, "--allow-path", tmp_path / "shelf").code == 0
    assert (elsewhere / "mine-again.png").read_bytes() == inside.read_bytes()
    moved = Path(shutil.move(start, tmp_path / "other.png"))
    looked = [f"{elsewhere / 'start' / '0.png'}", f"{start}", "in that folder", "--allow-path FOLDER"]
    refused("sample", "--like", inside, naming=["the image 'start/0.png'", *looked])
    shutil.move(moved, elsewhere / "0.png")
    assert kuosan("sample", "--like", inside, "--allow-path", elsewhere, "--out", tmp_path / "last.png").code == 0


def test_like_needs_an_image_of_kuosans(run: Path, tmp_path: Path) -> None:
    refused("sample", "--like", run / "curve.png", naming=["curve.png", "no kuosan recipe"])
    refused("sample", "--like", run / "config.yaml", naming=["config.yaml", "no readable PNG"])
    refused("sample", "--like", tmp_path / "none.png", naming=["none.png", "no such image"])
    refused("sample", "--like", run / "curve.png", "--steps", 5, naming=["--steps", "no effect"])
    refused("sample", "--like", run / "curve.png", "--gif", naming=["--gif", "no effect"])
    for option, default in (("-n", 16), ("--seed", 0), ("--sampler", "dpm_solver_2m"), ("--batch", 16)):
        refused("sample", "--like", run / "curve.png", option, default, naming=[f"{option.lstrip('-')}", "no effect"])


def test_doctor_lists_what_would_be_used(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "pictures")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    before = tree(folder)
    said = kuosan("doctor", folder, "--out", tmp_path / "report")
    assert said.code == 0 and "6 images" in said.out
    assert "broken.png" in (tmp_path / "report" / "rejected.csv").read_text()
    assert tree(folder) == before


def test_doctor_shows_how_an_older_run_understands_a_folder(run: Path, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "data" / "train")
    image_folder(tmp_path / "data" / "test", 2)
    new = kuosan("doctor", folder.parent)
    old = kuosan("doctor", folder.parent, "--layout", 1, "--split-version", 1)
    assert new.code == old.code == 0
    assert "layout 1" in old.out and "layout 1" not in new.out
    assert old.out != new.out
    refused("doctor", folder.parent, "--layout", 3, naming=["layout", "3"])
    refused("doctor", folder.parent, "--split-version", 0, naming=["split_version", "1, 2"])
    # of a run: its own folder and settings, but where others are given
    words = ["train", folder.parent, "--out", tmp_path / "older", *QUICK, "--data.layout", 1, "--hold-out", 0.25]
    assert kuosan(*words).code == 0
    said = kuosan("doctor", tmp_path / "older")
    assert said.code == 0 and "is a run" in said.out and "(layout 1, split version 2)" in said.out, said
    words = ["--size", 8, "--channels", "rgb", "--hold-out", 0.25, "--layout", 1]
    assert said.out.split("\n", 1)[1] == kuosan("doctor", folder.parent, *words).out
    said = kuosan("doctor", tmp_path / "older", "--layout", 2, "--split-version", 1)
    assert "(layout 2, split version 1)" in said.out, said
    before = tree(run)
    assert kuosan("doctor", run).code == 0 and tree(run) == before


def test_the_curve_and_the_log_can_be_read(trained_run: Path) -> None:
    with Image.open(trained_run / "curve.png") as image:
        image.load()
        assert min(image.size) > 100
    rows = [json.loads(line) for line in (trained_run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and all(row["loss"] > 0 for row in rows)


def test_a_sheet_is_told_apart_from_a_single_image(run: Path) -> None:
    kuosan("sample", run, "-n", 1, "--steps", 1, *SAMPLE)
    sheet = run / "samples" / "dpm_solver_2m-1-seed0" / "sheet.png"
    refused("sample", "--like", sheet, naming=["sheet.png", "single images", "not its sheets"])


def test_images_between_seeds_are_named_by_both(run: Path) -> None:
    assert kuosan("sample", run, "-n", 3, "--steps", 2, "--between", 4, 9, *SAMPLE).code == 0
    said = kuosan("sample", "--like", run / "samples" / "dpm_solver_2m-2-seeds4-9" / "place-0001.png")
    assert "place 1 between seeds 4 and 9" in said.out, said


def test_commands_to_copy_are_quoted(run: Path, tmp_path: Path) -> None:
    images = image_folder(tmp_path / "my images")
    said = kuosan("train", images, "--out", tmp_path / "my run", *QUICK)
    assert f"kuosan sample '{tmp_path / 'my run'}' -n 16" in said.out
    kuosan("sample", tmp_path / "my run", "-n", 1, "--steps", 1, "--out", tmp_path / "my out", *SAMPLE)
    shutil.rmtree(tmp_path / "my run")
    image = tmp_path / "my out" / "seed-00000000.png"
    refused("sample", "--like", image, naming=[f"kuosan sample RUN --like '{image}'"])


@pytest.mark.parametrize("text", [None, "x: [", "model: {prediction: eps}", "surprise: 1"])
def test_the_runs_copy_of_the_configuration_is_not_needed(run: Path, text: str | None) -> None:
    copy = run / "config.yaml"
    copy.unlink() if text is None else copy.write_text(text)
    assert kuosan("sample", run, "-n", 1, "--steps", 1, *SAMPLE).code == 0
    said = kuosan("train", "--out", run, "--max-steps", 4)
    assert said.code == 0, said
    assert yaml.safe_load(copy.read_text())["model"]["prediction"] == "x0"


def test_before_it_starts_the_network_is_shown_and_what_an_odd_size_costs_it() -> None:
    words = ("--network", "tiny", "--batch", 2, "--dry-run")
    said = kuosan("train", "portraits", "--size", 32, *words)
    assert "network: 3 levels of 16 x 16, 8 x 8, 4 x 4 cells, in patches of 2 x 2 pixels" in said.out, said
    said = kuosan("train", "portraits", "--size", 30, *words)
    assert "network: 1 level of 15 x 15 cells" in said.out and "30 is no multiple of 4, and 32 would have" in said.out
