"""Sampling throughput with one set of weights: diffusers' default DDIM pipeline against kuosan, one core.

    python benchmarks/sample_throughput.py                     # batch 8, 50 DDIM steps, 3 rounds
    python benchmarks/sample_throughput.py --steps 5 --rounds 1

The network has the shape of google/ddpm-cifar10-32 (35.7 M parameters) with random weights, which kuosan takes over
through `kuosan.convert.diffusers`. diffusers runs as its pipeline does by default: eager, fp32, NCHW. Both start from
the same noise, so the images are compared too. `use_clipped_model_output=True` is given to the pipeline, since kuosan
recomputes eps after clipping x0; it takes no time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import turns

NAMES = ("kuosan", "diffusers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(NAMES), help="comma-separated, of kuosan, diffusers, kuosan-fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prime", type=int, default=16, help="training steps beforehand, see `primed`")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="processor to run on")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return turns.serve(args.core, lambda: contestant(args))
    with tempfile.TemporaryDirectory(prefix="kuosan-benchmark-") as folder:
        primed(unet(), args.prime).save_pretrained(Path(folder) / "unet")
        flags = [f"--{name}={getattr(args, name)}" for name in ("batch", "core")] + [f"--folder={folder}"]
        about, taken = turns.race(__file__, args.only.split(","), args.rounds, args.steps, flags)
        made = {name: np.load(Path(folder) / f"{name.partition('@')[0]}.npy") for name in taken}
    report(args, about, taken, made)


def contestant(args: argparse.Namespace) -> tuple[dict, Callable[[int], None]]:
    """The worker's sampler: `advance(steps)` makes one batch and leaves the images, [-1, 1], in a file."""
    make = {"diffusers": pipeline, "kuosan": kuosan, "kuosan-fp32": kuosan}[args.worker](args)
    make(1)  # what is set up on the first call is not timed

    def advance(steps: int) -> None:
        np.save(args.folder / f"{args.worker}.npy", make(steps))

    return {"name": args.worker}, advance


def unet():  # -> UNet2DModel
    """The shape of google/ddpm-cifar10-32, from a fixed seed."""
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def primed(network, steps: int):
    """Teaches the network a little denoising, on images of plain random colours.

    With weights straight from the seed almost every pixel ends clipped at -1 or 1, where two programs agree however far
    they have drifted; a few dozen steps leave images with something between.
    """
    import torch
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="linear")
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    for _ in range(steps):
        colours = torch.rand(8, 3, 1, 1) * 1.6 - 0.8
        x0, t = colours.expand(8, 3, 32, 32), torch.randint(0, 1000, (8,))
        eps = torch.randn(x0.shape)
        loss = (network(scheduler.add_noise(x0, eps, t), t).sample - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def weights(args: argparse.Namespace):  # -> UNet2DModel
    """The network that all contestants share."""
    from diffusers import UNet2DModel

    return UNet2DModel.from_pretrained(args.folder / "unet", use_safetensors=True, low_cpu_mem_usage=False)


def pipeline(args: argparse.Namespace) -> Callable[[int], np.ndarray]:
    """diffusers' DDIMPipeline, as it comes."""
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler

    made = DDIMPipeline(weights(args), DDIMScheduler(beta_schedule="linear", clip_sample=True))
    made.set_progress_bar_config(disable=True)

    def make(steps: int) -> np.ndarray:
        images = made(
            batch_size=args.batch,
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=steps,
            use_clipped_model_output=True,
            output_type="np",
        ).images
        return images.transpose(0, 3, 1, 2) * 2 - 1

    return make


def kuosan(args: argparse.Namespace) -> Callable[[int], np.ndarray]:
    """kuosan with the same weights and start noise, in the precision it chooses for this processor (or in fp32)."""
    import torch

    from kuosan.convert.diffusers import unet_from_diffusers
    from kuosan.device import ComputeConfig, choose
    from kuosan.models.latents import prepare
    from kuosan.models.model import Model, ModelConfig, build
    from kuosan.sample.generate import sample
    from kuosan.sample.request import Request

    compute = choose(ComputeConfig("cpu", "fp32" if args.worker == "kuosan-fp32" else "auto", 1))
    theirs = weights(args)
    config, state = unet_from_diffusers(theirs.config, theirs.state_dict())
    model = build(ModelConfig(shape=(3, 32, 32), network=config, prediction="eps"))
    model.network.load_state_dict(state)
    model = Model(model.config, prepare(model.network, compute.device, compute.dtype))
    shape = (args.batch, 3, 32, 32)

    def make(steps: int) -> np.ndarray:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        request = Request(n=args.batch, batch=args.batch, sampler="ddim", steps=steps, spacing="leading")
        return sample(model, request, noise=noise).numpy()

    return make


def report(
    args: argparse.Namespace, about: dict, taken: dict[str, list[turns.Turn]], made: dict[str, np.ndarray]
) -> None:
    """A markdown table: seconds a batch, how much faster than the slowest peer, how far from its images."""
    reference = "diffusers" if "diffusers" in taken else next(iter(taken))
    theirs, rows, figures = made[reference], [], {"processor": turns.processor()}
    for name, mine in taken.items():
        seconds = [turn["core"] for turn in mine]
        ratios = [b["core"] / a["core"] for a, b in zip(mine, taken[reference])]
        gap = np.abs(made[name].clip(-1, 1) - theirs)
        figures[name] = {"core_seconds": seconds, "ratio": ratios, "largest_gap": float(gap.max())}
        rows.append(
            f"| {name} | {turns.spread(seconds, 1)} | {turns.spread(ratios, 2)} | {gap.max():.4f} | {gap.mean():.5f} |"
        )
    clipped = float((np.abs(theirs) > 0.999).mean())
    print(f"DDIM {args.steps} steps, batch {args.batch}, 35.7 M parameters, one core of {turns.processor()}")
    print(f"{args.rounds} rounds; median (lowest-highest); {clipped:.0%} of {reference}'s pixels end at -1 or 1\n")
    print(f"| sampler | core-seconds a batch | faster than {reference} by | largest difference | mean difference |")
    print("|---|---|---|---|---|\n" + "\n".join(rows))
    if args.json:
        args.json.write_text(json.dumps({**figures, "clipped": clipped}, indent=1) + "\n")


if __name__ == "__main__":
    main()
