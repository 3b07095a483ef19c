"""Out of memory: fewer images at once from that step on, and the step again.

What a step comes to depends on its draws and, in its last bits, on how many images are computed at once. So each
halving is written down under its step before the step is taken, in the run's folder (`micro_batch.json`) and in every
later save: whoever goes on from an earlier save halves at the same step, whether or not memory is short there.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch

from kuosan.errors import Error
from kuosan.storage import files

if TYPE_CHECKING:
    from kuosan.storage.checkpoint import Saved

FILE = "micro_batch.json"
CODE = 71  # sysexits' EX_OSERR
What = Literal["training", "validation", "preview"]
T = TypeVar("T")


@dataclass(frozen=True)
class Halving:
    """From a step on, at most `size` images of a process at once."""

    what: What
    step: int  # as the log counts: 1 is the first
    retry: int  # returns to an earlier save before it
    size: int
    of: int  # train.micro_batch at that time; another one is the user's own choice, and puts this out of force


@dataclass
class Sizes:
    """How many images of a process are computed at once, by step."""

    halvings: list[Halving] = field(default_factory=list)

    def at(self, what: What, step: int, retry: int, of: int, most: int) -> int:
        """Images at once at a step, where nothing forces fewer than `most`."""
        smaller = [
            each.size
            for each in self.halvings
            if (each.what, each.of) == (what, of) and (each.retry, each.step) <= (retry, step)
        ]
        return max(1, min([most, *smaller]))

    def plain(self) -> list[dict[str, Any]]:
        """As JSON holds it."""
        return [dataclasses.asdict(each) for each in self.halvings]


def known(folder: Path, saved: Saved, notes: list[str]) -> list[Halving]:
    """The halvings of a run that goes on: those that its save has, and those that came after it."""
    found = dict.fromkeys(_halvings(saved.state.get("halvings", [])))
    path = folder / FILE
    try:
        with files.explained(path, doing="read"):
            found |= dict.fromkeys(_halvings(json.loads(path.read_bytes())) if path.is_file() else [])
    except (Error, ValueError, RecursionError) as error:
        notes.append(f"warning: {path} cannot be read ({error}); what was halved after step {saved.step} is not known.")
    return sorted(found, key=lambda each: (each.retry, each.step, -each.size))


def _halvings(entries: Any) -> list[Halving]:
    """Raises: ValueError: they are something else."""
    fields = {each.name for each in dataclasses.fields(Halving)}
    if not isinstance(entries, list) or not all(isinstance(each, dict) and set(each) == fields for each in entries):
        raise ValueError("it is no list of halvings")
    for each in entries:
        numbers = [value for name, value in each.items() if name != "what"]
        if each["what"] not in get_args(What) or not all(type(value) is int and value >= 0 for value in numbers):
            raise ValueError(f"{each} is no halving")
    return [Halving(**each) for each in entries]


def too_large(step: int, reason: str) -> Error:
    """What is said where one image at once takes too much memory."""
    return Error(
        f"step {step}: out of memory with one image at once ({reason}). Use a smaller --network or --size, "
        f"--compute.precision bf16, or a device with more free memory; what was saved before is untouched.",
        exit_code=CODE,
    )


def said(error: BaseException) -> str:
    """The first sentence of an allocator's complaint."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0].rstrip(".")[:160]


def free() -> None:
    """Give back what nobody uses any more; call it when no exception holds a frame."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
