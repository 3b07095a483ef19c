"""A network's parameters and gradients as two flat buffers, so that clipping, averaging and stepping are one call each.

Matrices and kernels come first, then vectors (biases, norms), so that weight decay is a slice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kuosan.errors import Error


class FlatParameters:
    """Moves a network's trainable parameters into one float32 buffer; each keeps its name, shape and memory format.

    A parameter that two modules share stays one; frozen ones stay where they are.

    Raises:
        Error: nothing to train, or a parameter that is not float32.
    """

    def __init__(self, network: nn.Module) -> None:
        named = _trainable(network)
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
        first = {id(p): name for name, p in self.named}
        every = network.named_parameters(remove_duplicate=False)
        self.aliases = {
            name: first[id(p)] for name, p in every if id(p) in first
        }  # each name, and the one it is kept by

    def named_views(self, flat: Tensor) -> dict[str, Tensor]:
        """Another flat buffer (an average, say) cut into the parameters' shapes, by each of their names."""
        begin, views = 0, {}
        for name, p in self.named:
            views[name] = _like(flat[begin : begin + p.numel()], p)
            begin += p.numel()
        return {name: views[kept] for name, kept in self.aliases.items()}

    def grad_norm(self) -> Tensor:
        """The gradient's 2-norm, (); not finite if any entry is not."""
        norm: Tensor = torch.linalg.vector_norm(self.grads)
        return norm

    def optimiser_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Two flat parameters that share the buffers' memory: the decayed part and the rest."""
        groups: list[dict[str, object]] = []
        for part, decay in ((slice(0, self.decayed), weight_decay), (slice(self.decayed, None), 0.0)):
            flat = nn.Parameter(self.values[part])
            flat.grad = self.grads[part]
            if flat.numel():
                groups.append({"params": [flat], "weight_decay": decay})
        return groups


def _trainable(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    name = type(network).__name__
    for key, p in network.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise Error(f"{name}.{key} has no shape yet (a lazy module): call the network once on a batch first.")
    named = [(key, p) for key, p in network.named_parameters() if p.requires_grad and p.numel()]
    if not named:
        frozen = sum(1 for _ in network.parameters())
        why = f"all {frozen} parameters are frozen (requires_grad is False)" if frozen else "it has no parameters"
        raise Error(f"{name} has nothing to train: {why}.")
    for key, p in named:
        if p.dtype != torch.float32:
            raise Error(
                f"{name}.{key} is {str(p.dtype).removeprefix('torch.')}; weights in training are float32: pass "
                f"network.float() (--compute.precision bf16 computes in bf16 all the same), or freeze it."
            )
    return named


def _like(flat: Tensor, p: Tensor) -> Tensor:
    """A slice of a flat buffer viewed in a parameter's shape; kernels lie channels_last."""
    if p.ndim != 4:
        return flat.view(p.shape)
    out, into, height, width = p.shape
    return flat.view(out, height, width, into).permute(0, 3, 1, 2)
