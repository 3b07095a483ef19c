"""Sentences for people: one full stop, whatever was quoted, and paths as they are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from kuosan import errors
from kuosan.errors import Error, pip_install, plural


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x cannot be read: bad..", "x cannot be read: bad."),
        ("x is 'bad'.. Make it again.", "x is 'bad'. Make it again."),
        ("../x and y/.. are paths, .. too", "../x and y/.. are paths, .. too"),
        ("'..' is a folder; so is ..", "'..' is a folder; so is .."),
        ("and so on...", "and so on..."),
        ("wait... x.", "wait... x."),
    ],
)
def test_a_message_has_one_full_stop_where_two_sentences_meet(text: str, said: str) -> None:
    assert str(Error(text)) == said


@pytest.mark.parametrize(
    ("python", "files", "has_pip", "command"),
    [
        (".venv/bin/python", [".venv/bin/pip"], True, ".venv/bin/pip install --no-deps thing==1"),
        (".venv/bin/python", [], True, ".venv/bin/python -m pip install --no-deps thing==1"),
        (".venv/bin/python3", [], False, "uv pip install --python .venv/bin/python3 --no-deps thing==1"),
        ("my tools/bin/python", ["my tools/bin/pip"], True, "'my tools/bin/pip' install --no-deps thing==1"),
    ],
)
def test_a_package_is_installed_into_the_python_that_misses_it(
    python: str, files: list[str], has_pip: bool, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / python))
    monkeypatch.setattr(errors, "find_spec", lambda name: object() if has_pip else None)
    assert pip_install("--no-deps thing==1") == command
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert str(tmp_path) in pip_install("thing")  # from elsewhere by its whole path


def test_setup_installs_the_features_that_evaluate_and_reconstruct_measure_by_for_everybody() -> None:
    from kuosan.metrics.features.lite0 import PACKAGE

    script = (Path(__file__).parents[1] / "setup").read_text()
    always = [line for line in script.splitlines() if line.startswith("install ")]  # those of `dev` are indented
    assert any(line.startswith(f"install {PACKAGE}") for line in always), always


@pytest.mark.parametrize(
    ("count", "noun", "verb", "of", "text"),
    [
        (0, "image", "", None, "0 images"),
        (1, "image", "", None, "1 image"),
        (5551, "image", "was", None, "5,551 images were"),
        (1, "image", "was", None, "1 image was"),
        (1, "image", "has", 1, "1 of 1 image has"),
        (1, "image", "has", 3, "1 of 3 images has"),
        (2, "image", "has", 3, "2 of 3 images have"),
        (2, "row", "lies", None, "2 rows lie"),
        (1, "row", "lies", None, "1 row lies"),
        (2, "class", "is", None, "2 classes are"),
        (2, "batch", "", None, "2 batches"),
        (2, "copy", "repeats", None, "2 copies repeat"),
        (2, "way", "", None, "2 ways"),
        (2, "caption or label", "is", None, "2 captions or labels are"),
        (1, "caption or label", "is", None, "1 caption or label is"),
        (1, "such image", "", None, "1 such image"),
    ],
)
def test_a_count_has_its_noun_and_its_verb(count: int, noun: str, verb: str, of: int | None, text: str) -> None:
    assert plural(count, noun, verb, of=of) == text


def test_no_message_counts_by_hand() -> None:
    source = Path(errors.__file__).parent
    by_hand = re.compile(r"""'s' \* |"s" \* |[a-z]\(s\)|\{'s (are|is)'""")
    found = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in source.rglob("*.py")
        for line in path.read_text().splitlines()
        if by_hand.search(line)
    ]
    assert not found, "errors.plural says it of one and of several:\n" + "\n".join(found)
