"""A classifier's run (`--objective classifier`): what follows from it, and what has no effect on it. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kuosan.diffusion.schedule import Discrete
from kuosan.errors import Error
from kuosan.options import Tree
from kuosan.train.loss_settings import LOSS_SETTINGS

if TYPE_CHECKING:
    from kuosan.models.model import ModelConfig
    from kuosan.train.config import TrainConfig

# What follows: every picture is shown with its class, and there is nothing to preview.
FOLLOWS: Tree = {"train": {"preview_every": 0}, "model": {"task": {"labels": True, "drop": 0.0}}}


def check(train: TrainConfig, model: ModelConfig, usual: str) -> None:
    """Refuse what only a denoiser's training heeds; `usual` is the prediction that nobody had to say.

    Raises:
        Error: a setting without effect.
    """
    plain, bare = type(train)(), type(model)()
    idle = [
        *((f"train.{name}", getattr(train, name), getattr(plain, name)) for name in IDLE_IN_TRAINING),
        *((f"model.{name}", getattr(model, name), getattr(bare, name)) for name in ("sigma_data", "learned_variance")),
        ("model.prediction", model.prediction, usual),
        ("train.preview_every", train.preview_every, 0),
        ("model.task.kind", model.task.kind, "generation"),
        ("model.text.kind", model.text.kind, "none"),
        ("model.task.labels", model.task.labels, True),
        ("model.task.drop", model.task.drop, 0.0),
    ]
    for key, value, only in idle:
        if value != only:
            raise Error(
                f"{key} = {value} has no effect on a classifier: it names pictures and denoises none. Leave it out."
            )


IDLE_IN_TRAINING = (*LOSS_SETTINGS, "preview_pictures", "preview_steps")


def check_fit(model: ModelConfig) -> None:
    """Refuse a network that is none of a classifier, or does not fit the pictures. Raises: Error."""
    network, shape = model.network, model.walk_shape
    if network.kind != "classifier":
        raise Error(f"model.network.kind = {network.kind}: objective classifier trains a classifier; leave it out.")
    for name, given, wanted in (
        ("in_channels", network.in_channels, shape[0]),
        ("classes", network.classes, len(model.task.class_names)),
    ):
        if given != wanted:
            raise Error(f"model.network.{name} = {given}, but the data have {wanted}: leave it out.")
    if not network.noisy and model.schedule != Discrete():
        raise Error("model.schedule has no effect on a judge of clean pictures (noisy = false): leave it out.")
    if shape[1] % network.factor or shape[2] % network.factor:
        raise Error(
            f"pictures of {shape[1]} x {shape[2]} do not fit this network: sides must be multiples of "
            f"{network.factor}. Set --data.size to such a number, or fewer --model.network.multipliers."
        )
