"""Training an autoencoder (Rombach et al. 2022): pixels, features, the posterior's KL, and a critic of patches.

    loss = recon + perceptual + kl + critic * ratio * (-scores)
    the critic's own = hinge(scores of pictures, scores of reconstructions)

ratio = |grad of recon + perceptual| / |grad of -scores|, gradients at the decoder's last kernel (Esser et al. 2021,
eq. 7). Autoencoder and critic share no weight, and each loss reaches only one of them: one backward pass trains both.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from kuosan.networks.critic import generator_loss, hinge_loss
from kuosan.train.objective import precision

if TYPE_CHECKING:
    import numpy as np

    from kuosan.data.pictures import Batch
    from kuosan.device import Compute
    from kuosan.diffusion.level import Level
    from kuosan.features.loss import PerceptualLoss
    from kuosan.model import ModelConfig
    from kuosan.networks.autoencoder import Autoencoder
    from kuosan.train.config import TrainConfig
    from kuosan.train.draws import Drawn

LARGEST_RATIO = 1e4  # as VQGAN clamps it


@dataclass(frozen=True)
class Autoencoding:
    """The objective of one autoencoder on one device. Its noise is that of the posterior, of the latents' shape."""

    model: ModelConfig
    train: TrainConfig
    compute: Compute
    features: PerceptualLoss | None
    _said: dict[str, list[Tensor]] = field(default_factory=dict)

    def level(self, u: np.ndarray) -> Level:
        """Of draws u (B,): there is no noise to choose, and nobody reads it."""
        return self.model.schedule.at(u)

    def losses(self, network: nn.Module, drawn: Drawn) -> Tensor:
        """Each picture's loss without what is played against the critic, whose gradients are there: (B,) float32.

        The errors' slopes at the reconstruction are taken first, once, for the ratio and for the network alike.
        """
        settings, inner = self.train.autoencoder, cast("Autoencoder", network)
        x = windows(drawn.batch.x0, settings.crop, drawn.u, drawn.drop).to(self.compute.device, non_blocking=True)
        with precision(self.compute):
            moments, made = network(x, drawn.eps.to(self.compute.device, non_blocking=True))
        y = made.detach().requires_grad_()
        parts = self._errors(x, y)
        error = self._error(parts)
        (slope,) = torch.autograd.grad(error.sum(), y)
        kl = moments.kl() / x[0].numel()
        loss = error.detach() + settings.kl * kl
        if settings.critic and drawn.step >= settings.critic_start:
            with precision(self.compute):
                real, fake = inner.critic(x), inner.critic(y)
            (against,) = torch.autograd.grad(generator_loss(fake).sum(), y, retain_graph=True)
            ratio = _ratio(inner, made, slope, against)
            slope = slope + settings.critic * ratio * against
            hinge = hinge_loss(real, fake)
            loss = loss + hinge - hinge.detach()
            parts |= {"critic": hinge, "ratio": ratio.expand(len(x))}
        followed = (made * slope).sum((1, 2, 3))
        for name, part in (parts | {"kl": kl}).items():
            self._said.setdefault(name, []).append(part.detach())
        felt: Tensor = loss + followed - followed.detach()
        return felt

    def parts(self) -> dict[str, float]:
        """What the losses since the last call were made of, means over this process's pictures."""
        means = {name: float(torch.cat(values).double().mean()) for name, values in self._said.items()}
        self._said.clear()
        return means

    def judge(self, network: nn.Module, batch: Batch, level: Level, eps: Tensor) -> dict[str, Tensor]:
        """Of held-out pictures, decoded from the posterior's mean, (B,) float64 each: the loss, its parts, and PSNR."""
        settings, inner = self.train.autoencoder, cast("Autoencoder", network)
        x = batch.x0.to(self.compute.device)
        moments = inner.encode(x)
        y = inner.decode(moments.mean)
        parts = {**self._errors(x, y), "kl": moments.kl() / x[0].numel()}
        loss = self._error(parts) + settings.kl * parts["kl"]
        squared = (x - y.clamp(-1, 1)).square().mean((1, 2, 3))
        psnr = 10 * torch.log10(4 / squared.clamp(min=1e-10))  # of values from -1 to 1
        stds = {"posterior_std": _std(moments.log_var), "latent_std": _spread(moments.mean)}
        named = {"loss": loss, **parts, "psnr": psnr, **stds}
        return {name: value.cpu().double() for name, value in named.items()}

    def _errors(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Of pictures and their reconstructions, each (B,): `recon`, and `perceptual` where it counts."""
        off = x - y
        parts = {"recon": (off.abs() if self.train.autoencoder.recon == "l1" else off.square()).mean((1, 2, 3))}
        if self.features is not None:
            with precision(self.compute) if self.compute.device.type == "cuda" else nullcontext():
                parts["perceptual"] = self.features(x, y)  # depthwise convolutions in bf16 are slower on a CPU
        return parts

    def _error(self, parts: dict[str, Tensor]) -> Tensor:
        weight = self.train.autoencoder.perceptual
        return parts["recon"] + weight * parts["perceptual"] if "perceptual" in parts else parts["recon"]


def windows(x: Tensor, size: int, down: np.ndarray, across: np.ndarray) -> Tensor:
    """A window of each picture (B, C, H, W), at draws (B,) in [0, 1): (B, C, size, size); whole ones at size 0."""
    if not size:
        return x
    rows, columns = ((draws * (side - size + 1)).astype(int) for draws, side in zip((down, across), x.shape[2:]))
    return torch.stack([each[:, i : i + size, j : j + size] for each, i, j in zip(x, rows, columns, strict=True)])


def _ratio(network: Autoencoder, made: Tensor, slope: Tensor, against: Tensor) -> Tensor:
    """How strong the critic is to be heard: (), from both losses' gradients at the decoder's last kernel."""
    last = network.decoder.exit.weight
    error, played = (torch.autograd.grad(made, last, each, retain_graph=True)[0].norm() for each in (slope, against))
    ratio: Tensor = (error / (played + 1e-4)).clamp(0, LARGEST_RATIO)
    return ratio


def _std(log_var: Tensor) -> Tensor:
    """The root mean variance of each picture's posterior: (B,)."""
    return log_var.exp().flatten(1).mean(1).sqrt()


def _spread(mean: Tensor) -> Tensor:
    """The root mean square of each picture's latent: (B,)."""
    return mean.square().flatten(1).mean(1).sqrt()
