from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuosan.errors import Error
from kuosan.networks.text_config import ByteText
from kuosan.text import tokens


def test_words_marks_and_characters_without_spaces_are_tokens() -> None:
    assert tokens.tokenize("A Fox-face, 2nd") == [b"a", b"fox", b"-", b"face", b",", b"2nd"]
    assert [piece.decode() for piece in tokens.tokenize("狐狸 ok")] == ["狐", "狸", "ok"]
    assert [piece.decode() for piece in tokens.tokenize("naïve café")] == ["naïve", "café"]


@given(st.text(max_size=80))
def test_every_text_is_read_whole_in_tokens_of_sixteen_bytes(text: str) -> None:
    found = tokens.tokenize(text)
    assert all(0 < len(piece) <= 16 for piece in found)
    table = tokens.rows(found)
    back = [bytes((row[row > 0] - 1).astype(np.uint8).tolist()) for row in table[1:]]
    assert back == found
    assert table[0, 0] == tokens.BEGIN


def test_a_long_word_is_cut_between_characters() -> None:
    found = tokens.tokenize("ä" * 20)
    assert [len(piece) for piece in found] == [16, 16, 8]
    assert b"".join(found).decode() == "ä" * 20


def test_texts_lie_one_behind_the_other_each_from_its_own_beginning() -> None:
    table, places = tokens.packed(["fox", ""], 8)
    assert table.shape == (3, 16)
    assert (table != 0).any(1).all()
    assert places.tolist() == [0, 2, 3]
    assert table[[0, 2], 0].tolist() == [tokens.BEGIN] * 2


def test_a_text_too_long_is_refused_with_its_length() -> None:
    with pytest.raises(Error, match="9 words and marks, and this model reads 7 at most"):
        tokens.packed(["a b c d e f g h i"], 8)
    assert tokens.longest(["a b c", "a"]) == 8
    with pytest.raises(Error, match="reads 511 at most"):
        tokens.longest(["a " * 600])


@pytest.mark.parametrize("length", [2, 9, 32, 512])
def test_a_length_of_n_reads_the_beginning_and_n_less_one_words(length: int) -> None:
    fits = "a, " * ((length - 1) // 2) + "b" * ((length - 1) % 2)
    ByteText(length=length)
    assert tokens.length(fits) == length and len(tokens.packed([fits], length)[0]) == length
    with pytest.raises(Error) as error:
        tokens.packed([f"{fits} c"], length)
    said = str(error.value)
    assert f"has {length} words and marks, and this model reads {length - 1} at most (text.length = {length}" in said
    assert (f"--model.text.length {length + 1} or more" in said) == (length < 512)
    with pytest.raises(Error, match="at most 512 tokens of a prompt are read, its beginning among them"):
        ByteText(length=513)
