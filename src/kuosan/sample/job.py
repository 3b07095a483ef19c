"""`kuosan sample` as a job: what to make, `plan_sample` to open and check all of it once, `run_sample` to make it.

    job = SampleJob("runs/faces", Request(n=4, seed=7))
    for event in run_sample(plan_sample(job)): ...

Torch loads in `plan_sample`, after all that a run's configuration alone can refuse.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kuosan import config as trees
from kuosan import options
from kuosan.device import ComputeConfig
from kuosan.diffusion import registry
from kuosan.errors import Error, shown
from kuosan.events import Event, Finished, Progress, Wrote
from kuosan.sample import embedded
from kuosan.sample.plan import Choice, check_guides, choose, refuse_to_itself, with_levels
from kuosan.sample.request import Request

if TYPE_CHECKING:
    from kuosan.models.model import ModelConfig
    from kuosan.sample.generate import Sampling
    from kuosan.sample.pipeline import Pipeline
    from kuosan.sample.recipe import Recipe

SHEET = 1024  # images on a sheet at most
_RECIPE = options.only(
    like=None,
    otherwise="with --like, which makes an image by its own recipe: leave it out. Only RUN, --out, --allow-path, "
    "--device, --precision and --threads go with --like",
)


@dataclass(frozen=True)
class SampleJob:
    """Images to make with a trained model, each written with the recipe that makes it again.

    Raises:
        Error: what no model could do.
    """

    run: str = field(default="", metadata={"option": False})  # a run's folder, one of its checkpoints, or `embedded`
    request: Request = field(default_factory=Request, metadata=_RECIPE)  # what to make
    out: str | None = None  # the folder to write; RUN/samples/SAMPLER-STEPS-SEED if not given
    columns: int | None = field(default=None, metadata=_RECIPE)  # images in a row of the sheet
    gif: bool = field(default=False, metadata=_RECIPE)  # write the denoising of the first batch as an animation too
    like: str | None = None  # make the image in this file again, by the recipe inside it; few other options go with it
    allow_path: tuple[str, ...] = field(
        default=(), metadata={"whole": True, **options.only(like=options.SET)}
    )  # with --like: a folder or file elsewhere that the recipe may open; given again, several
    compute: ComputeConfig = field(default_factory=ComputeConfig)  # where, and in which precision

    def __post_init__(self) -> None:
        if self.out == "":
            raise Error("out = '' is not allowed: name the folder to write, or leave --out out.")
        if self.columns is not None and not 1 <= self.columns <= SHEET:
            raise Error(f"columns = {self.columns} is not allowed: 1 to {SHEET} images in a row.")
        options.check(self)


@dataclass(frozen=True)
class SampleJobPlan:
    """A job whose files are open and whose request is resolved: `run_sample` asks nothing any more."""

    job: SampleJob
    pipeline: Pipeline
    sampling: Sampling
    recipe: Recipe
    notes: tuple[str, ...] = ()  # what was done to the start image, in words

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before it starts."""
        words = embedded.warnings(self.recipe.request) if embedded.is_meant(self.job.run) else ()
        return (*self.pipeline.warnings, *words)


@dataclass(frozen=True)
class Sampled:
    """What `run_sample` came to."""

    folder: Path
    n: int
    seconds: float
    nfe: int  # network evaluations an image
    files: tuple[Path, ...]  # the images, in their order


class Early(NamedTuple):
    """What a run's copy of its configuration settled before torch was loaded."""

    config: ModelConfig
    choice: Choice
    guides: tuple[ModelConfig | None, ModelConfig | None]  # of the classifier and the weaker model


def plan_sample(job: SampleJob) -> SampleJobPlan:
    """Open the run, the start image and the guiding models, and resolve the request, each once. Writes nothing.

    Raises:
        Error: anything that is missing, damaged or impossible.
    """
    run, request = job.run, job.request
    if not run:
        raise Error(
            'no model given: kuosan sample RUN (the folder that `kuosan train` made), or kuosan sample "a heart, '
            'fluent style" for an image by the model inside the package.'
        )
    registry.sampler(request.sampler)
    if embedded.is_meant(run):
        embedded.folder()
        request = embedded.usual(request)
    _require_enough(request)
    early = early_choice(Path(run), request)
    from kuosan.device import choose as choose_compute
    from kuosan.sample import guidance_models
    from kuosan.sample import pipeline as opening
    from kuosan.sample import plan as sizes
    from kuosan.sample.generate import resolve_request

    pipeline = opening.load(run, compute=choose_compute(job.compute))
    config = pipeline.model.config
    reused = early is not None and early.config == config
    trajectory = with_levels(config, early.choice if reused and early is not None else choose(config, request))
    refuse_to_itself(config, request)
    notes: list[str] = []
    size = trajectory.size or sizes.of(config, request)
    start = None
    if request.image is not None:
        start = opening.image(sizes.sized(pipeline.model, size), Path(request.image), pipeline.reading, notes.append)
    helpers = pipeline.helpers(request)
    guides = opening.guides_of(helpers)
    opened = tuple(None if one is None else one.config for one in (guides.classifier, guides.reference))
    if early is None or not reused or early.guides != opened:
        guidance_models.check(pipeline.model, request, guides, size)
    sampling = resolve_request(pipeline.model, request, start=start, guides=guides, resolved=trajectory)
    recipe = pipeline.recipe(request, start, helpers, size=size, resolved=trajectory)
    return SampleJobPlan(job, pipeline, sampling, recipe, tuple(notes))


def _require_enough(request: Request) -> None:
    """Refuse fewer images than there are classes or prompts, which are taken in turn. Raises: Error."""
    for name, asked in (("classes", request.classes), ("prompts", request.prompts)):
        if len(asked) > request.n:
            raise Error(
                f"-n {request.n} with {len(asked)} {name} would leave out {shown(asked[request.n])} and those after "
                f"it: ask for -n {len(asked)} or more, or for fewer {name}."
            )


def run_sample(plan: SampleJobPlan) -> Iterator[Event]:
    """Make and write the images: Progress of their denoising steps, Wrote the folder and each image, Finished.

    Raises:
        Error: a folder that cannot be written, or holds other images.
    """
    from kuosan.sample import write
    from kuosan.sample.generate import frames_of
    from kuosan.sample.write import claim

    job, sampling, recipe = plan.job, plan.sampling, plan.recipe
    request, out = sampling.request, None if job.out is None else Path(job.out)
    with claim(Path(job.run), out, recipe, sampling.plan, job.gif) as output:
        folder, film = output.folder, write.Film() if job.gif else None
        yield Wrote(folder)
        write.recipe(folder, recipe)
        images, files, begin = [], list[Path](), time.perf_counter()
        for frame in frames_of(sampling):
            if film is not None:
                film.add(frame)
            if frame.done:
                written = write.images(folder, frame.x, recipe, frame.first)
                files += written
                images.append(frame.x[: max(0, SHEET - frame.first)].cpu())
                yield from map(Wrote, written)
            done = frame.first * frame.steps + len(frame.x) * frame.step
            spent = time.perf_counter() - begin
            left = request.n * frame.steps - done
            yield Progress("sampling", done, request.n * frame.steps, done / spent, spent / done * left)
        seconds = time.perf_counter() - begin
        write.sheet(folder / write.SHEET, images, job.columns, write.labels_of(request))
        if film is not None:
            film.write(folder / write.GIF, job.columns)
    yield Finished(Sampled(folder, request.n, seconds, sampling.plan.evaluations, tuple(files)))


def early_choice(run: Path, request: Request) -> Early | None:
    """What a run's configuration alone settles or refuses, without torch; None where it has none to be read."""
    if not (run / "config.yaml").is_file() or not (run / "checkpoints").is_dir():
        return None  # a checkpoint's own is read when its bytes are checked
    from kuosan.models.model import OwnNetwork, missing_network

    config = stored(run)
    if config is None:
        return None
    if isinstance(config.network, OwnNetwork):
        raise missing_network(config.network)
    choice = choose(config, request)
    classifier, reference = (
        None if path is None else stored(Path(path)) for path in (request.classifier, request.reference)
    )
    check_guides(config, request, classifier, reference, choice.size)
    return Early(config, choice, (classifier, reference))


def stored(run: Path) -> ModelConfig | None:
    """The model of a run by its config.yaml; None where that is damaged or not there: the checkpoint's own decides."""
    path = run / "config.yaml"
    try:
        there = path.stat()
    except OSError:
        return None
    return _stored(path, (there.st_ino, there.st_size, there.st_mtime_ns))


@lru_cache(8)  # the shell and the plan both ask
def _stored(path: Path, state: tuple[int, int, int]) -> ModelConfig | None:
    from kuosan.models.model import ModelConfig

    try:
        return trees.build(ModelConfig, trees.load(path).get("model", {}))
    except Error:
        return None
