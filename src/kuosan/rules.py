"""When a field of a settings class counts, and which values it may have: declared at the field, checked in one place.

    vlb_weight: float = field(default=0.001, metadata=only(loss="hybrid"))
    lr_shape: str = field(default="constant", metadata=one_of("constant", "cosine"))

A field that counts only beside others' values must have its default without them: what has no effect is refused. What
takes more than the fields of one class stays a function of its own. Torch-free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kuosan.errors import Error, unknown

ANY = "any"  # any value but 0, none and nothing: `only(critic=ANY)`
_ONLY, _ONE_OF = "only", "one_of"


@dataclasses.dataclass(frozen=True)
class Only:
    """What a field needs: one of some values of each of other fields of its class, and why."""

    owners: Mapping[str, tuple[Any, ...]]
    because: str = ""
    idle: tuple[Any, ...] = ()  # values that, beside the default, ask for nothing


def only(*, because: str = "", idle: tuple[Any, ...] = (), **owners: Any) -> dict[str, Any]:
    """Metadata of a field that counts only where each of these fields has one of these values, or ANY."""
    several = {name: value if isinstance(value, tuple) else (value,) for name, value in owners.items()}
    return {_ONLY: Only(several, because, idle)}


def one_of(*values: Any) -> dict[str, Any]:
    """Metadata of a field that may have these values."""
    return {_ONE_OF: values}


def check(config: Any, prefix: str = "") -> None:
    """Check what the fields of a settings object declare; `prefix` stands before their names in messages.

    Raises:
        Error: a value that is not one of those allowed, or one without effect. It names the field, its value, what it
            belongs to and what to do.
    """
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if _ONE_OF in each.metadata and value not in each.metadata[_ONE_OF]:
            raise unknown(f"{prefix}{each.name}", value, each.metadata[_ONE_OF])
        rule: Only | None = each.metadata.get(_ONLY)
        if rule is not None and value != _default(each) and value not in rule.idle:
            _check_owners(config, prefix, each.name, value, rule)


def _check_owners(config: Any, prefix: str, name: str, value: Any, rule: Only) -> None:
    said = f"{prefix}{name}" if dataclasses.is_dataclass(value) else f"{prefix}{name} = {value}"
    why = f": {rule.because}" if rule.because else ""
    for owner, values in rule.owners.items():
        now = getattr(config, owner)
        if values == (ANY,) and not now:
            raise Error(
                f"{said} has no effect with {owner} = {now}{why}: leave it out, or give --{prefix}{owner} a value."
            )
        if values != (ANY,) and now not in values:
            wanted = " or ".join(str(each) for each in values)
            raise Error(
                f"{said} has no effect with {owner} {now}: it belongs to {owner} {wanted}{why}; leave it out, or set "
                f"{prefix}{owner}."
            )


def _default(each: dataclasses.Field[Any]) -> Any:
    return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
