"""What the demo says of its time, and what its page names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kuosan.cli import demo
from kuosan.diffusion.registry import SAMPLERS
from shell import kuosan


def test_too_few_minutes_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "train_job", lambda job: 130)  # stopped before it trains
    said = kuosan("demo", "--minutes", 0.001, "--out", tmp_path / "demo")
    assert said.code == 130 and f"too few here for images worth showing: {demo.FEWEST} steps" in said.out


def test_the_guide_knows_the_least_and_most_steps() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    assert f"({demo.FEWEST} to {demo.MOST:,})" in guide


def test_the_page_names_an_image_that_has_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "my demo"
    out.mkdir()
    asked: list[str] = []

    def make(run: Path, request: object, folder: Path, *more: object) -> tuple[float, int]:
        folder.mkdir(parents=True)
        (folder / "seed-00000003.png").touch()
        for name in ("sheet.png", "denoising.gif"):
            (folder / name).touch()
        asked.append(folder.name)
        return 1.0, 1

    monkeypatch.setattr(demo, "make", make)
    shown = {"total": 1.0, "training": 1.0, "steps": 1, "commands": {"training": "kuosan train"}}
    demo._images(out / "run", out, 3, shown)
    model = {"held_out": None, "speed": 1.0, "config": {"schedule": {"kind": "flow"}, "prediction": "v"}}
    demo.write(out, {**shown, "model": model})
    html = (out / "index.html").read_text(encoding="utf-8").replace("&#x27;", "'")
    named = re.search(r"kuosan sample --like '([^']+)'", html)
    assert named and Path(named[1]).is_file()
    assert f"--out '{out}/images/ddim'" in html and set(asked) & set(SAMPLERS)
