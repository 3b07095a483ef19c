"""Whether the tiles of an autoencoder show: large pictures encoded and decoded in tiles, against in one piece.

    python benchmarks/autoencoder_seams.py RUN photos/large --tile 128 --tile 256 --overlap 0 --overlap 0.25

A row a tile size and overlap: gradient energy at the tiles' edges and in the middle of their overlaps, over that of the
same picture in one piece (1 is no seam; geometric mean over pictures, ± one standard error); the largest and the root
mean square difference to one piece in grey levels; PSNR to the truth in tiles less that in one piece, picture by
picture. "decoded" takes the latents in one piece, and tells the decoder's part.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import kuosan
from kuosan.data.decoding import decode
from kuosan.data.images import from_uint8
from kuosan.device import ComputeConfig, choose
from kuosan.evaluate.distortion import levels
from kuosan.evaluate.reference import psnr
from kuosan.evaluate.seams import seam_energy
from kuosan.networks.tiled import tiles

HEADS = ("tile", "overlap", "what", "edges", "mid-overlap", "largest", "rms", "PSNR - one piece")


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
    files = sorted(asked.pictures.glob("*.png"))[: asked.n]
    factor = trained.model.config.network.factor  # type: ignore[union-attr]
    combinations = [
        (side, round(part * side / factor) * factor)
        for side in asked.tile or (trained.model.shape[1],)
        for part in asked.overlap or (0.25,)
    ]
    found: dict[tuple[int, int, str], list[list[float]]] = {}
    whole_psnr = []
    for path in files:
        truth = torch.from_numpy(from_uint8(decode(path).pixels))[None]
        z = trained.encode(truth)
        one = trained.decode(z, truth.shape[2:])
        whole_psnr.append(float(psnr(levels(one), levels(truth))))
        for side, overlap in combinations:
            both = trained.decode(
                trained.encode(truth, tile=side, overlap=overlap), truth.shape[2:], tile=side, overlap=overlap
            )
            decoded = trained.decode(z, truth.shape[2:], tile=side, overlap=overlap)
            for what, made in (("both", both), ("decoded", decoded)):
                found.setdefault((side, overlap, what), []).append(apart(made, one, truth, side, overlap))
        print(f"{path.name}: {whole_psnr[-1]:.2f} dB in one piece", flush=True)
    print(f"\n{len(files)} pictures, {np.mean(whole_psnr):.2f} dB in one piece, {trained.compute}\n")
    print(f"| {' | '.join(HEADS)} |", "|" + "---:|" * len(HEADS), sep="\n")
    for (side, overlap, what), rows in found.items():
        print(f"| {side} | {overlap} | {what} | {' | '.join(told(np.array(rows)))} |")


def apart(made: Tensor, one: Tensor, truth: Tensor, side: int, overlap: int) -> list[float]:
    """Seam energy over that in one piece, twice; the largest and rms difference in grey levels; PSNR gained."""
    tiled, whole, right = (levels(x)[0] for x in (made, one, truth))
    height, width = tiled.shape[1:]
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
    """The cells of a row from a picture's figures each."""
    error = 1 / np.sqrt(len(rows))
    cells = []
    for values in np.log(rows[:, :2]).T:
        cells.append(f"{np.exp(values.mean()):.3f} ± {values.std(ddof=1) * error:.3f}")
    cells += [f"{rows[:, 2].max():.0f}", f"{rows[:, 3].mean():.2f}"]
    return [*cells, f"{rows[:, 4].mean():+.3f} ± {rows[:, 4].std(ddof=1) * error:.3f}"]


if __name__ == "__main__":
    main()
