"""Conditional models are sampled with the classes that are asked for, or the data's own, and judged by them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured import CLASSES, kept_images, network, train

from kuosan.data.pixels import to_uint8
from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error
from kuosan.evaluate.config import configured
from kuosan.evaluate.job import EvaluateJob
from kuosan.evaluate.plan import plan_evaluate
from kuosan.evaluate.result import Result
from kuosan.evaluate.run import measure, nested
from kuosan.evaluate.sampling import open_judge
from kuosan.sample import pipeline
from kuosan.sample.generate import sample
from kuosan.sample.request import Request

SMALL: dict[str, Any] = {"n": 10, "batch": 4, "steps": 2, "precision": "fp32"}
FULL = choose(ComputeConfig(precision="fp32"))


@pytest.fixture
def run(labelled_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(labelled_run, tmp_path / "run"))


def evaluated(run: Path, **options: Any) -> Result:
    return measure(run, network=network(), **{**SMALL, "metrics": ("kid",), **options})


def sampled(run: Path, **options: Any) -> np.ndarray:
    model = pipeline.load(run, compute=FULL).model
    return np.moveaxis(to_uint8(sample(model, Request(n=10, steps=2, batch=4, **options)).numpy()), -1, 1)


def test_named_classes_take_turns_across_batches_as_in_sampling(run: Path) -> None:
    evaluated(run, classes=("light", "dark", "dark"))
    assert np.array_equal(kept_images(run), sampled(run, classes=("light", "dark", "dark")))


def test_without_names_the_classes_have_the_datas_shares(run: Path) -> None:
    found = evaluated(run, n=60).found[0]
    prepared = plan_evaluate(
        EvaluateJob.of(str(run), configured(nested({**SMALL, "n": 60, "metrics": ("kid",)}))), network=network()
    )
    labels = prepared.reference.images.labels
    assert labels is not None
    share = float((labels[prepared.reference.images.train] == 0).mean())
    assert found.shares[0] == pytest.approx(share, abs=1e-6) and share != 0.5
    assert prepared.points[0].wanted(0, 60).count(0) == pytest.approx(60 * share, abs=2)
    names = tuple(CLASSES[i] for i in prepared.points[0].wanted(0, 60))
    model = pipeline.load(run, compute=FULL).model
    expected = sample(model, Request(n=60, steps=2, batch=4, classes=names)).numpy()
    assert np.array_equal(kept_images(run), np.moveaxis(to_uint8(expected), -1, 1))


def test_images_of_named_classes_and_of_all_are_kept_apart(run: Path) -> None:
    evaluated(run)
    evaluated(run, classes=("dark",))
    assert len(list((run / "evaluations" / "pictures").iterdir())) == 2


def test_label_agreement_is_the_share_that_the_judge_agrees_with(run: Path, judge_run: Path) -> None:
    found = evaluated(run, judge=str(judge_run), metrics=("kid", "labels"), classes=("light", "dark"))
    judge = pipeline.load(judge_run, compute=FULL).model
    with torch.no_grad():
        seen = judge.network(torch.from_numpy(kept_images(run)).float() / 127.5 - 1).argmax(1).numpy()
    wanted = np.array([1, 0] * 5)
    assert found.figures["labels"].value == pytest.approx(float((seen == wanted).mean()))
    told = found.found[0].details["labels"]
    assert told["classes"] == list(CLASSES) and np.sum(told["confusion"]) == 10
    assert found.judge is not None and found.judge["weights"] == pipeline.load(judge_run).weights


def test_the_judges_floor_is_its_accuracy_on_real_images(run: Path, judge_run: Path) -> None:
    found = evaluated(run, judge=str(judge_run), metrics=("labels",), real=90)
    assert found.floor["labels"].value > 0.9  # light against dark images is easy
    assert "label agreement" in found.markdown() and "Judge of classes" in found.markdown()


def test_a_judge_that_does_not_fit_is_refused_before_anything_is_made(
    run: Path, plain_run: Path, judge_run: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(Error, match="no classifier"):
        evaluated(run, judge=str(plain_run), metrics=())
    with pytest.raises(Error, match="to be of no class"):
        measure(plain_run, network=network(), judge=str(judge_run), **SMALL)
    noisy = train(tmp_path / "noisy", data, "--objective", "classifier")
    with pytest.raises(Error, match="trained on noisy images"):
        evaluated(run, judge=str(noisy), metrics=())
    with pytest.raises(Error, match="knows the classes dark, light"):
        open_judge(str(judge_run), (3, 8, 8), ("cat", "dog"), FULL)
    with pytest.raises(Error, match="reads images of"):
        open_judge(str(judge_run), (3, 16, 16), CLASSES, FULL)
    assert not (run / "evaluations").exists()


def test_a_guidance_sweep_shows_precision_recall_and_agreement_by_scale(run: Path, judge_run: Path) -> None:
    found = evaluated(
        run, judge=str(judge_run), metrics=(), sweep=("guidance=1", "2", "4"), n=60, real=60, against="train"
    )
    assert [one.setting for one in found.found] == [{"guidance": scale} for scale in (1.0, 2.0, 4.0)]
    assert [one.evaluations for one in found.found] == [2, 4, 4]  # guidance asks the network twice
    assert {"precision", "recall", "labels"} <= set(found.figures)
    folder = Path(str(found.folder))
    assert (folder / "plot.png").stat().st_size > 10_000 and (folder / "sheet.png").is_file()
    told = json.loads((folder / "result.json").read_text())
    assert [one["setting"]["guidance"] for one in told["found"]] == [1, 2, 4]
    lines = (folder / "table.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[0].startswith("guidance,n,evaluations,seconds,kid,kid_error")


def test_a_classifier_guides_and_its_weights_stand_in_the_result(run: Path, data: Path, tmp_path: Path) -> None:
    noisy = train(tmp_path / "noisy", data, "--objective", "classifier")
    found = evaluated(run, classifier=str(noisy), sweep=("classifier-scale=0", "2"))
    weights = pipeline.load(noisy).weights
    assert all(one.helpers == {"classifier": weights} for one in found.found)
    assert len(list((run / "evaluations" / "pictures").iterdir())) == 2


def test_what_a_class_cannot_be_is_refused_with_the_list(run: Path) -> None:
    with pytest.raises(Error, match=r"unknown class 'lihgt'.*light"):
        evaluated(run, classes=("lihgt",))
