"""The judge of portraits: a network of 0.3 M parameters that reads all ten attributes of a Toon Head off its pixels.

Its weights lie beside this file; tools/build_portrait_judge.py draws what it learns from, trains and writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kuosan.data.pixels import from_uint8
from kuosan.data.sources import WORDS
from kuosan.errors import Error
from kuosan.networks.layers import initialise
from kuosan.seeds import normal, permutation, rng, uniform

FILE = Path(__file__).with_suffix(".safetensors")
NAMES = tuple(WORDS)
COLOURS = ("hair_color", "skin", "clothes_color")  # not asked of images in other colours
STEPS, BATCH, RATE, DECAY, SEED = 2000, 64, 3e-3, 1e-2, 5
NOISE, MIX = 0.04, 0.4  # of training: sigma at most; how far channels are mixed
FINE = 24.0  # by how much fine detail is amplified


class Judge(nn.Module):
    """Portraits (B, 3, 32, 32) in [-1, 1] to the logits of all attributes side by side (B, 55)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(6, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.SiLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.SiLU()),
            *(nn.Conv2d(64, 96, 3, stride=2, padding=1), nn.GroupNorm(8, 96), nn.SiLU()),
            *(nn.Conv2d(96, 128, 3, stride=2, padding=1), nn.GroupNorm(8, 128), nn.SiLU()),
            nn.Flatten(),  # where a thing is tells what it is
            nn.Linear(128 * 16, sum(map(len, WORDS.values()))),
        )

    def forward(self, x: Tensor) -> Tensor:
        smooth = F.avg_pool2d(F.pad(x, (2,) * 4, mode="replicate"), 5, stride=1)
        fine = torch.tanh(FINE * (x - smooth))  # a shut mouth on dark skin is two grey levels
        logits: Tensor = self.layers(torch.cat([x, fine], 1))
        return logits


def parts(logits: Tensor) -> tuple[Tensor, ...]:
    """The logits of each attribute."""
    return logits.split([len(options) for options in WORDS.values()], dim=1)


def read(judge: Judge, images: np.ndarray) -> np.ndarray:  # (N, 10)
    """Which value of each attribute the judge sees in images (N, 32, 32, 3) uint8."""
    with torch.no_grad():
        x = torch.from_numpy(from_uint8(images))
        seen = [torch.stack([part.argmax(1) for part in parts(judge(each))], 1) for each in x.split(256)]
    return torch.cat(seen).numpy()


def values(attributes: Sequence[Mapping[str, str]]) -> np.ndarray:  # (N, 10)
    """Attributes as the numbers of their values."""
    return np.array([[list(WORDS[name]).index(each[name]) for name in NAMES] for each in attributes])


def altered(x: Tensor, step: int) -> Tensor:
    """A batch with noise of a drawn strength, as images that a model makes are not spotless; its second half in
    other colours, so that shapes are told by their shape.
    """
    keys = [(SEED, "judge noise", step, i) for i in range(len(x))]
    strength = uniform([(SEED, "judge sigma", step, i) for i in range(len(x))])
    sigma = torch.from_numpy(strength**3).float() * NOISE  # mostly faint: half below a grey level
    mixes = rng(SEED, "judge colours", step).normal(0, MIX, (len(x), 3, 3)) + np.eye(3)
    mixes[: len(x) // 2] = np.eye(3)
    mixed = torch.einsum("bcd,bdhw->bchw", torch.from_numpy(mixes).float(), x)
    return mixed + sigma.view(-1, 1, 1, 1) * normal(keys, tuple(x.shape[1:]))


def train(images: np.ndarray, wanted: np.ndarray) -> Judge:
    """The judge of images (N, 32, 32, 3) uint8 and their values (N, 10); the same draws give the same one."""
    x, y = torch.from_numpy(from_uint8(images)), torch.from_numpy(wanted)
    judge = Judge()
    initialise(judge, SEED)
    optimizer = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=DECAY)
    shape = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    a_pass = len(x) // BATCH
    for step in range(STEPS):
        if step % a_pass == 0:
            order = torch.from_numpy(permutation(len(x), SEED, step // a_pass))
        chosen = order[step % a_pass * BATCH :][:BATCH]
        losses = []
        for k, part in enumerate(parts(judge(altered(x[chosen], step)))):
            sure = slice(BATCH // 2 if NAMES[k] in COLOURS else BATCH)
            losses.append(F.cross_entropy(part[sure], y[chosen[sure], k]))
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shape.step()
        if step % 200 == 0:
            print(f"judge: step {step} of {STEPS}, loss {loss.item():.3f}", flush=True)
    return judge.eval()


def save(judge: Judge) -> None:
    """Write the weights, in half precision."""
    save_file({name: weight.half().contiguous() for name, weight in judge.state_dict().items()}, FILE)


def load() -> Judge:
    """The judge of FILE. Raises: Error where it is not there."""
    if not FILE.exists():
        raise Error(f"{FILE} is not there: take it from the repository, or run tools/build_portrait_judge.py.")
    judge = Judge()
    judge.load_state_dict({name: weight.float() for name, weight in load_file(FILE).items()})
    return judge.eval()
