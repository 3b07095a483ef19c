"""Words that the model inside the package has not seen are said before it makes an image of them."""

from __future__ import annotations

import json

import pytest

from kuosan.sample import embedded
from kuosan.sample.request import Request
from kuosan.text.tokens import unfamiliar, word_counts
from shell import kuosan

CAPTIONS = ["a red heart, noto style", "a red car", "two red hearts", "3 cars of red", "heart"]


def test_a_word_counts_once_a_caption_and_small_words_and_marks_do_not() -> None:
    counts = word_counts(CAPTIONS)
    assert counts == {"car": 1, "cars": 1, "heart": 2, "hearts": 1, "noto": 1, "red": 4, "style": 1, "two": 1}


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("red", {}),
        ("a red, RED Red!", {}),
        ("a (red:1.3) potion", {"potion": 0}),
        ("[potion] of (red hearts)", {"potion": 0, "hearts": 1}),
        ("", {}),
        ("the 7", {}),
        ("猫", {"猫": 0}),
    ],
)
def test_words_that_hardly_any_caption_has_are_found_behind_weights_and_capitals(prompt: str, found: dict) -> None:
    assert unfamiliar(prompt, word_counts(CAPTIONS)) == found


def test_the_built_in_model_says_which_words_it_has_not_seen(tmp_path) -> None:
    counts = json.loads((embedded.folder() / embedded.WORDS).read_text())
    rare = next(word for word, count in counts["words"].items() if count == 1 and word.isalpha())
    said = kuosan("sample", f"a potion of {rare}", "-n", 1, "--steps", 1, "--out", tmp_path / "out")
    assert said.code == 0
    assert "'potion' is not among the words that the built-in model has seen" in said.out + said.err
    assert f"'{rare}' was in 1 of the 4,912 captions" in said.out + said.err
    quiet = kuosan("sample", "a red heart", "-n", 1, "--steps", 1, "--out", tmp_path / "quiet")
    assert quiet.code == 0 and "has seen" not in quiet.out + quiet.err


def test_a_negative_prompt_is_read_too_and_several_words_are_one_sentence() -> None:
    said = embedded.warnings(Request(prompts=("a potion", "a red potion"), negative="xyzzy", guidance=3.0))
    assert said == (
        "'potion', 'xyzzy' are not among the words that the built-in model has seen, and will change little",
    )
