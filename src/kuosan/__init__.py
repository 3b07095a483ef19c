"""kuosan: diffusion models on your own pictures. Train, resume, sample, look.

Names load when they are used: importing kuosan imports neither torch nor anything else that takes long.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kuosan.data.config import DataConfig
    from kuosan.data.pictures import Pictures, open_pictures
    from kuosan.diffusion.denoiser import Prediction, denoiser
    from kuosan.diffusion.guidance import clamp
    from kuosan.diffusion.level import Level
    from kuosan.diffusion.loss import simple_loss
    from kuosan.diffusion.samplers import SAMPLERS
    from kuosan.diffusion.schedule import Discrete, Flow, Karras
    from kuosan.errors import Error
    from kuosan.evaluate.run import measure
    from kuosan.introduction import DiffusionModel
    from kuosan.model import Model, ModelConfig, build
    from kuosan.networks.config import UNetConfig, default_unet
    from kuosan.networks.dit import DiT
    from kuosan.networks.dit_config import DiTConfig, default_dit
    from kuosan.networks.unet import UNet
    from kuosan.sample.generate import Frame, generate
    from kuosan.sample.request import Request
    from kuosan.train.api import fit
    from kuosan.trained import Trained, load

__version__ = "0.1.0"

_HOMES = {
    "SAMPLERS": "diffusion.samplers",
    "DataConfig": "data.config",
    "DiT": "networks.dit",
    "DiTConfig": "networks.dit_config",
    "DiffusionModel": "introduction",
    "Discrete": "diffusion.schedule",
    "Error": "errors",
    "Flow": "diffusion.schedule",
    "Frame": "sample.generate",
    "Karras": "diffusion.schedule",
    "Level": "diffusion.level",
    "Model": "model",
    "ModelConfig": "model",
    "Pictures": "data.pictures",
    "Prediction": "diffusion.denoiser",
    "Request": "sample.request",
    "Trained": "trained",
    "UNet": "networks.unet",
    "UNetConfig": "networks.config",
    "build": "model",
    "clamp": "diffusion.guidance",
    "default_dit": "networks.dit_config",
    "default_unet": "networks.config",
    "denoiser": "diffusion.denoiser",
    "fit": "train.api",
    "generate": "sample.generate",
    "load": "trained",
    "measure": "evaluate.run",
    "open_pictures": "data.pictures",
    "simple_loss": "diffusion.loss",
}

__all__ = [
    "SAMPLERS",
    "DataConfig",
    "DiT",
    "DiTConfig",
    "DiffusionModel",
    "Discrete",
    "Error",
    "Flow",
    "Frame",
    "Karras",
    "Level",
    "Model",
    "ModelConfig",
    "Pictures",
    "Prediction",
    "Request",
    "Trained",
    "UNet",
    "UNetConfig",
    "build",
    "clamp",
    "default_dit",
    "default_unet",
    "denoiser",
    "fit",
    "generate",
    "load",
    "measure",
    "open_pictures",
    "simple_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kuosan' has no attribute {name!r}")
    value = getattr(import_module(f"kuosan.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
