"""Of several processes one that is stopped, killed, absent or fails is named by all others; a slow one is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from kuosan import Error
from kuosan.train.distributed import meet
from kuosan.train.processes import Times

WORKER = Path(__file__).with_name("beating.py")
AT_ONCE = 6  # scenes: their processes mostly wait


class Ended(NamedTuple):
    """What came of one process."""

    pid: int
    code: int
    said: str


def start(folder: Path, *what: str) -> list[subprocess.Popen[str]]:
    """A process for each rank; one of what "absent" has none."""
    started = []
    for rank, each in enumerate(what):
        if each != "absent":
            words = [sys.executable, str(WORKER), str(rank), str(len(what)), str(folder), each]
            started.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
    return started


def here(folder: Path, size: int) -> None:
    """Wait until all ranks have met."""
    end = time.monotonic() + 60
    while len(list(folder.glob("here-*"))) < size:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.5)


def play(
    folder: Path,
    what: Sequence[str],
    send: Mapping[int, signal.Signals] = {},  # to each rank, once all have met
    wake: bool = False,  # all of them 3 s later
) -> list[Ended]:
    """Start a process for each of what, and wait for all but those that a signal stopped or killed."""
    folder.mkdir()
    processes = start(folder, *what)
    try:
        if send:
            here(folder, len(what))
        for rank, number in send.items():
            processes[rank].send_signal(number)
        if wake:
            time.sleep(3)
            for process in processes:
                process.send_signal(signal.SIGCONT)
        ended = []
        for rank, process in enumerate(processes):
            waited = wake or rank not in send
            said = process.communicate(timeout=90)[1] if waited else ""
            ended.append(Ended(process.pid, process.returncode if waited else 0, said))
        return ended
    finally:
        for process in processes:
            process.kill()
            process.communicate()


STOPPED = [
    (victim, size, sent)
    for victim, size in ((0, 2), (1, 2), (0, 3), (2, 3))
    for sent in (signal.SIGSTOP, signal.SIGKILL)
]
SLOW = [("work", "wait-not"), ("wait-not", "work"), ("compute", ""), ("", "compute")]
ABSENT = [
    (("wait", "absent"), "rank 1 never came: of 2 processes, rank 0 (pid "),
    (("absent", "hang before"), "rank 0 never came: of 2 processes, rank 1 (pid "),
    (("wait", "absent", "absent"), "ranks 1, 2 never came"),
]
FAILING = [("fail", "wait"), ("wait", "fail")]
Scene = Callable[..., list[Ended]]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """What came of `play` with these arguments; all scenes of this module begin at once, as most of each is waiting."""
    home = tmp_path_factory.mktemp("scenes")
    every: list[tuple[Sequence[str], Mapping[int, signal.Signals], bool]] = [
        *((["wait"] * size, {victim: sent}, False) for victim, size, sent in STOPPED),
        *((what, {}, False) for what in [*SLOW, *(what for what, _ in ABSENT), *FAILING]),
        (["work", "work"], {0: signal.SIGSTOP, 1: signal.SIGSTOP}, True),
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        played = [pool.submit(play, home / str(i), *each) for i, each in enumerate(every)]

        def found(what: Sequence[str], send: Mapping[int, signal.Signals] = {}, wake: bool = False) -> list[Ended]:
            return played[every.index((what, send, wake))].result()

        yield found


@pytest.mark.parametrize(("victim", "size", "sent"), STOPPED)
def test_a_stopped_or_killed_process_is_named_by_all_others(
    victim: int, size: int, sent: signal.Signals, scene: Scene
) -> None:
    processes = scene(["wait"] * size, {victim: sent})
    for rank, (_, code, said) in enumerate(processes):
        if rank == victim:
            continue
        assert code == 75
        assert f"rank {victim} (pid {processes[victim].pid} on {os.uname().nodename})" in said
        assert ("has not answered for 1.5 s" in said) == (sent == signal.SIGSTOP)
        assert f"Rank {rank} saves nothing and ends" in said


@pytest.mark.parametrize("what", SLOW)
def test_a_slow_process_is_no_fault_and_the_others_wait_for_it_at_the_end(what: tuple[str, str], scene: Scene) -> None:
    assert [process.code for process in scene(what)] == [0, 0]


@pytest.mark.parametrize(("what", "words"), ABSENT)
def test_a_process_that_never_comes_is_named(what: tuple[str, ...], words: str, scene: Scene) -> None:
    (process,) = scene(what)
    assert process.code == 75 and words in process.said


@pytest.mark.parametrize("what", FAILING)
def test_a_process_that_fails_says_why_to_the_others(what: tuple[str, str], scene: Scene) -> None:
    failing, processes = what.index("fail"), scene(what)
    assert [process.code for process in processes] == [0 if rank == failing else 75 for rank in range(2)]
    said = processes[1 - failing].said
    assert f"rank {failing} (pid {processes[failing].pid}" in said and "ended: ValueError: image 7 is broken" in said


def test_a_job_that_was_stopped_as_a_whole_goes_on(scene: Scene) -> None:
    processes = scene(["work", "work"], {0: signal.SIGSTOP, 1: signal.SIGSTOP}, True)
    assert [process.code for process in processes] == [0, 0]


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
