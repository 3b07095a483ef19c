"""`kuosan sample --like picture.png`: the same picture again, byte for byte, by the recipe inside it.

The picture may be a stranger's, so what its recipe names is opened only where it lies in the run above the picture,
below the working folder, or where the person allowed it (RUN, --allow-path); each is then checked by its hash.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from kuosan import config as trees
from kuosan.cli.console import frames, say
from kuosan.cli.image_folder import same_recipe
from kuosan.data.images import png_bytes, to_uint8
from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error, shown
from kuosan.regular import Places, exists
from kuosan.sample import embedded, sizes
from kuosan.sample import pipeline as opening
from kuosan.sample import recipe as recipes
from kuosan.sample.pipeline import Pipeline
from kuosan.sample.recipe import Recipe
from kuosan.storage import outputs


def again(like: Path, run: Path | None, out: Path | None, where: ComputeConfig, allowed: Sequence[Path] = ()) -> None:
    """Make the picture of a recipe again, from the same weights, in the same batch.

    Args:
        allowed: folders and files elsewhere that the recipe may name, as the person typed them.

    Raises:
        Error: no recipe, one that names files elsewhere, other weights or another picture to start from than the
            recipe's, or an unwritable file.
    """
    recipe = said = recipes.read(like)
    above = _above(like)
    places = Places.of([Path.cwd(), *allowed, *([above] if above else []), *([run] if run and exists(run) else [])])
    if run is None:
        run = _home(like, recipe, places, above)
    named = recipes.files_of(recipe)
    for what, name in named.items():
        if exists(name):  # outside the places: refused before anything is opened
            places.checked(name, f"the {what}")
    if where.precision == "auto":
        where = dataclasses.replace(where, precision=recipe.precision)
    if not where.threads and recipe.threads:  # the order of sums, and so the last bits, may depend on it
        where = dataclasses.replace(where, threads=recipe.threads)
    place = _place(like, out, said)
    trained = opening.load(opening.checkpoint_of(run, recipe), compute=choose(where))
    opening.require_weights(trained, recipe)
    found = {what: str(places.checked(name, f"the {what}")) for what, name in named.items()}
    recipe = recipes.relocated(recipe, found)
    if recipe.request.restoration is not None:
        images, row = _restored(trained, recipe)
        _write(like, place, images[row], said, trained, run)
        return
    request, row = recipe.batch_request()
    start = opening.start_of(recipe, sizes.asked(trained.model, request), trained.reading)
    helpers = trained.helpers(request)
    for name, helper in helpers.items():
        opening.require_helper(name, helper, recipe)
    guides = opening.guides_of(helpers)
    images = torch.cat([frame.x for frame in frames(trained, request, start, guides) if frame.done])
    _write(like, place, images[row], said, trained, run)


def _restored(trained: Pipeline, recipe: Recipe) -> tuple[Tensor, int]:
    """The pictures of the batch that held a restored one, and its row among them."""
    from kuosan.sample.generate import sample
    from kuosan.sample.inputs import bring

    asked = recipe.request.restoration
    assert asked is not None
    path, batch = Path(asked.picture), recipe.request.batch
    brought = bring(trained.model, asked, path, batch=batch, reading=trained.reading)
    if recipes.fingerprint(brought.picture) != recipe.start:  # perhaps it was read as kuosan did before
        older = bring(trained.model, asked, path, batch=batch)
        brought = older if recipes.fingerprint(older.picture) == recipe.start else brought
    recipes.require_start(recipe, brought.picture)
    request, row = dataclasses.replace(recipe, request=brought.batched(recipe.request)).batch_request()
    made = sample(brought.model, request, given=brought.given, measurement=brought.measurement)
    return brought.result(made), row


def _place(like: Path, out: Path | None, recipe: Recipe) -> Path:
    """The file to write. Raises: Error where it is there and is not the same image's."""
    path = out or like.with_name(f"{like.stem}-again.png")
    if path.is_dir() or path.suffix.lower() != ".png":
        path = path / like.name
    if os.path.lexists(path) and not (path.exists() and path.samefile(like)):  # refused before it is made
        outputs.new_file(path, lambda there: same_recipe(there, recipe))
    return path


def _write(like: Path, path: Path, image: Tensor, recipe: Recipe, trained: Pipeline, home: Path) -> None:
    """Write a picture that was made again, and say so."""
    content = png_bytes(to_uint8(image.cpu().numpy()), recipe.text())
    if os.path.lexists(path) and path.read_bytes() == content:
        say(f"made again: {path} holds these very bytes already ({recipe.origin}, step {trained.step} of {home}).")
        return
    outputs.new_file(path, lambda there: not there.samefile(like) and same_recipe(there, recipe))
    about = trees.plain(recipe)
    outputs.write_file(path, content, "sample --like", about, lambda there: same_recipe(there, recipe))
    say(f"made again: {path} ({recipe.origin}, step {trained.step} of {home}; {trained.compute})")


def _is_run(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir() or (folder / "manifest.json").is_file()


def _above(like: Path) -> Path | None:
    """The run that a picture lies in."""
    return next((folder for folder in like.resolve().parents if _is_run(folder)), None)


def _home(like: Path, recipe: Recipe, places: Places, above: Path | None) -> Path:
    """The run that a recipe names, or the one that the picture lies in, where that was moved."""
    if embedded.is_meant(recipe.run):
        return embedded.folder()
    command = f"kuosan sample RUN --like {quote(str(like))}"
    try:
        named = places.checked(recipe.run, "the run")
        if _is_run(named):
            return Path(recipe.run)
        reason = ""
    except Error as error:
        reason = f" ({error})" if exists(recipe.run) else ""
    if above is not None:
        return above
    raise Error(f"{shown(recipe.run)[1:-1]}, the run that made {like}, is not here{reason}; name it: {command}.")
