"""Training from captions, end to end through the shell, on images of 8 pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kuosan import load
from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.errors import Error
from kuosan.networks.text_config import ByteText
from kuosan.storage import checkpoint
from kuosan.train.text_conditioning import Pieces, captions, settled
from shell import QUICK, kuosan

TEXT = ["--text", "bytes", "--model.text.width", "16", "--model.text.depth", "1", "--model.text.heads", "2"]
WITH_PREVIEW = [*QUICK[: QUICK.index("--preview-every")], "--preview-every", "3", *QUICK[QUICK.index("--warmup") :]]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": (250, 250, 250)}


def _folder(path: Path, lacking: int = 0, n: int = 40) -> Path:
    path.mkdir()
    draw = np.random.default_rng(0)
    rows = []
    for i in range(n):
        name = list(COLOURS)[i % 4]
        noise = draw.integers(-20, 20, (8, 8, 3))
        Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)).save(path / f"{i:02d}.png")
        if i >= lacking:
            rows.append({"file_name": f"{i:02d}.png", "text": f"a {name} square"})
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_shows_its_captions_learns_and_is_sampled_by_words(tmp_path: Path) -> None:
    folder, run = _folder(tmp_path / "squares"), tmp_path / "run"
    said = kuosan("train", folder, "--out", run, *WITH_PREVIEW, *TEXT, "--preview-pictures", "2")
    assert said.code == 0, said.err
    assert said.out.count("caption: ") == 5
    assert " -> a red square" in said.out
    assert '"WHAT TO MAKE" --guidance 3' in said.out
    config = checkpoint.load_config(run)["model"]
    assert (config["text"]["length"], config["task"]["text"], config["task"]["drop"]) == (8, True, 0.1)
    assert (run / "samples" / "step-00000003.png").is_file()
    made = kuosan("sample", run, "a red square", "-n", "2", "--steps", "2", "--guidance", "2")
    assert made.code == 0, made.err
    several = load(run).sample(2, steps=2, prompt=["a red square", "a blue square"])
    assert several.shape == (2, 3, 8, 8)


def test_a_stopped_text_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "squares")
    few = [word if word != "3" else "2" for word in QUICK]
    kuosan("train", folder, "--out", tmp_path / "whole", *QUICK, *TEXT)
    kuosan("train", folder, "--out", tmp_path / "parts", *few, *TEXT)
    said = kuosan("train", folder, "--out", tmp_path / "parts", *QUICK, *TEXT)
    assert said.code == 0, said.err
    one, other = (checkpoint.load(tmp_path / name).network for name in ("whole", "parts"))
    assert any(name.startswith("text.") for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dropped_captions_are_the_empty_text() -> None:
    table = np.zeros((6, 16), np.int16)
    table[:3, 0], table[3:5, 0], table[5, 0] = 5, 6, 257  # of 3 tokens, of 2, and the empty text
    pieces = Pieces(table, np.array([0, 3, 5, 6]))
    told = pieces.of(np.array([0, 1, 0]), np.array([False, False, True]))["tokens"]
    assert told.shape == (3, 3, 16)  # cut behind the longest
    assert told[2, 0, 0] == 257
    assert not told[2, 1:].any()


@pytest.mark.parametrize("lacking", [40, 20])
def test_missing_captions_are_refused_with_their_count(tmp_path: Path, lacking: int) -> None:
    folder = _folder(tmp_path / "squares", lacking)
    said = kuosan("train", folder, "--out", tmp_path / "run", *QUICK, *TEXT)
    assert said.code == 2
    wanted = "has no captions" if lacking == 40 else "20 of 40 images"
    assert wanted in said.err
    assert not (tmp_path / "run").exists()
    if lacking == 20:
        told = kuosan("train", folder, "--out", tmp_path / "run", *QUICK, *TEXT, "--uncaptioned", "empty")
        assert told.code == 0, told.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--uncaptioned", "empty"], "no effect without text"),
        (["--model.task.text", "true"], "follows from model.text"),
        (["--drop", "0.2"], "no effect without classes or captions"),
        ([*TEXT, "--model.text.length", "3"], "3 words and marks, and this model reads 2 at most"),
        ([*TEXT, "--model.network.context-width", "8"], "follows from the text"),
        (["--text", "encoder"], "text.encoder is not given"),
        (["--text", "words"], "allowed: none, bytes, encoder"),
        ([*TEXT, "--objective", "classifier"], "has no effect on a classifier"),
    ],
)
def test_settings_of_text_without_sense_are_refused(tmp_path: Path, options: list[str], words: str) -> None:
    said = kuosan("train", _folder(tmp_path / "squares", n=8), "--out", tmp_path / "run", *QUICK, *options)
    assert said.code == 2
    assert words in said.err
    assert not (tmp_path / "run").exists()


def test_the_longest_caption_decides_how_many_tokens_are_read(tmp_path: Path) -> None:
    images = open_images(DataConfig(path=str(_folder(tmp_path / "squares"))))
    tree = settled(ByteText(), images, "refuse", None)
    assert tree is not None
    assert tree["length"] == 8
    assert captions(images)[0].endswith(" square")
    with pytest.raises(Error, match="words and marks"):
        settled(ByteText(length=2), images, "refuse", None)
