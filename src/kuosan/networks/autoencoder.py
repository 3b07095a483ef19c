"""The patch discriminator that trains an autoencoder (Isola et al. 2017; Esser et al. 2021), and its hinge losses.

It says of every patch how real it looks: high for photographs, low for reconstructions. Its norms are GroupNorm where
the papers have BatchNorm: then each image's score is its own, whatever batch, micro-batch or number of processes it
stands in, real and made images need not share statistics, and there are no running averages to keep for a resume.

The KL autoencoder of latent diffusion (Rombach et al. 2022): image -> N(mean, exp(log_var)) -> image.

z = mean + exp(log_var / 2) * eps, latents `factor` times smaller a side. It is Stable Diffusion's: with its config, its
weights fit (`convert.autoencoder`). `patch` lets images enter in patches, which spares small nets the finest level.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan.errors import Error
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.networks.layers import Attention, DownConv, ResidualBlock, UpConv, initialise
from kuosan.networks.norm import GroupNorm
from kuosan.networks.unet import UNetLevel, run

_WIDEST = 8  # times the first layer's channels, as in the papers
_SLOPE = 0.2  # of LeakyReLU, as in the papers


class Discriminator(nn.Module):
    """4x4 convolutions, `layers` of them halving, then two that do not: (B, C, H, W) -> scores (B, 1, h, w) float32."""

    def __init__(self, in_channels: int, channels: int, layers: int) -> None:
        super().__init__()
        widths = [channels * min(2**i, _WIDEST) for i in range(layers + 1)]
        self.entrance = nn.Conv2d(in_channels, channels, 4, stride=2, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(into, out, 4, stride=2 if i < layers - 1 else 1, padding=1, bias=False)
            for i, (into, out) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(GroupNorm(max(1, out // 16), out, 1e-6) for out in widths[1:])
        self.exit = nn.Conv2d(widths[-1], 1, 4, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.entrance(x.to(self.entrance.weight.dtype, memory_format=torch.channels_last))
        h = F.leaky_relu(h, _SLOPE)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), _SLOPE)
        return cast(Tensor, self.exit(h)).float()


def generator_loss(made: Tensor) -> Tensor:
    """What the autoencoder lowers of the scores of its reconstructions: (B, 1, h, w) -> (B,)."""
    return -made.mean((1, 2, 3))


def hinge_loss(real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's loss (Lim & Ye 2017): scores (B, 1, h, w) twice -> (B,), 1 where all scores are 0."""
    return 0.5 * (F.relu(1 - real).mean((1, 2, 3)) + F.relu(1 + made).mean((1, 2, 3)))


LOG_VAR = (-30.0, 20.0)  # what log-variances are clamped to, as in Stable Diffusion
DISCRIMINATOR = "critic."  # how the names of the discriminator's weights begin


class Moments(NamedTuple):
    """The posterior of a latent given its image, a diagonal Gaussian; float32, unscaled."""

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
    """What training sees of images: the posterior, and what the decoder makes of a draw of it."""

    moments: Moments
    image: Tensor  # (B, C, H, W)


class Autoencoder(nn.Module):
    """Encoder and decoder, and the discriminator that trains them where the config has one.

    Weights are a function of `config` and `seed` alone; on the meta device none are made.
    """

    def __init__(self, config: AutoencoderConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        latent, device = config.latent_channels, torch.get_default_device()
        with torch.device("meta"):
            self.encoder = AutoencoderEncoder(config)
            self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
            self.post_quant_conv = nn.Conv2d(latent, latent, 1)
            self.decoder = AutoencoderDecoder(config)
            if config.critic_channels:
                self.critic = Discriminator(config.in_channels, config.critic_channels, config.critic_layers)
        if device.type != "meta":
            self.to_empty(device=device)
            initialise(self, seed)

    def encode(self, x: Tensor) -> Moments:
        """Images (B, C, H, W) in [-1, 1] -> their latents' moments, (B, latent_channels, H/f, W/f) float32 each.

        Raises:
            Error: sides that are no multiples of the factor, or other channels.
        """
        if x.ndim != 4:
            raise Error(f"an autoencoder takes images (B, C, H, W), got shape {tuple(x.shape)}.")
        self.config.latent_shape((x.shape[1], x.shape[2], x.shape[3]))
        moments = self.quant_conv(self.encoder(x))
        mean, log_var = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, dim=1)
        return Moments(mean, log_var.clamp(*LOG_VAR))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, latent_channels, h, w), unscaled -> images (B, C, h*f, w*f) in z's dtype, not clamped.

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
        """Images and noise of the latents' shape -> their reconstruction from a draw of the posterior."""
        moments = self.encode(x)
        return Reconstruction(moments, self.decode(moments.sample(eps)))


class AutoencoderEncoder(nn.Module):
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


class AutoencoderDecoder(nn.Module):
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


def _level(config: AutoencoderConfig, channels: int, width: int, blocks: int, exit: nn.Module) -> UNetLevel:
    return UNetLevel([_block(config, width if j else channels, width) for j in range(blocks)], [], exit)


def _middle(config: AutoencoderConfig) -> nn.ModuleList:
    """A residual block, attention between all cells in one head where the config has it, a residual block."""
    width, attend = config.widths[-1], cast(nn.Module, nn.Identity())
    if config.middle_attention:
        attend = Attention(width, head_channels=None, groups=config.groups, eps=config.norm_eps)
    return nn.ModuleList([_block(config, width, width), attend, _block(config, width, width)])


def _through(levels: nn.ModuleList, h: Tensor, config: AutoencoderConfig) -> Tensor:
    for level in cast(Iterable[UNetLevel], levels):
        for block in level.blocks:
            h = run(block, h, recompute=config.checkpointing)
        h = level.exit(h)
    return h


def _across(middle: nn.ModuleList, h: Tensor, config: AutoencoderConfig) -> Tensor:
    h = run(middle[0], h, recompute=config.checkpointing)
    return run(middle[2], middle[1](h), recompute=config.checkpointing)


def weights_alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the discriminator's weights: what `Autoencoder(config.alone)` loads."""
    return {name: weight for name, weight in state.items() if not name.startswith(DISCRIMINATOR)}


def parameter_count(config: AutoencoderConfig) -> int:
    """How many weights an `Autoencoder(config)` has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in Autoencoder(config).parameters())
