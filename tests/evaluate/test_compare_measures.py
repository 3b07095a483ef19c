"""The measures and rules of a comparison against closed forms and other people's code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.data.pixels import as_written, from_uint8, wrapped
from kuosan.diffusion import operators
from kuosan.errors import Error
from kuosan.evaluate.comparison import ComparisonConfig, Scores
from kuosan.evaluate.damage import MOST, Damaged, baselines, damage, harmonic, levels, measure, nearest_known
from kuosan.metrics.estimate import mean


def distance(x: Tensor, y: Tensor) -> Tensor:
    """The mean difference, in place of a network's."""
    return (x.float() - y.float()).abs().mean(dim=(1, 2, 3))


def truth(n: int = 3, side: int = 16) -> Tensor:
    """Images between 40 and 200 grey levels, so that an error can be added."""
    pixels = seeds.rng(0, "test/truth").integers(40, 200, (n, side, side, 3), dtype=np.uint8)
    return torch.from_numpy(from_uint8(pixels))


def damaged(side: int = 16, n: int = 3, **options: object) -> Damaged:
    config = ComparisonConfig("x", ("run",), **options)  # type: ignore[arg-type]
    return damage(config, truth(n, side))


def answers(of: Damaged, offset: Tensor, variants: int = 2) -> Tensor:
    """The truth and an offset (..., C, H, W) in grey levels, as answers."""
    base = levels(of.truth).long()[:, None].expand(-1, variants, -1, -1, -1)
    return (base + offset.long()).to(torch.uint8)


def test_a_constant_error_gives_its_psnr_and_its_colour_shift() -> None:
    of = damaged(upscale=4)
    offset = torch.tensor([4.0, -2.0, 6.0]).reshape(3, 1, 1)
    found = measure(of, answers(of, offset), distance)
    expected = 20 * math.log10(255) - 10 * math.log10((16 + 4 + 36) / 3)
    assert found["psnr"].tolist() == pytest.approx([expected] * 3)
    assert found["psnr_mean"].tolist() == pytest.approx([expected] * 3)
    for name, shift in (("shift_r", 4), ("shift_g", -2), ("shift_b", 6)):
        assert found[name].tolist() == pytest.approx([shift] * 3)
    assert found["perceptual"].tolist() == pytest.approx([4] * 3)
    assert found["spread"].tolist() == found["diversity"].tolist() == [0, 0, 0]


def test_two_answers_of_opposite_error_have_the_truth_as_their_mean() -> None:
    of = damaged(upscale=4)
    offset = torch.tensor([5.0, -5.0]).reshape(2, 1, 1, 1).expand(2, 3, 16, 16)
    found = measure(of, answers(of, offset), distance)
    assert found["psnr"].tolist() == pytest.approx([20 * math.log10(255 / 5)] * 3)
    assert found["psnr_mean"].tolist() == [MOST] * 3
    assert found["spread"].tolist() == pytest.approx([math.sqrt(50)] * 3)
    assert found["diversity"].tolist() == pytest.approx([10] * 3)
    assert found["shift_r"].tolist() == pytest.approx([0] * 3)


def test_the_truth_itself_is_as_near_as_can_be() -> None:
    of = damaged(mask="half")
    found = measure(of, answers(of, torch.zeros(3, 16, 16), 1), distance)
    assert found["psnr"].tolist() == found["psnr_hole"].tolist() == [MOST] * 3
    assert found["ssim"].tolist() == pytest.approx([1] * 3)
    assert found["consistency"].tolist() == pytest.approx([0] * 3, abs=1e-4)
    assert "spread" not in found and "diversity" not in found


def test_an_error_in_the_hole_alone_is_seen_there_and_is_consistent() -> None:
    of = damaged(mask="2,3,8,4")
    assert of.hole is not None and of.hole.sum(dim=(1, 2, 3)).tolist() == [32] * 3
    found = measure(of, answers(of, 7 * of.hole[0], 1), distance)
    assert found["psnr_hole"].tolist() == pytest.approx([20 * math.log10(255 / 7)] * 3)
    assert found["psnr"].tolist() == pytest.approx([20 * math.log10(255 / 7) + 10 * math.log10(256 / 32)] * 3)
    assert found["consistency"].tolist() == pytest.approx([0] * 3, abs=1e-4)


def test_consistency_is_the_error_of_what_was_brought() -> None:
    of = damaged(upscale=4)
    exact = measure(of, levels(of.degraded.repeat_interleave(4, -1).repeat_interleave(4, -2))[:, None], distance)
    assert exact["consistency"].tolist() == pytest.approx([0] * 3, abs=1e-4)
    off = answers(of, torch.full((3, 16, 16), 9.0), 1)
    assert measure(of, off, distance)["consistency"].tolist() == pytest.approx([9] * 3, abs=0.1)
    assert "consistency" not in measure(damaged(noise=20), answers(of, torch.zeros(3, 16, 16)), distance)


def test_damage_is_what_the_operators_and_eight_bits_make_and_is_keyed_by_image() -> None:
    of = damaged(upscale=4, deblur=1.0)
    blurred = operators.gaussian_blur(1.0, (16, 16)).apply(of.truth)
    torch.testing.assert_close(of.degraded, as_written(operators.area(4, (16, 16)).apply(blurred)), atol=0.01, rtol=0)
    assert torch.equal(of.degraded, as_written(of.degraded))
    few, many = damaged(n=2, noise=10, mask="brush,blob"), damaged(n=5, noise=10, mask="brush,blob")
    assert few.hole is not None and many.hole is not None
    assert torch.equal(few.hole, many.hole[:2]) and torch.equal(few.degraded, many.degraded[:2])
    assert not few.degraded[few.hole.expand_as(few.degraded) > 0].any()
    part = many.rows(1, 3)
    assert torch.equal(part.operator.apply(part.truth), many.operator.apply(many.truth)[1:3])


def test_noise_has_the_std_that_was_asked_for() -> None:
    of = damaged(n=8, noise=12)
    assert float((of.degraded - of.truth).std() * 127.5) == pytest.approx(12, rel=0.05)


def test_grey_images_have_no_colours_to_take_and_no_scale_that_does_not_divide() -> None:
    with pytest.raises(Error, match="no colours to take"):
        damage(ComparisonConfig("x", ("run",), colorise=True), truth()[:, :1])
    with pytest.raises(Error, match="must divide both sides"):
        damaged(upscale=3)
    with pytest.raises(Error, match=r"mask 10,0,8,8 is no part of the images, 16x16"):
        damaged(mask="10,0,8,8")


def test_enlarging_is_torchs_bicubic_and_nearest() -> None:
    of = damaged(upscale=4)
    ways = baselines(of)
    assert list(ways) == ["bicubic", "nearest"]
    cubic = torch.nn.functional.interpolate(of.degraded, scale_factor=4, mode="bicubic", align_corners=False)
    torch.testing.assert_close(ways["bicubic"](of), cubic.clamp(-1, 1))
    torch.testing.assert_close(ways["nearest"](of), torch.nn.functional.interpolate(of.degraded, scale_factor=4))


@pytest.mark.parametrize("kinds", ["box", "sparse", "half", "border,brush"])
def test_the_nearest_known_pixel_is_as_near_as_scipys(kinds: str) -> None:
    of = damaged(n=4, side=24, mask=kinds)
    assert of.hole is not None
    for hole in of.hole[:, 0].numpy() > 0:
        row, column = nearest_known(hole)
        assert not hole[row, column].any()
        grid = np.indices(hole.shape)
        found = np.hypot(row - grid[0], column - grid[1])
        np.testing.assert_allclose(found, scipy.ndimage.distance_transform_edt(hole))
    filled = baselines(of)["nearest known"](of)
    assert torch.equal(filled * (1 - of.hole), of.degraded) and (filled != 0).any()


def test_a_harmonic_fill_solves_laplaces_equation_as_scipy_does() -> None:
    of = damaged(n=2, side=24, mask="blob,border")
    assert of.hole is not None
    filled = harmonic(of.degraded, of.hole)
    for image, hole, got in zip(of.degraded.numpy(), of.hole[:, 0].numpy() > 0, filled.numpy()):
        np.testing.assert_allclose(got, dirichlet(image, hole), atol=1e-4)


def dirichlet(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The same by a sparse direct solve: (C, H, W)."""
    number = np.cumsum(hole.ravel()).reshape(hole.shape) - 1
    matrix = scipy.sparse.lil_matrix((int(hole.sum()),) * 2)
    right = np.zeros((matrix.shape[0], len(image)))
    for y, x in np.argwhere(hole):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < hole.shape[0] and 0 <= u < hole.shape[1]:
                matrix[number[y, x], number[y, x]] += 1
                if hole[v, u]:
                    matrix[number[y, x], number[v, u]] -= 1
                else:
                    right[number[y, x]] += image[:, v, u]
    out = image.copy()
    out[:, hole] = scipy.sparse.linalg.spsolve(matrix.tocsc(), right).reshape(-1, len(image)).T
    return out


def test_inverses_are_those_of_the_operators() -> None:
    grey = damaged(colorise=True)
    assert list(baselines(grey)) == ["as it is", "pseudo-inverse"]
    got = baselines(grey)["pseudo-inverse"](grey)
    torch.testing.assert_close(grey.operator.apply(got), grey.measured, atol=1e-5, rtol=0)
    assert list(baselines(damaged(noise=10))) == ["as it is"]
    blurred = damaged(deblur=1.0)
    smooth = measure(blurred, levels(baselines(blurred)["regularised inverse"](blurred))[:, None], distance)
    as_is = measure(blurred, levels(blurred.degraded)[:, None], distance)
    assert (smooth["psnr"] > as_is["psnr"] + 1).all()


def test_a_mean_carries_its_standard_error_and_differences_are_paired() -> None:
    assert mean([1.0, 3.0]).value == 2 and mean([1.0, 3.0]).error == pytest.approx(1)
    one = Scores("a", {"psnr": [20.0, 30.0], "perceptual": [1.0, 2.0]})
    other = Scores("b", {"psnr": [21.0, 31.0], "perceptual": [0.5, 1.0]})
    more = other.more(one)
    assert (more["psnr_more"].value, more["psnr_more"].error) == (1, 0)
    assert (more["perceptual_more"].value, more["perceptual_more"].error) == pytest.approx((-0.75, 0.25))


def test_a_heading_is_broken_where_its_column_ends() -> None:
    lines = wrapped("runs-of-a-very-long-name-indeed: pigdm, steps 50, push 0.5", 128)
    assert len(lines) > 2 and "".join(lines).replace(" ", "") == "runs-of-a-very-long-name-indeed:pigdm,steps50,push0.5"
