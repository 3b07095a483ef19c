"""`kuosan doctor`: what of a folder would be used, resized or skipped, and why; nothing in it is changed."""

from __future__ import annotations

import kuosan
from kuosan.cli.console import counting, say
from kuosan.cli.flags import Verb
from kuosan.data.job import NOT_TYPED, DoctorJob, DoctorPlan
from kuosan.errors import Error
from kuosan.events import Wrote
from kuosan.options import Tree


def doctor(tree: Tree, words: list[str]) -> int:
    """Look, and say what was found; 0 if there is something to train on, 1 if not."""
    if len(words) != 1:
        raise Error(
            f"one data set at a time: {words[0]!r} and {words[1]!r} were given."
            if words
            else "no data given: kuosan doctor FOLDER (or a zip, tar, IDX, npz or npy file, or a run)."
        )
    data = tree.get("data", {})
    job: DoctorJob = VERB.build({**tree, "data": {**data, "path": words[0]}, "given": list(data)})
    with counting("doctor") as progress:
        plan = kuosan.plan(job, progress)
    _say(plan)
    written = [event.path for event in kuosan.run(plan) if isinstance(event, Wrote)]
    if written:
        say(f"written: {', '.join(str(path) for path in written)}")
    elif plan.report.scan.refused:
        say("The whole list: kuosan doctor DATA --out FOLDER")
    return 0 if plan.report.scan.entries else 1


def _say(plan: DoctorPlan) -> None:
    from kuosan.data.doctor import rows

    config = plan.config
    if plan.run is not None:
        said = f" and {', '.join(f'{name} {value}' for name, value in plan.given.items())}" if plan.given else ""
        say(
            f"{plan.run} is a run: its data {config.path}, with its own settings{said} "
            f"(layout {config.layout}, split version {config.split_version})."
        )
    for line in plan.report.lines():
        say(line)
    if captions := rows(plan.report.scan.entries):
        say("The first captions:")
        for row in captions:
            say(f"  {row}")


VERB = Verb(
    "doctor",
    DoctorJob,
    "DATA",
    "Look at every file of DATA as training would, and say what becomes of it; of a run, at its data as it does.\n\n"
    "DATA is a folder, a zip, tar, IDX, npz or npy file, or `portraits`; or a run's folder, whose own data settings "
    "then count\nwhere no others are given. Exit code 0 if there is something to train on, 1 if not.",
    doctor,
    hidden=NOT_TYPED,
    place="data",
)
