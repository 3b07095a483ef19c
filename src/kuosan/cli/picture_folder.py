"""The folder that `kuosan sample` writes to: one that no other recipe's pictures lie in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kuosan import checkpoint, files, manifest
from kuosan import config as trees
from kuosan.errors import Error
from kuosan.sample import embedded

if TYPE_CHECKING:
    from kuosan.sample.plan import Plan
    from kuosan.sample.recipe import Recipe


def folder_of(run: Path, out: Path | None, recipe: Recipe, walk: Plan) -> Path:
    """The folder to write, made and writable; without --out one that no other recipe's pictures lie in.

    Raises:
        Error: it lies inside a checkpoint, is a file, or cannot be written.
    """
    home = checkpoint.home(run)
    begin = recipe.request.between
    origin = f"seed{recipe.request.seed}" if begin is None else "seeds{}-{}".format(*begin)
    name = f"{walk.sampler}-{walk.steps}-{origin}"
    if recipe.request.size is not None or recipe.request.aspect is not None:
        name += "-{}x{}".format(*recipe.size)
    place = home / "samples" / name
    if embedded.is_meant(run):  # nobody's pictures belong into the package
        place = Path("pictures") / embedded.name(recipe.request)
    elif checkpoint.is_exported(home):  # nor into a model that is handed on
        place = Path("pictures") / f"{home.resolve().name}-{name}"
    folder = out or _unused(place, recipe)
    inside = next(
        (path for path in (folder.resolve(), *folder.resolve().parents) if (path / manifest.NAME).is_file()), None
    )
    if inside is not None:
        raise Error(
            f"--out {folder} lies inside the checkpoint {inside}, which holds nothing else; choose another folder."
        )
    if folder.is_file():
        raise Error(f"--out {folder} is a file; name a folder for the pictures.")
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise Error(f"cannot write into {folder}: permission is denied; choose another --out.", exit_code=74)
    return folder


def _unused(folder: Path, recipe: Recipe) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that holds no pictures of another recipe."""
    candidates = (folder if i == 1 else folder.with_name(f"{folder.name}-{i}") for i in range(1, 10_000))
    return next(path for path in candidates if _fits(path / "recipe.json", recipe))


def _fits(path: Path, recipe: Recipe) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == trees.plain(recipe))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
