"""Train the judge of portraits anew: `python tools/build_portrait_judge.py NODE_FOLDER`.

NODE_FOLDER and resvg-py are what tools/build_portraits.py asks for. 4,096 portraits are too few to tell every beard
by its shape, so COUNT more are drawn, of heads that are not held out, every value of every attribute equally often; the
judge (benchmarks/portrait_judge.py) is trained on them by keyed draws and written to portrait_judge.safetensors there.
About four core-minutes. The held-out portraits of the package, which it never saw, tell how good it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from build_portraits import DRAWN, HEAD, draw_held_out, draw_svgs, rasterise

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from portrait_judge import NAMES, read, save, train, values

from kuosan.data.sources import load_sheet
from kuosan.seeds import rng

COUNT, SEED = 12_000, 31


def draw_codes() -> list[str]:
    """COUNT different codes without a held-out head."""
    held_out = set(draw_held_out())
    codes: dict[str, None] = {}
    i = 0
    while len(codes) < COUNT:
        draw = rng(SEED, "judge portrait", 0, i)
        code = "".join(str(int(draw.integers(len(options)))) for _, options in DRAWN.values())
        if code[: len(HEAD)] not in held_out:
            codes.setdefault(code)
        i += 1
    return list(codes)


def main(node_folder: Path) -> None:
    """Draw, train, check, write."""
    codes = draw_codes()
    images = np.stack([rasterise(svg) for svg in draw_svgs(codes, node_folder)])
    print(f"{len(codes):,} portraits drawn", flush=True)
    judge = train(images, np.array([[int(digit) for digit in code] for code in codes]))
    real, attributes, held_out = load_sheet()
    wanted = values(attributes)[held_out]
    right = (read(judge, real[held_out]) == wanted).mean(0)
    for name, share in zip(NAMES, right):
        print(f"{name}: {share:.2%} of {len(wanted)} held-out portraits")
    save(judge)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
