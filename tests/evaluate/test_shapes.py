"""A run on aspect-ratio buckets is measured at one of its shapes, against real images of that shape alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from measured import Heard, kept_rows, network

from kuosan.errors import Error
from kuosan.evaluate.config import EvaluateConfig
from kuosan.evaluate.job import EvaluateJob
from kuosan.evaluate.plan import plan_evaluate
from kuosan.evaluate.result import Result
from kuosan.evaluate.run import measure
from kuosan.sample.request import Request
from train.made_runs import go, mixed

SMALL: dict[str, Any] = {"n": 8, "batch": 4, "steps": 2, "precision": "fp32", "metrics": ("kid",)}
BUCKETS = {"data.resize": "buckets", "data.size": 16, "train.max_steps": 3, "data.hold_out": 0.2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    mixed(folder / "data", (20, 14, 9, 9, 9))
    mixed(folder / "others", (12, 3, 3, 3, 3))
    go(folder / "run", folder / "data", BUCKETS)
    return folder / "run"


def evaluated(run: Path, **options: Any) -> Result:
    return measure(run, network=network(), **{**SMALL, **options})


def made(run: Path) -> set[tuple[int, ...]]:
    """Shapes of all images that were kept."""
    return {kept_rows(path.parent).shape[1:] for path in run.rglob("images.rows")}


@pytest.mark.parametrize(("size", "shape", "count"), [(None, (16, 16), 20), ((20, 12), (12, 20), 14)])
def test_real_and_made_images_are_of_one_shape(
    run: Path, size: tuple[int, int] | None, shape: tuple[int, int], count: int
) -> None:
    config = EvaluateConfig(metrics=("kid",), request=Request(8, size=size))
    prepared = plan_evaluate(EvaluateJob.of(str(run), config), network=network())
    side = prepared.reference
    assert side.bytes().shape[2:] == shape
    assert all(side.images.buckets.shapes[side.images.buckets.of[i]] == shape for i in side.ids)
    assert prepared.own is not None and len(prepared.own.train) + len(prepared.own.held_out) == count
    (warning,) = prepared.warnings
    assert f"trained on 5 shapes; images of {shape[1]}x{shape[0]} alone are made and compared" in warning


def test_an_evaluation_makes_the_shape_that_is_asked_for(run: Path) -> None:
    heard = Heard()
    found = evaluated(run, report=heard)
    assert found.found[0].n == 8 and made(run) == {(3, 16, 16)}
    evaluated(run, size=(20, 12))
    assert made(run) == {(3, 16, 16), (3, 12, 20)}


def test_others_are_those_of_the_same_bucket(run: Path) -> None:
    found = evaluated(run, against=str(run.parent / "others"))
    assert found.real == 8


def test_a_shape_without_images_and_sizes_that_differ_are_refused(run: Path) -> None:
    with pytest.raises(Error, match="has no images of 18x14"):
        evaluated(run, size=(18, 14))
    with pytest.raises(Error, match="are too many"):
        evaluated(run, size=(64, 64))
    with pytest.raises(Error, match="sweep of aspect: all points share"):
        evaluated(run, sweep=("aspect=1:1", "5:3"))
