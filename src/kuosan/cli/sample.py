"""`kuosan sample`: pictures from a trained model, each carrying the recipe that makes it again."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from kuosan import config as trees
from kuosan.cli.console import say, warn
from kuosan.cli.frames import frames
from kuosan.cli.numbers import Whole, size_of, whole
from kuosan.device import ComputeConfig
from kuosan.diffusion import names
from kuosan.errors import Error
from kuosan.regular import exists
from kuosan.sample import embedded
from kuosan.sample.request import Request

if TYPE_CHECKING:
    from kuosan.model import ModelConfig
    from kuosan.sample.plan import Plan
    from kuosan.trained import Trained

SHEET = 1024  # pictures on a sheet at most


def sample(
    *words: Annotated[str, Parameter(allow_leading_hyphen=False)],
    prompts: Annotated[list[str] | None, Parameter(name="--prompt", negative=())] = None,
    n: Annotated[int, Parameter(name=["--n", "-n"], converter=whole)] = 16,
    sampler: str = "dpm_solver_2m",
    steps: Whole | None = None,
    seed: Whole = 0,
    spacing: str | None = None,
    eta: float | None = None,
    variance: str | None = None,
    classes: Annotated[list[str] | None, Parameter(name="--class", negative=())] = None,
    guidance: Annotated[float | None, Parameter(name=["--guidance", "--guidance-scale", "--cfg"])] = None,
    negative: Annotated[str | None, Parameter(name="--negative")] = None,
    reference: Path | None = None,
    guidance_interval: Annotated[tuple[float, float] | None, Parameter(negative=())] = None,
    guidance_rescale: float | None = None,
    classifier: Path | None = None,
    classifier_scale: float | None = None,
    threshold: float | None = None,
    s_churn: float | None = None,
    s_tmin: float | None = None,
    s_tmax: float | None = None,
    s_noise: float | None = None,
    clip: bool = True,
    image: Path | None = None,
    strength: float | None = None,
    between: Annotated[tuple[int, int] | None, Parameter(negative=(), converter=whole)] = None,
    size: Annotated[tuple[int, int] | None, Parameter(negative=(), converter=size_of, n_tokens=1)] = None,
    aspect: str | None = None,
    batch: Whole = 16,
    exact: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    columns: Whole | None = None,
    gif: Annotated[bool, Parameter(negative=())] = False,
    like: Path | None = None,
    allow_path: Annotated[list[Path] | None, Parameter(negative=())] = None,
    device: str = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    threads: Whole = 0,
) -> None:
    """Make N pictures with the model in RUN, of what PROMPT says if it understands words, and a sheet of them.

    `kuosan sample "a fox, fluent style"`, without a run, uses the small text-to-image model inside the package.

    Parameters
    ----------
    words
        RUN, a run's folder or one of its checkpoints, and PROMPT, in quotes.
    prompts
        What to make; given again, the prompts take turns. (words:1.3) weighs words, (words) 1.1, [words] 1/1.1.
    n
        How many pictures; picture i has seed SEED + i.
    sampler
        ddpm, ddim, euler, euler_ancestral, heun, dpm_solver_2s, dpm_solver_2m, dpm_solver_3m, dpm_solver_3m_corrected,
        dpm_solver_2s_sde, dpm_solver_2m_sde, dpm_solver_3m_sde, unipc, unipc_3, plms or pndm; other tools' names are
        understood.
    steps
        Denoising steps; the sampler's usual number if not given.
    seed
        The first picture's seed.
    spacing
        Where the steps lie: trailing, leading, linspace, log_snr or karras.
    eta
        The noise of ddim (0 none, its default, to 1 as much as DDPM) and of euler_ancestral (default 1).
    variance
        DDPM's variance: beta, posterior or learned.
    classes
        The class of the pictures, by name or number, or `none`; given again, the classes take turns. Without it each
        class in turn.
    guidance
        Classifier-free guidance: 1 is none, 3 a usual scale; the model inside the package has its own.
    negative
        With --guidance: the words (or the class) to lead away from, instead of from nothing.
    reference
        With --guidance: a weaker run to lead away from (autoguidance), an early checkpoint say.
    guidance_interval
        Guide only where sigma/alpha lies between these two numbers.
    guidance_rescale
        With --guidance: 0 (none) to 1, how far the contrast is brought back to the unguided prediction's.
    classifier
        Guide by the noisy classifier in this run (kuosan train --objective classifier).
    classifier_scale
        With --classifier: how strongly; 1 if not given.
    threshold
        Dynamic thresholding at this percentile, in --clip's place; 99.5 is usual.
    s_churn
        Heun's added noise over the whole walk (Karras et al. 2022); s_tmin, s_tmax and s_noise go with it.
    s_tmin
        With --s-churn: the least sigma/alpha at which noise is added.
    s_tmax
        With --s-churn: the most.
    s_noise
        With --s-churn: the standard deviation of the added noise; 1 if not given.
    clip
        Keep predicted pictures within black and white at every step.
    image
        Start from this picture instead of from noise alone.
    strength
        With --image: how much is made anew, above 0 to 1; 0.6 if not given.
    between
        Two seeds: N pictures on the way from one to the other.
    size
        Width x height of the pictures, as 96x64, of a model trained on several shapes (--data.resize buckets); the
        model's own if not given.
    aspect
        Instead of --size: width to height, as 3:2, at about as many pixels as in training.
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
        Make the picture in this file again, by the recipe inside it; of the other options only RUN, --out,
        --allow-path, --device, --precision and --threads go with it.
    allow_path
        With --like: a folder or file outside the working folder that the recipe may open; given again, several.
    device
        auto, cpu, cuda, cuda:1 or mps.
    precision
        What the network computes in.
    threads
        Processor threads; 0 lets torch choose.
    """
    run, said = _said(words, tuple(prompts or ()))
    request = Request(
        n=n, seed=seed, sampler=sampler, steps=steps, spacing=spacing, eta=eta, variance=variance, s_churn=s_churn,
        s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise, classes=tuple(classes or ()), prompts=said, guidance=guidance,
        negative=negative, reference=_text(reference), guidance_interval=guidance_interval,
        guidance_rescale=guidance_rescale, classifier=_text(classifier), classifier_scale=classifier_scale,
        threshold=threshold, clip=clip, image=_text(image), strength=strength, between=between, size=size,
        aspect=aspect, batch=batch, exact=exact,
    )  # fmt: skip
    where = ComputeConfig(device, precision, threads)
    if like is not None:
        _refuse_beside_like(request, columns, gif)
        from kuosan.cli.again import again

        again(like, run, out, where, tuple(allow_path or ()))
        return
    if allow_path:
        raise Error(f"--allow-path {allow_path[0]} has no effect without --like: leave it out.")
    names.sampler(sampler)
    if run is None and not request.prompts:
        raise Error(
            'no model given: kuosan sample RUN (the folder that `kuosan train` made), or kuosan sample "a fox, fluent '
            'style" for a picture by the model inside the package.'
        )
    if run is None:
        embedded.folder()  # refused before torch loads
        run = Path(embedded.NAME)
        if " " not in request.prompts[0].strip() and not prompts:
            say(f"there is no run {request.prompts[0]!r} here: it is read as a prompt for the package's own model.")
    if embedded.is_meant(run):
        request = embedded.usual(request)
    _refuse_early(run, request)
    make(run, request, out, columns, gif, where)


def _said(words: tuple[str, ...], prompts: tuple[str, ...]) -> tuple[Path | None, tuple[str, ...]]:
    """The run, if one is named, and the prompts: of bare words, the first is a run where it is one or looks like one.

    Raises:
        Error: several bare words, which was one prompt without its quotes.
    """
    run, rest = None, list(words)
    first = rest[0] if rest and rest[0].strip() else ""  # a run is there, or looks like a path
    if first and (exists(first) or (os.sep in first and " " not in first) or first == embedded.NAME):
        run = Path(rest.pop(0))
    if len(rest) > 1:
        raise Error(f'{" ".join(rest)!r} are {len(rest)} words: put a prompt in quotes, "{" ".join(rest)}".')
    if rest and prompts:
        raise Error(f"the prompt is given twice: {rest[0]!r} and --prompt {prompts[0]!r}.")
    return run, tuple(rest) or prompts


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def make(
    run: Path, request: Request, out: Path | None, columns: int | None, gif: bool, where: ComputeConfig
) -> tuple[float, int]:
    """Sample, write, and say what was made; the seconds of sampling and the network evaluations a picture.

    Raises:
        Error: what the run cannot be sampled with, or a folder that cannot be written.
    """
    if columns is not None and not 1 <= columns <= SHEET:
        raise Error(f"columns = {columns} is not allowed: 1 to {SHEET} pictures in a row.")
    from kuosan import trained as opening
    from kuosan.cli.picture_folder import claim
    from kuosan.device import choose
    from kuosan.sample import guided, sizes, write
    from kuosan.sample.plan import plan, refuse_to_itself

    trained = opening.load(run, compute=choose(where))
    for text in trained.damaged:
        say(f"warning: a newer checkpoint is damaged and passed over: {text}")
    warn(trained.warnings)
    walk = plan(trained.model.config, request)
    size = sizes.of(trained.model.config, request)
    refuse_to_itself(trained.model.config, request)
    sized = sizes.sized(trained.model, size)
    start = opening.picture(sized, Path(request.image), trained.reading, say) if request.image else None
    helpers = trained.helpers(request)
    guides = opening.guides_of(helpers)
    guided.check(trained.model, request, guides)
    recipe = trained.recipe(request, start, helpers)
    with claim(run, out, recipe, walk, gif) as output:
        _say_plan(trained, request, walk, size)
        folder, film = output.folder, write.Film() if gif else None
        images, begin = [], time.perf_counter()
        write.recipe(folder, recipe)
        try:
            for frame in frames(trained, request, start, guides):
                if film is not None:
                    film.add(frame)
                if frame.done:
                    write.pictures(folder, frame.x, recipe, frame.first)
                    images.append(frame.x[: max(0, SHEET - frame.first)].cpu())
        except KeyboardInterrupt:
            say(f"stopped: {sum(map(len, images))} of {request.n} pictures are finished, in {folder}.")
            raise
        seconds = time.perf_counter() - begin
        write.sheet(folder / write.SHEET, images, columns)
        if film is not None:
            film.write(folder / write.GIF, columns)
    say(
        f"{request.n} picture{'s' * (request.n > 1)} in {seconds:.1f} s ({seconds / request.n:.2f} s each): {folder} "
        f"(sheet.png{f' of the first {SHEET}' * (request.n > SHEET)}{', denoising.gif' * gif})"
    )
    return seconds, walk.evaluations


def _refuse_early(run: Path, request: Request) -> None:
    """What a run's configuration alone can refuse, without loading torch."""
    if not (run / "config.yaml").is_file() or not (run / "checkpoints").is_dir():
        return  # a checkpoint's own is read when its bytes are checked
    from kuosan.model import OwnNetwork, missing_network
    from kuosan.sample.plan import check_guides, choose

    config = stored(run)
    if config is None:
        return
    if isinstance(config.network, OwnNetwork):
        raise missing_network(config.network)
    choose(config, request)
    others = [None if path is None else stored(Path(path)) for path in (request.classifier, request.reference)]
    check_guides(config, request, *others)


def stored(run: Path) -> ModelConfig | None:
    """The model of a run by its config.yaml; None where that is damaged or not there: the checkpoint's own decides."""
    from kuosan.model import ModelConfig

    try:
        return trees.build(ModelConfig, trees.load(run / "config.yaml").get("model", {}))
    except Error:
        return None


def _refuse_beside_like(request: Request, columns: int | None, gif: bool) -> None:
    usual = Request()
    given = [
        field.name
        for field in dataclasses.fields(Request)
        if getattr(request, field.name) != getattr(usual, field.name)
    ]
    given += ["columns"] * (columns is not None) + ["gif"] * gif
    if given:
        first = given[0].replace("classes", "class").replace("_", "-")
        raise Error(
            f"--{first} has no effect with --like, which makes a picture by its own recipe; leave it out. "
            f"Only RUN, --out, --allow-path, --device, --precision and --threads go with --like."
        )


def _say_plan(trained: Trained, request: Request, walk: Plan, size: tuple[int, int]) -> None:
    channels, (width, height) = trained.model.shape[0], size
    if trained.model.config.task.text and not request.prompts:
        say("no prompt: pictures of no text; say what to make in quotes behind the run, or with --prompt.")
    say(f"compute: {trained.compute}")
    say(
        f"model: {trained.name}, step {trained.step}, {width}x{height} {'grey' if channels == 1 else 'colour'}; "
        f"{request.n} picture{'s' * (request.n > 1)} by {walk.sampler}, {walk.steps} steps"
        f"{f' ({walk.spacing})' if walk.spacing else ''}, {walk.evaluations} network evaluations each"
    )
