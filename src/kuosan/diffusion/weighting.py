"""A loss's weight over noise levels: its name and its numbers. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kuosan.diffusion import names
from kuosan.errors import Error

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.diffusion.level import Level


@dataclass(frozen=True)
class Weight:
    """A weight by its name, in any known spelling, with the numbers of the one that has some."""

    name: str = "simple"
    min_snr_gamma: float = 5.0  # min_snr: the largest SNR that counts (Hang et al. 2023)
    p2_k: float = 1.0  # p2: k of 1/(k + SNR)^gamma on the error of eps (Choi et al. 2022, eq. 8)
    p2_gamma: float = 1.0  # p2: gamma of the same; 0.5 and 1 are the paper's

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", names.weight(self.name))
        for number, default, owner in (("min_snr_gamma", 5.0, "min_snr"), ("p2_k", 1.0, "p2"), ("p2_gamma", 1.0, "p2")):
            value = getattr(self, number)
            if not 0 < value < math.inf:
                raise Error(f"{number} = {value}: it must be above 0; {default:g} is usual.")
            if value != default and self.name != owner:
                raise Error(
                    f"{number} = {value}: weight {self.name!r} has none; use weight {owner!r}, or leave it out."
                )


def check_weight(weight: str | Weight, schedule: object, prediction: str) -> None:
    """Refuse a loss weight that is unknown or has no value on the schedule, or a prediction that it does not allow."""
    names.check_model(schedule, prediction)
    if (weight if isinstance(weight, Weight) else Weight(weight)).name == "vlb":
        elbo_weight(schedule)


def elbo_weight(schedule: object) -> Callable[[Level], Tensor]:
    """The schedule's own sigma²·W of the variational bound. Raises: Error where it has none."""
    found: Callable[[Level], Tensor] | None = getattr(schedule, "elbo_weight", None)
    if found is None:
        raise Error(
            f"weight 'vlb': {type(schedule).__name__} has no elbo_weight(level), which gives it; use weight 'snr'."
        )
    return found
