"""The autoencoder that a latent model's run carries: RUN/codec, written once, whole or not at all, and hashed.

    codec/config.yaml         the autoencoder's shape
    codec/ema.safetensors     its averaged weights, without the critic that trained it
    codec/manifest.json       size and sha256 of both

The run's configuration holds the sha256 of the weights (model.codec.weights), so another autoencoder is never taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kuosan import config as trees
from kuosan import files, manifest, weights
from kuosan.codec.config import Latents, Pixels
from kuosan.codec.latents import LatentCodec
from kuosan.codec.pixels import PIXELS, Codec
from kuosan.errors import Error
from kuosan.networks.autoencoder import Autoencoder, weights_alone
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.networks.meta import skeleton
from kuosan.networks.precision import prepare
from kuosan.regular import read_regular

if TYPE_CHECKING:
    from kuosan.codec.config import Codecs

NAME = "codec"
CONFIG, WEIGHTS = "config.yaml", "ema.safetensors"
CHECKPOINTS = "checkpoints"  # where a run's checkpoints lie; `checkpoint.FOLDER`, a floor above


class Held(NamedTuple):
    """An autoencoder as it lies on disk: its shape, its weights, and their file's hash."""

    network: AutoencoderConfig
    tensors: dict[str, Tensor]
    sha256: str


def held(network: AutoencoderConfig, state: Mapping[str, Tensor]) -> Held:
    """A trained autoencoder's averaged weights as a codec's folder holds them: without the critic."""
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
    """An autoencoder with weights.

    Raises:
        Error: they do not fit.
    """
    module = Autoencoder(network)
    try:
        module.load_state_dict(dict(tensors))
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
