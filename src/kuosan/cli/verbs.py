"""The verbs of `kuosan VERB ...`, which load when they are called; bad flags and --help are answered without torch."""

from __future__ import annotations

import contextlib
import difflib
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

import kuosan
from kuosan import options
from kuosan.cli.console import ReaderGone, console, standing
from kuosan.errors import Error, Terminated, is_out_of_memory, sentence
from kuosan.options import Option
from kuosan.storage.files import reason
from kuosan.train.config import GIVEN, RunConfig

VERBS = {  # each a module of this room, with its `VERB`
    "train": "Train a model on images, or go on with a run.",
    "sample": "Make images with a trained model.",
    "evaluate": "Measure how good a model's images are.",
    "restore": "Fill holes, enlarge, deblur or colour images.",
    "invert": "Encode images to noise and decode them again.",
    "compare": "Measure how well models restore damaged images.",
    "reconstruct": "Measure how an autoencoder gives images back.",
    "export": "Write a trained model as one folder to hand on.",
    "convert": "Write a Stable Diffusion checkpoint in another layout.",
    "doctor": "Say what of a folder would be used, and why not the rest.",
    "demo": "Train on built-in portraits for a few minutes and show everything.",
}
# Verbs whose work is more than what they print: they go on where nobody reads, or nothing can be written.
WORKING = tuple(name for name in VERBS if name != "doctor")
BRIEF = frozenset(("--help", "--help-all", "-h", "--version", "--dry-run"))
FILES = 256  # open files that a verb may need


def groups() -> dict[str, list[Option]]:
    """The settings of a run by their group: data, model, model.network, model.schedule, train, compute.

    Their defaults are those of a new run of a diffusion model.
    """
    found: dict[str, list[Option]] = {}
    for option in options.options(RunConfig).values():
        option = replace(option, default=GIVEN.get(option.key, option.default))
        group, _, name = option.key.rpartition(".")
        group = option.key.removesuffix(".kind") if name == "kind" else group
        found.setdefault(group, []).append(option)
    return dict(sorted(found.items(), key=lambda item: _ORDER.index(item[0].partition(".")[0])))


_ORDER = ("data", "model", "train", "compute")


def ended(words: Sequence[str]) -> int:
    """Run one command; its exit code, once what is wrong was said: a user's mistake is one clear line and code 2."""
    brief = words[:1] == [] or words[0] not in WORKING or not BRIEF.isdisjoint(words)
    try:
        with standing(brief=brief):
            return _ended(words)
    except ReaderGone:
        return 141  # 128 + SIGPIPE
    except Error as error:  # of the very last line that was printed
        with standing(brief=False):
            return _say_error(str(error), error.exit_code)


def _ended(words: Sequence[str]) -> int:
    """The exit code of a command, once what is wrong was said."""
    try:
        if BRIEF.isdisjoint(words):
            _check_process()
        code = _run(words)
    except Error as error:
        return _say_error(sentence(error), error.exit_code)
    except (OSError, ImportError) as error:
        if (reason := _of_the_system(error)) is None:
            raise
        return _say_error(reason, 74)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _say_error(
            f"out of memory: {' '.join(str(error).split())[:200]} Compute fewer images at once "
            "(train: --micro-batch 8; sample and evaluate: --batch 4), or use a smaller --network or --size.",
            71,  # sysexits' EX_OSERR
        )
    except KeyboardInterrupt as error:
        print("kuosan: stopped.", file=sys.stderr)
        return 128 + error.number if isinstance(error, Terminated) else 130
    return code if isinstance(code, int) else 0


def _run(words: Sequence[str]) -> int | None:
    """One verb, or what is known of all."""
    name = words[0] if words else "--help"
    if name == "help" and len(words) > 1:  # `kuosan help VERB` is `kuosan VERB --help`
        name, words = words[1], [*words[1:], "--help"]
    if name in ("--help", "-h", "help"):
        _show()
        return 0
    if name == "--version":
        console.print(kuosan.__version__, markup=False)
        return 0
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.5)
        guess = f" Did you mean {near[0]}?" if near else ""
        raise Error(f"unknown verb {name!r}.{guess} Verbs: {', '.join(VERBS)}.")
    code: int | None = import_module(f"kuosan.cli.{name}").VERB(words[1:])
    return code


def _show() -> None:
    """What `kuosan` alone prints."""
    lines = ["kuosan VERB [OPTIONS]", "", "Diffusion models on your own images: train, resume, sample, evaluate.", ""]
    lines += [f"  {name:12} {text}" for name, text in VERBS.items()]
    for line in [*lines, "", "kuosan VERB --help lists a verb's options; kuosan --version says which this is."]:
        console.print(line, markup=False)


def _say_error(text: str, code: int = 2) -> int:
    """The exit code, after one line on standard error."""
    print(f"kuosan: error: {text}", file=sys.stderr)
    return code


def _check_process() -> None:
    """Refuse a working folder that is gone, and raise a limit of open files that is low and may be raised.

    Raises:
        Error: with the cure.
    """
    try:
        os.getcwd()
    except OSError:
        raise Error("the folder this command was started in is gone: `cd` to one that is there.") from None
    with contextlib.suppress(OSError, ValueError):
        allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= allowed < FILES:  # less than 0: no limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if most < 0 else min(FILES, most), most))


def _of_the_system(error: OSError | ImportError) -> str | None:
    """What the operating system refused, in a sentence; None where something else is wrong."""
    if isinstance(error, ImportError):
        full = "Too many open files" in str(error)
        return "too many files are open at once: raise the limit with `ulimit -n 1024`." if full else None
    if not isinstance(error.errno, int):
        return None
    cause, cure = reason(error)
    name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{name}{cause}; {cure}."
