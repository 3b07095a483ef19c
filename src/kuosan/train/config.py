"""What a training run is: one tree of frozen dataclasses. Torch-free; `resolve` fills in what was not said.

What a new run gets where its user says nothing, by version, and settings that are a share of a run. Torch-free.

The default of a field in a configuration class is what a stored configuration means that leaves the key out: it never
changes. What is given to new runs is laid under their user's settings here, and may change: then `VERSION` rises, a run
stores the version it began with (`defaults` in its config.yaml; none: 1), and goes on with that one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kuosan.config import build, merge
from kuosan.data.config import DataConfig
from kuosan.device import ComputeConfig
from kuosan.diffusion.registry import PREDICTION_ALIASES, Weight
from kuosan.errors import Error, unknown
from kuosan.models.model import ModelConfig
from kuosan.networks.config import Size
from kuosan.options import ANY, Tree, check, one_of, only

if TYPE_CHECKING:
    pass

# Short names for what people look for first, where the last part of a key would be ambiguous or is no key.
SHORT = {
    "channels": "data.channels",
    "size": "data.size",
    "schedule": "model.schedule.kind",
    "task": "model.task.kind",
    "codec": "model.codec.run",
    "text": "model.text.kind",
}

MOST_MINUTES = 100_000
TSampling = Literal["uniform", "continuous", "importance", "logit_normal"]
LR_SHAPES = ("constant", "cosine", "inverse_sqrt")


@dataclass(frozen=True)
class AutoencoderSettings:
    """What an autoencoder's training minimises, an image: recon + perceptual + kl + discriminator, each weighed."""

    recon: Literal["l1", "l2"] = "l1"  # the error of pixels: mean |x - y|, or mean (x - y)²
    perceptual: float = 0.1  # weight of the perceptual distance; 0: none
    features: Literal["auto", "lite0", "random", "none"] = field(
        default="auto", metadata=only(perceptual=ANY, idle=("none",))
    )  # perceptual: auto is lite0 if installed, else random
    kl: float = 1e-6  # weight of KL(posterior | N(0, I)), in nats a value of the image (Rombach et al. 2022)
    critic: float = 0.5  # weight of the discriminator, beside the adaptive one (Esser et al. 2021); 0: none
    crop: int = 0  # pixels a side of the window of each image that is trained on, drawn each time; 0: whole images
    critic_start: int | float = field(
        default=5000, metadata=only(critic=ANY)
    )  # steps, or the share of the run, before the discriminator learns and counts

    def __post_init__(self) -> None:
        for name in ("perceptual", "kl", "critic"):
            if not 0 <= getattr(self, name) < math.inf:
                raise Error(f"train.autoencoder.{name} = {getattr(self, name)} is not allowed: 0 or more.")
        if self.crop < 0:
            raise Error(f"train.autoencoder.crop = {self.crop} is not allowed: 0 pixels (whole images) or more.")
        check_steps("train.autoencoder.critic_start", self.critic_start)
        check(self, "train.autoencoder.")


_DENOISED = only(objective="diffusion")  # metadata of what only a denoiser's training heeds


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; new runs have other defaults than these, which are those of keys that a stored
    configuration leaves out: `GIVEN`, below."""

    objective: Literal["diffusion", "classifier", "autoencoder"] = "diffusion"  # train a denoiser, or one of these
    minutes: float = 0.0  # a time budget in place of max_steps: minutes from start to end; may be raised on resume
    max_steps: int = 20_000  # optimiser steps; may be raised on resume
    batch: int = 64  # images a step, over all processes
    micro_batch: int = 0  # images in memory at once, the rest accumulated; 0: the whole batch
    lr: float = 2e-4  # AdamW's learning rate after warm-up
    warmup: int | float = 200  # steps from 0 to lr, or their share of the run; stored in steps
    lr_shape: str = field(
        default="constant", metadata=one_of(*LR_SHAPES)
    )  # after warm-up: constant, cosine (to 0 at max_steps) or inverse_sqrt
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW's moment decays
    weight_decay: float = 0.0  # AdamW's decay, on matrices and kernels only
    clip: float = 1.0  # largest gradient norm; 0: no clipping
    loss: Literal["simple", "vlb", "hybrid"] = field(
        default="simple", metadata=_DENOISED
    )  # what is minimised: the weighted error, the bound, or both
    weight: str = field(
        default="simple", metadata=_DENOISED
    )  # the error's weight over noise levels: simple, min_snr, ...
    min_snr_gamma: float = field(
        default=5.0, metadata=_DENOISED
    )  # min_snr: the largest SNR that counts (Hang et al. 2023)
    p2_k: float = field(default=1.0, metadata=_DENOISED)  # p2: k of 1/(k + SNR)^gamma (Choi et al. 2022)
    p2_gamma: float = field(default=1.0, metadata=_DENOISED)  # p2: gamma of the same
    vlb_weight: float = field(
        default=0.001, metadata=only(objective="diffusion", loss="hybrid")
    )  # hybrid: the bound's weight beside the error (Nichol & Dhariwal 2021)
    vlb_variance: Literal["posterior", "beta"] = field(
        default="posterior", metadata=only(objective="diffusion", loss="vlb")
    )  # vlb: the steps' variance, where none is learned
    t_sampling: TSampling = field(
        default="uniform", metadata=_DENOISED
    )  # discrete: how t is drawn; continuous: between whole t as well (SR3)
    t_mean: float = field(
        default=0.0, metadata=only(objective="diffusion", t_sampling="logit_normal")
    )  # logit_normal: mean of logit(t/T) (Esser et al. 2024)
    t_std: float = field(
        default=1.0, metadata=only(objective="diffusion", t_sampling="logit_normal")
    )  # logit_normal: standard deviation of logit(t/T)
    offset_noise: float = field(
        default=0.0, metadata=only(objective="diffusion", loss="simple", because="the bound is one of plain noise")
    )  # strength of a noise that all pixels of a channel share; 0: none, 0.1 is usual
    ema: float = 0.1  # width of the average of the weights as a fraction of the run (Karras et al. 2024); 0: no average
    uncaptioned: Literal["refuse", "empty"] = field(
        default="refuse", metadata=_DENOISED
    )  # text: images without a caption; empty: as of no text
    autoencoder: AutoencoderSettings = field(
        default_factory=AutoencoderSettings, metadata=only(objective="autoencoder")
    )  # what an autoencoder minimises
    seed: int = 0  # of everything drawn in training
    save_every: int = 500  # steps between saves; -1: at the looks of a time budget
    keep: int = 2  # saves kept, the newest; at least 2
    evaluate_every: int = 500  # steps between held-out losses; 0: never, -1: at the looks of a time budget
    evaluate_images: int = field(default=256, metadata={"key": "evaluate_pictures"})  # held-out images in that loss
    preview_every: int = 1000  # steps between preview grids; 0: never, -1: at the looks of a time budget
    preview_images: int = field(
        default=16, metadata={"key": "preview_pictures", **only(objective=("diffusion", "autoencoder"))}
    )  # images in a preview
    preview_steps: int = field(default=20, metadata=_DENOISED)  # DPM-Solver++ steps of a preview
    log_to: Literal["files", "tensorboard"] = "files"  # log.jsonl and log.csv, or these and TensorBoard's files as well
    bad_steps: int = 10  # steps in a row without a finite loss and gradient before going back to the last save
    planned_minutes: float = field(
        default=0.0, metadata={"option": False}
    )  # the budget when the run began, in minutes of one core, by which its network and batch were chosen
    planned_steps: int = field(
        default=0, metadata={"option": False}
    )  # max_steps when the run began, of which warmup and critic_start may be shares; 0: of max_steps

    def __post_init__(self) -> None:
        check_steps("train.warmup", self.warmup)
        if not 0 <= self.minutes <= MOST_MINUTES:
            raise Error(
                f"train.minutes = {self.minutes} is not allowed: above 0, at most {MOST_MINUTES:,} (69 days), or 0 for "
                f"no time budget; train.max_steps sets a longer run's end."
            )
        for name, low in _WHOLE.items():
            if getattr(self, name) < (_BUDGETED.get(name, low) if self.minutes else low):
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
        check_alone(self)
        if self.minutes:
            return  # shares stay shares, of a number of steps that is not known
        planned = self.planned_steps or self.max_steps
        object.__setattr__(self, "warmup", steps_of(self.warmup, planned))
        start = steps_of(self.autoencoder.critic_start, planned)
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
    "evaluate_images": 1,
    "preview_every": 0,
    "preview_images": 1,
    "preview_steps": 1,
    "bad_steps": 1,
    "seed": 0,
    "planned_steps": 0,
}


# What is allowed besides under a time budget: no number of steps, and looks by time.
_BUDGETED = {"max_steps": 0, "save_every": -1, "evaluate_every": -1, "preview_every": -1}


# What may change while a run goes on, from a step on; all else that is learned from is fixed.
CHANGEABLE = ("lr", "lr_shape", "weight_decay", "ema", "batch")


@dataclass(frozen=True)
class Change:
    """Those settings from a step on, `step` steps having been taken."""

    step: int
    lr: float
    lr_shape: str
    weight_decay: float
    ema: float
    batch: int


@dataclass(frozen=True)
class Course:
    """The settings of each step: those of the last change at or before it. The first change is of step 0."""

    changes: tuple[Change, ...] = ()  # by step; none: as the configuration says

    def at(self, step: int, train: TrainConfig) -> TrainConfig:
        """The settings of the step that follows `step` others."""
        if not self.changes:
            return train
        found = [each for each in self.changes if each.step <= step][-1]
        if all(getattr(train, name) == getattr(found, name) for name in CHANGEABLE):
            return train
        return replace(train, **{name: getattr(found, name) for name in CHANGEABLE})

    def changed(self, step: int, before: TrainConfig, now: TrainConfig) -> Course:
        """With what is asked for now from a step on, in place of what was planned from there; `before` holds until it
        where nothing changed yet."""
        earlier = tuple(each for each in self.changes if each.step < step)
        if step and not earlier:
            earlier = (_change(0, before),)
        return Course((*earlier, _change(step, now)))

    def plain(self) -> list[dict[str, Any]]:
        """As JSON holds it."""
        return [asdict(each) for each in self.changes]


def _change(step: int, train: TrainConfig) -> Change:
    return Change(step, *(getattr(train, name) for name in CHANGEABLE))


def read_course(entries: Any) -> Course:
    """A course from JSON. Raises: ValueError: it is something else."""
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise ValueError("it is no list of changes")
    names = {"step", *CHANGEABLE}
    for each in entries:
        if set(each) != names or type(each["step"]) is not int:
            raise ValueError(f"{each} is no change")
    found = [_change(each["step"], build(TrainConfig, {n: each[n] for n in CHANGEABLE})) for each in entries]
    if found and (found[0].step != 0 or [each.step for each in found] != sorted({each.step for each in found})):
        raise ValueError("its steps do not rise from 0")
    return Course(tuple(found))


@dataclass(frozen=True)
class RunConfig:
    """A whole run: the data, the model, the training, and where to compute."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    defaults: int = field(default=1, metadata={"option": False})  # the version of what filled in what was not said

    def __post_init__(self) -> None:
        check_version(self.defaults)


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
    check(train, "train.")
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


VERSION = 3

# What a version gives where the classes' own defaults (version 1) are others: 2 recipe portraits' settings, 3 what
# docs/recipes.md found. Not all of it everywhere; `laid_under_defaults` says where.
_GIVEN_2: Mapping[str, Any] = {
    "model.prediction": "x0",
    "model.schedule.betas": "cosine",
    "train.batch": 32,
    "train.lr": 1e-3,
    "train.warmup": 0.1,
    "train.lr_shape": "cosine",
    "train.weight": "min_snr",
    "train.autoencoder.critic_start": 0.5,
}
GIVEN: Mapping[str, Any] = {
    **_GIVEN_2,
    "train.batch": 16,
    "train.weight": "simple",
    "train.t_sampling": "logit_normal",
}


class BudgetRow(NamedTuple):
    """What a diffusion model gets under a time budget where nothing is said, by the size of what is denoised."""

    pixels: int  # the longer side, up to which the row holds
    minutes: float  # of one core, the budget from which it holds; of the rows that fit, the last one counts
    network: Size
    batch: int
    lr: float
    warmup: float  # as a share of the run
    lr_shape: str
    ema: float


_ROWS_2 = (  # one row a size: the defaults of version 2
    BudgetRow(32, 0, "small", 32, 1e-3, 0.1, "cosine", 0.1),
    BudgetRow(64, 0, "small", 32, 1e-3, 0.1, "cosine", 0.1),
    BudgetRow(128, 0, "small", 32, 1e-3, 0.1, "cosine", 0.1),
    BudgetRow(1 << 20, 0, "small", 32, 1e-3, 0.1, "cosine", 0.1),
)
# What docs/recipes.md found at 32 pixels. Larger images cost so many times as much, and their rows are by analogy. A
# row that changes raises VERSION.
_NETWORKS: tuple[tuple[int, float, Size], ...] = (
    *((32, 0, "tiny"), (32, 4, "small")),
    *((64, 0, "tiny"), (64, 16, "small")),
    *((128, 0, "tiny"), (128, 64, "small")),
    *((1 << 20, 0, "tiny"), (1 << 20, 64, "small")),
)
BUDGET_ROWS = tuple(
    BudgetRow(pixels, minutes, network, 16, 1e-3, 0.1, "cosine", 0.1) for pixels, minutes, network in _NETWORKS
)


def budget_row(pixels: int, minutes: float, version: int = VERSION) -> BudgetRow:
    """The row of a side in pixels (of latents: in cells) and a budget in minutes of one core."""
    rows = BUDGET_ROWS if version >= 3 else _ROWS_2
    side = next(each.pixels for each in rows if pixels <= each.pixels)
    return [each for each in rows if each.pixels == side and each.minutes <= minutes][-1]


def under_budget(tree: Mapping[str, Any]) -> Tree:
    """A tree with a time budget, with what follows from it: no number of steps, and looks by time."""
    looks = dict.fromkeys(("save_every", "evaluate_every", "preview_every"), -1)
    return merge({"train": looks}, tree, {"train": {"max_steps": 0}})


_LINEAR = ("beta_start", "beta_end")  # numbers that cosine betas have not


def defaults_version(tree: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> int:
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


def laid_under_defaults(tree: Mapping[str, Any], number: int, objective: str) -> Tree:
    """The tree, over the defaults of a version in as far as they have a meaning for what the tree asks for."""
    if number == 1:
        return dict(tree)
    train, model = _group(tree, "train"), _group(tree, "model")
    values = GIVEN if number >= 3 and objective == "diffusion" else _GIVEN_2
    given: Tree = {name: values[f"train.{name}"] for name in ("batch", "lr", "warmup", "lr_shape")}
    under: Tree = {"train": given, "model": {}}
    schedule = _group(model, "schedule")
    discrete = "schedule" not in model or (bool(schedule) and schedule.get("kind", "discrete") == "discrete")
    noisy = objective == "diffusion" or (objective == "classifier" and _group(model, "network").get("noisy", True))
    if discrete and noisy is not False and "betas" not in schedule and not any(name in schedule for name in _LINEAR):
        under["model"]["schedule"] = {"kind": "discrete", "betas": GIVEN["model.schedule.betas"]}
    if objective == "diffusion" and discrete:
        under["model"]["prediction"] = GIVEN["model.prediction"]
        given |= _loss(train, model, values)
    if objective == "autoencoder" and not _is_zero(_group(train, "autoencoder").get("critic")):
        given["autoencoder"] = {"critic_start": GIVEN["train.autoencoder.critic_start"]}
    return merge(under, tree)


def _loss(train: Mapping[str, Any], model: Mapping[str, Any], values: Mapping[str, Any]) -> Tree:
    """The weight and how t is drawn, of a discrete schedule, where they have a meaning."""
    if train.get("loss", "simple") == "vlb":  # the bound has its own weight
        return {}
    if _group(model, "schedule").get("zero_terminal_snr", False) and values is _GIVEN_2:
        return {}  # where the SNR is 0, min_snr would leave a level untrained
    if values is _GIVEN_2:
        return {"weight": values["train.weight"]}
    # measured were images that are predicted, by the error alone, with these two together
    said = str(model.get("prediction", "x0"))
    measured = PREDICTION_ALIASES.get(said, said) == "x0" and train.get("loss", "simple") == "simple"
    if not measured or any(name in train for name in ("weight", "min_snr_gamma")):
        return _loss(train, model, _GIVEN_2)
    return {"weight": values["train.weight"], "t_sampling": values["train.t_sampling"]}


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


def steps_of(value: float, run: int) -> int:
    """Steps, of a whole number of them or of a share of a run of `run` steps, rounded down."""
    return int(value) if value >= 1 else int(value * run)


def planned_steps(max_steps: Any, before: Mapping[str, Any] | None, number: int) -> Any:
    """The length of which a run's settings may be shares: its first one, however long it becomes; 0 in version 1."""
    if before is not None and "train" in before:
        return before["train"].get("planned_steps", 0)
    return 0 if number == 1 else max_steps


def recipe(name: str) -> Path:
    """A YAML file by its path, or one of kuosan's own recipes by its name.

    Raises:
        Error: neither.
    """
    own = Path(__file__).parent.parent / "recipes"
    if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
        return Path(name)
    names = sorted(path.stem for path in own.glob("*.yaml"))
    if name not in names:
        raise unknown("recipe", name, names)
    return own / f"{name}.yaml"
