"""What a denoiser's training minimises, at which levels: which of these settings go together. Torch-free."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kuosan.diffusion.registry import check_weight
from kuosan.errors import Error

if TYPE_CHECKING:
    from kuosan.models.model import ModelConfig
    from kuosan.train.config import TrainConfig

# All of them, in the order of `TrainConfig`.
LOSS_SETTINGS = (
    "loss",
    "weight",
    "min_snr_gamma",
    "p2_k",
    "p2_gamma",
    "vlb_weight",
    "vlb_variance",
    "t_sampling",
    "t_mean",
    "t_std",
    "offset_noise",
)


def check_alone(train: TrainConfig) -> None:
    """Refuse what no model can be trained with. Raises: Error."""
    weighting = train.weighting  # refuses an unknown weight, and numbers that it has not
    for name in ("vlb_weight", "t_std"):
        if not 0 < getattr(train, name) < math.inf:
            raise Error(f"train.{name} = {getattr(train, name)} is not allowed: above 0.")
    if not 0 <= train.offset_noise < math.inf:
        raise Error(f"train.offset_noise = {train.offset_noise} is not allowed: 0 or more; 0.1 is usual.")
    if not math.isfinite(train.t_mean):
        raise Error(f"train.t_mean = {train.t_mean} is not allowed: a finite number, 0 for the middle.")
    idle = (
        ("vlb_weight", 0.001, train.loss == "hybrid", "loss hybrid"),
        ("vlb_variance", "posterior", train.loss == "vlb", "loss vlb"),
        ("t_mean", 0.0, train.t_sampling == "logit_normal", "t_sampling logit_normal"),
        ("t_std", 1.0, train.t_sampling == "logit_normal", "t_sampling logit_normal"),
        ("offset_noise", 0.0, train.loss == "simple", "loss simple: the bound is one of plain noise"),
    )
    for name, default, heeded, owner in idle:
        if getattr(train, name) != default and not heeded:
            raise Error(f"train.{name} = {getattr(train, name)} belongs to {owner}; leave it out.")
    if train.loss == "vlb" and weighting.name != "simple":
        raise Error(
            f"train.weight = {train.weight} has no effect on loss vlb, whose weight is the bound's; leave it out."
        )
    if train.t_sampling == "continuous" and (train.loss != "simple" or weighting.name == "vlb"):
        raise Error(
            "train.t_sampling = continuous: the bound is one of whole t; use uniform, or loss simple, another weight."
        )
    if train.t_sampling == "logit_normal" and (train.loss != "simple" or weighting.name == "vlb"):
        raise Error(
            "train.t_sampling = logit_normal would make the bound another: it counts every t alike; use uniform, or "
            "importance, which makes up for what it draws more often."
        )


def check(train: TrainConfig, model: ModelConfig) -> None:
    """Refuse what this model cannot be trained with. Raises: Error."""
    schedule, discrete = model.schedule, model.schedule.kind == "discrete"
    check_weight(train.weighting, schedule, model.prediction)
    if train.loss != "simple" and not discrete:
        raise Error(
            f"train.loss = {train.loss} with schedule {schedule.kind}: it is the bound of T discrete steps; use "
            "schedule discrete, or loss simple with weight vlb."
        )
    if train.t_sampling != "uniform" and not discrete:
        own = {"karras": "p_mean and p_std", "flow": "density, mean and std"}[schedule.kind]
        raise Error(
            f"train.t_sampling = {train.t_sampling} with schedule {schedule.kind}, whose own {own} say how levels are "
            "drawn (--model.schedule...); leave it out."
        )
    if model.learned_variance and train.loss == "simple":
        raise Error(
            "model.learned_variance = true with loss simple, which does not reach the variance: use --train.loss "
            "hybrid (or vlb)."
        )
    if model.learned_variance and train.vlb_variance != "posterior":
        raise Error(f"train.vlb_variance = {train.vlb_variance}, but this model learns its variance; leave it out.")
    if train.loss == "hybrid" and not model.learned_variance:
        raise Error(
            "train.loss = hybrid trains the error and, by the bound, a variance; add --model.learned-variance, or use "
            "loss simple or vlb."
        )
