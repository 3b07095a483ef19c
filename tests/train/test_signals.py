"""SIGINT, SIGTERM and SIGHUP to `kuosan train`: saved, said how to go on, the usual exit code, no lock left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import warm_processes
from kuosan import checkpoint
from kuosan.files import Lock
from kuosan.train.stop import SIGNALS, Stop
from shell import mostly_slow
from train.made_runs import SMALL, differences, outcome, pictures

STEPS = 60


def own(number: int, frame: object) -> None:
    """A handler of a caller's."""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler, own])
def test_a_signal_that_is_ignored_stays_so_and_every_handler_is_put_back(number: signal.Signals, before: Any) -> None:
    whose = signal.signal(number, before)
    try:
        with Stop() as stop:
            signal.raise_signal(number)
            assert stop.asked == (0 if before == signal.SIG_IGN else number)
        assert signal.getsignal(number) == before
        with pytest.raises(ValueError, match="inside"), Stop():
            raise ValueError("inside")
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, whose)


def test_no_handler_is_installed_from_another_thread() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    def seen() -> list[object]:
        with Stop():
            return [signal.getsignal(number) for number in SIGNALS]

    with ThreadPoolExecutor(1) as other:
        assert other.submit(seen).result() == before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def command(out: Path, data: Path) -> list[str]:
    words = ["train", str(data), "--out", str(out)]
    for key, value in {**SMALL, "train.max_steps": STEPS, "train.save_every": 50, "train.evaluate_every": 0}.items():
        for item in value if isinstance(value, list) else [value]:
            words += [f"--{key}", str(item)]
    return words


def rows(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    words = [sys.executable, "-m", "kuosan.cli.main", *command(folder / "whole", pictures(folder / "pictures.npz"))]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "done:" in done.stdout
    return folder


@pytest.mark.parametrize("number", mostly_slow(SIGNALS, signal.SIGTERM, signal.SIGHUP))
def test_a_signal_saves_and_the_same_command_goes_on_bit_for_bit(number: signal.Signals, whole: Path) -> None:
    out, data = whole / number.name, whole / "pictures.npz"
    process = warm_processes.kuosan(*command(out, data))
    end = time.monotonic() + 100
    while rows(out) < 5 and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(number)
    said = "".join(process.communicate(timeout=60))
    assert process.returncode == 128 + number, said
    assert f"stopped by {number.name} at step" in said
    assert "The same command goes on from there" in said
    step = rows(out)
    path = checkpoint.latest(out).path
    assert path is not None and checkpoint.step_of(path) == step, "the step in progress was finished and saved"
    assert 5 <= step < STEPS
    Lock(out).release()
    process = warm_processes.kuosan(*command(out, data))
    said = "".join(process.communicate(timeout=120))
    assert process.returncode == 0, said
    assert f"going on from step {step} of {STEPS}" in said
    assert not differences(outcome(out), outcome(whole / "whole"))
