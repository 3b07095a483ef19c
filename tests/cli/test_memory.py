"""Out of memory is an answer with a cure, on whichever device; other errors of torch stay bugs with a traceback."""

from __future__ import annotations

import pytest
import torch

from shell import kuosan


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_out_of_memory_is_one_line_with_the_cure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("kuosan.cli.train.train_job", full)
    said = kuosan("train", "portraits", "--out", "nowhere")
    assert said.code == 71 and "out of memory" in said.err and "--micro-batch" in said.err
    assert "Traceback" not in said.err


def test_other_errors_of_torch_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("kuosan.cli.train.train_job", wrong)
    with pytest.raises(RuntimeError, match="multiplied"):
        kuosan("train", "portraits", "--out", "nowhere")
