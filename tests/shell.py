"""The shell in this process: what a person would see, and the exit code."""

from __future__ import annotations

import io
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from kuosan import seeds
from kuosan.cli import console
from kuosan.cli.main import main

# A run of seconds: a network of one level on 8-pixel pictures.
QUICK = [
    *["--size", "8", "--channels", "rgb", "--model.network.channels", "32", "--multipliers", "1"],
    *["--attention", "false", "--groups", "8", "--max-steps", "3", "--batch", "4", "--evaluate-every", "0"],
    *["--preview-every", "0", "--warmup", "1", "--precision", "fp32", "--threads", "1", "--workers", "0"],
]


class Said(NamedTuple):
    """What a command said on both channels, and its exit code."""

    code: int
    out: str
    err: str


def kuosan(*words: object) -> Said:
    """Run `kuosan WORDS` here."""
    out, err = io.StringIO(), io.StringIO()
    console.console.file = out
    code: object = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    finally:
        console.console.file = sys.stdout
    assert isinstance(code, int), code
    return Said(code, out.getvalue(), err.getvalue())


def refused(*words: object, naming: Sequence[str], code: int = 2) -> Said:
    """Run a command that must fail with one clear message that names all of `naming`."""
    said = kuosan(*words)
    assert said.code == code, said
    assert said.err.startswith("kuosan: error: "), said.err
    assert "Traceback" not in said.err + said.out
    assert not re.search(r"[^\s./]\.\.(\s|$)|[,;:?]\.(\s|$)", said.err), said.err  # stops of two sentences in one place
    for part in naming:
        assert part in said.err, f"{part!r} is missing in: {said.err}"
    return said


@contextmanager
def signals_reach_children() -> Iterator[None]:
    """A process started in this block can be interrupted, even where this one ignores it (nohup, a shell's `&`).

    Ignored signals are inherited; ones that are handled come to a child with their default action.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def mostly_slow(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """All cases as parameters; all but `kept` run with --slow alone."""
    every = list(cases)
    assert all(case in every for case in kept), kept
    marked = [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in every]
    return [case if case in kept else slow for case, slow in zip(every, marked, strict=True)]


def picture_folder(path: Path, count: int = 6, side: int = 8) -> Path:
    """A folder of small colour PNGs."""
    path.mkdir(parents=True)
    for i in range(count):
        pixels = seeds.rng(i, "test/pictures").integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return path


def smooth_folder(path: Path, count: int, side: int) -> Path:
    """A folder of smooth colour PNGs: four random pixels a side, enlarged."""
    path.mkdir(parents=True)
    for i in range(count):
        pixels = seeds.rng(i, "test/others").integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(path / f"{i}.png")
    return path


def tree(path: Path) -> dict[str, bytes]:
    """Every file under a folder with its content."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
