"""Runs of autoencoders and of models of latents as training leaves them, but of untrained networks: in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kuosan import config as trees
from kuosan import seeds
from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.models import latents as codecs
from kuosan.models.codec import Latents
from kuosan.models.model import Model, ModelConfig, build
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.storage import checkpoint
from tiny_models import UNET

TINY = AutoencoderConfig(channels=8, multipliers=(1, 2, 2), blocks=1, groups=4, critic_channels=4, critic_layers=1)


def autoencoder_run(path: Path, images: Path | str, size: int = 16, **settings: Any) -> Path:
    """A run folder of a tiny autoencoder of factor 4, no weight of which is zero; `settings` are of the data."""
    data = DataConfig(str(images), size=size, hold_out=0.5, **settings)
    opened = open_images(data)
    network = trees.build(AutoencoderConfig, trees.plain(TINY) | {"in_channels": opened.shape[0]})
    model = with_weights(ModelConfig(opened.shape, network))
    return saved(path, model, data, opened.fingerprint)


def latent_run(path: Path, autoencoder: Path, scale: tuple[float, ...] = (2.0, 2.0, 0.5, 1.0)) -> Path:
    """A run folder of a tiny U-Net of that autoencoder's latents, which it carries."""
    kept = checkpoint.load(autoencoder)
    own = trees.build(ModelConfig, kept.config["model"])
    assert isinstance(own.network, AutoencoderConfig) and own.shape is not None
    held = codecs.held(own.network, kept.ema)
    shift = tuple(0.1 * i for i in range(len(scale)))
    codec = Latents("latents", str(autoencoder), held.network, shift, scale, held.sha256)
    unet = trees.plain(UNET) | {"in_channels": len(scale), "out_channels": len(scale), "multipliers": [1]}
    unet["attention"] = [False]
    model = with_weights(
        trees.build(ModelConfig, {"shape": list(own.shape), "network": unet, "codec": trees.plain(codec)})
    )
    data = trees.build(DataConfig, kept.config["data"])
    run = saved(path, model, data, open_images(data).fingerprint)
    codecs.write(run, held)
    return run


def with_weights(config: ModelConfig) -> Model:
    model = build(config, seed=1)
    with torch.no_grad():
        for i, parameter in enumerate(model.network.parameters()):
            if not parameter.any():
                parameter.copy_(0.1 * seeds.normal([(0, "test/weights", i, 0)], tuple(parameter.shape))[0])
    return model


def saved(path: Path, model: Model, data: DataConfig, fingerprint: str) -> Path:
    """A run folder with one checkpoint, of step 3."""
    state = model.network.state_dict()
    config = {"data": trees.plain(data), "model": trees.plain(model.config)}
    told = {"data": fingerprint}
    checkpoint.save(path, 3, config=config, ema=state, network=state, optimizer={}, state=told)
    (path / "config.yaml").write_text(trees.dump(config), encoding="utf-8")
    return path
