"""Whether the tiles of an autoencoder show: large images encoded and decoded in tiles, against in one piece.

    python benchmarks/autoencoder_seams.py RUN photos/large --tile 128 --tile 256 --overlap 0 --overlap 0.25

A row for each way to encode and to decode, in one piece (0) or in tiles of so many pixels: gradient energy at the
tiles' edges and in the middle of their overlaps, over that of the same image in one piece (1 is no seam; geometric
mean over images, ± one standard error); the largest and the root mean square difference to one piece in grey
levels; PSNR to the truth less that in one piece, image by image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import kuosan
from kuosan.data.decoding import decode
from kuosan.data.pixels import from_uint8
from kuosan.device import ComputeConfig, choose
from kuosan.evaluate.damage import levels
from kuosan.metrics.image_quality import psnr, seam_energy
from kuosan.models.tiling import tiles

HEADS = ("overlap", "encoded in", "decoded in", "edges", "mid-overlap", "largest", "rms", "PSNR - one piece")
Way = tuple[float, int, int]  # overlap, as a part of a tile; the tiles' side in encoding, in decoding; 0: one piece


def main() -> None:
    """Encode, decode, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--tile", type=int, action="append", help="pixels a side; repeated")
    parser.add_argument("--overlap", type=float, action="append", help="part of a tile, 0 to 0.5; repeated")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("-n", type=int, default=12)
    asked = parser.parse_args()
    trained = kuosan.load(asked.run, compute=choose(ComputeConfig(precision=asked.precision)))
    files = sorted(asked.images.glob("*.png"))[: asked.n]
    sides = asked.tile or [trained.model.shape[1]]
    found: dict[Way, list[list[float]]] = {}
    alone = []
    for path in files:
        truth = torch.from_numpy(from_uint8(decode(path).pixels))[None]
        one = there_and_back(trained, truth, (0.0, 0, 0))
        alone.append(float(psnr(levels(one), levels(truth))))
        for way in ways(sides, asked.overlap or [0.25]):
            made = there_and_back(trained, truth, way)
            found.setdefault(way, []).append(apart(made, one, truth, way[2] or way[1], way[0]))
        print(f"{path.name}: {alone[-1]:.2f} dB in one piece", flush=True)
    print(f"\n{len(files)} images, {np.mean(alone):.2f} dB in one piece, {trained.compute}\n")
    print(f"| {' | '.join(HEADS)} |", "|" + "---:|" * len(HEADS), sep="\n")
    for (overlap, into, out), rows in found.items():
        print(f"| {overlap:g} | {into or 'one piece'} | {out or 'one piece'} | {' | '.join(told(np.array(rows)))} |")


def ways(sides: list[int], overlaps: list[float]) -> list[Way]:
    """Every way to encode with every way to decode; without an overlap, only in the same tiles."""
    pairs = [(into, out) for into in (0, *sides) for out in (0, *sides) if into or out]
    return [(overlap, *pair) for overlap in overlaps for pair in pairs if overlap or pair[0] == pair[1]]


def there_and_back(trained: kuosan.Trained, truth: Tensor, way: Way) -> Tensor:
    """An image encoded and decoded: (1, C, H, W)."""
    overlap, into, out = way
    factor = trained.model.config.network.factor  # type: ignore[union-attr]

    def tiling(side: int) -> dict[str, int]:
        return {"tile": side, "overlap": round(overlap * side / factor) * factor} if side else {}

    return trained.decode(trained.encode(truth, **tiling(into)), (truth.shape[2], truth.shape[3]), **tiling(out))


def apart(made: Tensor, one: Tensor, truth: Tensor, side: int, part: float) -> list[float]:
    """Seam energy over that in one piece, twice; the largest and rms difference in grey levels; PSNR gained."""
    tiled, whole, right = (levels(x)[0] for x in (made, one, truth))
    height, width = tiled.shape[1:]
    overlap = round(part * side)
    sides = (min(side, height), min(side, width))
    starts = [tiles(length, own, overlap) for length, own in zip((height, width), sides)]
    inner = (sides[0] - overlap, sides[1] - overlap)
    middles = [[start + overlap // 2 for start in each] for each in starts]
    energies = [
        seam_energy(tiled, *where, size) / seam_energy(whole, *where, size)
        for where, size in ((starts, sides), (middles, inner))
    ]
    off = (tiled.double() - whole.double()).abs()
    gained = psnr(tiled[None], right[None]) - psnr(whole[None], right[None])
    return [*energies, float(off.max()), float(off.square().mean().sqrt()), float(gained)]


def told(rows: np.ndarray) -> list[str]:
    """The cells of a row from an image's figures each."""
    error = 1 / np.sqrt(len(rows))
    cells = []
    for values in np.log(rows[:, :2]).T:
        cells.append(f"{np.exp(values.mean()):.3f} ± {values.std(ddof=1) * error:.3f}")
    cells += [f"{rows[:, 2].max():.0f}", f"{rows[:, 3].mean():.2f}"]
    return [*cells, f"{rows[:, 4].mean():+.2f} ± {rows[:, 4].std(ddof=1) * error:.2f}"]


if __name__ == "__main__":
    main()
