"""An opened run as a way to latents and back: `kuosan.load(run).encode(images)`, `.decode(latents)`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import kuosan
from autoencoder_runs import autoencoder_run, latent_run
from kuosan import seeds
from kuosan.device import Compute, ComputeConfig, choose
from kuosan.errors import Error
from kuosan.models.tiling import TiledAutoencoder
from shell import image_folder

FP32 = ComputeConfig("cpu", "fp32", 1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ae`, an autoencoder, and `latent`, a model of its latents."""
    home = tmp_path_factory.mktemp("coded")
    latent_run(home / "latent", autoencoder_run(home / "ae", image_folder(home / "pictures", side=16)))
    return home


def images(*size: int) -> Tensor:
    return seeds.normal([(0, "test", 0, i) for i in range(2)], (3, *size)).clamp(-1, 1)


def compute() -> Compute:
    return choose(FP32)


def test_an_autoencoders_latents_are_its_posteriors_means_and_come_back_by_its_decoder(runs: Path) -> None:
    trained, x = kuosan.load(runs / "ae", compute=compute()), images(16, 24)
    network = trained.model.network
    with torch.no_grad():
        z = trained.encode(x)
        assert torch.equal(z, network.encode(x).mean) and z.shape == (2, 4, 4, 6)
        assert torch.equal(trained.decode(z), network.decode(z).clamp(-1, 1))


def test_those_of_a_latent_model_are_shifted_and_scaled_as_it_denoises_them(runs: Path) -> None:
    raw, scaled = (kuosan.load(runs / name, compute=compute()) for name in ("ae", "latent"))
    x = images(16, 16)
    z = scaled.encode(x)
    shift, scale = (torch.tensor(v).view(1, 4, 1, 1) for v in ((0.0, 0.1, 0.2, 0.3), (2.0, 2.0, 0.5, 1.0)))
    assert torch.allclose(z, (raw.encode(x) - shift) * scale, atol=1e-6)
    assert torch.allclose(z, scaled.model.codec.encode(x), atol=1e-6)
    assert torch.allclose(scaled.decode(z), raw.decode(raw.encode(x)), atol=1e-5)


def test_images_of_any_size_come_back_at_their_own(runs: Path) -> None:
    trained, x = kuosan.load(runs / "ae", compute=compute()), images(13, 30)
    z = trained.encode(x)
    assert z.shape == (2, 4, 4, 8)
    assert trained.decode(z, (13, 30)).shape == x.shape and trained.decode(z).shape == (2, 3, 16, 32)


def test_tiles_are_those_of_the_tiled_autoencoder(runs: Path) -> None:
    trained, x = kuosan.load(runs / "ae", compute=compute()), images(24, 40)
    tiled = TiledAutoencoder(trained.model.network, 16, 8)  # type: ignore[arg-type]
    with torch.no_grad():
        z = trained.encode(x, tile=16, overlap=8)
        assert torch.equal(z, tiled.encode(x).mean) and not torch.equal(z, trained.encode(x))
        assert torch.equal(trained.decode(z, tile=16, overlap=8), tiled.decode(z).clamp(-1, 1))


def test_what_cannot_be_encoded_is_refused(runs: Path, trained_run: Path) -> None:
    trained = kuosan.load(runs / "ae", compute=compute())
    with pytest.raises(Error, match=r"takes images \(B, 3, H, W\); got \(2, 1, 16, 16\)"):
        trained.encode(images(16, 16)[:, :1])
    with pytest.raises(Error, match="tiles of 18 pixels"):
        trained.encode(images(16, 16), tile=18)
    with pytest.raises(Error, match="overlap = 4 has no effect without tiles"):
        trained.encode(images(16, 16), overlap=4)
    with pytest.raises(Error, match="decodes latents"):
        trained.decode(torch.zeros(4, 4))
    with pytest.raises(Error, match="no image of 20x16"):
        trained.decode(torch.zeros(1, 4, 4, 4), (20, 16))
    with pytest.raises(Error, match="has no autoencoder"):
        kuosan.load(trained_run, compute=compute()).encode(images(8, 8))


def test_an_autoencoder_makes_no_images_and_says_what_it_is_for(runs: Path) -> None:
    trained = kuosan.load(runs / "ae", compute=compute())
    for deed in (lambda: trained.sample(1), lambda: trained.restore(images(8, 8), upscale=2)):
        with pytest.raises(Error, match=r"is an autoencoder.*kuosan reconstruct RUN.*--codec RUN"):
            deed()
