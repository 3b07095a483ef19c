"""`kuosan compare`: how well runs restore damaged images, beside what needs no model; one table, one sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kuosan
from kuosan.cli.console import console, say
from kuosan.cli.evaluate import DRY, Bars, followed, show_report
from kuosan.cli.flags import Verb
from kuosan.errors import Error, plural
from kuosan.evaluate.job import CompareJob, follow
from kuosan.options import Tree

if TYPE_CHECKING:
    from kuosan.evaluate.compare import ComparePlan
    from kuosan.evaluate.comparison import Comparison


def compare(tree: Tree, words: list[str]) -> None:
    """Plan, say what will be done, do it, say what was found."""
    job: CompareJob = VERB.build(read(tree, words))
    with Bars() as bars:
        plan = kuosan.plan(job, follow(bars))
    for line in planned(plan):
        say(line)
    if job.dry_run:
        say(DRY)
        return
    try:
        result = followed(kuosan.run(plan))
    except KeyboardInterrupt:
        kept = f"contestants that were done are kept in {plan.folder}" if plan.folder.exists() else "none was done"
        say(f"stopped: {kept}; nothing is half-written.")
        raise
    show(result)


def read(tree: Tree, words: list[str]) -> Tree:
    """The options with the images, which are a bare word. Raises: Error for more than one."""
    if len(words) + ("pictures" in tree) > 1:
        raise Error(f"{words[-1]!r} is more than `kuosan compare` takes: IMAGES, and --with RUN for each contestant.")
    return {**tree, "pictures": words[0]} if words else tree


def planned(plan: ComparePlan) -> list[str]:
    """What will be done, in lines."""
    config, damaged = plan.config, plan.damaged
    channels, height, width = plan.chosen.images.shape
    colour = "grey" if channels == 1 else "colour"
    lines = [f"compute: {plan.compute}", *(f"images: {note}" for note in plan.chosen.notes)]
    lines.append(f"images: {len(damaged):,} of {config.images}, {width}x{height} {colour}, {config.damage}")
    for entry in plan.entries:
        choice = entry.choice
        gradients = ", each with its gradient" if choice.graded else ""
        lines.append(
            f"contestant: {entry.name}: {choice.method or 'as it was trained'}, {choice.sampler}, {choice.steps} "
            f"steps, {choice.evaluations:,} network evaluations an answer{gradients}"
        )
    answers = len(damaged) * config.variants
    lines.append(
        f"to make: {plural(config.variants, 'answer')} to each image, {answers:,} by each "
        f"contestant, {plan.evaluations:,} network evaluations; kept in {plan.folder}"
    )
    return lines


def show(result: Comparison) -> None:
    """The figures, what they are of, and where they were written."""
    console.print()
    show_report(result.report())
    say(f"written: {result.folder} (result.json, table.md, sheet.png)")


VERB = Verb(
    "compare",
    CompareJob,
    "IMAGES --with RUN[:METHOD][,KEY=VALUE...] [--with ...]",
    "Damage whole IMAGES, have each run restore them, and measure how near the answers come to the truth. All "
    "contestants see the same damaged images, and those on one run the same noise; rules that need no model (bicubic, "
    "nearest, a smooth fill, an inverse) stand beside them. Images that a contestant was trained on are refused.",
    compare,
)
