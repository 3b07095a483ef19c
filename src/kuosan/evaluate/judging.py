"""A classifier of clean pictures as the judge of what classes pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kuosan import trained
from kuosan.errors import Error
from kuosan.evaluate.agreement import Agreement, agreement
from kuosan.evaluate.estimate import Estimate
from kuosan.networks.classifier_config import ClassifierConfig

if TYPE_CHECKING:
    import numpy as np

    from kuosan.device import Compute
    from kuosan.trained import Trained

BATCH = 64


@dataclass(frozen=True)
class Judge:
    """Reads pictures as `rows.Reader` does: a row of logits a picture."""

    run: Trained

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
        """What it tells apart."""
        return self.run.model.config.task.class_names

    @property
    def dim(self) -> int:
        """How many classes."""
        return len(self.classes)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, /) -> Tensor:
        """Logits of uint8 pictures (B, C, H, W): (B, classes) float32."""
        found = []
        for part in torch.split(pictures, BATCH):
            x = part.to(self.run.compute.device).float() / 127.5 - 1
            found.append(self.run.model.network(x).float().cpu())
        return torch.cat(found)


def open_judge(run: str, shape: tuple[int, int, int], classes: Sequence[str], compute: Compute) -> Judge:
    """The classifier of a run, for pictures of `shape` (C, H, W) and `classes`.

    Raises:
        Error: it is no judge of clean pictures, or of other pictures or classes.
    """
    opened = trained.load(run, compute=compute)
    network = opened.model.config.network
    if not isinstance(network, ClassifierConfig):
        raise Error(f"judge {run!r} is no classifier: train one with --objective classifier --no-noisy.")
    if network.noisy:
        raise Error(f"judge {run!r} was trained on noisy pictures to guide; judge with one of clean ones (--no-noisy).")
    judge = Judge(opened)
    if opened.model.shape != shape:
        raise Error(f"judge {run!r} reads pictures of {opened.model.shape}, these are {shape}.")
    if judge.classes != tuple(classes):
        raise Error(f"judge {run!r} knows the classes {', '.join(judge.classes)}; asked for are {', '.join(classes)}.")
    return judge


def share(logits: np.ndarray, wanted: np.ndarray, classes: tuple[str, ...]) -> tuple[Estimate, Agreement]:
    """The share of pictures that the judge finds to be of the class asked for, with its standard error."""
    found = agreement(logits, wanted, classes)
    return Estimate(found.accuracy.value, (found.accuracy.high - found.accuracy.low) / (2 * 1.96)), found
