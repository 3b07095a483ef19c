"""The memorisation report of an evaluation: made pictures beside their nearest training pictures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from kuosan.data.images import enlarge, save_png
from kuosan.evaluate import memorisation
from kuosan.evaluate.config import HELD_OUT, TRAIN
from kuosan.evaluate.real import Side, shuffled
from kuosan.evaluate.rows import side_rows
from kuosan.sample.write import SIDE

if TYPE_CHECKING:
    from kuosan.evaluate.making import Job
    from kuosan.evaluate.prepare import Prepared
    from kuosan.evaluate.progress import Report
    from kuosan.evaluate.result import Found
    from kuosan.features.network import Features

SHOWN = 16  # pictures on the sheet
MOST = 1000  # held-out pictures of the baseline, or as many as are made


def add(found: Found, prepared: Prepared, network: Features, each: Job, made: np.ndarray, report: Report) -> None:
    """Compare made features (N, D) with all training pictures', held-out ones as the baseline; write the sheet.

    The figure `nearer` is the chance that a made picture lies closer to training than a held-out one does: 0.5 if
    nothing is memorised, 1 if all is.
    """
    own = prepared.own
    assert own is not None
    train = Side.of("training pictures", own, shuffled(own, TRAIN))
    held = Side.of("held-out pictures", own, shuffled(own, HELD_OUT), 0, max(found.n, MOST))
    told = memorisation.memorisation(
        made,
        side_rows(prepared, held, network, report),
        side_rows(prepared, train, network, report),
    )
    pictures = np.moveaxis(each.store.pictures(0, found.n), 1, -1)
    known = np.moveaxis(train.bytes(), 1, -1)
    same = memorisation.copies(pictures, known)
    found.figures["nearer"] = told.nearer
    found.details["memorisation"] = {
        "training_pictures": len(train),
        "compared_at": f"features of {network.name} ({network.resizing}); copies: whole pixels at "
        f"{known.shape[2]}x{known.shape[1]}",
        "held_out_pictures": len(held),
        "below": {"share": told.below.value, "interval": [told.below.low, told.below.high], "expected": told.quantile},
        "p_value": told.p_value,
        "flagged": told.flagged,
        "distance_ratio": told.ratio,
        "copies": len(same),
        "closest_seeds": [each.request.seed + int(i) for i in told.closest(SHOWN)],
    }
    factor = max(1, SIDE // max(known.shape[1:3]))
    save_png(prepared.folder / name_of(each), enlarge(memorisation.sheet(told, pictures, known, SHOWN), factor))


def name_of(each: Job) -> str:
    """The sheet of a point's closest images; a swept value may be a path."""
    return "-".join(["nearest", *re.findall(r"[\w.]+", each.point.name.replace(" ", ""))]) + ".png"
