"""What a user can cause: one exception, and the two sentences it is usually made of.

An `Error` names the thing, its value, what is allowed, and the cure. The shell prints it without a traceback;
anything else that is raised is a bug in kuosan.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Error(Exception):
    """A mistake the caller can mend; `str(error)` says how.

    `exit_code` is what the shell exits with: 2 for wrong input, 74 (sysexits' EX_IOERR) when saving gave up.
    """

    exit_code = 2

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


def unknown(thing: str, value: object, allowed: Iterable[str]) -> Error:
    """An `Error` for a name that is not one of `allowed`, with the nearest of them.

    `raise unknown("sampler", "dimm", SAMPLERS)` says: unknown sampler 'dimm': did you mean 'ddim'? Allowed: ...
    """
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    guess = f": did you mean {near[0]!r}?" if near else "."
    return Error(f"unknown {thing} {value!r}{guess} Allowed: {', '.join(names)}.")
