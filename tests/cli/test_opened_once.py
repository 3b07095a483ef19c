"""A verb opens every file once and resolves its request once, from the words that were typed to the files it writes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kuosan.sample.job import SampleJob, plan_sample
from kuosan.sample.restore import RestoreJob, plan_restore
from shell import image_folder, kuosan

QUICKLY = ["--steps", 2, "--precision", "fp32", "--threads", 1]


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "RUN", "-n", 3],
        ["sample", "RUN", "-n", 2, "--batch", 1, "--exact"],
        ["sample", "RUN", "-n", 2, "--image", "IMAGE", "--strength", "0.9"],
        ["restore", "RUN", "IMAGES", "--deblur", 1],
        ["restore", "RUN", "IMAGE", "--mask", "1,1,3,3", "-n", 2],
        ["invert", "RUN", "IMAGE"],
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_everything_is_opened_and_resolved_once(
    words: list[Any], trained_run: Path, tmp_path: Path, counted: Counter[tuple[str, Any]]
) -> None:
    images = image_folder(tmp_path / "images", 3)
    own = {"RUN": trained_run, "IMAGES": images, "IMAGE": images / "1.png"}
    said = kuosan(*(own.get(word, word) for word in words), *QUICKLY, "--out", tmp_path / "out")
    assert said.code == 0, said
    kinds = {kind for kind, _ in counted}
    assert "checkpoint" in kinds and ("choose" in kinds or words[0] == "invert"), counted
    assert ("image" in kinds) == any(word in ("IMAGE", "IMAGES") for word in words), counted
    assert not {key: times for key, times in counted.items() if times > 1}


def test_a_guided_request_opens_each_run_once(
    trained_run: Path, tmp_path: Path, counted: Counter[tuple[str, Any]]
) -> None:
    said = kuosan(
        "sample", trained_run, "-n", 2, "--guidance", 3, "--reference", trained_run / "checkpoints" / "step-00000003",
        *QUICKLY, "--out", tmp_path / "out",
    )  # fmt: skip
    assert said.code == 0, said
    assert sum(times for (kind, _), times in counted.items() if kind == "checkpoint") == 2
    assert not {key: times for key, times in counted.items() if times > 1}


def test_plans_write_nothing(trained_run: Path, tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", 1)
    before = sorted(map(str, [*trained_run.rglob("*"), *tmp_path.rglob("*")]))
    plan_sample(SampleJob(str(trained_run), out=str(tmp_path / "out")))
    plan_restore(RestoreJob(str(trained_run), (str(images),), out=str(tmp_path / "restored")))
    assert sorted(map(str, [*trained_run.rglob("*"), *tmp_path.rglob("*")])) == before
