"""`kuosan sample --like image.png`: the same image again, with a bar and a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kuosan.cli.console import bar, say, warn
from kuosan.events import Finished, Progress

if TYPE_CHECKING:
    from kuosan.sample.job import SampleJob


def again(job: SampleJob) -> None:
    """Make the image of a recipe again, and say so."""
    from kuosan.sample.replay import plan_replay, run_replay

    plan = plan_replay(job)
    warn(plan.pipeline.warnings)
    with bar() as progress:
        task = progress.add_task("sampling", total=None)
        for event in run_replay(plan):
            match event:
                case Progress():
                    progress.update(task, completed=event.done, total=event.of)
                case Finished():
                    done = event.result
    about = f"{plan.recipe.origin}, step {plan.pipeline.step} of {plan.home}"
    if done.same:
        say(f"made again: {done.path} holds these very bytes already ({about}).")
    else:
        say(f"made again: {done.path} ({about}; {plan.pipeline.compute})")
