"""What one cell of a list, one key of an object or one sidecar says: the name of a class, or a caption."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

MISSING = ("nan", "none", "null", "na", "n/a")  # where all other labels are numbers, these are none


def class_name(value: object, *, whole: bool = True) -> str | None:
    """A cell as the name of a class: text and numbers as they are written; empty, null and NaN are none.

    Args:
        whole: 3.0 is class 3, as it is in another row.

    Raises:
        ValueError: it is a list or an object, or no text that can be written down.
    """
    match value:
        case None:
            return None
        case bool():
            return str(value).lower()
        case float() if math.isnan(value):
            return None
        case float() if whole and value.is_integer():
            return str(int(value))
        case int() | float():
            return str(value)
        case str():
            return _text(value)
    raise ValueError(f"{value!r} is neither text nor a number")


def caption_text(value: object) -> str | None:
    """A cell as a caption, its blanks made one space each; of a list the first; empty and null are none.

    Raises:
        ValueError: it is no text.
    """
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = next((each for each in value if each.strip()), None)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return _text(value)


def _text(value: str) -> str | None:
    value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    if "\0" in value:
        raise ValueError(f"{value[:40]!r} holds NUL bytes, which no text does")
    return " ".join(value.split()) or None


def same_numbers(labels: Iterable[str]) -> dict[str, str | None]:
    """What each label is called: 3.0 is 3 where that is one too, and NaN among numbers is none."""
    found = {*labels}
    numbers = {name for name in found if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?", name)}
    alone = bool(numbers) and all(name in numbers or name.lower() in MISSING for name in found)
    called: dict[str, str | None] = {name: name for name in found}
    for name in found:
        if name in numbers and (short := re.sub(r"\.0*$", "", name)) in found:
            called[name] = short
        elif alone and name not in numbers:
            called[name] = None
    return called
