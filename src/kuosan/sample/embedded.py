"""The small text-to-image model inside the package: where it lies, and how it is usually asked. Torch-free."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib.resources import files
from pathlib import Path

from kuosan.errors import Error, plural, shown
from kuosan.regular import exists
from kuosan.sample.request import Request
from kuosan.text.tokens import unfamiliar

NAME = "embedded"  # as a run's name, in the shell, in Python and in recipes
OF_A_RUN = ("checkpoints", "manifest.json", "config.yaml")  # one of them makes a folder a run, or an exported model
WORDS = "words.json"  # in how many captions each word was: tools/build_emoji.py writes it
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


def warnings(request: Request) -> tuple[str, ...]:
    """Which words of its prompts this model cannot know, or hardly, in a sentence each."""
    counts = json.loads((folder() / WORDS).read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    for prompt in (*request.prompts, *(() if request.negative is None else (request.negative,))):
        found |= unfamiliar(prompt, counts["words"])
    unseen, few = [word for word, count in found.items() if not count], {w: c for w, c in found.items() if c}
    said = []
    if unseen:
        listed, be = ", ".join(map(shown, unseen)), "is" if len(unseen) == 1 else "are"
        said.append(f"{listed} {be} not among the words that the built-in model has seen, and will change little")
    for word, count in few.items():
        said.append(
            f"{shown(word)} was in {count} of the {plural(counts['captions'], 'caption')} that the built-in model has "
            f"seen: expect little of it"
        )
    return tuple(said)


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
