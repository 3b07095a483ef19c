"""Configuration: YAML and `--key value` into frozen dataclasses, strictly.

A configuration is a tree of frozen dataclasses; its leaves are named by dots (`model.network.channels`). Whatever a
YAML file, a command line, an HTTP body or a stored run says goes through `build`, which refuses unknown keys with the
nearest known one, values of the wrong type, and values that the dataclasses' own checks refuse.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from kuosan import limits
from kuosan.errors import Error, escaped, shown
from kuosan.options import Tree as Tree
from kuosan.options import dataclasses_in, hints, is_bool, members, type_text
from kuosan.regular import SMALL, read_regular

T = TypeVar("T")

MOST_NODES = 60_000  # keys and values of a YAML file; a configuration of ours has some hundreds, and one a class
MOST_DEPTH = 32  # of its mappings and lists within each other
MOST_WHOLE = 1 << 63  # of a whole number in it, either sign


def build(cls: type[T], tree: Mapping[str, Any]) -> T:
    """The dataclass `cls` from a plain tree of dicts, lists and numbers.

    Raises:
        Error: an unknown key, a missing one, a value of the wrong type, or one that a dataclass's own check refuses.
    """
    if not isinstance(tree, Mapping):
        raise Error(f"{cls.__name__} is made of a mapping of keys to values, not of {shown(tree)}.")
    value: T = _value(cls, tree, "")
    return value


def plain(config: Any) -> Tree:
    """The tree of plain values that `build` turns back into `config`; fit for YAML and JSON."""
    tree: Tree = _plain(config)
    return tree


class _Writer(yaml.SafeDumper):
    """YAML in which a value that occurs twice is written twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast


class _Reader(_Loader):  # type: ignore[misc, valid-type]
    """Plain YAML without a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return dict(super().construct_mapping(node, deep))


def _found(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = event.start_mark
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _check_events(text: str) -> None:
    """Refuse aliases, by which a page can stand for gigabytes, and what is deeper or longer than any settings.

    Raises:
        yaml.YAMLError: it is so, or is no YAML.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.AliasEvent):
            raise _found(f"alias *{event.anchor}: write it out", event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH or count > MOST_NODES:
            what = f"deeper than {MOST_DEPTH} levels" if depth > MOST_DEPTH else f"more than {MOST_NODES:,} values"
            raise _found(f"{what}: no settings of kuosan's", event)


def _check_numbers(value: Any) -> None:
    """Refuse whole numbers beyond 64 bits, which neither a setting nor a message can hold. Raises: ValueError."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(key)
            _check_numbers(inner)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            _check_numbers(inner)
    elif isinstance(value, int) and not -MOST_WHOLE <= value <= MOST_WHOLE:
        raise ValueError(f"a whole number of {value.bit_length():,} bits")


def dump(tree: Mapping[str, Any]) -> str:
    """A tree as YAML text, keys in their own order."""

    def written(plain_unicode: bool) -> str:
        text: str = yaml.dump(
            dict(tree), Dumper=_Writer, sort_keys=False, allow_unicode=plain_unicode, default_flow_style=None, width=120
        )
        return text

    text = written(True)
    # YAML reads these as line ends and folds them into spaces; PyYAML writes them as they are unless told to escape
    return written(False) if any(end in text for end in "\x85\u2028\u2029") else text


def load(path: Path) -> Tree:
    """The tree in a YAML file.

    Raises:
        Error: the file is missing, is not YAML, or holds no mapping.
    """
    try:
        return parse(read_regular(path).decode("utf-8"), path)
    except OSError as error:
        raise Error(f"cannot read the configuration {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise Error(f"{path} is not plain YAML: {error}") from None


def parse(text: str, path: Path) -> Tree:
    """The tree in a YAML file's text; `path` is for the message.

    Raises:
        Error: it is not plain YAML, or holds no mapping.
    """
    if len(text) > SMALL:
        raise Error(f"{path} has {len(text):,} characters, and settings {SMALL:,} at most: it is no configuration.")
    try:
        _check_events(text)
        tree = yaml.load(text, Loader=_Reader)  # noqa: S506 (a SafeLoader that takes less)
        _check_numbers(tree)
    except (
        yaml.YAMLError,
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise Error(f"{path} is not plain YAML: {escaped(' '.join(str(error).split()))[:500]}") from None
    if not isinstance(tree, dict):
        raise Error(f"{path} holds {type(tree).__name__}, not a mapping of keys to values.")
    return tree


def merge(*trees: Mapping[str, Any]) -> Tree:
    """The trees laid over each other, later ones first; a changed `kind` drops the settings of the old kind."""
    result: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            below = result.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                other_kind = "kind" in value and value["kind"] != below.get("kind", value["kind"])
                result[key] = dict(value) if other_kind else merge(below, value)
            else:
                result[key] = dict(value) if isinstance(value, Mapping) else value
    return result


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two trees, with both values (None where absent)."""
    flat_old, flat_new = dict(_flatten(old)), dict(_flatten(new))
    keys = list(dict.fromkeys([*flat_old, *flat_new]))
    return {key: (flat_old.get(key), flat_new.get(key)) for key in keys if flat_old.get(key) != flat_new.get(key)}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _value(annotation: Any, value: Any, key: str) -> Any:
    nested = dataclasses_in(annotation)
    if nested and dataclasses.is_dataclass(value) and isinstance(value, tuple(nested)):
        return value
    if nested and isinstance(value, Mapping):
        return _dataclass(_choose(nested, value, key), value, key, nested)
    if nested and not (value is None and types.NoneType in members(annotation)):
        raise Error(
            f"{key} = {shown(value)} is not allowed: it is a group of settings; write {key}.NAME, or a mapping."
        )
    return _leaf(annotation, value, key)


def _choose(members: list[type], tree: Mapping[str, Any], key: str) -> type:
    if len(members) == 1:
        return members[0]
    kinds = {get_args(hints(member)["kind"])[0]: member for member in members}
    kind = tree.get("kind", next(iter(kinds)))
    if not isinstance(kind, str) or kind not in kinds:
        elsewhere = [
            f" {shown(kind)} is a value of {key}.{name}."
            for member in members
            for name, annotation in hints(member).items()
            if get_origin(annotation) is Literal and kind in get_args(annotation)
        ]
        near = difflib.get_close_matches(shown(kind).strip("'"), kinds, n=1, cutoff=0.6)
        guess = f" Did you mean {near[0]}?" if near else ""
        raise Error(
            f"{key}.kind = {shown(kind)} is unknown; allowed: {', '.join(kinds)}.{guess}{''.join(elsewhere[:1])}"
        )
    return kinds[kind]


def _dataclass(cls: type, tree: Mapping[str, Any], key: str, members: list[type]) -> Any:
    types_of = hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    prefix = f"{key}." if key else ""
    for name in tree:
        if name not in names:
            near = difflib.get_close_matches(shown(name).strip("'"), names, n=1, cutoff=0.5)
            owners = [get_args(hints(other)["kind"])[0] for other in members if name in hints(other)]
            guess = f" Did you mean {prefix}{near[0]}?" if near else ""
            guess = f" It belongs to {key}.kind {' or '.join(owners)}: say that too." if owners else guess
            of_kind = f" (kind {shown(tree['kind'])[1:-1]})" if "kind" in tree else ""
            allowed = ", ".join(names)
            said = name if isinstance(name, str) and name.isidentifier() and len(name) < 60 else shown(name)
            raise Error(f"unknown key {prefix}{said}{of_kind}.{guess} Allowed under {key or 'the top'}: {allowed}.")
    given: dict[str, Any] = {}
    for name in names:
        if name in tree:
            try:
                given[name] = _value(types_of[name], tree[name], prefix + name)
            except _NotFinite as error:
                raise Error(f"{error}{_ranged(limits.allowed(cls, given, name))}.") from None
    required = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [prefix + name for name in required if name not in given]
    if missing:
        raise Error(f"{', '.join(missing)} must be given.")
    return cls(**given)


class _NotFinite(Error):
    """NaN or an infinity for a number."""


def _ranged(allowed: str) -> str:
    return f", {allowed}" if allowed else ""


@functools.cache
def _adapter(annotation: Any) -> Any:
    import pydantic

    return pydantic.TypeAdapter(annotation, config=pydantic.ConfigDict(allow_inf_nan=False))


def _leaf(annotation: Any, value: Any, key: str) -> Any:
    import pydantic

    if isinstance(value, bool) and not is_bool(annotation):  # pydantic would read true as 1
        raise Error(f"{key} = {str(value).lower()} is not allowed: expected {type_text(annotation)}.")
    if value == "none" and types.NoneType in members(annotation):
        return None
    try:
        return _adapter(annotation).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
        if any(each["type"] == "finite_number" for each in error.errors()):
            raise _NotFinite(f"{key}{where} = {shown(value)} is not allowed: a finite number") from None
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise Error(
            f"{key}{where} = {shown(value)} is not allowed: {reason} (expected {type_text(annotation)})."
        ) from None
    except (OverflowError, ValueError, RecursionError):  # a number that no float holds, text that no UTF-8 does
        raise Error(f"{key} = {shown(value)} is not allowed: expected {type_text(annotation)}.") from None
