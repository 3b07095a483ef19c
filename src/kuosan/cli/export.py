"""`kuosan export`: a trained model as one folder to hand on, without what only training needs."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import kuosan
from kuosan.cli.console import say, warn
from kuosan.cli.flags import Verb
from kuosan.errors import Error
from kuosan.events import Finished
from kuosan.models.export import ExportJob
from kuosan.options import Tree
from kuosan.storage.files import size_text


def export(tree: Tree, words: list[str]) -> None:
    """Write the folder, and say how large it is and what to do with it."""
    places = dict(zip((name for name in ("run", "out") if name not in tree), words))
    lacking = [name.upper() for name in ("run", "out") if name not in {**tree, **places}]
    if lacking or len(places) < len(words):
        wrong = f"{' and '.join(lacking)} must be given" if lacking else f"{words[-1]!r} is one word too many"
        run = str({**tree, **places}.get("run", "RUN"))
        example = f"kuosan export {quote(run)} {quote(Path(run).resolve().name + '-model')}"
        raise Error(
            f"{wrong}: kuosan export RUN OUT{f', as in {example}' if run != 'RUN' else ''}; OUT is a new folder."
        )
    job: ExportJob = VERB.build({**tree, **places})
    plan = kuosan.plan(job)
    warn(plan.warnings)
    for event in kuosan.run(plan):
        if isinstance(event, Finished):
            made, step = event.result, plan.saved.step
            about = f"step {step} of {plan.job.run}, weights in {plan.job.precision}"
            say(f"exported: {made.path} ({size_text(made.nbytes)}; {about})")
            say(f"next: {made.use}")


VERB = Verb(
    "export",
    ExportJob,
    "RUN OUT",
    "Write the averaged weights of RUN, with all that sampling needs, into the new folder OUT.\n\n"
    "What only training needs (optimiser, raw weights, log, the path of the images) stays behind.",
    export,
)
