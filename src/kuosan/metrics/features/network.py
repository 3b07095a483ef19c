"""What a feature network is to its users: images in, one float32 row an image out.

Images are judged as they would be written, in 8 bits: [-1, 1] images are rounded to the 256 levels first, so an
image and its PNG have the same features. They are resized in float with antialiasing (Parmar et al. 2022 show what
other resizing does to such distances) unless the name says otherwise; grey is repeated to three channels. Images with
alpha are seen twice (`twice`): on white and on black.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kuosan.errors import Error, unknown
from kuosan.metrics.features.names import FAMILIES, FEATURES, RESIZES


@dataclass(frozen=True)
class FeatureNetwork:
    """A named feature network; `hash` is the SHA-256 of its weights, to be printed beside every score."""

    name: str
    dim: int
    size: int  # pixels a side; 0 where images are not resized
    hash: str
    network: Callable[[Tensor], Tensor]  # (B, 3, size, size) in [0, 255] -> (B, dim)
    resize: str = "bicubic"  # of RESIZES
    alpha: bool = False  # of images (B, 4, H, W): their rows on white and their rows on black side by side

    @classmethod
    def of(
        cls,
        name: str,
        network: Callable[[Tensor], Tensor],
        dim: int,
        size: int | None = None,
        *,
        resize: str = "bicubic",
        hash: str | None = None,
    ) -> FeatureNetwork:
        """Features of any function or module from images (B, 3, H, W) in [0, 255] to rows (B, dim).

        Args:
            size: pixels a side that images are resized to; None leaves them as they are.
            hash: what distinguishes two networks of one name; of a module's weights and size if None, "" for a
                function, whose rows are then never kept.

        Raises:
            Error: a name that is taken or no plain word, an unknown resize, or a dim or size below 1.
        """
        if name in FEATURES or name in FAMILIES or not re.fullmatch(r"\w[\w.-]{0,63}", name):
            raise Error(f"features named {name!r}: give a word of letters, digits, '-', '.', '_' that is not built in.")
        if resize not in RESIZES or (size is not None and resize == "none"):
            raise unknown("resize", resize, [each for each in RESIZES if each != "none"])
        if dim < 1 or (size is not None and size < 1):
            raise Error(f"features {name!r} of {dim} numbers at {size} pixels: both must be at least 1.")
        if isinstance(network, nn.Module):
            network = network.eval()
            hash = weights_hash(network, f"{size} {resize}") if hash is None else hash
        return cls(name, dim, size or 0, hash or "", network, resize if size else "none")

    @property
    def resizing(self) -> str:
        """How images are resized for the network, as results say it."""
        return f"{self.size} px, {RESIZES[self.resize]}" if self.size else RESIZES["none"]

    def about(self, data: str = "") -> dict[str, str]:
        """What a result must say of its features: the fields of `evaluate.statistics.About`."""
        return {"features": self.name, "hash": self.hash, "resize": self.resizing, "data": data}

    def to(self, device: torch.device | str) -> FeatureNetwork:
        """The same features on another device, where images must be then.

        Raises:
            Error: the network is a plain function, which nobody can move.
        """
        if not isinstance(self.network, nn.Module):
            raise Error(f"features {self.name!r} are a function, not a module: make them on {device} yourself.")
        return replace(self, network=self.network.to(device))

    def twice(self) -> FeatureNetwork:
        """The same features of images with alpha, (B, 4, H, W): (B, 2 dim), on white and on black.

        What is white on white shows on black, so that no shape goes unseen.
        """
        assert not self.alpha
        hash = hashlib.sha256(f"{self.hash} {ON_BOTH}".encode()).hexdigest() if self.hash else ""
        return replace(self, name=f"{self.name} {ON_BOTH}", dim=2 * self.dim, hash=hash, alpha=True)

    @torch.no_grad()
    def __call__(self, images: Tensor, *, batch: int = 64) -> Tensor:
        """Features of uint8 or [-1, 1] images (B, C, H, W), C 1 or 3, taken `batch` at a time: (B, dim).

        With `alpha` C is 4; bytes have straight colour, those in [-1, 1] colour times alpha.
        """
        checked(images, self.name, 4 if self.alpha else 3)
        rows = [self.rows(part) for part in torch.split(images, batch)]
        return torch.cat(rows) if rows else torch.empty(0, self.dim)

    def rows(self, images: Tensor) -> Tensor:
        """One batch's rows (B, dim) in float32."""
        if self.alpha:
            sides = [self.network(prepare(on_grey(images, level), self.size, self.resize)) for level in BACKGROUNDS]
            rows = torch.cat(sides, 1)
        else:
            rows = self.network(prepare(images, self.size, self.resize))
        if rows.shape != (len(images), self.dim):
            raise Error(
                f"features {self.name!r} gave {tuple(rows.shape)} for {len(images)} images, not "
                f"({len(images)}, {self.dim}): pool to one row an image, and give its length as dim."
            )
        return rows.float()


def checked(images: Tensor, name: str, channels: int = 3) -> None:
    """Refuse what is no batch of images; of `channels` 3, or of 4, with alpha."""
    if channels == 4 and (images.ndim != 4 or images.shape[1] != 4):
        raise Error(
            f"features {name!r} read images with alpha, (B, 4, H, W), got shape {tuple(images.shape)}: for images "
            "without, take the features before twice()."
        )
    if channels == 3 and (images.ndim != 4 or images.shape[1] not in (1, 3)):
        raise Error(
            f"features {name!r} read images (B, C, H, W) with C 1 or 3, got shape {tuple(images.shape)}: "
            "composite alpha on white and give grey or RGB images, or take features(...).twice() for RGBA."
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise Error(f"features {name!r} read uint8 or [-1, 1] float images, got {images.dtype}.")


BACKGROUNDS = (255, 0)  # what images with alpha are laid on
ON_BOTH = "on white and on black"


def on_grey(images: Tensor, level: int) -> Tensor:
    """Images with alpha (B, 4, H, W) on a grey of 0 to 255: (B, 3, H, W), uint8 or in [-1, 1] as they came."""
    if images.dtype != torch.uint8:
        return images[:, :3] + (1 - images[:, 3:]) * (level / 255)  # colour is multiplied by alpha already
    share = images[:, 3:].double() / 255
    return (share * images[:, :3] + (1 - share) * level).round().to(torch.uint8)


def prepare(images: Tensor, size: int, resize: str = "bicubic") -> Tensor:
    """Rounds to 8 bits, repeats grey, resizes: uint8 or [-1, 1] (B, C, H, W) -> [0, 255] (B, 3, size, size)."""
    if images.dtype != torch.uint8:
        images = ((images.float().clamp(-1, 1) + 1) * 127.5).round()
    x = images.float().expand(-1, 3, -1, -1)
    if not size or x.shape[-2:] == (size, size):
        return x
    if resize == "bilinear":
        return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
    return F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)


def weights_hash(module: nn.Module, about: str = "") -> str:
    """SHA-256 of what is said about a module, its kind and tensors: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(f"{about}\0{type(module).__qualname__}\0".encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
