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


Whole = Annotated[int, Parameter(converter=whole)]
