"""How near an image is to the one it should be: for restoration, codecs and inversion, where there is a reference.

    PSNR = 10 log10(L^2 / mean (x - y)^2)
    SSIM = mean (2 mx my + c1)(2 sxy + c2) / ((mx^2 + my^2 + c1)(sx^2 + sy^2 + c2)),  c = (K L)^2, K = .01, .03

Images (B, C, H, W) are uint8 (L = 255) or float in [-1, 1] (L = 2), both of one kind, and taken as they are: round
first what will be written in 8 bits. Everything is float64, a value an image; higher is nearer.

A distance of images that sees structure before pixels: of what a network's layers say (Zhang et al. 2018, eq. 1).

    d(x, y) = sum over layers of mean over positions of |f(x) / |f(x)| - f(y) / |f(y)||^2

f is a layer's activations, the norm is over channels. LPIPS has learned weights a channel and layers of AlexNet or VGG;
this has neither, is named after its own network ("lite0-perceptual"), and its values mean nothing beside LPIPS's.

A small pyramid of fixed random convolutions: features for a perceptual loss that need no download.

Random features see edges and textures, not things; trained ones (lite0) judge better where they are installed. The
weights are a function of a constant seed, the same everywhere: N(0, 2 / fan_in), each kernel's mean taken out.

A perceptual distance that gradients flow through: what an autoencoder is trained with (Zhang et al. 2018, eq. 1).

    d(x, y) = mean over layers of mean over positions of |f(x) / |f(x)| - f(y) / |f(y)||^2

As the distance above, but at the images' own size and without rounding to 8 bits, and a mean over layers, so that
its size depends little on the network: 0 for equal images, at most 4.

Whether an image made of tiles shows where they meet: gradient energy across the tiles' edges over that elsewhere.

energy = sum of (x[p+1] - x[p])² over the pairs of pixels that straddle an edge / what as many pairs elsewhere, of the
same direction, have on average. 1 is no seam. Images vary, so the same is asked of the same grid shifted to where no
tile ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log10
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from kuosan import seeds
from kuosan.errors import Error, unknown
from kuosan.metrics.estimate import Array
from kuosan.metrics.features import features
from kuosan.metrics.features.lite0 import STAGES, EfficientNetLite0
from kuosan.metrics.features.names import FEATURES, perceptual_features
from kuosan.metrics.features.network import checked, prepare

WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004, section III.B
STRIP = 256  # rows of places whose SSIM is taken at once: a large image's blurred parts would not fit into memory
K1, K2 = 0.01, 0.03


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, over all channels and pixels of each image: (B,), inf for equal ones.

    Raises:
        Error: images of other shapes or kinds.
    """
    a, b, reach = _checked(x, y, "PSNR")
    error = (a - b).square().mean(dim=(1, 2, 3))
    return 20 * log10(reach) - 10 * torch.log10(error)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), averaged over channels and places that hold the whole window: (B,).

    As the authors and scikit-image do it; torchmetrics mirrors the borders and averages over them as well.

    Raises:
        Error: images of other shapes or kinds, or smaller than the window of 11 pixels.
    """
    a, b, reach = _checked(x, y, "SSIM")
    if min(a.shape[-2:]) < WINDOW:
        raise Error(f"SSIM of images {tuple(a.shape[-2:])}: its window is {WINDOW} pixels; use PSNR.")
    if reach == 2:
        a, b = a + 1, b + 1  # the formula is for brightness from 0
    rows = a.shape[2] - WINDOW + 1
    total = torch.zeros(len(a), dtype=a.dtype, device=a.device)
    for top in range(0, rows, STRIP):
        some = slice(top, min(top + STRIP, rows) + WINDOW - 1)
        total += _similarity(a[:, :, some], b[:, :, some], reach)
    return total / rows


def _similarity(a: Tensor, b: Tensor, reach: float) -> Tensor:
    """SSIM summed over rows of places, averaged over columns and channels: (B,)."""
    count, channels = a.shape[:2]
    parts = torch.cat([a, b, a * a, b * b, a * b]).flatten(0, 1)[:, None]  # (5 B C, 1, H, W)
    mean_a, mean_b, aa, bb, ab = blurred(parts).view(5, count, channels, a.shape[2] - WINDOW + 1, -1)
    c1, c2 = (K1 * reach) ** 2, (K2 * reach) ** 2
    brightness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
    found: Tensor = (brightness * structure).mean(dim=(1, 3)).sum(dim=1)
    return found


def blurred(x: Tensor) -> Tensor:
    """x (N, 1, H, W) under the Gaussian window, where the whole of it fits: (N, 1, H - 10, W - 10)."""
    line = torch.exp(-((torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    line = line / line.sum()
    return F.conv2d(F.conv2d(x, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))


def _checked(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor, float]:
    """Both as float64 with the reach of their values L, or an `Error` that names what is wrong."""
    if x.ndim != 4 or x.shape != y.shape or not len(x):
        raise Error(f"{metric} compares images (B, C, H, W) of one shape; got {tuple(x.shape)} and {tuple(y.shape)}.")
    if (x.dtype == torch.uint8) != (y.dtype == torch.uint8):
        raise Error(f"{metric} compares images of one kind, uint8 or [-1, 1]; got {x.dtype} and {y.dtype}.")
    if x.dtype == torch.uint8:
        return x.double(), y.double(), 255.0
    for side in (x, y):
        if not side.is_floating_point() or not torch.isfinite(side).all() or side.abs().max() > 1 + 1e-6:
            raise Error(f"{metric} reads uint8 or finite images in [-1, 1]; got {side.dtype} beyond: clamp first.")
    return x.double(), y.double(), 2.0


@dataclass(frozen=True)
class Perceptual:
    """A named distance; `hash` is the SHA-256 of its network's weights."""

    name: str
    size: int
    hash: str
    resizing: str
    network: EfficientNetLite0

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor, *, batch: int = 32) -> Tensor:
        """Of uint8 or [-1, 1] images (B, C, H, W), pair by pair: (B,) float32, 0 for equal ones.

        Raises:
            Error: images of other shapes, or no images at all.
        """
        for side in (x, y):
            checked(side, self.name)
        if x.shape != y.shape or not len(x):
            raise Error(f"{self.name} compares images of one shape; got {tuple(x.shape)} and {tuple(y.shape)}.")
        pairs = zip(torch.split(x, batch), torch.split(y, batch))
        return torch.cat([self._distance(prepare(a, self.size), prepare(b, self.size)) for a, b in pairs])

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(len(a))
        for p, q in zip(layers(self.network, a), layers(self.network, b)):
            total += (F.normalize(p, eps=1e-10) - F.normalize(q, eps=1e-10)).square().sum(dim=1).mean(dim=(1, 2))
        return total


def layers(network: EfficientNetLite0, x: Tensor) -> list[Tensor]:
    """What the stages end in, before each halving of the size and at the end: images in [0, 255] -> (B, C, H, W)."""
    x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
    x = F.relu6(network.stem(x))
    found, block = [], 0
    for count, _, stride, _, _ in STAGES:
        if stride == 2:
            found.append(x)
        for _ in range(count):
            x = network.blocks[block](x)
            block += 1
    return [*found, x]


def perceptual(name: str = "lite0") -> Perceptual:
    """The perceptual distance of the feature network `name`, one of those that come as a package.

    Raises:
        Error: an unknown name, or its weights are not installed.
    """
    if name not in FEATURES:
        raise unknown("perceptual distance", name, FEATURES)
    network = features(name)
    assert isinstance(network.network, EfficientNetLite0)
    return Perceptual(f"{name}-perceptual", network.size, network.hash, network.resizing, network.network)


_SEED = 2016  # of all runs: a loss that changed with the run's seed would be another loss
_WIDTHS = (32, 64, 128)  # channels at full, half and a quarter of the resolution


class RandomPyramid(nn.Module):
    """3x3 convolutions with ReLU, the resolution halved between: images (B, 3, H, W) in [-1, 1] -> three layers."""

    def __init__(self) -> None:
        super().__init__()
        entering = (3, *_WIDTHS[:-1])
        with torch.device("meta"):
            self.convs = nn.ModuleList(
                nn.Conv2d(into, out, 3, padding=1, bias=False) for into, out in zip(entering, _WIDTHS, strict=True)
            )
        self.to_empty(device="cpu")
        for i, conv in enumerate(cast(Iterable[nn.Conv2d], self.convs)):
            shape = (_WIDTHS[i], entering[i], 3, 3)
            drawn = seeds.normal([(_SEED, f"random pyramid {i}", 0, 0)], shape)[0] * math.sqrt(2 / (9 * entering[i]))
            kernel = drawn - drawn.mean((1, 2, 3), keepdim=True)
            conv.weight = nn.Parameter(kernel.contiguous(memory_format=torch.channels_last))
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        h, found = x.contiguous(memory_format=torch.channels_last), []
        for i, conv in enumerate(self.convs):
            if i and min(h.shape[-2:]) >= 2:
                h = F.avg_pool2d(h, 2)
            h = F.relu(conv(h))
            found.append(h)
        return found


LEAST = 32  # pixels a side, below which lite0's last kernels are larger than what they see


@dataclass(frozen=True)
class PerceptualLoss:
    """A frozen network's layers, compared; `hash` is the SHA-256 of its weights."""

    name: str
    hash: str
    network: nn.Module
    layers: Callable[[Tensor], list[Tensor]]  # images (B, 3, H, W) in [-1, 1] -> activations (B, C, h, w)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Of [-1, 1] images (B, 1 or 3, H, W), pair by pair: (B,) float32. Gradients flow to y, not to x."""
        with torch.no_grad():
            wanted = [_unit(layer) for layer in self.layers(x.expand(-1, 3, -1, -1))]
        made = [_unit(layer) for layer in self.layers(y.expand(-1, 3, -1, -1))]
        each = [(p - q).square().sum(1).mean((1, 2)) for p, q in zip(wanted, made, strict=True)]
        return torch.stack(each).mean(0)

    def to(self, device: torch.device) -> PerceptualLoss:
        """The same on another device, where images must be then."""
        self.network.to(device)
        return self


def _at_least(x: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W), enlarged until both sides have so many pixels; larger ones as they are."""
    if min(x.shape[-2:]) >= side:
        return x
    scale = side / min(x.shape[-2:])
    size = [max(side, round(scale * length)) for length in x.shape[-2:]]
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _unit(layer: Tensor) -> Tensor:
    return F.normalize(layer.float(), eps=1e-6)


def perceptual_loss(name: str) -> PerceptualLoss | None:
    """The loss on the features `name` (lite0, random, auto), None for `none`.

    Raises:
        Error: an unknown name; its weights are not installed (the message holds the command); damaged weights.
    """
    name = perceptual_features(name)
    if name == "none":
        return None
    if name == "random":
        from kuosan.metrics.features.network import weights_hash

        pyramid = RandomPyramid()
        return PerceptualLoss(name, weights_hash(pyramid), pyramid, pyramid)
    from kuosan.metrics.features import features
    from kuosan.metrics.features.lite0 import EfficientNetLite0

    found = features(name)
    network = found.network
    assert isinstance(network, EfficientNetLite0)

    def seen(x: Tensor) -> list[Tensor]:
        return layers(network, (_at_least(x, LEAST) + 1) * 127.5)

    return PerceptualLoss(name, found.hash, network, seen)


@dataclass(frozen=True)
class Seams:
    """The energy of a grid's edges, 1 where there is no seam, and that of the same grid shifted to where none are."""

    energy: float
    shifted: Array  # (n,): one a shift that meets no edge; empty where every shift does

    @property
    def p(self) -> float:
        """The chance of so much energy without a seam: the share of shifted grids that have as much, itself counted."""
        return float((1 + (self.shifted >= self.energy).sum()) / (1 + len(self.shifted)))

    @property
    def z(self) -> float:
        """How many standard deviations of the shifted grids the energy lies above their mean; nan if they have none."""
        std = float(self.shifted.std(ddof=1)) if len(self.shifted) > 1 else 0.0
        return (self.energy - float(self.shifted.mean())) / std if std else float("nan")


def seam_energy(
    image: ArrayLike,  # (C, H, W) or (B, C, H, W)
    starts_y: Sequence[int],  # each tile's first row
    starts_x: Sequence[int],  # each tile's first column
    side: int | tuple[int, int],  # of a tile, in pixels; height, width
) -> float:
    """The mean squared difference across tile edges over that of all other neighbours; 1 without seams.

    Tiles blended over an overlap differ most where it is halved, not at their edges: ask there too, with
    start + overlap // 2 for each start and side - overlap.
    Raises:
        Error: a tile outside the image, no edge inside it, nothing but edges, or values that are not finite.
    """
    return seams(image, starts_y, starts_x, side).energy


def seams(image: ArrayLike, starts_y: Sequence[int], starts_x: Sequence[int], side: int | tuple[int, int]) -> Seams:
    """The same with what it is for the grid shifted down and right by 1, 2, ... pixels, around the image's border.

    Shifts that lay an edge on an edge are left out; each is compared with what lies on neither.
    Raises: Error as `seam_energy`.
    """
    pixels = np.asarray(image, dtype=np.float64)
    if pixels.ndim not in (3, 4):
        raise Error(f"an image of shape {pixels.shape}; allowed are (C, H, W) and (B, C, H, W).")
    if not np.isfinite(pixels).all():
        raise Error("seams of images that hold NaN or infinite values: nothing can be said of them.")
    height, width = (side, side) if isinstance(side, int) else side
    profiles = [_profile(pixels, -2), _profile(pixels, -1)]
    edges = [_edges(starts_y, height, pixels.shape[-2]), _edges(starts_x, width, pixels.shape[-1])]
    if not any(edge.any() for edge in edges):
        raise Error("no tile ends inside the image: a single tile has no seam to look for.")
    if any(edge.any() and edge.all() for edge in edges):
        raise Error("every pair of neighbours straddles a tile's edge: take larger tiles.")
    shifts = ([np.roll(edge, by) for edge in edges] for by in range(1, max(map(len, edges))))
    free = [shift for shift in shifts if all(_apart(a, b) for a, b in zip(shift, edges))]
    return Seams(_energy(profiles, edges, edges), np.array([_energy(profiles, shift, edges) for shift in free]))


def _profile(pixels: Array, axis: int) -> Array:
    """The sum of squared differences between neighbouring rows (axis -2) or columns (-1): one number a pair."""
    squares: Array = np.moveaxis(np.diff(pixels, axis=axis) ** 2, axis, -1)
    profile: Array = squares.reshape(-1, squares.shape[-1]).sum(axis=0)
    return profile


def _edges(starts: Sequence[int], side: int, length: int) -> np.ndarray:
    """Which of the length - 1 pairs of neighbours straddle a tile's first or last pixel: (length - 1,) bool."""
    for start in starts:
        if not 0 <= start <= length - side:
            raise Error(f"a tile of {side} pixels that starts at {start} lies outside an image of {length}.")
    inside = [end for start in starts for end in (start, start + side) if 0 < end < length]
    edges = np.zeros(length - 1, dtype=bool)
    edges[np.array(inside, dtype=int) - 1] = True
    return edges


def _apart(shift: np.ndarray, edges: np.ndarray) -> bool:
    """Whether a shifted grid meets no edge along one axis, and leaves pairs that are on neither."""
    return not (shift & edges).any() and not (edges.any() and (shift | edges).all())


def _energy(profiles: Sequence[Array], grid: Sequence[np.ndarray], edges: Sequence[np.ndarray]) -> float:
    """The grid's energy over that of as many pairs, of each direction, that lie neither on it nor on an edge."""
    across, expected = 0.0, 0.0
    for profile, here, edge in zip(profiles, grid, edges):
        if here.any():
            across += float(profile[here].sum())
            expected += float(profile[~(here | edge)].mean()) * int(here.sum())
    if not expected:
        return float("inf") if across else 1.0
    return across / expected
