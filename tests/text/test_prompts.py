"""Weights within prompts: what users of other tools write means the same here, and slips are named with their place."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuosan.errors import Error
from kuosan.text.tokens import MORE, escaped, parse


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("", []),
        ("a fox", [("a fox", 1)]),
        ("a (fox:1.3) runs", [("a ", 1), ("fox", 1.3), (" runs", 1)]),
        ("(fox)", [("fox", 1.1)]),
        ("[fox]", [("fox", 1 / 1.1)]),
        ("((fox))", [("fox", 1.1 * 1.1)]),
        ("(a [fox:no])", [("a ", 1.1), ("fox:no", 1)]),  # 1.1 / 1.1
        ("((fox:1.5) dog:0.5)", [("fox", 0.75), (" dog", 0.5)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("(fox:1)", [("fox", 1)]),
        ("(fox:0)", [("fox", 0)]),
        ("(fox: 1.25 )", [("fox", 1.25)]),
        ("(fox:.5)", [("fox", 0.5)]),
        ("(fox:1e-1)", [("fox", 0.1)]),
        (r"\(fox\)", [("(fox)", 1)]),
        (r"(fox \(red\):1.2)", [("fox (red)", 1.2)]),
        (r"(fox\):1.2)", [("fox)", 1.2)]),
        (r"a \\ b", [("a \\ b", 1)]),
        (r"a \n b", [(r"a \n b", 1)]),
        ("12:30", [("12:30", 1)]),
        ("(ratio 1:x)", [("ratio 1:x", 1.1)]),
        ("(fox:1_0)", [("fox:1_0", 1.1)]),
        ("()a(:2)", [("a", 1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("((b:1.5:1.2))", [("b:1.5", 1.2 * 1.1)]),  # what is left of the inner bracket is no weight of the outer one
        ("(狐狸:1.3)在雪里", [("狐狸", 1.3), ("在雪里", 1)]),
    ],
)
def test_prompts_mean_what_their_writers_mean(prompt: str, parts: list[tuple[str, float]]) -> None:
    found = parse(prompt)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts], rel=1e-12)


@given(st.text())
def test_an_escaped_text_reads_as_that_text_with_weight_one(text: str) -> None:
    assert parse(escaped(text)) == ([(text, 1.0)] if text else [])


@given(st.lists(st.tuples(st.text(min_size=1), st.floats(0, 1e6)), max_size=5))
def test_weighted_texts_come_back(parts: list[tuple[str, float]]) -> None:
    found = parse("".join(f"({escaped(text)}:{weight!r})" for text, weight in parts))
    assert "".join(text for text, _ in found) == "".join(text for text, _ in parts)
    characters = [weight for text, weight in parts for _ in text]
    assert [weight for text, weight in found for _ in text] == characters


@given(st.text(), st.integers(0, 12))
def test_brackets_within_brackets_multiply(text: str, depth: int) -> None:
    inner = escaped(text) + " x"
    assert parse("(" * depth + inner + ")" * depth) == [(text + " x", pytest.approx(MORE**depth))]
    assert parse("[" * depth + inner + "]" * depth) == [(text + " x", pytest.approx(MORE**-depth))]


@given(st.text(alphabet="()[]\\:.1ax ", max_size=30))
def test_anything_is_either_read_or_refused_as_the_users_mistake(prompt: str) -> None:
    try:
        parts = parse(prompt)
    except Error as error:
        assert "character" in str(error)
    else:
        assert all(text and weight >= 0 for text, weight in parts)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a (fox", r"has a '\(' without its partner at character 3: .*write \\\("),
        ("a fox)", r"has a '\)' without its partner at character 6"),
        ("(a [fox)", r"has a '\)' without its partner at character 8"),
        ("(fox:-1)", r"the weight -1 in the bracket at character 1: a weight is a finite number from 0"),
        ("a (b) (fox:nan)", r"the weight nan in the bracket at character 7"),
        ("(fox:inf)", r"the weight inf "),
        ("(fox:1e999)", r"the weight 1e999 "),
        ("((fox:1e200):1e200)", r"the weight inf in the bracket at character 1"),
        ("[dog:cat:0.5]", r"\[\.\.\.:0\.5\] at character 1: square brackets take no number"),
    ],
)
def test_slips_are_named_with_their_place(prompt: str, said: str) -> None:
    with pytest.raises(Error, match=said):
        parse(prompt)
    with pytest.raises(Error, match=r"\.\.\.' has "):
        parse(prompt + " and more" * 20)


@pytest.mark.parametrize(
    "made",
    [
        lambda n: "(" * n + ")" * n,
        lambda n: "([" * (n // 2) + "a" + "])" * (n // 2),
        lambda n: "(a" * n + ")" * n,
        lambda n: "(" * n,
        lambda n: r"\(" * n,
        lambda n: "(a:" * n,
        lambda n: "(:" + "1" * n + "x)",
        lambda n: "(" + ": " * n + ")",
    ],
)
def test_a_prompt_of_brackets_is_read_in_time_that_grows_as_its_length(made: Callable[[int], str]) -> None:
    def steps(count: int) -> int:
        """Lines of Python that reading takes."""
        seen = 0

        def trace(*_: object) -> Any:
            nonlocal seen
            seen += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with contextlib.suppress(Error):
                parse(made(count))
        finally:
            sys.settrace(before)
        return seen

    assert steps(4000) < 16 * steps(500) + 1000  # eight times as long; a square would be 64 times
