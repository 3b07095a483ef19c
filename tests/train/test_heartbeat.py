"""Of several processes one that is stopped, killed, absent or fails is named by all others; a slow one is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuosan import Error
from kuosan.train.distributed import meet
from kuosan.train.heartbeat import Times

WORKER = Path(__file__).with_name("beating.py")


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """Leave no process and no pipe."""
    yield
    for process in STARTED:
        process.kill()
        process.communicate()
    STARTED.clear()


def start(folder: Path, *what: str) -> list[subprocess.Popen[str]]:
    """A process for each rank; one of what "absent" has none."""
    begin = len(STARTED)
    for rank, each in enumerate(what):
        if each != "absent":
            words = [sys.executable, str(WORKER), str(rank), str(len(what)), str(folder), each]
            STARTED.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
    return STARTED[begin:]


def here(folder: Path, size: int) -> None:
    """Wait until all ranks have met."""
    end = time.monotonic() + 60
    while len(list(folder.glob("here-*"))) < size:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.5)


@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize(("victim", "size"), [(0, 2), (1, 2), (0, 3), (2, 3)])
def test_a_stopped_or_killed_process_is_named_by_all_others(
    victim: int, size: int, sent: signal.Signals, tmp_path: Path
) -> None:
    processes = start(tmp_path, *["wait"] * size)
    here(tmp_path, size)
    processes[victim].send_signal(sent)
    for rank, process in enumerate(processes):
        if rank == victim:
            continue
        _, said = process.communicate(timeout=40)
        assert process.returncode == 75
        assert f"rank {victim} (pid {processes[victim].pid} on {os.uname().nodename})" in said
        assert ("has not answered for 1.5 s" in said) == (sent == signal.SIGSTOP)
        assert f"Rank {rank} saves nothing and ends" in said


@pytest.mark.parametrize("what", [("work", "wait-not"), ("wait-not", "work"), ("compute", ""), ("", "compute")])
def test_a_slow_process_is_no_fault_and_the_others_wait_for_it_at_the_end(
    what: tuple[str, str], tmp_path: Path
) -> None:
    for process in start(tmp_path, *what):
        assert process.communicate(timeout=90) and process.returncode == 0


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (("wait", "absent"), "rank 1 never came: of 2 processes, rank 0 (pid "),
        (("absent", "hang before"), "rank 0 never came: of 2 processes, rank 1 (pid "),
        (("wait", "absent", "absent"), "ranks 1, 2 never came"),
    ],
)
def test_a_process_that_never_comes_is_named(what: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (process,) = start(tmp_path, *what)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and words in said


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_says_why_to_the_others(failing: int, tmp_path: Path) -> None:
    processes = start(tmp_path, *["fail" if rank == failing else "wait" for rank in range(2)])
    _, said = processes[1 - failing].communicate(timeout=60)
    processes[failing].communicate(timeout=60)
    assert [process.returncode for process in processes] == [0 if rank == failing else 75 for rank in range(2)]
    assert f"rank {failing} (pid {processes[failing].pid}" in said and "ended: ValueError: image 7 is broken" in said


def test_a_job_that_was_stopped_as_a_whole_goes_on(tmp_path: Path) -> None:
    processes = start(tmp_path, "work", "work")
    here(tmp_path, 2)
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    for process in processes:
        process.send_signal(signal.SIGCONT)
    assert [process.communicate(timeout=60) and process.returncode for process in processes] == [0, 0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"RANK": "2"}, "RANK=2 of WORLD_SIZE=2: a rank is a number from 0 to 1"),
        ({"RANK": "x"}, "RANK=x"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0: a port is a number"),
        ({"KUOSAN_BEAT": "soon"}, "KUOSAN_BEAT='soon': it must be a number of seconds above 0"),
        ({"KUOSAN_SILENCE": "-1"}, "KUOSAN_SILENCE='-1'"),
        ({"KUOSAN_SILENCE": "6"}, "at least twice the beat"),
    ],
)
def test_an_environment_without_sense_is_refused(
    changed: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"} | changed
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Error) as met:
        meet()
    assert words in str(met.value)


def test_the_times_are_five_sixty_and_seventy_five_seconds() -> None:
    assert (Times().beat, Times().silence, Times().arrival) == (5.0, 60.0, 75.0)
