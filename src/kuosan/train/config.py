"""What a training run is: one tree of frozen dataclasses, resolved against the data, compared on resume. Torch-free."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kuosan import config as trees
from kuosan.data.config import DataConfig
from kuosan.device import ComputeConfig
from kuosan.diffusion import names
from kuosan.diffusion.weighting import check_weight
from kuosan.errors import Error, unknown
from kuosan.model import ModelConfig, OwnNetwork
from kuosan.networks.classifier_config import ClassifierConfig, default_classifier
from kuosan.networks.config import Size, default_unet
from kuosan.networks.dit_config import default_dit
from kuosan.sample.plan import choose
from kuosan.sample.request import Request
from kuosan.train import classifier_settings

# Short names for what people look for first, where the last part of a key would be ambiguous or is no key.
SHORT = {"channels": "data.channels", "size": "data.size", "schedule": "model.schedule.kind"}

# What a network predicts on a kind of schedule when nobody says.
USUAL_PREDICTION = {"discrete": "v", "karras": "edm", "flow": "flow"}

LR_SHAPES = ("constant", "cosine", "inverse_sqrt")

# What may change between two starts of the same run: how long, how often and where, never what is learned.
FREE_ON_RESUME = (
    "train.max_steps",
    "train.save_every",
    "train.keep",
    "train.evaluate_every",
    "train.evaluate_pictures",
    "train.preview_every",
    "train.preview_pictures",
    "train.preview_steps",
    "train.micro_batch",
    "compute.",
    "data.path",
    "data.workers",
    "data.memory_gib",
    "data.max_pixels",
)
# Of these, what changes the order of sums, and with it the last bits of what is learned.
INEXACT = ("train.micro_batch", "compute.")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    objective: Literal["diffusion", "classifier"] = "diffusion"  # train a denoiser, or a classifier
    max_steps: int = 20_000  # optimiser steps; may be raised on resume
    batch: int = 64  # pictures a step, over all processes
    micro_batch: int = 0  # pictures in memory at once, the rest accumulated; 0: the whole batch
    lr: float = 2e-4  # AdamW's learning rate after warm-up
    warmup: int = 200  # steps from 0 to lr
    lr_shape: str = "constant"  # after warm-up: constant, cosine (to 0 at max_steps) or inverse_sqrt
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW's moment decays
    weight_decay: float = 0.0  # AdamW's decay, on matrices and kernels only
    clip: float = 1.0  # largest gradient norm; 0: no clipping
    weight: str = "simple"  # the loss's weight over noise levels: simple, min_snr, ...
    ema: float = 0.1  # width of the average of the weights as a fraction of the run (Karras et al. 2024); 0: no average
    seed: int = 0  # of everything drawn in training
    save_every: int = 500  # steps between saves
    keep: int = 2  # saves kept, the newest; at least 2
    evaluate_every: int = 500  # steps between held-out losses; 0: never
    evaluate_pictures: int = 256  # held-out pictures in that loss
    preview_every: int = 1000  # steps between preview grids; 0: never
    preview_pictures: int = 16  # pictures in a preview
    preview_steps: int = 20  # DPM-Solver++ steps of a preview
    bad_steps: int = 10  # steps in a row without a finite loss and gradient before going back to the last save

    def __post_init__(self) -> None:
        for name, low in _WHOLE.items():
            if getattr(self, name) < low:
                raise Error(f"train.{name} = {getattr(self, name)} is not allowed: {low} or more.")
        for name in ("lr", "weight_decay", "clip", "ema"):
            if getattr(self, name) < 0:
                raise Error(f"train.{name} = {getattr(self, name)} is not allowed: 0 or more.")
        if self.lr == 0 or self.lr > 1:
            raise Error(f"train.lr = {self.lr} is not allowed: above 0, at most 1; 2e-4 is usual.")
        if self.ema > 0.28:
            raise Error(f"train.ema = {self.ema} is not allowed: 0 (none) to 0.28 of the run's length.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise Error(f"train.betas = {self.betas} is not allowed: each from 0 to below 1.")
        if self.lr_shape not in LR_SHAPES:
            raise unknown("train.lr_shape", self.lr_shape, LR_SHAPES)
        names.weight(self.weight)


_WHOLE = {
    "max_steps": 1,
    "batch": 1,
    "micro_batch": 0,
    "warmup": 0,
    "save_every": 1,
    "keep": 2,
    "evaluate_every": 0,
    "evaluate_pictures": 1,
    "preview_every": 0,
    "preview_pictures": 1,
    "preview_steps": 1,
    "bad_steps": 1,
    "seed": 0,
}


@dataclass(frozen=True)
class RunConfig:
    """A whole run: the data, the model, the training, and where to compute."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)


def check(tree: Mapping[str, Any]) -> None:
    """Refuse what can be refused before the pictures are read: all but the network, whose defaults follow from them.

    Raises:
        Error: whatever the configuration classes refuse.
    """
    tree = _filled(tree)
    said = tree.get("model", {})
    model = {key: value for key, value in said.items() if key not in ("network", "shape")} | _prediction(said)
    _check_training(trees.build(RunConfig, trees.merge(trees.plain(RunConfig()), {**tree, "model": model})))


def resolve(
    tree: Mapping[str, Any],
    shape: tuple[int, int, int],
    size: Size = "small",
    own: str | None = None,
    classes: tuple[str, ...] = (),
) -> RunConfig:
    """The whole configuration of a run from what its user said and the pictures' shape.

    What is not said is filled in: the network from the pictures' shape and `size`, everything else from the defaults.

    Args:
        own: the class name of a network the caller brings, in place of one of kuosan's.
        classes: the names of the data's classes, in the order of their labels.

    Raises:
        Error: whatever the configuration classes refuse, or a network that does not fit the pictures.
    """
    tree = _filled(tree)
    said = dict(tree.get("model", {}))
    task = _task(said, classes)
    network: trees.Tree = {"kind": "own", "name": own} if own else _network(tree, shape, size, len(task["class_names"]))
    model = trees.merge(
        trees.plain(ModelConfig()), {"network": network}, said, _prediction(said), {"shape": list(shape), "task": task}
    )
    config = trees.build(RunConfig, trees.merge(trees.plain(RunConfig()), {**tree, "model": model}))
    _check_fit(config)
    return config


def _filled(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree, with what follows from training a classifier where one is trained."""
    if trees.build(RunConfig, {"train": tree.get("train", {})}).train.objective != "classifier":
        return tree
    return trees.merge(classifier_settings.FOLLOWS, tree)


def _network(tree: Mapping[str, Any], shape: tuple[int, int, int], size: Size, classes: int) -> trees.Tree:
    """The usual network of a size for these pictures, of the kind that was asked for."""
    if tree.get("train", {}).get("objective") == "classifier":
        return trees.plain(default_classifier(shape, size, classes=classes))
    said = tree.get("model", {})
    asked = said.get("network", {})
    usual = default_dit if isinstance(asked, Mapping) and asked.get("kind") == "dit" else default_unet
    network = trees.plain(usual(shape, size, classes=classes))
    said = {key: value for key, value in said.items() if key == "learned_variance"}
    if trees.build(RunConfig, {"model": said}).model.learned_variance:
        network["out_channels"] = 2 * shape[0]
    return network


def _task(said: Mapping[str, Any], classes: tuple[str, ...]) -> trees.Tree:
    """The task that was asked for, with the data's classes filled in."""
    task = trees.build(ModelConfig, {"task": said.get("task", {})}).task
    if not task.labels:
        return trees.plain(task)
    if not classes:
        raise Error(
            "classes are asked for, but the pictures have none: put each class into its own folder, give a `label` in "
            "metadata.jsonl or metadata.csv, or lay the label file beside an IDX file."
        )
    if task.class_names and task.class_names != classes:
        raise Error(
            f"class_names = {', '.join(task.class_names)}, but the data have {', '.join(classes)}: leave class_names "
            f"out, the data give them."
        )
    return trees.plain(task) | {"drop": task.dropped, "class_names": list(classes)}


def _prediction(said: Mapping[str, Any]) -> dict[str, str]:
    """The usual prediction of the schedule asked for, where none is said."""
    schedule = said.get("schedule")
    if "prediction" in said or not isinstance(schedule, Mapping):
        return {}
    return {"prediction": USUAL_PREDICTION.get(str(schedule.get("kind", "discrete")), "v")}


def _check_fit(config: RunConfig) -> None:
    model, shape = config.model, config.model.shape
    assert shape is not None
    _check_training(config)
    if config.train.objective == "classifier":
        classifier_settings.check_fit(model)
    if model.network.kind == "classifier" and config.train.objective != "classifier":
        raise Error("model.network.kind = classifier: a classifier is trained with --objective classifier; say that.")
    if isinstance(model.network, (OwnNetwork, ClassifierConfig)):
        return
    for name, wanted in (("in_channels", shape[0]), ("out_channels", shape[0])):
        if getattr(model.network, name) != wanted:
            raise Error(
                f"model.network.{name} = {getattr(model.network, name)}, but the pictures have {wanted} channel(s); "
                f"leave it out, or set data.channels."
            )
    if model.network.classes != len(model.task.class_names):
        raise Error(
            f"model.network.classes = {model.network.classes}, but {len(model.task.class_names)} classes are trained "
            f"on: leave it out; --labels sets it from the data."
        )
    if model.network.concat_channels:
        raise Error(
            f"model.network.concat_channels = {model.network.concat_channels} cannot be trained yet: nothing enters by "
            f"that door. Leave it out; docs/status.md says what comes next."
        )
    factor = model.network.factor
    if shape[1] % factor or shape[2] % factor:
        smaller = (
            "another --model.network.patch" if model.network.kind == "dit" else "fewer --model.network.multipliers"
        )
        raise Error(
            f"pictures of {shape[1]} x {shape[2]} do not fit this network: sides must be multiples of {factor}. "
            f"Set --data.size to such a number, or {smaller}."
        )


def _check_training(config: RunConfig) -> None:
    model, train = config.model, config.train
    if train.objective == "classifier":
        classifier_settings.check(train, model, USUAL_PREDICTION[model.schedule.kind])
        return
    if model.learned_variance:
        raise Error(
            "model.learned_variance = true cannot be trained yet: the simple loss does not reach the variance. "
            "Leave it out; imported networks that learned a variance can be sampled."
        )
    check_weight(train.weight, model.schedule, model.prediction)
    if train.preview_every:
        try:
            choose(model, preview_request(train))
        except Error as error:
            raise Error(f"previews cannot be sampled: {error} Or --train.preview-every 0 for none.") from None


def preview_request(train: TrainConfig) -> Request:
    """What a preview shows: always the same seeds."""
    return Request(n=train.preview_pictures, seed=0, steps=train.preview_steps)


def refuse_changes(stored: Mapping[str, Any], now: Mapping[str, Any], run: str) -> list[str]:
    """What differs harmlessly between a run's stored configuration and the one given now, in words.

    Raises:
        Error: something differs that would make this another run; it names each key with both values and the choices.
    """
    with contextlib.suppress(Error):  # an older run knows nothing of newer settings, which had their defaults
        stored = trees.plain(trees.build(RunConfig, stored))
    changed = trees.differences(stored, now)
    fixed = {key: pair for key, pair in changed.items() if not _is_in(key, FREE_ON_RESUME)}
    if fixed:
        lines = "\n".join(f"  {key}: the run has {old!r}, now {new!r}" for key, (old, new) in fixed.items())
        raise Error(
            f"{run} holds a run with another configuration:\n{lines}\n"
            f"Either repeat the run's own values (they are in {run}/config.yaml), start a new run with --out ANOTHER, "
            f"or start a new one from this run's weights with --out ANOTHER --init {run}."
        )
    return [_said(key, old, new, now) for key, (old, new) in changed.items()]


def _said(key: str, old: Any, new: Any, now: Mapping[str, Any]) -> str:
    text = f"{key}: {old} -> {new}"
    if key == "train.max_steps" and now["train"]["lr_shape"] == "cosine":
        return f"{text}; from here on the learning rate is that of a cosine over {new} steps, a jump from {old}'s."
    if _is_in(key, INEXACT):
        return f"{text}; the run goes on, but no longer bit for bit as it would have."
    return text


def _is_in(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of `names`, or under one that ends with a dot."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)
