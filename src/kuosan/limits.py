"""How large a setting of a model may be: generous, documented, and checked before anything is made.

A configuration may come from a stranger, and what it says decides how much memory and time its network takes. So every
number, list and text of every class that a model's configuration is made of has an entry here (docs/checkpoints.md has
the table); a test compares.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from kuosan.errors import Error, shown

Range = tuple[float, float]

CHANNELS: Range = (0, 4096)  # of an image or a latent
WIDTH: Range = (0, 65_536)
SIDE: Range = (0, 16_384)  # pixels
SMALL_REAL: Range = (-1000, 1000)
HASH: Range = (0, 128)
NAME: Range = (0, 4096)
LEVELS: Range = (0, 16)

LAYERS = 512  # residual and transformer blocks of one network, all levels together
AREA = 1 << 26  # pixels of an image that a model makes
CLASSES = 50_000

_NETWORK: dict[str, Range] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "channels": (0, 16_384),
    "multipliers": (0, 1024),
    "blocks": (0, 64),
    "head_channels": WIDTH,
    "level_heads": (0, 4096),
    "dropout": (0, 1),
    "groups": WIDTH,
    "norm_eps": (0, 1),
    "freq_shift": (0, 16_384),
    "classes": (0, CLASSES),
    "context_width": WIDTH,
    "transformer_depth": (0, 64),
    "transformer_depths": (0, 64),
    "transformer_mlp": (0, 64),
    "vector_width": WIDTH,
    "size_width": WIDTH,
    "concat_channels": CHANNELS,
    "patch": (0, 256),
    "origin": (-(10**9), 10**9),
}
_LABELLED: dict[str, Range] = {"drop": (0, 1), "class_names": (0, 1000)}

VALUES: dict[str, dict[str, Range]] = {  # of numbers: least and most; of texts: characters; of lists: of each entry
    "UNetConfig": _NETWORK,
    "ClassifierConfig": {**_NETWORK, "pool_side": (0, 1024)},
    "DiTConfig": {
        **{name: _NETWORK[name] for name in ("in_channels", "out_channels", "patch", "classes", "context_width")},
        "concat_channels": CHANNELS,
        "width": WIDTH,
        "depth": (0, 512),
        "heads": (0, 4096),
        "mlp": (0, 64),
        "grid": (0, 16_384),
    },
    "AutoencoderConfig": {
        **{name: _NETWORK[name] for name in ("in_channels", "channels", "multipliers", "blocks", "groups", "norm_eps")},
        "patch": (0, 256),
        "latent_channels": CHANNELS,
        "critic_channels": (0, 4096),
        "critic_layers": (0, 16),
        "origin": _NETWORK["origin"],
    },
    "OwnNetwork": {"name": (0, 1000)},
    "Discrete": {"T": (0, 100_000), "beta_start": (0, 1), "beta_end": (0, 1)},
    "Karras": {
        "sigma_min": (0, 1e6),
        "sigma_max": (0, 1e9),
        "rho": (0, 1000),
        "p_mean": SMALL_REAL,
        "p_std": (0, 1000),
    },
    "Flow": {"shift": (0, 1e6), "mean": SMALL_REAL, "std": (0, 1000)},
    "Generation": _LABELLED,
    "SuperResolution": {**_LABELLED, "scale": (0, 16), "blur": (0, 8), "noise": (0, 100), "jpeg": (0, 95)},
    "Inpainting": {**_LABELLED, "masks": (0, 100)},
    "CLIPText": {
        "vocabulary": (0, 1_000_000),
        "width": WIDTH,
        "hidden": (0, 262_144),
        "depth": (0, 256),
        "heads": (0, 4096),
        "length": WIDTH,
        "norm_eps": (0, 1),
        "projection": WIDTH,
        "end": (0, 1_000_000),
    },
    "ByteText": {"length": (0, 512), "width": WIDTH, "depth": (0, 256), "heads": (0, 4096)},
    "TextEncoderConfig": {
        "encoder": NAME,
        "hidden": (-1000, 0),
        "length": WIDTH,
        "width": WIDTH,
        "weights": HASH,
    },
    "Latents": {"run": NAME, "shift": (-1e6, 1e6), "scale": (0, 1e6), "weights": HASH},
    "ModelConfig": {"shape": SIDE, "prediction": (0, 100), "sigma_data": (0, 1e6), "shapes": SIDE},
    "Recipe": {
        "run": NAME,
        "step": (0, 2**63 - 1),
        "weights": HASH,
        "index": (0, 1_000_000),
        "compute": (0, 1000),
        "precision": (0, 100),
        "size": SIDE,
        "steps": (0, 1_000_000),
        "threads": (0, 1024),
        "start": HASH,
        "classifier": HASH,
        "reference": HASH,
        "format": (0, 1000),
        "version": (0, 1000),
    },
}
ENTRIES: dict[str, int] = {  # of lists, by the field's name
    "multipliers": 16,
    "level_heads": 16,
    "transformer_depths": 16,
    "origin": 16,
    "attention": 16,
    "class_names": CLASSES,
    "masks": 16,
    "shift": 4096,
    "scale": 4096,
    "shape": 3,
    "shapes": 4096,
    "size": 2,
}


def check(config: object) -> None:
    """Refuse a dataclass one of whose fields is beyond its range here; what is of another type others refuse.

    Raises:
        Error: it names the field, its value and the range.
    """
    kind = type(config).__name__
    ranges = VALUES.get(kind, {})
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if isinstance(value, list | tuple) and len(value) > ENTRIES.get(field.name, 0):
            raise Error(
                f"{kind}.{field.name} has {len(value):,} entries; allowed: at most {ENTRIES.get(field.name, 0):,} "
                f"(docs/checkpoints.md, limits)."
            )
        if field.name in ranges:
            _check_value(f"{kind}.{field.name}", value, *ranges[field.name])


def _check_value(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, list | tuple):
        for each in value:
            _check_value(name, each, low, high)
    elif isinstance(value, str):
        if len(value) > high:
            raise Error(
                f"{name} is {shown(value)}, {len(value):,} characters; allowed: at most {high:,} "
                f"(docs/checkpoints.md, limits)."
            )
    elif isinstance(value, int | float) and not isinstance(value, bool) and (value > high or value < low < 0):
        # where 0 is the least, the class itself says what is
        raise Error(f"{name} is {shown(value)}; allowed: {low:,} to {high:,} (docs/checkpoints.md, limits).")


def allowed(kind: type, given: Mapping[str, Any], name: str) -> str:
    """What a dataclass allows of a number, in the words of its own check, or by its entry here; empty where neither is.

    Args:
        given: its other fields, as far as they are known.
    """
    for probe in (math.inf, -math.inf, math.nan, (math.inf, math.inf)):
        try:
            kind(**{**given, name: probe})
        except Error as error:
            said = str(error).partition("inf" if isinstance(probe, tuple) else str(probe))[2]
            if name in str(error) and "no effect" not in said and "belongs to" not in said and "limits)" not in said:
                return _RANGE.sub("", said).removeprefix("number ").rstrip(".")
        except (TypeError, ValueError, ArithmeticError):
            continue
    low, high = VALUES.get(kind.__name__, {}).get(name, (None, None))
    return "" if low is None else f"{low:,} to {high:,}"


_RANGE = re.compile(r"^.*?(?:allowed: |must be |: need )(?:a finite number, |a (?=number from))?", re.DOTALL)


def check_layers(config: object, count: int) -> None:
    """Refuse a network of more than `LAYERS` blocks. Raises: Error."""
    if count > LAYERS:
        raise Error(
            f"{type(config).__name__} makes a network of {count:,} blocks; allowed: at most {LAYERS:,} "
            f"(docs/checkpoints.md, limits). Give fewer levels, blocks or layers."
        )
