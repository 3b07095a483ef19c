"""How files are understood stays with a run, and a run inside its own data does not learn from itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from kuosan import config as trees
from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.seeds import rng
from kuosan.storage import checkpoint, manifest
from shell import QUICK, kuosan, refused

# What the version before layouts were told apart said of this very folder
FIRST_FINGERPRINT = "4daf42ef4ae263028c3d32fb0bea4dcf"


def pets(root: Path) -> Path:
    """Splits as folders, and captions that only newer versions find."""
    for split, n in (("train", 6), ("test", 3)):
        for kind in ("cat", "dog"):
            (root / split / kind).mkdir(parents=True)
            for i in range(n):
                pixels = rng(0, f"pets {split} {kind} {i}").integers(0, 256, (16, 16, 3)).astype("uint8")
                Image.fromarray(pixels).save(root / split / kind / f"{i}.bmp")
    (root / "train" / "cat" / "0.txt").write_text("lost to 0.aaa in the first version")
    (root / "train" / "cat" / "0.aaa").write_text("{}")
    (root / "train" / "cat" / "1.caption").write_text("not read by the first version")
    (root / "train" / "cat" / "metadata.csv").write_text("file_name,text\n2.bmp,a row\n3.BMP,not found\n")
    return root


def quick(**changed: int) -> list[str]:
    """The settings of a run of seconds, some of them changed."""
    words = [*QUICK]
    for name, value in changed.items():
        words[words.index(f"--{name.replace('_', '-')}") + 1] = str(value)
    return words


def make_older(run: Path) -> None:
    """A run as it was written before it knew of layouts."""
    for path in (run, *checkpoint.checkpoints(run)):
        text = re.sub(r",\s*(layout|split_version): \d+", "", (path / "config.yaml").read_text())
        assert "layout" not in text and "split_version" not in text
        (path / "config.yaml").write_text(text)
        if path != run:
            (path / manifest.NAME).unlink()
            (path / manifest.NAME).write_bytes(manifest.describe(path))


def test_a_run_begun_by_an_older_version_goes_on_with_what_it_understood(tmp_path: Path) -> None:
    data, run = pets(tmp_path / "pets"), tmp_path / "run"
    first = open_images(DataConfig(path=str(data), size=8, channels="rgb", layout=1, split_version=1))
    assert first.fingerprint == FIRST_FINGERPRINT
    assert first.classes == ("test", "train") and first.captions is not None
    assert [text for text in first.captions if text] == ["a row"]
    assert kuosan("train", data, "--out", run, *QUICK, "--data.layout", 1, "--split-version", 1).code == 0
    make_older(run)
    assert checkpoint.load_config(run)["data"]["layout"] == 1
    for words in ((data, *quick(max_steps=4)), ("--max-steps", 5)):  # named again, or taken from the run
        assert kuosan("train", *words, "--out", run).code == 0
        said = kuosan("doctor", run)
        assert said.code == 0 and "2 classes: test 6, train 12." in said.out, said
        assert "images for testing are trained on, because this run was begun so." in " ".join(said.out.split())
    assert trees.load(run / "config.yaml")["data"]["layout"] == 1
    naming = ("data.layout: the run has 1, now 2",)
    refused("train", data, "--out", run, *quick(max_steps=5), "--data.layout", 2, naming=naming)


def test_a_run_inside_its_own_data_learns_from_nothing_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(8):
        pixels = rng(0, f"own data {i}").integers(0, 256, (8, 8, 3)).astype("uint8")
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    words = ["train", ".", "--preview-pictures", 4, "--preview-steps", 1]
    assert kuosan(*words, *quick(max_steps=2, preview_every=2)).code == 0
    run = tmp_path / "runs" / tmp_path.name
    assert checkpoint.load_config(run)["data"]["layout"] == 2
    assert list(run.rglob("*.png"))  # previews lie below the data
    assert kuosan("sample", run, "-n", 2, "--steps", 1, "--out", "made").code == 0
    again = kuosan(*words, *quick(max_steps=4, preview_every=2))
    assert again.code == 0, again
    said = kuosan("doctor", run)
    assert "8 images used" in said.out and "written by kuosan" in said.out, said
    assert len(open_images(DataConfig(path="."))) == 8
