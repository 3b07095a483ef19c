"""The parts of benchmarks/recipe_study.py that need no training: its settings, budgets, regret."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kuosan.train import api
from scripted import load_script


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return load_script("recipe_study", "benchmarks")


def test_every_setting_is_one_that_can_be_trained(study: ModuleType, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels)
    seen = set()
    for name in study.SETTINGS:
        asked = api.prepare(tmp_path / name, study.settings(name, tmp_path / "x.npz", 32, 100))
        seen.add(repr((asked.config.model, asked.config.train)))
        assert asked.config.train.max_steps == 100 and asked.config.compute.threads == 1
    assert len(seen) == len(study.SETTINGS), "two settings are the same"


def test_a_setting_gets_as_many_steps_as_its_cost_allows(study: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(json.dumps({"32": {"default": 1.0, "batch-64": 1.6}}))
    steps = {name: study.steps_of(tmp_path, study.Trial(1, name, "emoji")) for name in ("default", "batch-64")}
    assert steps["default"] == study.SECONDS[1] * study.RATE
    assert steps["batch-64"] == round(steps["default"] / 1.6)


def test_regret_is_the_distance_to_the_best_of_its_kind_and_the_worst_kind_counts(
    study: ModuleType, tmp_path: Path
) -> None:
    kid = {("default", "emoji"): 0.2, ("v-v", "emoji"): 0.1, ("default", "fashion"): 0.3, ("v-v", "fashion"): 0.36}
    rows = [
        {
            "round": 1,
            "setting": s,
            "kind": k,
            "kid": v,
            "error": 0.01,
            "steps": 10,
            "batch": 32,
            "parameters": 4_500_000,
        }
        for (s, k), v in kid.items()
    ]
    failed = {"round": 1, "setting": "dit", "kind": "emoji", "failed": "Error: no"}
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, failed]))
    found = study.regret(rows)
    assert found["default"] == pytest.approx({"emoji": 1.0, "fashion": 0.0})
    assert found["v-v"] == pytest.approx({"emoji": 0.0, "fashion": 0.2})
    lines = study.table(tmp_path, 1).splitlines()
    assert lines[2].startswith("| v-v | 360 ± 10 | 100 ± 10 | 20% | 320 | 4.5 |")
    assert "100%" in lines[3] and len(lines) == 4
