"""`kuosan invert`: pictures to their noise and back, and how much is lost on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from kuosan.cli.console import say, warn
from kuosan.cli.numbers import Whole
from kuosan.device import ComputeConfig
from kuosan.errors import Error

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.trained import Trained

NOISE = "noise.safetensors"


def invert(
    run: Path,
    *pictures: Path,
    steps: Whole = 50,
    spacing: str | None = None,
    iterations: Whole = 0,
    between: Whole | None = None,
    classes: Annotated[list[str] | None, Parameter(name="--class", negative=())] = None,
    out: Path | None = None,
    device: str = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    threads: Whole = 0,
) -> None:
    """Encode PICTURES to noise with the model in RUN (DDIM inversion), decode it again, and say how like they are.

    Parameters
    ----------
    run
        A run's folder, or one of its checkpoints.
    pictures
        Picture files.
    steps
        Steps each way.
    spacing
        Where the steps lie: trailing, leading, linspace, log_snr or karras.
    iterations
        How often each step to the noise asks the network again; 0 is the published inversion, 3 is nearly exact.
    between
        Of two pictures: how many to make on the way from one to the other, the ends among them.
    classes
        The pictures' classes, in turn; no class if not given.
    out
        The folder to write; RUN/inversions if not given.
    device
        auto, cpu, cuda, cuda:1 or mps.
    precision
        What the network computes in; auto is fp32 here: in bf16 the way back is a little less exact.
    threads
        Processor threads; 0 lets torch choose.
    """
    if not pictures:
        raise Error("no pictures given: kuosan invert RUN PICTURE [PICTURE ...].")
    import torch

    from kuosan import outputs
    from kuosan import trained as opening
    from kuosan.cli.picture_folder import of_run
    from kuosan.data.images import save_png, to_uint8
    from kuosan.device import choose
    from kuosan.evaluate.reference import psnr
    from kuosan.model import require_whole
    from kuosan.sample.inversion import Way, check_ends, round_trip
    from kuosan.sample.recipe import fingerprint

    where = ComputeConfig(device, "fp32" if precision == "auto" else precision, threads)
    trained = opening.load(run, compute=choose(where))
    require_whole(trained.model.config, "inversion")
    warn(trained.warnings)
    Way(trained.model, steps, spacing, iterations, tuple(classes or ()))  # refused before anything is written
    if between is not None:
        check_ends(len(pictures), between, classes or ())
    x0 = torch.stack([opening.picture(trained.model, path, trained.reading, say) for path in pictures])
    options: dict[str, Any] = {
        "steps": steps, "spacing": spacing, "iterations": iterations, "classes": list(classes or ()),
    }  # fmt: skip
    about = {"weights": trained.weights, "compute": str(trained.compute), "between": between, **options}
    about["inputs"] = [[path.name, fingerprint(x)] for path, x in zip(pictures, x0)]
    names = _names(pictures, between)
    if out is None:  # never inside a checkpoint, which holds nothing else
        claim = outputs.claimed_unused(of_run(run, "inversions", "{}-inversions"), "invert", about, names)
    else:
        claim = outputs.claimed(out, "invert", about, names)
    with claim as output:
        folder = output.folder
        if between is not None:
            _between(trained, x0, between, folder, options)
            return
        calls = steps * (iterations + 2)
        say(f"compute: {trained.compute}; {steps} steps each way, {calls} network evaluations a picture; into {folder}")
        found = round_trip(trained.model, x0, **options)
        back, before = to_uint8(found.back.numpy()), to_uint8(x0.numpy())
        values = psnr(*(torch.from_numpy(bytes_).movedim(-1, 1) for bytes_ in (back, before)))
        for i, path in enumerate(pictures):
            save_png(folder / names[i], back[i])
            say(f"{path}: {float(values[i]):.2f} dB")
        _write_noise(folder / NOISE, found.noise)
    std, mean = float(found.noise.std()), float(found.noise.mean())
    say(f"mean PSNR {float(values.mean()):.2f} dB; the noise has mean {mean:.3f} and standard deviation {std:.3f}")
    say(f"written: {folder} (0000-NAME.png ..., {NOISE})")


def _names(pictures: Sequence[Path], between: int | None) -> list[str]:
    """The files that are written."""
    if between is not None:
        return [*(f"between-{i:04d}.png" for i in range(between)), "between.png"]
    return [*(f"{i:04d}-{path.stem}.png" for i, path in enumerate(pictures)), NOISE]


def _write_noise(path: Path, noise: Tensor) -> None:
    """The noise as a safetensors file, whole or not at all."""
    from kuosan.files import PARTIAL, write_atomic
    from kuosan.weights import write

    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as aside:
        write(Path(aside) / path.name, {"noise": noise.contiguous()})
        content = (Path(aside) / path.name).read_bytes()
    write_atomic(path, content)


def _between(trained: Trained, x0: Tensor, n: int, folder: Path, options: dict[str, Any]) -> None:
    """Make and write the pictures on the way from one to the other."""
    from kuosan.data.images import save_png, to_uint8
    from kuosan.sample.inversion import between
    from kuosan.sample.write import sheet

    calls = 2 * options["steps"] * (options["iterations"] + 1) + n * options["steps"]
    say(f"compute: {trained.compute}; {n} pictures between two, {calls} network evaluations in all; into {folder}")
    made = between(trained.model, x0, n, **options)
    for i, picture in enumerate(to_uint8(made.numpy())):
        save_png(folder / f"between-{i:04d}.png", picture)
    sheet(folder / "between.png", [x0[:1], made, x0[1:]], n + 2)
    say(f"written: {folder} (between-0000.png ..., between.png: the first picture, the way, the second)")
