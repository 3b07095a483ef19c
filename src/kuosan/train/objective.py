"""What training minimises at drawn levels: the weighted error of the network's prediction, the bound, or both.

Training a classifier: cross-entropy of the class named, at drawn noise levels or of the clean image.

Training an autoencoder (Rombach et al. 2022): pixels, features, the posterior's KL, and a discriminator of patches.

    loss = recon + perceptual + kl + critic * ratio * (-scores)
    the discriminator's own = hinge(scores of images, scores of reconstructions)

ratio = |grad of recon + perceptual| / |grad of -scores|, gradients at the decoder's last kernel (Esser et al. 2021,
eq. 7). Autoencoder and discriminator share no weight, and each loss reaches only one of them, so one backward pass
trains both.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan.diffusion.grids import logit_normal
from kuosan.diffusion.loss import Chain, bound_loss, discrete_chain, hybrid_loss, simple_loss, weight
from kuosan.diffusion.network import call, settled
from kuosan.diffusion.registry import Weight
from kuosan.diffusion.schedule import Discrete
from kuosan.errors import Error, plural
from kuosan.models.codec import PIXELS
from kuosan.networks.autoencoder import generator_loss, hinge_loss
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.tasks.condition import condition

if TYPE_CHECKING:
    import numpy as np

    from kuosan.data.dataset import Batch, Images
    from kuosan.device import Compute
    from kuosan.diffusion.level import Level
    from kuosan.diffusion.network import Network
    from kuosan.metrics.image_quality import PerceptualLoss
    from kuosan.models.codec import Codec
    from kuosan.models.model import ModelConfig
    from kuosan.networks.autoencoder import Autoencoder
    from kuosan.train.batches import Drawn, LossAwareSampler
    from kuosan.train.budget import Budget
    from kuosan.train.config import TrainConfig


class Objective(Protocol):
    """What the loop, the monitor and the estimate ask of an objective."""

    @property
    def compute(self) -> Compute:
        """Where and in which precision."""
        ...

    def level(self, u: np.ndarray) -> Level:
        """The noise levels of draws u (B,) in [0, 1)."""
        ...

    def losses(self, network: nn.Module, drawn: Drawn) -> Tensor:
        """Each image's loss: (B,) float32."""
        ...

    def validate(self, network: nn.Module, batch: Batch, level: Level, eps: Tensor) -> dict[str, Tensor]:
        """What is measured of held-out images, (B,) float64 each; those ending with by_noise are reported by level."""
        ...

    def parts(self) -> dict[str, float]:
        """What the losses since the last call were made of, by name; nothing where a loss is one thing."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """The diffusion objective of one model on one device."""

    model: ModelConfig
    train: TrainConfig
    compute: Compute
    history: LossAwareSampler | None = None  # of losses, by which t are drawn under importance sampling
    codec: Codec = PIXELS  # of what is denoised, through which goes what a network is given beside it

    def level(self, u: np.ndarray) -> Level:
        """The noise levels of draws u (B,) in [0, 1): every t counts as it does in the loss."""
        if self.train.t_sampling == "logit_normal":
            u = logit_normal(u, self.train.t_mean, self.train.t_std)
        if self.train.t_sampling == "continuous":
            assert isinstance(self.model.schedule, Discrete)
            return self.model.schedule.between(u)
        return self.model.schedule.at(u)

    def losses(self, network: nn.Module, drawn: Drawn) -> Tensor:
        """Each image's loss: (B,) float32."""
        called, eps = settled(autocast(partial(_asked, network), self.compute)), drawn.eps
        if self.history is None:
            return self._losses(called, drawn.batch, self.level(drawn.u), eps, drawn.drop)
        assert isinstance(self.model.schedule, Discrete)
        t = self.history.times(drawn.u)
        losses = self._losses(called, drawn.batch, self.model.schedule.at_t(t), eps, drawn.drop)
        return losses * torch.from_numpy(self.history.scale(t)).to(losses)

    def validate(self, network: nn.Module, batch: Batch, level: Level, eps: Tensor) -> dict[str, Tensor]:
        """Of held-out images, (B,) float64 each: `loss` as in training, `by_noise` the error without a weight."""
        error = self._error(network, batch, level, eps, None, Weight()).cpu().double()
        if self.train.loss != "simple":
            return {"loss": self._losses(network, batch, level, eps, None).cpu().double(), "by_noise": error}
        model = self.model
        own = weight(self.train.weighting, level, model.prediction, model.sigma_data, model.schedule)
        return {"loss": error * own, "by_noise": error}

    def parts(self) -> dict[str, float]:
        """Nothing: the loss is one thing."""
        return {}

    def _losses(self, network: Network, batch: Batch, level: Level, eps: Tensor, drop: np.ndarray | None) -> Tensor:
        """What is minimised, at given levels."""
        train, model, weighting = self.train, self.model, self.train.weighting
        if train.loss == "simple":
            return self._error(network, batch, level, eps, drop, weighting)
        x0, eps, cond = self._moved(batch, eps, drop)
        options: dict[str, Any] = {"steps": self._steps, "sigma_data": model.sigma_data, "cond": cond}
        if train.loss == "vlb":
            options |= {"variance": train.vlb_variance, "learned_variance": model.learned_variance}
            return bound_loss(network, model.prediction, x0, level, eps, **options)
        options |= {"vlb_weight": train.vlb_weight, "weight_name": weighting, "schedule": model.schedule}
        return hybrid_loss(network, model.prediction, x0, level, eps, **options)

    def _error(
        self, network: Network, batch: Batch, level: Level, eps: Tensor, drop: np.ndarray | None, weighting: Weight
    ) -> Tensor:
        """The weighted squared error, over known pixels too: a loss of holes alone learned far more slowly."""
        x0, eps, cond = self._moved(batch, eps, drop)
        return simple_loss(
            network,
            self.model.prediction,
            x0,
            level,
            eps,
            weight_name=weighting,
            schedule=self.model.schedule,
            sigma_data=self.model.sigma_data,
            learned_variance=self.model.learned_variance,
            cond=cond,
        )

    def _moved(self, batch: Batch, eps: Tensor, drop: np.ndarray | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Images, noise and conditions, on the device."""
        device = self.compute.device
        label = None if batch.label is None else batch.label.to(device, non_blocking=True)
        given = None if batch.given is None else batch.given.to(device)
        text = batch.text and {name: part.to(device, non_blocking=True) for name, part in batch.text.items()}
        there = condition(self.model.task, label, given, drop, text, self.codec.encode)
        return batch.x0.to(device, non_blocking=True), eps.to(device, non_blocking=True), there

    @cached_property
    def _steps(self) -> Chain:
        assert isinstance(self.model.schedule, Discrete)
        return discrete_chain(self.model.schedule)


def _asked(network: nn.Module, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
    return call(network, x, t, cond)


def autocast(network: Network, compute: Compute) -> Network:
    """The network as it is called in training: in the device's precision."""

    def called(*inputs: Tensor, **cond: Tensor) -> Tensor:
        with precision(compute):
            out: Tensor = network(*inputs, **cond)
            return out

    return called


def precision(compute: Compute) -> AbstractContextManager[object]:
    """The device's precision, within which networks are called in training."""
    if compute.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(compute.device.type, dtype=compute.dtype)


@dataclass(frozen=True)
class Classification:
    """The classifier's objective, -log p(y | x_t) with t drawn as in denoising (Dhariwal & Nichol 2021, section 4)."""

    model: ModelConfig
    compute: Compute

    @property
    def noisy(self) -> bool:
        """Whether noise is added; a judge of clean images sees none."""
        assert isinstance(self.model.network, ClassifierConfig)
        return self.model.network.noisy

    def level(self, u: np.ndarray) -> Level:
        """The noise levels of draws u (B,) in [0, 1)."""
        return self.model.schedule.at(u)

    def losses(self, network: nn.Module, drawn: Drawn) -> Tensor:
        """Each image's cross-entropy: (B,) float32."""
        logits = self._logits(autocast(network, self.compute), drawn.batch, self.level(drawn.u), drawn.eps)
        return F.cross_entropy(logits, self._label(drawn.batch), reduction="none")

    def validate(self, network: nn.Module, batch: Batch, level: Level, eps: Tensor) -> dict[str, Tensor]:
        """Of held-out images, (B,) float64 each: cross-entropy and whether the class is right, by noise where any."""
        logits, label = self._logits(network, batch, level, eps), self._label(batch)
        loss = F.cross_entropy(logits, label, reduction="none").cpu().double()
        right = (logits.argmax(1) == label).cpu().double()
        named = {"loss": loss, "accuracy": right}
        return {**named, "by_noise": loss, "accuracy_by_noise": right} if self.noisy else named

    def parts(self) -> dict[str, float]:
        """Nothing: the loss is one thing."""
        return {}

    def _logits(self, network: Network, batch: Batch, level: Level, eps: Tensor) -> Tensor:
        device = self.compute.device
        x0 = batch.x0.to(device, non_blocking=True)
        if not self.noisy:
            return network(x0)
        return network(level.add(x0, eps.to(device, non_blocking=True)), level.t.to(device, torch.float32))

    def _label(self, batch: Batch) -> Tensor:
        assert batch.label is not None, "a classifier is trained on classes"
        return batch.label.to(self.compute.device, non_blocking=True)


def check_labels(images: Images) -> None:
    """Raises: Error for images without a class; a classifier has nothing to learn from them."""
    assert images.labels is not None
    without = [i for i, label in enumerate(images.labels) if label < 0]
    if without:
        raise Error(
            f"{plural(len(without), 'image', 'has', of=len(images))} no class ({images.name(without[0])}): a "
            "classifier "
            f"needs one of each. Give them a class, or move them out of the data."
        )


LARGEST_RATIO = 1e4  # as VQGAN clamps it


@dataclass(frozen=True)
class Autoencoding:
    """The objective of one autoencoder on one device. Its noise is that of the posterior, of the latents' shape."""

    model: ModelConfig
    train: TrainConfig
    compute: Compute
    features: PerceptualLoss | None
    budget: Budget | None = None  # of time, where the discriminator's start is a share of it
    _said: dict[str, list[Tensor]] = field(default_factory=dict)

    def level(self, u: np.ndarray) -> Level:
        """Of draws u (B,): there is no noise to choose, and nobody reads it."""
        return self.model.schedule.at(u)

    def losses(self, network: nn.Module, drawn: Drawn) -> Tensor:
        """Each image's loss without what is played against the discriminator, whose gradients are there: (B,) float32.

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
        if settings.critic and self._has_begun(drawn.step):
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
        """What the losses since the last call were made of, means over this process's images."""
        means = {name: float(torch.cat(values).double().mean()) for name, values in self._said.items()}
        self._said.clear()
        return means

    def _has_begun(self, step: int) -> bool:
        """Whether the discriminator learns and counts in the step after so many."""
        start = self.train.autoencoder.critic_start
        return step >= start if start >= 1 or self.budget is None else self.budget.done(step) >= start

    def validate(self, network: nn.Module, batch: Batch, level: Level, eps: Tensor) -> dict[str, Tensor]:
        """Of held-out images, decoded from the posterior's mean, (B,) float64 each: the loss, its parts, and PSNR."""
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
        """Of images and their reconstructions, each (B,): `recon`, and `perceptual` where it counts."""
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
    """A window of each image (B, C, H, W), at draws (B,) in [0, 1): (B, C, size, size); whole ones at size 0."""
    if not size:
        return x
    rows, columns = ((draws * (side - size + 1)).astype(int) for draws, side in zip((down, across), x.shape[2:]))
    return torch.stack([each[:, i : i + size, j : j + size] for each, i, j in zip(x, rows, columns, strict=True)])


def _ratio(network: Autoencoder, made: Tensor, slope: Tensor, against: Tensor) -> Tensor:
    """How much the discriminator's loss weighs: (), from both losses' gradients at the decoder's last kernel."""
    last = network.decoder.exit.weight
    error, played = (torch.autograd.grad(made, last, each, retain_graph=True)[0].norm() for each in (slope, against))
    ratio: Tensor = (error / (played + 1e-4)).clamp(0, LARGEST_RATIO)
    return ratio


def _std(log_var: Tensor) -> Tensor:
    """The root mean variance of each image's posterior: (B,)."""
    return log_var.exp().flatten(1).mean(1).sqrt()


def _spread(mean: Tensor) -> Tensor:
    """The root mean square of each image's latent: (B,)."""
    return mean.square().flatten(1).mean(1).sqrt()
