"""The shell as a process of its own: exit codes, signals, and what lies on the disk afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import warm_processes
from kuosan import __version__ as version
from kuosan.cli.verbs import VERBS
from kuosan.storage import checkpoint
from shell import QUICK, image_folder, kuosan, refused, signals_reach_children
from warm_processes import WarmProcess

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def start(*words: object) -> WarmProcess:
    return warm_processes.kuosan(*words)


def wait_for(condition: object, process: WarmProcess, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def test_a_mistake_is_one_line_and_exit_code_two() -> None:
    command = [sys.executable, "-m", "kuosan.cli.main", "sample", "nowhere", "--sampler", "dimm"]
    process = subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("kuosan: error: unknown sampler 'dimm': did you mean 'ddim'?") and err.count("\n") == 1


def test_ctrl_c_while_sampling_ends_cleanly(trained_run: Path, tmp_path: Path) -> None:
    process = start("sample", trained_run, "-n", 100_000, "--batch", 1, "--steps", 1, "--out", tmp_path / "out")
    wait_for(lambda: len(list(tmp_path.glob("out/seed-*.png"))) > 3, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "kuosan: stopped.\n"
    finished = int(out.split("stopped: ")[1].split(" of 100,000")[0])
    assert finished <= len(list(tmp_path.glob("out/seed-*.png"))) <= finished + 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_training_saves_and_says_how_to_go_on(number: int, code: int, tmp_path: Path) -> None:
    words = [word if word != "3" else "100000" for word in QUICK]
    process = start("train", image_folder(tmp_path / "pictures"), "--out", tmp_path / "run", *words)
    log = tmp_path / "run" / "log.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 3, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "saved. The same command goes on from there." in out and "Traceback" not in err
    steps = log.read_text().count("\n")
    assert checkpoint.load(tmp_path / "run", parts=()).step == steps


def test_a_reader_that_goes_away_ends_no_work(trained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    process = start("sample", run, "-n", 2, "--steps", 1, "--out", tmp_path / "out")
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read()
        assert said.startswith("kuosan: standard output cannot be written") and said.count("\n") == 1
        assert process.wait(timeout=60) == 0
    assert len(list(tmp_path.glob("out/seed-*.png"))) == 2


SIGNALLED = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Finder())
sys.argv = ["kuosan", *{words!r}]
from kuosan.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("module", "number", "code"),
    [
        ("rich", signal.SIGINT, 130),
        ("rich", signal.SIGTERM, 143),
        ("kuosan.cli.console", signal.SIGHUP, 129),
        ("numpy", signal.SIGINT, 130),
        ("torch", signal.SIGINT, 130),
        ("torch", signal.SIGTERM, 143),
    ],
)
def test_a_signal_while_modules_are_imported_is_one_line(
    module: str, number: int, code: int, trained_run: Path, tmp_path: Path
) -> None:
    words = ["sample", str(trained_run), "-n", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    with signals_reach_children():
        script = SIGNALLED.format(module=module, number=int(number), words=words)
        done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (code, "kuosan: stopped.\n", "")
    assert not (tmp_path / "out").exists()


def test_a_signal_while_python_ends_changes_nothing() -> None:
    script = "import atexit, os, sys\nsys.argv = ['kuosan', '--version']\nfrom kuosan.cli.main import main\n"
    script += f"atexit.register(os.kill, os.getpid(), {int(signal.SIGTERM)})\nmain()"
    with signals_reach_children():
        done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_sigterm_while_sampling_says_what_is_finished(trained_run: Path, tmp_path: Path) -> None:
    process = start("sample", trained_run, "-n", 100_000, "--batch", 1, "--steps", 1, "--out", tmp_path / "out")
    wait_for(lambda: len(list(tmp_path.glob("out/seed-*.png"))) > 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "kuosan: stopped.\n") and "stopped: " in out


def test_sigterm_of_one_rank_under_torchrun_is_a_save_and_143_of_every_rank(tmp_path: Path) -> None:
    """The launcher sends SIGTERM to the others once the first has ended, wherever they are in ending themselves."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    words = [word if word != "3" else "100000" for word in QUICK]
    words = ["train", str(image_folder(tmp_path / "pictures")), "--out", str(tmp_path / "run"), *words]
    command = [*launch, "--rdzv-endpoint", "localhost:0", "-m", "kuosan.cli.main", *words, "--device", "cpu"]
    with signals_reach_children():
        process = subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = tmp_path / "run" / "log.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 3, process, 150)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [rank for rank in ranks if b"kuosan.cli.main" in Path(f"/proc/{rank}/cmdline").read_bytes()]
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert err.count("exitcode  : 143 ") == 2 and "exitcode  : -15" not in err, err
    assert "stopped by SIGTERM" in out and "Terminated" not in err
    assert checkpoint.load(tmp_path / "run", parts=()).step == log.read_text().count("\n")


@pytest.mark.parametrize("verb", VERBS)
def test_help_on_a_verb_is_the_verbs_own_help(verb: str) -> None:
    assert kuosan("help", verb) == kuosan(verb, "--help") and kuosan("help", verb).code == 0
    assert kuosan("help", verb, "--help-all") == kuosan(verb, "--help-all")


def test_help_on_nothing_and_on_what_is_no_verb() -> None:
    assert kuosan("help") == kuosan("--help")
    refused("help", "sampel", naming=["'sampel'", "sample"])


def test_the_package_runs_as_a_program() -> None:
    said = subprocess.run([sys.executable, "-m", "kuosan", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == version and not said.stderr
