"""Modules that version 0.1.0 had elsewhere: their old paths import still, as do the names that changed in them.

from kuosan.introduction import DiffusionModel      # is kuosan.ddpm
from kuosan.data.pictures import open_pictures      # is kuosan.data.dataset.open_images
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "checkpoint": "storage.checkpoint",
    "codec": "models.latents",
    "codec.config": "models.codec",
    "codec.folder": "models.latents",
    "codec.latents": "models.latents",
    "codec.pixels": "models.codec",
    "convert.diffusers_config": "convert.diffusers",
    "data.buckets": "data.config",
    "data.degrade": "tasks.condition",
    "data.entries": "data.walk",
    "data.folders": "data.sources",
    "data.given": "data.dataset",
    "data.images": "data.pixels",
    "data.metadata": "data.captions",
    "data.pictures": "data.dataset",
    "data.portraits": "data.sources",
    "diffusion.betas": "diffusion.schedule",
    "diffusion.bound": "diffusion.loss",
    "diffusion.conjugate": "diffusion.operators",
    "diffusion.filters": "diffusion.operators",
    "diffusion.names": "diffusion.registry",
    "diffusion.prediction": "diffusion.denoiser",
    "diffusion.resampling": "diffusion.grids",
    "diffusion.samplers.exponential": "diffusion.samplers.dpm_solver",
    "diffusion.samplers.singlestep": "diffusion.samplers.dpm_solver",
    "diffusion.through": "diffusion.restoration",
    "diffusion.weighting": "diffusion.registry",
    "evaluate.estimate": "metrics.estimate",
    "evaluate.frechet": "metrics.frechet",
    "evaluate.kid": "metrics.kid",
    "evaluate.memorisation": "metrics.memorisation",
    "evaluate.neighbours": "metrics.prdc",
    "evaluate.reference": "metrics.image_quality",
    "evaluate.seams": "metrics.image_quality",
    "evaluate.statistics": "metrics.frechet",
    "exporting": "models.export",
    "features": "metrics.features",
    "features.dinov2": "metrics.features.dinov2",
    "features.inception": "metrics.features.inception",
    "features.lite0": "metrics.features.lite0",
    "features.loss": "metrics.image_quality",
    "features.names": "metrics.features.names",
    "features.network": "metrics.features.network",
    "features.perceptual": "metrics.image_quality",
    "files": "storage.files",
    "introduction": "ddpm",
    "journal": "storage.log",
    "manifest": "storage.manifest",
    "model": "models.model",
    "networks.classifier": "networks.unet",
    "networks.critic": "networks.autoencoder",
    "networks.dit_config": "networks.config",
    "networks.doors": "networks.layers",
    "networks.initialise": "networks.layers",
    "networks.precision": "models.latents",
    "networks.tiled": "models.tiling",
    "networks.tiled_autoencoder": "models.tiling",
    "networks.transformer": "networks.layers",
    "outputs": "storage.outputs",
    "sample.bring": "sample.inputs",
    "sample.coding": "sample.pipeline",
    "sample.guided": "sample.guidance_models",
    "sample.known": "sample.constraint",
    "sample.masks": "sample.inputs",
    "sample.restoration": "sample.request",
    "sample.restored": "sample.constraint",
    "sample.sizes": "sample.plan",
    "shelf": "storage.cache",
    "tasks.generation": "tasks.task",
    "tasks.inpainting": "tasks.task",
    "tasks.labels": "tasks.task",
    "tasks.masks": "tasks.task",
    "tasks.super_resolution": "tasks.task",
    "text.config": "text.tokens",
    "text.embedded": "train.text_conditioning",
    "text.locate": "text.loading",
    "text.prompts": "text.tokens",
    "text.reading": "text.encoder",
    "text.words": "text.tokens",
    "train.ema": "train.state",
    "train.estimate": "train.loop",
    "train.importance": "train.batches",
    "train.optimizer": "train.state",
    "trained": "sample.pipeline",
    "weights": "storage.tensors",
}
NAMES = {
    "Block": "TransformerBlock",
    "Critic": "Discriminator",
    "Encoder": "TextEncoderConfig",
    "Features": "FeatureNetwork",
    "Seen": "Linearised",
    "Shelf": "RowCache",
    "Trained": "Pipeline",
    "check": "check_features",
    "clock": "timestep",
    "pieces": "tokenize",
    "repaint_evaluations": "repaint_nfe",
    "seen": "linearised",
    "told": "padded",
    "usual_step": "default_step",
}


class _Moved(ModuleType):
    """Stands at an old path; what is asked of it is looked up where it lies now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        home = import_module(f"kuosan.{MODULES[self.__name__.removeprefix('kuosan.')]}")
        image = name.replace("picture", "image").replace("Picture", "Image").replace("PICTURE", "IMAGE")
        for each in (name, image, NAMES.get(name, name)):
            if hasattr(home, each):
                return getattr(home, each)
        raise AttributeError(f"module {self.__name__!r} is {home.__name__} now, and has no attribute {name!r}")


class _Finder(MetaPathFinder, Loader):
    """Answers for old paths, once nothing else has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        own = fullname.removeprefix("kuosan.")
        if own == fullname or own not in MODULES:
            return None
        return ModuleSpec(fullname, self, is_package=any(each.startswith(f"{own}.") for each in MODULES))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: attributes are looked up when they are asked for."""


def later(module: str, names: dict[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` for public names that lie elsewhere now: `names` says in which modules."""

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(import_module(f"kuosan.{names[name]}"), name)

    return attribute


def install() -> None:
    """Let old paths import, once a process."""
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.append(_Finder())
