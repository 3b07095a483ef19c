"""Training a classifier: cross-entropy of the class named, at drawn noise levels or of the clean picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan.errors import Error
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.train.objective import autocast

if TYPE_CHECKING:
    import numpy as np

    from kuosan.data.pictures import Batch, Pictures
    from kuosan.device import Compute
    from kuosan.diffusion.denoiser import Network
    from kuosan.diffusion.level import Level
    from kuosan.model import ModelConfig
    from kuosan.train.draws import Drawn


@dataclass(frozen=True)
class Classification:
    """The classifier's objective, -log p(y | x_t) with t drawn as in denoising (Dhariwal & Nichol 2021, section 4)."""

    model: ModelConfig
    compute: Compute

    @property
    def noisy(self) -> bool:
        """Whether noise is added; a judge of clean pictures sees none."""
        assert isinstance(self.model.network, ClassifierConfig)
        return self.model.network.noisy

    def level(self, u: np.ndarray) -> Level:
        """The noise levels of draws u (B,) in [0, 1)."""
        return self.model.schedule.at(u)

    def losses(self, network: nn.Module, drawn: Drawn) -> Tensor:
        """Each picture's cross-entropy: (B,) float32."""
        logits = self._logits(autocast(network, self.compute), drawn.batch, self.level(drawn.u), drawn.eps)
        return F.cross_entropy(logits, self._label(drawn.batch), reduction="none")

    def judge(self, network: nn.Module, batch: Batch, level: Level, eps: Tensor) -> dict[str, Tensor]:
        """Of held-out pictures, (B,) float64 each: cross-entropy and whether the class is right, by noise where any."""
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


def check_labels(pictures: Pictures) -> None:
    """Raises: Error for pictures without a class; a classifier has nothing to learn from them."""
    assert pictures.labels is not None
    without = [i for i, label in enumerate(pictures.labels) if label < 0]
    if without:
        raise Error(
            f"{len(without)} of {len(pictures)} pictures have no class ({pictures.name(without[0])}): a classifier "
            f"needs one of each. Give them a class, or move them out of the data."
        )
