"""Settings as options: named, typed, documented, and read from a shell in every way one writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuosan import config
from kuosan.errors import Error
from kuosan.options import field_docs, options, parse, words
from kuosan.train.config import RunConfig
from work import calls


@dataclass(frozen=True)
class Round:
    """A circle.

    Attributes:
        radius: how far it reaches,
            from the middle.
    """

    kind: Literal["round"] = "round"
    radius: float = 1.0


@dataclass(frozen=True)
class Square:
    kind: Literal["square"] = "square"
    side: float = 2.0  # of it


@dataclass(frozen=True)
class Deep:
    shape: Round | Square = field(default_factory=Round)  # what is drawn
    name: str = ""  # what it is called
    level: int = 0  # may be negative


@dataclass(frozen=True)
class Whole:
    deep: Deep = field(default_factory=Deep)
    sizes: tuple[int, ...] = (1, 2)  # several
    marks: tuple[bool, ...] = ()  # several
    loud: bool = False  # or quiet
    most: float | None = None  # none: no limit
    name: str = "x"  # of the whole


def test_every_setting_of_a_run_has_a_line_of_documentation() -> None:
    silent = [key for key, option in options(RunConfig).items() if not option.doc.strip()]
    assert not silent


def test_settings_are_listed_by_dotted_key_with_all_members_of_a_union() -> None:
    found = options(Whole)
    assert list(found) == [
        "deep.shape.kind", "deep.shape.radius", "deep.shape.side", "deep.name", "deep.level", "sizes", "marks", "loud",
        "most", "name",
    ]  # fmt: skip
    assert found["deep.shape.kind"].type_text == "round|square" and found["deep.shape.kind"].doc == "what is drawn"
    assert found["deep.shape.radius"].doc == "how far it reaches, from the middle."
    assert (found["sizes"].type_text, found["sizes"].default_text) == ("list of int", "1,2")
    assert (found["loud"].type_text, found["loud"].default_text) == ("bool", "false")
    assert (found["most"].type_text, found["most"].default_text) == ("float", "")


def test_documentation_is_an_attributes_line_or_the_comment_behind_the_field() -> None:
    assert field_docs(Round) == {"radius": "how far it reaches, from the middle.", "kind": ""}
    assert field_docs(Square)["side"] == "of it"


@pytest.mark.parametrize(
    ("line", "tree"),
    [
        ("--deep.level -3", {"deep": {"level": "-3"}}),
        ("--level=-3", {"deep": {"level": "-3"}}),
        ("--most -1.5e-3", {"most": "-1.5e-3"}),
        ("--sizes 4 --sizes 5", {"sizes": ["4", "5"]}),
        ("--sizes 4,5 --sizes 6", {"sizes": ["4", "5", "6"]}),
        ("--marks true,false", {"marks": ["true", "false"]}),
        ("--loud", {"loud": True}),
        ("--loud false", {"loud": False}),
        ("--loud=yes", {"loud": True}),
        ("--no-loud", {"loud": False}),
        ("--no-loud=false", {"loud": True}),
        ("--side 3 --kind square", {"deep": {"shape": {"side": "3", "kind": "square"}}}),
        ("--deep.name=--odd=name", {"deep": {"name": "--odd=name"}}),
        ("--deep.name 扩散", {"deep": {"name": "扩散"}}),
        ("--name outer", {"name": "outer"}),
    ],
)
def test_a_setting_is_read_in_every_way_one_writes_it(line: str, tree: dict[str, Any]) -> None:
    assert parse(line.split(" "), Whole) == (tree, [])


def test_words_that_belong_to_no_option_are_left_over() -> None:
    assert parse(["a", "--loud", "b", "--level", "3", "c d"], Whole) == (
        {"loud": True, "deep": {"level": "3"}}, ["a", "b", "c d"]
    )  # fmt: skip
    assert parse([], Whole) == ({}, [])


def test_short_names_win() -> None:
    assert parse(["--name", "n"], Whole, {"name": "deep.name"})[0] == {"deep": {"name": "n"}}


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["--levle", "3"], "unknown option --levle. Did you mean --level"),
        (["--zzzzzz"], "unknown option --zzzzzz. `--help`"),
        (["--level"], "--level needs a value"),
        (["--level", "--loud"], "--level needs a value"),
        (["--level="], "no value behind the equals sign"),
        (["--level", "1", "--level", "2"], "given twice: 1 and 2"),
        (["--loud=perhaps"], "'perhaps' is not a yes or no"),
        (["-l", "3"], "'-l' is no option"),
        (["--"], "'--' is no option"),
        (["--5"], "'--5' is no option"),
        (["--no-level", "3"], "unknown option --no-level"),
    ],
)
def test_what_cannot_be_read_is_refused(tokens: list[str], said: str) -> None:
    with pytest.raises(Error) as caught:
        parse(tokens, Whole)
    assert said in str(caught.value)


def test_an_ambiguous_key_names_all_it_could_be() -> None:
    with pytest.raises(Error, match=r"--model.schedule.betas, --train.betas; write one of them in full"):
        parse(["--betas", "0.9"], RunConfig)


@settings(deadline=None)
@given(st.lists(st.text(max_size=12), max_size=6))
def test_any_words_are_read_or_refused_but_never_break(tokens: list[str]) -> None:
    try:
        tree, rest = parse(tokens, RunConfig)
    except Error:
        return
    assert len(rest) <= len(tokens)
    assert set(tree) <= {"data", "model", "train", "compute"}


VALUES = {
    "deep.level": st.integers(-(10**9), 10**9),
    "deep.name": st.text(min_size=1, max_size=20),
    "sizes": st.lists(st.integers(-99, 99), min_size=1, max_size=4).map(tuple),
    "marks": st.lists(st.booleans(), min_size=1, max_size=4).map(tuple),
    "loud": st.booleans(),
    "most": st.floats(allow_nan=False, allow_infinity=False),
}


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_values_survive_the_way_through_the_command_line(given_: dict[str, Any]) -> None:
    tokens = [word for key, value in given_.items() for word in words(key, value)]
    tree, rest = parse(tokens, Whole)
    built = config.build(Whole, tree)
    assert rest == []
    for key, value in given_.items():
        found: Any = built
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value


def test_a_command_line_is_read_with_little_work_once_its_class_is_known() -> None:
    def read() -> None:
        assert parse(["--data.path=x", "--train.max_steps=3"], RunConfig)[0] == {
            "data": {"path": "x"},
            "train": {"max_steps": "3"},
        }

    read()
    assert calls(read) < 10_000  # 150,000 where each field's annotation is evaluated again
