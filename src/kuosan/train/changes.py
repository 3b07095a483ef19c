"""What may differ between two starts of one run, and what would make it another. Torch-free."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from kuosan import config as trees
from kuosan.errors import Error
from kuosan.train.config import RunConfig

# What may change between two starts of the same run: how long, how often and where, never what is learned.
FREE_ON_RESUME = (
    "train.max_steps",
    "train.save_every",
    "train.keep",
    "train.evaluate_every",
    "train.evaluate_pictures",
    "train.preview_every",
    "train.preview_pictures",
    "train.preview_steps",
    "train.micro_batch",
    "compute.",
    "model.codec.run",
    "model.text.encoder",  # its place; model.text.weights says which it is
    "data.path",
    "data.workers",
    "data.memory_gib",
    "data.max_pixels",
    "data.max_bytes",
    "data.cache",
    "data.range",  # what it changes in the pixels of arrays and float files, their fingerprint shows
)
# Of these, what changes the order of sums, and with it the last bits of what is learned.
INEXACT = ("train.micro_batch", "compute.")


def refuse_changes(stored: Mapping[str, Any], now: Mapping[str, Any], run: str) -> list[str]:
    """What differs harmlessly between a run's stored configuration and the one given now, in words.

    Raises:
        Error: something differs that would make this another run; it names each key with both values and the choices.
    """
    with contextlib.suppress(Error):  # an older run knows nothing of newer settings, which had their defaults
        stored = trees.plain(trees.build(RunConfig, stored))
    changed = trees.differences(stored, now)
    fixed = {key: pair for key, pair in changed.items() if not _is_in(key, FREE_ON_RESUME)}
    if fixed:
        lines = "\n".join(f"  {key}: the run has {old!r}, now {new!r}" for key, (old, new) in fixed.items())
        raise Error(
            f"{run} holds a run with another configuration:\n{lines}\n"
            f"  Either repeat the run's own values (they are in {run}/config.yaml), start a new run with --out "
            f"ANOTHER, or start a new one from this run's weights with --out ANOTHER --init {run}."
        )
    return [_said(key, old, new, now) for key, (old, new) in changed.items()]


def _said(key: str, old: Any, new: Any, now: Mapping[str, Any]) -> str:
    text = f"{key}: {old} -> {new}"
    if key == "train.max_steps" and now["train"]["lr_shape"] == "cosine":
        return f"{text}; from here on the learning rate is that of a cosine over {new} steps, a jump from {old}'s."
    if _is_in(key, INEXACT):
        return f"{text}; the run goes on, but no longer bit for bit as it would have."
    return text


def _is_in(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of `names`, or under one that ends with a dot."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)
