"""What conversions by a table of names share: renaming, stacking and splitting weights, refusing those that do not fit.

A table is {our weight: {their weight: its rows}}, in the order they are stacked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kuosan.errors import Error

if TYPE_CHECKING:
    from torch import Tensor

Table = Mapping[str, Mapping[str, int]]
# as diffusers spelt attention before 0.13, and as published DDPM checkpoints still do
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_LINEAR = re.compile(r"\.qkv\.|attentions\.\d+\.out\.|middle\.1\.out\.")  # what old files have as 1x1 convolutions


def check_size(model: str, layers: int, weights: Mapping[str, Tensor]) -> None:
    """Refuse a config of more blocks than there are weights, before a network is laid out. Raises: Error."""
    if layers > len(weights):
        raise Error(
            f"the weights are not those of a {model} with this config: it has {layers} blocks, and they are "
            f"{len(weights)}. Use the config that was saved beside these weights."
        )


def renamed(name: str, patterns: Sequence[tuple[str, str]]) -> str:
    """Our name as theirs: each (ours, theirs) applied one after another."""
    for ours, theirs in patterns:
        name = re.sub(ours, theirs, name)
    return name


def parts_of(name: str, rows: int, patterns: Sequence[tuple[str, str]]) -> dict[str, int]:
    """What a weight of ours is stacked from: q, k and v where it is a qkv, else one weight of theirs."""
    theirs = renamed(name, patterns)
    if ".qkv." not in name:
        return {theirs: rows}
    return {theirs.replace(".qkv.", f".to_{letter}."): rows // 3 for letter in "qkv"}


def modern(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names that diffusers has now."""
    found = {}
    for name, weight in weights.items():
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
        found[name] = weight
    return found


def stacked(model: str, table: Table, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights of theirs, those of a `model`. Raises: `Error` for weights unknown, missing or of another shape."""
    import torch

    _match(model, {name: size for parts in table.values() for name, size in parts.items()}, theirs)
    state = {}
    for name, parts in table.items():
        whole = torch.cat([theirs[part] for part in parts])
        state[name] = whole.flatten(1) if _LINEAR.search(name) and whole.ndim == 4 else whole
    return state


def split(model: str, table: Table, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights of ours, those of a `model`. Raises: `Error` for weights unknown, missing or of another shape."""
    import torch

    _match(model, {name: sum(parts.values()) for name, parts in table.items()}, ours)
    weights: dict[str, Tensor] = {}
    for name, parts in table.items():
        pieces = torch.split(ours[name], list(parts.values()))
        weights |= {part: piece.clone() for part, piece in zip(parts, pieces, strict=True)}
    return weights


def _match(model: str, rows: Mapping[str, int], weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not exactly the ones wanted."""
    unknown, missing = sorted(weights.keys() - rows.keys()), sorted(rows.keys() - weights.keys())
    if unknown or missing:
        parts = [
            f"{len(names)} {what}: {_some(names)}"
            for what, names in (("unknown", unknown), ("missing", missing))
            if names
        ]
        raise Error(
            f"the weights are not those of a {model} with this config ({'; '.join(parts)}). "
            "Use the config that was saved beside these weights."
        )
    for name, size in rows.items():
        if weights[name].shape[:1] != (size,):
            raise Error(
                f"weight {name} has shape {tuple(weights[name].shape)}; its first size must be {size}. "
                "Use the config that was saved beside these weights."
            )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
