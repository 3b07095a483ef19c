"""An autoencoder measured from end to end: `reconstruct(run) -> Reconstructed`.

`plan_reconstruct` opens everything and refuses what cannot be measured; `run_reconstruct` encodes and decodes the
images, and writes reconstruction.json, table.md and sheet.png, of one image file the reconstruction too.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kuosan import config as trees
from kuosan import moved
from kuosan.data.pixels import save_png
from kuosan.data.reading import FACT
from kuosan.device import Compute, ComputeConfig, choose
from kuosan.errors import Error
from kuosan.evaluate.config import NONE, ReconstructionConfig, require_autoencoder
from kuosan.evaluate.damage import capped, levels
from kuosan.evaluate.reconstruction_result import (
    IMAGE,
    NAME,
    SHEET,
    Gathered,
    InputImages,
    Reconstructed,
    Shape,
    open_inputs,
)
from kuosan.evaluate.report import TABLE
from kuosan.evaluate.train_overlap import Schooling
from kuosan.events import Event, Finished, Progress, Wrote
from kuosan.metrics.features import FEATURES, features
from kuosan.metrics.features.network import FeatureNetwork
from kuosan.metrics.image_quality import WINDOW, Perceptual, perceptual, psnr, ssim
from kuosan.metrics.kid import kid_of_pairs
from kuosan.models import latents as codecs
from kuosan.models.codec import Latents
from kuosan.models.latents import prepare as ready_on
from kuosan.models.model import ModelConfig, require_fit
from kuosan.models.tiling import SIDE, TiledAutoencoder
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.sample import write
from kuosan.storage import checkpoint, outputs

if TYPE_CHECKING:
    from kuosan.evaluate.job import ReconstructJob
    from kuosan.events import OnProgress

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
class ReconstructPlan:
    """Which images go through which autoencoder, and where the report is kept."""

    job: ReconstructJob
    opened: Opened
    inputs: InputImages
    network: TiledAutoencoder
    features: FeatureNetwork | None
    distance: Perceptual | None
    compute: Compute
    folder: Path

    @property
    def config(self) -> ReconstructionConfig:
        """What the result depends on, but for the run."""
        return self.job.settings

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of an image."""
        _, height, width = self.inputs.shape
        factor = self.network.factor
        return self.opened.held.network.latent_channels, -(-height // factor), -(-width // factor)

    @property
    def tiles(self) -> str:
        """The tiles in words; empty where each image is one."""
        count = self.network.tile_count(*self.inputs.shape[1:])
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


def open_reconstruction(job: ReconstructJob, foreseen: ModelConfig | None, progress: OnProgress) -> ReconstructPlan:
    """Open the autoencoder, the images and the networks that judge: what `plan_reconstruct` does once torch is needed.

    Raises:
        Error: what cannot be measured.
    """
    opened, config = open_run(job.run, foreseen), job.settings
    network = opened.held.network
    compute = choose(config.compute)
    module = codecs.build(network, opened.held.tensors, opened.run)
    ready = ready_on(module, compute.device, compute.dtype)
    if config.tile is not None:
        TiledAutoencoder(ready, config.tile, config.overlap)  # refused before the images are read
    assert opened.config.shape is not None, "a trained model knows its shape"
    found = open_inputs(config, opened.config.shape, opened.schooling, progress)
    judged = None if config.features == NONE else features(config.features)
    return ReconstructPlan(
        job,
        opened,
        found,
        TiledAutoencoder(ready, _side(config, opened.config.shape, found, network.factor), config.overlap),
        judged,
        perceptual(config.features) if config.features in FEATURES else None,
        compute,
        config.folder(opened.home, opened.held.sha256),
    )


def open_run(target: str | Path, foreseen: ModelConfig | None = None) -> Opened:
    """The autoencoder of a run: its own, or that of a model of latents. Raises: Error for a run without one.

    Args:
        foreseen: what config.yaml says of the run, which says whether its own weights are the autoencoder's.
    """
    own = foreseen is not None and isinstance(foreseen.network, AutoencoderConfig)
    saved = checkpoint.load(target, parts=("ema",) if own else (), fits=require_fit)
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
        weights = saved.ema or checkpoint.load(saved.path, parts=("ema",), fits=require_fit).ema
        held = codecs.held(config.network, weights)
    return Opened(str(target), home, saved.step, config, held, schooling)


def _side(config: ReconstructionConfig, trained: Shape, found: InputImages, factor: int) -> int:
    """The tiles' side: as typed; for a large image file the usual one; else all of an image."""
    if config.tile is not None:
        return config.tile
    longest = max(found.shape[1:])
    if found.single:
        longest = min(longest, max(SIDE, *trained[1:]))
    return -(-longest // factor) * factor


def run_reconstruct(plan: ReconstructPlan) -> Iterator[Event]:
    """Encode, decode, measure, write; into a folder that holds no other report; ends with what was `Reconstructed`.

    Raises:
        Error: the folder of --out holds something else.
    """
    found, config = plan.inputs, replace(plan.config, out=None, compute=ComputeConfig())
    about = [trees.plain(config), plan.opened.held.sha256, found.fingerprint, list(found.names)]
    names = [NAME, TABLE, SHEET, *([IMAGE] if found.single else [])]
    with outputs.named(plan.config.out, plan.folder, "reconstruct", about, names, config.images) as output:
        result = yield from _reconstructed(replace(plan, folder=output.folder))
    yield Wrote(Path(result.folder))
    yield Finished(result)


def _reconstructed(plan: ReconstructPlan) -> Generator[Event, None, Reconstructed]:
    """Encode, decode, measure, write into a claimed folder."""
    tally, many = Tally(), len(plan.inputs)
    for first in range(0, many, plan.config.batch):
        _add(tally, plan, first, min(first + plan.config.batch, many))
        yield Progress("images", min(first + plan.config.batch, many), many)
    result = _result(plan, tally)
    result.write(plan.folder)
    before, after, z = (torch.cat(parts) for parts in tally.shown)
    columns = min(COLUMNS, len(before))
    save_png(plan.folder / SHEET, write.check_sheet(before, after, z, columns=columns))
    if plan.inputs.single:
        save_png(plan.folder / IMAGE, levels(after)[0].movedim(0, -1).numpy())
    return result


@torch.no_grad()
def _add(tally: Tally, plan: ReconstructPlan, first: int, last: int) -> None:
    """Encode, decode and measure the images at places first to last - 1."""
    network, device = plan.network, plan.compute.device
    before = torch.from_numpy(plan.inputs.at(first, last))  # (B, C, H, W) uint8
    x = (before.float() / 127.5 - 1).to(device)
    begin = time.perf_counter()
    moments = network.encode(x)
    mean = moments.mean.cpu()  # a GPU is waited for
    middle = time.perf_counter()
    y = network.decode(moments.mean, (x.shape[2], x.shape[3])).float().cpu()
    tally.seconds = [tally.seconds[0] + middle - begin, tally.seconds[1] + time.perf_counter() - middle]
    if not y.isfinite().all():
        raise Error(f"{plan.opened.run}: the autoencoder gives NaN or infinite values: it has diverged.")
    tally.latents.add(moments)
    after = levels(y)
    for name, values in _measured(plan, before, after).items():
        tally.values.setdefault(name, []).extend(values.double().tolist())
    if plan.features is not None:
        for rows, images in zip(tally.rows, (before, after)):
            rows.append(plan.features(images))
    for shown, part in zip(tally.shown, (x.cpu(), y, mean)):
        shown.append(part[: max(0, SHOWN - first)])


def _measured(plan: ReconstructPlan, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Each measure of reconstructions (B, C, H, W) uint8: (B,)."""
    found = {"psnr": capped(psnr(after, before))}
    if min(before.shape[-2:]) >= WINDOW:
        found["ssim"] = ssim(after, before)
    if plan.distance is not None:
        found["perceptual"] = plan.distance(after, before)
    return found


def _result(plan: ReconstructPlan, tally: Tally) -> Reconstructed:
    """What was found, with all that it depends on."""
    opened, found = plan.opened, plan.inputs
    many, judged = len(found), plan.features
    kid = None
    if judged is not None and many >= LEAST:
        before, after = (torch.cat(rows).numpy() for rows in tally.rows)
        kid = kid_of_pairs(before, after)
    return Reconstructed(
        opened.run,
        opened.step,
        opened.held.sha256,
        "latents" if opened.stored else "autoencoder",
        trees.plain(plan.config),
        found.what,
        found.names,
        found.fingerprint,
        found.shape,
        plan.latent_shape,
        {} if judged is None else judged.about(),
        tally.values,
        kid,
        tally.latents.channels(),
        opened.stored,
        plan.tiles,
        tally.seconds[0] / many,
        tally.seconds[1] / many,
        found.notes,
        str(plan.compute),
        str(plan.folder),
    )


__getattr__ = moved.later(__name__, {"reconstruct": "evaluate.plan"})  # where it was in version 0.1.0
