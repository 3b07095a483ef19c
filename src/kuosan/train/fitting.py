"""Whether a network fits what it is to denoise: channels, doors and sides. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kuosan.errors import Error
from kuosan.text.config import width

if TYPE_CHECKING:
    from kuosan.models.model import ModelConfig
    from kuosan.networks.config import DiTConfig, UNetConfig


def check(model: ModelConfig, network: UNetConfig | DiTConfig) -> None:
    """Refuse a network that does not fit the pictures, or their latents. Raises: Error."""
    cells = model.walk_shape
    what = "the pictures" if model.codec.kind == "pixels" else "the pictures' latents"
    for name, wanted in (("in_channels", cells[0]), ("out_channels", cells[0] * (1 + model.learned_variance))):
        if getattr(network, name) != wanted:
            twice = " and a variance is learned" if wanted > cells[0] else ""
            cure = "leave it out, or set data.channels" if model.codec.kind == "pixels" else "leave it out"
            raise Error(
                f"model.network.{name} = {getattr(network, name)}, but {what} have {cells[0]} channel(s)"
                f"{twice}: {wanted} are needed; {cure}."
            )
    if network.classes != len(model.task.class_names):
        raise Error(
            f"model.network.classes = {network.classes}, but {len(model.task.class_names)} classes are trained "
            f"on: leave it out; --labels sets it from the data."
        )
    if network.context_width != width(model.text):
        raise Error(
            f"model.network.context_width = {network.context_width}, but model.text.kind = {model.text.kind} "
            f"tells it of text in {width(model.text) or 0} channels: leave it out; it follows from the text."
        )
    wanted = model.task.concat_channels(cells[0])
    if network.concat_channels != wanted:
        raise Error(
            f"model.network.concat_channels = {network.concat_channels}, but task {model.task.kind} joins "
            f"{wanted} channel(s) to {what}: leave it out; it follows from the task."
        )
    if network.concat_skip and model.prediction != "x0":
        raise Error(
            f"model.network.concat_skip = true with prediction {model.prediction}: what is joined is a picture, as x0 "
            f"is and nothing else; leave it out."
        )
    _check_sides(model, network)


def _check_sides(model: ModelConfig, network: UNetConfig | DiTConfig) -> None:
    _, height, width_ = model.walk_shape
    factor = network.factor
    if height % factor or width_ % factor:
        smaller = "another --model.network.patch" if network.kind == "dit" else "fewer --model.network.multipliers"
        whole = factor * model.codec.factor
        of = "" if model.codec.kind == "pixels" else f" (latents of {whole // factor} pixels a cell)"
        assert model.shape is not None
        raise Error(
            f"pictures of {model.shape[1]} x {model.shape[2]} do not fit this network{of}: sides must be multiples of "
            f"{whole}. Set --data.size to such a number, or {smaller}."
        )
