r"""Weights within prompts, as ComfyUI's and A1111's users write them: `(fox:1.3)`, `(fox)` 1.1, `[fox]` 1/1.1.

Brackets within brackets multiply; `\(` is a bracket itself, `\\` a backslash. What a weight does is up to who reads it:
`kuosan.text.encoder` moves a token's features along the line from the empty prompt's to its own. Torch-free.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from kuosan.errors import Error, shown

MORE = 1.1  # what round brackets multiply by, and square ones divide by
PARTNERS = {")": "(", "]": "["}
_MARKS = re.compile(r"\\([\\()\[\]])|([()\[\]])")
_WEIGHT = re.compile(r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|nan|inf)", re.IGNORECASE)
_EXACT = 256  # brackets within each other whose factors are multiplied from the inside out, as they close


def escaped(text: str) -> str:
    """A text as the prompt that reads as just that text."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


@dataclass
class _Bracket:
    """A bracket, the ones around it, and what it multiplies by; the outermost, of no bracket, has depth 0."""

    around: _Bracket | None = None
    kind: str = ""
    place: int = 0  # in the prompt
    first: int = 0  # number of its first part
    depth: int = 0
    factor: float = 1.0
    weight: float | None = None  # of what stands directly in it, once that is asked


@dataclass
class _Part:
    text: str
    bracket: _Bracket


def parse(prompt: str) -> list[tuple[str, float]]:
    """A prompt as texts and their weights, neighbours of one weight joined; an empty prompt has none.

    Raises:
        Error: brackets that do not close, or a weight that is no number of 0 or more; it names the place.
    """
    parts: list[_Part] = []  # none of them empty
    inner = outside = _Bracket()
    end = 0
    for mark in _MARKS.finditer(prompt):
        _add(parts, prompt[end : mark.start()], inner)
        end = mark.end()
        if mark[1] is not None:
            _add(parts, mark[1], inner)
        elif mark[2] in PARTNERS.values():
            inner = _Bracket(inner, mark[2], mark.start(), len(parts), inner.depth + 1)
        else:
            if inner.around is None or inner.kind != PARTNERS[mark[2]]:
                raise _unbalanced(prompt, mark[2], mark.start())
            inner.factor = _factor(prompt, inner, parts)
            inner = inner.around
    if inner is not outside:
        raise _unbalanced(prompt, inner.kind, inner.place)
    _add(parts, prompt[end:], outside)
    return _joined(prompt, parts)


def _add(parts: list[_Part], text: str, bracket: _Bracket) -> None:
    if text:
        parts.append(_Part(text, bracket))


def _joined(prompt: str, parts: list[_Part]) -> list[tuple[str, float]]:
    texts: list[list[str]] = []
    weights: list[float] = []
    for part in parts:
        weight = _weight(prompt, part.bracket)
        if weights and weights[-1] == weight:
            texts[-1].append(part.text)
        else:
            texts.append([part.text])
            weights.append(weight)
    return [("".join(own), weight) for own, weight in zip(texts, weights)]


def _weight(prompt: str, bracket: _Bracket) -> float:
    """The product of a bracket's factor and of all around it, each reckoned once: of deep ones from those around."""
    if bracket.weight is not None:
        return bracket.weight
    chain, weight, at = [bracket], 1.0, bracket
    while at.around is not None and (bracket.depth <= _EXACT or at.around.weight is None):
        chain.append(at := at.around)
    if bracket.depth <= _EXACT:
        for each in chain:
            weight *= each.factor
            if not math.isfinite(weight):
                raise _not_allowed(prompt, each.place, weight)
    else:
        weight = 1.0 if at.around is None or at.around.weight is None else at.around.weight
        for each in reversed(chain):
            weight *= each.factor
            each.weight = weight
            if not math.isfinite(weight):
                raise _not_allowed(prompt, each.place, weight)
    bracket.weight = weight
    return weight


def _factor(prompt: str, bracket: _Bracket, parts: list[_Part]) -> float:
    """What a bracket multiplies by: the weight it ends in, which is taken off its text, else its default."""
    default = MORE if bracket.kind == "(" else 1 / MORE
    if len(parts) <= bracket.first or parts[-1].bracket is not bracket:
        return default
    words, colon, number = parts[-1].text.rpartition(":")
    number = number.strip()
    if not colon or not _WEIGHT.fullmatch(number):
        return default
    if bracket.kind == "[":
        raise Error(
            f"the prompt {_shown(prompt)} has [...:{shown(number)[1:-1]}] at character {bracket.place + 1}: square "
            f"brackets take no number (prompt editing is not known here); write (words:0.8) for a weight, or \\[ for a "
            f"bracket."
        )
    factor = float(number)
    if not math.isfinite(factor) or factor < 0:
        raise _not_allowed(prompt, bracket.place, shown(number)[1:-1])
    parts[-1].text = words
    if not words:
        parts.pop()
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
