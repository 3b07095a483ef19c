"""What a model is asked to make in an evaluation that does not say: of which classes, of which captions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kuosan.errors import Error
from kuosan.sample.plan import check_request
from kuosan.text.prompts import escaped

if TYPE_CHECKING:
    from kuosan.data.pictures import Pictures
    from kuosan.evaluate.config import EvaluateConfig
    from kuosan.evaluate.images import Images
    from kuosan.evaluate.real import Side
    from kuosan.tasks import Task
    from kuosan.trained import Trained


def captions(model: Trained, config: EvaluateConfig, reference: Side) -> tuple[str, ...]:
    """The captions of the pictures compared with, by which a text model that is given no prompts makes its own.

    Raises:
        Error: those pictures have none, or one that the model cannot be told.
    """
    if not model.model.config.task.text or config.request.prompts or not config.sampled:
        return ()
    told = reference.pictures.captions
    found = tuple(escaped(text) for text in (told[i] for i in reference.ids) if text) if told else ()
    if not found:
        raise Error(
            f"{model.name} makes pictures of what it is told, and the {reference.what} have no captions: give "
            f"--prompts (again and again for several), or compare with pictures that have."
        )
    _check(model, config, reference, found)
    return found


def _check(model: Trained, config: EvaluateConfig, reference: Side, found: tuple[str, ...]) -> None:
    """Refuse captions that the model cannot be told, before anything is made. Raises: Error."""
    try:
        check_request(model.model.config, replace(config.request, prompts=found))
        encoder = model.model.encoder
        if encoder is not None:
            for text in found:
                encoder.count_read(text)
    except Error as error:
        raise Error(f"a caption of the {reference.what}: {error} Or say what is to be made: --prompts.") from None


def shares(task: Task, pictures: Pictures | Images) -> tuple[float, ...]:
    """How the classes are shared out: as in the pictures compared with, where those have the same; else equally."""
    count = len(task.class_names)
    if pictures.labels is None or tuple(pictures.classes) != task.class_names:
        return (1 / count,) * count
    counts = np.bincount(pictures.labels[pictures.train][pictures.labels[pictures.train] >= 0], minlength=count)
    return tuple(round(float(share), 9) for share in counts / max(1, counts.sum()))
