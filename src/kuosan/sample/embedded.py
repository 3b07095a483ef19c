"""The small text-to-image model inside the package: where it lies, and how it is usually asked. Torch-free."""

from __future__ import annotations

import dataclasses
import re
from importlib.resources import files
from pathlib import Path

from kuosan.errors import Error
from kuosan.regular import exists
from kuosan.sample.request import Request

NAME = "embedded"  # as a run's name, in the shell, in Python and in recipes
OF_A_RUN = ("checkpoints", "manifest.json", "config.yaml")  # one of them makes a folder a run, or an exported model
GUIDANCE = 4.0  # by eye, and by retrieval between 3 and 6: docs/text-to-image.md


def folder() -> Path:
    """The model's folder, laid out as a checkpoint is.

    Raises:
        Error: this installation came without it.
    """
    path = Path(str(files("kuosan"))) / "embedded"
    if not (path / "manifest.json").is_file():
        raise Error(f"the model inside the package is not there ({path}): install kuosan again, or name a run.")
    return path


def is_meant(run: str | Path) -> bool:
    """Whether a run's name is this model's, and no run of that name lies here."""
    return str(run) == NAME and not any(exists(Path(run, name)) for name in OF_A_RUN)


def opened(run: str | Path) -> Path:
    """The folder of a run by its name."""
    return folder() if is_meant(run) else Path(run)


def usual(request: Request) -> Request:
    """The request with the guidance that this model looks best with, where none is said."""
    if request.guidance is not None or request.reference is not None or not request.prompts:
        return request
    return dataclasses.replace(request, guidance=GUIDANCE)


def name(request: Request) -> str:
    """A folder's name for a request's images: its first prompt, and its seed."""
    first = next(iter(request.prompts), "no prompt")
    words = re.sub(r"[^\w]+", "-", first.lower()).strip("-")[:60] or "prompt"
    return f"{words}-seed{request.seed}"
