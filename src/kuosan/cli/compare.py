"""`kuosan compare`: how well runs restore damaged images, beside what needs no model; one table, one sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from kuosan.cli.console import Whole, console, say, whole
from kuosan.cli.evaluate import Bars, show_report
from kuosan.device import ComputeConfig
from kuosan.errors import Error
from kuosan.evaluate import comparison
from kuosan.evaluate.comparison import ComparisonConfig

if TYPE_CHECKING:
    from kuosan.evaluate.compare import ComparisonSetup
    from kuosan.evaluate.comparison import Comparison


def compare(
    images: str,
    *,
    runs: Annotated[list[str] | None, Parameter(name="--with", negative=())] = None,
    upscale: Whole | None = None,
    down: Literal["area", "bicubic"] = "area",
    deblur: Annotated[float | None, Parameter(negative=())] = None,
    colorise: Annotated[bool, Parameter(name=["--colorise", "--colorize"], negative=())] = False,
    noise: float = 0.0,
    mask: str | None = None,
    n: Annotated[int, Parameter(name=["--n", "-n"], converter=whole)] = 64,
    variants: Whole = 8,
    seed: Whole = 0,
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
    """Damage whole IMAGES, have each run restore them, and tell how near the answers come to the truth.

    All contestants see the same damaged images, and those on one run the same noise; rules that need no model
    (bicubic, nearest, a smooth fill, an inverse) stand beside them. Images that a contestant was trained on are
    refused.

    Parameters
    ----------
    images
        A folder, zip, npz or IDX file of whole images, or `portraits`; of data with a split, the held-out ones.
    runs
        A contestant: RUN, RUN:METHOD or RUN:METHOD,key=value,...; repeated for each. Methods and keys are those of
        `kuosan restore` (ddnm, pigdm, dps, repaint; steps, sampler, eta, push, ...).
    upscale
        Make the images so many times smaller.
    down
        With --upscale: how, area or bicubic.
    deblur
        Blur them with this standard deviation, in pixels.
    colorise
        Take their colours.
    noise
        Add noise of this standard deviation, of 255.
    mask
        Cut something out: box, brush, half, border, sparse or blob, several with commas, each image's drawn; or one
        box x,y,w,h in pixels.
    n
        How many images, drawn by a fixed key.
    variants
        Answers to each image by each contestant.
    seed
        Of the first answer to the first image, and of the damage.
    features
        The network of the perceptual distance: lite0, or lite0-128 in a quarter of the time.
    batch
        Answers computed together.
    unseen
        Leave out the images that a contestant was trained on.
    force
        Compare on images that a contestant was trained on.
    dry_run
        Say what would be done, and do nothing.
    out
        The folder to write; comparisons/NAME if not given.
    device
        auto, cpu, cuda, cuda:1 or mps.
    precision
        What the networks compute in.
    threads
        Processor threads; 0 lets torch choose.
    """
    config = ComparisonConfig(
        images, tuple(runs or ()), upscale, down, deblur, colorise, noise, mask, n, variants, seed, features, batch,
        unseen, force, None if out is None else str(out), ComputeConfig(device, precision, threads),
    )  # fmt: skip
    refuse_early(config)
    from kuosan.evaluate.compare import prepare

    with Bars() as report:
        prepared = prepare(config, report)
    for line in plan(prepared):
        say(line)
    if dry_run:
        say("dry run: nothing was written.")
        return
    show(run(prepared))


def refuse_early(config: ComparisonConfig) -> None:
    """What can be refused without loading torch: runs that are none, damage that their models cannot undo."""
    from kuosan.sample.job import stored

    if config.images != "portraits" and not Path(config.images).expanduser().exists():
        raise Error(f"there is no {config.images}: give a folder, zip, npz or IDX file of images, or portraits.")
    for one in comparison.contestants(config):
        path = Path(one.run)
        if not path.exists():
            raise Error(f"--with {one.text}: there is no run {path}; give a run's folder, RUN:METHOD or RUN,key=value.")
        model = stored(path) if (path / "config.yaml").is_file() else None
        if model is not None:
            one.resolved(model)


def plan(prepared: ComparisonSetup) -> list[str]:
    """What will be done, in lines."""
    config, damaged = prepared.config, prepared.damaged
    channels, height, width = prepared.chosen.images.shape
    colour = "grey" if channels == 1 else "colour"
    lines = [f"compute: {prepared.compute}", *(f"images: {note}" for note in prepared.chosen.notes)]
    lines.append(f"images: {len(damaged):,} of {config.images}, {width}x{height} {colour}, {config.damage}")
    for entry in prepared.entries:
        choice = entry.choice
        gradients = ", each with its gradient" if choice.graded else ""
        lines.append(
            f"contestant: {entry.name}: {choice.method or 'as it was trained'}, {choice.sampler}, {choice.steps} "
            f"steps, {choice.evaluations:,} network evaluations an answer{gradients}"
        )
    answers = len(damaged) * config.variants
    lines.append(
        f"to make: {config.variants} answer{'s' * (config.variants > 1)} to each image, {answers:,} by each "
        f"contestant, {prepared.evaluations:,} network evaluations; kept in {prepared.folder}"
    )
    return lines


def run(prepared: ComparisonSetup) -> Comparison:
    """The comparison with its bars; where it is stopped, who was done is kept."""
    from kuosan.evaluate import compare as comparing

    try:
        with Bars() as report:
            return comparing.run(prepared, report)
    except KeyboardInterrupt:
        kept = (
            f"contestants that were done are kept in {prepared.folder}" if prepared.folder.exists() else "none was done"
        )
        say(f"stopped: {kept}; nothing is half-written.")
        raise


def show(result: Comparison) -> None:
    """The figures, what they are of, and where they were written."""
    console.print()
    show_report(result.report())
    say(f"written: {result.folder} (result.json, table.md, sheet.png)")
