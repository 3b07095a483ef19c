"""The doors of a network: what x, t, label and concat may be, and the sentence for each that may not."""

from __future__ import annotations

import torch
from torch import Tensor

from kuosan.errors import Error
from kuosan.networks.config import UNetConfig
from kuosan.networks.dit_config import DiTConfig


def check_context(config: UNetConfig | DiTConfig, x: Tensor, context: Tensor | None, mask: Tensor | None) -> None:
    """Refuse a context that this network cannot take, or has no door for."""
    width = config.context_width
    if width is None:
        if context is not None or mask is not None:
            raise Error("this network has no context door (context_width is None): leave context out.")
        return
    if context is None or context.ndim != 3 or len(context) != len(x) or context.shape[2] != width:
        got = "missing" if context is None else f"of shape {tuple(context.shape)}"
        raise Error(f"context is {got}; this network is told of text: pass context of shape ({len(x)}, L, {width}).")
    if mask is not None and (mask.shape != context.shape[:2] or mask.dtype != torch.bool):
        raise Error(
            f"context_mask is {str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}; it must be bool "
            f"of shape {tuple(context.shape[:2])}."
        )


def check(config: UNetConfig | DiTConfig, x: Tensor, t: Tensor, label: Tensor | None, concat: Tensor | None) -> None:
    """Refuse inputs this network cannot take; each sentence names the cure."""
    if x.ndim != 4 or x.shape[1] != config.in_channels:
        raise Error(f"x has shape {tuple(x.shape)}; this network takes (B, {config.in_channels}, H, W).")
    B, _, H, W = x.shape
    if H % config.factor or W % config.factor:
        up = tuple(-(-side // config.factor) * config.factor for side in (H, W))
        raise Error(
            f"picture size {H}x{W}: this network takes sides that are multiples of {config.factor}. "
            f"Resize or pad to {up[0]}x{up[1]}."
        )
    if t.numel() not in (1, B) or t.ndim > 1:
        raise Error(f"t has shape {tuple(t.shape)}; allowed: (), (1,) or ({B},), one time a picture.")
    if config.classes and (label is None or label.shape != (B,)):
        got = "missing" if label is None else f"of shape {tuple(label.shape)}"
        raise Error(
            f"label is {got}; this network has {config.classes} classes: pass int64 labels of shape ({B},), "
            f"{config.null_label} for none."
        )
    if label is not None and config.classes and label.device.type == "cpu":  # a GPU would have to be waited for
        wrong = [int(i) for i in label if not 0 <= i <= config.classes]
        if wrong:
            raise Error(
                f"label {wrong[0]}: this network takes 0 to {config.classes - 1}, or {config.classes} for none."
            )
    if not config.classes and label is not None:
        raise Error("this network has no label door (classes is 0): leave label out, or train with classes.")
    if config.concat_channels:
        wanted = (B, config.concat_channels, H, W)
        if concat is None or concat.shape != wanted:
            got = "missing" if concat is None else f"of shape {tuple(concat.shape)}"
            raise Error(f"concat is {got}; this network takes concat of shape {wanted}.")
    elif concat is not None:
        raise Error("this network has no concat door (concat_channels is 0): leave concat out.")
