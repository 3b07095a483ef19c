"""What made an image, carried inside it: enough to make it again, and to be read by other tools.

A PNG holds `kuosan` (our JSON) and `parameters` (the line that A1111's web UI writes and many tools read).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kuosan
from kuosan import config as trees
from kuosan import limits, regular
from kuosan.data.pixels import read_png_text
from kuosan.errors import Error, shown
from kuosan.sample.request import Request

if TYPE_CHECKING:
    from torch import Tensor

KEY = "kuosan"  # the PNG text chunk that holds the recipe
FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """What made one image of a request."""

    run: str  # the run or checkpoint, as it was named
    step: int  # of the checkpoint
    weights: str  # sha256 of its averaged weights
    request: Request
    index: int = field(metadata={"key": "picture"})  # which of the request's images: 0 .. n-1
    compute: str  # device and precision, in words
    precision: str  # bf16 or fp32
    size: tuple[int, int]  # width, height
    steps: int  # denoising steps really taken
    threads: int = 0  # processor threads; 0 where they do not matter
    start: str = ""  # sha256 of the pixels an image-to-image request started from
    classifier: str = ""  # sha256 of the weights of the classifier that guided it
    reference: str = ""  # sha256 of the weights of the weaker model that guided it
    format: int = FORMAT
    version: str = kuosan.__version__

    def __post_init__(self) -> None:
        limits.check(self)

    @property
    def seed(self) -> int:
        """The image's own seed."""
        return self.request.seed + self.index

    @property
    def origin(self) -> str:
        """Where the image's noise comes from, in words."""
        between = self.request.between
        return (
            f"seed {self.seed}" if between is None else "place {} between seeds {} and {}".format(self.index, *between)
        )

    @property
    def steering(self) -> str:
        """Class and guidance scales, in the words of the parameters line."""
        request, said = self.request, ""
        if request.classes:
            said += f"Class: {request.classes[self.index % len(request.classes)]}, "
        if request.guidance is not None:
            said += f"CFG scale: {request.guidance:g}, "
        if request.classifier_scale is not None:
            said += f"Classifier scale: {request.classifier_scale:g}, "
        return said

    @property
    def words(self) -> str:
        """The prompt and the negative one, as the parameters line begins; a line break within them is a space."""
        request = self.request
        if not request.prompts:
            return ""
        prompt = " ".join(request.prompts[self.index % len(request.prompts)].split())
        return prompt + (f"\nNegative prompt: {' '.join(request.negative.split())}" if request.negative else "")

    def text(self) -> dict[str, str]:
        """The PNG's text chunks."""
        request = self.request
        origin = f"Seed: {self.seed}" if request.between is None else "Seeds: {} to {}".format(*request.between)
        line = (
            f"Steps: {self.steps}, Sampler: {request.sampler}, {origin}, "
            f"{self.steering}Size: {self.size[0]}x{self.size[1]}, Model hash: {self.weights[:10]}, "
            f"Model: {Path(self.run).name}, Version: kuosan {self.version}"
        )
        return {"parameters": f"{self.words}\n{line}", KEY: json.dumps(trees.plain(self), ensure_ascii=False)}

    def batch_request(self) -> tuple[Request, int]:
        """The part of the request whose batch held the image, and the image's row in it: the same bytes again."""
        request = self.request
        if request.between is not None:  # every place on the arc depends on n
            return request, self.index
        size = 1 if request.exact else min(request.batch, request.n)
        first = self.index // size * size
        n = min(size, request.n - first)
        turned = {}
        for name in ("classes", "prompts"):
            values = getattr(request, name)
            at = first % max(1, len(values))
            turned[name] = values[at:] + values[:at]
        return dataclasses.replace(request, n=n, seed=request.seed + first, **turned), self.index - first


def fingerprint(start: Tensor | None) -> str:
    """The sha256 of a start image's shape and pixels; empty without one."""
    if start is None:
        return ""
    return hashlib.sha256(f"{tuple(start.shape)}".encode() + start.float().cpu().numpy().tobytes()).hexdigest()


def require_start(recipe: Recipe, start: Tensor | None) -> None:
    """Raises: Error unless this is the very image that a recipe's request started from."""
    restored = recipe.request.restoration
    source = recipe.request.image if restored is None else restored.image
    masked = f", or its mask {restored.mask} has" if restored is not None and restored.mask else ""
    if fingerprint(start) != recipe.start:
        raise Error(
            f"{source} is not the image that the recipe started from (it has other pixels{masked}): "
            f"put the one it was back in its place."
        )


def files_of(recipe: Recipe) -> dict[str, str]:
    """The files and runs that a recipe's request names beside its own run, by what they are to it."""
    from kuosan.sample.inputs import ALPHA
    from kuosan.sample.request import BOX

    request, restoration = recipe.request, recipe.request.restoration
    named = {"image": request.image, "classifier": request.classifier, "reference": request.reference}
    if restoration is not None:
        named["image"] = restoration.image
        if restoration.mask is not None and restoration.mask != ALPHA and not BOX.fullmatch(restoration.mask):
            named["mask"] = restoration.mask
    return {what: name for what, name in named.items() if name is not None}


def relocated(recipe: Recipe, found: Mapping[str, str]) -> Recipe:
    """The recipe with the files that `files_of` names at other paths."""
    own: dict[str, Any] = dict(found)
    if recipe.request.restoration is not None:
        inside = {name: own.pop(what) for what, name in (("image", "image"), ("mask", "mask")) if what in own}
        own["restoration"] = dataclasses.replace(recipe.request.restoration, **inside)
    return dataclasses.replace(recipe, request=dataclasses.replace(recipe.request, **own))


def read(path: Path) -> Recipe:
    """The recipe in an image that kuosan made.

    Raises:
        Error: the file is no PNG, carries no recipe, or one of a newer version.
    """
    text = read_png_text(path).get(KEY)
    if text is None:
        raise Error(
            f"{path} carries no kuosan recipe; only the single images that `kuosan sample` wrote do "
            f"(seed-00000007.png, place-0002.png), not its sheets."
        )
    if len(text) > regular.SMALL:
        raise Error(f"the recipe in {path} is damaged: it has {len(text):,} characters.")
    try:
        tree: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise Error(f"the recipe in {path} is damaged: it is not valid JSON.") from None
    if not isinstance(tree, dict):
        raise Error(f"the recipe in {path} is damaged: it is no mapping.")
    if tree.get("format", 0) != FORMAT:
        raise Error(
            f"the recipe in {path} has format {shown(tree.get('format'))}; this kuosan reads {FORMAT}. Update kuosan."
        )
    recipe = trees.build(Recipe, tree)
    if not 0 <= recipe.index < recipe.request.n:
        raise Error(f"the recipe in {path} is damaged: image {recipe.index} of {recipe.request.n}.")
    return recipe
