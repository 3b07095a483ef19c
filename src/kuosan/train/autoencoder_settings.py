"""An autoencoder's run (`--objective autoencoder`): its settings, and what has no effect on it. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kuosan.config import build, merge
from kuosan.errors import Error
from kuosan.metrics.features.names import perceptual_features
from kuosan.train.defaults import check_steps
from kuosan.train.loss_settings import LOSS_SETTINGS

if TYPE_CHECKING:
    from kuosan.models.model import ModelConfig
    from kuosan.networks.autoencoder_config import AutoencoderConfig
    from kuosan.train.config import TrainConfig


@dataclass(frozen=True)
class AutoencoderSettings:
    """What an autoencoder's training minimises, a picture: recon + perceptual + kl + critic, each with its weight."""

    recon: Literal["l1", "l2"] = "l1"  # the error of pixels: mean |x - y|, or mean (x - y)²
    perceptual: float = 0.1  # weight of the perceptual distance; 0: none
    features: Literal["auto", "lite0", "random", "none"] = "auto"  # perceptual: auto is lite0 if installed, else random
    kl: float = 1e-6  # weight of KL(posterior | N(0, I)), in nats a value of the picture (Rombach et al. 2022)
    critic: float = 0.5  # weight of the critic, beside the adaptive one (Esser et al. 2021); 0: no critic
    crop: int = 0  # pixels a side of the window of each picture that is trained on, drawn anew; 0: whole pictures
    critic_start: int | float = 5000  # steps, or the share of the run, before the discriminator learns and counts

    def __post_init__(self) -> None:
        for name in ("perceptual", "kl", "critic"):
            if not 0 <= getattr(self, name) < math.inf:
                raise Error(f"train.autoencoder.{name} = {getattr(self, name)} is not allowed: 0 or more.")
        if self.crop < 0:
            raise Error(f"train.autoencoder.crop = {self.crop} is not allowed: 0 pixels (whole pictures) or more.")
        check_steps("train.autoencoder.critic_start", self.critic_start)
        if not self.critic and self.critic_start != AutoencoderSettings.critic_start:
            raise Error(
                f"train.autoencoder.critic_start = {self.critic_start} has no effect without a critic: leave it out, "
                "or give --train.autoencoder.critic a weight (0.5 is usual)."
            )
        if not self.perceptual and self.features not in ("auto", "none"):
            raise Error(
                f"train.autoencoder.features = {self.features} has no effect with perceptual = 0: leave it out, or "
                "give --train.autoencoder.perceptual a weight (0.1 is usual)."
            )


def filled(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree, the perceptual features that are meant by `auto` named: a run keeps to them wherever it goes on."""
    settings = build(AutoencoderSettings, tree.get("train", {}).get("autoencoder", {}))
    name = perceptual_features(settings.features) if settings.perceptual else "none"
    return merge(tree, {"train": {"autoencoder": {"features": name}}})


IDLE_IN_TRAINING = (*LOSS_SETTINGS, "uncaptioned", "preview_steps")
IDLE_IN_MODEL = ("schedule", "sigma_data", "learned_variance", "task", "text", "codec")


def check(train: TrainConfig, model: ModelConfig, usual: str) -> None:
    """Refuse what only a denoiser's training heeds; `usual` is the prediction that nobody had to say.

    Raises:
        Error: a setting without effect, or a critic that would never be heard.
    """
    plain, bare = type(train)(), type(model)()
    idle = [
        *((f"train.{name}", getattr(train, name, 0), getattr(plain, name, 0)) for name in IDLE_IN_TRAINING),
        *((f"model.{name}", getattr(model, name, 0), getattr(bare, name, 0)) for name in IDLE_IN_MODEL),
        ("model.prediction", model.prediction, usual),
    ]
    for key, value, only in idle:
        if value != only:
            named = getattr(value, "kind", value)
            raise Error(
                f"{key} = {named} has no effect on an autoencoder: it adds no noise and is told nothing. Leave it out."
            )
    start = train.autoencoder.critic_start
    if train.autoencoder.critic and start >= train.max_steps:
        raise Error(
            f"train.autoencoder.critic_start = {start}, but the run ends at train.max_steps = {train.max_steps}: its "
            f"critic would never be heard. Use --critic-start {train.max_steps // 2}, or --train.autoencoder.critic 0."
        )


def refuse_elsewhere(train: TrainConfig) -> None:
    """Raises: Error for an autoencoder's settings under another objective."""
    if train.autoencoder != AutoencoderSettings():
        raise Error(
            f"train.autoencoder has no effect on objective {train.objective}: leave its settings out, or use "
            "--objective autoencoder."
        )


def check_fit(train: TrainConfig, model: ModelConfig) -> None:
    """Refuse a network that is no autoencoder, or does not fit pictures or settings. Raises: Error."""
    network, shape = model.network, model.shape
    assert shape is not None
    if network.kind != "autoencoder":
        raise Error(f"model.network.kind = {network.kind}: objective autoencoder trains an autoencoder; leave it out.")
    if network.in_channels != shape[0]:
        raise Error(
            f"model.network.in_channels = {network.in_channels}, but the pictures have {shape[0]}: leave it out."
        )
    seen = _seen(train.autoencoder, network, shape)
    if bool(network.critic_channels) != bool(train.autoencoder.critic):
        raise Error(
            f"model.network.critic_channels = {network.critic_channels} with train.autoencoder.critic = "
            f"{train.autoencoder.critic:g}: a critic needs both or neither; leave critic_channels out."
        )
    least = 3 << network.critic_layers  # behind the halvings two convolutions take one cell each
    if network.critic_channels and min(seen) < least:
        layers = max(1, (min(seen) // 3).bit_length() - 1)
        raise Error(
            f"pictures of {seen[0]} x {seen[1]} are too small for a critic of {network.critic_layers} layers, which "
            f"needs {least} pixels a side: use --critic-layers {layers}, or --train.autoencoder.critic 0."
        )


def _seen(settings: AutoencoderSettings, network: AutoencoderConfig, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of what is trained on. Raises: Error for what the network or the pictures do not allow."""
    network.latent_shape(shape)
    if not settings.crop:
        return shape[1:]
    if settings.crop % network.factor or settings.crop >= min(shape[1:]):
        raise Error(
            f"train.autoencoder.crop = {settings.crop} of pictures of {shape[1]} x {shape[2]} is not allowed: a "
            f"multiple of {network.factor} below {min(shape[1:])}, or 0 for whole pictures."
        )
    return settings.crop, settings.crop


def noise_shape(train: TrainConfig, model: ModelConfig) -> tuple[int, int, int] | None:
    """The shape of one picture's noise in training: its latent's, of what is seen of it; None: the model's own."""
    network, shape = model.network, model.shape
    if network.kind != "autoencoder" or shape is None:
        return None
    return network.latent_shape((shape[0], *_seen(train.autoencoder, network, shape)))
