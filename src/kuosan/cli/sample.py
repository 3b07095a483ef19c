"""`kuosan sample`: pictures from a trained model, each carrying the recipe that makes it again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from kuosan.cli.console import bar, say
from kuosan.config import load
from kuosan.device import ComputeConfig
from kuosan.diffusion import names
from kuosan.errors import Error
from kuosan.sample.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.sample.plan import Plan
    from kuosan.trained import Trained


def sample(
    run: Path | None = None,
    *,
    n: Annotated[int, Parameter(name=["--n", "-n"])] = 16,
    sampler: str = "dpm_solver_2m",
    steps: int | None = None,
    seed: int = 0,
    spacing: str | None = None,
    eta: float | None = None,
    variance: str | None = None,
    clip: bool = True,
    image: Path | None = None,
    strength: float | None = None,
    between: tuple[int, int] | None = None,
    batch: int = 16,
    exact: bool = False,
    out: Path | None = None,
    columns: int | None = None,
    gif: bool = False,
    like: Path | None = None,
    device: str = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    threads: int = 0,
) -> None:
    """Make N pictures with the model in RUN, and a sheet of them.

    Parameters
    ----------
    run
        A run's folder, or one of its checkpoints.
    n
        How many pictures; picture i has seed SEED + i.
    sampler
        ddpm, ddim, euler, euler_ancestral, heun or dpm_solver_2m; other tools' names are understood.
    steps
        Denoising steps; the sampler's usual number if not given.
    seed
        The first picture's seed.
    spacing
        Where the steps lie: trailing, leading, linspace, log_snr or karras.
    eta
        DDIM's noise: 0 none, 1 as much as DDPM.
    variance
        DDPM's variance: beta, posterior or learned.
    clip
        Keep predicted pictures within black and white at every step.
    image
        Start from this picture instead of from noise alone.
    strength
        With --image: how much is made anew, above 0 to 1; 0.6 if not given.
    between
        Two seeds: N pictures on the way from one to the other.
    batch
        Pictures computed together.
    exact
        Bit-equal pictures whatever N and the batch.
    out
        The folder to write; RUN/samples/SAMPLER-STEPS-SEED if not given.
    columns
        Pictures in a row of the sheet.
    gif
        Write the denoising of the first batch as an animation too.
    like
        Make the picture in this file again, by the recipe inside it.
    device
        auto, cpu, cuda, cuda:1 or mps.
    precision
        What the network computes in.
    threads
        Processor threads; 0 lets torch choose.
    """
    request = Request(
        n, seed, sampler, steps, spacing, eta, variance, clip, None if image is None else str(image), strength,
        between, batch, exact,
    )  # fmt: skip
    if like is not None:
        _again(like, run, out, ComputeConfig(device, precision, threads))
        return
    if run is None:
        raise Error("no model given: kuosan sample RUN (the folder that `kuosan train` made).")
    names.sampler(sampler)
    _refuse_early(run, request)
    make(run, request, out, columns, gif, ComputeConfig(device, precision, threads))


def _refuse_early(run: Path, request: Request) -> None:
    """What a run's configuration alone can refuse, without loading torch."""
    if not (run / "config.yaml").is_file():
        return
    from kuosan import config as trees
    from kuosan.model import ModelConfig
    from kuosan.sample.plan import choose

    choose(trees.build(ModelConfig, load(run / "config.yaml").get("model", {})), request)


def make(
    run: Path, request: Request, out: Path | None, columns: int | None, gif: bool, where: ComputeConfig
) -> tuple[float, int]:
    """Sample, write, and say what was made; the seconds of sampling and the network evaluations a picture.

    Raises:
        Error: what the run cannot be sampled with, or a folder that cannot be written.
    """
    from kuosan import trained as opening
    from kuosan.device import choose
    from kuosan.sample import write
    from kuosan.sample.plan import plan

    trained = opening.load(run, compute=choose(where))
    for text in trained.damaged:
        say(f"warning: a newer checkpoint is damaged and passed over: {text}")
    walk = plan(trained.model.config, request)
    _say_plan(trained, request, walk)
    start = opening.picture(trained.model, Path(request.image)) if request.image else None
    folder = out or run / "samples" / f"{walk.sampler}-{walk.steps}-seed{request.seed}"
    film = write.Film() if gif else None
    begin = time.perf_counter()
    images = _walk(trained, request, start, film)
    seconds = time.perf_counter() - begin
    paths = write.pictures(folder, images, trained.recipe(request))
    write.sheet(folder / "sheet.png", images, columns)
    if film is not None:
        film.write(folder / "denoising.gif", columns)
    say(
        f"{len(paths)} pictures in {seconds:.1f} s ({seconds / len(paths):.2f} s each): {folder} "
        f"(sheet.png{', denoising.gif' if gif else ''})"
    )
    return seconds, walk.evaluations


def _say_plan(trained: Trained, request: Request, walk: Plan) -> None:
    channels, height, width = trained.model.shape
    say(f"compute: {trained.compute}")
    say(
        f"model: {trained.name}, step {trained.step}, {width}x{height} {'grey' if channels == 1 else 'colour'}; "
        f"{request.n} pictures by {walk.sampler}, {walk.steps} steps ({walk.spacing}), "
        f"{walk.evaluations} network evaluations each"
    )


def _walk(trained: Trained, request: Request, start: Tensor | None, film: object) -> Tensor:
    import torch

    from kuosan.sample.generate import generate
    from kuosan.sample.write import Film

    finished = []
    with bar() as progress:
        task = progress.add_task("sampling", total=None)
        for frame in generate(trained.model, request, start=start):
            batches = -(-request.n // max(1, len(frame.x)))
            done = frame.first // max(1, len(frame.x)) * frame.steps + frame.step
            progress.update(task, completed=done, total=max(done, batches * frame.steps))
            if isinstance(film, Film):
                film.add(frame)
            if frame.done:
                finished.append(frame.x)
    return torch.cat(finished)


def _again(like: Path, run: Path | None, out: Path | None, where: ComputeConfig) -> None:
    """Make the picture of a recipe again, from the same weights, in the same batch."""
    import dataclasses

    from kuosan import trained as opening
    from kuosan.data.images import save_png, to_uint8
    from kuosan.device import choose
    from kuosan.sample import recipe as recipes

    recipe = recipes.read(like)
    if where.precision == "auto":
        where = dataclasses.replace(where, precision=recipe.precision)
    trained = opening.load(opening.checkpoint_of(run or Path(recipe.run), recipe), compute=choose(where))
    opening.require_weights(trained, recipe)
    request, row = recipe.batch_request()
    start = opening.picture(trained.model, Path(request.image)) if request.image else None
    images = _walk(trained, request, start, None)
    path = out or like.with_name(f"{like.stem}-again.png")
    if path.is_dir() or path.suffix.lower() != ".png":
        path = path / like.name
    save_png(path, to_uint8(images[row].cpu().numpy()), recipe.text())
    say(f"made again: {path} (seed {recipe.seed}, step {trained.step} of {trained.name})")
