"""`kuosan restore` as a job: `plan_restore` opens and checks the run and every image once, `run_restore` restores them.

An image and its mask are opened once: prepared inputs wait in memory up to `WAITING` bytes; beyond, they are opened
again when their turn comes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuosan import config as trees
from kuosan.device import ComputeConfig
from kuosan.diffusion import registry
from kuosan.errors import Error
from kuosan.events import Event, Fact, Finished, OnEvent, OnProgress, Progress, Wrote, counted
from kuosan.sample import request as requests
from kuosan.sample.job import stored
from kuosan.sample.plan import SamplePlan, choose, refuse_to_itself, with_levels
from kuosan.sample.request import Request, Restoration

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.sample.inputs import RestorationInput
    from kuosan.sample.pipeline import Pipeline
    from kuosan.sample.recipe import Recipe
    from kuosan.storage.outputs import Output

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
ASKED = "request.json"  # beside the answers: what was asked
SHEET = 64  # images on the sheet at most
WAITING = 512 << 20  # bytes of prepared inputs


@dataclass(frozen=True)
class RestoreJob:
    """Images to restore with a trained model.

    Raises:
        Error: what no model could do.
    """

    run: str = field(default="", metadata={"option": False})  # a run's folder, or one of its checkpoints
    images: tuple[str, ...] = field(default=(), metadata={"option": False})  # files, or folders of them
    restoration: Restoration = field(default_factory=lambda: Restoration("", upscale=2))  # what is wrong with them
    variants: int = field(
        default=1, metadata={"flags": ("-n", "n")}
    )  # how many answers for each image; answer k has seed SEED + k
    sampler: str | None = None  # as for `kuosan sample`; the method's own default if not given
    request: Request = field(default_factory=Request)  # the seed, the steps, classes, prompts and guidance
    out: str | None = None  # the folder to write; one in RUN/restored, by what is done and how, if not given
    compute: ComputeConfig = field(default_factory=ComputeConfig)  # where, and in which precision

    def __post_init__(self) -> None:
        if self.sampler is not None:
            registry.sampler(self.sampler)
        if not self.images:
            raise Error("no images given: kuosan restore RUN IMAGE [IMAGE ...], or a folder of them.")

    def asked(self) -> Request:
        """The request of one image, before the method's defaults are filled in."""
        sampler = self.sampler or Request().sampler
        return replace(self.request, n=self.variants, restoration=self.restoration, sampler=sampler)


@dataclass(frozen=True)
class RestorePlan:
    """A job whose run and images are open, and whose request is resolved.

    Attributes:
        trajectory: how each canvas is sampled.
        files: the images to restore, each once.
        wrong: why others are left out, in sentences.
        ready: inputs that wait in memory.
        prints: of the pixels of each image, as it is restored.
        tiles: network's images in all canvases.
    """

    job: RestoreJob
    pipeline: Pipeline
    request: Request
    trajectory: SamplePlan
    files: tuple[Path, ...]
    wrong: tuple[str, ...]
    ready: dict[Path, RestorationInput]
    prints: Mapping[Path, str]
    names: Mapping[Path, str]
    tiles: int

    @property
    def many(self) -> int:
        """Answers in all."""
        return len(self.files) * self.request.n

    @property
    def nfe(self) -> int:
        """Network evaluations in all, each of one tile."""
        return self.tiles * self.request.n * self.trajectory.evaluations

    def of(self, path: Path) -> Request:
        """The request of one image."""
        assert self.request.restoration is not None
        return replace(self.request, restoration=replace(self.request.restoration, image=str(path)))

    def answers(self, path: Path) -> list[str]:
        """The files of an image's answers."""
        name, seed, n = self.names[path], self.request.seed, self.request.n
        return [f"{name}-seed-{seed + i:08d}.png" if n > 1 else f"{name}.png" for i in range(n)]

    def about(self) -> str:
        """All that the answers follow from, but the images: what makes a folder another command's or this one's."""
        return json.dumps({"weights": self.pipeline.weights, "request": trees.plain(self.request)}, indent=1) + "\n"

    def recipe(self, path: Path, size: tuple[int, int] = (0, 0)) -> Recipe:
        """What the answers to an image follow from."""
        made = self.pipeline.recipe(self.of(path), size=size, resolved=self.trajectory)
        return replace(made, size=size, start=self.prints[path])


@dataclass(frozen=True)
class Restored:
    """What `run_restore` came to."""

    folder: Path
    sheet: str
    many: int
    seconds: float


def plan_restore(job: RestoreJob, on_event: OnEvent | None = None) -> RestorePlan:
    """Open the run and every image, and resolve the request, each once. Writes nothing.

    Args:
        on_event: called with the Progress of opening images.

    Raises:
        Error: what the run cannot restore, no image that can be restored, or an overlap without effect.
    """
    run, asked, named = Path(job.run), job.asked(), job.sampler is not None
    files = found([Path(each) for each in job.images])
    config = stored(run) if (run / "config.yaml").is_file() else None
    choice = None
    if config is not None:  # without torch
        request = requests.usual(config, asked, named=named)
        choice = choose(config, request)
        refuse_to_itself(config, request)
    from kuosan.device import choose as choose_compute
    from kuosan.sample import pipeline as opening
    from kuosan.storage import outputs

    pipeline = opening.load(run, compute=choose_compute(job.compute))
    own = pipeline.model.config
    if choice is None or own != config:
        request = requests.usual(own, asked, named=named)
        choice = choose(own, request)
        refuse_to_itself(own, request)
    if job.out is not None:
        outputs.check_folder(Path(job.out), inputs_of(files, job.restoration))
    trajectory = replace(with_levels(own, choice), size=None)  # canvases have sizes of their own
    return _looked(job, pipeline, request, trajectory, files, counted(on_event))


def _looked(
    job: RestoreJob,
    pipeline: Pipeline,
    request: Request,
    trajectory: SamplePlan,
    files: Sequence[Path],
    progress: OnProgress,
) -> RestorePlan:
    """The plan, once every image and mask was opened; those that are refused are named and left out."""
    from kuosan.sample.recipe import fingerprint

    wrong, good, ready, prints, tiles, held = [], list[Path](), {}, {}, 0, 0
    for done, path in enumerate(files, 1):
        progress("opening images", done, len(files))
        try:
            source = _opened(pipeline, request, path)
        except Error as error:
            wrong.append(str(error))
            continue
        if path not in prints:
            good.append(path)
        prints[path] = fingerprint(source.image)
        tiles += source.tiles
        if held < WAITING:
            ready[path] = source
            held += _bytes(source)
    if not good:
        more = f" ({len(wrong) - 1} more images are refused, too.)" if len(wrong) > 1 else ""
        raise Error(f"{wrong[0]}{more}")
    overlap = request.restoration and request.restoration.overlap
    if overlap is not None and tiles == len(good):
        raise Error(f"overlap = {overlap} has no effect: no image is larger than the model's; leave it out.")
    return RestorePlan(
        job, pipeline, request, trajectory, tuple(good), tuple(wrong), ready, prints, _named(good), tiles
    )  # fmt: skip


def _opened(pipeline: Pipeline, request: Request, path: Path) -> RestorationInput:
    """An image as the training images were read, ready to be restored. Raises: Error where it cannot be."""
    from kuosan.sample.inputs import open_input

    assert request.restoration is not None
    asked = replace(request.restoration, image=str(path))
    return open_input(pipeline.model, asked, path, batch=request.batch, reading=pipeline.reading)


def _bytes(source: RestorationInput) -> int:
    own = [source.image, source.mask, *(source.given or ())]
    own += [source.measurement.y] if source.measurement is not None else []
    return sum(each.numel() * each.element_size() for each in own if hasattr(each, "element_size"))


def run_restore(plan: RestorePlan) -> Iterator[Event]:
    """Restore and write: Wrote the folder, Fact of what was done to an image, Progress, Wrote each answer, Finished.

    Raises:
        Error: a folder that cannot be written, or holds other answers.
    """
    import numpy as np
    import torch

    from kuosan.data.pixels import save_png, to_uint8
    from kuosan.sample.generate import frames_of, resolve_request
    from kuosan.sample.write import line, row_sheet
    from kuosan.storage import files as writing

    with _claim(plan) as output:
        folder, sheet_name = output.folder, output.free("sheet.png", [plan.about(), *sorted(plan.prints.values())])
        yield Wrote(folder)
        writing.write_atomic(folder / ASKED, plan.about())
        lines, begin = list[list[np.ndarray]](), time.perf_counter()
        for path in plan.files:
            source = plan.ready.pop(path, None) or _opened(plan.pipeline, plan.request, path)
            yield Fact("image", {"path": path, "notes": source.notes})
            request = source.batched(plan.of(path))
            sampling = resolve_request(
                source.model, request, given=source.given, measurement=source.measurement, resolved=plan.trajectory
            )
            parts: list[Tensor] = []
            for frame in frames_of(sampling):
                done = frame.first * frame.steps + len(frame.x) * frame.step
                yield Progress(path.name, done, request.n * frame.steps)
                if frame.done:
                    parts.append(source.result(frame.x))
            images = torch.cat(parts)
            recipe = plan.recipe(path, (images.shape[3], images.shape[2]))
            for i, (name, image) in enumerate(zip(plan.answers(path), to_uint8(images.cpu().numpy()))):
                save_png(folder / name, image, replace(recipe, index=i).text())
                yield Wrote(folder / name)
            if len(lines) < SHEET:
                lines.append(line(source.image, images))
        row_sheet(folder / sheet_name, lines)
        seconds = time.perf_counter() - begin
    yield Finished(Restored(folder, sheet_name, plan.many, seconds))


def _claim(plan: RestorePlan) -> AbstractContextManager[Output]:
    """The folder to write; without --out one by what is done and how that is free, or holds these answers.

    Each answer follows from its own image and the request, so more images may be restored into one folder; the sheet
    of other images gets another name.
    """
    from kuosan.sample.write import of_run
    from kuosan.storage import outputs

    asked, names = plan.request.restoration, dict[str, Any]({ASKED: plan.about()})
    assert asked is not None
    for path in plan.files:
        own = plan.recipe(path)
        names |= {name: trees.plain(replace(own, index=i)) for i, name in enumerate(plan.answers(path))}

    def proof(path: Path) -> bool:
        return _fits(plan, path)

    if plan.job.out is not None:
        inputs = inputs_of(plan.files, asked)
        return outputs.claimed(Path(plan.job.out), "restore", plan.about(), names, inputs=inputs, proof=proof)
    words = [*asked.damage, asked.method or "trained", plan.request.sampler, f"seed{plan.request.seed}"]
    home = of_run(Path(plan.job.run), "restored", "{}-restored")
    return outputs.claimed_unused(home / "-".join(words), "restore", plan.about(), names, proof=proof)


def _fits(plan: RestorePlan, path: Path) -> bool:
    """Whether a file that an older kuosan wrote, which kept no record, is of this request."""
    from kuosan.data.pixels import read_png_text
    from kuosan.sample.recipe import KEY

    try:
        same = json.loads((path.parent / ASKED).read_text(encoding="utf-8")) == json.loads(plan.about())
        if not same or path.name == ASKED:
            return bool(same)
        own = json.loads(read_png_text(path)[KEY])
    except (Error, OSError, ValueError, KeyError, RecursionError):
        return False
    return any(path.name in plan.answers(each) and own.get("start") == plan.prints[each] for each in plan.files)


def inputs_of(files: Sequence[Path], asked: Restoration) -> list[Path]:
    """The files that a restoration reads, and so must never write."""
    masks = [Path(asked.mask)] if asked.mask is not None and Path(asked.mask).exists() else []
    return [*files, *masks]


def found(images: Sequence[Path]) -> list[Path]:
    """The image files that were named, folders opened.

    Raises:
        Error: nothing there, or a folder without images.
    """
    files: list[Path] = []
    for path in images:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
            if not inside:
                raise Error(f"{path} holds no image ({', '.join(suffix[1:] for suffix in SUFFIXES)}).")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise Error(f"there is no image {path}.")
    return files


def _named(files: Sequence[Path]) -> dict[Path, str]:
    """What each image's answers are called: its own name, no two alike, nor like the sheet."""
    names: dict[Path, str] = {}
    used = {"sheet"}
    for path in files:
        name = path.stem if path.stem not in used else f"{path.stem}-{path.suffix[1:]}"
        while name in used:
            name += "-again"
        used.add(name)
        names[path] = name
    return names
