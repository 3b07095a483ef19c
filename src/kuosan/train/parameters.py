"""A network's parameters and gradients as two flat buffers, so that clipping, averaging and stepping are one call each.

Matrices and kernels come first, then vectors (biases, norms), so that weight decay is a slice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlatParameters:
    """Moves a network's trainable parameters into one float32 buffer; each keeps its name, shape and memory format."""

    def __init__(self, network: nn.Module) -> None:
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self.named = [*((n, p) for n, p in named if p.ndim >= 2), *((n, p) for n, p in named if p.ndim < 2)]
        self.decayed = sum(p.numel() for _, p in self.named if p.ndim >= 2)
        total = sum(p.numel() for _, p in self.named)
        device = self.named[0][1].device
        self.values = torch.empty(total, device=device)
        self.grads = torch.zeros(total, device=device)
        begin = 0
        for _, p in self.named:
            place = slice(begin, begin + p.numel())
            p.data = _like(self.values[place], p).copy_(p.data)
            p.grad = _like(self.grads[place], p)
            begin += p.numel()

    def named_views(self, flat: Tensor) -> dict[str, Tensor]:
        """Another flat buffer (an average, say) cut into the parameters' names and shapes."""
        begin, views = 0, {}
        for name, p in self.named:
            views[name] = _like(flat[begin : begin + p.numel()], p)
            begin += p.numel()
        return views

    def grad_norm(self) -> Tensor:
        """The gradient's 2-norm, (); not finite if any entry is not."""
        return torch.linalg.vector_norm(self.grads)

    def optimiser_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Two flat parameters that share the buffers' memory: the decayed part and the rest."""
        groups: list[dict[str, object]] = []
        for part, decay in ((slice(0, self.decayed), weight_decay), (slice(self.decayed, None), 0.0)):
            flat = nn.Parameter(self.values[part])
            flat.grad = self.grads[part]
            if flat.numel():
                groups.append({"params": [flat], "weight_decay": decay})
        return groups


def _like(flat: Tensor, p: Tensor) -> Tensor:
    """A slice of a flat buffer viewed in a parameter's shape; kernels lie channels_last."""
    if p.ndim != 4:
        return flat.view(p.shape)
    out, into, height, width = p.shape
    return flat.view(out, height, width, into).permute(0, 3, 1, 2)
