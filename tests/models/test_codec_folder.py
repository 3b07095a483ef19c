"""The autoencoder that a run carries: written whole, found from wherever a model is opened, checked to the byte."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kuosan.errors import Error
from kuosan.models import latents
from kuosan.models.codec import PIXELS, Latents, Pixels
from kuosan.models.latents import Held
from kuosan.networks.autoencoder import Autoencoder
from latent_models import TINY


def autoencoder(seed: int = 1, critic: int = 0) -> Held:
    config = replace(TINY, critic_channels=critic)
    return latents.held(config, Autoencoder(config, seed).state_dict())


def run_with_codec(path: Path, held: Held) -> Path:
    latents.write(path, held)
    (path / "checkpoints" / "step-00000001").mkdir(parents=True)
    return path


def test_a_written_codec_is_read_again_without_the_discriminator(tmp_path: Path) -> None:
    held = autoencoder(critic=8)
    assert not any(name.startswith("critic.") for name in held.tensors)
    latents.write(tmp_path / "run", held)
    read = latents.read(tmp_path / "run" / "codec")
    assert read.network == TINY and read.sha256 == held.sha256
    assert all(torch.equal(read.tensors[name], weight) for name, weight in held.tensors.items())
    assert sorted(path.name for path in (tmp_path / "run" / "codec").iterdir()) == [
        "config.yaml",
        "ema.safetensors",
        "manifest.json",
    ]


def test_writing_the_same_again_leaves_the_files_alone_and_another_replaces_them(tmp_path: Path) -> None:
    latents.write(tmp_path, autoencoder(1))
    before = (tmp_path / "codec" / "ema.safetensors").stat().st_mtime_ns
    latents.write(tmp_path, autoencoder(1))
    assert (tmp_path / "codec" / "ema.safetensors").stat().st_mtime_ns == before
    latents.write(tmp_path, autoencoder(2))
    assert latents.read(tmp_path / "codec").sha256 == autoencoder(2).sha256


def test_the_codec_is_found_from_the_run_a_checkpoint_an_export_and_itself(tmp_path: Path) -> None:
    run = run_with_codec(tmp_path / "run", autoencoder())
    wanted = (run / "codec").resolve()
    export = tmp_path / "export"
    export.mkdir()
    shutil.copytree(run / "codec", export / "codec")
    for path, found in (
        (run, wanted),
        (run / "checkpoints" / "step-00000001", wanted),
        (run / "codec", wanted),
        (export, export / "codec"),
    ):
        place = latents.find(path)
        assert place is not None and place.resolve() == found.resolve(), path
    (export / "other").mkdir()
    assert latents.find(tmp_path / "elsewhere") is None
    assert latents.find(export / "other") is None, "a neighbour's codec is none of its own"


def test_a_missing_codec_says_where_it_belongs_and_where_it_came_from(tmp_path: Path) -> None:
    config = Latents(run="runs/ae", network=TINY, weights=autoencoder().sha256)
    with pytest.raises(Error, match=r"autoencoder is missing: the folder codec/ belongs beside .* came from runs/ae"):
        latents.of_run(config, tmp_path)


def test_another_autoencoder_than_the_runs_is_refused(tmp_path: Path) -> None:
    run = run_with_codec(tmp_path / "run", autoencoder(2))
    with pytest.raises(Error, match=r"another autoencoder .* put that one back"):
        latents.of_run(Latents(network=TINY, weights=autoencoder(1).sha256), run)


@pytest.mark.parametrize("name", ["ema.safetensors", "config.yaml"])
def test_a_damaged_codec_is_refused(tmp_path: Path, name: str) -> None:
    run = run_with_codec(tmp_path / "run", autoencoder())
    content = bytearray((run / "codec" / name).read_bytes())
    content[-3] ^= 1
    (run / "codec" / name).write_bytes(content)
    with pytest.raises(Error, match=r"damaged|edited"):
        latents.read(run / "codec")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    held = autoencoder()
    with pytest.raises(Error, match="the weights do not fit the autoencoder"):
        latents.build(replace(TINY, channels=16), held.tensors, "runs/ae")


def test_opened_codecs_encode_as_the_autoencoder_does_and_pixels_need_none(tmp_path: Path) -> None:
    held = autoencoder()
    config = Latents(network=TINY, shift=(0.0,) * 4, scale=(1.0,) * 4, weights=held.sha256)
    x = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8)
    wanted = Autoencoder(TINY, 1).encode(x).mean.detach()
    assert torch.allclose(latents.opened(config, held).encode(x), wanted, atol=1e-5)
    assert latents.opened(Pixels(), None) is PIXELS
