"""`kuosan reconstruct`: how well an autoencoder gives images back, before a model of its latents is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kuosan
from kuosan.cli.console import console, say
from kuosan.cli.evaluate import DRY, Bars, followed, say_written, show_report
from kuosan.cli.flags import Verb
from kuosan.errors import Error
from kuosan.evaluate.job import ReconstructJob, follow
from kuosan.options import Tree

if TYPE_CHECKING:
    from kuosan.evaluate.reconstruct import ReconstructPlan
    from kuosan.evaluate.reconstruction_result import Reconstructed


def reconstruct(tree: Tree, words: list[str]) -> None:
    """Plan, say what will be done, do it, say what was found."""
    job: ReconstructJob = VERB.build(read(tree, words))
    with Bars() as bars:
        plan = kuosan.plan(job, follow(bars))
    for line in planned(plan):
        say(line)
    if job.dry_run:
        say(DRY)
        return
    show(followed(kuosan.run(plan)))


def read(tree: Tree, words: list[str]) -> Tree:
    """The options with the run and the images, which are bare words. Raises: Error for more than those."""
    if len(words) + ("pictures" in tree) > 2:
        raise Error(f"{words[-1]!r} is more than `kuosan reconstruct` takes: one RUN, and one IMAGES or none.")
    return {**tree, **dict(zip(("run", "pictures"), words))}


def planned(plan: ReconstructPlan) -> list[str]:
    """What will be done, in lines."""
    opened, found = plan.opened, plan.inputs
    channels, height, width = found.shape
    colour = "grey" if channels == 1 else "colour"
    latent = "x".join(map(str, plan.latent_shape))
    lines = [f"compute: {plan.compute}", *(f"images: {note}" for note in found.notes)]
    lines.append(f"autoencoder: {opened.run}, step {opened.step:,}, factor {plan.network.factor}, latents {latent}")
    lines.append(f"images: {len(found):,}, {found.what}, {width}x{height} {colour}")
    if plan.tiles:
        lines.append(f"tiles: {plan.tiles}, blended")
    judged = plan.features
    lines.append(f"features: {'none' if judged is None else f'{judged.name} ({judged.resizing})'}")
    return [*lines, f"kept in {plan.folder}"]


def show(result: Reconstructed) -> None:
    """The figures, what they are of, and where they were written."""
    console.print()
    show_report(result.report())
    for warning in result.warnings:
        say(f"warning: {warning}.")
    say_written(result.folder)


VERB = Verb(
    "reconstruct",
    ReconstructJob,
    "RUN [IMAGES]",
    "Encode images and decode them again with the autoencoder of RUN, and measure how near they come to themselves: "
    "PSNR, SSIM, perceptual distance and KID of the reconstructions, each latent channel's mean and std with warnings, "
    "how much smaller latents are, and a sheet of input, reconstruction, difference and latents. RUN is the run of an "
    "autoencoder (kuosan train --objective autoencoder), or of a model of latents; or a checkpoint.",
    reconstruct,
    place="run",
)
