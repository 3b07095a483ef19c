"""docs/data.md covers every setting and kind of file, and its example runs."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from kuosan.data.config import DataConfig, Resize
from kuosan.data.decoding import FORMATS

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text("utf-8")


@pytest.mark.parametrize("name", [field.name for field in fields(DataConfig)])
def test_every_setting_has_its_row_with_its_default(name: str) -> None:
    row = re.search(rf"^\| `{name}` \| (.*?) \|", PAGE, re.M)
    assert row, f"docs/data.md has no row for {name}"
    default = DataConfig.__dataclass_fields__[name].default
    told = row[1].strip("`").replace(",", "")
    assert told == ("decided" if default is None else str(default).lower())


def test_every_rule_and_format_is_named() -> None:
    for rule in get_args(Resize):
        assert f"| `{rule}` |" in PAGE
    for kind in FORMATS:
        assert kind.lower() in PAGE.lower()


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(code, {})
    assert "4,096 images used" in capsys.readouterr().out
