"""Weights of known networks from a user's file: plain tensors by name, never code."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from kuosan import weights
from kuosan.errors import Error
from kuosan.files import explained


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a safetensors file or a `torch.save` state dict, and the file's SHA-256.

    The latter is opened with `weights_only`, which builds tensors and runs nothing else.

    Raises:
        Error: unreadable, damaged, a TorchScript program, or anything but tensors by name.
    """
    if weights.kind(path) == "safetensors":
        return weights.read_hashed(path)
    with explained(path, doing="read"):
        content = path.read_bytes()
    if scripted(content):
        raise Error(f"{path} is a TorchScript program, which is code: kuosan never runs it. Give a state dict.")
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise Error(f"{path} holds no plain tensors ({reason}): damaged, or code. Give a state dict.") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise Error(f"{path} holds a {type(found).__name__}, not tensors by name: give the network's state dict.")
    return found, hashlib.sha256(content).hexdigest()


def scripted(content: bytes) -> bool:
    """True for a TorchScript archive: it holds code."""
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        return False
    return any(name.endswith("constants.pkl") or "/code/" in name for name in names)


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
