"""What a user can cause: one exception, its common sentences, and values as a terminal may show them.

An `Error` names the thing, its value, what is allowed, and the cure. The shell prints it without a traceback;
anything else that is raised is a bug in kuosan.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from shlex import quote

SHOWN = 120  # characters of a value in a message
MOST = 4000  # characters of a message in the shell
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})  # controls, formats (bidi, zero width), surrogates, line ends
# What torch and the libraries below it say of memory in a RuntimeError of no kind of its own.
_NO_MEMORY = (
    "can't allocate memory",  # DefaultCPUAllocator
    "not enough memory",  # the same on Windows
    "out of memory",  # CUDA, HIP, MPS, XPU
    "alloc_failed",  # cuBLAS, cuDNN, cuSOLVER
    "std::bad_alloc",
    "cannot allocate memory",
)


# The full stop of a sentence behind that of what it quotes, a library's reason say; in a path, `..` is another thing.
_DOUBLED = re.compile(r"(?<=[^\s./\\])\.\.(?=\s|$)")


class Error(Exception):
    """A mistake the caller can mend; `str(error)` says how.

    `exit_code` is what the shell exits with: 2 for wrong input, 71 (sysexits' EX_OSERR) out of memory, 74 (EX_IOERR)
    when saving gave up, 75 (EX_TEMPFAIL) when another process of a run was lost.
    """

    exit_code = 2

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(_DOUBLED.sub(".", message))
        if exit_code is not None:
            self.exit_code = exit_code


def check_system() -> None:
    """Raises: Error on Windows, whose files can be neither locked nor replaced as runs need it."""
    if os.name == "nt":
        raise Error(
            "kuosan does not run on Windows itself: runs are locked, saved and replaced by POSIX calls. Install it "
            "inside WSL 2 (wsl --install), where it is on Linux, GPUs included."
        )


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came to a verb of the shell: it stops as by Ctrl-C, and exits with 143 or 129."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


def unknown(thing: str, value: object, allowed: Iterable[str]) -> Error:
    """An `Error` for a name that is not one of `allowed`, with the nearest of them.

    `raise unknown("sampler", "dimm", SAMPLERS)` says: unknown sampler 'dimm': did you mean 'ddim'? Allowed: ...
    """
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    guess = f": did you mean {near[0]!r}?" if near else "."
    return Error(f"unknown {thing} {shown(value)}{guess} Allowed: {', '.join(names)}.")


def shown(value: object, most: int = SHOWN) -> str:
    """A value as Python writes it, in printable characters and `most` of them: its start and its end."""
    try:
        text = repr(
            value if not isinstance(value, str) or len(value) <= 4 * most else value[: 2 * most] + value[-most:]
        )
    except ValueError:  # an integer of more digits than Python writes
        text = f"an integer of {value.bit_length():,} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 23]}... {text[-19:]}"


def setting(value: object) -> str:
    """A setting's value in a message that compares two of them; `no value` where it is not set."""
    return "no value" if value is None else shown(value)


def escaped(text: str) -> str:
    r"""A text as a terminal may print it: control characters, bidirectional overrides and zero widths as \x1b, \u202e.

    A line end stays where two spaces follow, as in kuosan's own lists; one in a file's name is written as \n.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_printable, re.split(r"(\n(?=  )|\n\Z)", text)))


def _printable(part: str) -> str:
    if part == "\n":
        return part
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _UNSAFE else char for char in part
    )


def pip_install(what: str) -> str:
    """The command that installs `what` into the Python that runs this: by its own pip, else its module, else uv."""
    folder = Path(sys.executable).parent
    pip, python = (_from_here(folder / name) for name in ("pip", Path(sys.executable).name))
    if (folder / "pip").is_file():
        return f"{pip} install {what}"
    return f"{python} -m pip install {what}" if find_spec("pip") else f"uv pip install --python {python} {what}"


def _from_here(path: Path) -> str:
    """A path as it is shortest to type from the working folder."""
    here = Path.cwd()
    return quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


_VERBS = {"is": "are", "was": "were", "has": "have"}


def plural(count: int, noun: str, verb: str = "", *, of: int | None = None) -> str:
    """A count with its noun, and its verb: `1 image is`, `5,551 images are`, `1 of 3 images has`."""
    text = f"{count:,} of {of:,}" if of is not None else f"{count:,}"
    if (count if of is None else of) != 1:
        noun = " or ".join(map(_of_many, noun.split(" or ")))
    return f"{text} {noun}{verb and ' '}{verb if count == 1 else _VERBS.get(verb, verb.removesuffix('s'))}"


def _of_many(noun: str) -> str:
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def sentence(error: BaseException) -> str:
    """An error's message as the shell prints it: printable, its middle left out where it is very long."""
    text = escaped(str(error))
    return text if len(text) <= MOST else f"{text[: MOST - 1000]} ... {text[-990:]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, a CPU or a GPU allocator, or the system gave up; torch is asked only if it is loaded."""
    if isinstance(error, Error):
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    gpu = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    text = str(error).lower()
    return isinstance(error, MemoryError | gpu) or (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    )
