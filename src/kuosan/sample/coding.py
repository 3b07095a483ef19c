"""Pictures to latents and back with an opened model: an autoencoder, or a model of latents with its own.

An autoencoder's latents are as its encoder gives them; those of a latent model are shifted and scaled as its network
denoises them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kuosan.codec.latents import Coder, LatentCodec
from kuosan.errors import Error
from kuosan.networks.autoencoder import Autoencoder
from kuosan.networks.tiled_autoencoder import TiledAutoencoder

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.model import Model


@torch.no_grad()
def encode(model: Model, pictures: Tensor, tile: int | None = None, overlap: int | None = None) -> Tensor:
    """Latents of pictures (B, C, H, W) in [-1, 1], where the model is: (B, c, ceil(H / f), ceil(W / f)) float32.

    Args:
        tile: pixels a side of tiles, blended; each picture in one piece if None.
        overlap: that tiles share; a quarter of a tile if None.

    Raises:
        Error: a model without an autoencoder, pictures that it does not take, or impossible tiles.
    """
    network, codec = _coder(model)
    if pictures.ndim != 4 or pictures.shape[1] != model.shape[0]:
        raise Error(f"this autoencoder takes pictures (B, {model.shape[0]}, H, W); got {tuple(pictures.shape)}.")
    tiled = _tiled(network, max(pictures.shape[2:]), tile, overlap)
    mean = tiled.encode(pictures).mean
    return mean if codec is None else codec.scaled(mean)


@torch.no_grad()
def decode(
    model: Model,
    latents: Tensor,
    size: tuple[int, int] | None = None,
    tile: int | None = None,
    overlap: int | None = None,
) -> Tensor:
    """Pictures (B, C, *size) in [-1, 1] of latents (B, c, h, w); of all that these hold where no size is given.

    Args:
        size: the pictures' height and width, where they were no multiples of the factor.
        tile, overlap: as `encode`.

    Raises:
        Error: as `encode`, or latents of other pictures.
    """
    network, codec = _coder(model)
    tiled = _tiled(network, max(latents.shape[2:], default=0) * network.config.factor, tile, overlap)
    raw = latents if codec is None else codec.raw(latents)
    return tiled.decode(raw, size).float().clamp(-1, 1)


def _coder(model: Model) -> tuple[Autoencoder, LatentCodec | None]:
    """The autoencoder of a model, and how a model of its latents scales them. Raises: Error for a model of pixels."""
    if isinstance(model.network, Autoencoder):
        return model.network, None
    if isinstance(model.codec, LatentCodec):
        network: Coder = model.codec.network
        assert isinstance(network, Autoencoder), type(network)
        return network, model.codec
    raise Error(
        "this model has no autoencoder, so there are no latents: open the run of one, or of a model of its latents."
    )


def _tiled(network: Autoencoder, longest: int, tile: int | None, overlap: int | None) -> TiledAutoencoder:
    """The autoencoder in tiles; in one piece where none are asked for."""
    if tile is None and overlap is not None:
        raise Error(f"overlap = {overlap} has no effect without tiles: give tile, or leave it out.")
    factor = network.config.factor
    return TiledAutoencoder(network, max(1, -(-longest // factor)) * factor if tile is None else tile, overlap)
