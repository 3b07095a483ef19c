"""A run on aspect-ratio buckets: whether all of its shapes fit the network. Torch-free."""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING

from kuosan.errors import Error
from kuosan.sample.sizes import factor
from kuosan.tasks import SuperResolution

if TYPE_CHECKING:
    from kuosan.model import ModelConfig

SHOWN = 3  # shapes that a refusal names


def check_buckets(model: ModelConfig) -> None:
    """Refuse buckets whose sides the network, the codec or the task cannot take. Raises: Error."""
    whole = lcm(factor(model), model.task.scale if isinstance(model.task, SuperResolution) else 1)
    wrong = [f"{w}x{h}" for h, w in model.shapes if h % whole or w % whole]
    if wrong:
        more = ", ..." if len(wrong) > SHOWN else ""
        raise Error(
            f"{len(wrong)} of {len(model.shapes)} buckets ({', '.join(wrong[:SHOWN])}{more}) do not fit this model: "
            f"sides must be multiples of {whole}. Set --data.bucket-step {whole}, and --data.size to a multiple of it."
        )
