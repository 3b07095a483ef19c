"""Whole numbers on the command line: 16 is one, 1.5 is refused and not rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token

from kuosan.errors import Error


def whole(annotation: Any, tokens: Sequence[Token]) -> int | tuple[int, ...]:
    """The number of one token, or the tuple of several.

    Raises:
        Error: it is not whole.
    """
    numbers = []
    for token in tokens:
        try:
            numbers.append(int(token.value))
        except ValueError:
            raise Error(f"{token.keyword or 'value'} {token.value!r} is not a whole number, as 16 is.") from None
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def size_of(annotation: Any, tokens: Sequence[Token]) -> tuple[int, int]:
    """Width and height of 96x64.

    Raises:
        Error: it is something else.
    """
    (token,) = tokens
    parts = token.value.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise Error(f"--size {token.value!r} is not width x height in pixels, as 96x64 is.")
    return int(parts[0]), int(parts[1])


Whole = Annotated[int, Parameter(converter=whole)]
