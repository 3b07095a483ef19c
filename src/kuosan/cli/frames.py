"""Sampling with a bar over all its steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kuosan.cli.console import bar

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.sample.generate import Frame
    from kuosan.sample.guided import Guides
    from kuosan.sample.request import Request
    from kuosan.trained import Trained


def frames(trained: Trained, request: Request, start: Tensor | None, guides: Guides) -> Iterator[Frame]:
    """The frames of a request, as `sample.generate` makes them."""
    from kuosan.sample.generate import generate

    with bar() as progress:
        task = progress.add_task("sampling", total=None)
        for frame in generate(trained.model, request, start=start, guides=guides):
            done = frame.first * frame.steps + len(frame.x) * frame.step
            progress.update(task, completed=done, total=request.n * frame.steps)
            yield frame
