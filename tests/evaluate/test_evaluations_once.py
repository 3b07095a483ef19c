"""An evaluator opens every checkpoint and image once and resolves every request once; its plan writes nothing."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from measured import network
from torch import Tensor

from autoencoder_runs import autoencoder_run, latent_run
from kuosan.errors import Error
from kuosan.evaluate import compare as comparing
from kuosan.evaluate import prepare
from kuosan.evaluate.comparison import ComparisonConfig
from kuosan.evaluate.config import EvaluateConfig, ReconstructionConfig
from kuosan.evaluate.job import CompareJob, EvaluateJob, ReconstructJob
from kuosan.evaluate.plan import plan_compare, plan_evaluate, plan_reconstruct
from kuosan.sample.request import Request
from shell import image_folder, kuosan, smooth_folder

QUICK = ["--precision", "fp32", "--threads", 1]
Counted = Counter[tuple[str, Any]]


class Means:
    """The difference of mean colours, in place of a network's distance."""

    name, hash, resizing = "means", "1" * 64, "not resized"

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.float() - y.float()).abs().mean((1, 2, 3))


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Networks that cost nothing; what is written here is written into a scratch folder."""
    monkeypatch.setattr(prepare, "features", lambda name: network())
    monkeypatch.setattr(comparing, "perceptual", lambda name: Means())
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plain_run(plain_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: evaluations are kept in the run."""
    return Path(shutil.copytree(plain_run, tmp_path_factory.mktemp("once") / "run"))


def more_than_once(counted: Counted, *kinds: str) -> dict[tuple[str, Any], int]:
    return {key: times for key, times in counted.items() if times > 1 and (not kinds or key[0] in kinds)}


def test_an_evaluation_of_several_batches_opens_and_resolves_once(
    plain_run: Path,
    counted: Counted,
) -> None:
    words = ["-n", 10, "--batch", 4, "--steps", 2, "--metrics", "kid", "--out", "out", *QUICK]
    assert kuosan("evaluate", plain_run, *words).code == 0
    assert counted["checkpoint", str(plain_run)] == 1 and {"choose", "size", "guides"} <= {kind for kind, _ in counted}
    assert not more_than_once(counted)


def test_a_folder_of_images_is_decoded_once(
    tmp_path: Path,
    counted: Counted,
) -> None:
    one, other = image_folder(tmp_path / "one", 8), smooth_folder(tmp_path / "other", 9, 8)
    assert kuosan("evaluate", one, "--against", other, "--metrics", "kid").code == 0

    assert not more_than_once(counted)


def test_a_comparison_opens_each_run_once_and_resolves_each_method_once(
    plain_run: Path,
    labelled_run: Path,
    tmp_path: Path,
    counted: Counted,
) -> None:
    others = smooth_folder(tmp_path / "others", 4, 16)
    methods = [f"{plain_run}:ddnm,steps=2", f"{plain_run}:pigdm,steps=2", f"{labelled_run},steps=2"]
    words = ["--upscale", 2, "-n", 4, "--variants", 1, "--batch", 2, "--out", "out", *QUICK]
    said = kuosan("compare", others, *(word for each in methods for word in ("--with", each)), *words)
    assert said.code == 0, said
    assert sum(times for (kind, _), times in counted.items() if kind == "checkpoint") == 2
    for each in ("choose", "guides"):
        assert sum(times for (kind, _), times in counted.items() if kind == each) == len(methods)
    assert not more_than_once(counted, "checkpoint", "image")


def test_a_reconstruction_opens_each_checkpoint_once(
    tmp_path: Path,
    counted: Counted,
) -> None:
    own = autoencoder_run(tmp_path / "ae", image_folder(tmp_path / "images", 8, 16))
    latent = latent_run(tmp_path / "latent", own)
    for run in (own, latent):
        counted.clear()
        said = kuosan("reconstruct", run, "--features", "none", "--out", f"out-{run.name}", *QUICK)
        assert said.code == 0, said
        assert counted["checkpoint", str(run)] == 1
        assert not more_than_once(counted, "checkpoint", "image")


def test_plans_write_nothing_and_refuse(plain_run: Path, tmp_path: Path) -> None:
    own = autoencoder_run(tmp_path / "ae", image_folder(tmp_path / "images", 8, 16))
    others = smooth_folder(tmp_path / "others", 4, 16)
    before = sorted(map(str, [*plain_run.rglob("*"), *tmp_path.rglob("*")]))
    request = Request(n=8, steps=2)
    plan = plan_evaluate(EvaluateJob.of(str(plain_run), EvaluateConfig(metrics=("kid",), request=request)))
    assert plan.lacking == (8, 16) and plan.points[0].choice.steps == 2
    config = ComparisonConfig(str(others), (f"{plain_run},steps=2",), upscale=2, n=2, variants=1)
    assert plan_compare(CompareJob.of(config), distance=Means()).evaluations == 4
    plan_reconstruct(ReconstructJob.of(str(own), ReconstructionConfig(features="none")))
    with pytest.raises(Error, match="unknown sampler"):
        plan_evaluate(EvaluateJob.of(str(plain_run), EvaluateConfig(request=Request(sampler="dimm"))))
    with pytest.raises(Error, match="upscale = 3"):
        plan_compare(CompareJob.of(ComparisonConfig(str(others), (str(plain_run),), upscale=3)))
    with pytest.raises(Error, match="has no autoencoder"):
        plan_reconstruct(ReconstructJob.of(str(plain_run), ReconstructionConfig()))
    assert sorted(map(str, [*plain_run.rglob("*"), *tmp_path.rglob("*")])) == before


def test_an_interrupt_between_events_keeps_what_is_made(plain_run: Path, tmp_path: Path) -> None:
    from kuosan.evaluate.run import run_evaluate

    config = EvaluateConfig(metrics=("kid",), request=Request(n=8, steps=2, batch=4), out=str(tmp_path / "out"))
    plan = plan_evaluate(EvaluateJob.of(str(plain_run), config))
    events = run_evaluate(plan)
    for event in events:
        if getattr(event, "done", 0) > 8:  # of 16 evaluations: the first batch is kept, the second under way
            events.close()  # type: ignore[attr-defined]
            break
    again = plan_evaluate(EvaluateJob.of(str(plain_run), config))
    assert again.points[0].kept == 4 and torch.is_grad_enabled()
