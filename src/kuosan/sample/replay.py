"""`kuosan sample --like image.png`: the same image again, byte for byte, by the recipe inside it.

The image may be a stranger's, so what its recipe names is opened only where it lies in the run above the image,
below the working folder, or where the person allowed it (RUN, --allow-path); each is then checked by its hash. A
relative path starts at the folder in which the image was made, which no recipe knows; `Search` says where it is looked
for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from kuosan import config as trees
from kuosan.data.pixels import png_bytes, to_uint8
from kuosan.device import choose
from kuosan.errors import Error, shown
from kuosan.events import Event, Finished, Progress, Wrote
from kuosan.regular import Places, exists
from kuosan.sample import embedded
from kuosan.sample import pipeline as opening
from kuosan.sample import plan as sizes
from kuosan.sample import recipe as recipes
from kuosan.sample.generate import Sampling, frames_of, resolve_request
from kuosan.sample.job import SampleJob
from kuosan.sample.pipeline import Pipeline
from kuosan.sample.recipe import Recipe
from kuosan.sample.write import same_recipe
from kuosan.storage import outputs


@dataclass(frozen=True)
class ReplayPlan:
    """An image to make again, with all that its recipe names open and checked against its hashes."""

    job: SampleJob
    like: Path  # the image with the recipe
    place: Path  # the file to write
    recipe: Recipe  # as it is in the file
    home: Path  # the run
    pipeline: Pipeline
    sampling: Sampling
    row: int  # of the batch that held the image
    result: Callable[[Tensor], Tensor]  # from the finished batch to images


@dataclass(frozen=True)
class Replayed:
    """What `run_replay` came to: the file, and whether it held these very bytes already."""

    path: Path
    same: bool


def plan_replay(job: SampleJob) -> ReplayPlan:
    """Open all that the recipe in `job.like` names, the same weights and the same batch. Writes nothing.

    Raises:
        Error: no recipe, one that names files elsewhere, other weights or another image to start from than the
            recipe's, or a file that may not be written over.
    """
    assert job.like is not None
    like, run, where = Path(job.like), Path(job.run) if job.run else None, job.compute
    allowed = tuple(map(Path, job.allow_path))
    recipe = original = recipes.read(like)
    above = _above(like)
    places = Places.of([Path.cwd(), *allowed, *([above] if above else []), *([run] if run and exists(run) else [])])
    run = _home(like, recipe, Search(like, places, allowed), above) if run is None else run
    search = Search(like, places, allowed, _base(recipe.run, run))
    named = recipes.files_of(recipe)
    for what, name in named.items():
        if search.there(name):  # outside the places: refused before anything is opened
            search.find(f"the {what}", name)
    if where.precision == "auto":
        where = dataclasses.replace(where, precision=recipe.precision)
    if not where.threads and recipe.threads:  # the order of sums, and so the last bits, may depend on it
        where = dataclasses.replace(where, threads=recipe.threads)
    place = _place(like, None if job.out is None else Path(job.out), original)
    trained = opening.load(opening.checkpoint_of(run, recipe), compute=choose(where))
    opening.require_weights(trained, recipe)
    found = {what: str(search.find(f"the {what}", name)) for what, name in named.items()}
    recipe = recipes.relocated(recipe, found)
    if recipe.request.restoration is not None:
        return ReplayPlan(job, like, place, original, run, trained, *_restoration(trained, recipe))
    request, row = recipe.batch_request()
    start = opening.start_of(recipe, sizes.asked(trained.model, request), trained.reading)
    helpers = trained.helpers(request)
    for name, helper in helpers.items():
        opening.require_helper(name, helper, recipe)
    sampling = resolve_request(trained.model, request, start=start, guides=opening.guides_of(helpers))
    return ReplayPlan(job, like, place, original, run, trained, sampling, row, lambda images: images)


def run_replay(plan: ReplayPlan) -> Iterator[Event]:
    """Make the image again and write it, unless these very bytes are there: Progress, Wrote, Finished."""
    finished, n = [], plan.sampling.request.n
    for frame in frames_of(plan.sampling):
        yield Progress("sampling", frame.first * frame.steps + len(frame.x) * frame.step, n * frame.steps)
        if frame.done:
            finished.append(frame.x)
    image = plan.result(torch.cat(finished))[plan.row]
    content = png_bytes(to_uint8(image.cpu().numpy()), plan.recipe.text())
    same = os.path.lexists(plan.place) and plan.place.read_bytes() == content
    if not same:
        recipe, like, about = plan.recipe, plan.like, trees.plain(plan.recipe)
        outputs.new_file(plan.place, lambda there: not there.samefile(like) and same_recipe(there, recipe))
        outputs.write_file(plan.place, content, "sample --like", about, lambda there: same_recipe(there, recipe))
        yield Wrote(plan.place)
    yield Finished(Replayed(plan.place, same))


def _restoration(trained: Pipeline, recipe: Recipe) -> tuple[Sampling, int, Callable[[Tensor], Tensor]]:
    """The batch that held a restored image, its row in it, and how its results are cut."""
    from kuosan.sample.inputs import open_input

    asked = recipe.request.restoration
    assert asked is not None
    path, batch = Path(asked.image), recipe.request.batch
    source = open_input(trained.model, asked, path, batch=batch, reading=trained.reading)
    if recipes.fingerprint(source.image) != recipe.start:  # perhaps it was read as kuosan did before
        older = open_input(trained.model, asked, path, batch=batch)
        source = older if recipes.fingerprint(older.image) == recipe.start else source
    recipes.require_start(recipe, source.image)
    request, row = dataclasses.replace(recipe, request=source.batched(recipe.request)).batch_request()
    sampling = resolve_request(source.model, request, given=source.given, measurement=source.measurement)
    return sampling, row, source.result


def _place(like: Path, out: Path | None, recipe: Recipe) -> Path:
    """The file to write. Raises: Error where it is there and is not the same image's."""
    path = out or like.with_name(f"{like.stem}-again.png")
    if path.is_dir() or path.suffix.lower() != ".png":
        path = path / like.name
    if os.path.lexists(path) and not (path.exists() and path.samefile(like)):  # refused before it is made
        outputs.new_file(path, lambda there: same_recipe(there, recipe))
    return path


def _is_run(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir() or (folder / "manifest.json").is_file()


def _above(like: Path) -> Path | None:
    """The run that an image lies in."""
    return next((folder for folder in like.resolve().parents if _is_run(folder)), None)


@dataclass(frozen=True)
class Search:
    """Where the files and runs that a recipe names are looked for, and of which of these places they are opened."""

    like: Path  # the image with the recipe
    places: Places
    allowed: tuple[Path, ...]  # by --allow-path
    base: Path | None = None  # the folder in which the image was made, where the run's own path shows it

    def candidates(self, name: str) -> Iterator[Path]:
        """The paths that a recipe's may mean, the likeliest first."""
        yield Path(name)
        if self.base is not None and not Path(name).is_absolute():
            yield self.base / name
        for path in self.allowed:
            yield from (path / name, path / Path(name).name)
            if path.name == Path(name).name:
                yield path

    def there(self, name: str) -> list[Path]:
        """Those at which anything is."""
        return [path for path in self.candidates(name) if exists(path)]

    def find(self, what: str, name: str) -> Path:
        """The real path of what a recipe calls `name`.

        Raises:
            Error: it is not there, or lies where nothing is opened unasked; with the ways on.
        """
        refusals = []
        for path in self.there(name):
            try:
                return self.places.checked(path, what)
            except Error as error:
                inside = self.base is not None and path == self.base / name
                refusals.append(f"{error}, or give the command in {quote(str(self.base))}" if inside else str(error))
        if refusals:
            raise Error(refusals[0])
        raise Error(f"{what} {shown(name)}, which the recipe in {self.like} names, {self.missing(name)}")

    def missing(self, name: str) -> str:
        """Where a name was looked for in vain, and what to do."""
        looked = list(
            dict.fromkeys(shown(os.path.abspath(path))[1:-1] for path in self.candidates(name) if _sane(path))
        )
        others = f", nor at {', '.join(looked[1:4])}{', ...' * (len(looked) > 4)}" if looked[1:] else ""
        at = f"is not at {looked[0]}{others}" if looked else "can be no path"
        if not Path(name).is_absolute():
            return (
                f"{at}: its path starts at the folder in which the image was made. Give the command in that folder, "
                f"or say where it lies now: --allow-path FOLDER."
            )
        return f"{at}: put it back there, or say where it lies now: --allow-path FOLDER."


def _sane(path: Path) -> bool:
    return "\0" not in str(path)


def _base(name: str, run: Path) -> Path | None:
    """The folder in which a relative `name` means this run; None where the run is called otherwise."""
    own, parts = run.resolve(), Path(name).parts
    if (
        Path(name).is_absolute()
        or ".." in parts
        or not exists(run)
        or own.parts[len(own.parts) - len(parts) :] != parts
    ):
        return None
    return Path(*own.parts[: len(own.parts) - len(parts)])


def _home(like: Path, recipe: Recipe, search: Search, above: Path | None) -> Path:
    """The run that a recipe names, or the one that the image lies in, where that was moved."""
    if embedded.is_meant(recipe.run):
        return embedded.folder()
    try:
        found = search.find("the run", recipe.run)
        if _is_run(found):
            return Path(recipe.run) if exists(recipe.run) else found
        reason = f"the run {shown(recipe.run)} that made {like} is no run any more."
    except Error as error:
        reason = str(error)
    if above is not None:
        return above
    raise Error(f"{reason} Or name the run: kuosan sample RUN --like {quote(str(like))}")
