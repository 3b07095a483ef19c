"""Fields that say when they count: refused without their owners, whatever the class."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import pytest

from kuosan.data.config import DataConfig
from kuosan.errors import Error
from kuosan.evaluate.comparison import ComparisonConfig
from kuosan.evaluate.config import EvaluateConfig, ReconstructionConfig
from kuosan.options import ANY, SET, Only, check, one_of, only
from kuosan.sample.job import SampleJob
from kuosan.sample.request import Request, Restoration
from kuosan.tasks.task import Labelled
from kuosan.train.config import AutoencoderSettings, TrainConfig


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Settings:
    kind: str = field(default="plain", metadata=one_of("plain", "fancy", "odd"))
    gain: float = 0.0
    colour: str = field(default="red", metadata=only(kind="fancy"))
    size: int = field(default=3, metadata=only(kind=("fancy", "odd"), because="plain ones are all alike"))
    slope: str = field(default="auto", metadata=only(gain=ANY, idle=("none",)))
    both: bool = field(default=False, metadata=only(kind="odd", gain=ANY))
    inner: Inner = field(default_factory=Inner, metadata=only(kind="fancy"))

    def __post_init__(self) -> None:
        check(self, "of.")


@pytest.mark.parametrize(
    "given",
    [
        {}, {"kind": "fancy", "colour": "blue", "size": 4, "inner": Inner(2)}, {"kind": "odd", "size": 4}, {"size": 3},
        {"slope": "none"}, {"gain": 2.0, "slope": "steep"}, {"kind": "odd", "gain": 1.0, "both": True},
    ],
)  # fmt: skip
def test_what_counts_is_taken(given: dict[str, Any]) -> None:
    Settings(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "plian"}, r"of\.kind 'plian'.*plain"),
        (
            {"colour": "blue"},
            r"of\.colour = blue has no effect with kind plain: it belongs to kind fancy; leave it",
        ),
        ({"size": 4}, r"of\.size = 4 has .* it belongs to kind fancy or odd: plain ones are all alike; leave it out"),
        ({"slope": "steep"}, r"of\.slope = steep has no effect with gain = 0\.0: leave it out, or give --of\.gain"),
        ({"kind": "odd", "both": True}, r"of\.both = True has no effect with gain = 0\.0"),
        ({"gain": 1.0, "both": True}, r"of\.both = True has no effect with kind plain"),
        ({"inner": Inner(2)}, r"of\.inner\.depth = 2 has no effect with kind plain"),
    ],
)
def test_what_has_no_effect_is_refused_with_its_owner_and_the_cure(given: dict[str, Any], said: str) -> None:
    with pytest.raises(Error, match=said):
        Settings(**given)


@dataclass(frozen=True)
class Asked:
    kinds: tuple[str, ...] = field(default=(), metadata=one_of("a", "b"))
    scale: float | None = None
    away: str | None = field(default=None, metadata=only(scale=SET))
    judge: str | None = field(default=None, metadata=only(kinds=("b", ())))
    like: str | None = None
    steps: int = field(default=50, metadata=only(like=None))
    fast: bool = False
    inner: Inner = field(default_factory=Inner, metadata=only(fast=True))
    seed: int = field(default=0, metadata=only(like=None, otherwise="with --like, which has one"))


@pytest.mark.parametrize(
    ("given", "typed"),
    [
        ({"scale": 0.0, "away": "x"}, {"away": "x"}), ({"judge": "x"}, {"judge": "x"}),
        ({"judge": "x", "kinds": ("a", "b")}, {}), ({"steps": 3}, {"steps": "3"}), ({"like": "p"}, {"like": "p"}),
        ({"fast": True}, {"inner": {"depth": "1"}}), ({}, {"inner": {}}), ({"like": "p"}, None),
    ],
)  # fmt: skip
def test_what_was_typed_with_effect_is_taken(given: dict[str, Any], typed: dict[str, Any] | None) -> None:
    check(Asked(**given), given=typed)


@pytest.mark.parametrize(
    ("given", "typed", "said"),
    [
        ({"kinds": ("a", "c")}, None, r"unknown kinds 'c'.*Allowed: a, b"),
        ({"away": "x"}, None, r"^away = x has no effect without scale: leave it out, or give --scale a value\.$"),
        ({"judge": "x", "kinds": ("a",)}, None, r"^judge = x has no effect with kinds a: it belongs to kinds b; leave"),
        ({"like": "p", "steps": 3}, None, r"^steps = 3 has no effect with --like p; leave one of them out\.$"),
        ({"like": "p"}, {"steps": "50"}, r"^steps = 50 has no effect with --like p"),
        (
            {},
            {"inner": {"depth": "1"}},
            r"^inner\.depth = 1 has no effect without fast: leave it out, or give --fast\.$",
        ),
        ({"inner": Inner(2)}, None, r"^inner\.depth = 2 has no effect without fast"),
        ({"like": "p", "seed": 3}, None, r"^seed = 3 has no effect with --like, which has one\.$"),
    ],
)
def test_what_was_typed_without_effect_is_refused_be_it_the_default(
    given: dict[str, Any], typed: dict[str, Any] | None, said: str
) -> None:
    with pytest.raises(Error, match=said):
        check(Asked(**given), given=typed)


DECLARED = [DataConfig, TrainConfig, AutoencoderSettings, EvaluateConfig, ReconstructionConfig, ComparisonConfig]


@pytest.mark.parametrize("cls", [*DECLARED, Request, Restoration, SampleJob, Labelled])
def test_rules_name_fields_that_there_are(cls: type) -> None:
    assert is_dataclass(cls)
    names = {each.name for each in fields(cls)}
    rules: list[Only] = [each.metadata["only"] for each in fields(cls) if "only" in each.metadata]
    assert rules and all(set(rule.owners) <= names for rule in rules)
