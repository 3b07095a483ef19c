"""What hardware there is decides device and precision; each can be overridden, and what is not there is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kuosan import device
from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error
from tiny_models import threads


@pytest.fixture
def bare_cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No accelerator, and a processor of no special flags."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"avx2", "avx512f"})
    return monkeypatch


def test_a_plain_processor_computes_in_fp32(bare_cpu: pytest.MonkeyPatch) -> None:
    compute = choose()
    assert (compute.device.type, compute.dtype) == ("cpu", torch.float32)
    assert compute.threads == torch.get_num_threads()


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16"])
def test_a_processor_with_bf16_instructions_computes_in_bf16(bare_cpu: pytest.MonkeyPatch, flag: str) -> None:
    bare_cpu.setattr(device, "_cpu_flags", lambda: {"avx2", flag})
    assert choose().dtype == torch.bfloat16
    assert choose(ComputeConfig(precision="fp32")).dtype == torch.float32


def test_precision_can_be_forced_either_way(bare_cpu: pytest.MonkeyPatch) -> None:
    assert choose(ComputeConfig(precision="bf16")).dtype == torch.bfloat16
    assert choose(ComputeConfig(precision="fp32")).dtype == torch.float32


def test_one_line_says_what_was_chosen(bare_cpu: pytest.MonkeyPatch) -> None:
    bare_cpu.setattr(device, "_name", lambda device: "Abacus 3")
    with threads(1):
        assert (
            str(choose(ComputeConfig(precision="bf16", threads=1))) == "cpu (Abacus 3), bf16, channels_last, 1 thread"
        )
        assert str(choose(ComputeConfig(threads=2))) == "cpu (Abacus 3), fp32, channels_last, 2 threads"


def test_threads_are_set_only_when_asked_for(bare_cpu: pytest.MonkeyPatch) -> None:
    with threads(2):
        assert choose(ComputeConfig(threads=1)).threads == torch.get_num_threads() == 1
        assert choose(ComputeConfig()).threads == torch.get_num_threads() == 1


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_cuda_is_taken_where_it_is_and_bf16_from_ampere_on(
    bare_cpu: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    bare_cpu.setattr(torch.cuda, "is_available", lambda: True)
    bare_cpu.setattr(torch.cuda, "device_count", lambda: 2)
    bare_cpu.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    bare_cpu.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    bare_cpu.delenv("LOCAL_RANK", raising=False)
    compute = choose()
    assert (str(compute.device), compute.dtype) == ("cuda:0", dtype)
    bare_cpu.setenv("LOCAL_RANK", "3")  # as torchrun sets it
    assert str(choose().device) == "cuda:1"
    assert str(choose(ComputeConfig(device="cpu")).device) == "cpu"
    with pytest.raises(Error, match=r"cuda:5.*2 CUDA device"):
        choose(ComputeConfig(device="cuda:5"))


def test_an_apple_gpu_is_taken_in_fp32(bare_cpu: pytest.MonkeyPatch) -> None:
    bare_cpu.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (choose().device.type, choose().dtype) == ("mps", torch.float32)


@pytest.mark.parametrize(
    ("name", "said"),
    [("cuda", "sees no CUDA device"), ("cuda:1", "sees no CUDA device"), ("mps", "sees no Apple GPU")],
)
def test_a_device_that_is_not_there_is_refused(bare_cpu: pytest.MonkeyPatch, name: str, said: str) -> None:
    with pytest.raises(Error, match=said):
        choose(ComputeConfig(device=name))


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:", "cpu:1:2", "tpu:0"])
def test_a_name_that_is_no_device_is_refused(bare_cpu: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(Error, match="device"):
        choose(ComputeConfig(device=name))


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"precision": "fp16"}, "bf16"), ({"threads": -1}, "threads = -1"), ({"threads": 4096}, "threads = 4096")],
)
def test_settings_without_meaning_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(Error, match=said):
        ComputeConfig(**settings)  # type: ignore[arg-type]


def test_flags_and_name_of_this_processor_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Abacus 3\nflags\t\t: fpu avx2 amx_bf16\nprocessor : 1\n")
    monkeypatch.setattr(device, "CPUINFO", info)
    assert device._cpu_flags() == {"fpu", "avx2", "amx_bf16"}
    assert device._name(torch.device("cpu")) == "Abacus 3"
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "none")
    assert device._cpu_flags() == set() and device._name(torch.device("cpu"))


@pytest.mark.gpu
def test_a_real_card_is_chosen() -> None:
    assert choose().device.type == "cuda"


def test_each_of_several_processes_takes_a_cuda_device_of_its_own(bare_cpu: pytest.MonkeyPatch) -> None:
    bare_cpu.setattr(torch.cuda, "is_available", lambda: True)
    bare_cpu.setattr(torch.cuda, "device_count", lambda: 2)
    bare_cpu.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    bare_cpu.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    bare_cpu.setenv("LOCAL_RANK", "1")
    bare_cpu.setenv("LOCAL_WORLD_SIZE", "2")
    assert str(choose(ComputeConfig(device="cuda")).device) == "cuda:1"  # with its number, as set_device wants it
    with pytest.raises(Error, match=r"cuda:0: several processes cannot share.*say cuda"):
        choose(ComputeConfig(device="cuda:0"))
