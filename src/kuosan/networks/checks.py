"""What the configurations of networks refuse, and the checks that several of them make. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kuosan.errors import Error, shown

if TYPE_CHECKING:
    from kuosan.networks.config import UNetConfig
    from kuosan.networks.dit_config import DiTConfig


def refused(config: object, field: str, allowed: str, cure: str) -> Error:
    """An `Error` that names a field, its value, what is allowed, and the cure."""
    return Error(f"{type(config).__name__}.{field} is {shown(getattr(config, field))}; allowed: {allowed}. {cure}")


def is_whole(value: object, low: int) -> bool:
    """Whether a value is a whole number from `low`; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def check_counts(config: object, fields: Iterable[str]) -> None:
    """Refuse fields that are no whole numbers from 1. Raises: Error."""
    for field in fields:
        if not is_whole(getattr(config, field), 1):
            raise refused(config, field, "whole numbers from 1", f"Set {field} to 1 or more.")


def check_doors(config: UNetConfig | DiTConfig) -> None:
    """Refuse impossible doors: label, context, concat. Raises: Error."""
    for field in ("classes", "concat_channels"):
        if not is_whole(getattr(config, field), 0):
            raise refused(config, field, "whole numbers from 0", f"Set {field} to 0 to close that door.")
    if config.concat_skip and config.concat_channels < config.out_channels:
        raise refused(config, "concat_skip", "false with fewer joined channels than are put out", "Leave it out.")
    if config.context_width is not None and not is_whole(config.context_width, 1):
        raise refused(config, "context_width", "whole numbers from 1, or None", "It follows from model.text.")
    if config.context_vector and config.context_width is None:
        raise refused(config, "context_vector", "false without context_width", "Leave it out.")
