"""What to measure, on how many pictures, against which: one frozen dataclass for the shell and Python. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kuosan import config as trees
from kuosan.device import ComputeConfig
from kuosan.errors import Error, unknown
from kuosan.features.names import check
from kuosan.sample.request import Request

METRICS = ("kid", "frechet", "prdc", "memorisation", "labels")
TRAIN, HELD_OUT = "train", "held_out"
USELESS = ("image", "strength", "between")  # of a request: pictures that are no independent draws from the model


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure, and how the pictures are made.

    Attributes:
        metrics: what to measure: kid, frechet, prdc (precision, recall, density, coverage), memorisation, labels; none
            given: all that these pictures allow.
        against: the real pictures: `train` or `held_out` of the run's own, or the path of others.
        data: where the run's own pictures are now, if they have moved.
        real: real pictures, drawn by a fixed key; none: as many as are made, or all of fewer.
        features: the feature network.
        judge: a run of a classifier that tells each picture's class, for the labels metric.
        force: measure with fewer pictures than a metric is sound with, or against other pictures than were trained on.
        likelihood: bits a dimension of held-out pictures, by the variational bound and by the probability-flow ODE.
        sweep: FIELD=VALUE,VALUE,...: every value of a sampling option; several give all combinations.
        out: the folder to write; RUN/evaluations/NAME if not given.
        request: how the pictures are made.
        compute: where the networks run.
    """

    metrics: tuple[str, ...] = ()
    against: str = TRAIN
    data: str | None = None
    real: int | None = None
    features: str = "lite0-128"
    judge: str | None = None
    force: bool = False
    likelihood: bool = False
    sweep: tuple[str, ...] = ()
    out: str | None = None
    request: Request = field(default_factory=lambda: Request(n=1000, batch=50))
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise unknown("metric", name, METRICS)
        check(self.features)
        if self.real is not None and not 3 <= self.real <= 10_000_000:
            raise Error(f"real = {self.real} is not allowed: 3 to 10,000,000, or none for as many as are made.")
        if self.data is not None and self.against not in (TRAIN, HELD_OUT):
            raise Error(f"data = {self.data!r} has no effect against {self.against!r}; give one path, with --against.")
        for name in USELESS:
            if getattr(self.request, name) is not None:
                raise Error(
                    f"{name} has no place in an evaluation, whose pictures are independent draws; leave it out."
                )


def configured(tree: Mapping[str, Any]) -> EvaluateConfig:
    """The configuration of a plain tree laid over the defaults.

    Raises:
        Error: unknown keys, wrong types, impossible values.
    """
    return trees.build(EvaluateConfig, trees.merge(trees.plain(EvaluateConfig()), tree))
