"""What to measure, on how many images, against which: one frozen dataclass for the shell and Python. Torch-free.

The points of a sweep: every combination of the values given, each a request of its own. Torch-free.

All points share n and the seeds, so that two of them differ image by image and their difference has a small error.

What an autoencoder is measured on: which images, at which size, in which tiles. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuosan import config as trees
from kuosan import options
from kuosan.data.config import SIZES
from kuosan.device import ComputeConfig
from kuosan.errors import Error, unknown
from kuosan.metrics.features import names
from kuosan.metrics.features.names import check_features
from kuosan.models.codec import Latents
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.options import ANY, SET, only
from kuosan.sample.plan import choose
from kuosan.sample.request import Request

if TYPE_CHECKING:
    from kuosan.models.model import ModelConfig
    from kuosan.sample.plan import Choice

METRICS = ("kid", "frechet", "prdc", "memorisation", "labels")
TRAIN, HELD_OUT = "train", "held_out"
SAMPLED = Request(n=1000, batch=50)
# Of a request: images that are no independent draws from the model.
USELESS = ("image", "strength", "between", "restoration")


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure, and how the images are made.

    Attributes:
        metrics: what to measure: kid, frechet, prdc (precision, recall, density, coverage), memorisation, labels; none
            given: all that these images allow.
        against: the real images: `train` or `held_out` of the run's own, or the path of others.
        data: where the run's own images are now, if they have moved.
        real: real images, drawn by a fixed key; none: as many as are made, or all of fewer.
        features: the feature network.
        judge: a run of a classifier, which names each image's class, for the labels metric.
        force: measure with fewer images than a metric is sound with, or against other images than were trained on.
        likelihood: bits a dimension of held-out images, by the variational bound and by the probability-flow ODE;
            without metrics named, nothing else is measured.
        likelihood_images: with likelihood: held-out images at most.
        ode_images: with likelihood: of them, how many the ODE is solved for; 0 for none.
        ode_steps: with likelihood: Runge-Kutta steps, four network evaluations each.
        sweep: FIELD=VALUE,VALUE,...: every value of a sampling option; several give all combinations.
        out: the folder to write; RUN/evaluations/NAME if not given.
        request: how the images are made.
        compute: where the networks run.
    """

    metrics: tuple[str, ...] = field(default=(), metadata=options.one_of(*METRICS))
    against: str = TRAIN
    data: str | None = field(
        default=None,
        metadata=only(against=(TRAIN, HELD_OUT), otherwise="against other images; give one path, with --against"),
    )
    real: int | None = None
    features: str = "lite0-128"
    judge: str | None = field(
        default=None,
        metadata=only(
            metrics=("labels", ()), otherwise="without the labels metric; name it in --metrics too, or leave it out"
        ),
    )
    force: bool = False
    likelihood: bool = False
    likelihood_images: int = field(default=256, metadata={"key": "likelihood_pictures", **only(likelihood=True)})
    ode_images: int = field(default=64, metadata={"key": "ode_pictures", **only(likelihood=True)})
    ode_steps: int = field(default=50, metadata=only(likelihood=True))
    sweep: tuple[str, ...] = ()
    out: str | None = None
    request: Request = SAMPLED
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name == "fid":
                raise Error("metric 'fid': say frechet, and give --features inception:FILE; on its features it is FID.")
        options.check(self)
        check_features(self.features)
        if self.real is not None and not 3 <= self.real <= 10_000_000:
            raise Error(f"real = {self.real} is not allowed: 3 to 10,000,000, or none for as many as are made.")
        if self.judge is None and "labels" in self.metrics:
            raise Error("the labels metric needs a judge: give --judge RUN, a classifier of clean images.")
        self._check_likelihood()
        for name in USELESS:
            if getattr(self.request, name) is not None:
                raise Error(f"{name} has no place in an evaluation, whose images are independent draws; leave it out.")

    @property
    def sampled(self) -> bool:
        """Whether images are made: not where only the likelihood is wanted."""
        return not self.likelihood or bool(self.metrics)

    def _check_likelihood(self) -> None:
        if self.likelihood_images < 2 or self.ode_images < 0 or self.ode_images == 1 or self.ode_steps < 2:
            raise Error("likelihood needs at least 2 images, 2 or none of them by the ODE, and 2 of its steps.")
        if not self.sampled and (self.sweep or self.judge or self.real is not None or self.request != SAMPLED):
            raise Error("likelihood alone makes no images, so settings of them have no effect: name --metrics too, "
                        "or leave them out.")  # fmt: skip


def configured(tree: Mapping[str, Any]) -> EvaluateConfig:
    """The configuration of a plain tree laid over the defaults.

    Raises:
        Error: unknown keys, wrong types, impossible values; a sampling option that is both given and swept.
    """

    usual, tree = trees.plain(EvaluateConfig()), trees.as_stored(EvaluateConfig, tree)
    swept = trees.build(EvaluateConfig, {"sweep": tree.get("sweep", ())}).sweep
    return trees.build(EvaluateConfig, trees.merge(usual, {"request": first(swept, tree.get("request", {}))}, tree))


SHARED = ("n", "seed", "batch", "exact", "size", "aspect")  # the same in all points
MOST_POINTS = 500  # points


@dataclass(frozen=True)
class Point:
    """One combination: what was set to what, and the request that follows."""

    setting: dict[str, Any]
    request: Request

    @property
    def name(self) -> str:
        """`steps 10, sampler ddim`, as tables and messages call it."""
        return _words(self.setting)


def shown(value: Any) -> str:
    """A value as a person wrote it."""
    if isinstance(value, tuple):
        return ":".join(shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def points(request: Request, sweep: Sequence[str]) -> list[Point]:
    """All combinations of `("steps=5", "10", "sampler=ddim", "heun")`; without a sweep one point, the request itself.

    Raises:
        Error: no such field, one that all points share, a value given twice; impossible values, all of them.
    """
    swept = dict(_swept(sweep))
    found, wrong = [], []
    for values in product(*swept.values()):
        tree = dict(zip(swept, values))
        try:
            built = trees.build(Request, {**trees.plain(request), **tree})
        except Error as error:
            wrong.append(f"{_words(tree)}: {error}")
            continue
        read = {key: getattr(built, key) for key in swept}
        found.append(Point(read | {key: tree[key] for key in swept if key == "sampler"}, built))  # as it was written
    _refuse(wrong, len(found) + len(wrong))
    if len(found) > MOST_POINTS:
        raise Error(f"the sweep has {len(found)} combinations; allowed: up to {MOST_POINTS}. Give fewer values.")
    return found


def first(sweep: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Each swept field with its first value, so that what goes with it (`negative`, say) is not without effect.

    Raises:
        Error: what `points` refuses of the words, or a field that is given beside its sweep.
    """
    values = {name: choices[0] for name, choices in _swept(sweep)}
    for name in values:
        if name in given:
            raise Error(f"{name} = {given[name]!r} has no effect with --sweep {name}=...; leave one of them out.")
    return values


def _prompted(model: ModelConfig, request: Request) -> Request:
    """The request with a prompt where a text model will be given captions."""
    return replace(request, prompts=("a caption",)) if model.task.text and not request.prompts else request


def check_sweep(model: ModelConfig, swept: Sequence[Point]) -> list[Choice]:
    """What each point asks of a model.

    Raises:
        Error: those that cannot be sampled and those that are another one again, all of them.
    """
    found: list[Choice] = []
    seen: dict[Request, Point] = {}
    wrong = []
    for point in swept:
        try:
            choice = choose(model, _prompted(model, point.request))
        except Error as error:
            wrong.append(f"{point.name}: {error}" if point.setting else str(error))
            continue
        found.append(choice)
        plain = replace(point.request, sampler=choice.sampler, steps=choice.grid_steps, spacing=choice.spacing)
        if plain in seen:
            wrong.append(f"{point.name}: the same as {seen[plain].name}; leave one out.")
        seen.setdefault(plain, point)
    _refuse(wrong, len(swept))
    return found


def _words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {shown(value)}" for key, value in setting.items())


def _refuse(wrong: Sequence[str], of: int) -> None:
    if wrong and of == 1:
        raise Error(wrong[0])
    if wrong:
        raise Error(f"{len(wrong)} of {of} combinations cannot be sampled, so none is:\n  " + "\n  ".join(wrong))


def _swept(words: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """Each field with its values, from words that a comma has split."""
    fields_ = {field.name for field in fields(Request)} - {*SHARED, *USELESS}
    together: dict[str, list[str]] = {}
    name = ""
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and not name:
            raise Error(f"sweep {word!r}: write FIELD=VALUE,VALUE,..., as in --sweep steps=5,10,20.")
        if equals:
            name = key.strip().replace("-", "_")
            name = {"class": "classes", "cfg": "guidance", "guidance_scale": "guidance"}.get(name, name)
            if name in SHARED:
                raise Error(f"sweep of {name}: all points share {', '.join(SHARED)}, so that they can be compared.")
            if name not in fields_:
                raise unknown("field to sweep", name, sorted(fields_))
            if name in together:
                raise Error(f"{name} is swept twice; give all its values at once: --sweep {name}=A,B,C.")
        value = (value if equals else word).strip()
        if not value:
            raise Error(f"sweep of {name}: a value is empty; write --sweep {name}=A,B,C.")
        together.setdefault(name, []).append(value)
    for name, values in together.items():
        if len(set(values)) < len(values):
            raise Error(f"sweep of {name}: a value is given twice in {', '.join(values)}.")
        yield name, [_typed(name, value) for value in values]


def _typed(name: str, text: str) -> Any:
    """A value's text as the field takes it: lists by colons, yes and no as in the shell."""
    annotation = options.hints(Request)[name]
    if options.is_list(annotation) and text != "none":
        return text.split(":")
    return options.boolean(name, text) if options.is_bool(annotation) else text


NONE = "none"  # the features of a report without them
MOST = 100_000  # images
_OTHERS = only(
    images=ANY, otherwise="on the run's own held-out images: leave it out, or name other IMAGES"
)  # of what counts on other images only


@dataclass(frozen=True)
class ReconstructionConfig:
    """Which images are encoded and decoded again, how, and by what the result is judged."""

    images: str = field(
        default="", metadata={"key": "pictures"}
    )  # a data set, or one image file; empty: the images that the run held out
    n: int = field(default=256, metadata={"flags": ("-n",)})  # how many images, drawn by a fixed key
    size: int | None = None  # pixels a side of a data set's images; as the run was trained if not given
    tile: int | None = None  # pixels a side of tiles; None: in one piece, but a large image file
    overlap: int | None = field(
        default=None, metadata=only(tile=SET, otherwise="without tiles: give --tile, or leave it out")
    )  # of tiles, in pixels; a quarter of a tile if not given
    features: str = "lite0"  # the network of KID and, where it has one, of the perceptual distance; or none
    batch: int = 16  # images computed together
    unseen: bool = field(default=False, metadata=_OTHERS)  # leave out the images that the run was trained on
    force: bool = field(default=False, metadata=_OTHERS)  # measure on images that the run was trained on
    out: str | None = None  # the folder to write; RUN/reconstructions/NAME if not given
    compute: ComputeConfig = field(default_factory=ComputeConfig)  # where the networks run

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MOST:
            raise Error(f"n = {self.n} is not allowed: 1 to {MOST:,} images.")
        if not 1 <= self.batch <= 4096:
            raise Error(f"batch = {self.batch} is not allowed: 1 to 4096.")
        if self.size is not None and not SIZES[0] <= self.size <= SIZES[1]:
            raise Error(f"size = {self.size} is not allowed: {SIZES[0]} to {SIZES[1]} pixels a side.")
        if self.unseen and self.force:
            raise Error("unseen and force cannot both be given: one leaves training images out, the other keeps them.")
        options.check(self)
        if self.features != NONE:
            names.check_features(self.features)

    def folder(self, home: Path, weights: str) -> Path:
        """Where the report is kept: named by the images, and by a digest of all settings and the weights."""
        if self.out:
            return Path(self.out)
        own = trees.plain(replace(self, out=None, compute=ComputeConfig(), batch=1))
        digest = hashlib.sha256(json.dumps([own, weights], sort_keys=True).encode()).hexdigest()[:8]
        tiles = f"-tiles{self.tile}" if self.tile else ""
        name = f"{Path(self.images).stem or 'held-out'}-n{self.n}{tiles}-{digest}"
        return home / "reconstructions" / re.sub(r"[^\w.-]", "_", name)


def require_autoencoder(config: ModelConfig, run: str | Path) -> None:
    """Raises: Error for a run that has no autoencoder."""
    if isinstance(config.network, AutoencoderConfig) or isinstance(config.codec, Latents):
        return
    what = "a classifier" if config.network.kind == "classifier" else "a model of pixels"
    raise Error(
        f"{run} is {what} and has no autoencoder: name the run of one (kuosan train IMAGES --objective "
        f"autoencoder), or of a model of its latents (--codec)."
    )
