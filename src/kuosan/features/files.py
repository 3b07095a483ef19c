"""Weights of known networks from a user's file: plain tensors by name, never code."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from kuosan import pickled, weights
from kuosan.errors import Error


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a safetensors file or a `torch.save` state dict, and the file's SHA-256.

    The latter is read by `pickled`, which builds tensors and knows nothing else.

    Raises:
        Error: unreadable, damaged, a TorchScript program, or anything but tensors by name.
    """
    return weights.read_hashed(path) if weights.kind(path) == "safetensors" else pickled.read(path)


def fill(network: nn.Module, tensors: dict[str, Tensor], path: Path, *, ignored: tuple[str, ...] = ()) -> None:
    """Put tensors into a network by name, all of both; prefixes in `ignored` may be in the file and are left out.

    Raises:
        Error: the first few names that are missing, extra or of another shape.
    """
    wanted = network.state_dict()
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(ignored or ("\0",))}
    wrong = [f"{name} missing" for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    wrong += [f"{name} unknown" for name in given if name not in wanted]
    wrong += [
        f"{name} {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in given
        if name in wanted and given[name].shape != wanted[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Error(f"{path} does not fit {type(network).__name__}: {', '.join(wrong[:3])}{more}.")
    network.load_state_dict({**wanted, **given})
    network.eval().requires_grad_(False)
