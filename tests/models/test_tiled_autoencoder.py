from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kuosan import seeds
from kuosan.errors import Error
from kuosan.models.tiling import TiledAutoencoder, extended
from kuosan.networks.autoencoder import Autoencoder, Moments
from kuosan.networks.autoencoder_config import AutoencoderConfig

CONFIG = AutoencoderConfig(channels=8, multipliers=(1, 2, 2), blocks=1, groups=4)  # factor 4


def images(*shape: int) -> Tensor:
    """Smooth noise in [-1, 1]: (*shape)."""
    coarse = seeds.normal([(0, "test", 0, row) for row in range(shape[0])], (shape[1], 6, 6))
    return F.interpolate(coarse, shape[2:], mode="bicubic").clamp(-1, 1)


class Means(nn.Module):
    """An exact local autoencoder: a latent is the mean of its pixels, an image its latents as squares."""

    config = CONFIG

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def encode(self, x: Tensor) -> Moments:
        self.seen.append(tuple(x.shape))
        mean = F.avg_pool2d(x, 4)
        return Moments(mean, 2 * mean - 1)

    def decode(self, z: Tensor) -> Tensor:
        self.seen.append(tuple(z.shape))
        return z.repeat_interleave(4, 2).repeat_interleave(4, 3)


def means(side: int, overlap: int | None = None, batch: int = 1) -> TiledAutoencoder:
    return TiledAutoencoder(Means(), side, overlap, batch)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def network() -> Autoencoder:
    built = Autoencoder(CONFIG, seed=1).eval().requires_grad_(False)
    for i, parameter in enumerate(built.parameters()):
        if not parameter.any():
            parameter.copy_(0.1 * seeds.normal([(0, "test/weights", i, 0)], tuple(parameter.shape))[0])
    return built


@pytest.mark.parametrize("size", [(32, 32), (32, 16), (4, 28)])
def test_an_image_that_fits_into_one_tile_goes_through_the_network_as_it_is(
    network: Autoencoder, size: tuple[int, int]
) -> None:
    tiled, x = TiledAutoencoder(network, 32), images(2, 3, *size)
    moments = network.encode(x)
    assert torch.equal(tiled.encode(x).mean, moments.mean) and torch.equal(tiled.encode(x).log_var, moments.log_var)
    assert torch.equal(tiled.decode(moments.mean), network.decode(moments.mean))


@pytest.mark.parametrize("overlap", [0, 4, 8, 16])
@pytest.mark.parametrize("size", [(32, 32), (64, 100), (16, 80), (36, 40)])
def test_tiles_of_a_local_autoencoder_make_what_the_whole_makes(size: tuple[int, int], overlap: int) -> None:
    x = images(2, 3, *size)
    for batch in (1, 3):
        tiled = means(32, overlap, batch)
        moments, whole = tiled.encode(x), Means().encode(x)
        assert torch.allclose(moments.mean, whole.mean, atol=1e-6)
        assert torch.allclose(moments.log_var, whole.log_var, atol=1e-6)
        assert torch.allclose(tiled.decode(whole.mean), Means().decode(whole.mean), atol=1e-6)


def test_no_more_than_a_batch_of_tiles_goes_through_the_network_at_once() -> None:
    tiled = means(32, 8, batch=2)
    tiled.decode(tiled.encode(images(3, 3, 96, 80)).mean)
    assert max(shape[0] for shape in tiled.network.seen) == 2 * 3
    assert {shape[2:] for shape in tiled.network.seen} == {(32, 32), (8, 8)}
    assert len(tiled.network.seen) == 2 * -(-tiled.tile_count(96, 80) // 2)


def test_tiles_overlap_as_asked_and_the_last_ends_with_the_image() -> None:
    tiled = means(32, 8)
    assert tiled.tile_count(32, 32) == 1
    assert tiled.tile_count(56, 32) == 2  # 32 + 24
    assert tiled.tile_count(57, 81) == 3 * 4


@pytest.mark.parametrize("size", [(1, 1), (5, 31), (37, 33), (70, 1)])
def test_sides_that_are_no_multiples_are_extended_by_their_edges_and_cut_again(
    network: Autoencoder, size: tuple[int, int]
) -> None:
    tiled, x = TiledAutoencoder(network, 32, 8), images(1, 3, *size)
    latent = (-(-size[0] // 4), -(-size[1] // 4))
    padded = F.pad(x, (0, 4 * latent[1] - size[1], 0, 4 * latent[0] - size[0]), mode="replicate")
    assert torch.equal(extended(x, 4), padded)
    mean = tiled.encode(x).mean
    assert mean.shape[2:] == latent and torch.equal(mean, tiled.encode(padded).mean)
    made = tiled.decode(mean, size)
    assert made.shape == x.shape and torch.equal(made, tiled.decode(mean)[:, :, : size[0], : size[1]])


def test_an_image_whose_sides_are_multiples_is_not_copied() -> None:
    x = images(1, 3, 8, 12)
    assert extended(x, 4) is x


def test_a_seam_of_a_real_network_is_blended_and_not_cut(network: Autoencoder) -> None:
    """Neighbouring tiles disagree: side by side they leave an edge, which the blend spreads over the overlap."""
    z = network.encode(images(1, 3, 64, 32)).mean

    def edge(x: Tensor, row: int) -> float:
        """The step from row - 1 to row over the mean of the steps beside it."""
        steps = x.diff(dim=2).square().mean((0, 1, 3))
        return float(2 * steps[row - 1] / (steps[row - 2] + steps[row]))

    beside, blended = (TiledAutoencoder(network, 32, overlap).decode(z) for overlap in (0, 16))
    assert edge(beside, 32) > 2.5
    assert all(edge(blended, row) < 1.5 for row in (16, 32, 48))


def test_gradients_through_tiles_are_those_of_the_whole_for_a_local_autoencoder() -> None:
    tiled, z = means(32, 8), images(1, 3, 12, 20).requires_grad_()
    (tiled.decode(z).square().sum()).backward()
    assert torch.allclose(z.grad, 2 * 16 * z.detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("side", "overlap", "batch", "said"),
    [
        (30, None, 1, "tiles of 30 pixels"),
        (0, None, 1, "tiles of 0 pixels"),
        (32, 6, 1, "overlap = 6"),
        (32, 20, 1, "overlap = 20"),
        (32, -4, 1, "overlap = -4"),
        (32, 8, 0, "batch = 0"),
    ],
)
def test_impossible_tiles_are_refused(side: int, overlap: int | None, batch: int, said: str) -> None:
    with pytest.raises(Error, match=said):
        means(side, overlap, batch)


def test_what_is_no_image_and_a_size_of_other_latents_are_refused() -> None:
    tiled = means(32)
    for shape in ((3, 8, 8), (1, 3, 0, 8), (0, 3, 8, 8)):
        with pytest.raises(Error, match="encodes images"):
            tiled.encode(torch.zeros(shape))
        with pytest.raises(Error, match="decodes latents"):
            tiled.decode(torch.zeros(shape))
    for size in ((33, 8), (28, 8), (32, 12)):
        with pytest.raises(Error, match="latents of 8x2 are no image"):
            tiled.decode(torch.zeros(1, 3, 8, 2), size)
