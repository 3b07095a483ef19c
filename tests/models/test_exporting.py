"""A model as one folder to hand on: it makes the images that the run makes, and says nothing of where things lay."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

import pytest
import torch
from PIL import Image

import kuosan as kuosan_api
from kuosan import config as trees
from kuosan import load
from kuosan.errors import Error
from kuosan.models.export import export, use
from kuosan.storage import checkpoint
from kuosan.train.config import RunConfig
from kuosan.train.resume import refuse_changes
from shell import QUICK, kuosan


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exporting") / "run"
    said = kuosan("train", "portraits", "--out", out, *QUICK, "--text", "bytes", "--model.text.width", "16",
                  "--model.text.depth", "1", "--model.text.heads", "2")  # fmt: skip
    assert said.code == 0, said.err
    return out


def test_an_exported_model_makes_the_same_images(run: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(run, parts=("ema",))
    out = export(saved, tmp_path / "model", bf16=False)
    own, theirs = (load(path).sample(2, steps=2, prompt="a person") for path in (run, out))
    assert torch.equal(own, theirs)
    with pytest.raises(Error, match="is there already"):
        export(saved, out)


def test_bf16_halves_the_weights_and_hardly_moves_an_image(run: Path, tmp_path: Path) -> None:
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


def test_of_a_text_encoder_the_name_is_kept_and_not_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="text encoders need transformers (pip install transformers)")
    from text.made_encoders import bert

    bert(tmp_path / "mine" / "words")
    (tmp_path / "cats").mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), (20 * i, 90, 200)).save(tmp_path / "cats" / f"{i}.png")
        (tmp_path / "cats" / f"{i}.txt").write_text("a red fox")
    said = kuosan("train", tmp_path / "cats", "--out", tmp_path / "run", *QUICK, "--text", "encoder", "--encoder",
                  tmp_path / "mine" / "words", "--data.cache", tmp_path / "cache")  # fmt: skip
    assert said.code == 0, said.err
    out = export(checkpoint.load(tmp_path / "run", parts=("ema",)), tmp_path / "model", bf16=False)
    written = [path.read_text() for path in out.iterdir() if path.suffix != ".safetensors"]
    assert not any(str(tmp_path) in text for text in written)
    with pytest.raises(Error, match="there is no text encoder 'words'"):
        load(out)
    monkeypatch.chdir(tmp_path / "mine")
    own, theirs = (load(path).sample(1, steps=2, prompt="a cat") for path in (tmp_path / "run", out))
    assert torch.equal(own, theirs)


def test_a_text_encoder_may_have_moved_when_a_run_goes_on() -> None:
    text = {"kind": "encoder", "encoder": "/here/words", "width": 16, "weights": "a" * 64}
    at = trees.plain(trees.build(RunConfig, {"model": {"text": text}}))
    moved = trees.merge(at, {"model": {"text": {"encoder": "/there/words"}}})
    assert refuse_changes(at, moved, "run") == ["model.text.encoder: /here/words -> /there/words"]
    with pytest.raises(Error, match=r"model.text.weights: the run has"):
        refuse_changes(at, trees.merge(moved, {"model": {"text": {"weights": "b" * 64}}}), "run")


def test_what_an_export_says_to_do_next_works(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = kuosan("export", run, "model")
    assert "next: kuosan sample model" in said.out
    made = kuosan("sample", "model", "a person", "-n", "1", "--steps", "2")
    assert made.code == 0, made.err
    assert (tmp_path / "pictures" / "model-dpm_solver_2m-2-seed0" / "seed-00000000.png").is_file()
    assert load(tmp_path / "model").sample(1, steps=1).shape == (1, 3, 8, 8)  # nothing was written into it


CLASSES = {"labels": True, "class_names": ["tabby cat", "dog"]}


@pytest.mark.parametrize(
    ("model", "command"),
    [
        ({}, "kuosan sample 'my model' -n 16"),
        ({"task": CLASSES}, "kuosan sample 'my model' -n 16 --class 'tabby cat' --guidance 3"),
        ({"task": {**CLASSES, "drop": 0.0}}, "kuosan sample 'my model' -n 16 --class 'tabby cat'"),
        ({"task": {"text": True, "drop": 0.1}}, "kuosan sample 'my model' \"WHAT TO MAKE\" --guidance 3"),
        (
            {"task": {"kind": "super_resolution", "scale": 4, **CLASSES}},
            "kuosan restore 'my model' IMAGE --upscale 4 --class 'tabby cat' --guidance 3",
        ),
        ({"task": {"kind": "inpainting"}}, "kuosan restore 'my model' IMAGE --mask MASK"),
        ({"network": {"kind": "autoencoder"}}, "kuosan train IMAGES --codec 'my model'"),
        (
            {"network": {"kind": "classifier"}, "task": CLASSES},
            "kuosan sample RUN --classifier 'my model' --class 'tabby cat'",
        ),
        ({"network": {"kind": "classifier", "noisy": False}}, "kuosan evaluate RUN --judge 'my model'"),
        (
            {"network": {"kind": "own", "name": "Small"}},
            "kuosan.load('my model', network=Small(...)).sample(16) in Python: its network is your own",
        ),
        (
            {"network": {"kind": "own", "name": "Small"}, "task": {"kind": "super_resolution", "scale": 2}},
            "kuosan.load('my model', network=Small(...)).restore(images, upscale=2) in Python: its network is your own",
        ),
    ],
)
def test_a_model_is_used_as_what_it_is(model: dict[str, Any], command: str) -> None:
    assert use(model, quote("my model"))[1] == command


class Small(torch.nn.Conv2d):
    """A network of one's own."""

    def __init__(self) -> None:
        super().__init__(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> the same shape."""
        return super().forward(x)


def test_the_export_of_ones_own_network_says_the_python_that_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"max_steps": 1, "batch": 2, "preview_every": 0, "evaluate_every": 0}
    kuosan_api.fit(Small(), "portraits", out="own", **settings)
    said = kuosan("export", "own", "model")
    (line,) = [line for line in said.out.splitlines() if line.startswith("next: ")]
    code = (
        line.removeprefix("next: ")
        .partition(" in Python")[0]
        .replace("(...)", "()")
        .replace("sample(16)", "sample(1, steps=1)")
    )
    made = eval(code, {"kuosan": kuosan_api, "Small": Small})
    assert made.shape == (1, 3, 32, 32)
    assert code.partition(".sample")[0].split(", ")[0] in (tmp_path / "model" / "README.md").read_text().replace(
        "THIS_FOLDER", "model"
    )
