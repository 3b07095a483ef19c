"""An autoencoder as a codec: z = (mean - shift) * scale, and back; and how shift and scale are measured.

Latents as denoised have, over the training images, mean 0 and standard deviation 1 in each channel, which is what a
noise schedule made for images assumes; Stable Diffusion's one number 0.18215 is 1/std of all channels at once.

The autoencoder that a latent model's run carries: RUN/codec, written once, whole or not at all, and hashed.

    codec/config.yaml         the autoencoder's shape
    codec/ema.safetensors     its averaged weights, without the discriminator that trained it
    codec/manifest.json       size and sha256 of both

The run's configuration holds the sha256 of the weights (model.codec.weights), so another autoencoder is never taken.

A network made ready to sample: low-precision weights in channels_last, its inputs and outputs still float32.

The sampler's state stays float32: with a bf16 state 50 DDIM steps drift by 0.10, with bf16 weights alone by 0.01.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from kuosan import config as trees
from kuosan.errors import Error
from kuosan.models.codec import PIXELS, Codec, Latents, Pixels
from kuosan.models.tiling import SIDE, TiledAutoencoder
from kuosan.networks.autoencoder import Autoencoder, weights_alone
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.networks.dit import DiT
from kuosan.networks.layers import Pooled
from kuosan.networks.norm import GroupNorm
from kuosan.networks.text import TextTransformer
from kuosan.networks.unet import Conditioning, UNetEncoder
from kuosan.regular import read_regular
from kuosan.storage import files, manifest
from kuosan.storage import tensors as weights
from kuosan.storage.tensors import assign, skeleton, undrawn

if TYPE_CHECKING:
    from kuosan.models.codec import Codecs, Latents
    from kuosan.networks.autoencoder import Moments


class Coder(Protocol):
    """What is asked of an autoencoder: `networks.autoencoder.Autoencoder`, or a module with the same two methods."""

    def encode(self, x: Tensor) -> Moments:
        """Images (B, C, H, W) to their latents' mean and log variance, (B, c, h, w) each."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Latents to images."""
        ...


class LatentCodec:
    """An autoencoder with the measured shift and scale of its latents."""

    latent = True

    def __init__(self, config: Latents, network: Coder) -> None:
        assert config.shift and config.scale, "a codec is used once its latents are measured"
        self.config, self.network = config, network
        self.shift, self.scale = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (config.shift, config.scale))

    @property
    def nbytes(self) -> int:
        """Bytes of the autoencoder's weights."""
        assert isinstance(self.network, nn.Module)
        return sum(p.numel() * p.element_size() for p in self.network.parameters())

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> z (B, c, h, w) float32: the posterior's mean, or the draw noise picks."""
        moments = self.network.encode(x)
        return self.scaled(moments.mean if noise is None else moments.sample(noise.to(moments.mean)))

    def scaled(self, raw: Tensor) -> Tensor:
        """The autoencoder's own latents as they are denoised."""
        return (raw.float() - self.shift.to(raw.device)) * self.scale.to(raw.device)

    def raw(self, z: Tensor) -> Tensor:
        """Latents as they are denoised as the autoencoder's own."""
        return z.float() / self.scale.to(z.device) + self.shift.to(z.device)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, c, h, w) -> images (B, C, H, W) float32, not clamped."""
        return self.network.decode(self.raw(z)).float()

    def finish(self, z: Tensor, alone: bool = True) -> Tensor:
        """z (B, c, h, w) -> finished images in [-1, 1]."""
        parts = torch.split(z, 1) if alone else (z,)
        return torch.cat([self.decode(part) for part in parts]).clamp(-1, 1)

    def tiled(self, side: int) -> LatentCodec:
        """The same for images of any size, in tiles of `side` pixels, or of the default number if that is more."""
        if isinstance(self.network, TiledAutoencoder):
            return self
        assert isinstance(self.network, Autoencoder)
        return LatentCodec(self.config, TiledAutoencoder(self.network, max(side, SIDE)))


@dataclass
class Measured:
    """Sums over latents, part by part, from which shift and scale follow; float64."""

    count: int = 0  # cells
    total: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))  # (c,) of the posterior's means
    squares: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))  # of means² + variances

    def add(self, mean: Tensor, std: Tensor) -> None:
        """Count latents' posteriors, (B, c, h, w) each."""
        m, s = mean.double(), std.double()
        dims = (0, 2, 3)
        total, squares = m.sum(dims).cpu(), (m.square() + s.square()).sum(dims).cpu()
        self.total = self.total + total if len(self.total) else total
        self.squares = self.squares + squares if len(self.squares) else squares
        self.count += m.numel() // m.shape[1]

    def shift_and_scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and 1/std of each channel of draws from the posteriors; as float32 keeps them.

        Raises:
            Error: a channel that is the same everywhere, or is not finite.
        """
        mean = self.total / self.count
        std = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        wild = [i for i, s in enumerate(std.tolist()) if not s < float("inf")]
        if wild:
            raise Error(
                f"latent channel {wild[0]} of this autoencoder is not finite over the training images: its training "
                f"diverged; take an earlier save of it, or train it again with a lower --train.lr."
            )
        bad = [i for i, s in enumerate(std.tolist()) if not s > 1e-6]
        if bad:
            raise Error(
                f"latent channel {bad[0]} of this autoencoder has standard deviation {float(std[bad[0]]):g} over the "
                f"training images, so it holds nothing: train the autoencoder longer, or take another."
            )
        return _numbers(mean), _numbers(1 / std)


def measure(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shift and scale of latents whose posteriors' means and standard deviations come in parts."""
    measured = Measured()
    for mean, std in parts:
        measured.add(mean, std)
    return measured.shift_and_scale()


def _numbers(values: Tensor) -> tuple[float, ...]:
    """Numbers that a YAML file and a float32 tensor both keep: six digits."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())


NAME = "codec"
CONFIG, WEIGHTS = "config.yaml", "ema.safetensors"
CHECKPOINTS = "checkpoints"  # where a run's checkpoints lie; `checkpoint.FOLDER`, a floor above


class Held(NamedTuple):
    """An autoencoder as it lies on disk: its shape, its weights, and their file's hash."""

    network: AutoencoderConfig
    tensors: dict[str, Tensor]
    sha256: str


def held(network: AutoencoderConfig, state: Mapping[str, Tensor]) -> Held:
    """A trained autoencoder's averaged weights as a codec's folder holds them: without the discriminator."""
    tensors = weights_alone(state)
    return Held(network.alone, tensors, weights.sha256(tensors))


def write(run: Path, autoencoder: Held) -> None:
    """Give a run its codec; one that is there already, whole and with the same weights, is left as it is.

    Raises:
        Error: no room, no permission, the disk fails, or files of somebody else's lie in the codec's folder.
    """
    folder = run / NAME
    with files.explained(folder, doing="read"):
        if folder.exists() and (other := _foreign(folder)):
            raise Error(f"{other} is no part of a codec, whose folder would be replaced: move it elsewhere.")
    try:
        if manifest.read(folder)[WEIGHTS].sha256 == autoencoder.sha256:
            files.verify(folder)
            return
    except (Error, KeyError):
        pass  # none yet, or a damaged one
    with files.staged(folder, weights.nbytes(autoencoder.tensors)) as staging:
        text = trees.dump({"network": trees.plain(autoencoder.network)})
        (staging / CONFIG).write_text(text, encoding="utf-8")
        weights.write(staging / WEIGHTS, autoencoder.tensors)


def is_whole(run: Path) -> bool:
    """Whether a run's codec is there, byte for byte as it was written."""
    try:
        files.verify(run / NAME)
    except Error:
        return False
    return _foreign(run / NAME) is None


def _foreign(folder: Path) -> Path | None:
    """What of a codec's folder was not written as one; the place itself where it is no folder."""
    if not folder.is_dir():
        return folder
    own = (CONFIG, WEIGHTS, manifest.NAME)
    return min((path for path in folder.iterdir() if path.name not in own and path.name[0] != "."), default=None)


def find(path: Path) -> Path | None:
    """The codec's folder of a run, a checkpoint, or an exported folder; None if there is none."""
    above = path.resolve().parent
    places = [path, path / NAME, *([above.parent / NAME] if above.name == CHECKPOINTS else [])]
    return next((each for each in places if _is_codec(each)), None)


def _is_codec(folder: Path) -> bool:
    """Whether a folder is a codec's own: an autoencoder's configuration and weights with their manifest."""
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file() or (folder / "state.json").exists():
        return False
    return folder.name == NAME or (folder / manifest.NAME).is_file()


def read(folder: Path) -> Held:
    """The autoencoder in a codec's folder, every byte checked.

    Raises:
        Error: a file is missing or damaged, or the folder holds something else.
    """
    entries = manifest.read(folder)
    for name in (CONFIG, WEIGHTS):
        if name not in entries:
            raise Error(f"{folder} is no codec: {name} is missing; {manifest.CURE}.")
    with files.explained(folder / CONFIG, doing="read"):
        content = read_regular(folder / CONFIG)
    manifest.check_hash(folder, CONFIG, hashlib.sha256(content).hexdigest(), entries[CONFIG])
    tree = trees.parse(content.decode(errors="replace"), folder / CONFIG)
    network = trees.build(AutoencoderConfig, _mapping(tree.get("network"), folder))

    def fits(header: weights.Header) -> None:
        if network.layers > len(header):
            raise Error(f"{folder / WEIGHTS}: the weights do not fit the autoencoder: {len(header):,} are too few.")
        weights.require(skeleton(lambda: Autoencoder(network)), header, str(folder / WEIGHTS))

    tensors, sha256 = weights.read_hashed(folder / WEIGHTS, fits)
    manifest.check_hash(folder, WEIGHTS, sha256, entries[WEIGHTS])
    return Held(network, tensors, sha256)


def _mapping(value: Any, folder: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Error(f"{folder / CONFIG} says nothing of a network: it is no codec's; {manifest.CURE}.")
    return value


def of_run(config: Codecs, path: Path) -> Held:
    """The autoencoder that a latent model was trained with, found beside its checkpoint.

    Raises:
        Error: it is missing, damaged, or another one.
    """
    assert isinstance(config, Latents)
    folder = find(path)
    if folder is None:
        raise Error(
            f"{path} is a model of latents, and its autoencoder is missing: the folder {NAME}/ belongs beside "
            f"checkpoints/ in the run. Copy it from the run as it was made"
            + (f", whose autoencoder came from {config.run}" if config.run else "")
            + f" (sha256 {config.weights[:10]}...)."
        )
    found = read(folder)
    if found.sha256 != config.weights:
        raise Error(
            f"{folder} holds another autoencoder (sha256 {found.sha256[:10]}...) than the one that {path} was trained "
            f"with ({config.weights[:10]}...): put that one back."
        )
    return found


def build(network: AutoencoderConfig, tensors: Mapping[str, Tensor], where: str) -> Autoencoder:
    """An autoencoder with weights: float32 ones where they lie, to be used through `prepare`, which copies them.

    Raises:
        Error: they do not fit.
    """
    module: Autoencoder = undrawn(lambda: Autoencoder(network))
    try:
        assign(module, tensors)
    except RuntimeError as error:
        raise Error(f"{where}: the weights do not fit the autoencoder: {' '.join(str(error).split())[:300]}") from None
    return module


def opened(
    config: Codecs,
    autoencoder: Held | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Codec:
    """The codec of a model, ready on a device; pixels need no autoencoder."""
    if isinstance(config, Pixels):
        return PIXELS
    assert autoencoder is not None
    module = build(autoencoder.network, autoencoder.tensors, config.run or "the codec")
    return LatentCodec(config, prepare(module, device, dtype))


_EXACT = (Conditioning, GroupNorm, nn.Embedding, nn.LayerNorm, Pooled, TextTransformer)
Network = TypeVar("Network", bound=nn.Module)


def prepare(network: Network, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Network:
    """A copy of `network` for inference on `device`: no dropout, no gradients, channels_last, weights in `dtype`.

    A `UNet`, `DiT` or `Classifier` keeps its time embedding, conditioning, norms and text in float32 (bf16 rounds
    t = 999 to 1000) and all convolutions in `dtype`: a float32 one at the entrance or exit would take a third off the
    difference to float32, but its last bits depend on the batch, and rounded to bf16 behind it that moves an image by
    grey levels. A `UNet` or `DiT` answers in the dtype of x: float32 in, float32 out; a `Classifier` in float32. Any
    other network gets `dtype` for all its weights, and takes and gives that.
    """
    # parameters that lie as they were are shared, and copied below one by one: there are never two copies of all
    shared: dict[int, Any] = {
        id(each): nn.Parameter(each.data, False) for each in network.parameters() if type(each) is nn.Parameter
    }
    ready = copy.deepcopy(network, {**_kept_activations(network), **shared}).requires_grad_(False).eval()
    exact: list[nn.Module] = [m for m in ready.modules() if isinstance(m, _EXACT)]
    exact += [m.time for m in ready.modules() if isinstance(m, (UNetEncoder, DiT))]
    kept = {parameter for module in exact for parameter in module.parameters()}
    for parameter in ready.parameters():
        layout = torch.channels_last if parameter.ndim == 4 else torch.preserve_format
        wanted = parameter.dtype if parameter in kept or not parameter.is_floating_point() else dtype
        parameter.data = parameter.data.to(device=device, dtype=wanted, memory_format=layout, copy=True)
    return ready.to(device)


def _kept_activations(network: nn.Module) -> dict[int, torch.Tensor]:
    """deepcopy's memo for tensors with a history that modules keep as attributes, which it refuses to copy."""
    kept = [value for module in network.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return {id(tensor): tensor.detach() for tensor in kept if not tensor.is_leaf}
