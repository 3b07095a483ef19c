"""The parts of benchmarks/first_minutes.py and five_minutes.py that need no peer: their figures, rates and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scripted import ROOT, load_script


@pytest.fixture(scope="module", autouse=True)
def benchmarks_beside_each_other() -> Iterator[None]:
    """The scripts import each other by name, as they do when they are called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


@pytest.fixture(scope="module")
def minutes(benchmarks_beside_each_other: None) -> ModuleType:
    return load_script("first_minutes", "benchmarks")


def row(contestant: str, seconds: int, kid: float, kind: str = "portraits") -> dict[str, Any]:
    return {
        "contestant": contestant,
        "kind": kind,
        "seconds": seconds,
        "core_seconds": float(seconds),
        "images": 100 * seconds,
        "parameters": 4_500_000,
        "kid": kid,
        "error": 0.004,
    }


@pytest.mark.parametrize(
    "kid, sign, seconds",
    [
        (0.5, "<", 60.0),  # better at once
        (0.4, "<", 60.0),
        (0.2, "", (60 * 240) ** 0.5),  # halfway in both logarithms
        (0.1, "", 240.0),
        (0.05, ">", 240.0),
    ],
)
def test_the_time_to_a_kid_is_straight_in_both_logarithms(
    minutes: ModuleType, kid: float, sign: str, seconds: float
) -> None:
    found = minutes.seconds_to([(240.0, 0.1), (60.0, 0.4)], kid)
    assert found == (sign, pytest.approx(seconds))


def test_a_curve_that_rises_in_between_is_read_where_it_first_reaches_the_kid(minutes: ModuleType) -> None:
    sign, seconds = minutes.seconds_to([(60.0, 0.4), (120.0, 0.5), (240.0, 0.2)], 0.3)
    assert sign == "" and 120 < seconds < 240


def test_the_table_says_how_much_sooner_kuosan_reaches_anothers_last_kid(minutes: ModuleType, tmp_path: Path) -> None:
    rows = [row("kuosan", 60, 0.4), row("kuosan", 240, 0.1), row("diffusers", 60, 0.7), row("diffusers", 600, 0.4)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    lines = minutes.table(tmp_path).splitlines()
    assert lines[0].startswith("| portraits | M parameters | 60 s | 240 s | 600 s |")
    assert lines[2] == "| kuosan | 4.5 | 400 ± 4 | 100 ± 4 |  | 24,000 |  |"
    assert lines[3] == "| diffusers | 4.5 | 700 ± 4 |  | 400 ± 4 | 60,000 | <60 core-s, 10.0x fewer |"


def test_usual_settings_train_once_and_stop_at_every_budget_and_all_others_once_a_budget(minutes: ModuleType) -> None:
    assert minutes.stops_of("diffusers", [60, 300]) == [[60, 300]]
    assert minutes.stops_of("diffusers-ours", [60, 300]) == minutes.stops_of("kuosan", [60, 300]) == [[60], [300]]


def test_our_rate_rises_for_a_tenth_and_falls_by_a_cosine(minutes: ModuleType) -> None:
    peers = load_script("peer_trainings", "benchmarks")
    network = torch.nn.Linear(2, 2)
    groups: list[dict[str, Any]] = [{}]
    learner = peers.Trainee(16, network, lambda: None, dict, groups)
    rates = []
    for share in (0.0, 0.05, 0.1, 0.55, 0.999):
        learner.lr(share)
        rates.append(groups[0]["lr"])
    assert rates == pytest.approx([1e-5, 5e-4, 1e-3, 5e-4, 1e-5])
    assert learner.parameters == 6


def test_the_picture_has_a_block_of_each_contestant_that_has_a_result(minutes: ModuleType, tmp_path: Path) -> None:
    rows = [row("kuosan", 300, 0.1), row("diffusers", 300, 0.4)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (tmp_path / "made").mkdir()
    for name, shade in (("kuosan", 200), ("diffusers", 90)):
        made = np.full((24, 32, 32, 3), shade, np.uint8)
        np.save(minutes.made_file(tmp_path, name, "portraits", 300), made)
    minutes.picture(tmp_path, "portraits", 300, tmp_path / "out.png", [])
    pixels = np.asarray(Image.open(tmp_path / "out.png"))[-100:]  # below the words
    middle = pixels.shape[1] // 2
    assert (pixels[:, :middle] == 200).any() and not (pixels[:, :middle] == 90).any()
    assert (pixels[:, middle:] == 90).any() and not (pixels[:, middle:] == 200).any()


def test_a_classifier_of_digits_learns_what_it_is_shown() -> None:
    five = load_script("five_minutes", "benchmarks")
    labels = np.arange(400) % 4
    images = np.zeros((400, 8, 8, 1), np.uint8)
    images[np.arange(400), 2 * labels] = 200
    judge = five.classifier(images, labels, epochs=5)
    assert (judge(images) == labels).all()


@pytest.mark.parametrize("value, larger, reached", [(0.9, True, True), (0.89, True, False), (0.9, False, False)])
def test_a_figure_is_reached_from_its_own_side(value: float, larger: bool, reached: bool) -> None:
    five = load_script("five_minutes", "benchmarks")
    assert five.Figure("x", value, 0.0, 0.9, larger).reached is reached
