"""Exporting as a job: what is exported and where, opened and refused before anything is written. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kuosan.errors import Error
from kuosan.events import Event, Finished, Wrote

if TYPE_CHECKING:
    from kuosan.storage.checkpoint import Saved


@dataclass(frozen=True)
class ExportJob:
    """A trained model as one folder to hand on, without what only training needs."""

    run: Path  # a run's folder, or one of its checkpoints
    out: Path  # the folder to write; it must not be there yet
    precision: Literal["bf16", "fp32"] = "bf16"  # of the stored weights: bf16 halves the file
    card: Path | None = None  # a text that goes with it as README.md: what it was trained on, whose images, how good

    def __post_init__(self) -> None:
        if os.path.lexists(self.out):
            raise Error(f"{self.out} is there already, and an export never writes over anything: name a new folder.")


@dataclass(frozen=True)
class ExportPlan:
    """An opened checkpoint, and where it goes."""

    job: ExportJob
    saved: Saved
    card: str | None  # the text

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before it is handed on."""
        noise = f"{self.job.run} is of step 0, before any training: what it makes is noise"
        damaged = [f"a newer checkpoint is damaged and passed over: {text}" for text in self.saved.damaged]
        return (*damaged, *((noise,) if self.saved.untrained else ()))


@dataclass(frozen=True)
class ExportedModel:
    """What was written: its folder, its bytes, and what it is used for as arguments of `kuosan`."""

    path: Path
    nbytes: int
    use: str


def plan_export(job: ExportJob) -> ExportPlan:
    """Open the checkpoint and read the card.

    Raises:
        Error: the card cannot be read; not a run, or a damaged one.
    """
    card = None
    if job.card is not None:
        try:
            card = job.card.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as reason:
            raise Error(f"--card {job.card} cannot be read: {reason}.") from None
    from kuosan.models.model import require_fit
    from kuosan.storage import checkpoint

    return ExportPlan(job, checkpoint.load(job.run, parts=("ema",), fits=require_fit), card)


def run_export(plan: ExportPlan) -> Iterator[Event]:
    """Write the folder. Raises: Error: it is there meanwhile, or cannot be written; the run's codec is gone."""
    from shlex import quote

    from kuosan.models.export import export, use

    out = export(plan.saved, plan.job.out, bf16=plan.job.precision == "bf16", card=plan.card)
    yield Wrote(out)
    nbytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    yield Finished(ExportedModel(out, nbytes, use(plan.saved.config.get("model", {}), quote(str(out)))[1]))
