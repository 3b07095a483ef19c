"""kuosan: diffusion models on your own images. Train, resume, sample, look.

Names load when they are used: importing kuosan imports neither torch nor anything else that takes long.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kuosan import moved

if TYPE_CHECKING:
    from kuosan.data.config import DataConfig
    from kuosan.data.dataset import Images, open_images
    from kuosan.data.job import DoctorJob
    from kuosan.ddpm import DiffusionModel
    from kuosan.diffusion import guidance, inversion, likelihood, operators, restoration, samplers
    from kuosan.diffusion.denoiser import Prediction, denoiser
    from kuosan.diffusion.guidance import clamp
    from kuosan.diffusion.level import Level
    from kuosan.diffusion.loss import simple_loss
    from kuosan.diffusion.samplers import SAMPLERS
    from kuosan.diffusion.schedule import Discrete, Flow, Karras
    from kuosan.errors import Error
    from kuosan.evaluate.job import CompareJob, EvaluateJob, ReconstructJob
    from kuosan.evaluate.run import measure
    from kuosan.jobs import plan, run
    from kuosan.models.convert import ConvertJob
    from kuosan.models.export import ExportJob
    from kuosan.models.model import Model, ModelConfig, build
    from kuosan.networks.config import DiTConfig, UNetConfig, default_dit, default_unet
    from kuosan.networks.dit import DiT
    from kuosan.networks.unet import UNet
    from kuosan.sample.generate import Frame, generate
    from kuosan.sample.invert import InvertJob
    from kuosan.sample.job import SampleJob
    from kuosan.sample.pipeline import Pipeline, load
    from kuosan.sample.request import Request, Restoration
    from kuosan.sample.restore import RestoreJob
    from kuosan.train.job import TrainJob, fit

__version__ = "0.1.0"

moved.install()

_HOMES = {
    "SAMPLERS": "diffusion.samplers",
    "CompareJob": "evaluate.job",
    "ConvertJob": "models.convert",
    "DataConfig": "data.config",
    "DiT": "networks.dit",
    "DiTConfig": "networks.config",
    "DiffusionModel": "ddpm",
    "Discrete": "diffusion.schedule",
    "DoctorJob": "data.job",
    "Error": "errors",
    "EvaluateJob": "evaluate.job",
    "ExportJob": "models.export",
    "Flow": "diffusion.schedule",
    "Frame": "sample.generate",
    "Images": "data.dataset",
    "InvertJob": "sample.invert",
    "Karras": "diffusion.schedule",
    "Level": "diffusion.level",
    "Model": "models.model",
    "ModelConfig": "models.model",
    "Pipeline": "sample.pipeline",
    "Prediction": "diffusion.denoiser",
    "ReconstructJob": "evaluate.job",
    "Request": "sample.request",
    "Restoration": "sample.request",
    "RestoreJob": "sample.restore",
    "SampleJob": "sample.job",
    "TrainJob": "train.job",
    "UNet": "networks.unet",
    "UNetConfig": "networks.config",
    "build": "models.model",
    "clamp": "diffusion.guidance",
    "default_dit": "networks.config",
    "default_unet": "networks.config",
    "denoiser": "diffusion.denoiser",
    "fit": "train.job",
    "generate": "sample.generate",
    "guidance": "diffusion",
    "inversion": "diffusion",
    "likelihood": "diffusion",
    "load": "sample.pipeline",
    "measure": "evaluate.run",
    "open_images": "data.dataset",
    "operators": "diffusion",
    "plan": "jobs",
    "restoration": "diffusion",
    "run": "jobs",
    "samplers": "diffusion",
    "simple_loss": "diffusion.loss",
}

__all__ = [
    "SAMPLERS",
    "CompareJob",
    "ConvertJob",
    "DataConfig",
    "DiT",
    "DiTConfig",
    "DiffusionModel",
    "Discrete",
    "DoctorJob",
    "Error",
    "EvaluateJob",
    "ExportJob",
    "Flow",
    "Frame",
    "Images",
    "InvertJob",
    "Karras",
    "Level",
    "Model",
    "ModelConfig",
    "Pipeline",
    "Prediction",
    "ReconstructJob",
    "Request",
    "Restoration",
    "RestoreJob",
    "SampleJob",
    "TrainJob",
    "UNet",
    "UNetConfig",
    "build",
    "clamp",
    "default_dit",
    "default_unet",
    "denoiser",
    "fit",
    "generate",
    "guidance",
    "inversion",
    "likelihood",
    "load",
    "measure",
    "open_images",
    "operators",
    "plan",
    "restoration",
    "run",
    "samplers",
    "simple_loss",
]


_BEFORE = {"Pictures": "Images", "Trained": "Pipeline", "open_pictures": "open_images"}  # names of version 0.1.0


def __getattr__(name: str) -> Any:
    name = _BEFORE.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module 'kuosan' has no attribute {name!r}")
    if name != "Error":
        import_module("kuosan.errors").check_system()
    home = import_module(f"kuosan.{_HOMES[name]}")
    # what is no attribute of its home is a module in it that nothing has imported yet
    value = getattr(home, name) if hasattr(home, name) else import_module(f"{home.__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
