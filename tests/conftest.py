"""What every test relies on: one thread that does not spin, files in memory, and which tests run by default."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # read when libgomp loads; spinning threads cost 5-25x on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_DEBUG_TEMPROOT" not in os.environ and (memory := Path("/dev/shm")).is_dir():
    free = os.statvfs(memory)
    if free.f_bavail * free.f_frsize > 4 << 30:  # for tmp_path: an fsync there takes 5 us, on a disk 5 ms
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(memory)

import pytest
import torch

import warm_processes

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = pytest.mark.skip(reason="takes minutes: run with --slow")
    gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(gpu)


_frozen: list[object] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before a file's first test, and after imports: collections of garbage pass over torch and all else that stays."""
    now = [item.path, len(sys.modules)]
    if now != _frozen:
        _frozen[:] = now
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    warm_processes.close()


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on six pictures of 8 x 8, shared: copy it before changing it."""
    from shell import QUICK, kuosan, picture_folder

    home = tmp_path_factory.mktemp("trained")
    said = kuosan("train", picture_folder(home / "pictures"), "--out", home / "run", "--hold-out", 0, *QUICK)
    assert said.code == 0, said
    return home / "run"
