"""The script that compares two versions: what counts as a difference, and how large its tables are."""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def freeze() -> ModuleType:
    before = dict(os.environ)
    spec = importlib.util.spec_from_file_location("freeze", Path(__file__).parents[2] / "tools" / "freeze.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["freeze"] = module
    spec.loader.exec_module(module)
    os.environ.clear()
    os.environ.update(before)
    return module


OLD = {
    "help": {"sample": ["--steps", "--s-churn", "-n"]},
    "runs": {"pixels": {"losses": [0.5, 0.25], "weights": "ab"}},
    "images": {"ddim": {"seed-00000005.png": "cd"}},
    "results": {"evaluate": {"/kid": 0.125, "/floor": float("nan")}},
    "refusals": {"steps": {"code": 2, "traceback": False, "thing": True, "value": False}},
}
CHANGES = [
    (("help", "sample"), ["--steps", "-n"], "without s-churn"),
    (("runs", "pixels", "losses"), [0.5, 0.26], "runs: pixels: another losses"),
    (("runs", "pixels", "weights"), "ac", "runs: pixels: another weights"),
    (("images", "ddim", "seed-00000005.png"), "ce", "images: ddim"),
    (("images", "ddim"), {}, "images: ddim"),
    (("results", "evaluate", "/kid"), 0.1251, "/kid: 0.125"),
    (("results", "evaluate"), {}, "results: evaluate"),
    (("refusals", "steps", "code"), 0, "refusals: steps"),
    (("refusals", "steps", "traceback"), True, "refusals: steps"),
    (("refusals", "steps", "thing"), False, "refusals: steps"),
]
SAME = [
    (("help", "sample"), ["--n", "--s_churn", "--steps", "--new"]),
    (("refusals", "steps", "value"), True),
    (("results", "evaluate", "/kid"), 0.125 + 1e-15),
    (("runs", "another"), {}),
]


def changed(place: tuple[str, ...], value: object) -> dict[str, object]:
    new = copy.deepcopy(OLD)
    inner: dict[str, object] = new  # type: ignore[assignment]
    for key in place[:-1]:
        inner = inner[key]  # type: ignore[assignment]
    inner[place[-1]] = value
    return new  # type: ignore[return-value]


@pytest.mark.parametrize(("place", "value", "said"), CHANGES)
def test_a_difference_is_named(freeze: ModuleType, place: tuple[str, ...], value: object, said: str) -> None:
    lines = list(freeze.differences(OLD, changed(place, value)))
    assert len(lines) == 1 and said in lines[0]


@pytest.mark.parametrize(("place", "value"), SAME)
def test_what_is_no_difference_is_silent(freeze: ModuleType, place: tuple[str, ...], value: object) -> None:
    assert list(freeze.differences(OLD, changed(place, value))) == []


def test_the_tables_are_as_large_as_a_comparison_needs(freeze: ModuleType) -> None:
    names = [name for name, *_ in freeze.cases()]
    assert len(names) == len(set(names)) >= 300
    assert len(freeze.IMAGES) >= 40 and len(freeze.RUNS) >= 8 and len(freeze.RESULTS) >= 3


def test_an_option_typed_twice_counts_as_typed_last(freeze: ModuleType) -> None:
    words = ["plain", "--hold-out", "0", "--labels", "--size", "16", "--hold-out", "0.3"]
    assert freeze.latest(words) == ["plain", "--labels", "--size", "16", "--hold-out", "0.3"]
