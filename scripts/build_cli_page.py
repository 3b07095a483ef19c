"""Writes docs/cli.md: every verb's flags from its signature and docstring, every setting from its dataclass.

Command: python scripts/build_cli_page.py; tests/test_docs.py fails while the page is not what this writes.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from cyclopts import Parameter

from kuosan.cli import compare, demo, doctor, evaluate, export, invert, reconstruct, restore, sample, train
from kuosan.cli import verbs as settings
from kuosan.cli.flags import Verb
from kuosan.options import Option, is_bool, members, type_text

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"

VERBS: dict[str, tuple[str, Callable[..., Any] | Verb]] = {
    "train": (train.VERB.usage, train.VERB),
    "sample": ("RUN [OPTIONS]", sample.sample),
    "evaluate": ("TARGET [OPTIONS] [--SETTING VALUE ...]", evaluate.evaluate),
    "restore": ("RUN IMAGE [IMAGE ...] [OPTIONS]", restore.restore),
    "invert": ("RUN IMAGE [IMAGE ...] [OPTIONS]", invert.invert),
    "compare": ("IMAGES --with RUN[:METHOD][,KEY=VALUE...] [--with ...] [OPTIONS]", compare.compare),
    "reconstruct": ("RUN [IMAGES] [OPTIONS]", reconstruct.reconstruct),
    "export": (export.VERB.usage, export.VERB),
    "doctor": (doctor.VERB.usage, doctor.VERB),
    "demo": (demo.VERB.usage, demo.VERB),
}

HEAD = """\
# The shell

*Written by `scripts/build_cli_page.py` from the code; change it there.*

`kuosan --help` and `kuosan VERB --help` say the same, shorter. An option is `--key value` or `--key=value`. A mistake
is one message on the error channel that names the thing, its value, what is allowed and the cure.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | `doctor` found nothing to train on |
| 2 | wrong input |
| 70 | training diverged, again and again |
| 71 | out of memory, with one image at once too |
| 74 | a file could not be written; what was saved before is whole |
| 75 | another process of this training was stopped or lost, and is named; the same command goes on from the last save |
| 130, 143, 129 | stopped by Ctrl-C, SIGTERM, SIGHUP; `train` and `evaluate` have saved, and the same command goes on |
"""

SETTINGS = """\
## Settings

What `train` takes as `--key value`, a YAML file (`--config FILE`) as nested keys, and `kuosan.fit` as keywords. The
last part of a key is enough where it is unique: `--max-steps 5000` is `--train.max_steps 5000`; `--size`, `--channels`
and `--schedule` are `data.size`, `data.channels` and `model.schedule.kind`. Lists are given by repetition or with
commas; a bare `--flag` is true, `--no-flag` false; `none` unsets. Unknown keys, wrong types and impossible combinations
are refused.

The network's fields are filled in from the images' size and `--network`, the prediction from the schedule; what is
given wins. A schedule's settings belong to its kind, named in front of each.
"""


def page() -> str:
    """The whole page."""
    verbs = "\n".join(verb(name, usage, function) for name, (usage, function) in VERBS.items())
    return f"{HEAD}\n{verbs}\n{SETTINGS}\n" + "\n".join(group(name) for name in settings.groups())


def verb(name: str, usage: str, function: Callable[..., Any] | Verb) -> str:
    """One verb: what it does, and a table of its flags."""
    if isinstance(function, Verb):
        listed = [each for each in function.options() if not function.first or "." not in each.key]
        text, rows = function.text, [row(function, option) for option in listed]
    else:
        text, docs = docstring(function)
        rows = [f"| {flag} | {default} | {doc} |" for flag, default, doc in flags(function, docs)]
    if name == "evaluate":
        rows += [setting(option) for option in evaluate.settings()]
    return (
        f"## kuosan {name}\n\n`kuosan {name} {usage}`\n\n{text}\n\n| option | default | meaning |\n|---|---|---|\n"
        + "\n".join([*rows, ""])
    )


def row(verb: Verb, option: Option) -> str:
    """An option of a verb that is a job, as a row."""
    names = verb.flag(option)
    typed = names if is_bool(option.type) else f"{names} {option.type_text}"
    default = "" if option.default_text == "false" else code(option.default_text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{typed}`", default, option.doc)) + " |"


def setting(option: Option) -> str:
    """A setting of `evaluate` as a row: by the last part of its key, or the short name that a person says."""
    name = {"request.classes": "class"}.get(option.key, option.name.rpartition(".")[2].replace("_", "-"))
    flag = f"--{name}" if option.type is bool else f"--{name} {option.type_text}"
    return (
        "| "
        + " | ".join(cell.replace("|", "\\|") for cell in (f"`{flag}`", code(option.default_text), option.doc))
        + " |"
    )


def flags(function: Callable[..., Any], docs: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Flag, default and meaning of every parameter. Raises: KeyError for one without documentation."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = hints[name]
        shown = [item for item in get_args(annotation)[1:] if isinstance(item, Parameter) and item.name]
        bare = get_args(annotation)[0] if get_origin(annotation) is typing.Annotated else annotation
        kind = type_text(typing.Union[tuple(strip(member) for member in members(bare))])  # noqa: UP007
        positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        names = [str(alias) for item in shown for alias in item.name or ()] or [f"--{name.replace('_', '-')}"]
        flag = name.upper() if positional else ", ".join(names)
        silent = parameter.default is None or parameter.default is False or parameter.default is inspect.Parameter.empty
        default = "" if silent else str(parameter.default).lower()
        if parameter.default is True:
            names.append(f"--no-{name}")
        value = "" if kind == "bool" or positional else f" {kind}"
        yield f"`{flag}{value}`".replace("|", "\\|"), f"`{default}`" if default else "", docs[name]


def strip(annotation: Any) -> Any:
    """A type without what cyclopts is told about it."""
    return get_args(annotation)[0] if get_origin(annotation) is typing.Annotated else annotation


def docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The text before `Parameters`, and each parameter's words."""
    text, _, section = (inspect.getdoc(function) or "").partition("Parameters\n----------\n")
    found = re.findall(r"^(\w+)\n((?:    .*\n?)+)", section, flags=re.MULTILINE)
    return text.strip(), {name: " ".join(words.split()) for name, words in found}


def group(name: str) -> str:
    """One group of settings as a table."""
    rows = [
        f"| `{option.name}` | {option.type_text.replace('|', ', ')} | {code(option.default_text)} | {option.doc} |"
        for option in settings.groups()[name]
    ]
    return f"### {name}\n\n| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join([*rows, ""])


def code(text: str) -> str:
    """Text in code style; nothing for nothing."""
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
