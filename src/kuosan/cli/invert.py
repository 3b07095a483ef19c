"""`kuosan invert`: images to their noise and back, and how much is lost on the way."""

from __future__ import annotations

import kuosan
from kuosan.cli.console import counting, say, warn
from kuosan.cli.flags import Verb
from kuosan.cli.sample import list_classes
from kuosan.errors import Error
from kuosan.events import Fact, Finished, Wrote
from kuosan.options import Tree
from kuosan.sample.invert import NOISE, InvertJob


def invert(tree: Tree, words: list[str]) -> None:
    """Encode the images that were named, decode them again, and say how like they are."""
    if not words:
        raise Error("no run given: kuosan invert RUN IMAGE [IMAGE ...].")
    list_classes(tree, words[0])
    job: InvertJob = VERB.build({**tree, "run": words[0], "images": words[1:]})
    with counting("invert") as progress:
        plan = kuosan.plan(job, progress)
    warn(plan.pipeline.warnings)
    for note in plan.notes:
        say(note)
    folder = None
    for event in kuosan.run(plan):
        match event:
            case Wrote(path) if folder is None:
                folder = path
                what = (
                    f"{job.steps} steps each way, {plan.nfe} network evaluations an image"
                    if job.between is None
                    else f"{job.between} images between two, {plan.nfe} network evaluations in all"
                )
                say(f"compute: {plan.pipeline.compute}; {what}; into {folder}")
            case Fact("image", {"path": path, "psnr": psnr}):
                say(f"{path}: {psnr:.2f} dB")
            case Finished():
                done = event.result
    if job.between is not None:
        say(f"written: {folder} (between-0000.png ..., between.png: the first image, the way, the second)")
        return
    mean = sum(done.psnr) / len(done.psnr)
    say(
        f"mean PSNR {mean:.2f} dB; the noise has mean {done.noise_mean:.3f} and standard deviation {done.noise_std:.3f}"
    )
    say(f"written: {folder} (0000-NAME.png ..., {NOISE})")


VERB = Verb(
    "invert",
    InvertJob,
    "RUN IMAGE [IMAGE ...]",
    "Encode images to noise with the model in RUN (DDIM inversion), decode it again, and say how like they are.",
    invert,
    place="run",
)
