"""The points of a sweep: every combination of the values given, each a request of its own. Torch-free.

All points share n and the seeds, so that two of them differ picture by picture and their difference has a small error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from kuosan import config as trees
from kuosan import options
from kuosan.errors import Error, unknown
from kuosan.evaluate.config import USELESS
from kuosan.sample.plan import choose
from kuosan.sample.request import Request

if TYPE_CHECKING:
    from kuosan.model import ModelConfig
    from kuosan.sample.plan import Choice

SHARED = ("n", "seed", "batch", "exact", "size", "aspect")  # the same in all points
MOST = 500  # points


@dataclass(frozen=True)
class Point:
    """One combination: what was set to what, and the request that follows."""

    setting: dict[str, Any]
    request: Request

    @property
    def name(self) -> str:
        """`steps 10, sampler ddim`, as tables and messages call it."""
        return _words(self.setting)


def shown(value: Any) -> str:
    """A value as a person wrote it."""
    if isinstance(value, tuple):
        return ":".join(shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def points(request: Request, sweep: Sequence[str]) -> list[Point]:
    """All combinations of `("steps=5", "10", "sampler=ddim", "heun")`; without a sweep one point, the request itself.

    Raises:
        Error: no such field, one that all points share, a value given twice; impossible values, all of them.
    """
    swept = dict(_swept(sweep))
    found, wrong = [], []
    for values in product(*swept.values()):
        tree = dict(zip(swept, values))
        try:
            built = trees.build(Request, {**trees.plain(request), **tree})
        except Error as error:
            wrong.append(f"{_words(tree)}: {error}")
            continue
        found.append(Point({key: getattr(built, key) for key in swept}, built))
    _refuse(wrong, len(found) + len(wrong))
    if len(found) > MOST:
        raise Error(f"the sweep has {len(found)} combinations; allowed: up to {MOST}. Give fewer values.")
    return found


def first(sweep: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Each swept field with its first value, so that what goes with it (`negative`, say) is not without effect.

    Raises:
        Error: what `points` refuses of the words, or a field that is given beside its sweep.
    """
    values = {name: choices[0] for name, choices in _swept(sweep)}
    for name in values:
        if name in given:
            raise Error(f"{name} = {given[name]!r} has no effect with --sweep {name}=...; leave one of them out.")
    return values


def _asked(model: ModelConfig, request: Request) -> Request:
    """The request with a prompt where a text model will be given captions."""
    return replace(request, prompts=("a caption",)) if model.task.text and not request.prompts else request


def check(model: ModelConfig, swept: Sequence[Point]) -> list[Choice]:
    """What each point asks of a model.

    Raises:
        Error: those that cannot be sampled and those that are another one again, all of them.
    """
    found: list[Choice] = []
    seen: dict[Request, Point] = {}
    wrong = []
    for point in swept:
        try:
            choice = choose(model, _asked(model, point.request))
        except Error as error:
            wrong.append(f"{point.name}: {error}" if point.setting else str(error))
            continue
        found.append(choice)
        plain = replace(point.request, sampler=choice.sampler, steps=choice.grid_steps, spacing=choice.spacing)
        if plain in seen:
            wrong.append(f"{point.name}: the same as {seen[plain].name}; leave one out.")
        seen.setdefault(plain, point)
    _refuse(wrong, len(swept))
    return found


def _words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {shown(value)}" for key, value in setting.items())


def _refuse(wrong: Sequence[str], of: int) -> None:
    if wrong and of == 1:
        raise Error(wrong[0])
    if wrong:
        raise Error(f"{len(wrong)} of {of} combinations cannot be sampled, so none is:\n  " + "\n  ".join(wrong))


def _swept(words: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """Each field with its values, from words that a comma has split."""
    fields_ = {field.name for field in fields(Request)} - {*SHARED, *USELESS}
    together: dict[str, list[str]] = {}
    name = ""
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and not name:
            raise Error(f"sweep {word!r}: write FIELD=VALUE,VALUE,..., as in --sweep steps=5,10,20.")
        if equals:
            name = key.strip().replace("-", "_")
            name = {"class": "classes", "cfg": "guidance", "guidance_scale": "guidance"}.get(name, name)
            if name in SHARED:
                raise Error(f"sweep of {name}: all points share {', '.join(SHARED)}, so that they can be compared.")
            if name not in fields_:
                raise unknown("field to sweep", name, sorted(fields_))
            if name in together:
                raise Error(f"{name} is swept twice; give all its values at once: --sweep {name}=A,B,C.")
        value = (value if equals else word).strip()
        if not value:
            raise Error(f"sweep of {name}: a value is empty; write --sweep {name}=A,B,C.")
        together.setdefault(name, []).append(value)
    for name, values in together.items():
        if len(set(values)) < len(values):
            raise Error(f"sweep of {name}: a value is given twice in {', '.join(values)}.")
        yield name, [_typed(name, value) for value in values]


def _typed(name: str, text: str) -> Any:
    """A value's text as the field takes it: lists by colons, yes and no as in the shell."""
    annotation = options.hints(Request)[name]
    if options.is_list(annotation) and text != "none":
        return text.split(":")
    return options.boolean(name, text) if options.is_bool(annotation) else text
