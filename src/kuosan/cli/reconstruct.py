"""`kuosan reconstruct`: how well an autoencoder gives images back, before a model of its latents is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from kuosan.cli.console import Whole, console, say, whole
from kuosan.cli.evaluate import Bars, show_report
from kuosan.device import ComputeConfig
from kuosan.errors import Error
from kuosan.evaluate.config import ReconstructionConfig, require_autoencoder

if TYPE_CHECKING:
    from kuosan.evaluate.reconstruct import ReconstructionSetup
    from kuosan.evaluate.reconstruction_result import Reconstructed


def reconstruct(
    run: Path,
    images: str | None = None,
    *,
    n: Annotated[int, Parameter(name=["--n", "-n"], converter=whole)] = 256,
    size: Whole | None = None,
    tile: Whole | None = None,
    overlap: Whole | None = None,
    features: str = "lite0",
    batch: Whole = 16,
    unseen: Annotated[bool, Parameter(negative=())] = False,
    force: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    device: str = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    threads: Whole = 0,
) -> None:
    """Encode images and decode them again with the autoencoder of RUN, and tell how near they come to themselves.

    Before stage two: PSNR, SSIM, perceptual distance and KID of the reconstructions, each latent channel's mean and
    std with warnings, how much smaller latents are, and a sheet of input, reconstruction, difference and latents.

    Parameters
    ----------
    run
        The run of an autoencoder (kuosan train --objective autoencoder), or of a model of latents; or a checkpoint.
    images
        A folder, zip, npz or IDX file, `portraits`, or one image file; the images that the run held out if not
        given.
    n
        How many images, drawn by a fixed key.
    size
        Pixels a side of a data set's images; as the run was trained if not given.
    tile
        Go in tiles of so many pixels a side, blended; an image file beyond 256 pixels, and beyond the run's images,
        goes in tiles of that size anyhow.
    overlap
        With --tile: the pixels that neighbouring tiles share; a quarter of a tile if not given.
    features
        The network of KID and the perceptual distance: lite0, lite0-128, inception:PATH, dinov2:PATH, or none.
    batch
        Images computed together.
    unseen
        With IMAGES: leave out those that the run was trained on.
    force
        With IMAGES: measure on images that the run was trained on.
    dry_run
        Say what would be done, and do nothing.
    out
        The folder to write; RUN/reconstructions/NAME if not given.
    device
        auto, cpu, cuda, cuda:1 or mps.
    precision
        What the networks compute in.
    threads
        Processor threads; 0 lets torch choose.
    """
    config = ReconstructionConfig(
        images or "", n, size, tile, overlap, features, batch, unseen, force, None if out is None else str(out),
        ComputeConfig(device, precision, threads),
    )  # fmt: skip
    refuse_early(run, config)
    from kuosan.evaluate.reconstruct import prepare
    from kuosan.evaluate.reconstruct import run as measure

    with Bars() as report:
        prepared = prepare(run, config, report)
    for line in plan(prepared):
        say(line)
    if dry_run:
        say("dry run: nothing was written.")
        return
    with Bars() as report:
        result = measure(prepared, report)
    show(result)


def refuse_early(run: Path, config: ReconstructionConfig) -> None:
    """What can be refused without loading torch: no such run or images, a run without an autoencoder."""
    from kuosan.sample.job import stored

    if not run.exists():
        raise Error(f"there is no run {run}: name the folder that kuosan train --objective autoencoder made.")
    model = stored(run) if (run / "config.yaml").is_file() else None
    if model is not None and (run / "checkpoints").is_dir():
        require_autoencoder(model, run)
    if config.images not in ("", "portraits") and not Path(config.images).expanduser().exists():
        raise Error(f"there is no {config.images}: give a folder, zip, npz or IDX file, an image, or portraits.")


def plan(prepared: ReconstructionSetup) -> list[str]:
    """What will be done, in lines."""
    opened, found = prepared.opened, prepared.subjects
    channels, height, width = found.shape
    colour = "grey" if channels == 1 else "colour"
    latent = "x".join(map(str, prepared.latent_shape))
    lines = [f"compute: {prepared.compute}", *(f"images: {note}" for note in found.notes)]
    lines.append(f"autoencoder: {opened.run}, step {opened.step:,}, factor {prepared.network.factor}, latents {latent}")
    lines.append(f"images: {len(found):,}, {found.what}, {width}x{height} {colour}")
    if prepared.tiles:
        lines.append(f"tiles: {prepared.tiles}, blended")
    judged = prepared.features
    lines.append(f"features: {'none' if judged is None else f'{judged.name} ({judged.resizing})'}")
    return [*lines, f"kept in {prepared.folder}"]


def show(result: Reconstructed) -> None:
    """The figures, what they are of, and where they were written."""
    console.print()
    show_report(result.report())
    for warning in result.warnings:
        say(f"warning: {warning}.")
    names = ", ".join(sorted(path.name for path in Path(result.folder).glob("[!.]*")))
    say(f"written: {result.folder} ({names})")
