"""What hardware there is, and what follows from it: device, precision, memory format, threads, each overridable."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kuosan.errors import Error, plural, unknown

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")  # Linux only
PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class ComputeConfig:
    """Where and how to compute; `auto` looks at the hardware."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1 or mps
    precision: str = "auto"  # auto, bf16 or fp32: what the network's products are computed in; weights stay fp32
    threads: int = 0  # processor threads; 0 lets torch choose

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.device.split(":")[0] not in ("auto", "cpu", "cuda", "mps"):
            raise unknown("device", self.device, ("auto", "cpu", "cuda", "cuda:N", "mps"))
        if not 0 <= self.threads <= 1024:
            raise Error(f"threads = {self.threads} is not allowed: 0 (torch chooses) to 1024.")


ACCELERATED = 30.0  # cores that a GPU is worth, by the least of docs/gpu.md
MOST_CORES = 4


@dataclass(frozen=True)
class Compute:
    """The decision: where the network runs and in which numbers."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    name: str

    @property
    def cores(self) -> float:
        """How many processor cores it is worth to a small network, roughly: what more threads gain soon ends."""
        return ACCELERATED if self.device.type != "cpu" else float(min(self.threads, MOST_CORES))

    def __str__(self) -> str:
        numbers = {"torch.bfloat16": "bf16", "torch.float32": "fp32"}[str(self.dtype)]
        layout = "channels_last" if self.device.type in ("cpu", "cuda") else "contiguous"
        threads = f", {plural(self.threads, 'thread')}" if self.device.type == "cpu" else ""
        return f"{self.device} ({self.name}), {numbers}, {layout}{threads}"


def choose(config: ComputeConfig | None = None) -> Compute:
    """Decide from the configuration and the hardware; sets torch's thread count when one is asked for.

    Raises:
        Error: a device that this machine or this build of torch does not have.
    """
    import torch

    config = config or ComputeConfig()
    if config.threads:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    fast = _has_fast_bf16(device)
    dtype = torch.bfloat16 if config.precision == "bf16" or (config.precision == "auto" and fast) else torch.float32
    return Compute(device, dtype, torch.get_num_threads(), _name(device))


def _device(wanted: str) -> torch.device:
    import torch

    if wanted == "auto" and not torch.cuda.is_available():
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if wanted in ("auto", "cuda") and torch.cuda.is_available():  # torchrun's processes take one each
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise Error(f"device {wanted!r} is not a device; allowed: auto, cpu, cuda, cuda:N, mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Error("device cuda: torch sees no CUDA device here; use --device cpu, or install a CUDA build of torch.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Error(
            f"device {wanted}: this machine has {plural(torch.cuda.device_count(), 'CUDA device')}, numbered from 0."
        )
    if device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise Error(
            f"device {wanted}: several processes cannot share one CUDA device; say cuda, and each takes its own."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise Error("device mps: torch sees no Apple GPU here; use --device cpu.")
    return device


def _has_fast_bf16(device: torch.device) -> bool:
    """bf16 pays on CUDA from Ampere on and on processors with AMX or AVX-512 BF16; elsewhere it is emulated."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and bool(_cpu_flags() & {"amx_bf16", "avx512_bf16"})


def _cpu_flags() -> set[str]:
    line = next((line for line in _cpuinfo() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def _cpuinfo() -> list[str]:
    return CPUINFO.read_text().splitlines() if CPUINFO.exists() else []


def _name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    return model or platform.processor() or platform.machine()
