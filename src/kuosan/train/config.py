"""What a training run is: one tree of frozen dataclasses, resolved against the data, compared on resume. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kuosan import config as trees
from kuosan.data.config import DataConfig
from kuosan.device import ComputeConfig
from kuosan.diffusion.weighting import Weight
from kuosan.errors import Error, unknown
from kuosan.model import ModelConfig, OwnNetwork
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.networks.config import Size
from kuosan.sample.plan import choose
from kuosan.sample.request import Request
from kuosan.sample.restoration import Restoration
from kuosan.tasks import Inpainting, SuperResolution, Task
from kuosan.text.config import ByteText
from kuosan.train import (
    autoencoder_settings,
    classifier_settings,
    codec_settings,
    defaults,
    fitting,
    loss_settings,
    network_settings,
)
from kuosan.train.autoencoder_settings import AutoencoderSettings
from kuosan.train.bucket_settings import check_buckets, common_step, square
from kuosan.train.network_settings import USUAL_PREDICTION, prediction

# Short names for what people look for first, where the last part of a key would be ambiguous or is no key.
SHORT = {
    "channels": "data.channels",
    "size": "data.size",
    "schedule": "model.schedule.kind",
    "task": "model.task.kind",
    "codec": "model.codec.run",
    "text": "model.text.kind",
}

TSampling = Literal["uniform", "continuous", "importance", "logit_normal"]
LR_SHAPES = ("constant", "cosine", "inverse_sqrt")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; new runs have other defaults than these, which are those of keys that a stored
    configuration leaves out: train/defaults.py."""

    objective: Literal["diffusion", "classifier", "autoencoder"] = "diffusion"  # train a denoiser, or one of these
    max_steps: int = 20_000  # optimiser steps; may be raised on resume
    batch: int = 64  # pictures a step, over all processes
    micro_batch: int = 0  # pictures in memory at once, the rest accumulated; 0: the whole batch
    lr: float = 2e-4  # AdamW's learning rate after warm-up
    warmup: int | float = 200  # steps from 0 to lr, or their share of the run; stored in steps
    lr_shape: str = "constant"  # after warm-up: constant, cosine (to 0 at max_steps) or inverse_sqrt
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW's moment decays
    weight_decay: float = 0.0  # AdamW's decay, on matrices and kernels only
    clip: float = 1.0  # largest gradient norm; 0: no clipping
    loss: Literal["simple", "vlb", "hybrid"] = "simple"  # what is minimised: the weighted error, the bound, or both
    weight: str = "simple"  # the error's weight over noise levels: simple, min_snr, ...
    min_snr_gamma: float = 5.0  # min_snr: the largest SNR that counts (Hang et al. 2023)
    p2_k: float = 1.0  # p2: k of 1/(k + SNR)^gamma (Choi et al. 2022)
    p2_gamma: float = 1.0  # p2: gamma of the same
    vlb_weight: float = 0.001  # hybrid: the bound's weight beside the error (Nichol & Dhariwal 2021)
    vlb_variance: Literal["posterior", "beta"] = "posterior"  # vlb: the steps' variance, where none is learned
    t_sampling: TSampling = "uniform"  # discrete: how t is drawn; continuous: between whole t as well (SR3)
    t_mean: float = 0.0  # logit_normal: mean of logit(t/T) (Esser et al. 2024)
    t_std: float = 1.0  # logit_normal: standard deviation of logit(t/T)
    offset_noise: float = 0.0  # strength of a noise that all pixels of a channel share; 0: none, 0.1 is usual
    ema: float = 0.1  # width of the average of the weights as a fraction of the run (Karras et al. 2024); 0: no average
    uncaptioned: Literal["refuse", "empty"] = "refuse"  # text: pictures without a caption; empty: as of no text
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)  # what an autoencoder minimises
    seed: int = 0  # of everything drawn in training
    save_every: int = 500  # steps between saves
    keep: int = 2  # saves kept, the newest; at least 2
    evaluate_every: int = 500  # steps between held-out losses; 0: never
    evaluate_pictures: int = 256  # held-out pictures in that loss
    preview_every: int = 1000  # steps between preview grids; 0: never
    preview_pictures: int = 16  # pictures in a preview
    preview_steps: int = 20  # DPM-Solver++ steps of a preview
    bad_steps: int = 10  # steps in a row without a finite loss and gradient before going back to the last save
    planned_steps: int = field(
        default=0, metadata={"option": False}
    )  # max_steps when the run began, of which warmup and critic_start may be shares; 0: of max_steps

    def __post_init__(self) -> None:
        defaults.check_steps("train.warmup", self.warmup)
        for name, low in _WHOLE.items():
            if getattr(self, name) < low:
                raise Error(f"train.{name} = {getattr(self, name)} is not allowed: {low} or more.")
        for name in ("lr", "weight_decay", "clip", "ema"):
            if getattr(self, name) < 0:
                raise Error(f"train.{name} = {getattr(self, name)} is not allowed: 0 or more.")
        if self.lr == 0 or self.lr > 1:
            raise Error(f"train.lr = {self.lr} is not allowed: above 0, at most 1; 1e-3 is the default.")
        if self.ema > 0.28:
            raise Error(f"train.ema = {self.ema} is not allowed: 0 (none) to 0.28 of the run's length.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise Error(f"train.betas = {self.betas} is not allowed: each from 0 to below 1.")
        if self.lr_shape not in LR_SHAPES:
            raise unknown("train.lr_shape", self.lr_shape, LR_SHAPES)
        loss_settings.check_alone(self)
        planned = self.planned_steps or self.max_steps
        object.__setattr__(self, "warmup", defaults.steps(self.warmup, planned))
        start = defaults.steps(self.autoencoder.critic_start, planned)
        object.__setattr__(self, "autoencoder", replace(self.autoencoder, critic_start=start))

    @property
    def weighting(self) -> Weight:
        """The weight with its numbers."""
        return Weight(self.weight, self.min_snr_gamma, self.p2_k, self.p2_gamma)


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
    "planned_steps": 0,
}


@dataclass(frozen=True)
class RunConfig:
    """A whole run: the data, the model, the training, and where to compute."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    defaults: int = field(default=1, metadata={"option": False})  # the version of what filled in what was not said

    def __post_init__(self) -> None:
        defaults.check_version(self.defaults)


def check(tree: Mapping[str, Any]) -> None:
    """Refuse what can be refused before the pictures are read: all but the network, whose defaults follow from them.

    Raises:
        Error: whatever the configuration classes refuse.
    """
    tree = _filled(tree, defaults.version(tree))
    said = tree.get("model", {})
    model = {key: value for key, value in said.items() if key not in ("network", "shape")} | prediction(said)
    _check_training(trees.build(RunConfig, trees.merge(trees.plain(RunConfig()), {**tree, "model": model})))


def encoder_named(tree: Mapping[str, Any]) -> str:
    """The text encoder that a tree of settings names."""
    return str(tree.get("model", {}).get("text", {}).get("encoder", ""))


def resolve(
    tree: Mapping[str, Any],
    shape: tuple[int, int, int],
    size: Size = "small",
    own: str | None = None,
    classes: tuple[str, ...] = (),
    text: trees.Tree | None = None,
    shapes: tuple[tuple[int, int], ...] = (),
    before: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The whole configuration of a run from what its user said and the pictures' shape.

    What is not said is filled in: the network from the pictures' shape and `size`, everything else from the defaults.

    Args:
        own: the class name of a network the caller brings, in place of one of kuosan's.
        classes: the names of the data's classes, in the order of their labels.
        text: how captions are told, with what the data or the encoder decide filled in.
        shapes: (H, W) of all aspect-ratio buckets, where there are several.
        before: the stored configuration of the run that goes on; of one without a step its `defaults` alone.

    Raises:
        Error: whatever the configuration classes refuse, or a network that does not fit the pictures.
    """
    version = defaults.version(tree, before)
    tree = _filled(tree if text is None else trees.merge(tree, {"model": {"text": text}}), version)
    said = dict(tree.get("model", {}))
    task = network_settings.task(said, classes)
    codec = trees.build(ModelConfig, {"codec": said.get("codec", {})}).codec
    cells, step = codec.walk_shape(square(shape, shapes)), common_step(shapes) // codec.factor
    network: trees.Tree = (
        {"kind": "own", "name": own} if own else network_settings.network(tree, cells, size, task, version, step)
    )
    decided = {"shape": list(shape), "shapes": [list(each) for each in shapes], "task": task}
    model = trees.merge(trees.plain(ModelConfig()), {"network": network}, said, prediction(said), decided)
    longest = tree.get("train", {}).get("max_steps", TrainConfig.max_steps)
    train = trees.merge(tree.get("train", {}), {"planned_steps": defaults.planned(longest, before, version)})
    whole = {**tree, "model": model, "train": train, "defaults": version}
    config = trees.build(RunConfig, trees.merge(trees.plain(RunConfig()), whole))
    _check_fit(config)
    return config


def _filled(tree: Mapping[str, Any], version: int) -> Mapping[str, Any]:
    """The tree over the version's defaults, with what follows from captions and from training a classifier."""
    tree = codec_settings.filled(tree)
    told = tree.get("model", {}).get("text", {})
    if isinstance(told, Mapping) and told.get("kind", "none") != "none":
        tree = trees.merge(tree, {"model": {"task": {"text": True}}})
    said = {key: value for key, value in dict(tree.get("train", {})).items() if key == "objective"}
    objective = trees.build(RunConfig, {"train": said}).train.objective
    tree = defaults.laid_under(tree, version, objective)
    if objective == "autoencoder":
        return autoencoder_settings.filled(tree)
    return trees.merge(classifier_settings.FOLLOWS, tree) if objective == "classifier" else tree


def _check_fit(config: RunConfig) -> None:
    model, shape = config.model, config.model.shape
    assert shape is not None
    if model.network.kind == "classifier" and config.train.objective != "classifier":
        raise Error("model.network.kind = classifier: a classifier is trained with --objective classifier; say that.")
    if model.network.kind == "autoencoder" and config.train.objective != "autoencoder":
        raise Error("model.network.kind = autoencoder: it is trained with --objective autoencoder; say that.")
    _check_training(config)
    check_buckets(model)
    if config.train.objective == "classifier":
        classifier_settings.check_fit(model)
    if config.train.objective == "autoencoder":
        autoencoder_settings.check_fit(config.train, model)
    if isinstance(model.task, SuperResolution) and (shape[1] % model.task.scale or shape[2] % model.task.scale):
        raise Error(
            f"pictures of {shape[1]} x {shape[2]} cannot be shrunk by scale = {model.task.scale}: their sides must be "
            f"multiples of it. Set --size to one, or another --scale."
        )
    if isinstance(model.network, (OwnNetwork, ClassifierConfig, AutoencoderConfig)):
        return
    fitting.check(model, model.network)


def _check_text(model: ModelConfig, train: TrainConfig) -> None:
    """Refuse settings of text without text, and text that a network cannot be told. Raises: Error."""
    if train.uncaptioned != "refuse" and model.text.kind == "none":
        raise Error(f"train.uncaptioned = {train.uncaptioned} has no effect without text: say --text, or leave it out.")
    if model.task.text and model.text.kind == "none":
        raise Error("model.task.text = true follows from model.text: say --text bytes, or an encoder.")
    if isinstance(model.text, ByteText) and model.network.kind == "own":
        raise Error(
            "model.text.kind = bytes trains its transformer with kuosan's networks; one of your own is told by an "
            "encoder (--text encoder --encoder FOLDER), as network(x, t, context=, context_mask=)."
        )


def _check_training(config: RunConfig) -> None:
    model, train = config.model, config.train
    _check_text(model, train)
    codec_settings.check(train, model)
    if train.objective == "classifier":
        classifier_settings.check(train, model, USUAL_PREDICTION[model.schedule.kind])
    if train.objective == "autoencoder":
        autoencoder_settings.check(train, model, USUAL_PREDICTION[model.schedule.kind])
        return
    autoencoder_settings.refuse_elsewhere(train)
    if train.objective == "classifier":
        return
    loss_settings.check(train, model)
    if train.preview_every:
        try:
            choose(model, preview_request(train, model.task))
        except Error as error:
            raise Error(f"previews cannot be sampled: {error} Or --train.preview-every 0 for none.") from None


def preview_request(train: TrainConfig, task: Task) -> Request:
    """What a preview shows: always the same seeds, and where a task restores, always the same pictures."""
    restoration = None
    if isinstance(task, SuperResolution):
        down = "bicubic" if task.down == "bicubic" else "area"
        restoration = Restoration("held-out pictures", upscale=task.scale, down=down)  # type: ignore[arg-type]
    elif isinstance(task, Inpainting):
        restoration = Restoration("held-out pictures", mask="drawn")
    return Request(n=train.preview_pictures, seed=0, steps=train.preview_steps, restoration=restoration)
