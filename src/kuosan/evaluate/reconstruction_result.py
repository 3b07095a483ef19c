"""The images that an autoencoder is measured on: those its run held out, another data set's, or one image file.

What an autoencoder's latents look like over many images, and whether a diffusion model can learn them.

    bits = mean of log2(std of the channel / std of the posterior)

the KL of the posteriors to the channel's own N(mean, std^2): what a value says of its image, at most. A channel
that says nothing was given up to the KL term, and the decoder has learned to do without it. For stage two each
channel is shifted by its mean and scaled by 1/std.

What was found of an autoencoder: every image's values, its latents, and the tables made of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, log2, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import kuosan
from kuosan import config as trees
from kuosan.data.config import PORTRAITS, DataConfig
from kuosan.data.dataset import Images, open_images
from kuosan.data.decoding import read_header
from kuosan.data.footprint import MAX_BYTES
from kuosan.data.headers import Refused, is_known, read_image
from kuosan.data.pixels import is_grey, with_channels
from kuosan.data.reading import Reading
from kuosan.data.scan import Progress
from kuosan.errors import Error, plural
from kuosan.evaluate import eval_images, train_overlap
from kuosan.evaluate.config import HELD_OUT, ReconstructionConfig
from kuosan.evaluate.report import FigureTable, Report, ReportedResult, figure
from kuosan.evaluate.train_overlap import Schooling
from kuosan.metrics.estimate import Estimate, mean
from kuosan.models.latents import Measured
from kuosan.storage.cache import NEAR, Results

if TYPE_CHECKING:
    from kuosan.networks.autoencoder import Moments

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class InputImages:
    """Images in an order drawn by a fixed key; `at` gives those at places first to last - 1, (B, C, H, W) uint8."""

    what: str
    names: tuple[str, ...]
    shape: Shape
    fingerprint: str
    at: Callable[[int, int], np.ndarray]
    notes: tuple[str, ...] = ()
    single: bool = False  # one image file, at its own size

    def __len__(self) -> int:
        return len(self.names)


def open_inputs(
    config: ReconstructionConfig, shape: Shape, runs: Mapping[str, Schooling], progress: Progress | None = None
) -> InputImages:
    """Open what is named, with the channels of `shape` (C, H, W), the images that the run was trained on.

    Args:
        runs: what the run was trained on, and the run of its autoencoder where that is another; the first is its own.

    Raises:
        Error: no such images, none at all, or some that a run was trained on.
    """
    wanted = shape if config.size is None else (shape[0], config.size, config.size)
    if not config.images:
        return _held_out(config, next(iter(runs)), runs, progress)
    path = Path(config.images).expanduser()
    if config.images != PORTRAITS and path.is_file() and (content := _image(path)) is not None:
        return _file(config, path, content, shape[0], next(iter(runs.values())).reading)
    if not next(iter(runs.values())).reading.takes((wanted[1], wanted[2])):
        raise Error(
            f"the run's images are {wanted[2]}x{wanted[1]}, and others are taken as squares: say of which --size."
        )
    cure = "name others" + (", or say by --size at how many pixels a side" if config.size is None else "")
    chosen = train_overlap.chosen(config, wanted, runs, progress, cure)
    return _of(chosen.images, chosen.ids, f"of {config.images}", chosen.notes)


def _held_out(
    config: ReconstructionConfig, run: str, runs: Mapping[str, Schooling], progress: Progress | None
) -> InputImages:
    """The images that a run held out."""
    tree, fingerprint, _ = runs[run]
    data = trees.build(DataConfig, tree)
    if data.path != PORTRAITS and not Path(data.path).expanduser().exists():
        raise Error(
            f"{run} was trained on {data.path}, which is not here: name images: kuosan reconstruct {run} IMAGES."
        )
    sized = data if config.size is None else replace(data, size=config.size)
    images = open_images(sized, progress=progress, memory=Results.at(data.cache, NEAR))
    notes = list[str]()
    if len(images.buckets.shapes) > 1:
        height, width = images.shape[1:]
        notes.append(f"of the images' several shapes only those of {width}x{height} are taken")
        images = images.only((height, width))
    notes += train_overlap.resized_notes(images)
    order = eval_images.shuffled(images, HELD_OUT)
    if config.size is None and fingerprint is not None and not images.has_fingerprint(fingerprint):
        notes.append(f"{data.path} has changed since {run} was trained on it: some of these may have been trained on")
    if len(runs) > 1:
        other = next(name for name in runs if name != run)
        notes.append(f"whether its autoencoder ({other}) was trained on them was not looked for")
    if not len(order):
        raise Error(f"{run} held no images out: name others: kuosan reconstruct {run} IMAGES.")
    if len(order) < config.n:
        notes.append(f"there are {len(order):,} such images, not {config.n:,}: all are taken")
    return _of(images, order[: config.n], f"held-out images of {data.path}", tuple(notes))


def _of(images: Images, ids: np.ndarray, what: str, notes: tuple[str, ...]) -> InputImages:
    def at(first: int, last: int) -> np.ndarray:
        return eval_images.as_bytes(images.batch(ids[first:last]).x0.numpy())

    names = tuple(images.name(int(i)) for i in ids)
    return InputImages(what, names, images.shape, images.fingerprint, at, notes)


def _file(config: ReconstructionConfig, path: Path, content: bytes, channels: int, reading: Reading) -> InputImages:
    """One image file at its own size, on the run's background."""
    for name in ("size", "unseen", "force"):
        if getattr(config, name):
            raise Error(f"{name} has no effect on one image file, which is taken as it is: leave it out.")
    try:
        decoded = reading.decoded(content)
    except Refused as reason:
        raise Error(f"{path} cannot be used: {reason}.") from None
    notes = [*decoded.notes, "whether the run was trained on it was not looked for"]
    if channels == 1 and not is_grey(decoded.pixels):
        notes.append("its colours are left out: this autoencoder is of grey images")
    pixels = np.moveaxis(with_channels(decoded.pixels, channels), -1, 0).copy()  # Pillow's is read-only
    sha256 = hashlib.sha256(content).hexdigest()
    shape = (channels, pixels.shape[1], pixels.shape[2])
    return InputImages(
        f"the file {path}",
        (path.name,),
        shape,
        sha256,
        lambda first, last: pixels[None][first:last],
        tuple(notes),
        True,
    )


def _image(path: Path) -> bytes | None:
    """The content of a file that is one image; None for an archive, an array, or anything else."""
    try:
        with path.open("rb") as file:
            if not is_known(file.read(16)):
                return None
        content = read_image(path, MAX_BYTES)
    except Refused:
        return None
    except OSError as reason:
        raise Error(f"cannot read {path}: {reason.strerror}.") from None
    try:
        read_header(content)
    except Refused:
        return None
    return content


SILENT = 0.05  # bits a value: below, the posterior's noise drowns all that is said
WILD = (0.01, 100.0)  # std of a channel: Stable Diffusion's is about 5
FAR = 20.0  # std: a value so far out lies where noise never hides it, and a network sees it rarely


@dataclass(frozen=True)
class Channel:
    """One latent channel over all values that were seen."""

    mean: float
    std: float  # of draws from the posterior: what stage two is trained on
    noise: float  # the posterior's std, its geometric mean
    farthest: float  # the largest |mean of a posterior - mean|, in std

    @property
    def scale(self) -> float:
        """What stage two multiplies by, after the mean is taken away."""
        return 1 / self.std if self.std > 0 else inf

    @property
    def bits(self) -> float:
        """What a value says of its image, at most."""
        return max(0.0, log2(self.std / self.noise)) if self.std > 0 else 0.0


class Gathered:
    """Sums over the posteriors of many latents, part by part; float64."""

    def __init__(self) -> None:
        self.measured = Measured()
        self.log_vars, self.low, self.high = (torch.zeros(0, dtype=torch.float64) for _ in range(3))

    def add(self, moments: Moments) -> None:
        """Count posteriors (B, c, h, w)."""
        mean, log_var = moments.mean.double(), moments.log_var.double()
        self.measured.add(mean, (log_var / 2).exp())
        dims = (0, 2, 3)
        log_vars, low, high = log_var.sum(dims).cpu(), mean.amin(dims).cpu(), mean.amax(dims).cpu()
        if not len(self.low):
            self.log_vars, self.low, self.high = log_vars, low, high
            return
        self.log_vars = self.log_vars + log_vars
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)

    def channels(self) -> tuple[Channel, ...]:
        """What was found of each channel."""
        count = self.measured.count
        mean = self.measured.total / count
        std = (self.measured.squares / count - mean.square()).clamp(min=0).sqrt()
        farthest = torch.maximum(self.high - mean, mean - self.low) / std.clamp(min=1e-300)
        rows: list[Tensor] = [mean, std, (self.log_vars / count / 2).exp(), farthest]
        return tuple(Channel(*(float(row[i]) for row in rows)) for i in range(len(mean)))


def latent_warnings(channels: Sequence[Channel]) -> list[str]:
    """What stage two would stumble over, in sentences; empty where nothing is wrong."""
    found = []
    silent = [i for i, one in enumerate(channels) if one.bits < SILENT]
    if silent:
        every = len(silent) == len(channels)
        what = "every latent channel" if every else f"latent channel {', '.join(map(str, silent))}"
        found.append(
            f"{what} says next to nothing of its image (below {SILENT} bits a value): the KL has collapsed; train "
            f"with a smaller weight of it, or fewer latent channels"
        )
    for i, one in enumerate(channels):
        if i not in silent and not WILD[0] <= one.std <= WILD[1]:
            found.append(
                f"latent channel {i} has std {one.std:.3g}, beyond {WILD[0]:g} to {WILD[1]:g}: train with another "
                f"weight of the KL"
            )
        if i not in silent and one.farthest > FAR:
            found.append(
                f"latent channel {i} has a value {one.farthest:.0f} std from its mean: stage two sees it rarely"
            )
    return found


FORMAT = 1
NAME, SHEET, IMAGE = "reconstruction.json", "sheet.png", "reconstruction.png"
TITLES = {  # of the figures: name -> title, digits
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 4),
    "perceptual": ("perceptual", 4),
    "kid": ("KID", 5),
}
HEADS = ("latent channel", "mean", "std", "scale", "noise", "bits a value", "farthest (std)")
STORED = "std as stored"  # the column of a latent model: 1 where its own scale still holds
EXPLAINED = (
    "PSNR, SSIM: of 8-bit images, higher is nearer; perceptual, KID: lower is nearer. KID leaves each image's own "
    "reconstruction out of its pairs. Std: of draws from the posterior; scale = 1/std, what stage two multiplies by; "
    "noise: the posterior's; bits: what a value says of its image, at most. ± one standard error over the images."
)


@dataclass(frozen=True)
class Reconstructed(ReportedResult):
    """An autoencoder's figures, and all that they depend on."""

    run: str
    step: int
    weights: str  # sha256 of the autoencoder's
    kind: str  # autoencoder, or latents: a latent model's
    settings: dict[str, Any]
    what: str  # the images, in words
    images: tuple[str, ...] = field(metadata={"key": "pictures"})
    fingerprint: str  # of their data set, or sha256 of the one file
    shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    features: dict[str, str]
    values: dict[str, list[float]]  # a number an image for each measure
    kid: Estimate | None
    channels: tuple[Channel, ...]
    stored: tuple[float, ...] = ()  # a latent model's scale, a number a channel
    tiles: str = ""  # in words; empty: in one piece
    encode_seconds: float = 0.0  # an image
    decode_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    compute: str = ""
    folder: str = ""
    version: str = kuosan.__version__
    format: int = FORMAT

    @property
    def figures(self) -> dict[str, Estimate]:
        """The mean of each measure with its standard error over the images, nan for a single one; and KID."""
        found = {name: mean(values) for name, values in self.values.items()}
        return found | ({"kid": self.kid} if self.kid is not None else {})

    @property
    def warnings(self) -> list[str]:
        """What stage two would stumble over."""
        return latent_warnings(self.channels)

    def about(self) -> list[str]:
        """What the figures are of, in sentences."""
        channels, height, width = self.shape
        colour = "grey" if channels == 1 else "colour"
        many = f"{plural(len(self.images), 'image')}"
        shown = f"{width}x{height} {colour}{self.tiles and ', '}{self.tiles}"
        lines = [
            f"{self.run}, step {self.step:,}, weights {self.weights[:12]}.",
            f"{many}: {self.what} ({self.fingerprint[:12]}), {shown}.",
            *(f"{note[0].upper()}{note[1:]}." for note in self.notes),
            self.bits(),
        ]
        if self.features:
            lines.append(
                f"Features: {self.features['features']} ({self.features['hash'][:12]}), {self.features['resize']}."
            )
        lines.append(f"Encoded in {self.encode_seconds:.3g} s an image, decoded in {self.decode_seconds:.3g} s.")
        return [*lines, f"Computed on {self.compute}."] if self.compute else lines

    def bits(self) -> str:
        """How much smaller latents are, in a sentence."""
        values, latents = prod(self.shape), prod(self.latent_shape)
        image, latent = ("x".join(map(str, shape)) for shape in (self.shape, self.latent_shape))
        bits = sum(one.bits for one in self.channels) / len(self.channels) * latents / values
        return (
            f"An image of {image} = {values:,} values becomes {latent} = {latents:,}: {values / latents:.3g} times "
            f"fewer; in bytes {values / latents / 2:.3g} times less (8 bits against bf16). They say at most "
            f"{bits:.3g} bits a value of the image."
        )

    def tables(self) -> list[FigureTable]:
        """The figures, and the latents' channels."""
        figures = self.figures
        names = [name for name in TITLES if name in figures]
        row = [figure(figures[name], TITLES[name][1]) for name in names]
        channels = []
        for i, one in enumerate(self.channels):
            numbers = [one.mean, one.std, one.scale, one.noise, one.bits, one.farthest]
            channels.append([str(i), *(f"{number:.3g}" for number in numbers)])
            if self.stored:
                channels[-1].append(f"{one.std * self.stored[i]:.3f}")
        heads = [*HEADS, *([STORED] if self.stored else [])]
        return [FigureTable([TITLES[name][0] for name in names], [row], 0), FigureTable(heads, channels, 0)]

    def report(self) -> Report:
        """Sentences, two tables, what their columns mean; every value, each image's too."""
        tree = trees.plain(self)
        tree["figures"] = {name: asdict(estimate) for name, estimate in self.figures.items()}
        for one, row in zip(self.channels, tree["channels"]):
            row |= {"scale": one.scale, "bits": one.bits}
        tree["warnings"] = self.warnings
        warned = [f"Warning: {warning}." for warning in self.warnings]
        return Report(NAME, [[*self.about(), *warned], *self.tables(), [EXPLAINED]], tree)
