"""The package as people install it: the wheel, in an empty environment, does what the clone does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from kuosan import errors
from kuosan.errors import Error, check_system

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network by the backend that pyproject.toml names."""
    pytest.importorskip("hatchling", reason="builds the wheel (./setup dev installs it)")
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    made = subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True, text=True)
    return folder / made.stdout.split()[-1]


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel in it, which borrows torch and the rest from this one."""
    home = tmp_path_factory.mktemp("installed") / "env"
    venv.create(home, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "borrowed.pth").write_text(
        f"{Path(torch.__file__).parents[1]}\n"
    )  # a path, so none of its .pth files count
    script = home / "bin" / "kuosan"
    script.write_text(f"#!{home}/bin/python\nfrom kuosan.cli.main import main\nmain()\n")  # as pip writes entry points
    script.chmod(0o755)
    return home / "bin" / "python"


def ran(python: Path, at: Path, *words: object) -> str:
    """What a command printed, run far from the clone."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    at.mkdir(exist_ok=True)
    done = subprocess.run(
        [str(python.parent / "kuosan"), *map(str, words)], cwd=at, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_wheel_says_which_commands_and_extras_it_has(wheel: Path) -> None:
    held = zipfile.ZipFile(wheel)
    names = held.namelist()
    about = next(name for name in names if name.endswith(".dist-info/METADATA"))
    text = held.read(about).decode()
    assert "Provides-Extra: evaluate" in text and "Provides-Extra: text" in text and "Requires-Python: >=3.11" in text
    entry = held.read(about.replace("METADATA", "entry_points.txt")).decode()
    assert "kuosan = kuosan.cli.main:main" in entry
    assert {name.rsplit("/", 1)[-1] for name in names if "/licenses/" in name} >= {"LICENSE", "LICENSES-DATA.md"}


def test_all_that_the_clone_has_beside_its_modules_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    wanted = {
        str(path.relative_to(source))
        for path in (source / "kuosan").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.endswith(".yaml") for name in wanted) and any(name.endswith(".safetensors") for name in wanted)
    assert wanted <= inside, sorted(wanted - inside)


def test_python_finds_recipes_the_embedded_model_and_the_portraits(python: Path, tmp_path: Path) -> None:
    code = """
import json, kuosan
from pathlib import Path
from kuosan.train.job import recipe
images = kuosan.open_images(kuosan.DataConfig(workers=0))
model = kuosan.load("embedded")
made = model.sample(1, prompt="a red heart", steps=2)
print(json.dumps([kuosan.__file__, len(images), str(recipe("portraits")), list(made.shape)]))
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    said = subprocess.run([python, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    package, count, recipe, shape = json.loads(said.stdout.splitlines()[-1])
    assert package.startswith(str(python.parents[1])), "the wheel's, not the clone's"
    assert count == 4096 and recipe.startswith(str(python.parents[1])) and shape == [1, 3, 64, 64]


def test_the_shell_samples_trains_and_evaluates(python: Path, tmp_path: Path) -> None:
    assert "1 image in " in ran(python, tmp_path, "sample", "a red heart", "-n", 1, "--steps", 2, "--out", "hearts")
    assert list((tmp_path / "hearts").glob("seed-*.png"))
    small = ["--network", "tiny", "--batch", 2, "--max-steps", 2, "--preview-every", 0, "--evaluate-every", 0]
    assert "done: runs/portraits, 2 steps." in ran(python, tmp_path, "train", "portraits", *small, "--workers", 0)
    asked = ["-n", 6, "--steps", 1, "--metrics", "kid", "--device", "cpu"]
    assert "KID x 1000" in ran(python, tmp_path, "evaluate", "runs/portraits", *asked)


def test_windows_is_refused_with_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    check_system()
    monkeypatch.setattr(errors.os, "name", "nt")
    with pytest.raises(Error, match=r"does not run on Windows .* WSL 2"):
        check_system()


def test_windows_is_refused_by_the_shell_and_by_python_without_a_traceback(tmp_path: Path) -> None:
    shell = "import os, sys; from kuosan.cli.main import main; os.name = 'nt'; main(['doctor', 'portraits'])"
    said = subprocess.run([sys.executable, "-c", shell], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 2 and said.stderr.startswith("kuosan: error: kuosan does not run on Windows")
    called = "import os, kuosan; os.name = 'nt'; kuosan.load"
    said = subprocess.run([sys.executable, "-c", called], cwd=tmp_path, capture_output=True, text=True)
    assert "kuosan.errors.Error: kuosan does not run on Windows" in said.stderr
