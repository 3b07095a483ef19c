"""Printing never ends work: full disks, gone readers, closed or lost terminals, and encodings without the letters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.harness import ForkServer, Outcome, build
from kuosan.storage import checkpoint
from shell import QUICK, image_folder, mostly_slow

MAIN = [sys.executable, "-m", "kuosan.cli.main"]
TRAIN = ["train", "pics é", "--out", "run", *QUICK]
SAMPLE = ["sample", "trained", "-n", "2", "--steps", "2", "--out", "made"]
SINKS = [("full", [1]), ("reader", [1]), ("terminal", [1, 2]), ("closed", [1, 2]), ("ascii", [1]), ("narrow", [1])]
PRELOAD = ["train.warmed", "cli.printing", "kuosan.cli.train", "kuosan.cli.sample", "kuosan.cli.verbs"]
PRELOAD += ["kuosan.sample.write", "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.font_manager"]


class Place:
    """A folder with images and a trained run, and forks that run verbs in it."""

    def __init__(self, folder: Path, trained: Path, shim: Path) -> None:
        self.folder = folder
        image_folder(folder / "pics é")
        shutil.copytree(trained, folder / "trained")
        self.server = ForkServer(shim, PRELOAD)

    def run(self, target: str, *args: object) -> Outcome:
        """One verb, with what it writes removed beforehand."""
        for name in ("run", "made"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.server.run(f"cli.printing:{target}", self.folder, *args, prefix=self.folder / "nothing")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Iterator[Place]:
    shim = build(tmp_path_factory.mktemp("shim"))
    if shim is None:
        pytest.skip("no C compiler for the fork server's library")
    with tempfile.TemporaryDirectory() as folder:
        made = Place(Path(folder), trained_run, shim)
        yield made
        made.server.close()


@pytest.mark.parametrize(("kind", "streams"), SINKS)
def test_a_training_ends_as_if_its_lines_had_been_read(place: Place, kind: str, streams: list[int]) -> None:
    ended = place.run("verb", kind, streams, *TRAIN)
    assert (ended.status, "Traceback" in ended.output) == (0, False), ended.output
    assert checkpoint.load(place.folder / "run", parts=()).step == 3
    if kind in ("full", "reader"):
        assert ended.output.count("the work goes on without it") == 1, ended.output


@pytest.mark.parametrize(("kind", "streams"), SINKS[:4:3])
def test_samples_are_all_made_where_nothing_can_be_printed(place: Place, kind: str, streams: list[int]) -> None:
    ended = place.run("verb", kind, streams, *SAMPLE)
    assert (ended.status, "Traceback" in ended.output) == (0, False), ended.output
    assert len(list(place.folder.glob("made/seed-*.png"))) == 2


@pytest.mark.parametrize("kind", ["full", "reader", "closed"])
def test_a_mistake_keeps_its_exit_code_where_it_cannot_be_printed(place: Place, kind: str) -> None:
    assert place.run("verb", kind, [1, 2], "train", "nowhere").status == 2


@pytest.mark.parametrize("words", [TRAIN, SAMPLE])
def test_signals_that_are_ignored_from_the_start_stay_ignored(place: Place, words: list[str]) -> None:
    ended = place.run("ignored", *words)
    assert ended.status == 0, ended.output
    assert "stopped" not in ended.output


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"], ["doctor", "."], []])
@pytest.mark.parametrize(("kind", "code"), [("reader", 141), ("full", 74), ("closed", 0)])
def test_a_short_verb_ends_with_the_usual_code(place: Place, words: list[str], kind: str, code: int) -> None:
    ended = place.run("verb", kind, [1], *words)
    assert "Traceback" not in ended.output
    if words == ["doctor", "."] and kind == "closed":
        code = ended.status  # 0 or 1: what it found
    assert ended.status == code, ended.output
    assert ended.output.count("\n") == (code == 74)


@pytest.mark.parametrize(("words", "code"), mostly_slow([(TRAIN, 0), (["--help"], 74)], (TRAIN, 0)))
def test_python_ends_without_a_word_after_output_that_failed(place: Place, words: list[str], code: int) -> None:
    """Python itself writes what is left when it ends; a process of its own shows that nothing is."""
    environment = os.environ | {"COLUMNS": "1"}
    shutil.rmtree(place.folder / "run", ignore_errors=True)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*MAIN, *words], cwd=place.folder, env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert "No space left on device" in done.stderr
