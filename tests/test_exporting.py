"""A model as one folder to hand on: it makes the pictures that the run makes, and says nothing of where things lay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kuosan import checkpoint, load
from kuosan import config as trees
from kuosan.errors import Error
from kuosan.exporting import export
from shell import QUICK, kuosan


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exporting") / "run"
    said = kuosan("train", "portraits", "--out", out, *QUICK, "--text", "bytes", "--model.text.width", "16",
                  "--model.text.depth", "1", "--model.text.heads", "2")  # fmt: skip
    assert said.code == 0, said.err
    return out


def test_an_exported_model_makes_the_same_pictures(run: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(run, parts=("ema",))
    out = export(saved, tmp_path / "model", bf16=False)
    own, theirs = (load(path).sample(2, steps=2, prompt="a person") for path in (run, out))
    assert torch.equal(own, theirs)
    with pytest.raises(Error, match="is there already"):
        export(saved, out)


def test_bf16_halves_the_weights_and_hardly_moves_a_picture(run: Path, tmp_path: Path) -> None:
    said = kuosan("export", run, tmp_path / "model")
    assert said.code == 0, said.err
    sizes = [(path / "ema.safetensors").stat().st_size for path in (checkpoint.folder(run, 3), tmp_path / "model")]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    own, theirs = (load(path).sample(2, steps=2, prompt="a person") for path in (run, tmp_path / "model"))
    assert (own - theirs).abs().mean() < 0.05


def test_nothing_of_the_machine_is_in_it_and_the_card_is_the_one_given(run: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("# Mine\n")
    assert kuosan("export", run, tmp_path / "model", "--card", card).code == 0
    assert (tmp_path / "model" / "README.md").read_text() == "# Mine\n"
    config = trees.load(tmp_path / "model" / "config.yaml")
    assert config["data"]["path"] == "portraits"
    assert str(tmp_path) not in (tmp_path / "model" / "config.yaml").read_text()


def test_an_exported_model_cannot_be_gone_on_with_but_begun_from(run: Path, tmp_path: Path) -> None:
    out = export(checkpoint.load(run, parts=("ema",)), tmp_path / "model")
    with pytest.raises(Error, match="exported model: it can be sampled"):
        checkpoint.load(out)
    said = kuosan("export", run, out)
    assert said.code == 2
    assert "is there already" in said.err
