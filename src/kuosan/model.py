"""The waist: what a checkpoint holds, and a network built from it. Everything above makes or uses a `Model`.

A model is its network, the schedule of its noise, and what the network predicts: sampling needs nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.networks.config import UNetConfig
from kuosan.networks.dit_config import DiTConfig
from kuosan.tasks import Generation, Inpainting, SuperResolution

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kuosan.diffusion.denoiser import Denoiser


@dataclass(frozen=True)
class OwnNetwork:
    """A network that the caller brings as an nn.Module, called as `network(x, t)` and brought again when loading."""

    kind: Literal["own"] = "own"
    name: str = ""  # the class's name, shown when a run needs the network it was trained with


@dataclass(frozen=True)
class ModelConfig:
    """What a trained model is, in numbers and names: enough to build it and to sample from it."""

    shape: tuple[int, int, int] | None = None  # channels, height, width of a picture; decided by the data
    network: UNetConfig | DiTConfig | OwnNetwork | ClassifierConfig | AutoencoderConfig = field(
        default_factory=UNetConfig
    )  # unet, dit (a transformer), own (a module given from Python), classifier or autoencoder
    schedule: Discrete | Karras | Flow = field(default_factory=Discrete)  # the noise: discrete, karras (EDM) or flow
    prediction: str = "v"  # what the network predicts: eps, x0, v, flow or edm
    sigma_data: float = 0.5  # the pictures' standard deviation that edm's preconditioning assumes
    learned_variance: bool = False  # the network has 2C outputs, the second half the variance (Nichol & Dhariwal 2021)
    task: Generation | SuperResolution | Inpainting = field(
        default_factory=Generation
    )  # what is made: generation, super_resolution or inpainting

    def __post_init__(self) -> None:
        from kuosan.diffusion import names

        object.__setattr__(self, "prediction", names.prediction(self.prediction))
        names.check(self.schedule, self.prediction, learned_variance=self.learned_variance)
        if not self.sigma_data > 0:
            raise Error(f"sigma_data = {self.sigma_data} must be above 0; EDM uses 0.5 for pictures in [-1, 1].")


def require_whole(config: ModelConfig, deed: str) -> None:
    """Raises: Error for a model that was trained to restore, and makes no picture from nothing; `deed` needs one."""
    if config.task.kind != "generation":
        raise Error(
            f"{deed} needs a model of whole pictures, and this one was trained for {config.task.kind}: use it by "
            f"kuosan restore, and measure it by kuosan compare."
        )


@dataclass
class Model:
    """A network ready to denoise, with the configuration that says what it predicts and at which noise."""

    config: ModelConfig
    network: nn.Module

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of a picture."""
        assert self.config.shape is not None, "a built model knows its shape"
        return self.config.shape

    def denoiser(self, cond: dict[str, Tensor] | None = None) -> Denoiser:
        """(x, level) -> Prediction, with the conditions bound.

        Raises:
            Error: the model is a classifier or an autoencoder.
        """
        if isinstance(self.config.network, ClassifierConfig):
            raise Error("this model is a classifier: it names pictures and makes none. It guides a model that does.")
        if isinstance(self.config.network, AutoencoderConfig):
            raise Error("this model is an autoencoder: it turns pictures into latents and back, and denoises none.")
        from kuosan.diffusion.denoiser import denoiser

        return denoiser(
            self.network,
            self.config.prediction,
            sigma_data=self.config.sigma_data,
            learned_variance=self.config.learned_variance,
            cond=cond,
        )


def build(config: ModelConfig, seed: int = 0, network: nn.Module | None = None) -> Model:
    """A model with freshly initialised weights; `network` is the caller's module where the configuration says `own`.

    Raises:
        Error: the configuration names a network of the caller's and none is given, or the other way round.
    """
    if isinstance(config.network, OwnNetwork):
        if network is None:
            raise missing_network(config.network)
        return Model(config, network)
    if network is not None:
        raise Error(f"network= was given ({type(network).__name__}), but this run has a kuosan network: leave it out.")
    if isinstance(config.network, ClassifierConfig):
        from kuosan.networks.classifier import Classifier

        return Model(config, Classifier(config.network, seed))
    if isinstance(config.network, AutoencoderConfig):
        from kuosan.networks.autoencoder import Autoencoder

        return Model(config, Autoencoder(config.network, seed))
    if isinstance(config.network, DiTConfig):
        from kuosan.networks.dit import DiT

        return Model(config, DiT(config.network, seed))
    from kuosan.networks.unet import UNet

    return Model(config, UNet(config.network, seed))


def missing_network(config: OwnNetwork) -> Error:
    """The sentence about a run whose network only its owner can build."""
    name = config.name or "MyNetwork"
    return Error(
        f"this run was trained with a network of your own ({name}), which kuosan cannot build: "
        f"from Python, pass it: kuosan.load(run, network={name}(...)), then .sample(16) or .restore(...)."
    )
