"""Linear operators on images, and what was measured with one: y = A·x0 + noise·n.

`apply` is A and `adjoint` its transpose A^T; an operator may know its own `pseudo_inverse`, A^+, and `solve`,
(A·A^T + tau·I)^-1 on the range of A, and for one that does not, conjugate gradients find them. Matrices are float64
until they meet an image, and then of its dtype and device.

Conjugate gradients: v with matrix(v) = b for each image of a batch, where only the product is known.

The matrices of one axis that reduce or blur a line of pixels: each row the weights of one output pixel, of sum 1.

Bicubic weights are Keys's cubic, a = -1/2, stretched by the scale and renormalised at the borders (Pillow's, and
torch's with antialias). A blur mirrors the image at its borders, the edge pixel repeated, so that it is symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from kuosan import seeds
from kuosan.errors import Error

Tau = float | Tensor  # a number, or (B, 1, 1, 1): one an image
CUT = 1e-4  # singular values below this part of the largest are noise to a float32 image
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Operator(Protocol):
    """A linear map of images; optional members are `pseudo_inverse(y)` and `solve(y, tau)`."""

    def apply(self, x: Tensor) -> Tensor:
        """A·x: (B, C, H, W) -> a measurement (B, c, h, w)."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T·y: (B, c, h, w) -> (B, C, H, W)."""
        ...


def pseudo_inverse(operator: Operator, y: Tensor) -> Tensor:
    """A^+·y, the least image among those that A maps nearest to y: the operator's own, or by conjugate gradients.

    Raises: Error if they diverge.
    """
    own = getattr(operator, "pseudo_inverse", None)
    if own is not None:
        return torch.as_tensor(own(y))
    return conjugate_gradients(lambda x: operator.adjoint(operator.apply(x)), operator.adjoint(y))


def solve(operator: Operator, y: Tensor, tau: Tau) -> Tensor:
    """(A·A^T + tau·I)^-1·y for y in the range of A, tau >= 0: the operator's own, or by conjugate gradients.

    At tau = 0, where A·A^T may have no inverse, only y's part in the range is solved for.
    Raises: Error if they diverge.
    """
    own = getattr(operator, "solve", None)
    if own is not None:
        return torch.as_tensor(own(y, tau))
    if not torch.as_tensor(tau).all():
        y = operator.apply(pseudo_inverse(operator, y))
    return conjugate_gradients(lambda v: operator.apply(operator.adjoint(v)) + on(tau, v) * v, y)


def check_adjoint(operator: Operator, shape: tuple[int, ...]) -> None:
    """Whether <A·x, y> = <x, A^T·y> for random images x of a shape (B, C, H, W) and random y.

    Raises: Error where they differ by more than float32's rounding.
    """
    x = seeds.normal([(0, "check_adjoint x", 0, i) for i in range(shape[0])], shape[1:])
    image = operator.apply(x)
    y = seeds.normal([(0, "check_adjoint y", 0, i) for i in range(len(image))], tuple(image.shape[1:]))
    back = operator.adjoint(y)
    if back.shape != x.shape:
        raise Error(f"adjoint gave {tuple(back.shape)} for a measurement of {shape}: it must give an image, {shape}.")
    there, here = inner(image.double(), y.double()), inner(x.double(), back.double())
    size = (inner(image.double(), image.double()) * inner(y.double(), y.double())).sqrt()
    if not bool(((there - here).abs() <= 1e-4 * size).all()):
        raise Error(
            f"adjoint is not the transpose of apply: <A·x, y> is {float(there[0]):g} where <x, A^T·y> is "
            f"{float(here[0]):g}; make adjoint the transpose of the matrix that apply multiplies by."
        )


def on(value: Tau, like: Tensor) -> Tau:
    """A number as it is; a tensor in an image's dtype and device."""
    return value.to(like) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Identity:
    """Nothing is lost: A = I."""

    def apply(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return y

    def solve(self, y: Tensor, tau: Tau) -> Tensor:
        return y / (1 + on(tau, y))


@dataclass(frozen=True, eq=False)
class Mask:
    """Known pixels are kept, others become 0: its own adjoint and its own pseudo-inverse."""

    known: Tensor  # (1, 1, H, W) or (B, 1, H, W): 1 where known, 0 where not

    def __post_init__(self) -> None:
        if self.known.ndim != 4 or self.known.shape[1] != 1:
            raise Error(f"mask of shape {tuple(self.known.shape)}: need (1, 1, H, W), or (B, 1, H, W) for B images.")
        if not bool(((self.known == 0) | (self.known == 1)).all()):
            low, high = float(self.known.min()), float(self.known.max())
            raise Error(f"mask with values from {low:g} to {high:g}: allowed are 1 (known) and 0; round it first.")

    def apply(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self.known.shape[2:] or len(self.known) not in (1, len(x)):
            raise Error(f"mask of shape {tuple(self.known.shape)} on images of {tuple(x.shape)}: sizes must agree.")
        return x * self.known.to(x)

    adjoint = apply
    pseudo_inverse = apply

    def solve(self, y: Tensor, tau: Tau) -> Tensor:
        return self.apply(y) / (1 + on(tau, y))


@dataclass(frozen=True, eq=False)
class Separable:
    """y = rows·x·columns^T in each channel; both matrices' singular values give A^+ and `solve`.

    Singular values of A, the products of one of each, count as 0 below `cut` times the largest.
    """

    rows: Tensor  # (h, H)
    columns: Tensor  # (w, W)
    cut: float = CUT

    def __post_init__(self) -> None:
        for name, matrix in (("rows", self.rows), ("columns", self.columns)):
            if matrix.ndim != 2:
                raise Error(f"{name} of shape {tuple(matrix.shape)}: need a matrix, (output pixels, input pixels).")
        if not 0 <= self.cut < 1:
            raise Error(f"cut {self.cut}: need 0 (every singular value counts) or more, below 1; {CUT:g} is common.")

    def apply(self, x: Tensor) -> Tensor:
        self._check("images", x, self.rows.shape[1], self.columns.shape[1])
        return self.rows.to(x) @ x @ self.columns.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        self._check("measurements", y, self.rows.shape[0], self.columns.shape[0])
        return self.rows.to(y).mT @ y @ self.columns.to(y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        (_, _, rows), (_, _, columns) = self.factors
        gain = torch.where(self.kept, 1 / self.values, 0.0).to(y)
        return rows.to(y).mT @ (self._turned(y) * gain) @ columns.to(y)

    def solve(self, y: Tensor, tau: Tau) -> Tensor:
        (rows, _, _), (columns, _, _) = self.factors
        squared = torch.where(self.kept, self.values**2, math.inf)
        return rows.to(y) @ (self._turned(y) / (squared.to(y) + on(tau, y))) @ columns.to(y).mT

    @cached_property
    def factors(self) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """U, S, V^T of rows and of columns, float64."""
        rows, columns = (torch.linalg.svd(m.double().cpu(), full_matrices=False) for m in (self.rows, self.columns))
        return (rows.U, rows.S, rows.Vh), (columns.U, columns.S, columns.Vh)

    @cached_property
    def values(self) -> Tensor:
        """The singular values of A, a table of rows' by columns'."""
        return self.factors[0][1][:, None] * self.factors[1][1]

    @cached_property
    def kept(self) -> Tensor:
        """Which of `values` count."""
        return self.values > self.cut * self.values.max()

    def _turned(self, y: Tensor) -> Tensor:
        """y by the left singular vectors."""
        self._check("measurements", y, self.rows.shape[0], self.columns.shape[0])
        (rows, _, _), (columns, _, _) = self.factors
        return rows.to(y).mT @ y @ columns.to(y)

    def _check(self, what: str, x: Tensor, height: int, width: int) -> None:
        if x.shape[-2:] != (height, width):
            raise Error(f"{what} of {tuple(x.shape)}: this operator was made for (..., {height}, {width}).")


def area(scale: int, size: tuple[int, int]) -> Separable:
    """The mean of each square of scale x scale pixels of images (H, W).

    Raises: Error for sides that scale does not divide.
    """
    height, width = _reducible("area", scale, size)
    return Separable(mean(scale, height), mean(scale, width))


def bicubic(scale: int, size: tuple[int, int]) -> Separable:
    """Antialiased bicubic reduction of images (H, W) by a whole scale: Pillow's resize and torch's
    `interpolate(mode="bicubic", antialias=True)`. Raises: Error for sides that scale does not divide.
    """
    height, width = _reducible("bicubic", scale, size)
    return Separable(cubic(scale, height), cubic(scale, width))


def gaussian_blur(std: float, size: tuple[int, int], radius: int | None = None) -> Separable:
    """Gaussian blur of images (H, W), std in pixels, cut at `radius` (4·std if None), mirrored at the borders.

    Raises: Error for a std or a radius that is not above 0.
    """
    if not 0 < std < math.inf:
        raise Error(f"blur of std {std}: need a number of pixels above 0, as in 1.5.")
    if radius is None:
        radius = max(1, round(4 * std))
    if isinstance(radius, bool) or not isinstance(radius, int) or radius < 1:
        raise Error(f"blur of radius {radius!r}: need a whole number of pixels, 1 or more, or None for 4·std.")
    height, width = size
    return Separable(bell(std, height, radius), bell(std, width, radius))


def _reducible(name: str, scale: int, size: tuple[int, int]) -> tuple[int, int]:
    """The size, once both sides are whole multiples of a whole scale."""
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise Error(f"{name} of scale {scale!r}: need a whole number, 2 or more (1 changes nothing).")
    if any(side < 1 or side % scale for side in size):
        raise Error(
            f"{name} of scale {scale} on {size[0]} x {size[1]} pixels: sides must be multiples of {scale}; crop."
        )
    return size


@dataclass(frozen=True)
class Greyscale:
    """Luma of red, green and blue, 0.299·R + 0.587·G + 0.114·B (ITU-R BT.601): (B, 3, H, W) -> (B, 1, H, W)."""

    def apply(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise Error(f"greyscale of {x.shape[1]} channels: need 3, red, green and blue.")
        return (x * self._luma(x)).sum(dim=1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self._luma(y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.adjoint(y) / sum(c**2 for c in LUMA)

    def solve(self, y: Tensor, tau: Tau) -> Tensor:
        return y / (sum(c**2 for c in LUMA) + on(tau, y))

    def _luma(self, x: Tensor) -> Tensor:
        return x.new_tensor(LUMA).reshape(1, 3, 1, 1)


@dataclass(frozen=True)
class Compose:
    """One operator after another, the first of `parts` first; solved by conjugate gradients."""

    parts: tuple[Operator, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise Error("compose of no operators: give at least one, or use Identity.")

    def apply(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part.apply(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for part in reversed(self.parts):
            y = part.adjoint(y)
        return y


@dataclass(frozen=True, eq=False)
class Measurement:
    """What is known of an image: y = A·x0 + noise·n, noise in units of images in [-1, 1]."""

    operator: Operator
    y: Tensor  # (B, c, h, w), or (1, c, h, w) for every image
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise Error(f"measurement noise {self.noise}: need 0 (exact) or more, the noise's std in [-1, 1] images.")

    def residual(self, x0: Tensor) -> Tensor:
        """y - A·x0, in x0's dtype and device. Raises: Error for a measurement of another shape than A·x0."""
        image = self.operator.apply(x0)
        if self.y.shape[1:] != image.shape[1:] or len(self.y) not in (1, len(image)):
            raise Error(f"measurement y of {tuple(self.y.shape)}: this operator gives {tuple(image.shape)}.")
        return self.y.to(image) - image


ITERATIONS = 500  # at most


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """The least v with matrix(v) = b, each image on its own, for a symmetric matrix without negative eigenvalues.

    Stops at a residual of 10·eps of b's (Hestenes & Stiefel 1952), where rounding ends progress, or after 500 steps.
    Gives the v of least residual. Raises: Error for one that stays above a tenth of b's, or is no number.
    """
    v, residual = torch.zeros_like(b), b.clone()
    direction, squared = residual, inner(residual, residual)
    start = squared
    goal = start * (10 * torch.finfo(b.dtype).eps) ** 2
    best, least = v, squared
    for _ in range(min(ITERATIONS, 4 * b[0].numel())):
        going = squared > goal
        if not going.any():
            break
        image = matrix(direction)
        bend = inner(direction, image)
        step = torch.where(going & (bend > 0), squared / bend, 0.0)
        v = v + step * direction
        residual = residual - step * image
        before, squared = squared, inner(residual, residual)
        direction = residual + torch.where(going, squared / before, 0.0) * direction
        best, least = torch.where(squared < least, v, best), torch.minimum(squared, least)
    if not bool(((least <= 0.01 * start) & start.isfinite()).all()):  # a tenth of b's length is far from an answer
        raise Error(
            "conjugate gradients on the operator diverged: its adjoint is not the transpose of its apply, or it is "
            "not linear; try operators.check_adjoint, or give the operator a pseudo_inverse and a solve of its own."
        )
    return best


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each image: (B, ...) -> (B, 1, ...)."""
    return (a * b).sum(dim=tuple(range(1, a.ndim)), keepdim=True)


def mean(scale: int, side: int) -> Tensor:
    """The mean of each `scale` pixels: (side/scale, side)."""
    return torch.eye(side // scale, dtype=torch.float64).repeat_interleave(scale, dim=1) / scale


def cubic(scale: int, side: int) -> Tensor:
    """Keys's cubic (Keys 1981) about the middle of each `scale` pixels: (side/scale, side)."""
    middle = scale * (torch.arange(side // scale, dtype=torch.float64) + 0.5)
    away = (torch.arange(side, dtype=torch.float64) + 0.5 - middle[:, None]).abs() / scale
    near = (1.5 * away - 2.5) * away**2 + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    weights = torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


def bell(std: float, side: int, radius: int) -> Tensor:
    """A Gaussian cut at `radius` pixels, over the mirrored line: (side, side)."""
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / std) ** 2)
    weights /= weights.sum()
    place = (torch.arange(side)[:, None] + offsets) % (2 * side)
    place = torch.where(place < side, place, 2 * side - 1 - place)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add(1, place, weights.expand(side, -1))
