"""Settings as options: named, typed, documented, and read from a shell in every way one writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuosan import config
from kuosan.errors import Error
from kuosan.options import ELSEWHERE, field_docs, options, parse, words
from kuosan.sample.job import SampleJob
from kuosan.sample.restore import RestoreJob
from kuosan.train.config import SHORT, RunConfig
from kuosan.train.job import TrainOptions
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


@dataclass(frozen=True)
class Renamed:
    images: int = field(default=4, metadata={"key": "pictures"})  # how many
    side: int = 1  # of each


@dataclass(frozen=True)
class Outer:
    inner: Renamed = field(default_factory=Renamed)


@pytest.mark.parametrize("flag", ["--images", "--pictures", "--inner.images", "--inner.pictures"])
def test_a_renamed_option_is_typed_by_either_name_and_stored_by_the_old_one(flag: str) -> None:
    tree, _ = parse([flag, "7"], Outer)
    assert tree == {"inner": {"pictures": "7"}}
    made = config.build(Outer, tree)
    assert made.inner.images == 7
    assert config.plain(made) == {"inner": {"pictures": 7, "side": 1}}
    assert config.build(Outer, {"inner": {"images": 7}}) == made
    assert options(Outer)["inner.pictures"].name == "inner.images"
    with pytest.raises(Error, match=r"inner.images is given twice: 1, and as pictures 2"):
        config.build(Outer, {"inner": {"images": 1, "pictures": 2}})
    assert config.as_stored(Outer, {"inner": {"images": 7, "side": 2}}) == {"inner": {"pictures": 7, "side": 2}}
    with pytest.raises(Error, match=r"Did you mean --inner.images|Did you mean --images"):
        parse(["--imagse", "7"], Outer)


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


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_of_another_tool_is_answered_with_ours_or_with_what_to_do_instead(name: str) -> None:
    ours, cure = ELSEWHERE[name]
    answers = 0
    for cls, short in ((TrainOptions, SHORT), (SampleJob, {}), (RestoreJob, {})):
        every = options(cls).values()
        known = {*options(cls), *short, *(option.name.rpartition(".")[2] for option in every)}
        known |= {flag.replace("-", "_") for option in every for flag in option.flags}
        if name in known:
            answers += 1
            continue
        with pytest.raises(Error, match=f"option --{name.replace('_', '-')}\\.") as refused:
            parse([f"--{name.replace('_', '-')}", "1"], cls, short)
        there = [each for each in ours if each in known]
        said = str(refused.value)
        if there:
            assert f"Did you mean --{there[0].replace('_', '-')}? {cure}".rstrip() in said, said
        elif not ours:
            assert said.endswith(f". {cure}") and "Did you mean" not in said
        answers += bool(there) or not ours
    assert answers or name in ("model_path", "checkpoint", "ckpt", "ckpt_path"), "of no use to anybody"


@pytest.mark.parametrize(
    ("typed", "meant"),
    {
        "learning_rate": "--lr?", "resolution": "--size?", "num-epochs": "--max-steps? Steps are counted",
        "resume": "the same command again", "wandb": "log.jsonl", "lora": "no adapters yet",
        "mixed-precision": "--precision?",
        "gradient-accumulation-steps": "--micro-batch?", "output-dir": "--out?",
        "per-device-train-batch-size": "--batch?",
    }.items(),
)  # fmt: skip
def test_what_people_type_to_train_elsewhere_is_understood(typed: str, meant: str) -> None:
    with pytest.raises(Error) as refused:
        parse([f"--{typed}", "1"], TrainOptions, SHORT)
    assert meant.lower() in str(refused.value).lower()


@pytest.mark.parametrize(
    ("typed", "meant"),
    {
        "num-inference-steps": "steps", "cfg-scale": "guidance", "negative-prompt": "negative", "height": "size",
        "width": "size", "num-images": "n", "scheduler": "sampler", "denoising-strength": "strength",
    }.items(),
)  # fmt: skip
def test_what_people_type_to_sample_elsewhere_is_understood(typed: str, meant: str) -> None:
    with pytest.raises(Error, match=rf"Did you mean --{meant}\?"):
        parse([f"--{typed}", "1"], SampleJob)


@dataclass(frozen=True)
class Lettered:
    n: int = field(default=1, metadata={"flags": ("-n",)})  # how many
    ends: tuple[int, int] | None = None  # two of them
    less: str | None = None  # words
    loud: bool = False  # or quiet


@pytest.mark.parametrize(
    ("line", "tree", "rest"),
    [
        ("-n4", {"n": "4"}, []),
        ("-n=4 a", {"n": "4"}, ["a"]),
        ("--n 4", {"n": "4"}, []),
        ("--ends 3 7 -n 2", {"ends": ["3", "7"], "n": "2"}, []),
        ("--ends 3,7 x", {"ends": ["3", "7"]}, ["x"]),
        ("a -- -b --n", {}, ["a", "-b", "--n"]),
    ],
)
def test_letters_pairs_and_words_behind_two_dashes(line: str, tree: dict[str, Any], rest: list[str]) -> None:
    assert parse(line.split(), Lettered) == (tree, rest)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("-n", r"^-n needs a value"),
        ("--less -n 4", r"--less needs a value"),
        ("--ends 3 -n 2", r"--ends 3 needs 2 values"),
        ("--ends 3", r"--ends 3 needs 2 values"),
        ("-n4 -n 5", r"^-n is given twice: 4 and 5"),
        ("--no-loud false", r"--no-loud says no already: leave 'false' out"),
        ("-foo", r"'-foo' is no option; .* stands behind `--`"),
        ("--no-n 4", r"unknown option --no-n"),
    ],
)
def test_what_is_typed_is_named_as_it_is_typed(line: str, says: str) -> None:
    with pytest.raises(Error, match=says) as refused:
        parse(line.split(), Lettered)
    assert "---" not in str(refused.value)
