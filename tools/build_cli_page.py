"""Writes docs/cli.md: every verb's flags from its signature and docstring, every setting from its dataclass.

Command: python tools/build_cli_page.py; tests/test_docs.py fails while the page is not what this writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kuosan.cli import compare, convert, demo, doctor, evaluate, export, invert, reconstruct, restore, sample, train
from kuosan.cli import verbs as settings
from kuosan.cli.flags import Verb
from kuosan.options import Option

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"

VERBS = (train, sample, evaluate, restore, invert, compare, reconstruct, export, convert, doctor, demo)

HEAD = """\
# The shell

*Written by `tools/build_cli_page.py` from the code; change it there.*

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
    verbs = "\n".join(converted(each.VERB) for each in VERBS)
    return f"{HEAD}\n{verbs}\n{SETTINGS}\n" + "\n".join(group(name) for name in settings.groups())


def converted(verb: Verb) -> str:
    """One verb: what it does, and a table of its options. Raises: KeyError for one without documentation."""
    for option in verb.options():
        if not option.doc.strip():
            raise KeyError(option.key)
    rows = [
        "| "
        + " | ".join(cell.replace("|", "\\|") for cell in (f"`{flag(verb, option)}`", code(shown(option)), option.doc))
        + " |"
        for option in verb.options()
        if not verb.first or "." not in option.key  # the settings of a run have tables of their own
    ]
    usage = " ".join(filter(None, ("kuosan", verb.name, verb.usage, "[OPTIONS]")))
    return (
        f"## kuosan {verb.name}\n\n`{usage}`\n\n{verb.text}\n\n| option | default | meaning |\n|---|---|---|\n"
        + "\n".join([*rows, ""])
    )


def flag(verb: Verb, option: Option) -> str:
    """An option's names, with the type of its value; the other names in brackets."""
    names = verb.flag(option)
    return names if option.type is bool else f"{names} {option.type_text}"


def shown(option: Option) -> str:
    """Its default, where there is one to speak of."""
    return "" if option.default_text == "false" else option.default_text


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
