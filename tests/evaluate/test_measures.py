"""What an evaluation measures is refused before pictures are made for it, and its sheets lie where they belong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from measured import folder, network, train

from kuosan.errors import Error
from kuosan.evaluate.estimate import Estimate
from kuosan.evaluate.measures import chosen
from kuosan.evaluate.result import text
from kuosan.evaluate.run import measure


def test_a_distance_asked_for_with_too_few_pictures_is_refused():
    with pytest.raises(Error, match="at least 6"):
        chosen(["prdc"], 5, 100, 12, True)
    with pytest.raises(Error, match="at least 3"):
        chosen(["kid"], 100, 2, 12, False)
    assert chosen(["kid"], 3, 3, 12, False) == ("kid",)
    assert chosen([], 5, 5, 12, False) == ("kid",)


def test_memorisation_of_too_few_pictures_is_refused_before_any_is_made(tmp_path: Path):
    run = train(tmp_path / "run", folder(tmp_path / "pictures", 60))
    with pytest.raises(Error, match=r"19 made.*9 held out"):
        measure(run, network=network(), n=19, steps=1, metrics=("memorisation",))
    assert not (run / "evaluations").exists()


def test_a_sweep_over_runs_writes_its_sheets_into_the_results_folder(
    plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a", "b"):
        shutil.copytree(plain_run, tmp_path / "r" / name)
    monkeypatch.chdir(tmp_path)
    asked = {"n": 20, "steps": 1, "guidance": 2.0, "metrics": ("memorisation",), "out": "out"}
    measure("r/a", network=network(), sweep=("reference=r/a", "r/b"), **asked)
    found = sorted(path.name for path in Path("out").glob("nearest*"))
    assert found == ["nearest-referencer-a.png", "nearest-referencer-b.png"]


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("precision", 0.99, 0.03, "0.990 +0.010 -0.030"),
        ("recall", 0.01, 0.03, "0.010 +0.030 -0.010"),
        ("coverage", 0.5, 0.03, "0.500 ± 0.030"),
        ("density", 0.99, 0.03, "0.990 ± 0.030"),
        ("kid", 0.0001, 0.003, "0.10 ± 3.00"),
    ],
)
def test_the_error_of_a_share_reaches_neither_below_0_nor_above_1(
    name: str, value: float, error: float, said: str
) -> None:
    assert text(Estimate(value, error), name) == said
