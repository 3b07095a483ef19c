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

from kuosan.errors import Error
from kuosan.options import Tree as Tree
from kuosan.options import dataclasses_in, hints, is_bool, members, type_text

T = TypeVar("T")


def build(cls: type[T], tree: Mapping[str, Any]) -> T:
    """The dataclass `cls` from a plain tree of dicts, lists and numbers.

    Raises:
        Error: an unknown key, a missing one, a value of the wrong type, or one that a dataclass's own check refuses.
    """
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


class _Reader(yaml.SafeLoader):
    """Plain YAML without aliases, by which a page can stand for gigabytes, and without a key given twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"alias *{event.anchor}: write it out", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


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
        return parse(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise Error(f"cannot read the configuration {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise Error(f"{path} is not plain YAML: {error}") from None


def parse(text: str, path: Path) -> Tree:
    """The tree in a YAML file's text; `path` is for the message.

    Raises:
        Error: it is not plain YAML, or holds no mapping.
    """
    try:
        tree = yaml.load(text, Loader=_Reader)  # noqa: S506 (a SafeLoader that takes less)
    except (yaml.YAMLError, RecursionError) as error:
        raise Error(f"{path} is not plain YAML: {' '.join(str(error).split())}") from None
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
        raise Error(f"{key} = {value!r} is not allowed: it is a group of settings; write {key}.NAME, or a mapping.")
    return _leaf(annotation, value, key)


def _choose(members: list[type], tree: Mapping[str, Any], key: str) -> type:
    if len(members) == 1:
        return members[0]
    kinds = {get_args(hints(member)["kind"])[0]: member for member in members}
    kind = tree.get("kind", next(iter(kinds)))
    if not isinstance(kind, str) or kind not in kinds:
        elsewhere = [
            f" {kind!r} is a value of {key}.{name}."
            for member in members
            for name, annotation in hints(member).items()
            if get_origin(annotation) is Literal and kind in get_args(annotation)
        ]
        near = difflib.get_close_matches(str(kind), kinds, n=1, cutoff=0.6)
        guess = f" Did you mean {near[0]}?" if near else ""
        raise Error(f"{key}.kind = {kind!r} is unknown; allowed: {', '.join(kinds)}.{guess}{''.join(elsewhere[:1])}")
    return kinds[kind]


def _dataclass(cls: type, tree: Mapping[str, Any], key: str, members: list[type]) -> Any:
    types_of = hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    prefix = f"{key}." if key else ""
    for name in tree:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
            owners = [get_args(hints(other)["kind"])[0] for other in members if name in hints(other)]
            guess = f" Did you mean {prefix}{near[0]}?" if near else ""
            guess = f" It belongs to {key}.kind {' or '.join(owners)}: say that too." if owners else guess
            of_kind = f" (kind {tree['kind']})" if "kind" in tree else ""
            allowed = ", ".join(names)
            raise Error(f"unknown key {prefix}{name}{of_kind}.{guess} Allowed under {key or 'the top'}: {allowed}.")
    given = {name: _value(types_of[name], tree[name], prefix + name) for name in names if name in tree}
    required = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [prefix + name for name in required if name not in given]
    if missing:
        raise Error(f"{', '.join(missing)} must be given.")
    return cls(**given)


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
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise Error(f"{key}{where} = {value!r} is not allowed: {reason} (expected {type_text(annotation)}).") from None
