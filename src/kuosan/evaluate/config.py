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
OF_LIKELIHOOD = ("likelihood_pictures", "ode_pictures", "ode_steps")
SAMPLED = Request(n=1000, batch=50)
# Of a request: pictures that are no independent draws from the model.
USELESS = ("image", "strength", "between", "restoration")


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
        likelihood: bits a dimension of held-out pictures, by the variational bound and by the probability-flow ODE;
            without metrics named, nothing else is measured.
        likelihood_pictures: with likelihood: held-out pictures at most.
        ode_pictures: with likelihood: of them, how many the ODE is solved for; 0 for none.
        ode_steps: with likelihood: Runge-Kutta steps, four network evaluations each.
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
    likelihood_pictures: int = 256
    ode_pictures: int = 64
    ode_steps: int = 50
    sweep: tuple[str, ...] = ()
    out: str | None = None
    request: Request = SAMPLED
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name == "fid":
                raise Error("metric 'fid': say frechet, and give --features inception:FILE; on its features it is FID.")
            if name not in METRICS:
                raise unknown("metric", name, METRICS)
        check(self.features)
        if self.real is not None and not 3 <= self.real <= 10_000_000:
            raise Error(f"real = {self.real} is not allowed: 3 to 10,000,000, or none for as many as are made.")
        if self.data is not None and self.against not in (TRAIN, HELD_OUT):
            raise Error(f"data = {self.data!r} has no effect against {self.against!r}; give one path, with --against.")
        if self.judge is None and "labels" in self.metrics:
            raise Error("the labels metric needs a judge: give --judge RUN, a classifier of clean pictures.")
        if self.judge is not None and self.metrics and "labels" not in self.metrics:
            raise Error(f"judge {self.judge!r} has no effect without the labels metric; name it too, or leave it out.")
        self._check_likelihood()
        for name in USELESS:
            if getattr(self.request, name) is not None:
                raise Error(
                    f"{name} has no place in an evaluation, whose pictures are independent draws; leave it out."
                )

    @property
    def sampled(self) -> bool:
        """Whether pictures are made: not where only the likelihood is asked for."""
        return not self.likelihood or bool(self.metrics)

    def _check_likelihood(self) -> None:
        usual = {name: EvaluateConfig.__dataclass_fields__[name].default for name in OF_LIKELIHOOD}
        given = [name for name in OF_LIKELIHOOD if getattr(self, name) != usual[name]]
        if given and not self.likelihood:
            raise Error(f"{given[0]} has no effect without likelihood: give --likelihood, or leave it out.")
        if self.likelihood_pictures < 2 or self.ode_pictures < 0 or self.ode_pictures == 1 or self.ode_steps < 2:
            raise Error("likelihood needs at least 2 pictures, 2 or none of them by the ODE, and 2 of its steps.")
        if not self.sampled and (self.sweep or self.judge or self.real is not None or self.request != SAMPLED):
            raise Error("likelihood alone makes no pictures, so settings of them have no effect: name --metrics too, "
                        "or leave them out.")  # fmt: skip


def configured(tree: Mapping[str, Any]) -> EvaluateConfig:
    """The configuration of a plain tree laid over the defaults.

    Raises:
        Error: unknown keys, wrong types, impossible values; a sampling option that is both given and swept.
    """
    from kuosan.evaluate.sweep import first

    usual = trees.plain(EvaluateConfig())
    swept = trees.build(EvaluateConfig, {"sweep": tree.get("sweep", ())}).sweep
    return trees.build(EvaluateConfig, trees.merge(usual, {"request": first(swept, tree.get("request", {}))}, tree))
