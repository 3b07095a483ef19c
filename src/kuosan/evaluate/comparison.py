"""What restorers are compared on: which images, what is done to them, who restores them. Torch-free.

Who is compared, as a person types it: RUN[:METHOD][,key=value...], resolved to a request of each. Torch-free.

What a comparison of restorers found: every image's values, and the tables made of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import kuosan
from kuosan import config as trees
from kuosan import options
from kuosan.device import ComputeConfig
from kuosan.errors import Error, plural, unknown
from kuosan.evaluate.report import FigureTable, Report, ReportedResult, figure
from kuosan.metrics.estimate import Estimate, mean
from kuosan.metrics.features.names import FEATURES
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.sample import request as restoring
from kuosan.sample.plan import Choice, choose
from kuosan.sample.request import BOX, METHODS, Request, Restoration
from kuosan.tasks.task import KINDS

if TYPE_CHECKING:
    from kuosan.models.model import ModelConfig

FOLDER = Path("comparisons")  # where comparisons are kept if nobody says
MOST = (100_000, 1000)  # images, and answers to each


@dataclass(frozen=True)
class ComparisonConfig:
    """What is done to which images, and by whom it is undone.

    Attributes:
        images: whole images: what `data.path` may be; of a data set with a split of its own the held-out ones.
        contestants: a contestant: RUN, RUN:METHOD or RUN:METHOD,key=value,...; repeated for each. Methods and keys are
            those of `kuosan restore` (ddnm, pigdm, dps, repaint; steps, sampler, eta, push, ...).
        upscale: the images are made so many times smaller.
        down: with upscale: how they are shrunk.
        deblur: std of the blur they go through, in pixels.
        colorise: their colours are taken.
        noise: std of the noise they are given, of 255.
        mask: what is cut out of them: kinds of masks with commas between, each image's drawn, or a box x,y,w,h.
        n: how many images, drawn by a fixed key.
        variants: answers to an image by each contestant.
        seed: answer k to image i has seed + i * variants + k, so that contestants on one run share their noise.
        features: the network of the perceptual distance.
        batch: answers computed together.
        unseen: leave out the images that a contestant was trained on.
        force: compare on images that a contestant was trained on.
        out: the folder to write; comparisons/NAME if not given.
        compute: where the networks run.
    """

    images: str = field(default="", metadata={"key": "pictures"})
    contestants: tuple[str, ...] = field(default=(), metadata={"flags": ("with",), "whole": True})
    upscale: int | None = None
    down: Literal["area", "bicubic"] = field(default="area", metadata=options.only(upscale=options.SET))
    deblur: float | None = None
    colorise: bool = field(default=False, metadata={"flags": ("colorise", "colorize")})
    noise: float = 0.0
    mask: str | None = None
    n: int = field(default=64, metadata={"flags": ("-n",)})
    variants: int = 8
    seed: int = 0
    features: str = field(default="lite0", metadata=options.one_of(*FEATURES))
    batch: int = 16
    unseen: bool = False
    force: bool = False
    out: str | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "contestants", tuple(self.contestants))
        if not self.images:
            raise Error("no images to compare on: kuosan compare IMAGES --upscale 4 --with RUN.")
        if not self.contestants:
            raise Error("nobody to compare: name at least one run, as in --with runs/photos:ddnm.")
        for name, value, low, high in (("n", self.n, 2, MOST[0]), ("variants", self.variants, 1, MOST[1])):
            if not low <= value <= high:
                raise Error(f"{name} = {value} is not allowed: {low:,} to {high:,}.")
        if not 1 <= self.batch <= 4096:
            raise Error(f"batch = {self.batch} is not allowed: 1 to 4096.")
        if not 0 <= self.seed < 2**62:
            raise Error(f"seed = {self.seed} is not allowed: 0 to 2^62 - 1.")
        options.check(self)
        if self.unseen and self.force:
            raise Error("unseen and force cannot both be given: one leaves training images out, the other keeps them.")
        masked(self.mask)
        self.restoration()

    def restoration(self, method: str | None = None) -> Restoration:
        """The damage as what is to be undone. Raises: Error for none, or an impossible one."""
        return Restoration(
            self.images, mask=self.mask, upscale=self.upscale, down=self.down if self.upscale else None,
            deblur=self.deblur, colorise=self.colorise, noise=self.noise, method=method,
        )  # fmt: skip

    @property
    def damage(self) -> str:
        """What is done to the images, in words."""
        said = [
            f"{self.upscale} times smaller by {self.down}" if self.upscale else "",
            f"blurred by {self.deblur:g} pixels" if self.deblur else "",
            "without colours" if self.colorise else "",
            f"cut by {self.mask}" if self.mask else "",
            f"with noise of {self.noise:g}" if self.noise else "",
        ]
        return ", ".join(part for part in said if part)

    def folder(self) -> Path:
        """Where the comparison is kept: named by its damage, and by a digest of all settings."""
        if self.out:
            return Path(self.out)
        own = trees.plain(replace(self, out=None, compute=ComputeConfig()))
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
        parts = [
            f"upscale-{self.upscale}" if self.upscale else "",
            f"deblur-{self.deblur:g}" if self.deblur else "",
            "colorise" if self.colorise else "",
            f"mask-{self.mask.replace(',', '-').replace(' ', '')}" if self.mask else "",
            f"noise-{self.noise:g}" if self.noise else "",
            Path(self.images).stem or "pictures",
            f"n{self.n}",
            digest,
        ]
        return FOLDER / re.sub(r"[^\w.-]", "_", "-".join(part for part in parts if part))


def masked(mask: str | None) -> tuple[str, ...] | tuple[int, int, int, int] | None:
    """The kinds that masks are drawn from, or the box that is cut out; None without a mask.

    Raises:
        Error: neither a kind nor a box.
    """
    if mask is None:
        return None
    if BOX.fullmatch(mask):
        left, top, width, height = (int(part) for part in mask.split(","))
        if min(left, top) < 0 or min(width, height) < 1:
            raise Error(f"mask {mask}: a box is x,y,w,h in pixels from the upper left corner, w and h above 0.")
        return left, top, width, height
    kinds = tuple(part.strip() for part in mask.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of mask", kind, [*KINDS, "x,y,w,h (a box in pixels)"])
    return kinds


CHECKPOINTS = "checkpoints"  # the folder of a run that holds its checkpoints
COMMON = ("n", "batch", "image", "strength", "between")  # of a request: one for all contestants, or of no use here
OWN = ("push", "jumps", "jump_length")  # of a restoration: what is a contestant's; the rest is the damage


@dataclass(frozen=True)
class Contestant:
    """One run and how it restores; `request` is one answer's, before the method's usual steps are filled in."""

    text: str  # as it was typed
    run: str
    method: str | None
    settings: dict[str, Any]  # as they were typed
    request: Request

    @property
    def name(self) -> str:
        """The run's folder and the method, where one was named."""
        return f"{_folder(self.run)}: {self.method}" if self.method else _folder(self.run)

    @property
    def identity(self) -> tuple[str, Request, bool]:
        """All that the answers follow from; a sampler that is named keeps a method from its usual one."""
        return self.run, self.request, "sampler" in self.settings

    def _shown(self, model: ModelConfig) -> Request:
        """The request; how the image was shrunk is no news to a model that was trained to enlarge, and left out."""
        damage = self.request.restoration
        if damage is None or self.method is not None or model.task.kind != "super_resolution":
            return self.request
        return replace(self.request, restoration=replace(damage, down=None))

    @property
    def typed(self) -> str:
        """The settings, in words."""
        return ", ".join(f"{key} {value}" for key, value in self.settings.items())

    def resolved(self, model: ModelConfig) -> tuple[Request, Choice]:
        """The request with its method's usual sampler and steps, and what that asks of the run's model.

        Raises:
            Error: a model that cannot undo this damage, or not so.
        """
        try:
            if isinstance(model.network, ClassifierConfig):
                raise Error("this is a classifier, which makes no images; name a run that does.")
            request = self._shown(model)
            request = restoring.usual(model, request, named="sampler" in self.settings)
            return request, choose(model, request)
        except Error as error:
            raise Error(f"--with {self.text}: {error}") from None


def contestants(config: ComparisonConfig) -> list[Contestant]:
    """Everybody that a comparison names.

    Raises:
        Error: an unknown method or setting, one that is no contestant's own, somebody twice.
    """
    found = [parse(text, config) for text in config.contestants]
    for i, one in enumerate(found):
        if any(one.identity == other.identity for other in found[:i]):
            raise Error(f"--with {one.text} is given twice: the answers would be the same; leave one out.")
    return found


def parse(text: str, config: ComparisonConfig) -> Contestant:
    """One contestant. Raises: Error, naming what was typed."""
    head, pairs = _split(text)
    run, method = _method(head, text)
    own = {option for option in (*(f.name for f in fields(Request)), *OWN)} - {*COMMON, "restoration"}
    for key, _ in pairs:
        if key in COMMON or (key not in own and key in {f.name for f in fields(Restoration)}):
            cure = f"{head}:{dict(pairs)[key]}" if key == "method" else f"--{key.replace('_', '-')}"
            raise Error(f"--with {text}: {key} is no setting of one contestant: all are compared alike; say {cure}.")
        if key not in own:
            raise unknown(f"setting of --with {text}:", key, sorted(own))
    try:
        tree, _ = options.parse(
            [word for key, value in pairs if key not in OWN for word in _words(key, value)], Request
        )
        more, _ = options.parse([f"--{key}={value}" for key, value in pairs if key in OWN], Restoration)
        restoration = trees.plain(config.restoration(method)) | more
        whole = {"seed": config.seed, "n": 1, "batch": config.batch, **tree, "restoration": restoration}
        request = trees.build(Request, whole)
    except Error as error:
        raise Error(f"--with {text}: {error}") from None
    if len(request.classes) > 1:
        raise Error(f"--with {text}: one class for all images, or none; compare several as contestants of their own.")
    return Contestant(text, run, method, dict(pairs), request)


def names(found: Sequence[Contestant]) -> list[str]:
    """What each is called: by its run and method, those that share both by their settings, then by the whole path."""
    plain = [one.name for one in found]
    named = [_with(name, one) if plain.count(name) > 1 else name for name, one in zip(plain, found)]
    twice = {name for name, count in Counter(named).items() if count > 1}
    paths = [f"{one.run}: {one.method}" if one.method else one.run for one in found]
    return [_with(path, one) if name in twice else name for name, path, one in zip(named, paths, found)]


def _with(name: str, one: Contestant) -> str:
    if not one.typed:
        return name
    return f"{name}, {one.typed}" if one.method else f"{name}: {one.typed}"


def _words(key: str, value: str) -> list[str]:
    """A setting as options are typed: several classes one by one."""
    return [f"--{key}={part}" for part in (value.split(",") if key == "classes" else [value])]


def _split(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The head, and keys with values; a comma that no `key=` follows belongs to what stands before it."""
    head, pairs = "", list[tuple[str, str]]()
    for i, part in enumerate(text.split(",")):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if i and equals and key.isidentifier():
            if key in dict(pairs):
                raise Error(f"--with {text}: {key} is given twice.")
            pairs.append((key, value.strip()))
        elif pairs:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{part.strip()}")
        else:
            head = f"{head},{part}" if i else part
    return head.strip(), pairs


def _method(head: str, text: str) -> tuple[str, str | None]:
    """The run and the method of a head; a path may hold colons of its own."""
    run, colon, method = head.rpartition(":")
    if not colon or (Path(head).exists() and method not in METHODS):
        run, named = head, None
    elif method not in METHODS:
        raise unknown(f"method of --with {text}:", method, METHODS)
    else:
        named = method
    if not run:
        raise Error(f"--with {text!r} names no run: RUN, RUN:METHOD or RUN:METHOD,key=value, as runs/photos:ddnm.")
    return run, named


def _folder(run: str) -> str:
    """A run's own name; a checkpoint's with its step."""
    path = Path(run)
    if path.parent.name == CHECKPOINTS:
        return f"{path.parent.parent.resolve().name} {path.name}"
    return path.name or path.resolve().name


FORMAT = 1
NAME, SHEET = "result.json", "sheet.png"

NEAR = {  # the first table's columns: a measure's name -> its title and digits
    "psnr": ("PSNR", 2),
    "psnr_mean": ("PSNR of the mean", 2),
    "psnr_hole": ("PSNR in the hole", 2),
    "ssim": ("SSIM", 4),
    "perceptual": ("perceptual", 3),
    "psnr_more": ("PSNR - first", 2),
    "perceptual_more": ("perceptual - first", 3),
}
APART = {  # the second's
    "consistency": ("consistency", 2),
    "spread": ("std of answers", 2),
    "diversity": ("perceptual of two", 3),
    "shift": ("shift", 2),
    "shift_r": ("shift R", 2),
    "shift_g": ("shift G", 2),
    "shift_b": ("shift B", 2),
}
PAIRED = ("psnr", "perceptual")
EXPLAINED = (
    "PSNR (dB), SSIM: higher is nearer; perceptual: lower is nearer. - first: how much more than the first "
    "contestant's, image by image. Consistency: grey levels (of 255) between the degraded images and the answers "
    "damaged again; std, shift: grey levels. ± one standard error over the images."
)


@dataclass(frozen=True)
class Scores:
    """One way to restore, measured; `values` holds a number an image for each measure, its answers averaged."""

    name: str
    values: dict[str, list[float]]
    variants: int = 1
    evaluations: int | None = None  # of the network, an answer; None for a rule
    seconds: float = 0.0  # an answer
    made: dict[str, Any] = field(default_factory=dict)  # run, step, weights, request, ...: empty for a rule

    @property
    def figures(self) -> dict[str, Estimate]:
        """The mean of each measure with its standard error over the images."""
        return {name: mean(values) for name, values in self.values.items()}

    def more(self, first: Scores) -> dict[str, Estimate]:
        """How much more than another's, image by image."""
        return {f"{name}_more": mean(np.subtract(self.values[name], first.values[name])) for name in PAIRED}


@dataclass(frozen=True)
class Comparison(ReportedResult):
    """Everybody's scores on the same damaged images, and all that they depend on."""

    damage: str  # in words
    settings: dict[str, Any]
    shape: tuple[int, int, int]
    images: tuple[str, ...] = field(metadata={"key": "pictures"})
    fingerprint: str  # of their data set
    features: dict[str, Any]  # of the perceptual distance: name, hash, resizing
    floor: float | None  # the truth's own consistency: what rounding leaves
    rules: tuple[Scores, ...] = ()
    contestants: tuple[Scores, ...] = ()
    lacking: tuple[str, ...] = ()  # contestants that were not reached
    notes: tuple[str, ...] = ()
    compute: str = ""
    folder: str = ""
    version: str = kuosan.__version__
    format: int = FORMAT

    @property
    def everybody(self) -> tuple[Scores, ...]:
        """Rules first."""
        return (*self.rules, *self.contestants)

    def __getitem__(self, name: str) -> Scores:
        """The scores of one, by its name."""
        return next(one for one in self.everybody if one.name == name)

    def about(self) -> list[str]:
        """What the figures are of, in sentences."""
        channels, height, width = self.shape
        colour = "grey" if channels == 1 else "colour"
        own = self.settings
        lines = [
            f"{plural(len(self.images), 'image')} of {own['pictures']} ({self.fingerprint[:12]}), {width}x{height} "
            f"{colour}, {self.damage}; {plural(own['variants'], 'answer')} each, from seed {own['seed']}.",
            *(f"{note[0].upper()}{note[1:]}." for note in self.notes),
            *(described(one) for one in self.contestants),
            f"Perceptual: {self.features['name']} (weights {self.features['hash'][:12]}), {self.features['resizing']}.",
        ]
        if self.floor is not None:
            lines.append(f"The truth's own consistency is {self.floor:.2f}: what rounding leaves.")
        if self.compute:
            lines.append(f"Computed on {self.compute}.")
        return lines + ([f"Not finished: {', '.join(self.lacking)}."] if self.lacking else [])

    def tables(self) -> list[FigureTable]:
        """How near the answers come; how they keep to the damaged image, and what they cost."""
        near, apart = self._table(NEAR), self._table(APART)
        apart.heads.extend(["evaluations", "s/answer"])
        for row, one in zip(apart.rows, self.everybody):
            row.extend(["" if one.evaluations is None else str(one.evaluations), f"{one.seconds:.3g}"])
        return [near, apart]

    def _table(self, columns: dict[str, tuple[str, int]]) -> FigureTable:
        found = [self._figures(one) for one in self.everybody]
        names = [name for name in columns if any(name in figures for figures in found)]
        rows = [
            [one.name, *(figure(figures.get(name), columns[name][1], signed=_signed(name)) for name in names)]
            for one, figures in zip(self.everybody, found)
        ]
        return FigureTable(["", *(columns[name][0] for name in names)], rows)

    def _figures(self, one: Scores) -> dict[str, Estimate]:
        first = self.contestants[0] if self.contestants else None
        return one.figures | (one.more(first) if first is not None and one is not first else {})

    def report(self) -> Report:
        """Sentences, two tables, what their columns mean; every value, each image's too."""
        tree = trees.plain(self)
        for part, scores in (("rules", self.rules), ("contestants", self.contestants)):
            for row, one in zip(tree[part], scores):
                row["figures"] = {name: asdict(estimate) for name, estimate in self._figures(one).items()}
        return Report(NAME, [self.about(), *self.tables(), [EXPLAINED]], tree)


def described(one: Scores) -> str:
    """A contestant in a sentence."""
    made = one.made
    weights = f"{made['run']}, step {made['step']:,}, weights {made['weights'][:12]}"
    how = f"{made['method'] or 'as it was trained'}, {made['sampler']}, {made['steps']} steps"
    more = "".join(f"{key} {value}, " for key, value in made["settings"].items() if key not in ("sampler", "steps"))
    return f"{one.name}: {weights}; {how}, {more}{one.evaluations:,} network evaluations an answer."


def _signed(name: str) -> bool:
    """Whether a figure is a difference."""
    return name.endswith("_more") or name.startswith("shift")
