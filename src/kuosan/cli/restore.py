"""`kuosan restore`: fill holes, enlarge, deblur, colour or denoise images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import kuosan
from kuosan.cli.console import bar, counting, say, warn
from kuosan.cli.flags import Verb
from kuosan.cli.sample import list_classes
from kuosan.data.config import COLOUR_WORDS
from kuosan.errors import Error, escaped, plural
from kuosan.events import Fact, Finished, Progress, Wrote
from kuosan.options import Tree
from kuosan.sample import request as requests
from kuosan.sample.job import stored
from kuosan.sample.restore import RestoreJob

if TYPE_CHECKING:
    from kuosan.sample.restore import RestorePlan


def restore(tree: Tree, words: list[str]) -> int:
    """Restore the images that were named; 1 where some were left out."""
    if len(words) < 2:
        raise Error(
            f"no {'images' if words else 'run'} given: kuosan restore RUN IMAGE [IMAGE ...], or a folder of them."
        )
    run, damage = Path(words[0]), tree.setdefault("restoration", {})
    if (run / "config.yaml").is_file() and (config := stored(run)) is not None:
        implied = requests.implied(config, damage)  # what a model is trained for goes without saying
        damage |= {} if implied is None else {"upscale": implied}
    damage["picture"] = ""
    list_classes(tree.get("request", {}), run)
    job: RestoreJob = VERB.build({**tree, "run": words[0], "images": words[1:]})
    with counting("restore") as progress:
        plan = kuosan.plan(job, progress)
    _say_plan(plan)
    done = 0
    with bar() as bars:
        task, folder = bars.add_task("", total=None), None
        try:
            for event in kuosan.run(plan):
                match event:
                    case Fact("image", {"path": path, "notes": notes}):
                        for note in notes:
                            say(f"{path}: {note}")
                    case Progress():
                        bars.update(task, description=escaped(event.what), completed=event.done, total=event.of)
                    case Wrote(path) if folder is None:
                        folder = path
                        say(f"into {folder}")
                    case Wrote():
                        done += 1
                    case Finished():
                        made = event.result
        except KeyboardInterrupt:
            if folder is not None:
                images = done // plan.request.n
                say(f"stopped: {plural(images, 'image', 'is', of=len(plan.files))} restored, in {folder}.")
            raise
    say(f"{plural(made.many, 'image')} in {made.seconds:.1f} s: {made.folder} ({made.sheet}: before, after)")
    return 1 if plan.wrong else 0


VERB = Verb(
    "restore",
    RestoreJob,
    "RUN IMAGE [IMAGE ...]",
    "Restore images with the model in RUN: files, or folders of them; a sheet shows before and after. A model trained "
    "for super_resolution or inpainting does what it was trained for; a model of whole images fills holes, enlarges, "
    "deblurs, colours and denoises without training for it, by --method.",
    restore,
    hidden=(
        "request.n", "request.sampler", "request.s_churn", "request.s_tmin", "request.s_tmax", "request.s_noise",
        "request.reference", "request.guidance_interval", "request.guidance_rescale", "request.classifier",
        "request.classifier_scale", "request.threshold", "request.clip", "request.image", "request.strength",
        "request.between", "request.size", "request.aspect", "request.exact",
    ),
    place="run",
)  # fmt: skip


def _say_plan(plan: RestorePlan) -> None:
    pipeline, trajectory, request = plan.pipeline, plan.trajectory, plan.request
    asked = request.restoration
    assert asked is not None
    say(f"compute: {pipeline.compute}")
    for text in pipeline.damaged:
        say(f"warning: a newer checkpoint is damaged and passed over: {text}")
    warn(pipeline.warnings)
    channels, height, width = pipeline.model.shape
    how = f" by {requests.METHODS[trajectory.method]}" if trajectory.method else ", as the model was trained"
    gradients = ", each with its gradient (about 3 times the cost)" if trajectory.graded else ""
    say(
        f"model: {pipeline.name}, step {pipeline.step}, {width}x{height} {COLOUR_WORDS[channels]}; "
        f"{', '.join(asked.damage) or 'noise'}{how}: {trajectory.sampler}, {plural(trajectory.steps, 'step')}, "
        f"{trajectory.evaluations} "
        f"network evaluations a tile and answer{gradients}"
    )
    count = len(plan.files) + len(plan.wrong)
    say(f"images: {count}, {plural(request.n, 'answer')} each")
    for text in plan.wrong:
        say(f"left out: {text}")
    say(f"to make: {plural(plan.many, 'image')}, {plural(plan.nfe, 'network evaluation')} in all, each of one tile")
