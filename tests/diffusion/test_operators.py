"""Operators are the matrices they say: adjoint, pseudo-inverse and solve against numpy's, filters against others'."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from kuosan import seeds
from kuosan.diffusion.operators import (
    Compose,
    Greyscale,
    Identity,
    Mask,
    Measurement,
    Operator,
    area,
    bicubic,
    check_adjoint,
    gaussian_blur,
    pseudo_inverse,
    solve,
)
from kuosan.errors import Error
from posterior import dense

SHAPE = (3, 8, 12)
SIZE = (8, 12)


def noise(name: str, n: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return seeds.normal([(0, name, 0, i) for i in range(n)], shape).double()


KNOWN = (noise("mask", 1, (1, *SIZE)) > -0.3).double()
OPERATORS: dict[str, Operator] = {
    "identity": Identity(),
    "mask": Mask(KNOWN),
    "area": area(2, SIZE),
    "bicubic": bicubic(4, SIZE),
    "blur": gaussian_blur(1.2, SIZE),
    "greyscale": Greyscale(),
    "grey and small": Compose((Greyscale(), area(4, SIZE))),
    "small and grey": Compose((bicubic(2, SIZE), Greyscale())),
    "blurred with holes": Compose((gaussian_blur(0.5, SIZE), Mask(KNOWN))),
}


@dataclass(frozen=True)
class Bare:
    """A user's own operator: apply and adjoint, and no more."""

    operator: Operator

    def apply(self, x: Tensor) -> Tensor:
        return self.operator.apply(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(y)


BARE: dict[str, Operator] = {
    **{f"bare {name}": Bare(OPERATORS[name]) for name in ("identity", "mask", "area", "bicubic", "greyscale")},
    "bare slight blur": Bare(gaussian_blur(0.6, SIZE)),
}
ALL = {**OPERATORS, **BARE}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_is_the_transpose(name: str) -> None:
    operator = OPERATORS[name]
    check_adjoint(operator, (2, *SHAPE))
    A = dense(operator, SHAPE)
    y = noise("y", 2, tuple(operator.apply(torch.zeros(1, *SHAPE)).shape[1:]))
    torch.testing.assert_close(operator.adjoint(y).flatten(1), y.flatten(1) @ A, rtol=1e-12, atol=1e-12)


def factors(A: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """numpy's left singular vectors and values, those that count."""
    U, S, _ = np.linalg.svd(A.numpy())
    kept = S / S[0] > 1e-4
    return U[:, : len(S)][:, kept], S[kept]


@pytest.mark.parametrize("name", ALL)
def test_the_pseudo_inverse_is_numpys(name: str) -> None:
    A = dense(ALL[name], SHAPE)
    y = noise("y", 2, tuple(ALL[name].apply(torch.zeros(1, *SHAPE)).shape[1:]))
    wanted = y.flatten(1) @ torch.from_numpy(np.linalg.pinv(A.numpy(), 1e-4)).T
    torch.testing.assert_close(pseudo_inverse(ALL[name], y).flatten(1), wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("tau", [0.0, 0.01, 3.0, torch.tensor([0.02, 5.0]).reshape(2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_solve_is_the_inverse_on_the_range(name: str, tau: float | Tensor) -> None:
    U, S = factors(dense(ALL[name], SHAPE))
    y = ALL[name].apply(noise("x", 2))
    each = torch.as_tensor(tau).double().flatten().expand(2)
    wanted = np.stack([U @ ((U.T @ v.flatten().numpy()) / (S**2 + float(t))) for v, t in zip(y, each)])
    torch.testing.assert_close(solve(ALL[name], y, tau).flatten(1).numpy(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_float32_images_stay_float32_and_lose_little(name: str) -> None:
    operator, x = ALL[name], noise("x", 2)
    y = operator.apply(x)
    small = operator.apply(x.float())
    assert small.dtype == operator.adjoint(small).dtype == torch.float32
    for got, wanted in (
        (pseudo_inverse(operator, small), pseudo_inverse(operator, y)),
        (solve(operator, small, 0.01), solve(operator, y, 0.01)),
    ):
        assert got.dtype == torch.float32
        assert float((got - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())


def test_what_is_not_in_the_range_is_left_out_at_tau_zero() -> None:
    y = noise("y", 2)
    torch.testing.assert_close(solve(Bare(Mask(KNOWN)), y, 0.0), KNOWN * y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(solve(Mask(KNOWN), y, 0.0), KNOWN * y)


def test_an_image_already_solved_does_not_disturb_its_neighbours() -> None:
    y = noise("y", 3)
    y[1] = 0
    out = solve(Bare(gaussian_blur(1.0, SIZE)), y, 0.1)
    torch.testing.assert_close(out, solve(gaussian_blur(1.0, SIZE, None), y, 0.1), rtol=1e-7, atol=1e-7)
    assert not out[1].any()


def test_a_strong_blur_in_float32_is_undone_as_far_as_its_rounding_allows() -> None:
    x = noise("x", 1).float()
    for operator in (gaussian_blur(2.5, SIZE), Bare(gaussian_blur(2.5, SIZE))):
        y = operator.apply(x)
        back = pseudo_inverse(operator, y)
        assert float((operator.apply(back) - y).abs().max()) < 1e-3
        assert float(back.abs().max()) < 2 * float(x.abs().max())


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_bicubic_is_torchs_and_pillows_at_the_borders_too(scale: int) -> None:
    height, width = 5 * scale, 7 * scale
    x = noise("x", 2, (3, height, width))
    ours = bicubic(scale, (height, width)).apply(x)
    torchs = F.interpolate(x, (5, 7), mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-10)
    image = Image.fromarray(x[0, 0].float().numpy())
    pillows = torch.from_numpy(np.array(image.resize((7, 5), Image.Resampling.BICUBIC)))
    torch.testing.assert_close(ours[0, 0].float(), pillows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_area_is_the_mean_of_squares(scale: int) -> None:
    x = noise("x", 2)
    torch.testing.assert_close(area(scale, SIZE).apply(x), F.avg_pool2d(x, scale), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("std", "radius"), [(0.4, None), (1.3, None), (2.0, 3), (3.0, None)])
def test_blur_is_scipys_with_mirrored_borders(std: float, radius: int | None) -> None:
    x = noise("x", 1, (1, *SIZE))
    wide = max(1, round(4 * std)) if radius is None else radius
    wanted = ndimage.gaussian_filter(x[0, 0].numpy(), std, mode="reflect", radius=wide)
    blur = gaussian_blur(std, SIZE, radius)
    torch.testing.assert_close(blur.apply(x)[0, 0], torch.from_numpy(wanted), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(blur.rows, blur.rows.T)  # so a flat image and the mean both stay


def test_grey_of_grey_is_itself_and_composition_goes_left_to_right() -> None:
    grey = noise("g", 2, (1, *SIZE)).expand(-1, 3, -1, -1)
    torch.testing.assert_close(Greyscale().apply(grey), grey[:, :1])
    x = noise("x", 2)
    both = Compose((Greyscale(), area(2, SIZE)))
    torch.testing.assert_close(both.apply(x), F.avg_pool2d((x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None])
                                                           .sum(1, keepdim=True), 2))  # fmt: skip


def test_a_mask_may_be_each_images_own() -> None:
    known = torch.cat([KNOWN, 1 - KNOWN])
    x = noise("x", 2)
    assert torch.equal(Mask(known).apply(x), x * known)
    assert torch.equal(Mask(known.bool()).apply(x), x * known)


def test_a_measurements_residual_is_zero_for_what_was_measured_and_y_may_be_shared() -> None:
    x = noise("x", 2)
    operator = area(2, SIZE)
    measurement = Measurement(operator, operator.apply(x[:1]).float(), noise=0.1)
    residual = measurement.residual(x)
    assert residual.dtype == torch.float64 and residual.shape == (2, 3, 4, 6)
    assert float(residual[0].abs().max()) < 1e-6 < float(residual[1].abs().max())


class Crooked(Bare):
    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(y) * -3.0 + y.flip(-1)


def test_a_wrong_adjoint_is_found_and_its_equations_refused() -> None:
    crooked = Crooked(Identity())
    with pytest.raises(Error, match="adjoint is not the transpose of apply"):
        check_adjoint(crooked, (2, *SHAPE))
    with pytest.raises(Error, match=r"adjoint gave \(2, 3, 4, 6\).*must give an image, \(2, 3, 8, 12\)"):
        check_adjoint(Small(area(2, SIZE)), (2, *SHAPE))
    with pytest.raises(Error, match=r"diverged.*check_adjoint"):
        solve(crooked, noise("y", 2), 0.1)
    with pytest.raises(Error, match="diverged"):
        solve(Bare(Identity()), noise("y", 2) * math.inf, 0.1)


class Small(Bare):
    def adjoint(self, y: Tensor) -> Tensor:
        return y


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: area(3, SIZE), r"area of scale 3 on 8 x 12 pixels: sides must be multiples of 3"),
        (lambda: bicubic(5, SIZE), "bicubic of scale 5"),
        (lambda: area(0, SIZE), "area of scale 0: need a whole number"),
        (lambda: gaussian_blur(0.0, SIZE), "blur of std 0.0"),
        (lambda: gaussian_blur(1.0, SIZE, 0), "blur of radius 0"),
        (lambda: Mask(KNOWN[0]), r"mask of shape \(1, 8, 12\)"),
        (lambda: Mask(KNOWN * 0.5), "mask with values from 0 to 0.5"),
        (lambda: Mask(KNOWN).apply(torch.zeros(1, 3, 4, 4)), "sizes must agree"),
        (lambda: area(2, SIZE).apply(torch.zeros(1, 3, 4, 4)), r"images of \(1, 3, 4, 4\).*8, 12"),
        (lambda: area(2, SIZE).adjoint(torch.zeros(1, 3, 8, 12)), r"measurements of .*4, 6"),
        (lambda: Greyscale().apply(torch.zeros(1, 4, 4, 4)), "greyscale of 4 channels"),
        (lambda: Compose(()), "compose of no operators"),
        (lambda: Measurement(Identity(), torch.zeros(1), -0.1), "measurement noise -0.1"),
        (lambda: Measurement(Identity(), torch.zeros(1), math.nan), "measurement noise nan"),
        (lambda: Measurement(Identity(), torch.zeros(1, 3, 4, 4)).residual(noise("x", 1)), r"measurement y of \(1, 3"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make: object, message: str) -> None:
    with pytest.raises(Error, match=message):
        make()  # type: ignore[operator]
