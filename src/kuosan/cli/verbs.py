"""Every setting of a run, as `kuosan train --help` and docs/cli.md list them. Torch-free.

The verbs of `kuosan VERB ...`, which load when they are called; bad flags and --help are answered without torch.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import replace

import cyclopts
from cyclopts import App
from rich.panel import Panel
from rich.table import Table

import kuosan
from kuosan import options
from kuosan.cli.console import ReaderGone, console, standing
from kuosan.errors import Error, Terminated, is_out_of_memory, sentence
from kuosan.options import Option
from kuosan.storage.files import reason
from kuosan.train.config import RunConfig
from kuosan.train.defaults import GIVEN


def groups() -> dict[str, list[Option]]:
    """The settings by their group: data, model, model.network, model.schedule, train, compute.

    Their defaults are those of a new run of a diffusion model.
    """
    found: dict[str, list[Option]] = {}
    for option in options.options(RunConfig).values():
        option = replace(option, default=GIVEN.get(option.key, option.default))
        group, _, name = option.key.rpartition(".")
        group = option.key.removesuffix(".kind") if name == "kind" else group
        found.setdefault(group, []).append(option)
    return dict(sorted(found.items(), key=lambda item: _ORDER.index(item[0].partition(".")[0])))


def show(verb: str = "train") -> None:
    """Print every setting of a verb with its type, default and meaning."""
    where = "in a YAML file or as --key value" if verb == "train" else "as --key value"
    console.print(f"Every setting, {where}; the last part of a key is enough where it is unique.\n")
    for group, members in (groups() if verb == "train" else evaluate_groups()).items():
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column()
        for option in members:
            default = f" [default: {option.default_text}]" if option.default_text else ""
            kind = (
                f" ({option.type_text})" if len(option.type_text) <= 30 else f" ({option.type_text.split('|')[0]}|...)"
            )
            table.add_row(f"--{option.name}", _plain(f"{option.doc}{kind}{default}"))
        console.print(Panel(table, title=group, title_align="left"), soft_wrap=False)


def evaluate_groups() -> dict[str, list[Option]]:
    """The settings of `kuosan evaluate` by their group."""
    from kuosan.cli.evaluate import settings

    found: dict[str, list[Option]] = {}
    for option in settings():
        found.setdefault(option.key.rpartition(".")[0] or "evaluate", []).append(option)
    return found


_ORDER = ("data", "model", "train", "compute")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


app = App(
    name="kuosan",
    help="Diffusion models on your own images: train, resume, sample, evaluate.",
    version=kuosan.__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `ended` says that it stopped
)
app.command("kuosan.cli.train:train", name="train", help="Train a model on images, or go on with a run.")
app.command("kuosan.cli.sample:sample", name="sample", help="Make images with a trained model.")
app.command("kuosan.cli.evaluate:evaluate", name="evaluate", help="Measure how good a model's images are.")
app.command("kuosan.cli.invert:invert", name="invert", help="Encode images to noise and decode them again.")
app.command("kuosan.cli.restore:restore", name="restore", help="Fill holes, enlarge, deblur or colour images.")
app.command("kuosan.cli.compare:compare", name="compare", help="Measure how well models restore damaged images.")
app.command(
    "kuosan.cli.reconstruct:reconstruct", name="reconstruct", help="Measure how an autoencoder gives images back."
)
app.command("kuosan.cli.export:export", name="export", help="Write a trained model as one folder to hand on.")
app.command("kuosan.cli.doctor:doctor", name="doctor", help="Say what of a folder would be used, and why not the rest.")
app.command(
    "kuosan.cli.demo:demo", name="demo", help="Train on built-in portraits for a few minutes and show everything."
)


# Verbs whose work is more than what they print: they go on where nobody reads, or nothing can be written.
WORKING = ("train", "sample", "evaluate", "invert", "restore", "compare", "reconstruct", "export", "demo")
BRIEF = frozenset(("--help", "--help-all", "-h", "--version", "--dry-run"))
CONVERTED = {name: f"kuosan.cli.{name}" for name in ("doctor", "export", "train", "demo")}  # verbs that are jobs
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
        if words and words[0] in CONVERTED:
            code = importlib.import_module(CONVERTED[words[0]]).VERB(words[1:])
            return code if isinstance(code, int) else 0
        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        if list(words[:1]) == ["evaluate"] and not {"--help", "-h"}.isdisjoint(words):
            show(words[0])
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
            f"out of memory: {' '.join(str(error).split())[:200]} Compute fewer images at once "
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
