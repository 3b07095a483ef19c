"""A run on classes that commit 47b8b58 made: main opens, samples, measures and resumes it as that commit did.

tests/train/labels-47b8b58.zip holds its images in folders of classes with captions beside them, its save of step 4, and
what that commit came to at step 8. It was begun by

    kuosan train images --out labels WORDS
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

import kuosan as package
from kuosan import checkpoint, weights
from kuosan.data.config import as_begun
from shell import kuosan, refused

ZIP = Path(__file__).parent / "labels-47b8b58.zip"
WORDS = [
    *("--size", 8, "--labels", "--head-channels", 2, "--model.network.channels", 2, "--multipliers", "1"),
    *("--attention", "false", "--groups", 2, "--model.network.blocks", 1, "--hold-out", 0.2, "--max-steps", 8),
    *("--batch", 4, "--save-every", 4, "--keep", 5, "--evaluate-every", 4, "--preview-every", 0, "--warmup", 2),
    *("--precision", "fp32", "--threads", 1, "--workers", 0),
]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `labels` beside `images`, where the shell is."""
    with ZipFile(ZIP) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_old_run_goes_on_with_its_own_losses(old: Path) -> None:
    before = checkpoint.load_config(old / "labels")
    said = kuosan("train", "images", "--out", "labels", *WORDS)
    assert said.code == 0 and "going on from step 4 of 8" in said.out, said
    assert "19 to train on, 5 held out" in said.out and "warning" not in said.out + said.err, said
    found, wanted = (rows(old / name / "log.jsonl") for name in ("labels", "whole"))
    assert [row["step"] for row in found] == list(range(1, 9))
    for row, then in zip(found, wanted):
        for name in ("loss", "grad_norm", "lr"):
            assert row[name] == pytest.approx(then[name], rel=1e-5), (row, then)
        assert ("held_out" in row) == ("held_out" in then)
        if "held_out" in then:
            assert row["held_out"]["loss"] == pytest.approx(then["held_out"]["loss"], rel=1e-5)  # type: ignore[index]
    ema = weights.read(old / "whole" / "ema.safetensors")
    for name, value in checkpoint.load(old / "labels").ema.items():
        torch.testing.assert_close(value, ema[name], rtol=1e-5, atol=1e-5)  # 1.6e-6 seen between two processors
    now = checkpoint.load_config(old / "labels")
    assert now["data"] | before["data"] == now["data"], "what it was begun with stays"
    assert (now["data"]["layout"], now["data"]["split_version"], now["defaults"]) == (1, 1, 1)


def test_an_old_run_goes_on_by_its_folder_alone_and_not_with_another_version(old: Path) -> None:
    refused("train", "images", "--out", "labels", *WORDS, "--split-version", 2, naming=["split_version", "1", "2"])
    refused("train", "images", "--out", "labels", *WORDS, "--layout", 2, naming=["layout", "1", "2"])
    shutil.copytree(old / "labels", old / "other")
    (old / "other" / "config.yaml").unlink()
    for name in ("labels", "other"):
        said = kuosan("train", "--out", name, "--max-steps", 5)
        assert said.code == 0 and "going on from step 4 of 5" in said.out, said
        assert rows(old / name / "log.jsonl")[4]["loss"] == pytest.approx(
            rows(old / "whole" / "log.jsonl")[4]["loss"], rel=1e-5
        )


def test_an_old_run_is_opened_sampled_exported_and_measured(old: Path) -> None:
    assert package.load(old / "labels").reading.data.split_version == 1
    quick = ["-n", 3, "--steps", 2]
    assert kuosan("sample", "labels", *quick, "--class", "cats", "--out", "out").code == 0
    assert kuosan("sample", "labels", "--like", "out/seed-00000000.png").code == 0
    said = kuosan("evaluate", "labels", *quick, "--metrics", "kid", "--against", "train", "--out", "measured")
    assert said.code == 0 and "changed" not in said.out + said.err, said
    assert kuosan("export", "labels", "exported").code == 0
    assert kuosan("sample", "exported", *quick, "--out", "other").code == 0
    tree = checkpoint.load_config(old / "exported")
    assert tree == as_begun(tree) and tree["data"]["layout"] == 1
