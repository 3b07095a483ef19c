"""The leaves of a configuration class as options: what each is called, takes and means, and reading them from a shell.

One override syntax everywhere: `--key value`, nested by dots (`--model.network.channels 64`), lists by repetition.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from kuosan.errors import Error

Tree = dict[str, Any]
ELSEWHERE = {  # what other tools call an option, and which of ours is meant
    "learning_rate": "lr",
    "epochs": "max_steps",
    "num_epochs": "max_steps",
    "resolution": "size",
    "image_size": "size",
    "output": "out",
    "output_dir": "out",
}


@dataclasses.dataclass(frozen=True)
class Option:
    """One leaf of a configuration: its dotted key, type, default (or MISSING) and the line that documents it."""

    key: str
    type: Any
    default: Any
    doc: str

    @property
    def type_text(self) -> str:
        """The type as a reader wants it: `int`, `linear|cosine`, `list of bool`."""
        return type_text(self.type)

    @property
    def default_text(self) -> str:
        """The default as one would type it; empty where there is none."""
        if self.default is dataclasses.MISSING or self.default is None:
            return ""
        if isinstance(self.default, tuple | list):
            return ",".join(_typed(value) for value in self.default)
        return _typed(self.default)


def options(cls: type) -> dict[str, Option]:
    """Every leaf of a configuration class by its dotted key, in the order of definition; a union gives all kinds.

    A field with metadata {"option": False} is filled in by kuosan, and is none.
    """
    return {option.key: option for option in _walk(cls, "")}


def parse(
    tokens: Sequence[str], cls: type, short: Mapping[str, str] | None = None, others: Collection[str] = ()
) -> tuple[Tree, list[str]]:
    """`["--model.network.channels", "64", ...]` as a tree, and the words that belong to no option.

    A key may be given by its last parts where that is unambiguous (`--max-steps` for `train.max_steps`), with `-` for
    `_`. Lists are given by repetition or with commas; a bare `--flag` is true and `--no-flag` false.

    Args:
        short: names that win over the search, short -> dotted.
        others: further options of the verb, which others read: an unknown one may be meant as one of them.

    Raises:
        Error: an unknown or ambiguous key, or a key without a value.
    """
    known = options(cls)
    tree: Tree = {}
    words: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("-"):
            words.append(token)
            continue
        if not _is_key(token):
            raise Error(f"{token!r} is no option; options are written --key value.")
        name, equals, attached = token[2:].partition("=")
        if equals and not attached:
            raise Error(f"--{name}= has no value behind the equals sign.")
        key, negated = _resolve(name, known, short or {}, others)
        option = known[key]
        if is_bool(option.type):
            follows = bool(rest) and rest[0].lower() in _BOOLEANS and not attached and not negated
            value: Any = attached or (rest.pop(0) if follows else "true")
            value = boolean(key, value) is not negated
        elif attached or (rest and not _is_key(rest[0])):
            value = attached or rest.pop(0)
        else:
            raise Error(f"--{name} needs a value ({option.type_text}).")
        _put(tree, key, value, repeated=is_list(option.type))
    return tree, words


def words(key: str, value: Any) -> list[str]:
    """A key and its Python value as the tokens that `parse` reads back."""
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{key}={_typed(item)}" for item in values]


def _typed(value: Any) -> str:
    """A value as one types it in a shell."""
    return str(value).lower() if isinstance(value, bool | None) else str(value)


_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _is_key(token: str) -> bool:
    return token.startswith("--") and len(token) > 2 and not token[2].isdigit()


def boolean(key: str, text: str) -> bool:
    """Yes or no as a person writes it. Raises: Error."""
    if text.lower() not in _BOOLEANS:
        raise Error(f"{key} = {text!r} is not a yes or no; allowed: true, false.")
    return _BOOLEANS[text.lower()]


def _resolve(
    name: str, known: Mapping[str, Option], short: Mapping[str, str], others: Collection[str] = ()
) -> tuple[str, bool]:
    wanted = name.replace("-", "_")
    for candidate, negated in ((wanted, False), (wanted.removeprefix("no_"), True)):
        if negated and candidate == wanted:
            continue
        found = [short[candidate]] if candidate in short else [candidate] if candidate in known else []
        found = found or [key for key in known if key.endswith("." + candidate)]
        if negated:
            found = [key for key in found if is_bool(known[key].type)]
        if len(found) > 1:
            raise Error(
                f"--{name} could be any of {', '.join('--' + key for key in found)}; write one of them in full."
            )
        if found:
            return found[0], negated
    tails = {key.rsplit(".", 1)[-1]: key for key in known}
    names = {each.replace("-", "_"): each for each in [*others, *short, *tails, *known]}
    near = [ELSEWHERE[wanted]] if ELSEWHERE.get(wanted) in names else []
    near = near or difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(wanted.rpartition(".")[2], names, n=1, cutoff=0.6)
    guess = f" Did you mean --{names[near[0]].replace('_', '-')}?" if near else ""
    raise Error(f"unknown option --{name}.{guess} `--help` lists all options.")


def _put(tree: Tree, key: str, value: Any, repeated: bool) -> None:
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
    if repeated:
        parts = [part for part in value.split(",") if part]
        tree[last] = [*tree.get(last, []), *parts]
    elif last in tree:
        raise Error(f"--{key} is given twice: {tree[last]} and {value}.")
    else:
        tree[last] = value


@functools.cache
def hints(cls: type) -> Mapping[str, Any]:
    """The types of a configuration class's fields; evaluating their text takes longer than all else of a reading."""
    return typing.get_type_hints(cls)


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def dataclasses_in(annotation: Any) -> list[type]:
    return [member for member in members(annotation) if isinstance(member, type) and dataclasses.is_dataclass(member)]


def is_bool(annotation: Any) -> bool:
    return bool in members(annotation)


def is_list(annotation: Any) -> bool:
    return any(get_origin(member) in (tuple, list) for member in members(annotation))


def type_text(annotation: Any) -> str:
    names = []
    for member in members(annotation):
        if get_origin(member) is Literal:
            names.append("|".join(str(choice) for choice in get_args(member)))
        elif get_origin(member) in (tuple, list):
            inner = [item for item in get_args(member) if item is not Ellipsis]
            names.append("list of " + "/".join(dict.fromkeys(type_text(item) for item in inner)))
        elif member is types.NoneType:
            continue
        else:
            names.append({"str": "text", "Path": "path"}.get(member.__name__, member.__name__))
    return "|".join(names)


def _walk(cls: type, prefix: str) -> Iterator[Option]:
    docs, seen = field_docs(cls), set()
    for field in dataclasses.fields(cls):
        annotation = hints(cls)[field.name]
        nested = dataclasses_in(annotation)
        if not field.metadata.get("option", True):  # filled in by kuosan, never typed
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if not nested:
            yield Option(prefix + field.name, annotation, default, docs.get(field.name, ""))
            continue
        kinds = [get_args(hints(member)["kind"])[0] for member in nested if "kind" in hints(member)]
        if len(nested) > 1:
            kind = getattr(default, "kind", None)
            yield Option(f"{prefix}{field.name}.kind", Literal[tuple(kinds)], kind, docs.get(field.name, ""))
        for member in nested:
            for option in _walk(member, f"{prefix}{field.name}."):
                if not option.key.endswith(f"{field.name}.kind") and option.key not in seen:
                    seen.add(option.key)
                    yield option


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """What documents each field of a dataclass: its line under `Attributes:`, or the comment behind it."""
    docs = _attribute_docs(inspect.getdoc(cls) or "")
    for parent in cls.__mro__[1:]:
        if dataclasses.is_dataclass(parent):
            docs = {**field_docs(parent), **docs}
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # defined where no file is
        return docs
    lines, body = source.splitlines(), ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :].partition("#")[2].strip()
            docs.setdefault(node.target.id, comment)
    return docs


def _attribute_docs(docstring: str) -> dict[str, str]:
    section = docstring.partition("Attributes:\n")[2]
    docs: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if not line.strip() or not line.startswith("    "):
            break
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
        docs[name] = f"{docs.get(name, '')} {start[2] if start else line.strip()}".strip()
    return docs
