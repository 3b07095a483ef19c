"""A network made ready to sample: low-precision weights in channels_last, its inputs and outputs still float32.

The sampler's state stays float32: with a bf16 state 50 DDIM steps drift by 0.10, with bf16 weights alone by 0.01.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from kuosan.networks.dit import DiT
from kuosan.networks.layers import Pooled
from kuosan.networks.norm import GroupNorm
from kuosan.networks.text import TextTransformer
from kuosan.networks.unet import Conditioning, UNetEncoder

_EXACT = (Conditioning, GroupNorm, nn.Embedding, nn.LayerNorm, Pooled, TextTransformer)
Network = TypeVar("Network", bound=nn.Module)


def prepare(network: Network, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Network:
    """A copy of `network` for inference on `device`: no dropout, no gradients, channels_last, weights in `dtype`.

    A `UNet`, `DiT` or `Classifier` keeps its time embedding, conditioning, norms and text in float32 (bf16 rounds
    t = 999 to 1000) and all convolutions in `dtype`: a float32 one at the entrance or exit would take a third off the
    difference to float32, but its last bits depend on the batch, and rounded to bf16 behind it that moves an image by
    grey levels. A `UNet` or `DiT` answers in the dtype of x: float32 in, float32 out; a `Classifier` in float32. Any
    other network gets `dtype` for all its weights, and takes and gives that.
    """
    ready = copy.deepcopy(network, _kept_activations(network)).to(device).requires_grad_(False).eval()
    exact: list[nn.Module] = [m for m in ready.modules() if isinstance(m, _EXACT)]
    exact += [m.time for m in ready.modules() if isinstance(m, (UNetEncoder, DiT))]
    kept = {parameter for module in exact for parameter in module.parameters()}
    for parameter in ready.parameters():
        layout = torch.channels_last if parameter.ndim == 4 else torch.preserve_format
        wanted = parameter.dtype if parameter in kept or not parameter.is_floating_point() else dtype
        parameter.data = parameter.data.to(dtype=wanted, memory_format=layout)
    return ready


def _kept_activations(network: nn.Module) -> dict[int, torch.Tensor]:
    """deepcopy's memo for tensors with a history that modules keep as attributes, which it refuses to copy."""
    kept = [value for module in network.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return {id(tensor): tensor.detach() for tensor in kept if not tensor.is_leaf}
