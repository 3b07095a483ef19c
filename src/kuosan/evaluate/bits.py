"""Bits a dimension in an evaluation: of which pictures, by which weights, and the curve beside the figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kuosan import checkpoint, trained
from kuosan.errors import Error
from kuosan.evaluate import likelihood_curve
from kuosan.evaluate.config import HELD_OUT, EvaluateConfig
from kuosan.evaluate.likelihood import likelihood
from kuosan.evaluate.real import Side, shuffled

if TYPE_CHECKING:
    from kuosan.data.pictures import Pictures
    from kuosan.evaluate.progress import Report
    from kuosan.trained import Trained

CURVE = "bound.png"


def asked(config: EvaluateConfig, own: Pictures | None) -> Side | None:
    """The held-out pictures whose bits are told, the first of the fixed order; None if none are asked for.

    Raises:
        Error: nothing was held out.
    """
    if not config.likelihood:
        return None
    if own is None:
        raise Error("likelihood is of pictures the run held out: leave --against PATH out, or evaluate twice.")
    side = Side.of("held-out pictures", own, shuffled(own, HELD_OUT), 0, config.likelihood_pictures)
    if len(side) < 2:
        raise Error(f"likelihood needs 2 held-out pictures at least; this run held {len(side)} out.")
    return side


def measure(model: Trained, side: Side, config: EvaluateConfig, folder: Path, report: Report) -> dict[str, Any]:
    """Both estimates as plain values with their sentences; the curve of the bound is written to bound.png.

    The weights are float32 here, whatever pictures are sampled in: the ODE's divergence would drown in bf16's noise.
    """
    full = model
    if model.compute.dtype != torch.float32:
        at_step = checkpoint.folder(model.name, model.step)  # the newest may be another by now
        path = at_step if at_step.is_dir() else Path(model.name)
        full = trained.load(path, compute=replace(model.compute, dtype=torch.float32))
        if full.weights != model.weights:
            raise Error(f"{model.name} holds other weights than when it was opened (step {model.step}): a training "
                        "run moved on. Evaluate one of its checkpoints.")  # fmt: skip
    found = likelihood(
        full.model,
        side.bytes(),
        labels=side.labels() if model.model.config.task.labels else None,
        ids=side.ids.tolist(),
        ode_pictures=config.ode_pictures,
        ode_steps=config.ode_steps,
        progress=report.progress,
    )
    likelihood_curve.draw(folder / CURVE, {Path(model.name).name: found.bound})
    return {**found.plain(), "pictures": side.what, "sentences": found.sentences()}
