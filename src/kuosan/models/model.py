"""The waist: what a checkpoint holds, and a network built from it. Everything above makes or uses a `Model`.

A model is its network, the schedule of its noise, and what the network predicts: sampling needs nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from kuosan import config as trees
from kuosan import limits
from kuosan.data.config import RGBA
from kuosan.diffusion.schedule import Discrete, Flow, Karras, OwnDiscrete
from kuosan.errors import Error, shown
from kuosan.models.codec import PIXELS, Codec, Latents, Pixels
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.networks.config import DiTConfig, UNetConfig
from kuosan.networks.text_config import ByteText
from kuosan.tasks import Generation, Inpainting, SuperResolution
from kuosan.text.tokens import NoText, TextEncoderConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn

    from kuosan.diffusion.denoiser import Denoiser
    from kuosan.storage.tensors import Header
    from kuosan.text.encoder import TextEncoder


@dataclass(frozen=True)
class OwnNetwork:
    """A network of the caller's own, an nn.Module called as `network(x, t)` and passed again when loading."""

    kind: Literal["own"] = "own"
    name: str = ""  # the class's name, shown when a run needs the network it was trained with

    def __post_init__(self) -> None:
        limits.check(self)


@dataclass(frozen=True)
class ModelConfig:
    """What a trained model is, in numbers and names: enough to build it and to sample from it."""

    shape: tuple[int, int, int] | None = None  # channels, height, width of an image; decided by the data
    network: UNetConfig | DiTConfig | OwnNetwork | ClassifierConfig | AutoencoderConfig = field(
        default_factory=UNetConfig
    )  # unet, dit (a transformer), own (a module given from Python), classifier or autoencoder
    schedule: Discrete | Karras | Flow = field(default_factory=Discrete)  # the noise: discrete, karras (EDM) or flow
    prediction: str = "v"  # what the network predicts: eps, x0, v, flow or edm
    sigma_data: float = 0.5  # the images' standard deviation that edm's preconditioning assumes
    learned_variance: bool = False  # the network has 2C outputs, the second half the variance (Nichol & Dhariwal 2021)
    task: Generation | SuperResolution | Inpainting = field(
        default_factory=Generation
    )  # what is made: generation, super_resolution or inpainting
    text: NoText | ByteText | TextEncoderConfig = field(
        default_factory=NoText
    )  # conditioning on captions: none, bytes (a transformer trained with the network) or encoder (one there is)

    codec: Pixels | Latents = field(
        default_factory=Pixels
    )  # what is denoised: pixels, or latents of an autoencoder (--codec RUN)
    shapes: tuple[tuple[int, int], ...] = field(
        default=(), metadata={"option": False}
    )  # height and width of all aspect-ratio buckets trained on, from tall to wide; empty: of `shape` alone

    def __post_init__(self) -> None:
        from kuosan.diffusion import registry

        limits.check(self)
        _check_shapes(self)
        object.__setattr__(self, "prediction", registry.prediction(self.prediction))
        registry.check(self.schedule, self.prediction, learned_variance=self.learned_variance)
        stored_schedule(self.schedule)
        if not self.sigma_data > 0:
            raise Error(f"sigma_data = {self.sigma_data} must be above 0; EDM uses 0.5 for images in [-1, 1].")

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of what is denoised: of an image, or of its latents."""
        assert self.shape is not None, "the data decide the shape"
        return self.codec.sample_shape(self.shape)


def stored_schedule(schedule: object) -> object:
    """A schedule that a run's configuration holds. Raises: Error for a table of the caller's own."""
    if isinstance(schedule, OwnDiscrete):
        raise Error(
            f"model.schedule is a table of your own ({schedule.T} steps), which a run's configuration does not hold: "
            "train and sample with kuosan.simple_loss, kuosan.denoiser and kuosan.SAMPLERS, or give betas as a word: "
            "linear, scaled_linear, cosine or sigmoid."
        )
    return schedule


def _check_shapes(config: ModelConfig) -> None:
    """Refuse images without pixels, or of more than a model ever makes. Raises: Error."""
    shapes = [config.shape[1:]] if config.shape is not None else []
    for height, width in (*shapes, *config.shapes):
        if height < 1 or width < 1 or height * width > limits.AREA:
            raise Error(
                f"model.shape is of images {width}x{height}; allowed: sides of 1 to {limits.SIDE[1]:,} pixels, at most "
                f"{limits.AREA:,} in all (docs/checkpoints.md, limits)."
            )
    if config.shape is not None and config.shape[0] < 1:
        raise Error(f"model.shape has {config.shape[0]} channels; allowed: at least 1.")


def require_denoiser(config: ModelConfig) -> None:
    """Raises: Error for a classifier or an autoencoder, which make no images."""
    if isinstance(config.network, ClassifierConfig):
        raise Error("this model is a classifier: it names images and makes none. It guides a model that does.")
    if isinstance(config.network, AutoencoderConfig):
        raise Error(
            "this model is an autoencoder: it turns images into latents and back, and makes none. See how well: "
            "kuosan reconstruct RUN; train a model of its latents: kuosan train IMAGES --codec RUN."
        )


def require_whole(config: ModelConfig, what: str) -> None:
    """Raises: Error for a model that makes no whole images from nothing; `what` needs one."""
    require_denoiser(config)
    if config.task.kind != "generation":
        raise Error(
            f"{what} needs a model of whole images, and this one was trained for {config.task.kind}: use it by "
            f"kuosan restore, and measure it by kuosan compare."
        )


def require_pixels(config: ModelConfig, what: str) -> None:
    """Raises: Error for a model of latents, whose density is of latents; `what` is of images."""
    if config.codec.kind != "pixels":
        raise Error(
            f"{what} of a model of latents: it has a density of latents and none of images (the autoencoder's "
            f"reconstruction is not counted), so no figure would compare with another model's. Measure KID instead."
        )


def require_wordless(config: ModelConfig, what: str) -> None:
    """Raises: Error for a model conditioned on captions; `what` gives it none."""
    if config.task.text:
        raise Error(
            f"{what} of a model conditioned on captions is not built yet: it would need each image's caption. "
            f"Use a model that was trained without --text."
        )


def require_opaque(config: ModelConfig, what: str, why: str) -> None:
    """Raises: Error for a model of images with alpha; `what` knows colours alone, and `why` says what to do."""
    if config.shape is not None and config.shape[0] == RGBA:
        raise Error(f"{what} of a model of images with alpha (channels rgba) is not built: {why}.")


@dataclass
class Model:
    """A network ready to denoise, with the configuration that says what it predicts and at which noise."""

    config: ModelConfig
    network: nn.Module
    codec: Codec = PIXELS  # opened; between images and what the network denoises
    encoder: TextEncoder | None = None  # of its text, where that is one with weights of its own

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of an image."""
        assert self.config.shape is not None, "a built model knows its shape"
        return self.config.shape

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of what the network denoises."""
        return self.config.sample_shape

    def read(self, prompts: Sequence[str], among: Sequence[str]) -> Mapping[str, Tensor]:
        """The conditioning by prompts, by input, on the network's device; padded as the longest of `among` needs.

        Raises:
            Error: a prompt that cannot be read, or a text encoder that was not opened.
        """
        from kuosan.text.encoder import STEP, contexts, count_bytes, read_bytes

        if isinstance(self.config.text, ByteText):
            network = self.network
            while not hasattr(network, "text"):  # tiles stand around it
                network = network.network  # type: ignore[assignment]
            read = partial(read_bytes, network.text)  # type: ignore[arg-type]
            return contexts(read, count_bytes, prompts, among, self.config.text.length)
        if self.encoder is None:
            raise Error("this model's text goes through an encoder, and none was opened: open the run by kuosan.load.")
        encoder = self.encoder
        device = next((parameter.device for parameter in self.network.parameters()), encoder.device)
        cond = contexts(encoder.read, encoder.count_read, prompts, among, STEP)  # where it is, as a rule the processor
        return {name: value.to(device) for name, value in cond.items()}

    def denoiser(self, cond: dict[str, Tensor] | None = None) -> Denoiser:
        """(x, level) -> Prediction, with the conditions bound.

        Raises:
            Error: the model is a classifier or an autoencoder.
        """
        require_denoiser(self.config)
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
        from kuosan.networks.unet import Classifier

        return Model(config, Classifier(config.network, seed))
    if isinstance(config.network, AutoencoderConfig):
        from kuosan.networks.autoencoder import Autoencoder

        return Model(config, Autoencoder(config.network, seed))
    if isinstance(config.network, DiTConfig):
        from kuosan.networks.dit import DiT

        return Model(config, _texted(config, DiT(config.network, seed), seed))
    from kuosan.networks.unet import UNet

    return Model(config, _texted(config, UNet(config.network, seed), seed))


TENSORS_A_LAYER = 4  # at least, in every network here: a norm's and a linear map's weights and biases
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, float32 all
_STATE = {"ema.values": "float64", "importance.losses": "float64", "importance.counts": "int64"}


def require_fit(
    tree: Mapping[str, Any], part: str, path: Path, header: Header, network: nn.Module | None = None
) -> None:
    """Refuse a checkpoint's part that is not of the model its configuration describes, before either takes memory.

    For `checkpoint.load`, which calls it with the configuration, and a part's name, file and header.

    Args:
        network: the caller's module, of a model that has one; without it, nothing is known of its weights.

    Raises:
        Error: a configuration beyond the limits, or tensors that are missing, unknown, or of another shape or dtype.
    """
    config = trees.build(ModelConfig, tree.get("model", {}))
    if isinstance(config.network, OwnNetwork) and network is None:
        return
    if part == "optimizer":
        _require_state(path, header)
        return
    from kuosan.storage import tensors
    from kuosan.storage.tensors import skeleton

    layers = 0 if isinstance(config.network, OwnNetwork) else config.network.layers
    layers += config.text.depth if isinstance(config.text, ByteText) else 0
    if TENSORS_A_LAYER * layers > len(header):
        raise Error(
            f"{path}: the weights do not fit the network: it has {layers} blocks, and the file {len(header):,} tensors."
        )
    tensors.require(skeleton(lambda: build(config, network=network).network), header, str(path))


def _require_state(path: Path, header: Header) -> None:
    """Refuse what no optimiser of ours has saved. Raises: Error."""
    for name, place in header.items():
        wanted = "float32" if name.partition(".")[2] in _MOMENTS else _STATE.get(name)
        if wanted is None or str(place.dtype) != f"torch.{wanted}":
            raise Error(
                f"{path}: {shown(name)} of {str(place.dtype).removeprefix('torch.')} is nothing that an optimiser of "
                f"this kuosan saves; use an earlier checkpoint, or begin a new run with --init."
            )


def _texted(config: ModelConfig, network: nn.Module, seed: int) -> nn.Module:
    """The network, with the text transformer that is trained with it where there is one."""
    if not isinstance(config.text, ByteText):
        return network
    from kuosan.networks.text import Texted, TextTransformer

    return Texted(network, TextTransformer(config.text, seed))


def missing_network(config: OwnNetwork) -> Error:
    """The sentence about a run whose network only its owner can build."""
    name = config.name or "MyNetwork"
    return Error(
        f"this run was trained with a network of your own ({name}), which kuosan cannot build: "
        f"from Python, pass it: kuosan.load(run, network={name}(...)), then .sample(16) or .restore(...)."
    )
