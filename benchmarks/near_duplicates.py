"""How many planted near duplicates are found, and how many images are wrongly taken for some.

python benchmarks/near_duplicates.py portraits
python benchmarks/near_duplicates.py FOLDER --n 300
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from kuosan.data.config import DataConfig
from kuosan.data.decoding import decode
from kuosan.data.near_duplicates import View, near_duplicates
from kuosan.data.sources import find_source
from kuosan.seeds import rng

HOW = Image.Resampling


def image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def array(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    return values[..., None] if values.ndim == 2 else values


def lossy(kind: str, quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def made(pixels: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        image(pixels).save(buffer, kind, quality=quality)
        return array(Image.open(buffer).convert("L" if pixels.shape[2] == 1 else "RGB"))

    return made


def resized(factor: float, how: Image.Resampling = HOW.BICUBIC) -> Callable[[np.ndarray], np.ndarray]:
    def made(pixels: np.ndarray) -> np.ndarray:
        h, w = pixels.shape[:2]
        return array(image(pixels).resize((max(1, round(w * factor)), max(1, round(h * factor))), how))

    return made


def cropped(pixels: np.ndarray) -> np.ndarray:
    y, x = (max(1, round(0.02 * side)) for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[y:-y, x:-x])


def brighter(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: np.clip(np.rint(pixels * factor), 0, 255).astype(np.uint8)


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{f"JPEG {quality}": lossy("JPEG", quality) for quality in (95, 75, 50)},
    **{f"WebP {quality}": lossy("WEBP", quality) for quality in (80, 50)},
    **{f"x {factor}": resized(factor) for factor in (0.5, 0.75, 1.5, 2.0)},
    **{f"x 0.5 {how.name.lower()}": resized(0.5, how) for how in (HOW.LANCZOS, HOW.BILINEAR, HOW.BOX)},
    "x 2 bilinear": resized(2.0, HOW.BILINEAR),
    "cropped": cropped,
    "cropped, JPEG 75": lambda pixels: lossy("JPEG", 75)(cropped(pixels)),
    "cropped, x 0.5": lambda pixels: resized(0.5)(cropped(pixels)),
    "brightness x 1.05": brighter(1.05),
    "brightness x 0.95": brighter(0.95),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder, zip, IDX or npz file, or portraits")
    parser.add_argument("--n", type=int, default=100, help="images that each kind is planted of")
    parser.add_argument("--most", type=int, default=20_000, help="images that are compared")
    asked = parser.parse_args()
    source = find_source(DataConfig(asked.data))
    entries = source.listing().entries[: asked.most]
    read = (source.read(entry, i) for i, entry in enumerate(entries))
    own = [decode(each).pixels if isinstance(each, bytes) else each for each in read]
    begun = time.process_time()
    views = [View.of(pixels) for pixels in own]
    viewed = time.process_time()
    pairs = list(near_duplicates(views))
    images = {i for a, b, _ in pairs for i in (a, b)}
    per = 1000 / len(own)
    print(f"{len(own):,} images: {len(pairs)} pairs alike, {len(images)} images ({len(images) / len(own):.2%}).")
    print(
        f"1,000 images: {(viewed - begun) * per:.2f} s of views, {(time.process_time() - viewed) * per:.2f} s compared."
    )
    for a, b, distance in sorted(pairs, key=lambda pair: pair[2])[:20]:
        print(f"  {distance:.3f}  {entries[a].name}  {entries[b].name}")
    chosen = rng(1, "benchmark/near").choice(len(own), min(asked.n, len(own)), replace=False)
    for name, change in KINDS.items():
        planted = [views[i] for i in chosen] + [View.of(change(own[i])) for i in chosen]
        found = {(a, b) for a, b, _ in near_duplicates(planted)}
        share = sum((i, len(chosen) + i) in found for i in range(len(chosen))) / len(chosen)
        print(f"{name:20} {share:7.1%}", flush=True)


if __name__ == "__main__":
    main()
