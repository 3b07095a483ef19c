"""`kuosan sample` by words: which word is the run, which the prompt, and what the model inside the package does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kuosan.cli.sample import _words
from kuosan.data.pixels import grid, read_png_text
from kuosan.errors import Error
from kuosan.sample import embedded
from kuosan.sample.request import Request
from kuosan.sample.write import enlarged
from shell import QUICK, kuosan


def test_the_first_bare_word_is_the_run_if_it_is_there_or_looks_like_a_path(tmp_path: Path) -> None:
    there = str(tmp_path)
    assert _words([there], []) == (tmp_path, [])
    assert _words([there, "a fox"], []) == (tmp_path, ["a fox"])
    assert _words(["runs/nothing", "a fox"], []) == (Path("runs/nothing"), ["a fox"])
    assert _words(["fox"], []) == (None, ["fox"])
    assert _words([there], ["a fox", "a cat"]) == (tmp_path, ["a fox", "a cat"])
    with pytest.raises(Error, match='put a prompt in quotes, "a fox"'):
        _words(["a", "fox"], [])
    with pytest.raises(Error, match="given twice"):
        _words(["a fox"], ["a cat"])


def test_without_a_run_and_words_the_cure_is_said() -> None:
    said = kuosan("sample", "-n", "2")
    assert said.code == 2
    assert "no model given" in said.err
    assert "a heart" in said.err


def test_the_usual_request_of_the_embedded_model_is_guided_unless_said_otherwise() -> None:
    assert embedded.usual(Request(prompts=("a fox",))).guidance == embedded.GUIDANCE
    assert embedded.usual(Request(prompts=("a fox",), guidance=1.0)).guidance == 1.0
    assert embedded.name(Request(prompts=("A fox, fluent style!",), seed=3)) == "a-fox-fluent-style-seed3"
    assert embedded.name(Request(prompts=("狐狸",))) == "狐狸-seed0"


def test_prompts_of_a_run_take_turns_and_are_written_into_each_image(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert kuosan("train", "portraits", "--out", run, *QUICK, "--text", "bytes", "--model.text.width", "16",
                  "--model.text.depth", "1", "--model.text.heads", "2").code == 0  # fmt: skip
    out = tmp_path / "out"
    said = kuosan("sample", run, "--prompt", "a person", "--prompt", "a (hat:1.2)", "-n", "3", "--steps", "2",
                  "--guidance", "2", "--negative", "sad", "--out", out)  # fmt: skip
    assert said.code == 0, said.err
    texts = [read_png_text(out / f"seed-{seed:08d}.png") for seed in range(3)]
    assert [text["parameters"].splitlines()[0] for text in texts] == ["a person", "a (hat:1.2)", "a person"]
    assert json.loads(texts[1]["kuosan"])["request"]["negative"] == "sad"
    images = [np.asarray(Image.open(out / f"seed-{seed:08d}.png")) for seed in range(3)]
    sheet = grid(enlarged(np.stack(images)), labels=["a person", "a (hat:1.2)", "a person"])
    assert np.array_equal(np.asarray(Image.open(out / "sheet.png")), sheet)
    again = kuosan("sample", run, "--like", out / "seed-00000001.png", "--out", tmp_path / "again.png")
    assert again.code == 0, again.err
    assert (tmp_path / "again.png").read_bytes() == (out / "seed-00000001.png").read_bytes()
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all(row["images_per_s"] > 0 for row in rows), "the first step's speed is known too"
    fewer = kuosan(
        "sample", run, "--prompt", "a", "--prompt", "b", "--prompt", "c", "-n", "2", "--out", tmp_path / "no"
    )
    assert fewer.code == 2
    assert "-n 2 with 3 prompts would leave out 'c' and those after it: ask for -n 3 or more" in fewer.err
    assert not (tmp_path / "no").exists()
    refused = kuosan("sample", run, "a " * 200)
    assert refused.code == 2
    assert "words and marks, and this model reads" in refused.err


def test_a_bare_word_that_is_no_run_is_a_prompt_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = kuosan("sample", "heart", "-n", "1", "--steps", "2")
    assert said.code == 0, said.err
    assert "there is no run 'heart' here: it is read as a prompt" in said.out
    assert "is read as a prompt" not in kuosan("sample", "a heart", "-n", "1", "--steps", "2").out
    assert _words(["a black/white cat"], []) == (None, ["a black/white cat"])
    assert "the prompt is empty" in kuosan("sample", "").err


def test_what_guidance_one_leaves_without_effect_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = kuosan("sample", "a heart", "--guidance", "1", "--negative", "blue", "-n", "1", "--steps", "2")
    assert said.code == 2
    assert "negative has no effect with guidance 1" in said.err
