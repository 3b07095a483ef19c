"""A model's parts, opened one by one from where they lie: `tensors(part, ...)` gives each weight ready for use.

A tensor is mapped, cut out of what it is stacked in, freed of its float8 scale, and cast straight to its final type on
its final device; then the next. So opening a model takes the memory of its final weights and of one tensor, and a part
that nobody asks for is never opened.

    w = w8 * scale        a float8 weight and its scale, one number or one an output channel
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kuosan.errors import Error, shown
from kuosan.models.open import FLOAT8, Part, StoredTensor
from kuosan.storage.files import explained

_SAME = ("st_dev", "st_ino", "st_size", "st_mtime_ns")  # of a file, as long as nobody replaces or writes it


class TensorReader:
    """Files mapped as they are asked for, as a context; at its end each must be as it was. Raises: Error: it is not."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._files: dict[Path, Any] = {}
        self._before: dict[Path, os.stat_result] = {}

    def read(
        self, stored: StoredTensor, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """One tensor, as `tensors` gives it."""
        if stored.shape == (0,):
            return torch.empty(0, dtype=dtype or stored.dtype, device=device)
        path = stored.path
        if path not in self._files:
            with explained(path, doing="read"):
                self._before[path] = os.stat(path)
                try:
                    self._files[path] = self._stack.enter_context(safe_open(path, framework="pt"))
                except SafetensorError as error:
                    raise Error(f"{path} cannot be mapped: {shown(str(error), 200)}.") from None
        return _final(self._files[path], stored, dtype, torch.device(device))

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        for path, found in self._before.items() if kind is None else ():
            with explained(path, doing="read"):
                after = os.stat(path)
            if any(getattr(found, each) != getattr(after, each) for each in _SAME):
                raise Error(f"{path} was replaced while it was read; is something else writing it?")


def tensors(
    part: Part, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a part by its name, in the order of its files.

    Args:
        dtype: of what they become; None: as they are stored, where they need no scale.

    Raises:
        Error: a file is gone, was replaced meanwhile, or holds a scale that does not fit its weight.
    """
    with TensorReader() as reader:
        for name, stored in part.tensors.items():
            yield name, reader.read(stored, dtype, device)


def _final(file: Any, stored: StoredTensor, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """One tensor as it is wanted."""
    try:
        whole: Tensor = file.get_tensor(stored.key)
        scale = None if stored.scale is None else file.get_tensor(stored.scale)
    except SafetensorError as error:
        raise Error(f"{stored.path}: {shown(stored.key)} cannot be read: {shown(str(error), 200)}.") from None
    found = whole.clone() if whole.data_ptr() % whole.element_size() else whole
    if scale is not None:
        found = dequantised(found, scale, stored, dtype or torch.float32)
    if stored.piece.of > 1:
        found = found.chunk(stored.piece.of)[stored.piece.nth]
    if stored.piece.transposed:
        found = found.T
    found = found.reshape(stored.shape)
    if dtype is not None and found.is_floating_point():
        found = found.to(device=device, dtype=dtype)
    return found.to(device).contiguous()


def dequantised(weight: Tensor, scale: Tensor, stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """A float8 weight times its scale, reckoned in float32. Raises: Error where they do not fit."""
    assert weight.dtype in FLOAT8, weight.dtype
    rows = weight.shape[0] if weight.ndim else 1
    if not scale.is_floating_point() or scale.numel() not in (1, rows):
        raise Error(
            f"{stored.path}: {shown(stored.scale)} has the shape {shown(tuple(scale.shape))}, and its weight "
            f"{shown(tuple(weight.shape))}: a scale is one number, or one a row."
        )
    factor = scale.float().reshape(-1, *[1] * (weight.ndim - 1)) if scale.numel() > 1 else scale.float().reshape(())
    return (weight.float() * factor).to(dtype)


def state_dict(
    part: Part, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Mapping[str, Tensor]:
    """All tensors of a part. Raises: Error, as `tensors`."""
    return dict(tensors(part, dtype, device))
