"""Which files of a folder are samples, and which are not: sheets, previews, masks, thumbnails beside their images.

A file is left out where that can be proved: kuosan's own record or recipe beside it says that it is a sheet, or it is
the mask or thumbnail of an image that lies beside it. A name that only sounds so is counted, and named.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from kuosan.data.headers import PNG, png_chunks

OWN = {  # what kuosan writes beside results, and by which of its files a folder is known to hold those
    "sheet.png": ("recipe.json", "request.json", "result.json", "reconstruction.json"),
    "denoising.gif": ("recipe.json",),
    "real.png": ("result.json",),
    "plot.png": ("result.json",),
    "bound.png": ("result.json",),
    "between.png": ("between-0000.png",),
    "curve.png": ("log.jsonl", "config.yaml", "index.html"),
}
RECIPE = b"kuosan\0\0\0\0\0"  # how the text that holds one begins
NUMBERED = re.compile(r"(sheet|nearest[\w.-]*|between|real|plot)(-\d+)?\.png")
SOUNDS = re.compile(
    r"(?:^|[^a-z])(sheets?|grids?|contact|montage|collage|masks?|thumbs?|thumbnails?|previews?|before[-_ ]?after|"
    r"curve|plot|figure|comparison)(?:[^a-z]|$)"
)
PARTNER = re.compile(r"[-_. ]?(masks?|thumbs?|thumbnails?|previews?|small)(?=$|[-_. /])")
SMALL = ("mask", "masks", "thumb", "thumbs", "thumbnail", "thumbnails", "preview", "previews", "small")


def no_samples(
    names: Sequence[str], sizes: Mapping[str, tuple[int, int]], others: Iterable[str], recorded: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Of image files by name, those that are no samples with the reason, and those that only sound so.

    Args:
        sizes: width and height of each.
        others: the files that are no images, by name.
        recorded: what kuosan's record says it wrote there, with the verb.
    """
    beside = {*others, *names, *recorded}
    left, sound, wholes = dict[str, str](), list[str](), _whole_images(sizes)
    for name in names:
        reason = _own(name, beside, recorded) or _partner(name, wholes)
        if reason:
            left[name] = reason
        elif SOUNDS.search(name.lower()):
            sound.append(name)
    one_size = _only_size([sizes[name] for name in names if name not in left and name not in sound])
    for name in sound:
        path = PurePosixPath(name)
        alone = re.fullmatch(r"(sheet|grid|contact|montage|collage|preview|before[-_ ]?after)s?([-_ ]?\d+)?", path.stem)
        if alone and one_size is not None and sizes[name] != one_size:
            left[name] = f"called {path.stem}, and of {sizes[name][0]}x{sizes[name][1]} where all others are of " + (
                f"{one_size[0]}x{one_size[1]}"
            )
    return left, [name for name in sound if name not in left]


def _own(name: str, beside: set[str], recorded: Mapping[str, str]) -> str:
    """Why a file is known to be a sheet or a plot of kuosan's; empty where it is not."""
    path = PurePosixPath(name)
    if path.name in recorded and str(path.parent) == "." and NUMBERED.fullmatch(path.name):
        return f"a sheet that kuosan {recorded[path.name]} wrote"
    match = NUMBERED.fullmatch(path.name)
    usual = path.name if path.name in OWN else f"{match[1]}.png" if match else ""
    marks = OWN.get(usual, ("result.json",) if usual.startswith("nearest") else ())
    if any(str(path.parent / mark) in beside for mark in marks):
        return "a sheet or plot of kuosan's, not one image"
    runs = [parent for parent in path.parents if str(parent / "log.jsonl") in beside]
    if runs and path.relative_to(runs[0]).parts[0] in ("previews", "samples") and path.name.startswith("step-"):
        return "a preview of a training run"
    return ""


def _whole_images(names: Iterable[str]) -> dict[tuple[str, tuple[str, ...]], str]:
    """Images that a mask or thumbnail may belong to, by stem and folders."""
    found: dict[tuple[str, tuple[str, ...]], str] = {}
    for name in names:
        path = PurePosixPath(name)
        plain = not any(part.lower() in SMALL for part in path.parts[:-1]) and not PARTNER.search(path.stem.lower())
        if plain:
            found[path.stem.lower(), _folders(path)] = name
    return found


def _folders(path: PurePosixPath) -> tuple[str, ...]:
    """The folders that a file and its mask have in common."""
    return tuple(part for part in path.parts[:-1] if part.lower() not in (*SMALL, "images", "image", "photos", "full"))


def _partner(name: str, wholes: Mapping[tuple[str, tuple[str, ...]], str]) -> str:
    """Why a file is the mask or thumbnail of an image beside it; empty where none is."""
    path = PurePosixPath(name)
    small = any(part.lower() in SMALL for part in path.parts[:-1])
    stem = PARTNER.sub("", path.stem.lower())
    if not small and stem == path.stem.lower():
        return ""
    whole = wholes.get((stem or path.stem.lower(), _folders(path)))
    return "" if whole in (None, name) else f"the mask or thumbnail of {whole}"


def _only_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    return sizes[0] if len(sizes) > 2 and len(set(sizes)) == 1 else None


def recipe_key(content: bytes) -> str:
    """A hash of the recipe that a PNG of kuosan's carries, the same for all images of a request; empty without one."""
    if content[:8] != PNG:
        return ""
    stream = io.BytesIO(content)
    for name, size in png_chunks(stream):
        if name == b"IDAT":
            break
        if name == b"iTXt" and (body := stream.read(size)).startswith(RECIPE):
            return _request_key(body[len(RECIPE) :])
    return ""


def _request_key(text: bytes) -> str:
    try:
        tree: Any = json.loads(text)
        request = {k: v for k, v in tree["request"].items() if k not in ("n", "seed", "batch", "classes", "prompts")}
        said = [tree["weights"], request]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    if isinstance(request.get("restoration"), dict):
        request["restoration"] = {k: v for k, v in request["restoration"].items() if k != "picture"}
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
