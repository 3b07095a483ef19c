"""The verbs of `kuosan VERB ...`, which load when they are called; bad flags and --help are answered without torch."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Sequence

import cyclopts
from cyclopts import App

import kuosan
from kuosan.cli.console import ReaderGone, standing
from kuosan.errors import Error, Terminated, is_out_of_memory, sentence
from kuosan.files import reason

app = App(
    name="kuosan",
    help="Diffusion models on your own pictures: train, resume, sample, evaluate.",
    version=kuosan.__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `ended` says that it stopped
)
app.command("kuosan.cli.train:train", name="train", help="Train a model on pictures, or go on with a run.")
app.command("kuosan.cli.sample:sample", name="sample", help="Make pictures with a trained model.")
app.command("kuosan.cli.evaluate:evaluate", name="evaluate", help="Measure how good a model's pictures are.")
app.command("kuosan.cli.invert:invert", name="invert", help="Encode pictures to noise and decode them again.")
app.command("kuosan.cli.restore:restore", name="restore", help="Fill holes, enlarge, deblur or colour pictures.")
app.command("kuosan.cli.compare:compare", name="compare", help="Measure how well models restore damaged pictures.")
app.command(
    "kuosan.cli.reconstruct:reconstruct", name="reconstruct", help="Measure how an autoencoder gives pictures back."
)
app.command("kuosan.cli.export:export", name="export", help="Write a trained model as one folder to hand on.")
app.command("kuosan.cli.doctor:doctor", name="doctor", help="Say what of a folder would be used, and why not the rest.")
app.command(
    "kuosan.cli.demo:demo", name="demo", help="Train on built-in portraits for a few minutes and show everything."
)


# Verbs whose work is more than what they print: they go on where nobody reads, or nothing can be written.
WORKING = ("train", "sample", "evaluate", "invert", "restore", "compare", "reconstruct", "export", "demo")
BRIEF = frozenset(("--help", "-h", "--version", "--dry-run"))
FILES = 256  # open files that a verb may need


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
        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        if list(words[:1]) in (["train"], ["evaluate"]) and not {"--help", "-h"}.isdisjoint(words):
            from kuosan.cli import settings

            settings.show(words[0])
    except cyclopts.UnusedCliTokensError as error:
        extra = " ".join(error.unused_tokens or ())
        return _say_error(f"{extra!r} is more than `kuosan {words[0]}` takes; see --help.")
    except cyclopts.CycloptsError as error:
        return _say_error(" ".join(sentence(error).split()))
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
            f"out of memory: {' '.join(str(error).split())[:200]} Compute fewer pictures at once "
            "(train: --micro-batch 8; sample and evaluate: --batch 4), or use a smaller --network or --size.",
            71,  # sysexits' EX_OSERR
        )
    except KeyboardInterrupt as error:
        print("kuosan: stopped.", file=sys.stderr)
        return 128 + error.number if isinstance(error, Terminated) else 130
    return code if isinstance(code, int) else 0


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
