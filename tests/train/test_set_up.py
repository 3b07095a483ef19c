"""What lies in a run's folder before its first save, and its copy of an autoencoder: completed, mended or left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from kuosan import Error
from kuosan.data.config import DataConfig
from kuosan.storage import checkpoint
from kuosan.storage.files import Lock
from kuosan.train import config
from latent_models import autoencoder_run
from shell import mostly_slow, tree
from train.made_runs import Stopping, begin, differences, go, images, outcome
from train.test_damage import WAYS

OF_A_CODEC = ("config.yaml", "ema.safetensors", "manifest.json")
TABLE = mostly_slow(product(OF_A_CODEC, WAYS), *zip(OF_A_CODEC, WAYS))


class Latents:
    """A latent run of two steps, whole, and copies of it and of its autoencoder to spoil."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, images(folder / "pictures.npz", size=16)
        self.source = autoencoder_run(folder / "autoencoder")
        self.settings: dict[str, Any] = {"model.codec.run": str(self.source), "train.max_steps": 2, "data.size": 16}
        self.settings |= {"data.cache": str(folder / "cache"), "train.save_every": 1, "train.evaluate_every": 0}
        go(folder / "whole", self.data, self.settings)

    def copy(self) -> Path:
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        return shutil.copytree(self.folder / "whole", self.folder / "copy")

    def go_on(self, out: Path, **more: Any) -> list[str]:
        report = Stopping()
        assert go(out, self.data, {**self.settings, "train.max_steps": 3, **more}, report=report) == 0
        return report.said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Latents:
    return Latents(tmp_path_factory.mktemp("set_up"))


@pytest.mark.parametrize(("name", "way"), TABLE)
def test_a_damaged_copy_of_the_autoencoder_is_made_again(made: Latents, name: str, way: Callable[[Path], None]) -> None:
    out = made.copy()
    way(out / "codec" / name)
    report = Stopping()
    run = begin(out, made.data, {**made.settings, "train.max_steps": 3}, report=report)
    run.lock and run.lock.release()
    assert sum("copied again from" in line and str(made.source) in line for line in report.said) == 1, report.said
    assert tree(out / "codec") == tree(made.folder / "whole" / "codec")


def test_a_damaged_copy_is_refused_where_its_source_is_gone_or_was_trained_on(made: Latents, tmp_path: Path) -> None:
    out = made.copy()
    (out / "codec" / "ema.safetensors").write_bytes(b"")
    other = autoencoder_run(tmp_path / "other", seed=9)
    kept = made.source.rename(made.folder / "kept")
    try:
        with pytest.raises(Error, match=r"ema.safetensors is damaged.*gone or has other weights.*--codec RUN"):
            made.go_on(out)
        other.rename(made.source)
        with pytest.raises(Error, match="gone or has other weights"):
            made.go_on(out)
        shutil.rmtree(made.source)
        said = made.go_on(out, **{"model.codec.run": str(kept)})  # named where it is now
        assert any(f"copied again from {kept}" in line for line in said), said
    finally:
        kept.rename(made.source)


def test_a_file_of_a_users_in_the_codec_is_not_deleted(made: Latents) -> None:
    out = made.copy()
    (out / "codec" / "notes.txt").write_text("mine")
    (out / "codec" / "ema.safetensors").write_bytes(b"")
    with pytest.raises(Error, match=r"notes\.txt is no part of a codec"):
        made.go_on(out)
    assert (out / "codec" / "notes.txt").read_text() == "mine"


def leave(out: Path, *names: str) -> None:
    for path in out.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    "names", [(".lock", "codec"), ("config.yaml",), ("config.yaml", "data.json", "codec"), (".lock",)]
)
def test_what_a_run_left_before_its_first_save_is_completed(made: Latents, names: tuple[str, ...]) -> None:
    out = made.copy()
    leave(out, *names)
    assert go(out, made.data, made.settings) == 0
    assert not differences(outcome(out), outcome(made.folder / "whole"))
    assert tree(out / "codec") == tree(made.folder / "whole" / "codec")


FOREIGN: dict[str, dict[str, str]] = {
    "a codec without a lock": {"codec/config.yaml": "a", "codec/ema.safetensors": "b", "codec/manifest.json": "c"},
    "a codec that is none, with a lock": {".lock": "process 1 on x", "codec/notes.txt": "mine"},
    "a log alone": {"log.jsonl": '{"step": 1}\n'},
    "another tool's configuration": {"config.yaml": "optimizer:\n  lr: 1\n", "notes.txt": "mine"},
    "another tool's checkpoints": {"checkpoints/model-500.pt": "x"},
    "images": {"a.png": "x"},
    "an empty configuration": {"config.yaml": ""},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_folder_of_a_users_own_is_refused_and_left_as_it_is(made: Latents, what: str, tmp_path: Path) -> None:
    for name, text in FOREIGN[what].items():
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = tree(tmp_path / "run")
    with pytest.raises(Error, match="run"):
        go(tmp_path / "run", made.data, made.settings)
    assert tree(tmp_path / "run") == before


def test_a_configuration_written_by_hand_is_kept_beside(made: Latents, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("train: {lr: 0.001}  # my favourite\n")
    report = Stopping()
    go(out, made.data, {**made.settings, "train.max_steps": 1}, report=report)
    assert (out / "config.before.yaml").read_text() == "train: {lr: 0.001}  # my favourite\n"
    assert sum("config.before.yaml" in line for line in report.said) == 1
    assert checkpoint.load(out, parts=()).step == 1


@pytest.mark.parametrize(
    "text", ["data:\n  flip: false\n", "train: {lr: 0.001}  # mine\n", "model:\n  prediction: v\n"]
)
def test_a_run_begun_where_a_configuration_was_written_by_hand_has_todays_versions(tmp_path: Path, text: str) -> None:
    data, out = images(tmp_path / "images.npz"), tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text(text)
    go(out, data, {"train.max_steps": 1})
    found, usual = checkpoint.load_config(out), DataConfig()
    assert (found["data"]["layout"], found["data"]["split_version"]) == (usual.layout, usual.split_version)
    assert (found["defaults"], found["model"]["prediction"]) == (config.VERSION, "x0")
    assert (out / "config.before.yaml").read_text() == text


def test_a_cache_that_is_deleted_while_it_is_filled_or_used_is_made_again(made: Latents, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    class Deleting(Stopping):
        def step(self, row: dict[str, Any], max_steps: int) -> None:
            shutil.rmtree(cache, ignore_errors=True)

    out = tmp_path / "run"
    go(out, made.data, {**made.settings, "data.cache": str(cache)}, report=Deleting())
    assert not differences(outcome(out), outcome(made.folder / "whole"))
    assert not cache.exists()
    go(out, made.data, {**made.settings, "data.cache": str(cache), "train.max_steps": 3})
    assert cache.exists()
    Lock(out).release()
