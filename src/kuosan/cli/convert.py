"""`kuosan convert`: a Stable Diffusion checkpoint from a single file to a diffusers folder, or back."""

from __future__ import annotations

from shlex import quote

import kuosan
from kuosan.cli.console import counting, say, warn
from kuosan.cli.flags import Verb
from kuosan.errors import Error
from kuosan.events import Finished, Progress
from kuosan.models.convert import ConvertJob
from kuosan.options import Tree
from kuosan.storage.files import size_text


def convert(tree: Tree, words: list[str]) -> None:
    """Say what was recognised and by what, write the other layout, and say how large it is."""
    places = dict(zip((name for name in ("source", "out") if name not in tree), words))
    lacking = [name.upper() for name in ("source", "out") if name not in {**tree, **places}]
    if lacking or len(places) < len(words):
        wrong = f"{' and '.join(lacking)} must be given" if lacking else f"{words[-1]!r} is one word too many"
        raise Error(
            f"{wrong}: kuosan convert SOURCE OUT; OUT is a new folder, or a new file NAME.safetensors, as in "
            f"kuosan convert model.safetensors model-folder"
        )
    job: ConvertJob = VERB.build({**tree, **places})
    plan = kuosan.plan(job)
    warn(plan.warnings)
    for line in plan.lines:
        say(line)
    with counting("convert") as progress:
        for event in kuosan.run(plan):
            if isinstance(event, Progress):
                progress(event)
            elif isinstance(event, Finished):
                made = event.result
    say(f"converted: {quote(str(made.path))} ({size_text(made.nbytes)}, {made.tensors:,} tensors)")


VERB = Verb(
    "convert",
    ConvertJob,
    "SOURCE OUT",
    "Write the Stable Diffusion checkpoint SOURCE in the other layout: a single .safetensors file as a diffusers "
    "folder,\na folder as a single file. Every tensor keeps its numbers and its type; what the other layout has no "
    "place for\ngoes along, so that the way back gives the same bytes.",
    convert,
)
