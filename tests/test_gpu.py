"""On a CUDA device: every way of training and sampling gives what the CPU gives, to a stated distance.

In fp32 torch multiplies matrices in full and lets cuDNN's convolutions round to TF32 (2^-11), as it comes; that is what
the distances below leave room for. The CPU's own tests say that its numbers are right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import kuosan as package
from evaluate.measured import folder, network
from evaluate.measured import images as shades
from kuosan import config as trees
from kuosan import seeds
from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.device import Compute, ComputeConfig, choose
from kuosan.diffusion.registry import SAMPLERS
from kuosan.evaluate.likelihood import likelihood
from kuosan.sample.inversion import round_trip
from kuosan.storage import checkpoint
from kuosan.storage.log import Log
from kuosan.train import loop
from kuosan.train.api import prepare, start
from kuosan.train.loop import measure
from kuosan.train.report import SilentTraining
from kuosan.train.state import Run
from latent_models import autoencoder_run
from shell import QUICK, image_folder, kuosan

pytestmark = pytest.mark.gpu

GPU = "cuda"
DB = 45.0  # images of two devices, peak to peak 2
STEPS = 20
SAID = ["--size", "8", "--channels", "rgb", "--max-steps", STEPS, "--batch", "8", "--warmup", "1", "--lr", "2e-3",
        "--evaluate-every", STEPS // 2, "--evaluate-pictures", "16", "--hold-out", "0.2", "--workers", "0",
        "--precision", "fp32", "--threads", "1", "--device", GPU]  # fmt: skip
UNET = ["--model.network.channels", "32", "--multipliers", "1,2", "--attention", "false,true", "--groups", "8",
        "--model.network.blocks", "1", "--model.network.head-channels", "16"]  # fmt: skip
PREVIEWS = ["--preview-every", STEPS // 2, "--preview-pictures", "4", "--preview-steps", "4"]
BOUND = ["--model.schedule.T", "20", "--beta-start", "0.01", "--beta-end", "0.4", "--t-sampling", "importance"]
RUNS: dict[str, list[Any]] = {  # every kind of training, on the GPU
    "plain": [*UNET, *PREVIEWS],
    "labelled": [*UNET, *PREVIEWS, "--labels", "--model.network.dropout", "0.1", "--micro-batch", "3"],
    "dit": [
        *["--model.network.kind", "dit", "--width", "32", "--depth", "2", "--heads", "2", "--labels"],
        *PREVIEWS,
    ],
    "hybrid": [*UNET, *PREVIEWS, *BOUND, "--loss", "hybrid", "--learned-variance"],
    "vlb": [*UNET, *PREVIEWS, *BOUND, "--loss", "vlb", "--model.network.checkpointing"],
    "edm": [*UNET, *PREVIEWS, "--schedule", "karras"],
    "flow": [*UNET, *PREVIEWS, "--schedule", "flow", "--weight", "vlb", "--offset-noise", "0.1"],
    "classifier": [*UNET, "--objective", "classifier"],
    "judge": [*UNET, "--objective", "classifier", "--no-noisy"],
    "bf16": [*UNET, *PREVIEWS, "--labels", "--precision", "bf16"],
}


def on(device: str, precision: str = "fp32") -> Compute:
    return choose(ComputeConfig(device, precision))


def decibels(one: Tensor, other: Tensor) -> float:
    """The peak signal-to-noise ratio of images in [-1, 1]."""
    error = float((one.cpu().double() - other.cpu().double()).square().mean())
    return 10 * math.log10(4 / max(error, 1e-20))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("gpu") / "pictures", 60)


@pytest.fixture(scope="session")
def runs(data: Path) -> Callable[[str], Path]:
    """A run by its kind, trained when it is first asked for."""

    def run(kind: str) -> Path:
        out = data.parent / kind
        if not out.exists():
            own = RUNS[kind]
            said = [*SAID[: SAID.index("--precision")], *SAID[SAID.index("--precision") + 2 :]]
            flags = said if "--precision" in own else SAID
            told = kuosan("train", data, "--out", out, *flags, *own)
            assert told.code == 0, told
        return out

    return run


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_on_a_gpu_learns_previews_and_says_where_it_was(runs, kind: str):
    out = runs(kind)
    rows = list(Log(out / "log.jsonl").rows())
    losses = [row["loss"] for row in rows]
    assert len(rows) == STEPS and np.isfinite(losses).all() and not any("skipped" in row for row in rows), rows
    assert [row["step"] for row in rows if "held_out" in row] == [STEPS // 2, STEPS]
    assert all(math.isfinite(row["held_out"]["loss"]) for row in rows if "held_out" in row)
    saved = checkpoint.load(out)
    assert saved.step == STEPS and saved.state["compute"].startswith(GPU), saved.state
    for step in (STEPS // 2, STEPS) if "--preview-every" in RUNS[kind] else ():
        with Image.open(out / "samples" / f"step-{step:08d}.png") as grid:
            pixels = np.asarray(grid)
            assert grid.size == (22, 22) and pixels[2:10, 2:10].std() > 0, (grid.size, pixels.std())
    if kind in ("plain", "labelled", "classifier", "judge"):
        assert np.mean(losses[-4:]) < np.mean(losses[:4]), losses


# (run, what is asked of it); helpers are runs, too
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("plain", {"sampler": name}) for name in SAMPLERS},
    "a class": ("labelled", {"classes": ("light",)}),
    "no class": ("labelled", {"classes": ("none",)}),
    "guided": ("labelled", {"guidance": 3.0}),
    "guided from a class": ("labelled", {"guidance": 2.0, "classes": ("light",), "negative": "dark"}),
    "rescaled within an interval": (
        "labelled",
        {"guidance": 3.0, "guidance_rescale": 0.7, "guidance_interval": (0.2, 5.0)},
    ),
    "thresholded": ("labelled", {"guidance": 3.0, "threshold": 90.0}),
    "by a weaker run": ("plain", {"guidance": 2.0, "reference": "its first save"}),
    "by a classifier": ("plain", {"classifier": "classifier", "classifier_scale": 5.0, "classes": ("dark", "light")}),
    "by a classifier and without": ("labelled", {"guidance": 2.0, "classifier": "classifier"}),
    "DiT": ("dit", {}),
    "DiT, guided": ("dit", {"guidance": 2.0}),
    "learned variance": ("hybrid", {"sampler": "ddpm", "variance": "learned"}),
    "the bound's": ("vlb", {"sampler": "ddim", "eta": 1.0}),
    "EDM": ("edm", {"sampler": "heun", "s_churn": 2.0}),
    "flow": ("flow", {"sampler": "euler"}),
    "trained in bf16": ("bf16", {"guidance": 2.0}),
    "exact": ("labelled", {"exact": True}),
    "between two seeds": ("plain", {"between": (1, 2)}),
    "from an image": ("plain", {"strength": 0.5}),
}


def asked(runs: Callable[[str], Path], name: str, device: str, precision: str = "fp32", **more: Any) -> Tensor:
    """The images that an entry of ASKED names, made on a device."""
    kind, options = ASKED[name]
    options = {"seed": 0 if "between" in options else 3, "steps": 10, **options, **more}
    if options.get("reference"):
        options["reference"] = str(checkpoint.folder(runs("plain"), 0))
    if options.get("classifier"):
        options["classifier"] = str(runs("classifier"))
    if "strength" in options:
        options["start"] = torch.from_numpy(shades(1)[0] / 127.5 - 1).float().permute(2, 0, 1)
    made = package.load(runs(kind), compute=on(device, precision)).sample(4, **options)
    assert made.device.type == device.split(":")[0] and made.dtype == torch.float32
    return made


@pytest.mark.parametrize("name", ASKED)
def test_fp32_images_of_a_gpu_are_within_45_db_of_the_cpus(runs, name: str):
    cpu, gpu = (asked(runs, name, device) for device in ("cpu", GPU))
    assert cpu.std() > 0.05
    found = decibels(cpu, gpu)
    assert found >= DB, f"{name}: {found:.1f} dB, largest difference {float((cpu - gpu.cpu()).abs().max()):.4f}"


@pytest.mark.parametrize("name", ["ddim", "guided", "by a classifier", "DiT", "learned variance"])
def test_bf16_images_of_a_gpu_are_near_fp32s(runs, name: str):
    full, low = asked(runs, name, GPU), asked(runs, name, GPU, "bf16")
    assert bool(torch.isfinite(low).all()) and float(low.abs().max()) <= 1.01
    found = decibels(full, low)
    assert found >= 35, f"{name}: bf16 is {found:.1f} dB from fp32"


def test_an_image_hardly_depends_on_what_stands_beside_it(runs):
    found = decibels(asked(runs, "guided", GPU), asked(runs, "guided", GPU, batch=2))
    assert found >= DB, f"{found:.1f} dB"


def test_the_same_request_gives_the_same_bits(runs):
    one, again = (asked(runs, "guided", GPU, "bf16") for _ in range(2))
    assert torch.equal(one, again), f"{decibels(one, again):.1f} dB"


SMALL = {"channels": 16, "groups": 8, "head_channels": 16, "multipliers": [1], "attention": [True], "blocks": 1}
LEVELS = {"multipliers": [1, 2], "attention": [False, True]}
TRAINED: dict[str, dict[str, Any]] = {
    "simple": {},
    "labels": {"model": {"task": {"labels": True, "drop": 0.5}}},
    "min_snr of eps, offset noise": {
        "model": {"prediction": "eps"},
        "train": {"weight": "min_snr", "offset_noise": 0.1},
    },
    "the bound": {"train": {"loss": "vlb"}},
    "the hybrid, in parts": {"train": {"loss": "hybrid", "micro_batch": 3}, "model": {"learned_variance": True}},
    "edm": {"model": {"schedule": {"kind": "karras"}}},
    "flow": {"model": {"schedule": {"kind": "flow"}}},
    "a classifier": {"train": {"objective": "classifier"}},
    "recomputed, levels above 16 pixels": {"model": {"network": {"checkpointing": True, **LEVELS}}},
    "scale and shift, resampling blocks": {
        "model": {"network": {"time_conditioning": "scale_shift", "resample": "block", **LEVELS}}
    },
    "a DiT": {"model": {"network": {"kind": "dit", "width": 32, "depth": 2, "heads": 2}}},
    "an autoencoder and its critic": {
        "train": {"objective": "autoencoder", "autoencoder": {"features": "random", "critic_start": 0}},
        "model": {
            "network": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "critic_channels": 8, "critic_layers": 2}
        },
    },
}


@pytest.fixture(scope="session")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 32 pixels, where the U-Net enlarges by its four small kernels."""
    path = tmp_path_factory.mktemp("gpu") / "larger.npz"
    pixels = shades(30).repeat(4, 1).repeat(4, 2)
    np.savez(path, images=pixels, labels=(pixels.max((1, 2, 3)) > 100).astype(int))
    return path


def opened(data: Path, tree: dict[str, Any], device: str, precision: str = "fp32") -> Run:
    """A run before its first step, of which nothing is written; no weight of it is zero, the same on every device."""
    shape, objective = tree.get("model", {}).get("network", {}), tree.get("train", {}).get("objective")
    other = shape.get("kind") == "dit" or objective == "autoencoder"
    usual = {
        "data": {"path": str(data)},
        "model": {"network": {} if other else SMALL},
        "train": {"batch": 8, "max_steps": 10},
        "compute": {"device": device, "precision": precision},
    }
    run = start(prepare(data.parent / "never", trees.merge(usual, tree)), SilentTraining(), dry=True)
    moved = seeds.rng(5, "test/moved").standard_normal(len(run.state.parameters.values), dtype=np.float32)
    run.state.parameters.values.add_(torch.from_numpy(0.05 * moved).to(device))
    return run


def gradient(data: Path, tree: dict[str, Any], device: str, precision: str = "fp32") -> list[Tensor]:
    """The losses and the flat gradient of the first step."""
    run = opened(data, tree, device, precision)
    with loop.callers_generator(run.objective.compute.device):
        losses = loop.backward(run, run.batches.draw(0))
    return [losses.cpu(), run.state.parameters.grads.cpu().double()]


def off(a: Tensor, b: Tensor) -> float:
    """How far b is from a, as a share of a."""
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("kind", TRAINED)
def test_losses_and_gradients_of_a_gpu_are_the_cpus(larger: Path, kind: str):
    cpu, gpu = (gradient(larger, TRAINED[kind], device) for device in ("cpu", GPU))
    low = gradient(larger, TRAINED[kind], GPU, "bf16")
    found = f"{kind}: losses off by {off(cpu[0], gpu[0]):.2e}, gradients by {off(cpu[1], gpu[1]):.2e}; " \
            f"in bf16 by {off(cpu[0], low[0]):.2e} and {off(cpu[1], low[1]):.2e}"  # fmt: skip
    print(found)
    assert off(cpu[0], gpu[0]) < 2e-3 and off(cpu[1], gpu[1]) < 1e-2, found
    assert off(cpu[0], low[0]) < 1e-2 and off(cpu[1], low[1]) < 5e-2, found


@pytest.mark.parametrize("kind", ["labelled", "hybrid", "flow", "dit"])
def test_the_likelihood_of_a_gpu_is_the_cpus(runs, data: Path, kind: str):
    held = open_images(DataConfig(str(data), hold_out=0.2, size=8))
    ids = held.held_out[:4]
    batch = held.batch(ids)
    labels = batch.label.numpy() if batch.label is not None and kind in ("labelled", "dit") else None
    found = []
    for device in ("cpu", GPU):
        model = package.load(runs(kind), compute=on(device)).model
        told = likelihood(model, batch.x0, labels=labels, ids=ids.tolist(), evaluations=8, ode_steps=6)
        assert told.ode is not None
        found.append((told.bound.total.value, told.ode.total.value))
    assert found[1] == pytest.approx(found[0], rel=5e-3), f"{kind}: bound and ODE in bits/dim, CPU then GPU: {found}"


def test_an_image_goes_to_its_noise_and_back_as_on_the_cpu(runs):
    x0 = torch.from_numpy(shades(2) / 127.5 - 1).float().permute(0, 3, 1, 2)
    cpu, gpu = (round_trip(package.load(runs("plain"), compute=on(device)).model, x0, steps=10)
                for device in ("cpu", GPU))  # fmt: skip
    assert decibels(cpu.back, gpu.back) >= DB, f"{decibels(cpu.back, gpu.back):.1f} dB"
    assert decibels(cpu.noise, gpu.noise) >= DB, f"{decibels(cpu.noise, gpu.noise):.1f} dB"


@pytest.mark.parametrize("kind", ["plain", "labelled"])
def test_an_evaluation_beside_a_gpu_measures_what_the_cpu_does(runs, tmp_path: Path, kind: str):
    found = []
    judge = str(runs("judge"))
    for device in ("cpu", GPU):
        asked: dict[str, Any] = {"n": 12, "real": 12, "steps": 4, "batch": 6, "metrics": ("kid", "prdc", "frechet")}
        if kind == "labelled":
            asked |= {"metrics": ("kid", "labels"), "judge": judge, "guidance": 2.0}
        out = str(tmp_path / device)
        told = package.measure(
            runs(kind), network=network(), device=device, precision="fp32", force=True, out=out, **asked
        )
        found.append({name: figure.value for name, figure in told.figures.items()})
    assert found[0].keys() == found[1].keys() and len(found[0]) >= 2
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=0.02, abs=0.02), f"{name}: CPU then GPU: {found}"


def moved(run: Path, steps: int) -> dict[str, Tensor]:
    """The averaged weights of a save."""
    return load_file(checkpoint.folder(run, steps) / "ema.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("exactly", [True, False])
def test_a_stopped_run_on_a_gpu_goes_on_from_its_save(data: Path, tmp_path: Path, precision: str, exactly: bool):
    """With cuDNN's deterministic kernels and no attention bit for bit, otherwise as near as atomic sums allow."""
    own = {"--precision": precision, "--attention": str(not exactly).lower()}
    words = [own.get(str(before), word) for before, word in zip(["", *QUICK], QUICK, strict=False)]
    words += ["--model.network.middle-attention", str(not exactly).lower(), "--model.network.head-channels", "16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "deterministic", exactly)
        for run, stops in (("whole", [6]), ("part", [3, 6])):
            for steps in stops:
                words[words.index("--max-steps") + 1] = str(steps)
                said = kuosan(
                    "train", data, "--out", tmp_path / run, "--device", GPU, *words, "--model.network.dropout", "0.1"
                )
                assert said.code == 0, said
    start, whole, part = moved(tmp_path / "part", 3), moved(tmp_path / "whole", 6), moved(tmp_path / "part", 6)
    way = math.sqrt(sum(float((whole[name] - start[name]).square().sum()) for name in whole))
    apart = math.sqrt(sum(float((whole[name] - part[name]).square().sum()) for name in whole))
    unequal = [name for name in whole if not torch.equal(whole[name], part[name])]
    said_ = f"{apart / way:.2e} of the way of three steps apart, {len(unequal)} of {len(whole)} tensors: {unequal[:3]}"
    print(said_)
    assert not unequal if exactly else apart < 0.05 * way, said_


def test_the_time_and_memory_told_at_the_start_are_of_a_gpus_step(larger: Path):
    found = measure(opened(larger, {}, GPU))
    assert 0 < found.seconds < 5 and found.memory > 24 * found.parameters, found


@pytest.mark.parametrize(
    "how",
    [
        {"mask": True, "method": "ddnm"},
        {"mask": True, "method": "repaint", "jumps": 2, "jump_length": 3, "steps": 8},
        {"upscale": 2, "method": "pigdm"},
        {"upscale": 2, "method": "dps"},
        {"deblur": 1.0, "colorise": True, "noise": 4.0},
    ],
    ids=str,
)
def test_restored_images_of_a_gpu_are_within_45_db_of_the_cpus(trained_run: Path, how: dict[str, Any]) -> None:
    how = {"steps": 6, **how}
    side = 8 // how.get("upscale", 1)
    images = seeds.normal([(i, "test/gpu", 0, 0) for i in range(2)], (3, side, side)).clamp(-2, 2) / 2
    if "colorise" in how:
        images = images[:, :1].expand(-1, 3, -1, -1)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    given = [images, mask] if how.pop("mask", False) else [images]
    made = []
    for device in ("cpu", "cuda"):
        trained = package.load(trained_run, compute=choose(ComputeConfig(device, "fp32")))
        made.append(trained.restore(*given, seed=3, **how).cpu())
    error = float((made[0] - made[1]).square().mean())
    assert 10 * np.log10(4 / max(error, 1e-20)) >= 45, f"mean squared error {error:g}"


@pytest.mark.parametrize("task", ["super_resolution", "inpainting"])
def test_training_to_restore_runs_on_a_gpu_and_shows_its_previews(tmp_path: Path, task: str) -> None:
    own = {"--preview-every": "3"}
    flags = [own.get(before, word) for before, word in zip(["", *QUICK], QUICK, strict=False)]
    scale = ["--scale", "2"] if task == "super_resolution" else []
    said = kuosan("train", image_folder(tmp_path / "p"), "--task", task, *scale, "--preview-steps", 2,
                  "--out", tmp_path / "run", "--device", "cuda", *flags)  # fmt: skip
    assert said.code == 0, said
    assert (tmp_path / "run" / "samples" / "step-00000003.png").is_file()


def test_latents_are_encoded_trained_on_and_sampled_on_a_gpu_as_on_a_cpu(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUOSAN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    told = kuosan("train", data, "--out", out, "--codec", autoencoder_run(tmp_path / "ae"), *SAID, *UNET, *PREVIEWS)
    assert told.code == 0 and "encoded in" in told.out, told
    model, other = (package.load(out, compute=on(device)) for device in (GPU, "cpu"))
    made = model.sample(4, steps=4, exact=True)
    assert decibels(made, other.sample(4, steps=4, exact=True)) > 35
    assert torch.equal(made[2:3], model.sample(1, seed=2, steps=4, exact=True))
    hole = torch.zeros(1, 1, 8, 8)
    hole[..., :4] = 1
    for damage in ({"mask": hole}, {"colorise": True, "method": "dps"}, {"deblur": 1.0, "method": "ddnm"}):
        image = made[:1].cpu() if "mask" in damage or "deblur" in damage else made[:1, :1].cpu()
        answers = [each.restore(image, steps=4, **damage) for each in (model, other)]
        assert decibels(*answers) > 30, damage


def test_words_are_learned_and_sampled_on_a_gpu_as_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "run"
    text = ["--text", "bytes", "--model.text.width", "16", "--model.text.depth", "1", "--model.text.heads", "2"]
    told = kuosan("train", "portraits", "--out", out, *(word for word in SAID if word not in ("--hold-out", "0.2")),
                  *UNET, *text, *PREVIEWS)  # fmt: skip
    assert told.code == 0, told
    model, other = (package.load(out, compute=on(device)) for device in (GPU, "cpu"))
    asked: dict[str, Any] = {"prompts": ["a (person:1.3)", "blond hair"], "guidance": 2.0, "negative": "a dress"}
    made = model.sample(4, steps=4, exact=True, **asked)
    assert decibels(made, other.sample(4, steps=4, exact=True, **asked)) > 40
    assert (made[:1] - model.sample(1, steps=4, exact=True, prompts=["blond hair"], guidance=2.0)).abs().max() > 0
