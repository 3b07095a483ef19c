r"""Weights within prompts, as ComfyUI's and A1111's users write them: `(fox:1.3)`, `(fox)` 1.1, `[fox]` 1/1.1.

Brackets within brackets multiply; `\(` is a bracket itself, `\\` a backslash. What a weight does is up to who reads it:
`kuosan.text.encoder` moves a token's features along the line from the empty prompt's to its own. Torch-free.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from kuosan.errors import Error

MORE = 1.1  # what round brackets multiply by, and square ones divide by
PARTNERS = {")": "(", "]": "["}
_MARKS = re.compile(r"\\([\\()\[\]])|([()\[\]])")
_WEIGHT = re.compile(r"(.*):\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf))\s*", re.DOTALL | re.IGNORECASE)


def escaped(text: str) -> str:
    """A text as the prompt that reads as just that text."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


@dataclass
class _Part:
    text: str
    depth: int  # brackets around it when it was read
    weight: float = 1.0


def parse(prompt: str) -> list[tuple[str, float]]:
    """A prompt as texts and their weights, neighbours of one weight joined; an empty prompt has none.

    Raises:
        Error: brackets that do not close, or a weight that is no number of 0 or more; it names the place.
    """
    parts: list[_Part] = []
    opened: list[tuple[str, int, int]] = []  # bracket, place in the prompt, first of its parts
    end = 0
    for mark in _MARKS.finditer(prompt):
        parts.append(_Part(prompt[end : mark.start()], len(opened)))
        end = mark.end()
        if mark[1] is not None:
            parts.append(_Part(mark[1], len(opened)))
        elif mark[2] in PARTNERS.values():
            opened.append((mark[2], mark.start(), len(parts)))
        else:
            if not opened or opened[-1][0] != PARTNERS[mark[2]]:
                raise _unbalanced(prompt, mark[2], mark.start())
            bracket, place, first = opened.pop()
            factor = _factor(prompt, place, parts[first:], bracket, len(opened) + 1)
            for part in parts[first:]:
                part.weight *= factor
                if not math.isfinite(part.weight):
                    raise _not_allowed(prompt, place, part.weight)
    if opened:
        raise _unbalanced(prompt, *opened[-1][:2])
    return _joined([*parts, _Part(prompt[end:], 0)])


def _joined(parts: list[_Part]) -> list[tuple[str, float]]:
    joined: list[tuple[str, float]] = []
    for part in parts:
        if joined and part.text and joined[-1][1] == part.weight:
            joined[-1] = (joined[-1][0] + part.text, part.weight)
        elif part.text:
            joined.append((part.text, part.weight))
    return joined


def _factor(prompt: str, place: int, inside: list[_Part], bracket: str, depth: int) -> float:
    """What a bracket multiplies by: the weight it ends in, which is taken off its text, else its usual one."""
    last = next((part for part in reversed(inside) if part.text), None)
    found = _WEIGHT.fullmatch(last.text) if last is not None and last.depth == depth else None
    if found is None or last is None:
        return MORE if bracket == "(" else 1 / MORE
    if bracket == "[":
        raise Error(
            f"the prompt {_shown(prompt)} has [...:{found[2]}] at character {place + 1}: square brackets take no "
            f"number (prompt editing is not known here); write (words:0.8) for a weight, or \\[ for a bracket."
        )
    factor = float(found[2])
    if not math.isfinite(factor) or factor < 0:
        raise _not_allowed(prompt, place, found[2])
    last.text = found[1]
    return factor


def _not_allowed(prompt: str, place: int, weight: object) -> Error:
    return Error(
        f"the prompt {_shown(prompt)} has the weight {weight} in the bracket at character {place + 1}: a weight is a "
        f"finite number from 0 (1 leaves words as they are)."
    )


def _unbalanced(prompt: str, bracket: str, place: int) -> Error:
    return Error(
        f"the prompt {_shown(prompt)} has a {bracket!r} without its partner at character {place + 1}: brackets weigh "
        f"words, as (fox:1.3); for a bracket itself write \\{bracket}."
    )


def _shown(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 80 else prompt[:77] + "...")
