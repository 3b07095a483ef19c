"""`kuosan invert` as a job: images to their noise and back (`plan_invert`, `run_invert`), and how much is lost."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuosan.device import ComputeConfig
from kuosan.errors import Error
from kuosan.events import Event, Fact, Finished, OnEvent, Wrote, counted

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.sample.inversion import Way
    from kuosan.sample.pipeline import Pipeline
    from kuosan.storage.outputs import Output

NOISE = "noise.safetensors"


@dataclass(frozen=True)
class InvertJob:
    """Images to encode to noise and decode again, or to interpolate.

    Raises:
        Error: what no model could do.
    """

    run: str = field(default="", metadata={"option": False})  # a run's folder, or one of its checkpoints
    images: tuple[str, ...] = field(default=(), metadata={"option": False})  # files
    steps: int = 50  # steps each way
    spacing: str | None = None  # where the steps lie: trailing, leading, linspace, log_snr or karras
    iterations: int = 0  # how often each step to the noise asks the network again; 0: as published, 3: nearly exact
    between: int | None = None  # of two images: how many to make on the way from one to the other, the ends among them
    classes: tuple[str, ...] = field(
        default=(), metadata={"flags": ("class",), "whole": True}
    )  # the images' classes, in turn, with commas; no class if not given
    out: str | None = None  # the folder to write; RUN/inversions if not given
    compute: ComputeConfig = field(default_factory=ComputeConfig)  # auto is fp32 here: bf16's way back is less exact

    def __post_init__(self) -> None:
        if not self.images:
            raise Error("no images given: kuosan invert RUN IMAGE [IMAGE ...].")


@dataclass(frozen=True)
class InvertPlan:
    """A job whose run and images are open, and whose way is checked."""

    job: InvertJob
    pipeline: Pipeline
    way: Way
    x0: Tensor  # (n, C, H, W) in [-1, 1]
    notes: tuple[str, ...]  # what was done to the images, in words

    @property
    def nfe(self) -> int:
        """Network evaluations an image, or in all where images are made between two."""
        job = self.job
        if job.between is not None:
            return 2 * job.steps * (job.iterations + 1) + job.between * job.steps
        return job.steps * (job.iterations + 2)

    def names(self) -> list[str]:
        """The files that are written."""
        if self.job.between is not None:
            return [*(f"between-{i:04d}.png" for i in range(self.job.between)), "between.png"]
        return [*(f"{i:04d}-{Path(name).stem}.png" for i, name in enumerate(self.job.images)), NOISE]


@dataclass(frozen=True)
class Inverted:
    """What `run_invert` came to; psnr is of each image, in dB."""

    folder: Path
    psnr: tuple[float, ...] = ()
    noise_mean: float | None = None
    noise_std: float | None = None


def plan_invert(job: InvertJob, on_event: OnEvent | None = None) -> InvertPlan:
    """Open the run and the images, each once, and check the way. Writes nothing.

    Args:
        on_event: called with the Progress of opening images.

    Raises:
        Error: a run that is not inverted, or images that it does not take.
    """
    import torch

    from kuosan.device import choose
    from kuosan.models.model import require_whole
    from kuosan.sample import pipeline as opening
    from kuosan.sample.inversion import Way, check_ends

    compute = job.compute if job.compute.precision != "auto" else replace(job.compute, precision="fp32")
    pipeline = opening.load(job.run, compute=choose(compute))
    require_whole(pipeline.model.config, "inversion")
    way = Way(pipeline.model, job.steps, job.spacing, job.iterations, job.classes)
    if job.between is not None:
        check_ends(len(job.images), job.between, job.classes)
    notes, images, progress = list[str](), list[torch.Tensor](), counted(on_event)
    for done, each in enumerate(job.images, 1):
        images.append(opening.image(pipeline.model, Path(each), pipeline.reading, notes.append))
        progress("opening images", done, len(job.images))
    return InvertPlan(job, pipeline, way, torch.stack(images), tuple(notes))


def run_invert(plan: InvertPlan) -> Iterator[Event]:
    """Invert and write: Wrote the folder and each file, Fact of each image's PSNR, Finished.

    Raises:
        Error: a folder that cannot be written, or an inversion that diverged.
    """
    from kuosan.data.config import RGBA
    from kuosan.data.pixels import from_uint8, save_png, to_uint8

    job, names = plan.job, plan.names()
    with _claim(plan) as output:
        folder = output.folder
        yield Wrote(folder)
        if job.between is not None:
            from kuosan.sample.generate import snap_alpha
            from kuosan.sample.inversion import on_the_way
            from kuosan.sample.write import sheet

            made = on_the_way(plan.way, plan.x0, job.between)
            made = snap_alpha(made) if made.shape[1] == RGBA else made
            for name, image in zip(names, to_uint8(made.numpy())):
                save_png(folder / name, image)
                yield Wrote(folder / name)
            sheet(folder / names[-1], [plan.x0[:1], made, plan.x0[1:]], job.between + 2)
            yield Finished(Inverted(folder))
            return
        import torch

        from kuosan.metrics.image_quality import psnr

        noise = plan.way.encode(plan.x0)
        back, before = to_uint8(plan.way.decode(noise).clamp(-1, 1).numpy()), to_uint8(plan.x0.numpy())
        if plan.x0.shape[1] == RGBA:  # as bytes, colours that hardly show would count as much as any
            values = psnr(torch.from_numpy(from_uint8(back)), torch.from_numpy(from_uint8(before)))
        else:
            values = psnr(*(torch.from_numpy(bytes_).movedim(-1, 1) for bytes_ in (back, before)))
        for name, image, value, original in zip(names, back, values, job.images):
            save_png(folder / name, image)
            yield Wrote(folder / name)
            yield Fact("image", {"path": original, "psnr": float(value)})
        _write_noise(folder / NOISE, noise)
    yield Finished(Inverted(folder, tuple(map(float, values)), float(noise.mean()), float(noise.std())))


def _claim(plan: InvertPlan) -> AbstractContextManager[Output]:
    """The folder to write."""
    from kuosan.sample.recipe import fingerprint
    from kuosan.sample.write import of_run
    from kuosan.storage import outputs

    job = plan.job
    about: dict[str, Any] = {
        "weights": plan.pipeline.weights, "compute": str(plan.pipeline.compute), "between": job.between,
        "steps": job.steps, "spacing": job.spacing, "iterations": job.iterations, "classes": list(job.classes),
    }  # fmt: skip
    about["inputs"] = [[Path(each).name, fingerprint(x)] for each, x in zip(job.images, plan.x0)]
    if job.out is None:  # never inside a checkpoint, which holds nothing else
        home = of_run(Path(job.run), "inversions", "{}-inversions")
        return outputs.claimed_unused(home, "invert", about, plan.names())
    return outputs.claimed(Path(job.out), "invert", about, plan.names())


def _write_noise(path: Path, noise: Tensor) -> None:
    """The noise as a safetensors file, whole or not at all."""
    from kuosan.storage.files import PARTIAL, write_atomic
    from kuosan.storage.tensors import write

    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as aside:
        write(Path(aside) / path.name, {"noise": noise.contiguous()})
        content = (Path(aside) / path.name).read_bytes()
    write_atomic(path, content)
