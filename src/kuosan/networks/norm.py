"""Group norm, with what stands around it in a U-Net: y = act((1 + scale) * norm(x + bias) + shift)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018) that can add a bias before, scale and shift after, and end in SiLU.

    `bias`, `scale` and `shift` are (B, C).
    """

    def forward(
        self,
        x: Tensor,  # (B, C, H, W)
        *,
        act: bool = False,
        bias: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        if bias is not None:
            x = x + bias.to(x.dtype)[:, :, None, None]
        y = F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        if scale is not None and shift is not None:
            y = y * (1 + scale.to(x.dtype)[:, :, None, None]) + shift.to(x.dtype)[:, :, None, None]
        return F.silu(y) if act else y
