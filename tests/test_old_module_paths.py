"""Code written against version 0.1.0 imports what it did, and gets the very objects that lie elsewhere now."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import kuosan
from kuosan import moved

OLD = [  # module, name; then where it is now, and what it is called there
    ("introduction", "DiffusionModel", "ddpm", "DiffusionModel"),
    ("trained", "Trained", "sample.pipeline", "Pipeline"),
    ("trained", "load", "sample.pipeline", "load"),
    ("data.pictures", "open_pictures", "data.dataset", "open_images"),
    ("data.pictures", "Pictures", "data.dataset", "Images"),
    ("features", "features", "metrics.features", "features"),
    ("features", "check", "metrics.features", "check_features"),
    ("features.network", "Features", "metrics.features.network", "FeatureNetwork"),
    ("evaluate.kid", "kid", "metrics.kid", "kid"),
    ("model", "ModelConfig", "models.model", "ModelConfig"),
    ("networks.dit_config", "DiTConfig", "networks.config", "DiTConfig"),
    ("diffusion.prediction", "to_x0", "diffusion.denoiser", "to_x0"),
    ("diffusion.names", "SAMPLERS", "diffusion.registry", "SAMPLERS"),
    ("tasks.inpainting", "Inpainting", "tasks", "Inpainting"),
    ("diffusion.prediction", "clock", "diffusion.denoiser", "timestep"),
    ("diffusion.resampling", "repaint_evaluations", "diffusion.grids", "repaint_nfe"),
    ("data.buckets", "usual_step", "data.config", "default_step"),
    ("shelf", "Shelf", "storage.cache", "RowCache"),
    ("text.words", "pieces", "text.tokens", "tokenize"),
    ("networks.critic", "Critic", "networks.autoencoder", "Discriminator"),
    ("weights", "read", "storage.tensors", "read"),
    ("codec.config", "Latents", "models.codec", "Latents"),
    ("sample.restoration", "Restoration", "sample.request", "Restoration"),
]


@pytest.mark.parametrize(("module", "name", "home", "now"), OLD)
def test_an_old_path_gives_the_very_object(module: str, name: str, home: str, now: str) -> None:
    assert getattr(import_module(f"kuosan.{module}"), name) is getattr(import_module(f"kuosan.{home}"), now)


@pytest.mark.parametrize("module", moved.MODULES)
def test_every_old_module_has_a_home(module: str) -> None:
    import_module(f"kuosan.{moved.MODULES[module]}")
    assert import_module(f"kuosan.{module}").__name__ == f"kuosan.{module}"


def test_old_public_names_are_the_new_objects() -> None:
    assert kuosan.Trained is kuosan.Pipeline and kuosan.Pictures is kuosan.Images
    assert kuosan.open_pictures is kuosan.open_images


def test_what_never_was_is_refused() -> None:
    with pytest.raises(ModuleNotFoundError, match="nosuch"):
        import_module("kuosan.nosuch")
    with pytest.raises(AttributeError, match=r"is kuosan\.ddpm now"):
        _ = import_module("kuosan.introduction").nosuch


def test_old_paths_load_nothing_before_they_are_used() -> None:
    code = "import sys, kuosan.introduction; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"False\n"
