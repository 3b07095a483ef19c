"""Fields that say when they count: refused without their owners, whatever the class."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import pytest

from kuosan.data.config import DataConfig
from kuosan.errors import Error
from kuosan.options import ANY, Only, check, one_of, only
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
        ({"inner": Inner(2)}, r"of\.inner has no effect with kind plain"),
    ],
)
def test_what_has_no_effect_is_refused_with_its_owner_and_the_cure(given: dict[str, Any], said: str) -> None:
    with pytest.raises(Error, match=said):
        Settings(**given)


@pytest.mark.parametrize("cls", [DataConfig, TrainConfig, AutoencoderSettings])
def test_rules_name_fields_that_there_are(cls: type) -> None:
    assert is_dataclass(cls)
    names = {each.name for each in fields(cls)}
    rules: list[Only] = [each.metadata["only"] for each in fields(cls) if "only" in each.metadata]
    assert rules and all(set(rule.owners) <= names for rule in rules)
