"""What a new run gets where its user says nothing, by version, and settings that are a share of a run. Torch-free.

The default of a field in a configuration class is what a stored configuration means that leaves the key out: it never
changes. What is given to new runs is laid under their user's settings here, and may change: then `VERSION` rises, a run
stores the version it began with (`defaults` in its config.yaml; none: 1), and goes on with that one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kuosan.config import merge
from kuosan.errors import Error
from kuosan.options import Tree

VERSION = 2

# What version 2 gives where the classes' own defaults (version 1) are others: recipe portraits' settings.
# Not all of it everywhere; `laid_under` says where.
GIVEN: Mapping[str, Any] = {
    "model.prediction": "x0",
    "model.schedule.betas": "cosine",
    "train.batch": 32,
    "train.lr": 1e-3,
    "train.warmup": 0.1,
    "train.lr_shape": "cosine",
    "train.weight": "min_snr",
    "train.autoencoder.critic_start": 0.5,
}
_LINEAR = ("beta_start", "beta_end")  # numbers that cosine betas have not


def version(tree: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> int:
    """The version of the defaults that fill in a run's tree; `before` is the configuration of the run that goes on.

    Raises:
        Error: a version that there is not.
    """
    found = tree.get("defaults", VERSION if before is None else before.get("defaults", 1))
    check_version(found)
    return int(found)


def check_version(value: object) -> None:
    """Raises: Error for a version of the defaults that there is not."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= VERSION:
        raise Error(
            f"defaults = {value!r} is unknown: 1 to {VERSION} is allowed. A run with a higher one was begun by a newer "
            f"kuosan: go on with that."
        )


def laid_under(tree: Mapping[str, Any], number: int, objective: str) -> Tree:
    """The tree, over the defaults of a version in as far as they have a meaning for what the tree asks for."""
    if number == 1:
        return dict(tree)
    train, model = _group(tree, "train"), _group(tree, "model")
    given: Tree = {name: GIVEN[f"train.{name}"] for name in ("batch", "lr", "warmup", "lr_shape")}
    under: Tree = {"train": given, "model": {}}
    schedule = _group(model, "schedule")
    discrete = "schedule" not in model or (bool(schedule) and schedule.get("kind", "discrete") == "discrete")
    noisy = objective == "diffusion" or (objective == "classifier" and _group(model, "network").get("noisy", True))
    if discrete and noisy is not False and "betas" not in schedule and not any(name in schedule for name in _LINEAR):
        under["model"]["schedule"] = {"kind": "discrete", "betas": GIVEN["model.schedule.betas"]}
    if objective == "diffusion" and discrete:
        under["model"]["prediction"] = GIVEN["model.prediction"]
        # the bound has its own weight; and at alpha = 0, where the SNR is 0, min_snr would leave a level untrained
        if train.get("loss", "simple") != "vlb" and not schedule.get("zero_terminal_snr", False):
            given["weight"] = GIVEN["train.weight"]
    if objective == "autoencoder" and not _is_zero(_group(train, "autoencoder").get("critic")):
        given["autoencoder"] = {"critic_start": GIVEN["train.autoencoder.critic_start"]}
    return merge(under, tree)


def _group(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of settings; nothing where something else stands there, which is refused when it is built."""
    found = tree.get(name, {})
    return found if isinstance(found, Mapping) else {}


def _is_zero(value: object) -> bool:
    """Whether a value, as typed in a shell or a file, is the number 0."""
    try:
        return float(str(value)) == 0
    except ValueError:
        return False


def check_steps(key: str, value: float) -> None:
    """Raises: Error for a value that is neither a whole number of steps nor a share of a run."""
    if not 0 <= value < math.inf or (value >= 1 and value != int(value)):
        raise Error(
            f"{key} = {value} is not allowed: a whole number of steps from 0, or a share of the run from 0 to below 1 "
            f"(0.1 is a tenth of max_steps)."
        )


def steps(value: float, run: int) -> int:
    """Steps, of a whole number of them or of a share of a run of `run` steps, rounded down."""
    return int(value) if value >= 1 else int(value * run)


def planned(max_steps: Any, before: Mapping[str, Any] | None, number: int) -> Any:
    """The length of which a run's settings may be shares: its first one, however long it becomes; 0 in version 1."""
    if before is not None and "train" in before:
        return before["train"].get("planned_steps", 0)
    return 0 if number == 1 else max_steps
