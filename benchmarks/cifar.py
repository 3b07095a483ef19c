"""CIFAR-10 at equal compute: DDPM's recipe, kuosan's for small budgets, diffusers' loop; bits/dim, and KID by steps.

    python tools/build_cifar.py CIFAR
    python benchmarks/cifar.py CIFAR --out runs/cifar                 # 5 core-minutes each, then the figures
    python benchmarks/cifar.py CIFAR --out runs/cifar --minutes 0.2 -n 50 --likelihood 16      # a quick look

Each contestant first takes a few steps to learn what one costs, then trains as many as the core-minutes hold (its
process's own time, one thread; opening the images is free). All see 32-pixel images in batches of 32, mirrored.

    ddpm       linear betas, eps, simple loss, lr 2e-4, and DDPM's U-Net (four levels 1 2 2 2, two blocks, attention at
               16, dropout 0.1) a quarter as wide, trained by kuosan in its own precision
    kuosan     the recipe `portraits`: predict the image, min-SNR weight, cosine betas and rate, 2 x 2 patches
    diffusers  train_unconditional.py re-made from its parts (fp32, AdamW, cosine rate, clipping, EMA at every step, lr
               1e-4) on a UNet2DModel of ddpm's shape; its weights are then kuosan's by `convert`

A run this short has no use for the published warm-ups (5,000 and 500 steps) nor for an average over 10,000 steps: the
first tenth of the steps warms up, and kuosan's runs average as kuosan does. All are then judged by the same code:
the variational bound on test images in fp32, and KID against training images. CIFAR-10 has no licence: measure, do
not ship; nor the runs, which hold what was learnt of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from turns import processor

from kuosan.errors import Error

NAMES = ("ddpm", "kuosan", "diffusers")
BATCH, PROBE, FIRST = 32, 8, 3  # of the probe's steps the first ones are not counted
NETWORK = {  # DDPM's for CIFAR-10 (Ho et al. 2020, appendix B), 32 wide in place of 128
    "channels": 32,
    "multipliers": [1, 2, 2, 2],
    "blocks": 2,
    "attention": [False, True, False, False],
    "dropout": 0.1,
    "groups": 8,
    "norm_eps": 1e-6,
    "resample": "conv_asymmetric",
    "cos_first": False,
    "freq_shift": 1.0,
}
DDPM = {
    "model": {"network": NETWORK, "schedule": {"kind": "discrete", "betas": "linear"}, "prediction": "eps"},
    "train": {"batch": BATCH, "lr": 2e-4, "weight": "simple"},
}
NEVER = 10**9


# --- training ---------------------------------------------------------------------------------------------------------


def tree_of(name: str, data: Path, steps: int) -> dict[str, Any]:
    """The configuration of a run of kuosan's."""
    import yaml

    from kuosan import config as trees

    if name == "kuosan":
        recipe = Path(__import__("kuosan").__file__).parent / "recipes" / "portraits.yaml"
        tree = yaml.safe_load(recipe.read_text("utf-8"))
    else:
        tree = DDPM
    train = {"max_steps": steps, "batch": BATCH, "warmup": max(1, steps // 10), "save_every": NEVER}
    train |= {"evaluate_every": 0, "preview_every": 0}
    ours = {
        "data": {"path": str(data / "cifar10.npz"), "flip": True},
        "train": train,
        "compute": {"device": "cpu", "threads": 1},
    }
    return trees.merge(tree, ours)


def train_kuosan(name: str, data: Path, out: Path, steps: int) -> dict[str, float]:
    """A run of kuosan's of so many steps; the core-seconds of its steps."""
    from kuosan.train.api import prepare, start, train
    from kuosan.train.report import SilentTraining

    clock: list[float] = []

    class Clock(SilentTraining):
        def step(self, row: dict[str, Any], max_steps: int) -> None:
            clock.append(time.process_time())
            if len(clock) % 50 == 0:
                print(f"{name}: step {len(clock)} of {steps}, loss {row['loss']:.4f}", file=sys.stderr)

    run = start(prepare(out, tree_of(name, data, steps)), Clock())
    count = sum(p.numel() for p in run.model.network.parameters())
    begin = time.process_time()
    train(run)
    return {"first": clock[FIRST - 1], "last": clock[-1], "begin": begin, "parameters": count}


def train_diffusers(data: Path, out: Path, steps: int) -> dict[str, float]:
    """diffusers' loop for so many steps, written as a run of kuosan's; the core-seconds of its steps."""
    import numpy as np
    import torch
    from diffusers import UNet2DModel
    from training_contestants import Images

    from kuosan import config as trees
    from kuosan.convert.diffusers import unet_from_diffusers
    from kuosan.storage import checkpoint
    from kuosan.train.api import prepare

    torch.manual_seed(0)
    with np.load(data / "train.npz") as found:
        images = np.moveaxis(found["x_train"], 3, 1)
    levels = range(len(NETWORK["multipliers"]))
    kinds = ["AttnDownBlock2D" if NETWORK["attention"][i] else "DownBlock2D" for i in levels]
    network = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=NETWORK["blocks"],
        block_out_channels=[NETWORK["channels"] * each for each in NETWORK["multipliers"]],
        down_block_types=kinds,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(kinds)],
        attention_head_dim=None,
        dropout=NETWORK["dropout"],
        norm_num_groups=NETWORK["groups"],
        norm_eps=NETWORK["norm_eps"],
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    loader = torch.utils.data.DataLoader(Images(images), batch_size=BATCH, shuffle=True, num_workers=0)
    clock, average = loop_of_diffusers(network, loader, steps)
    ours, state = unet_from_diffusers(dict(network.config), average)
    asked = prepare(out, tree_of("ddpm", data, steps))
    config = trees.merge(trees.plain(asked.config), {"model": {"network": trees.plain(ours)}})
    checkpoint.save(out, steps, config=config, ema=state, network=state, optimizer={}, state={})
    count = sum(p.numel() for p in network.parameters())
    return {"first": clock[FIRST], "last": clock[-1], "begin": clock[0], "parameters": count}


def loop_of_diffusers(network: Any, loader: Any, steps: int) -> tuple[list[float], dict[str, Any]]:
    """The steps of train_unconditional.py as its README runs it: the clock before each and after, and the EMA."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from training_contestants import forever, scripts_average

    ema = scripts_average(network)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=max(1, steps // 10), num_training_steps=steps)
    network.train()
    batches, clock = forever(loader), [time.process_time()]
    for step in range(steps):
        clean = next(batches)["input"]
        noise = torch.randn(clean.shape)
        t = torch.randint(0, 1000, (len(clean),)).long()
        loss = F.mse_loss(network(scheduler.add_noise(clean, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        seen = loss.detach().item()  # read at every step, for its bar
        clock.append(time.process_time())
        if (step + 1) % 50 == 0:
            print(f"diffusers: step {step + 1} of {steps}, loss {seen:.4f}", file=sys.stderr)
    ema.copy_to(network.parameters())
    return clock, {key: value.detach().clone() for key, value in network.state_dict().items()}


def work(name: str, data: Path, out: Path, minutes: float) -> dict[str, Any]:
    """Probe, train, and say what was done: what a contestant's own process does."""

    def trained(folder: Path, steps: int) -> dict[str, float]:
        return train_diffusers(data, folder, steps) if name == "diffusers" else train_kuosan(name, data, folder, steps)

    probe = out / f"{name}-probe"
    shutil.rmtree(probe, ignore_errors=True)
    clock = trained(probe, PROBE)
    shutil.rmtree(probe)
    seconds = (clock["last"] - clock["first"]) / (PROBE - FIRST)
    steps = max(PROBE, round(60 * minutes / seconds))
    clock = trained(out / name, steps)
    spent = clock["last"] - clock["begin"]
    return {"steps": steps, "images": steps * BATCH, "core_minutes": spent / 60, "parameters": clock["parameters"]}


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(run: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Bits/dim on test images, and KID by network evaluations, of one run."""
    from kuosan import measure

    compute = {"device": "cpu", "threads": 1}
    by_steps = measure(
        str(run),
        n=asked.n,
        real=asked.real,
        metrics=("kid",),
        features=asked.features,
        sampler=asked.sampler,
        sweep=tuple(f"steps={asked.steps}".split(",")),
        **compute,
    )
    bits = measure(str(run), likelihood=True, likelihood_images=asked.likelihood, ode_images=0, **compute)
    assert bits.likelihood is not None
    bound = bits.likelihood["bound"]
    return {
        "kid": {each.steps: [each.figures["kid"].value, each.figures["kid"].error] for each in by_steps.found},
        "floor": [by_steps.floor["kid"].value, by_steps.floor["kid"].error],
        "seconds_a_picture": {each.steps: each.seconds for each in by_steps.found},
        "bits": [bound["total"]["value"], bound["total"]["error"]],
        "bits_parts": {part: bound[part]["value"] for part in ("prior", "steps", "decoder")},
        "sheet": str(Path(by_steps.folder or "") / "sheet.png"),
    }


def table(told: dict[str, Any], steps: list[str]) -> str:
    """The report as Markdown."""
    head = ["", "parameters", "steps of 32", "core-minutes", "bits/dim", *(f"KID x 1000, {n} steps" for n in steps)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, each in told.items():
        cells = [name, f"{each['parameters'] / 1e6:.2f} M", f"{each['steps']:,}", f"{each['core_minutes']:.1f}"]
        cells.append("{:.2f} ± {:.2f}".format(*each["bits"]))
        cells += ["{:.0f} ± {:.0f}".format(*(1000 * value for value in each["kid"][int(n)])) for n in steps]
        lines.append("| " + " | ".join(cells) + " |")
    floor = "{:.1f} ± {:.1f}".format(*(1000 * value for value in next(iter(told.values()))["floor"]))
    lines.append("| real images | | | | | " + " | ".join([floor] + [""] * (len(steps) - 1)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not there yet, one after another, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that tools/build_cifar.py made")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs and cifar.json")
    parser.add_argument("--minutes", type=float, default=5, help="core-minutes of training each")
    parser.add_argument("--contestants", default=",".join(NAMES))
    parser.add_argument("-n", type=int, default=500, help="images made at each number of steps")
    parser.add_argument("--real", type=int, default=2000, help="real images that they are compared with")
    parser.add_argument("--steps", default="5,10,20,50")
    parser.add_argument("--sampler", default="dpm_solver_2m")
    parser.add_argument("--likelihood", type=int, default=200, help="test images whose bits/dim are told")
    parser.add_argument("--features", default="lite0-128")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(work(asked.worker, asked.data, asked.out, asked.minutes)))
        return
    told: dict[str, Any] = {}
    for name in asked.contestants.split(","):
        if name not in NAMES:
            parser.error(f"no contestant {name!r}: {', '.join(NAMES)}")
        told[name] = trained_once(name, asked)
    try:
        for name in told:
            told[name] |= figures(asked.out / name, asked)
    except Error as error:
        sys.exit(f"cifar: {error}")
    report = {"processor": processor(), "sampler": asked.sampler, "n": asked.n, "contestants": told}
    (asked.out / "cifar.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(processor(), table(told, asked.steps.split(",")), sep="\n\n")


def trained_once(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """What a contestant's training was; done in a process of its own if its note is not there."""
    note = asked.out / f"{name}.json"
    if not note.exists():
        asked.out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(asked.out / name, ignore_errors=True)
        command = [sys.executable, __file__, str(asked.data), "--out", str(asked.out), "--minutes", str(asked.minutes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
        done = subprocess.run([*command, "--worker", name], stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{name} failed: see above")
        note.write_text(done.stdout.strip().splitlines()[-1] + "\n", "utf-8")
    told: dict[str, Any] = json.loads(note.read_text("utf-8"))
    return told


if __name__ == "__main__":
    main()
