"""The training loops that train_throughput.py times, each as its own project runs it by default.

A contestant is a function `(images, batch, widths) -> (name, network, advance)`; `advance(n)` takes n optimiser
steps. All train an unconditional U-Net with those widths, one residual block a level going down (the peers' own rule
going up), on the same images (N, 1, 32, 32) uint8, with a horizontal flip, one process, no data workers.
"""

from __future__ import annotations

import atexit
import functools
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

Contestant = tuple[str, torch.nn.Module, Callable[[int], None]]

PREVIEWS_NEVER = 10**9  # steps between previews: none falls into a measured round


class Images(torch.utils.data.Dataset):
    """Flip, [0, 1], normalise to [-1, 1]: the transforms of diffusers' script, on images already decoded."""

    def __init__(self, images: np.ndarray, flip: bool = True) -> None:
        self.images, self.flip = torch.from_numpy(images), flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        x = self.images[i].float() / 255
        if self.flip and torch.rand(1).item() < 0.5:
            x = x.flip(-1)
        return {"input": (x - 0.5) / 0.5}


def scripts_average(network: torch.nn.Module) -> EMAModel:
    """The averaged weights as diffusers' train_unconditional.py keeps them by default."""
    from diffusers.training_utils import EMAModel

    return EMAModel(
        network.parameters(),
        decay=0.9999,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=0.75,
        model_cls=type(network),
        model_config=network.config,
    )


def diffusers(images: np.ndarray, batch: int, widths: tuple[int, ...], head: int = 8) -> Contestant:
    """diffusers' examples/unconditional_image_generation/train_unconditional.py as its README runs it (--use_ema).

    fp32, AdamW (0.95, 0.999), cosine schedule with 500 warm-up steps, gradient clipping to 1, EMA every step, the loss
    read every step for the bar. Only the widths are ours (the script's default is for 256 pixels); attention heads are
    UNet2DModel's default, 8 channels wide, unless `head` says otherwise.
    """
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler

    accelerator = Accelerator(cpu=True)
    model = UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=widths,
        attention_head_dim=head,
        down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * (len(widths) - 1),
        up_block_types=("AttnUpBlock2D",) * (len(widths) - 1) + ("UpBlock2D",),
    )
    ema = scripts_average(model)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    loader = torch.utils.data.DataLoader(Images(images), batch_size=batch, shuffle=True, num_workers=0)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=len(loader) * 100)
    model, optimizer, loader, rate = accelerator.prepare(model, optimizer, loader, rate)
    model.train()
    batches = forever(loader)

    def advance(steps: int) -> None:
        for _ in range(steps):
            clean = next(batches)["input"]
            noise = torch.randn(clean.shape)
            t = torch.randint(0, 1000, (len(clean),)).long()
            noisy = scheduler.add_noise(clean, noise, t)
            with accelerator.accumulate(model):
                loss = F.mse_loss(model(noisy, t).sample, noise)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                ema.step(model.parameters())
            loss.detach().item()

    return f"diffusers, heads of {head}", model, advance


def ddp(images: np.ndarray, batch: int, widths: tuple[int, ...]) -> Contestant:
    """denoising-diffusion-pytorch: its own Unet, GaussianDiffusion and Trainer, with their defaults (fp32, Adam, EMA).

    The Trainer reads PNG files; the first 2,000 images are written for it. Its data workers, one a processor by
    default, are set to 0, since one core is measured.
    """
    sys.path.append(str(Path(__file__).parent / "stubs"))
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as package
    from PIL import Image

    folder = scratch()
    for i, image in enumerate(images[:2000]):
        Image.fromarray(image[0]).save(folder / f"{i}.png")
    package.cpu_count = lambda: 0
    package.tqdm = functools.partial(package.tqdm, file=io.StringIO())
    model = package.Unet(dim=widths[0], dim_mults=tuple(width // widths[0] for width in widths), channels=1)
    diffusion = package.GaussianDiffusion(model, image_size=32)
    trainer = package.Trainer(
        diffusion,
        str(folder),
        train_batch_size=batch,
        train_num_steps=0,
        save_and_sample_every=PREVIEWS_NEVER,
        calculate_fid=False,
        results_folder=str(folder / "results"),
    )

    def advance(steps: int) -> None:
        trainer.train_num_steps += steps
        trainer.train()

    return "denoising-diffusion-pytorch", model, advance


def kuosan(images: np.ndarray, batch: int, widths: tuple[int, ...], head: int = 64) -> Contestant:
    """kuosan's own loop: `prepare`, `start` and `loop.train` as the shell calls them, precision by hardware.

    The network has the widths and blocks of diffusers' above, and attention heads as wide as kuosan's default has them;
    with `head` 8 both compute the same function. Only saves, held-out losses and previews are put
    off beyond the last step, as in the peers; log, EMA, clipping and the non-finite guard run at every step. The loop
    runs in a thread that waits for its turn in the report it makes at the end of each step.
    """
    from paced import Turns

    from kuosan.train.api import prepare, start

    folder = scratch()
    np.savez(folder / "pictures.npz", images=images[:, 0])
    network = {
        "channels": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": 1,
        "attention": [False] + [True] * (len(widths) - 1),
        "head_channels": head,
        "patch": 1,
    }
    train = {"batch": batch, "max_steps": PREVIEWS_NEVER, "save_every": PREVIEWS_NEVER}
    tree = {
        "data": {"path": str(folder / "pictures.npz"), "flip": True, "hold_out": 0.0},
        "model": {"network": network},
        "train": {**train, "evaluate_every": 0, "preview_every": 0},
        "compute": {"device": "cpu", "threads": 1},
    }
    turns = Turns()
    run = start(prepare(folder / "run", tree), turns)
    return f"kuosan, heads of {head}", run.model.network, turns.pace(run)


def scratch() -> Path:
    """A folder of its own that is gone when the process ends."""
    folder = tempfile.mkdtemp(prefix="kuosan-benchmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def forever(loader: torch.utils.data.DataLoader) -> Iterator[dict[str, torch.Tensor]]:
    """Batches without end, an epoch after the other."""
    while True:
        yield from loader


CONTESTANTS = {
    "kuosan": kuosan,
    "kuosan-heads8": functools.partial(kuosan, head=8),
    "diffusers": diffusers,
    "diffusers-heads64": functools.partial(diffusers, head=64),
    "ddp": ddp,
}
