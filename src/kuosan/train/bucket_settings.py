"""A run on aspect-ratio buckets: whether all of its shapes fit the network. Torch-free."""

from __future__ import annotations

from math import gcd, lcm, sqrt
from typing import TYPE_CHECKING

from kuosan.errors import Error
from kuosan.sample.sizes import factor
from kuosan.tasks import SuperResolution

if TYPE_CHECKING:
    from kuosan.models.model import ModelConfig

SHOWN = 3  # shapes that a refusal names


def common_step(shapes: tuple[tuple[int, int], ...]) -> int:
    """The largest number of pixels that all sides of the buckets are multiples of; 0 without buckets."""
    return gcd(*(side for each in shapes for side in each))


def square(shape: tuple[int, int, int], shapes: tuple[tuple[int, int], ...]) -> tuple[int, int, int]:
    """What a network's usual depth is decided for: with buckets a square of about their pixels, as divisible as they.

    (C, H, W) of the model, (H, W) of its buckets -> (C, H, W).
    """
    if not shapes:
        return shape
    common = common_step(shapes)
    pixels = sum(h * w for h, w in shapes) / len(shapes)
    side = max(1, round(sqrt(pixels) / common)) * common
    return shape[0], side, side


def check_buckets(model: ModelConfig) -> None:
    """Refuse buckets of an autoencoder, and those whose sides the network, the codec or the task cannot take.

    Raises: Error.
    """
    if model.shapes and model.network.kind == "autoencoder":
        raise Error(
            "data.resize = buckets with objective autoencoder: it is trained on pictures of one shape, and takes any "
            "afterwards; use --data.resize random_crop."
        )
    whole = lcm(factor(model), model.task.scale if isinstance(model.task, SuperResolution) else 1)
    wrong = [f"{w}x{h}" for h, w in model.shapes if h % whole or w % whole]
    if wrong:
        more = ", ..." if len(wrong) > SHOWN else ""
        raise Error(
            f"{len(wrong)} of {len(model.shapes)} buckets ({', '.join(wrong[:SHOWN])}{more}) do not fit this model: "
            f"sides must be multiples of {whole}. Set --data.bucket-step {whole}, and --data.size to a multiple of it."
        )
