"""Two peers' trainings from nothing on small images, step by step, for `first_minutes.py`.

Each by its own usual settings, remade from its own parts, and once more (`-ours`) with ours in as far as it offers
them: a network of our size, the image predicted and its squared error alike at every timestep, our rate and its course,
our batch, cosine betas. A trainee has:

    batch, parameters, lr      `lr(share)` sets the rate of the next step where the settings are ours
    advance()                  one optimiser step
    averaged()                 the state of the averaged network, from which is sampled

`sample` makes images of such a state by DDIM, each peer's own.
"""

from __future__ import annotations

import functools
import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from training_contestants import Images, forever, scratch, scripts_average

PEERS = ("diffusers", "denoising-diffusion-pytorch", "diffusers-ours", "denoising-diffusion-pytorch-ours")
OURS = {"lr": 1e-3, "batch": 16, "warmup": 0.1}  # of the defaults; cosine from there to 0
PRECISION = "bf16"  # autocast: 1.3 to 1.7 times as fast as fp32 in both on a processor with AMX, measured
NEVER = 10**9
SAMPLED = 100  # images in a batch


@dataclass
class Trainee:
    """A training that goes on by one step."""

    batch: int
    network: torch.nn.Module
    advance: Callable[[], None]
    averaged: Callable[[], dict[str, torch.Tensor]]
    groups: list[dict[str, Any]] = field(default_factory=list)  # of its optimiser, where the rate is ours

    @property
    def parameters(self) -> int:
        return sum(each.numel() for each in self.network.parameters())

    def lr(self, share: float) -> None:
        """Our rate after a share of the training: rising over `warmup`, then half a cosine to 0."""
        rise = OURS["warmup"]
        part = share / rise if share < rise else (1 + math.cos(math.pi * (share - rise) / (1 - rise))) / 2
        for group in self.groups:
            group["lr"] = OURS["lr"] * max(part, 0.01)


def trainee(name: str, images: np.ndarray) -> Trainee:
    """A peer by name, on images (N, H, W, C) uint8."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    make = diffusers if name.startswith("diffusers") else ddp
    return make(images, name.endswith("-ours"))


def sample(name: str, state: dict[str, torch.Tensor], channels: int, size: int, n: int, steps: int) -> np.ndarray:
    """(n, size, size, channels) uint8 by DDIM, eta 0; the network in bf16, the rest in fp32."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours = name.endswith("-ours")
    make = _denoise_diffusers if name.startswith("diffusers") else _denoise_ddp
    draw = make(state, channels, size, ours, steps)
    with torch.inference_mode():
        made = torch.cat([draw(min(SAMPLED, n - i)).float() for i in range(0, n, SAMPLED)])  # in [0, 1]
    return (made.clamp(0, 1) * 255).round().byte().movedim(1, -1).contiguous().numpy()


# --- diffusers --------------------------------------------------------------------------------------------------------


def diffusers_network(channels: int, size: int, ours: bool) -> torch.nn.Module:
    """The network of its script, whatever the resolution; ours: the nearest of about our size, with heads as wide."""
    from diffusers import UNet2DModel

    down, up, attend_down, attend_up = "DownBlock2D", "UpBlock2D", "AttnDownBlock2D", "AttnUpBlock2D"
    shape: dict[str, Any] = {
        "layers_per_block": 2,
        "block_out_channels": (128, 128, 256, 256, 512, 512),
        "down_block_types": (down, down, down, down, attend_down, down),
        "up_block_types": (up, attend_up, up, up, up, up),
    }
    if ours:
        shape = {
            "layers_per_block": 1,
            "block_out_channels": (32, 64, 128),
            "down_block_types": (down, attend_down, attend_down),
            "up_block_types": (attend_up, attend_up, up),
            "attention_head_dim": 32,
        }
    return UNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, **shape)


def diffusers_noise(ours: bool) -> Any:
    """The script's scheduler."""
    from diffusers import DDPMScheduler

    if not ours:
        return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="sample")


def diffusers(images: np.ndarray, ours: bool) -> Trainee:
    """train_unconditional.py as its README runs it, but in bf16: batch 16, 1e-4, 500 warm-up steps, --use_ema."""
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler

    accelerator = Accelerator(cpu=True, mixed_precision=PRECISION)
    network = diffusers_network(images.shape[3], images.shape[1], ours)
    ema, noises = scripts_average(network), diffusers_noise(ours)
    batch, lr = (int(OURS["batch"]), OURS["lr"]) if ours else (16, 1e-4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    data = Images(np.ascontiguousarray(np.moveaxis(images, 3, 1)), flip=not ours)
    loader = torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True, num_workers=0)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=len(loader) * 100)
    model, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    if not ours:
        rate = accelerator.prepare(rate)
    model.train()
    batches = forever(loader)

    def advance() -> None:
        clean = next(batches)["input"]
        noise = torch.randn(clean.shape)
        t = torch.randint(0, 1000, (len(clean),)).long()
        with accelerator.accumulate(model):
            out = model(noises.add_noise(clean, noise, t), t).sample
            loss = F.mse_loss(out.float(), clean if ours else noise)  # ours without the script's weight, the SNR
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if not ours:
                rate.step()
            optimizer.zero_grad()
        ema.step(model.parameters())
        loss.detach().item()

    def averaged() -> dict[str, torch.Tensor]:
        ema.store(network.parameters())
        ema.copy_to(network.parameters())
        state = {name: value.detach().clone() for name, value in network.state_dict().items()}
        ema.restore(network.parameters())
        return state

    return Trainee(batch, network, advance, averaged, optimizer.param_groups if ours else [])


def _denoise_diffusers(
    state: dict[str, torch.Tensor], channels: int, size: int, ours: bool, steps: int
) -> Callable[[int], torch.Tensor]:
    from diffusers import DDIMScheduler

    network = diffusers_network(channels, size, ours)
    network.load_state_dict(state)
    network = network.to(torch.bfloat16).eval().to(memory_format=torch.channels_last)
    scheduler = DDIMScheduler.from_config(diffusers_noise(ours).config)
    scheduler.set_timesteps(steps)

    def draw(n: int) -> torch.Tensor:
        x = torch.randn(n, channels, size, size)
        for t in scheduler.timesteps:
            given = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
            x = scheduler.step(network(given, t).sample.float().contiguous(), t, x).prev_sample
        return x / 2 + 0.5

    return draw


# --- denoising-diffusion-pytorch --------------------------------------------------------------------------------------


def _ddp_package() -> Any:
    """Its module, with a stand-in for torchvision, without its workers and its bars."""
    sys.path.append(str(Path(__file__).parent / "stubs"))
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as package

    package.cpu_count = lambda: 0
    package.tqdm = functools.partial(package.tqdm, file=io.StringIO())
    return package


def ddp_diffusion(channels: int, size: int, ours: bool, steps: int | None = None) -> Any:
    """Its README's network and its own defaults (v, sigmoid betas); ours: the nearest of about our size."""
    package = _ddp_package()
    if not ours:
        network = package.Unet(dim=64, dim_mults=(1, 2, 4, 8), channels=channels)
        return package.GaussianDiffusion(network, image_size=size, sampling_timesteps=steps)
    network = package.Unet(dim=32, dim_mults=(1, 2, 4), channels=channels)
    diffusion = package.GaussianDiffusion(
        network, image_size=size, sampling_timesteps=steps, objective="pred_x0", beta_schedule="cosine"
    )
    diffusion.loss_weight.fill_(1.0)  # in place of the SNR
    return diffusion


def ddp(images: np.ndarray, ours: bool) -> Trainee:
    """Its Trainer's defaults, but in bf16: batch 16, Adam 1e-4, mirrored at random, EMA 0.995 every 10 steps."""
    from PIL import Image

    folder = scratch()
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{i}.png")
    diffusion = ddp_diffusion(images.shape[3], images.shape[1], ours)
    batch, lr = (int(OURS["batch"]), OURS["lr"]) if ours else (16, 1e-4)
    trainer = _ddp_package().Trainer(
        diffusion,
        str(folder),
        train_batch_size=batch,
        train_lr=lr,
        augment_horizontal_flip=not ours,
        train_num_steps=0,
        save_and_sample_every=NEVER,
        calculate_fid=False,
        amp=PRECISION == "bf16",
        mixed_precision_type="bf16",
        results_folder=str(folder / "results"),
    )

    def advance() -> None:
        trainer.train_num_steps += 1
        trainer.train()

    def averaged() -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in trainer.ema.ema_model.state_dict().items()}

    return Trainee(batch, diffusion.model, advance, averaged, trainer.opt.param_groups if ours else [])


def _denoise_ddp(
    state: dict[str, torch.Tensor], channels: int, size: int, ours: bool, steps: int
) -> Callable[[int], torch.Tensor]:
    diffusion = ddp_diffusion(channels, size, ours, steps).eval()
    diffusion.load_state_dict(state)
    diffusion.model.to(torch.bfloat16).to(memory_format=torch.channels_last)
    denoise = diffusion.model.forward

    def forward(x: torch.Tensor, t: torch.Tensor, x_self_cond: torch.Tensor | None = None) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: torch.Tensor = denoise(x.contiguous(memory_format=torch.channels_last), t, x_self_cond)
        return out.float().contiguous()

    diffusion.model.forward = forward
    return lambda n: diffusion.sample(batch_size=n)
