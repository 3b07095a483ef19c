"""A classifier of clean images as the judge of what classes images show.

Whether images show the wanted class, as an independent classifier sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kuosan.data.pixels import from_uint8
from kuosan.errors import Error
from kuosan.metrics.estimate import Agreement, Estimate, agreement
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.sample import pipeline

if TYPE_CHECKING:
    import numpy as np

    from kuosan.device import Compute
    from kuosan.sample.pipeline import Pipeline

BATCH = 64


@dataclass(frozen=True)
class Judge:
    """Reads images as `rows.Reader` does: a row of logits an image."""

    run: Pipeline

    @property
    def name(self) -> str:
        """For the folder its logits are kept in."""
        return "judge"

    @property
    def hash(self) -> str:
        """Of its weights."""
        return self.run.weights

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes it knows."""
        return self.run.model.config.task.class_names

    @property
    def dim(self) -> int:
        """How many classes."""
        return len(self.classes)

    @torch.no_grad()
    def __call__(self, images: Tensor, /) -> Tensor:
        """Logits of uint8 images (B, C, H, W): (B, classes) float32."""
        found = []
        for part in torch.split(images, BATCH):
            x = torch.from_numpy(from_uint8(part.movedim(1, -1).numpy())).to(self.run.compute.device)
            found.append(self.run.model.network(x).float().cpu())
        return torch.cat(found)


def open_judge(run: str, shape: tuple[int, int, int], classes: Sequence[str], compute: Compute) -> Judge:
    """The classifier of a run, for images of `shape` (C, H, W) and `classes`.

    Raises:
        Error: it is no judge of clean images, or of other images or classes.
    """
    opened = pipeline.load(run, compute=compute)
    network = opened.model.config.network
    if not isinstance(network, ClassifierConfig):
        raise Error(f"judge {run!r} is no classifier: train one with --objective classifier --no-noisy.")
    if network.noisy:
        raise Error(f"judge {run!r} was trained on noisy images to guide; judge with one of clean ones (--no-noisy).")
    judge = Judge(opened)
    if opened.model.shape != shape:
        raise Error(f"judge {run!r} reads images of {opened.model.shape}, these are {shape}.")
    if judge.classes != tuple(classes):
        raise Error(f"judge {run!r} knows the classes {', '.join(judge.classes)}; these are {', '.join(classes)}.")
    return judge


def share(logits: np.ndarray, wanted: np.ndarray, classes: tuple[str, ...]) -> tuple[Estimate, Agreement]:
    """The share of images that the judge finds to be of the wanted class, with its standard error."""
    found = agreement(logits, wanted, classes)
    return Estimate(found.accuracy.value, (found.accuracy.high - found.accuracy.low) / (2 * 1.96)), found
