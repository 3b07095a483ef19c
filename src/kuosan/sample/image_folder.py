"""Where the results of a run go, and the folder that `kuosan sample` writes to: one without another recipe's images."""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuosan import config as trees
from kuosan.data.images import read_png_text
from kuosan.errors import Error
from kuosan.sample import embedded, write
from kuosan.sample.recipe import KEY
from kuosan.storage import checkpoint, manifest, outputs

if TYPE_CHECKING:
    from kuosan.sample.plan import SamplePlan
    from kuosan.sample.recipe import Recipe


def of_run(run: Path, usual: str, elsewhere: str) -> Path:
    """Where results go without --out: RUN/usual, or pictures/elsewhere for a run that nothing is written into.

    Nobody's images belong into the package's own model, nor into a model that is handed on.

    Args:
        elsewhere: what the folder is called there; {} stands for the model's name.
    """
    home = checkpoint.home(run)
    if embedded.is_meant(run):
        return Path("pictures") / elsewhere.format(embedded.NAME)
    if checkpoint.is_exported(home):
        return Path("pictures") / elsewhere.format(home.resolve().name)
    return home / usual


def claim(
    run: Path, out: Path | None, recipe: Recipe, trajectory: SamplePlan, gif: bool
) -> AbstractContextManager[outputs.Output]:
    """The folder to write, claimed: without --out the first that is free or holds this recipe's images.

    Raises:
        Error: it lies inside a checkpoint, is a file, cannot be written, or holds other files of these names.
    """
    begin = recipe.request.between
    origin = f"seed{recipe.request.seed}" if begin is None else "seeds{}-{}".format(*begin)
    name = f"{trajectory.sampler}-{trajectory.steps}-{origin}"
    if recipe.request.size is not None or recipe.request.aspect is not None:
        name += "-{}x{}".format(*recipe.size)
    own = embedded.name(recipe.request) if embedded.is_meant(run) else f"{{}}-{name}"
    place = of_run(run, f"samples/{name}", own)
    folder = out or place
    inside = next(
        (path for path in (folder.resolve(), *folder.resolve().parents) if (path / manifest.NAME).is_file()), None
    )
    if inside is not None:
        raise Error(
            f"--out {folder} lies inside the checkpoint {inside}, which holds nothing else; choose another folder."
        )
    names = [write.RECIPE, *(write.name_of(recipe, i) for i in range(recipe.request.n)), write.SHEET]
    names += [write.GIF] * gif

    def proof(path: Path) -> bool:
        return _fits(path, recipe)

    about = trees.plain(recipe)
    if out is None:
        return outputs.claimed_unused(place, "sample", about, names, proof=proof)
    return outputs.claimed(out, "sample", about, names, proof=proof)


def same_recipe(path: Path, recipe: Recipe) -> bool:
    """Whether a PNG carries a recipe, of that very image."""
    try:
        return bool(json.loads(read_png_text(path).get(KEY, "null")) == _plain(recipe))
    except (Error, ValueError, RecursionError):
        return False


def _fits(path: Path, recipe: Recipe) -> bool:
    """Whether a file that an older kuosan wrote, which kept no record, is of a recipe."""
    if path.name not in (write.RECIPE, write.SHEET, write.GIF):
        numbers = {write.name_of(recipe, i): i for i in range(recipe.request.n)}
        return path.name in numbers and same_recipe(path, dataclasses.replace(recipe, index=numbers[path.name]))
    try:
        return bool(json.loads((path.parent / write.RECIPE).read_text(encoding="utf-8")) == _plain(recipe))
    except (OSError, ValueError, RecursionError):
        return False


def _plain(recipe: Recipe) -> Any:
    """A recipe as JSON gives it back."""
    return json.loads(json.dumps(trees.plain(recipe)))
