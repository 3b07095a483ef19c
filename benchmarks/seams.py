"""Whether tiles show: large images restored in tiles, and the gradient energy where tiles meet against elsewhere.

    python benchmarks/seams.py RUN photos/large --upscale 4 --size 192x256 -n 12
    python benchmarks/seams.py RUN photos/large --colorise

Asked at the tiles' edges, and in the middle of their overlaps, where blended tiles disagree most. An image's own
texture at those lines is not 1, so the same is asked of the same image restored in one piece from the same noise (a
U-Net takes any size), and of the truth; the ratio to the one in one piece is what tiles add: 1 is no seam. --apart
restores each tile by itself and lays them side by side, which is what blending and one noise are to prevent.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import kuosan
from kuosan.data.decoding import decode
from kuosan.data.pixels import as_written, from_uint8, to_uint8
from kuosan.metrics.image_quality import seam_energy
from kuosan.models.tiling import tiles
from kuosan.tasks.condition import shrinking


def main() -> None:
    """Restore, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--upscale", type=int)
    parser.add_argument("--colorise", action="store_true")
    parser.add_argument("--size", default="192x256", help="height x width cut from the middle")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--apart", action="store_true", help="each tile by itself, side by side")
    parser.add_argument("-n", type=int, default=12)
    asked = parser.parse_args()
    if (asked.upscale is None) == (not asked.colorise):
        parser.error("give --upscale S or --colorise")
    trained = kuosan.load(asked.run)
    height, width = (int(side) for side in asked.size.split("x"))
    rows = []
    for i, path in enumerate(sorted(asked.images.glob("*.png"))[: asked.n]):
        truth = middle(path, height, width)
        rows.append(energies(trained, truth, asked, seed=1000 * i))
        print(f"{path.name}: " + ", ".join(f"{value:.3f}" for value in rows[-1]), flush=True)
    values = np.array(rows)
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    names = [f"{what}, {where}" for what in ("in tiles", "in one piece", "truth") for where in ("edges", "mid-overlap")]
    for name, mean, each in zip(names, values.mean(0), error):
        print(f"{name}: {mean:.3f} ± {each:.3f}")
    for name, j in (("edges", 0), ("mid-overlap", 1)):
        ratio = np.log(values[:, j] / values[:, j + 2])
        spread = ratio.std(ddof=1) / np.sqrt(len(ratio))
        print(f"in tiles over in one piece, {name}: {np.exp(ratio.mean()):.3f} ± {spread:.3f}")


def middle(path: Path, height: int, width: int) -> torch.Tensor:
    """The middle of an image: (1, 3, height, width)."""
    pixels = decode(path).pixels
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return torch.from_numpy(from_uint8(pixels[top : top + height, left : left + width]))[None]


def energies(trained: kuosan.Trained, truth: torch.Tensor, asked: argparse.Namespace, seed: int) -> list[float]:
    """In tiles, in one piece, of the truth: seam energy at the tiles' edges, and in the middle of overlaps."""
    size, side = (truth.shape[2], truth.shape[3]), trained.model.shape[1]
    overlap = 0 if asked.apart else side // 4
    if asked.upscale:
        brought = truth
        for operator in shrinking(asked.upscale, size):
            brought = operator.apply(brought)
        how = {"upscale": asked.upscale}
    else:
        luma = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
        brought = (truth * luma).sum(1, keepdim=True).expand(-1, 3, -1, -1)
        how = {"colorise": True}
    brought, options = as_written(brought), {**how, "steps": asked.steps, "seed": seed}
    made = apart(trained, brought, options, side) if asked.apart else trained.restore(brought, **options)
    model = trained.model
    whole = replace(trained, model=kuosan.Model(replace(model.config, shape=(3, *size)), model.network))
    one = whole.restore(brought, **options)
    starts = [tiles(length, side, overlap) for length in size]
    inner = side - overlap
    found = []
    for image in (made[0], one[0], truth[0]):
        pixels = torch.from_numpy(to_uint8(image.numpy())).movedim(-1, 0)
        found.append(seam_energy(pixels, *starts, side))
        found.append(seam_energy(pixels, *([start + overlap // 2 for start in each] for each in starts), inner))
    return found


def apart(trained: kuosan.Trained, brought: torch.Tensor, options: dict, side: int) -> torch.Tensor:
    """Each tile restored by itself, with a seed of its own."""
    small = side // options.get("upscale", 1)
    strips = []
    for y in range(0, brought.shape[2], small):
        line = []
        for x in range(0, brought.shape[3], small):
            own = {**options, "seed": options["seed"] + len(strips) * 100 + len(line)}
            line.append(trained.restore(brought[..., y : y + small, x : x + small], **own))
        strips.append(torch.cat(line, 3))
    return torch.cat(strips, 2)


if __name__ == "__main__":
    main()
