"""Weights within prompts, as ComfyUI's and A1111's users write them: `(fox:1.3)`, `(fox)` 1.1, `[fox]` 1/1.1, `\\(`.

Brackets within brackets multiply. Torch-free.
"""

from __future__ import annotations

import math
import re

from kuosan.errors import Error

MORE = 1.1
_MARKS = re.compile(r"\\([\\()\[\]])|([()\[\]])")


def escaped(text: str) -> str:
    """A text as the prompt that reads as just that text."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def parse(prompt: str) -> list[tuple[str, float]]:
    """A prompt as texts and their weights, neighbours of one weight joined.

    Raises:
        Error: brackets that do not close, or a weight that is no number of 0 or more.
    """
    parts: list[list[str | float]] = []
    opened: list[tuple[str, int, int]] = []  # bracket, place in the prompt, first of its parts
    end = 0

    def take(text: str) -> None:
        if text:
            parts.append([text, 1.0])

    for mark in _MARKS.finditer(prompt):
        take(prompt[end : mark.start()])
        end = mark.end()
        if mark[1] is not None:
            take(mark[1])
        elif mark[2] in "([":
            opened.append((mark[2], mark.start(), len(parts)))
        else:
            if not opened or opened[-1][0] != {")": "(", "]": "["}[mark[2]]:
                raise _unbalanced(prompt, mark[2], mark.start())
            bracket, _, first = opened.pop()
            factor = _factor(prompt, parts, first) if bracket == "(" else 1 / MORE
            for part in parts[first:]:
                part[1] = float(part[1]) * factor
    take(prompt[end:])
    if opened:
        raise _unbalanced(prompt, opened[-1][0], opened[-1][1])
    joined: list[tuple[str, float]] = []
    for text, weight in parts:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + str(text), float(weight))
        else:
            joined.append((str(text), float(weight)))
    return joined


def _factor(prompt: str, parts: list[list[str | float]], first: int) -> float:
    """The weight that a bracket ends in, taken off its last part; 1.1 where it names none."""
    if len(parts) == first:
        return MORE
    found = re.fullmatch(r"(.*):\s*([^:\s]+)\s*", str(parts[-1][0]), re.DOTALL)
    if found is None:
        return MORE
    try:
        factor = float(found[2])
    except ValueError:
        return MORE
    if not math.isfinite(factor) or factor < 0:
        raise Error(f"the weight {found[2]} in the prompt {prompt!r} is not allowed: a number from 0, 1 is as it is.")
    parts[-1][0] = found[1]
    if not found[1]:
        parts.pop()
    return factor


def _unbalanced(prompt: str, bracket: str, place: int) -> Error:
    return Error(
        f"the prompt {prompt!r} has a {bracket!r} without its partner (character {place + 1}): brackets weigh words, "
        f"as (fox:1.3); for a bracket itself write \\{bracket}."
    )
