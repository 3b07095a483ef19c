"""An autoencoder measured from end to end: `reconstruct(run) -> Reconstructed`.

`prepare` opens everything and refuses what cannot be measured; `run` encodes and decodes the images, and writes
reconstruction.json, table.md and sheet.png, of one image file the reconstruction too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kuosan import config as trees
from kuosan.data.images import save_png
from kuosan.data.reading import FACT
from kuosan.device import Compute, ComputeConfig, choose
from kuosan.errors import Error
from kuosan.evaluate.config import NONE, ReconstructionConfig, require_autoencoder
from kuosan.evaluate.damage import capped, levels
from kuosan.evaluate.job import EvaluationReport, SilentEvaluation
from kuosan.evaluate.reconstruction_result import (
    IMAGE,
    NAME,
    SHEET,
    Gathered,
    Reconstructed,
    Shape,
    Subjects,
    subjects,
)
from kuosan.evaluate.report import TABLE
from kuosan.evaluate.train_overlap import Schooling
from kuosan.metrics.features import FEATURES, features
from kuosan.metrics.features.network import FeatureNetwork
from kuosan.metrics.image_quality import WINDOW, Perceptual, perceptual, psnr, ssim
from kuosan.metrics.kid import kid_of_pairs
from kuosan.models import latents as codecs
from kuosan.models.codec import Latents
from kuosan.models.model import ModelConfig, require_fit
from kuosan.models.precision import prepare as prepared_network
from kuosan.models.tiling import SIDE, TiledAutoencoder
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.sample import write
from kuosan.storage import checkpoint, outputs

SHOWN, COLUMNS = 12, 2  # images on the sheet, and side by side
LEAST = 3  # images without which there is no KID


@dataclass(frozen=True)
class Opened:
    """A run's autoencoder, without its weights on a device yet."""

    run: str
    home: Path  # the run's folder
    step: int
    config: ModelConfig
    held: codecs.Held
    schooling: dict[str, Schooling]

    @property
    def stored(self) -> tuple[float, ...]:
        """The scale that a latent model uses."""
        return self.config.codec.scale if isinstance(self.config.codec, Latents) else ()


@dataclass(frozen=True)
class ReconstructionSetup:
    """Which images go through which autoencoder, and where the report is kept."""

    config: ReconstructionConfig
    opened: Opened
    subjects: Subjects
    network: TiledAutoencoder
    features: FeatureNetwork | None
    distance: Perceptual | None
    compute: Compute
    folder: Path

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of an image."""
        _, height, width = self.subjects.shape
        factor = self.network.factor
        return self.opened.held.network.latent_channels, -(-height // factor), -(-width // factor)

    @property
    def tiles(self) -> str:
        """The tiles in words; empty where each image is one."""
        count = self.network.tile_count(*self.subjects.shape[1:])
        tiled = self.network
        return "" if count == 1 else f"{count} tiles of {tiled.side}, {tiled.overlap} of them shared"


@dataclass
class Tally:
    """What has been found so far."""

    values: dict[str, list[float]] = field(default_factory=dict)
    rows: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))  # features: before, after
    latents: Gathered = field(default_factory=Gathered)
    shown: tuple[list[Tensor], ...] = field(default_factory=lambda: ([], [], []))
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])


def reconstruct(
    target: str | Path, images: str | Path = "", *, report: EvaluationReport | None = None, **options: Any
) -> Reconstructed:
    """How well a run's autoencoder gives images back: reconstruct("runs/ae", "photos", n=64).

    Args:
        target: the run of an autoencoder, or of a model of latents.
        images: a data set or an image file; those that the run held out if empty.
        report: hears how it goes on.
        options: further settings of `ReconstructionConfig`.

    Raises:
        Error: no autoencoder, or images that cannot be used.
    """
    report = report or SilentEvaluation()
    config = trees.build(ReconstructionConfig, {"images": str(images), **options})
    return run(prepare(target, config, report), report)


def prepare(
    target: str | Path, config: ReconstructionConfig, report: EvaluationReport | None = None
) -> ReconstructionSetup:
    """Open the autoencoder, the images and the networks that judge. Raises: Error for what cannot be measured."""
    report = report or SilentEvaluation()
    opened = open_run(target)
    network = opened.held.network
    compute = choose(config.compute)
    module = codecs.build(network, opened.held.tensors, opened.run)
    ready = prepared_network(module, compute.device, compute.dtype)
    if config.tile is not None:
        TiledAutoencoder(ready, config.tile, config.overlap)  # refused before the images are read
    assert opened.config.shape is not None, "a trained model knows its shape"
    found = subjects(config, opened.config.shape, opened.schooling, report.progress)
    judged = None if config.features == NONE else features(config.features)
    return ReconstructionSetup(
        config,
        opened,
        found,
        TiledAutoencoder(ready, _side(config, opened.config.shape, found, network.factor), config.overlap),
        judged,
        perceptual(config.features) if config.features in FEATURES else None,
        compute,
        config.folder(opened.home, opened.held.sha256),
    )


def open_run(target: str | Path) -> Opened:
    """The autoencoder of a run: its own, or that of a model of latents. Raises: Error for a run without one."""
    saved = checkpoint.load(target, parts=())
    config = trees.build(ModelConfig, saved.config.get("model", {}))
    require_autoencoder(config, target)
    home = saved.path.parent.parent if saved.path.parent.name == checkpoint.FOLDER else saved.path
    schooling = {str(target): Schooling(saved.config.get("data", {}), saved.state.get("data"), saved.state.get(FACT))}
    if isinstance(config.codec, Latents):
        held = codecs.of_run(config.codec, saved.path)
        if config.codec.run and (Path(config.codec.run) / checkpoint.FOLDER).is_dir():
            other = checkpoint.load(config.codec.run, parts=())
            schooling[config.codec.run] = Schooling(
                other.config.get("data", {}), other.state.get("data"), other.state.get(FACT)
            )
    else:
        assert isinstance(config.network, AutoencoderConfig)
        held = codecs.held(config.network, checkpoint.load(saved.path, parts=("ema",), fits=require_fit).ema)
    return Opened(str(target), home, saved.step, config, held, schooling)


def _side(config: ReconstructionConfig, trained: Shape, found: Subjects, factor: int) -> int:
    """The tiles' side: as asked; for a large image file the usual one; else all of an image."""
    if config.tile is not None:
        return config.tile
    longest = max(found.shape[1:])
    if found.single:
        longest = min(longest, max(SIDE, *trained[1:]))
    return -(-longest // factor) * factor


def run(prepared: ReconstructionSetup, report: EvaluationReport | None = None) -> Reconstructed:
    """Encode, decode, measure, write; into a folder that holds no other report. Raises: Error where --out does."""
    found, config = prepared.subjects, replace(prepared.config, out=None, compute=ComputeConfig())
    about = [trees.plain(config), prepared.opened.held.sha256, found.fingerprint, list(found.names)]
    names = [NAME, TABLE, SHEET, *([IMAGE] if found.single else [])]
    with outputs.named(prepared.config.out, prepared.folder, "reconstruct", about, names, config.images) as output:
        return _run(replace(prepared, folder=output.folder), report or SilentEvaluation())


def _run(prepared: ReconstructionSetup, report: EvaluationReport) -> Reconstructed:
    """Encode, decode, measure, write into a claimed folder."""
    tally, many = Tally(), len(prepared.subjects)
    for first in range(0, many, prepared.config.batch):
        _add(tally, prepared, first, min(first + prepared.config.batch, many))
        report.progress("images", min(first + prepared.config.batch, many), many)
    result = _result(prepared, tally)
    result.write(prepared.folder)
    before, after, z = (torch.cat(parts) for parts in tally.shown)
    columns = min(COLUMNS, len(before))
    save_png(prepared.folder / SHEET, write.check_sheet(before, after, z, columns=columns))
    if prepared.subjects.single:
        save_png(prepared.folder / IMAGE, levels(after)[0].movedim(0, -1).numpy())
    return result


@torch.no_grad()
def _add(tally: Tally, prepared: ReconstructionSetup, first: int, last: int) -> None:
    """Encode, decode and measure the images at places first to last - 1."""
    network, device = prepared.network, prepared.compute.device
    before = torch.from_numpy(prepared.subjects.at(first, last))  # (B, C, H, W) uint8
    x = (before.float() / 127.5 - 1).to(device)
    begin = time.perf_counter()
    moments = network.encode(x)
    mean = moments.mean.cpu()  # a GPU is waited for
    middle = time.perf_counter()
    y = network.decode(moments.mean, (x.shape[2], x.shape[3])).float().cpu()
    tally.seconds = [tally.seconds[0] + middle - begin, tally.seconds[1] + time.perf_counter() - middle]
    if not y.isfinite().all():
        raise Error(f"{prepared.opened.run}: the autoencoder gives NaN or infinite values: it has diverged.")
    tally.latents.add(moments)
    after = levels(y)
    for name, values in _measured(prepared, before, after).items():
        tally.values.setdefault(name, []).extend(values.double().tolist())
    if prepared.features is not None:
        for rows, images in zip(tally.rows, (before, after)):
            rows.append(prepared.features(images))
    for shown, part in zip(tally.shown, (x.cpu(), y, mean)):
        shown.append(part[: max(0, SHOWN - first)])


def _measured(prepared: ReconstructionSetup, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Each measure of reconstructions (B, C, H, W) uint8: (B,)."""
    found = {"psnr": capped(psnr(after, before))}
    if min(before.shape[-2:]) >= WINDOW:
        found["ssim"] = ssim(after, before)
    if prepared.distance is not None:
        found["perceptual"] = prepared.distance(after, before)
    return found


def _result(prepared: ReconstructionSetup, tally: Tally) -> Reconstructed:
    """What was found, with all that it depends on."""
    opened, found = prepared.opened, prepared.subjects
    many, judged = len(found), prepared.features
    kid = None
    if judged is not None and many >= LEAST:
        before, after = (torch.cat(rows).numpy() for rows in tally.rows)
        kid = kid_of_pairs(before, after)
    return Reconstructed(
        opened.run,
        opened.step,
        opened.held.sha256,
        "latents" if opened.stored else "autoencoder",
        trees.plain(prepared.config),
        found.what,
        found.names,
        found.fingerprint,
        found.shape,
        prepared.latent_shape,
        {} if judged is None else judged.about(),
        tally.values,
        kid,
        tally.latents.channels(),
        opened.stored,
        prepared.tiles,
        tally.seconds[0] / many,
        tally.seconds[1] / many,
        found.notes,
        str(prepared.compute),
        str(prepared.folder),
    )
