"""`kuosan export`: a trained model as one folder to hand on, without what only training needs."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

from cyclopts import Parameter

from kuosan.cli.console import say, warn
from kuosan.errors import Error
from kuosan.files import size_text


def export(
    run: Path,
    out: Path,
    *,
    precision: Literal["bf16", "fp32"] = "bf16",
    card: Annotated[Path | None, Parameter(negative=())] = None,
) -> None:
    """Write the averaged weights of RUN, with all that sampling needs, into the new folder OUT.

    What only training needs (optimiser, raw weights, log, the path of the pictures) stays behind.

    Parameters
    ----------
    run
        A run's folder, or one of its checkpoints.
    out
        The folder to write; it must not be there yet.
    precision
        Of the stored weights: bf16 halves the file.
    card
        A text that goes with it as README.md: what it was trained on, whose pictures, how good it is.
    """
    if os.path.lexists(out):
        raise Error(f"{out} is there already, and an export never writes over anything: name a new folder.")
    text = None
    if card is not None:
        try:
            text = card.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as reason:
            raise Error(f"--card {card} cannot be read: {reason}.") from None
    from kuosan import checkpoint, exporting
    from kuosan.model import require_fit

    saved = checkpoint.load(run, parts=("ema",), fits=require_fit)
    for line in saved.damaged:
        say(f"warning: a newer checkpoint is damaged and passed over: {line}")
    if saved.untrained:
        warn([f"{run} is of step 0, before any training: what it makes is noise"])
    exporting.export(saved, out, bf16=precision == "bf16", card=text)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    say(f"exported: {out} ({size_text(size)}; step {saved.step} of {run}, weights in {precision})")
    _, arguments = exporting.use(saved.config.get("model", {}), quote(str(out)))
    say(f"next: kuosan {arguments}")
