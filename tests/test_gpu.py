"""On a CUDA device: the same noise as on the CPU, pictures close to the CPU's, training that resumes bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kuosan as package
from kuosan.device import ComputeConfig, choose
from shell import QUICK, kuosan, picture_folder

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver_2m"])
def test_fp32_pictures_of_a_gpu_are_within_45_db_of_the_cpus(trained_run: Path, sampler: str):
    made = []
    for device in ("cpu", "cuda"):
        trained = package.load(trained_run, compute=choose(ComputeConfig(device, "fp32")))
        made.append(trained.sample(4, seed=3, sampler=sampler, steps=10).cpu())
    error = float((made[0] - made[1]).square().mean())
    assert 10 * np.log10(4 / max(error, 1e-20)) >= 45  # peak to peak 2


def test_bf16_pictures_of_a_gpu_are_finite_and_in_range(trained_run: Path):
    trained = package.load(trained_run, compute=choose(ComputeConfig("cuda", "bf16")))
    pictures = trained.sample(4, steps=10)
    assert pictures.device.type == "cuda" and bool(torch.isfinite(pictures).all())
    assert float(pictures.abs().max()) <= 1.01


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_on_a_gpu_goes_on_from_its_save(tmp_path: Path, precision: str):
    pictures = picture_folder(tmp_path / "pictures")
    end = "checkpoints/step-00000006/ema.safetensors"
    for run, stops in (("whole", [6]), ("part", [3, 6])):
        for steps in stops:
            own = {"--precision": precision, "--max-steps": str(steps)}
            flags = [own.get(before, word) for before, word in zip(["", *QUICK], QUICK, strict=False)]
            said = kuosan("train", pictures, "--out", tmp_path / run, "--device", "cuda", *flags)
            assert said.code == 0, said
    whole, part = (load_file(tmp_path / run / end) for run in ("whole", "part"))
    for name, tensor in whole.items():
        assert torch.allclose(tensor, part[name], rtol=1e-4, atol=1e-5), name
