"""The text-to-image model inside the package: there, small, credited, and making what it is asked for in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import kuosan
from kuosan import config as trees
from kuosan.sample import embedded
from kuosan.sample.write import of_run
from kuosan.storage.checkpoint import load_config
from shell import kuosan as shell

MOST = 8_000_000  # bytes in all


def test_it_is_small_whole_and_credited() -> None:
    folder = embedded.folder()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MOST
    card = (folder / "README.md").read_text(encoding="utf-8")
    for credit in ("Noto Emoji", "Apache", "Fluent", "MIT"):
        assert credit in card
    config = trees.dump(load_config(folder))
    assert "/" not in json.dumps(trees.load(folder / "config.yaml")["data"]["path"])
    assert "/work" not in config
    assert "/root" not in config


def test_words_and_seeds_make_different_images_of_the_models_size() -> None:
    model = kuosan.load(embedded.NAME)
    assert model.name == embedded.NAME
    made = model.sample(2, prompts=["a red heart, fluent style", "a cat, animal, noto style"], steps=6, guidance=3.0)
    assert made.shape == (2, 3, 64, 64)
    assert bool(made.isfinite().all())
    assert (made[0] - made[1]).abs().mean() > 0.02
    corners = made[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() > 0.5  # drawn on white


def test_a_red_heart_is_redder_than_a_green_one() -> None:
    model = kuosan.load(embedded.NAME)
    made = model.sample(8, prompts=["red heart", "green heart"], steps=8, guidance=3.0)
    redness = (made[:, 0] - made[:, 1]).mean((1, 2))
    assert redness[0::2].mean() > redness[1::2].mean() + 0.1


def test_the_shell_uses_it_where_no_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = shell("sample", "a cat, noto style", "-n", "2", "--steps", "4")
    assert said.code == 0, said.err
    folder = tmp_path / "pictures" / "a-cat-noto-style-seed0"
    first = folder / "seed-00000000.png"
    assert first.is_file()
    again = shell("sample", "--like", first, "--out", tmp_path / "again.png")
    assert again.code == 0, again.err
    assert (tmp_path / "again.png").read_bytes() == first.read_bytes()
    other = shell("sample", "a cat, noto style", "-n", "2", "--steps", "5")
    assert other.code == 0, other.err
    assert (tmp_path / "pictures" / "a-cat-noto-style-seed0-2").is_dir()  # another recipe's images stay


@pytest.mark.parametrize(
    ("lies_there", "meant"),
    [("", True), ("embedded/restored/a.png", True), ("embedded/config.yaml", False), ("embedded/manifest.json", False),
     ("embedded/checkpoints/step-00000001/state.json", False), ("embedded", True)],
)  # fmt: skip
def test_only_a_run_of_its_name_takes_its_place(
    lies_there: str, meant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if lies_there:
        Path(lies_there).parent.mkdir(parents=True, exist_ok=True)
        Path(lies_there).write_text("x")
    assert embedded.is_meant("embedded") == meant
    assert not embedded.is_meant("other")


def test_no_results_go_into_the_package_or_an_exported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("exported").mkdir()
    Path("exported/manifest.json").write_text("{}")
    places = {"embedded": "pictures/embedded-x", "exported": "pictures/exported-x", "run": "run/inversions"}
    for run, place in places.items():
        assert of_run(Path(run), "inversions", "{}-x") == Path(place)
    assert of_run(Path("run/checkpoints/step-00000001"), "inversions", "{}-x").resolve() == tmp_path / "run/inversions"
    image = Image.new("RGB", (64, 64), "red")
    image.save("red.png")
    shell("invert", "embedded", "red.png", "--steps", "1")  # refused, after the folder was claimed
    shell("restore", "embedded", "red.png", "--noise", "20", "--steps", "2")
    assert not Path("embedded").exists()
    assert shell("sample", "a cat", "-n", "1", "--steps", "1").code == 0
