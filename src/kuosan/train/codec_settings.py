"""A latent run's settings (`--codec RUN`): what follows from them, and what is measured, never typed. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kuosan import config as trees
from kuosan.errors import Error
from kuosan.options import Tree

if TYPE_CHECKING:
    from kuosan.models.model import ModelConfig
    from kuosan.train.config import TrainConfig

MEASURED = {
    "shift": "the mean of the training pictures' latents, measured when a run starts",
    "scale": "1 / the standard deviation of the training pictures' latents, measured when a run starts",
    "weights": "the hash of the autoencoder's file",
    "network": "the autoencoder's own shape, which its run gives",
}


def said(tree: Mapping[str, Any]) -> Tree:
    """What a run's tree says of its codec; one that names a run is of latents."""
    model = tree.get("model", {})
    codec = dict(model.get("codec") or {}) if isinstance(model, Mapping) else {}
    return {"kind": "latents", **codec} if "run" in codec else codec


def filled(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree, in which a codec that names a run is of latents; those have standard deviation 1, where pictures have
    0.5 or so."""
    codec = said(tree)
    if codec.get("kind", "pixels") == "pixels":
        return tree
    usual = {} if tree.get("train", {}).get("objective") == "classifier" else {"sigma_data": 1.0}
    return trees.merge({"model": usual}, tree, {"model": {"codec": codec}})


def refuse_typed(codec: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Refuse what is measured, or follows from the autoencoder, unless it repeats what the run has.

    Raises:
        Error: it names the setting and where it comes from.
    """
    for name, source in MEASURED.items():
        if name in codec and codec[name] != before.get(name):
            raise Error(
                f"model.codec.{name} is given, but it is {source}, and stored in the run: a number from elsewhere "
                f"would not fit these pictures. Leave it out; only model.codec.run is yours to say."
            )


def check(train: TrainConfig, model: ModelConfig) -> None:
    """Refuse latents where nothing is made of them. Raises: Error."""
    if model.codec.kind == "pixels":
        return
    if model.network.kind == "classifier" and not model.network.noisy:
        raise Error(
            "model.codec: a judge of clean pictures (noisy = false) is shown pictures, of whatever model; leave "
            "--codec out."
        )
    if train.objective not in ("diffusion", "classifier"):
        raise Error(f"model.codec has no effect with objective {train.objective}; leave --codec out.")
