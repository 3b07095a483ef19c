"""Runs of latents: encoded once and kept, measured once, gone on with bit for bit, refused with the reason."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kuosan import config as trees
from kuosan import seeds
from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.data.pixels import from_uint8
from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error
from kuosan.models import latents as folder
from kuosan.models.codec import Latents
from kuosan.models.latents import LatentCodec
from kuosan.models.model import ModelConfig
from kuosan.networks.autoencoder import Autoencoder
from kuosan.sample import pipeline
from kuosan.sample.generate import sample
from kuosan.sample.request import Request
from kuosan.storage import checkpoint
from kuosan.tasks import Generation, SuperResolution
from kuosan.train import api, latents
from kuosan.train.latents import LatentImages, autoencoder_of
from latent_models import TINY, autoencoder_run
from train.made_runs import Stopping, begin, differences, go, images, outcome

Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUOSAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run of an autoencoder of factor 2."""
    return autoencoder_run(tmp_path / "autoencoder")


def settings(run: Path, **more: Any) -> Settings:
    return {"model.codec.run": str(run), "data.size": 16, "train.max_steps": 6, **more}


def codec_of(out: Path) -> Latents:
    codec = trees.build(ModelConfig, checkpoint.load_config(out)["model"]).codec
    assert isinstance(codec, Latents)
    return codec


class Counted:
    """Counts the images that an autoencoder encodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None) -> None:
        self.images, self.fail_after, real = 0, fail_after, Autoencoder.encode

        def encode(network: Autoencoder, x: torch.Tensor) -> Any:
            self.images += len(x)
            if self.fail_after is not None and self.images > self.fail_after:
                raise KeyboardInterrupt
            return real(network, x)

        monkeypatch.setattr(Autoencoder, "encode", encode)


def test_a_latent_run_fills_in_its_network_from_the_latents_and_stores_what_it_measured(
    run: Path, tmp_path: Path
) -> None:
    data, heard = images(tmp_path / "pictures.npz", size=16), Stopping()
    assert go(tmp_path / "run", data, settings(run), report=heard) == 0
    model = checkpoint.load_config(tmp_path / "run")["model"]
    assert model["shape"] == [3, 16, 16] and model["network"]["in_channels"] == model["network"]["out_channels"] == 4
    assert model["sigma_data"] == 1.0
    held = folder.read(tmp_path / "run" / "codec")
    codec = codec_of(tmp_path / "run")
    assert codec.weights == held.sha256 and codec.network == held.network == TINY
    opened = pipeline.load(tmp_path / "run").model
    assert opened.sample_shape == (4, 8, 8)
    made = pipeline.load(tmp_path / "run").sample(2, steps=2)
    assert made.shape == (2, 3, 16, 16) and made.abs().max() <= 1
    assert any("encoded in" in text and "the next run of these images and this autoencoder saves that" in text
               for text in heard.said)  # fmt: skip


def test_shift_and_scale_are_those_of_draws_from_the_training_images_posteriors(run: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz", size=16)
    seen: list[Any] = []
    go(tmp_path / "run", data, settings(run), seen=seen)
    codec = codec_of(tmp_path / "run")
    shown = opened_images(tmp_path, data, run)
    network = Autoencoder(TINY)
    network.load_state_dict(folder.read(tmp_path / "run" / "codec").tensors)
    with torch.no_grad():
        moments = network.encode(torch.cat([shown.whole([int(i)]) for i in shown.train]))
    variance = moments.mean.var((0, 2, 3), correction=0) + moments.log_var.exp().mean((0, 2, 3))
    assert np.allclose(codec.shift, moments.mean.mean((0, 2, 3)), atol=2e-3)
    assert np.allclose(codec.scale, variance.rsqrt(), rtol=5e-3)


class Shown(LatentImages):
    """Latent images with what they are of."""

    def whole(self, ids: list[int]) -> torch.Tensor:
        return torch.from_numpy(from_uint8(np.stack([self.pixels(i) for i in ids])))


def opened_images(tmp_path: Path, data: Path, run: Path, task: Any = None, report: Any = None, **more: Any) -> Shown:
    """The latents of a data set, outside of a run."""
    held = autoencoder_of(run)
    compute = choose(ComputeConfig("cpu", "fp32", 1))
    encoding = latents.LatentEncoder.of(folder.build(held.network, held.tensors, ""), held.sha256, compute)
    options = {"hold_out": 0.2, "size": 16, "workers": 0, **more}
    shown = Shown(
        open_images(DataConfig(str(data), **options)),
        encoding,
        tmp_path / "cache",
        task or Generation(),
        report or Stopping(),
    )
    shown.fill()
    shown.open()
    shown.codec = LatentCodec(
        Latents(network=TINY, shift=(0.1,) * 4, scale=(2.0,) * 4, weights=held.sha256), encoding.network
    )
    return shown


def test_kept_latents_are_drawn_from_each_images_own_posterior(run: Path, tmp_path: Path) -> None:
    shown = opened_images(tmp_path, images(tmp_path / "p.npz", size=16), run)
    keys = [(7, "train/augment", 3, row) for row in range(4)]
    batch = shown.batch([3, 0, 3, 9], keys)
    noise = seeds.normal([(7, "train/augment/posterior", 3, row) for row in range(4)], (4, 8, 8))
    wanted = shown.codec.encode(shown.whole([3, 0, 3, 9]), noise)
    assert batch.x0.shape == (4, 4, 8, 8) and batch.latent is None
    assert torch.allclose(batch.x0, wanted, atol=2e-2)  # float16 on the shelf
    assert not torch.equal(batch.x0[0], batch.x0[2]), "an image shown twice is two draws"
    assert torch.equal(shown.batch([5]).x0, shown.batch([5]).x0), "without keys an image is always the same"


def test_mirror_images_have_latents_of_their_own(run: Path, tmp_path: Path) -> None:
    shown = opened_images(tmp_path, images(tmp_path / "p.npz", size=16), run, flip=True)
    keys = [(7, "train/augment", 0, row) for row in range(8)]
    mirrored = [bool(seeds.rng(*key).random() < 0.5) for key in keys]
    assert 0 < sum(mirrored) < 8
    x = torch.stack([each.flip(-1) if turned else each for each, turned in zip(shown.whole([2] * 8), mirrored)])
    noise = seeds.normal([(7, "train/augment/posterior", 0, row) for row in range(8)], (4, 8, 8))
    assert torch.allclose(shown.batch([2] * 8, keys).x0, shown.codec.encode(x, noise), atol=2e-2)


@pytest.mark.parametrize("flip", [False, True])
def test_an_image_that_is_there_with_several_captions_is_encoded_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flip: bool
) -> None:
    with np.load(images(tmp_path / "p.npz", size=16, n=10)) as found:
        pixels = found["images"]
    again = np.concatenate([pixels, pixels[::-1], pixels[:3]])
    np.savez(tmp_path / "again.npz", images=again)
    once = opened_images(tmp_path, tmp_path / "p.npz", run, flip=flip, hold_out=0.0)
    counted = Counted(monkeypatch)
    shown = opened_images(tmp_path, tmp_path / "again.npz", run, flip=flip, hold_out=0.0)
    assert counted.images == 10 * (1 + flip)
    keys = [(7, "train/augment", 3, row) for row in range(23)]
    same = [*range(10), *range(9, -1, -1), 0, 1, 2]
    assert torch.allclose(shown.batch(range(23), keys).x0, once.batch(same, keys).x0, atol=1e-2)


def test_a_task_that_damages_images_gets_pixels_and_the_same_latents_beside_them(run: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "p.npz", size=16)
    keys = [(7, "train/augment", 3, row) for row in range(2)]
    both = opened_images(tmp_path, data, run, SuperResolution(scale=2)).batch([1, 2], keys)
    alone = opened_images(tmp_path, data, run).batch([1, 2], keys)
    assert both.x0.shape == (2, 3, 16, 16) and both.latent is not None
    assert torch.equal(both.denoised.x0, alone.x0) and both.denoised.latent is None


def test_windows_that_are_drawn_anew_are_encoded_as_they_are_shown_and_that_is_said(
    run: Path, tmp_path: Path, cache: Path
) -> None:
    heard = Stopping()
    data = images(tmp_path / "p.npz", size=24)
    shown = opened_images(tmp_path, data, run, report=heard, resize="random_crop")
    assert not cache.exists() and any("random_crop" in text and "nothing is kept" in text for text in heard.said)
    batch = shown.batch([1, 1], [(0, "train/augment", 0, 0), (0, "train/augment", 0, 1)])
    assert batch.x0.shape == (2, 4, 8, 8) and not torch.allclose(batch.x0[0], batch.x0[1], atol=0.1)
    out = tmp_path / "run"
    assert go(out, data, settings(run, **{"data.resize": "random_crop"}), report=heard) == 0
    assert any("measured on" in text for text in heard.said)


def test_a_second_run_of_the_same_images_encodes_nothing_and_trains_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, heard = images(tmp_path / "pictures.npz", size=16), Stopping()
    go(tmp_path / "one", data, settings(run))
    counted = Counted(monkeypatch)
    go(tmp_path / "two", data, settings(run), report=heard)
    assert counted.images == 0
    assert any("from the cache" in text and "saved" in text for text in heard.said)
    assert not differences(outcome(tmp_path / "one"), outcome(tmp_path / "two"))


@pytest.mark.parametrize(
    "other",
    [{"data.flip": "true"}, {"data.resize": "stretch"}, {"model.codec.run": "another"}, {"data.path": "another"}],
    ids=lambda other: next(iter(other)),
)
def test_the_cache_of_other_images_settings_or_autoencoders_is_not_used(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Settings
) -> None:
    data = images(tmp_path / "pictures.npz", size=16)
    go(tmp_path / "one", data, settings(run))
    if "model.codec.run" in other:
        other = {"model.codec.run": str(autoencoder_run(tmp_path / "another", seed=8))}
    if "data.path" in other:
        data, other = images(tmp_path / "more.npz", size=16, seed=1), {}
    counted = Counted(monkeypatch)
    go(tmp_path / "two", data, settings(run, **other))
    assert counted.images in (30, 60)


def test_a_run_stopped_at_any_step_goes_on_bit_for_bit_even_without_its_cache_and_its_autoencoders_run(
    run: Path, tmp_path: Path, cache: Path
) -> None:
    data = images(tmp_path / "pictures.npz", size=16)
    go(tmp_path / "whole", data, settings(run))
    for k in (2, 4):
        out = tmp_path / f"at-{k}"
        assert go(out, data, settings(run), report=Stopping(k))
        if k == 4:
            shutil.rmtree(cache)
            shutil.move(run, tmp_path / "moved")
        assert go(out, data, settings(run)) == 0
        assert not differences(outcome(out), outcome(tmp_path / "whole")), k


def test_what_was_encoded_before_a_stop_is_not_encoded_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "PART", 8)
    data = images(tmp_path / "pictures.npz", size=16, n=30)
    with monkeypatch.context() as patch:
        Counted(patch, fail_after=20)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "run", data, settings(run))
    counted, heard = Counted(monkeypatch), Stopping()
    assert go(tmp_path / "run", data, settings(run), report=heard) == 0
    assert counted.images == 30 - 16
    assert any("16 from the cache" in text for text in heard.said)
    assert go(tmp_path / "other", data, settings(run)) == 0
    assert not differences(outcome(tmp_path / "run"), outcome(tmp_path / "other"))


@pytest.mark.parametrize("name", ["shift", "scale", "weights"])
def test_what_is_measured_cannot_be_typed(run: Path, tmp_path: Path, name: str) -> None:
    value: Any = "0" * 64 if name == "weights" else [1.0] * 4
    data = {"path": str(images(tmp_path / "p.npz", size=16))}
    tree = {"data": data, "model": {"codec": {"run": str(run), name: value}}}
    with pytest.raises(Error, match=rf"model.codec.{name} is given, but it is .* Leave it out"):
        api.prepare(tmp_path / "run", tree)


def test_a_codec_must_be_the_run_of_an_autoencoder_and_take_these_images(run: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "p.npz", size=16)
    go(tmp_path / "pixels", data, {"data.size": 16, "train.max_steps": 1})
    with pytest.raises(Error, match=r"a run of a unet, which makes no latents: train an autoencoder"):
        go(tmp_path / "run", data, settings(tmp_path / "pixels"))
    with pytest.raises(Error, match=r"nowhere does not exist"):
        go(tmp_path / "run", data, settings(tmp_path / "nowhere"))
    with pytest.raises(Error, match=r"multiples of 2"):
        go(tmp_path / "run", data, settings(run, **{"data.size": 15}))
    with pytest.raises(Error, match=r"in_channels = 3, but the images' latents have 4"):
        go(tmp_path / "run", data, settings(run, **{"model.network.in_channels": 3}))
    with pytest.raises(Error, match=r"name the run of an autoencoder"):
        go(tmp_path / "run", data, {"data.size": 16, "model.codec.kind": "latents"})


def test_a_run_keeps_to_its_autoencoder(run: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "p.npz", size=16)
    go(tmp_path / "run", data, settings(run))
    other = autoencoder_run(tmp_path / "another", seed=8)
    with pytest.raises(Error, match=r"model.codec.weights"):
        go(tmp_path / "run", data, settings(other, **{"train.max_steps": 7}))
    with pytest.raises(Error, match=r"model.codec.kind: the run has 'latents', now 'pixels'"):
        go(tmp_path / "run", data, {"data.size": 16, "train.max_steps": 7})


def test_a_latent_runs_autoencoder_serves_another_run(run: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "p.npz", size=16)
    go(tmp_path / "one", data, settings(run))
    assert go(tmp_path / "two", data, settings(tmp_path / "one")) == 0
    one, two = codec_of(tmp_path / "one"), codec_of(tmp_path / "two")
    assert (one.weights, one.shift, one.scale) == (two.weights, two.shift, two.scale)


def test_a_model_opens_from_a_checkpoint_and_not_without_its_codec(run: Path, tmp_path: Path) -> None:
    data = images(tmp_path / "p.npz", size=16)
    go(tmp_path / "run", data, settings(run))
    newest = checkpoint.latest(tmp_path / "run").path
    assert newest is not None
    request = {"n": 1, "steps": 2}
    assert torch.equal(pipeline.load(newest).sample(**request), pipeline.load(tmp_path / "run").sample(**request))
    shutil.move(tmp_path / "run" / "codec", tmp_path / "codec")
    with pytest.raises(Error, match=r"its autoencoder is missing: the folder codec/ belongs beside checkpoints/"):
        pipeline.load(tmp_path / "run")


def test_a_classifier_of_latents_guides_a_model_of_the_same_and_no_other(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "pictures"
    for i in range(20):
        (data / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = seeds.rng(i, "test/pictures").integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / "ab"[i % 2] / f"{i}.png")
    small = {"model.network.channels": 16, "model.network.groups": 8, "model.network.multipliers": [1]}
    judge = {"train.objective": "classifier", "model.network.attention": ["false"], **small}
    go(tmp_path / "model", data, settings(run))
    go(tmp_path / "judge", data, settings(run, **judge))
    go(tmp_path / "pixels", data, {"data.size": 16, "train.max_steps": 1, **judge})
    model = pipeline.load(tmp_path / "model")
    asked = {"n": 2, "steps": 2, "classes": ("a",), "classifier_scale": 5.0}
    guided = model.sample(**asked, classifier=str(tmp_path / "judge"))
    assert not torch.equal(guided, model.sample(n=2, steps=2))
    with pytest.raises(Error, match=r"sees images themselves, and this model an autoencoder's latents"):
        model.sample(**asked, classifier=str(tmp_path / "pixels"))
    with pytest.raises(Error, match=r"leave --codec out"):
        go(tmp_path / "clean", data, settings(run, **judge, **{"model.network.noisy": "false"}))


@pytest.mark.parametrize(
    "task",
    [{"model.task.kind": "super_resolution", "model.task.scale": 2, "model.task.noise": 5.0},
     {"model.task.kind": "inpainting"}],
    ids=["super_resolution", "inpainting"],
)  # fmt: skip
def test_tasks_that_restore_train_and_restore_on_latents(run: Path, tmp_path: Path, task: Settings) -> None:
    data = images(tmp_path / "p.npz", size=16)
    more = {"train.preview_every": 6, "train.preview_pictures": 2, "train.preview_steps": 2}
    assert go(tmp_path / "run", data, settings(run, **task, **more)) == 0
    network = checkpoint.load_config(tmp_path / "run")["model"]["network"]
    assert network["concat_channels"] == 5  # four channels of latents, and the noise or the mask
    assert (tmp_path / "run" / "samples" / "step-00000006.png").is_file()
    model = pipeline.load(tmp_path / "run")
    x = seeds.normal([(0, "test/x", 0, 0)], (3, 16, 16)).clamp(-1, 1)
    if task["model.task.kind"] == "super_resolution":
        made = model.restore(x[..., ::2, ::2], upscale=2, steps=2)
        assert made.shape == (1, 3, 16, 16)
        return
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., 5:11, 5:11] = 1
    made = model.restore(x, hole, steps=2)
    assert torch.equal(torch.where(hole > 0, 0.0, made), torch.where(hole > 0, 0.0, x)), "known pixels, bit for bit"


def test_buckets_of_several_shapes_have_a_shelf_each(run: Path, tmp_path: Path, cache: Path) -> None:
    data = tmp_path / "pictures"
    data.mkdir()
    for i in range(24):
        shape = ((16, 16), (12, 20), (20, 12))[i % 3]
        pixels = seeds.rng(i, "test/pictures").integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / f"{i}.png")
    more = {"data.resize": "buckets", "data.bucket_step": 4, "train.batch": 3}
    assert go(tmp_path / "run", data, settings(run, **more)) == 0
    assert len(list((cache / "latents").iterdir())) == 3
    made = pipeline.load(tmp_path / "run").sample(1, steps=2, size=(20, 12))
    assert made.shape == (1, 3, 12, 20)


def test_a_dry_run_writes_nothing(run: Path, tmp_path: Path, cache: Path) -> None:
    made = begin(tmp_path / "run", images(tmp_path / "p.npz", size=16), settings(run), dry=True)
    assert made.batches.draw(0).batch.x0.shape == (5, 4, 8, 8)
    assert not cache.exists() and not (tmp_path / "run").exists()


def test_requests_of_latents_keep_an_images_bits_whatever_stands_beside_it(run: Path, tmp_path: Path) -> None:
    go(tmp_path / "run", images(tmp_path / "p.npz", size=16), settings(run))
    model = pipeline.load(tmp_path / "run").model
    whole = sample(model, Request(9, steps=2, exact=True))
    for i in (2, 8):
        assert torch.equal(sample(model, Request(1, seed=i, steps=2, exact=True))[0], whole[i])
