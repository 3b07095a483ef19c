"""What gpu.py times: the training loops and samplers of kuosan and diffusers on one device, and what the card can do.

A contestant's tasks are made by `build(args, task)` -> (what is said of it, `advance(n)`). Both projects train and
sample the same networks, named here by diffusers' configurations.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[dict[str, Any], Callable[[int], Any]]

NETWORKS: dict[str, dict[str, Any]] = {
    "32": {  # google/ddpm-cifar10-32
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "64": {  # train_unconditional.py's default, at its default resolution
        "block_out_channels": (128, 128, 256, 256, 512, 512),
        "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    },
}
BATCH = {"32": 128, "64": 32, "small": 128}
SMOKE = {"block_out_channels": (32, 32, 64, 64), "down_block_types": NETWORKS["32"]["down_block_types"],
         "up_block_types": NETWORKS["32"]["up_block_types"], "attention_head_dim": 32}  # fmt: skip


def network_of(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """The configuration of a UNet2DModel; `small` is what kuosan trains when nobody says."""
    if name == "small":
        from kuosan.convert.diffusers import config_to_diffusers
        from kuosan.networks.config import default_unet

        return {key: value for key, value in config_to_diffusers(default_unet((3, 32, 32))).items() if key[0] != "_"}
    return {**(SMOKE if args.smoke else NETWORKS[name]), "layers_per_block": 2, "in_channels": 3, "out_channels": 3}


def batch_of(args: argparse.Namespace, name: str) -> int:
    """Images a step: few enough that four contestants fit one card beside each other."""
    return 4 if args.smoke else BATCH[name]


def side_of(name: str) -> int:
    """Pixels a side of a network's images."""
    return 64 if name == "64" else 32


def pixels(side: int, n: int) -> np.ndarray:
    """Images of random colours and edges: (N, H, W, 3) uint8."""
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (n, side // 8, side // 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)


def precision(args: argparse.Namespace) -> str:
    """fp32 or bf16, the last part of a contestant's name."""
    return str(args.worker).rpartition("-")[2]


def autocast(args: argparse.Namespace) -> contextlib.AbstractContextManager[object]:
    if precision(args) == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(args.device, torch.bfloat16)


def wait(args: argparse.Namespace) -> None:
    """Until the device has done all it was given."""
    if args.device == "cuda":
        torch.cuda.synchronize()


def flops(args: argparse.Namespace, call: Callable[[Tensor, Tensor], Tensor], side: int) -> float:
    """Floating-point operations of products and convolutions that one image's forward and backward pass takes."""
    from torch.utils.flop_counter import FlopCounterMode

    x, t = torch.randn(2, 3, side, side, device=args.device), torch.full((2,), 500.0, device=args.device)
    with FlopCounterMode(display=False) as counter, autocast(args):
        call(x, t).square().mean().backward()
    return counter.get_total_flops() / 2


# training


def train_diffusers(args: argparse.Namespace, name: str) -> Built:
    """diffusers' train_unconditional.py as its README runs it (--use_ema), the images on the device already.

    AdamW (0.95, 0.999), cosine rate with warm-up, clipping to 1, EMA at every step, `loss.item()` at every step; fp32
    unless --mixed_precision bf16, through accelerate. Loading and mirroring images is not counted against it.
    """
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    low = precision(args) == "bf16"
    accelerator = Accelerator(mixed_precision="bf16" if low else "no", cpu=args.device == "cpu")
    model = UNet2DModel(sample_size=side_of(name), **network_of(args, name))
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75,
                   model_cls=UNet2DModel, model_config=model.config)  # fmt: skip
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100_000)
    model, optimizer, rate = accelerator.prepare(model, optimizer, rate)
    ema.to(accelerator.device)
    model.train()
    shown = torch.from_numpy(pixels(side_of(name), batch_of(args, name))).permute(0, 3, 1, 2)
    clean = shown.float().to(accelerator.device) / 127.5 - 1

    def advance(steps: int) -> None:
        for _ in range(steps):
            noise = torch.randn(clean.shape, device=clean.device)
            t = torch.randint(0, 1000, (len(clean),), device=clean.device).long()
            noisy = scheduler.add_noise(clean, noise, t)
            with accelerator.accumulate(model):
                loss = F.mse_loss(model(noisy, t).sample.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                ema.step(model.parameters())
            loss.detach().item()

    count = flops(args, lambda x, t: model(x, t).sample, side_of(name))
    optimizer.zero_grad()
    return about(model, count, batch_of(args, name)), advance


def train_kuosan(args: argparse.Namespace, name: str) -> Built:
    """kuosan's own loop, from images in memory to the log: draws, EMA, clipping, non-finite guard, every step's row.

    Saves, held-out losses and previews lie beyond the last step, as in the peer. It runs in a thread that waits for its
    turn in the report that the loop makes at the end of each step.
    """
    from training_contestants import PREVIEWS_NEVER, scratch

    from kuosan import config as trees
    from kuosan.convert.diffusers import config_from_diffusers
    from kuosan.train.api import prepare, start

    folder = scratch()
    np.savez(folder / "pictures.npz", images=pixels(side_of(name), 16 * batch_of(args, name)))
    network = trees.plain(config_from_diffusers(network_of(args, name)))
    never = {"max_steps": PREVIEWS_NEVER, "save_every": PREVIEWS_NEVER, "evaluate_every": 0, "preview_every": 0}
    tree = {
        "data": {"path": str(folder / "pictures.npz"), "flip": True, "hold_out": 0.0},
        "model": {"network": network, "prediction": "eps"},
        "train": {"batch": batch_of(args, name), **never},
        "compute": {"device": args.device, "precision": precision(args)},
    }
    turns = Turns()
    run = start(prepare(folder / "run", tree), turns)
    run.saved_at = 0  # no save before the first step
    count = flops(args, run.model.network, side_of(name))
    run.state.parameters.grads.zero_()
    turns.start(run)
    return about(run.model.network, count, batch_of(args, name)), turns


class Ended(Exception):
    """The loop is not wanted any more."""


class Turns:
    """A report that lets the loop take a step when it is told to: `turns(n)` lets it take n."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.failed: BaseException | None = None
        self.over = False

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    def wrote(self, path: Path) -> None:
        pass

    def preview(self, step: int, of: int, path: Path) -> None:
        pass

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        self.done.release()
        self.go.acquire()
        if self.over:
            raise Ended

    def start(self, run: Any) -> None:
        """Let the loop begin when the first step is asked for."""
        from kuosan.train import loop, saving
        from kuosan.train.saving import Stop

        def whole() -> None:
            self.go.acquire()
            try:
                if not self.over:
                    for _ in loop.train(run, Stop()):
                        pass
            except BaseException as error:
                self.failed = error
                self.done.release()
            finally:
                saving.close(run)

        self.thread = threading.Thread(target=whole, daemon=True)
        self.thread.start()

    def __call__(self, steps: int) -> None:
        for _ in range(steps):
            self.go.release()
            self.done.acquire()
            if self.failed is not None:
                raise self.failed

    def close(self) -> None:
        """End the loop, so that its memory is free."""
        self.over = True
        self.go.release()
        self.thread.join(30)
        self.failed = None


def about(network: nn.Module, count: float, batch: int) -> dict[str, Any]:
    """What is said of a training contestant."""
    return {"parameters": sum(p.numel() for p in network.parameters()), "flops": count, "batch": batch}


# sampling


def prime(args: argparse.Namespace) -> Built:
    """Writes the weights that all samplers share: diffusers' network after a few steps, so that not all pixels clip."""
    from diffusers import UNet2DModel
    from sample_throughput import primed

    torch.manual_seed(0)
    network = UNet2DModel(sample_size=32, **network_of(args, "32")).to(args.device)
    with torch.device(args.device):
        primed(network, 2 if args.smoke else 32)
    network.save_pretrained(args.folder / "unet")
    return {}, lambda n: None


def theirs(args: argparse.Namespace) -> Any:
    """The network that all samplers share, diffusers' form."""
    from diffusers import UNet2DModel

    return UNet2DModel.from_pretrained(args.folder / "unet", use_safetensors=True, low_cpu_mem_usage=False)


def sample_diffusers(args: argparse.Namespace, half: bool) -> Built:
    """diffusers' DDIMPipeline as it comes; under bf16 autocast (its images cannot be bf16); or with fp16 weights."""
    from diffusers import DDIMPipeline, DDIMScheduler

    pipeline = DDIMPipeline(theirs(args), DDIMScheduler(beta_schedule="linear", clip_sample=True))
    pipeline = pipeline.to(args.device, torch.float16) if half else pipeline.to(args.device)
    pipeline.set_progress_bar_config(disable=True)

    def make(steps: int) -> None:
        with contextlib.nullcontext() if half else autocast(args):
            images = pipeline(
                batch_size=args.samples,
                generator=torch.Generator().manual_seed(0),
                num_inference_steps=steps,
                use_clipped_model_output=True,
                output_type="np",
            ).images
        np.save(args.folder / f"{args.worker}{'-half' * half}.npy", images.transpose(0, 3, 1, 2) * 2 - 1)

    return {}, make


def sampling_model(args: argparse.Namespace) -> Any:
    """kuosan's model of the shared weights where they are, else of its own first ones; prepared for sampling."""
    from safetensors.torch import load_file

    from kuosan.convert.diffusers import config_from_diffusers, unet_from_diffusers
    from kuosan.models.latents import prepare
    from kuosan.models.model import Model, ModelConfig, build

    config = config_from_diffusers(network_of(args, "32"))
    model = build(ModelConfig(shape=(3, 32, 32), network=config, prediction="eps"))
    shared = args.folder / "unet" / "diffusion_pytorch_model.safetensors"
    if shared.exists():
        model.network.load_state_dict(unet_from_diffusers(network_of(args, "32"), load_file(shared))[1])
    dtype = torch.bfloat16 if precision(args) == "bf16" else torch.float32
    return Model(model.config, prepare(model.network, args.device, dtype))


def sample_kuosan(args: argparse.Namespace) -> Built:
    """kuosan from the same weights and the same start noise."""
    from kuosan.sample.generate import sample
    from kuosan.sample.request import Request

    model = sampling_model(args)

    def make(steps: int) -> None:
        noise = torch.randn((args.samples, 3, 32, 32), generator=torch.Generator().manual_seed(0))
        request = Request(n=args.samples, batch=args.samples, sampler="ddim", steps=steps, spacing="leading")
        np.save(args.folder / f"{args.worker}.npy", sample(model, request, noise=noise).cpu().numpy().clip(-1, 1))

    return {}, make


# what the card can do, and where the time goes


def card(args: argparse.Namespace) -> Built:
    """The device, and the rate of one large bf16 product, of random numbers."""
    n = 256 if args.smoke else 8192
    a, b = (torch.randn(n, n, device=args.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(args, lambda: a @ b, 3 if args.smoke else 20)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    tf32 = (
        f"TF32 in products {torch.backends.cuda.matmul.allow_tf32}, in convolutions {torch.backends.cudnn.allow_tf32}"
    )
    rate = 2 * n**3 / seconds / 1e12
    told = {"name": name, "torch": torch.__version__, "product": n, "product_tflops": rate, "tf32": tf32}
    return told, lambda n: None


def timed(args: argparse.Namespace, call: Callable[[], object], n: int) -> float:
    """Seconds a call, the mean of n after three that warm up."""
    for _ in range(3):
        call()
    wait(args)
    begin = time.perf_counter()
    for _ in range(n):
        call()
    wait(args)
    return (time.perf_counter() - begin) / n


@contextlib.contextmanager
def setting(where: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


@torch.no_grad()
def forward(args: argparse.Namespace, how: str) -> Built:
    """Milliseconds of one forward pass in sampling: as it is, and with what might make it quicker."""
    network = sampling_model(args).network
    x = torch.randn(args.samples, 3, 32, 32, device=args.device)
    t = torch.full((args.samples,), 500.0, device=args.device)
    n = 3 if args.smoke else 30
    begin = time.perf_counter()
    plain = network(x, t)
    if how == "eager":
        return {"seconds": timed(args, lambda: network(x, t), n), "off": 0.0, "first": 0.0}, lambda n: None
    if how == "cudnn.benchmark":
        with setting(torch.backends.cudnn, "benchmark", True):
            out = network(x, t)
            seconds, first = timed(args, lambda: network(x, t), n), time.perf_counter() - begin
    elif how == "CUDA graph":
        graph = torch.cuda.CUDAGraph()
        timed(args, lambda: network(x, t), 1)
        with torch.cuda.graph(graph):
            out = network(x, t)
        seconds, first = timed(args, graph.replay, n), time.perf_counter() - begin
    else:
        quick = torch.compile(network, mode=None if how == "torch.compile" else "reduce-overhead")
        out = quick(x, t).clone()
        first = time.perf_counter() - begin
        seconds = timed(args, lambda: quick(x, t), n)
    return {"seconds": seconds, "off": float((out - plain).norm() / plain.norm()), "first": first}, lambda n: None


def training_pass(args: argparse.Namespace, how: str) -> Built:
    """Milliseconds of a forward and backward pass in training, without the loop: eager, or compiled."""
    from kuosan.convert.diffusers import config_from_diffusers
    from kuosan.networks.unet import UNet
    from kuosan.train.state import FlatParameters

    network = UNet(config_from_diffusers(network_of(args, "32"))).to(args.device)
    flat = FlatParameters(network)
    flat.values.add_(0.02 * torch.randn_like(flat.values))
    called: Any = torch.compile(network) if how == "torch.compile" else network
    batch = batch_of(args, "32")
    x, t = torch.randn(batch, 3, 32, 32, device=args.device), torch.linspace(0, 999, batch, device=args.device)

    def step() -> None:
        with autocast(args):
            out = called(x, t)
        (out - x).square().mean().backward()

    begin = time.perf_counter()
    step()
    wait(args)
    first = time.perf_counter() - begin
    seconds = timed(args, step, 2 if args.smoke else 10)
    return {"seconds": seconds, "images_per_s": batch / seconds, "first": first}, lambda n: None


def norm(args: argparse.Namespace, how: str) -> Built:
    """One group norm with its bias and SiLU, forward and backward, of the finest level's features in bf16."""
    from kuosan.networks.norm import GroupNorm

    shape = (batch_of(args, "32"), 32 if args.smoke else 128, 32, 32)
    layer = GroupNorm(32, shape[1], 1e-6).to(args.device)
    numbers = torch.randn(shape, device=args.device, dtype=torch.bfloat16)
    x = numbers.contiguous(memory_format=torch.channels_last).requires_grad_()
    bias = torch.randn(shape[:2], device=args.device, requires_grad=True)
    called: Any = torch.compile(layer) if how == "torch.compile" else layer

    def step() -> None:
        with autocast(args):
            y = called(x, act=True, bias=bias)
        y.backward(numbers)

    begin = time.perf_counter()
    step()
    wait(args)
    first = time.perf_counter() - begin
    seconds = timed(args, step, 2 if args.smoke else 50)
    read_and_written = 2 * x.numel() * (2 + 1 + 2 + 1 + 1)  # forward: x twice, y; backward: x and dy for sums, then dx
    return {"seconds": seconds, "first": first, "gb_per_s": read_and_written / seconds / 1e9}, lambda n: None


def profile(args: argparse.Namespace) -> Built:
    """Of kuosan's training steps at 32 px: kernels by time, and where the program waits for the device."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    _, built = train_kuosan(args, "32")
    advance = cast(Turns, built)
    steps = 3
    advance(5)
    wait(args)
    begin = time.perf_counter()
    advance(steps)
    wait(args)
    wall = (time.perf_counter() - begin) / steps
    waits: Counter[str] = Counter()
    if args.device == "cuda":
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            advance(1)
            torch.cuda.set_sync_debug_mode("default")
        waits.update(f"{Path(w.filename).name}:{w.lineno}" for w in heard if "synchron" in str(w.message))
    activity = ProfilerActivity.CUDA if args.device == "cuda" else ProfilerActivity.CPU
    with profiler(activities=[activity]) as seen:
        advance(steps)
        wait(args)
    advance.close()
    field = "self_device_time_total" if args.device == "cuda" else "self_cpu_time_total"
    kernels = [(event.key, getattr(event, field) / 1e6 / steps, event.count // steps) for event in seen.key_averages()]
    kernels = [kernel for kernel in kernels if kernel[1] > 0]
    busy = sum(seconds for _, seconds, _ in kernels)
    most = sorted(kernels, key=lambda kernel: -kernel[1])[:16]
    told = {"wall": wall, "busy": busy, "kernels": most, "launches": sum(k[2] for k in kernels), "waits": dict(waits)}
    return {**told, "draw": drawing()}, lambda n: None


def drawing() -> dict[str, float]:
    """Seconds that the noise and levels of one step take on the processor, in one thread: batch 256."""
    from kuosan import seeds

    found = {}
    for side in (32, 64):
        begin = time.perf_counter()
        seeds.normal([(0, "train/noise", 0, row) for row in range(256)], (3, side, side))
        seeds.uniform((0, "train/level", 0, row) for row in range(256))
        found[str(side)] = time.perf_counter() - begin
    return found


def build(args: argparse.Namespace, task: str) -> Built:
    """The contestant of a task, as `what:of which`."""
    what, _, which = task.partition(":")
    own = args.worker.startswith("kuosan")
    if what == "train":
        return (train_kuosan if own else train_diffusers)(args, which)
    if what == "sample":
        return sample_kuosan(args) if own else sample_diffusers(args, which == "half")
    tasks: dict[str, Callable[..., Built]] = {
        "prime": prime,
        "card": card,
        "forward": forward,
        "pass": training_pass,
        "norm": norm,
        "profile": profile,
    }
    return tasks[what](args, *([which] if which else []))
