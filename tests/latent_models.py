"""Autoencoders for tests: one without training, as a run that others name; and one that is linear, whose latents are
the image itself in other coordinates, so that what is right in pixels says what is right in latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan import config as trees
from kuosan import seeds
from kuosan.models.codec import Latents
from kuosan.models.latents import LatentCodec
from kuosan.models.model import Model, ModelConfig
from kuosan.networks.autoencoder import Autoencoder, Moments
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.storage import checkpoint

TINY = AutoencoderConfig(channels=8, multipliers=(1, 1), blocks=1, middle_attention=False, groups=4, latent_channels=4)


def autoencoder_run(path: Path, config: AutoencoderConfig = TINY, seed: int = 3) -> Path:
    """A run whose autoencoder was never trained: its latents are some function of images, its images are noise."""
    state = Autoencoder(config, seed).state_dict()
    for i, (name, weight) in enumerate(state.items()):  # what starts at zero would hide mistakes
        if not weight.any():
            state[name] = 0.1 * seeds.normal([(seed, "test/autoencoder", i, 0)], tuple(weight.shape))[0]
    model = ModelConfig(shape=(config.in_channels, 16, 16), network=config)
    optimizer = {"step": torch.zeros(1)}
    tree = {"model": trees.plain(model)}
    checkpoint.save(path, 1, config=tree, ema=state, network=state, optimizer=optimizer, state={})
    (path / "config.yaml").write_text(trees.dump(tree), encoding="utf-8")
    return path


class Linear(nn.Module):
    """z = Q·(the pixels of each cell), Q a rotation: nothing is lost, and white noise stays white."""

    def __init__(self, channels: int = 3, factor: int = 2, std: float = 0.0) -> None:
        super().__init__()
        size = channels * factor**2
        drawn = seeds.normal([(5, "test/rotation", 0, row) for row in range(size)], (size,)).double()
        self.rotation = nn.Parameter(torch.linalg.qr(drawn).Q, requires_grad=False)
        self.factor, self.std = factor, std

    def encode(self, x: Tensor) -> Moments:
        cells = F.pixel_unshuffle(x, self.factor)
        mean = torch.einsum("dc,bchw->bdhw", self.rotation.to(cells), cells)
        return Moments(mean, torch.full_like(mean, 2 * torch.tensor(max(self.std, 1e-6)).log().item()))

    def decode(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(torch.einsum("dc,bdhw->bchw", self.rotation.to(z), z), self.factor)


def linear_latents(channels: int = 3, shift: float = 0.0, scale: float = 1.0) -> Latents:
    """The settings of `Linear` of factor 2; its `network` only says its shape."""
    size = 4 * channels
    network = replace(TINY, in_channels=channels, latent_channels=size)
    return Latents(run="linear", network=network, shift=(shift,) * size, scale=(scale,) * size, weights="linear")


def linear_codec(latents: Latents) -> LatentCodec:
    """The linear autoencoder as a codec."""
    return LatentCodec(latents, Linear(latents.network.in_channels))


def linear_model(network: nn.Module, config: ModelConfig, latents: Latents) -> Model:
    """A model of the linear autoencoder's latents with a network of the test's."""
    return Model(replace(config, codec=latents), network, linear_codec(latents))
