"""Models small enough to sample in milliseconds, with no weight left at zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from kuosan import seeds
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.models.latents import prepare
from kuosan.models.model import Model, ModelConfig, build
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.networks.config import UNetConfig
from kuosan.tasks.task import Generation

UNET = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(False, True), groups=8)


def tiny_model(
    schedule: Discrete | Karras | Flow | None = None,
    prediction: str = "v",
    shape: tuple[int, int, int] = (3, 8, 8),
    dtype: torch.dtype = torch.float32,
    learned_variance: bool = False,
    task: Generation = Generation(),  # noqa: B008 (frozen)
) -> Model:
    """A U-Net whose every part matters: layers that start at zero get weights too."""
    unet = replace(
        UNET,
        in_channels=shape[0],
        out_channels=shape[0] * (2 if learned_variance else 1),
        classes=len(task.class_names),
    )
    more = {"learned_variance": learned_variance, "task": task}
    return with_weights(ModelConfig(shape, unet, schedule or Discrete(), prediction, **more), dtype)


def tiny_classifier(schedule: Discrete | Karras | Flow | None = None, names: tuple[str, ...] = ("a", "b")) -> Model:
    """A noisy classifier of 8 x 8 colour images."""
    network = ClassifierConfig(
        in_channels=3, classes=len(names), channels=32, multipliers=(1, 2), attention=(False, True), groups=8
    )
    task = Generation(labels=True, class_names=names)
    return with_weights(ModelConfig((3, 8, 8), network, schedule or Discrete(), task=task))


def with_weights(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Model:
    """A model of this configuration, without a weight that is zero."""
    network = _weighted(replace(config, schedule=Discrete(), prediction="v"))  # neither changes the network
    return Model(config, prepare(network, "cpu", dtype))  # a copy


@lru_cache(32)
def _weighted(config: ModelConfig) -> nn.Module:
    network = build(config, seed=1).network
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            if not parameter.any():
                parameter.copy_(0.1 * seeds.normal([(0, "test/weights", i, 0)], tuple(parameter.shape))[0])
    return network


class Counted(nn.Module):
    """A network that counts its calls and the images in them, and remembers whether gradients were on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls, self.graded = network, 0, False

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.calls += 1
        self.graded |= torch.is_grad_enabled()
        return self.network(x, t, **cond)  # type: ignore[no-any-return]


def counted(model: Model) -> tuple[Model, Counted]:
    network = Counted(model.network)
    return Model(model.config, network), network


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
