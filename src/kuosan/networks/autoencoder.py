"""The KL autoencoder of latent diffusion (Rombach et al. 2022): picture -> N(mean, exp(log_var)) -> picture.

z = mean + exp(log_var / 2) * eps, latents `factor` times smaller a side. It is Stable Diffusion's: with its config, its
weights fit (`convert.autoencoder`). `patch` lets pictures enter in patches, which spares small nets the finest level.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan.errors import Error
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.networks.critic import Critic
from kuosan.networks.initialise import initialise
from kuosan.networks.layers import Attention, DownConv, ResidualBlock, UpConv
from kuosan.networks.norm import GroupNorm
from kuosan.networks.unet import Level, run

LOG_VAR = (-30.0, 20.0)  # what log-variances are clamped to, as in Stable Diffusion
CRITIC = "critic."  # how the names of the critic's weights begin


class Moments(NamedTuple):
    """The posterior of a latent given its picture, a diagonal Gaussian; float32, unscaled."""

    mean: Tensor  # (B, latent_channels, H/f, W/f)
    log_var: Tensor  # the same shape

    def sample(self, eps: Tensor) -> Tensor:
        """The latent that standard normal noise of its shape picks."""
        return self.mean + (0.5 * self.log_var).exp() * eps

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) in nats, summed over a latent: (B,)."""
        each = self.mean.square() + self.log_var.exp() - 1 - self.log_var
        return 0.5 * each.flatten(1).sum(1)


class Reconstruction(NamedTuple):
    """What training sees of pictures: the posterior, and what the decoder makes of a draw of it."""

    moments: Moments
    picture: Tensor  # (B, C, H, W)


class Autoencoder(nn.Module):
    """Encoder and decoder, and the critic that trains them where the config has one.

    Weights are a function of `config` and `seed` alone; on the meta device none are made.
    """

    def __init__(self, config: AutoencoderConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        latent, device = config.latent_channels, torch.get_default_device()
        with torch.device("meta"):
            self.encoder = Encoder(config)
            self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
            self.post_quant_conv = nn.Conv2d(latent, latent, 1)
            self.decoder = Decoder(config)
            if config.critic_channels:
                self.critic = Critic(config.in_channels, config.critic_channels, config.critic_layers)
        if device.type != "meta":
            self.to_empty(device=device)
            initialise(self, seed)

    def encode(self, x: Tensor) -> Moments:
        """Pictures (B, C, H, W) in [-1, 1] -> their latents' moments, (B, latent_channels, H/f, W/f) float32 each.

        Raises:
            Error: sides that are no multiples of the factor, or other channels.
        """
        if x.ndim != 4:
            raise Error(f"an autoencoder takes pictures (B, C, H, W), got shape {tuple(x.shape)}.")
        self.config.latent_shape((x.shape[1], x.shape[2], x.shape[3]))
        moments = self.quant_conv(self.encoder(x))
        mean, log_var = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, dim=1)
        return Moments(mean, log_var.clamp(*LOG_VAR))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, latent_channels, h, w), unscaled -> pictures (B, C, h*f, w*f) in z's dtype, not clamped.

        Raises:
            Error: other channels than the latents'.
        """
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            wanted = self.config.latent_channels
            raise Error(f"this autoencoder decodes latents (B, {wanted}, h, w), got shape {tuple(z.shape)}.")
        weight = self.post_quant_conv.weight
        h = self.post_quant_conv(z.to(weight.dtype, memory_format=torch.channels_last))
        return cast(Tensor, self.decoder(h)).to(z.dtype)

    def forward(self, x: Tensor, eps: Tensor) -> Reconstruction:
        """Pictures and noise of the latents' shape -> their reconstruction from a draw of the posterior."""
        moments = self.encode(x)
        return Reconstruction(moments, self.decode(moments.sample(eps)))


class Encoder(nn.Module):
    """Entrance, levels going down, middle, norm, exit: (B, C, H, W) -> (B, 2 * latent_channels, H/f, W/f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.entrance = nn.Conv2d(config.in_channels * config.patch**2, config.channels, 3, padding=1)
        levels, channels = [], config.channels
        for i, width in enumerate(config.widths):
            last = i == config.levels - 1
            exit = nn.Identity() if last else DownConv(width, asymmetric=True)
            levels.append(_level(config, channels, width, config.blocks, exit))
            channels = width
        self.levels = nn.ModuleList(levels)
        self.middle = _middle(config)
        self.norm = GroupNorm(config.groups, channels, config.norm_eps)
        self.exit = nn.Conv2d(channels, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.config.patch > 1:
            x = F.pixel_unshuffle(x, self.config.patch)
        h = self.entrance(x.to(self.entrance.weight.dtype, memory_format=torch.channels_last))
        h = _through(self.levels, h, self.config)
        h = _across(self.middle, h, self.config)
        return cast(Tensor, self.exit(self.norm(h, act=True)))


class Decoder(nn.Module):
    """Entrance, middle, levels going up, norm, exit: (B, latent_channels, h, w) -> (B, C, h*f, w*f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.widths[-1]
        self.entrance = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.middle = _middle(config)
        levels = []
        for i, width in enumerate(reversed(config.widths)):
            exit = nn.Identity() if i == config.levels - 1 else UpConv(width)
            levels.append(_level(config, channels, width, config.blocks + 1, exit))
            channels = width
        self.levels = nn.ModuleList(levels)
        self.norm = GroupNorm(config.groups, channels, config.norm_eps)
        self.exit = nn.Conv2d(channels, config.in_channels * config.patch**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = _across(self.middle, self.entrance(z), self.config)
        h = _through(self.levels, h, self.config)
        out = self.exit(self.norm(h, act=True))
        return F.pixel_shuffle(out, self.config.patch) if self.config.patch > 1 else cast(Tensor, out)


def _block(config: AutoencoderConfig, channels: int, out: int) -> ResidualBlock:
    return ResidualBlock(channels, out, groups=config.groups, eps=config.norm_eps, scale_shift=False)


def _level(config: AutoencoderConfig, channels: int, width: int, blocks: int, exit: nn.Module) -> Level:
    return Level([_block(config, width if j else channels, width) for j in range(blocks)], [], exit)


def _middle(config: AutoencoderConfig) -> nn.ModuleList:
    """A residual block, attention between all cells in one head where the config has it, a residual block."""
    width, attend = config.widths[-1], cast(nn.Module, nn.Identity())
    if config.middle_attention:
        attend = Attention(width, head_channels=None, groups=config.groups, eps=config.norm_eps)
    return nn.ModuleList([_block(config, width, width), attend, _block(config, width, width)])


def _through(levels: nn.ModuleList, h: Tensor, config: AutoencoderConfig) -> Tensor:
    for level in cast(Iterable[Level], levels):
        for block in level.blocks:
            h = run(block, h, recompute=config.checkpointing)
        h = level.exit(h)
    return h


def _across(middle: nn.ModuleList, h: Tensor, config: AutoencoderConfig) -> Tensor:
    h = run(middle[0], h, recompute=config.checkpointing)
    return run(middle[2], middle[1](h), recompute=config.checkpointing)


def weights_alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the critic's weights: what `Autoencoder(config.alone)` loads."""
    return {name: weight for name, weight in state.items() if not name.startswith(CRITIC)}


def parameter_count(config: AutoencoderConfig) -> int:
    """How many weights an `Autoencoder(config)` has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in Autoencoder(config).parameters())
