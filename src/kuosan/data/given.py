"""What a user brings of a picture that is to be restored: a small one, or one with a hole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Given(NamedTuple):
    """What is known of B pictures; one row may stand for all pictures of a request."""

    picture: Tensor  # (B, C, h, w) float32 in [-1, 1]: small, or 0 where it is to be made anew
    mask: Tensor | None = None  # (B, 1, H, W): 1 where the picture is to be made anew, 0 where it is known
    noise: Tensor | None = None  # (B,) the std of the noise in it, in units of pictures in [-1, 1]

    def rows(self, rows: slice | Sequence[int]) -> Given:
        """Some of its pictures."""
        return Given(*(None if value is None else value[rows] for value in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Given:
        """The same on another device."""
        return Given(*(None if value is None else value.to(device, non_blocking=True) for value in self))  # type: ignore[arg-type]

    def expanded(self, n: int) -> Given:
        """`n` rows: these, or the one there is again and again."""
        assert len(self.picture) in (1, n), (len(self.picture), n)
        return Given(*(None if v is None else v.expand(n, *v.shape[1:]) for v in self))  # type: ignore[arg-type]
