"""The conditioning of a request and how it is guided: the denoiser of one batch, all its guidance around it.

From the network outwards: condition, classifier-free guidance (or autoguidance), rescale, interval, a classifier's
gradient, then the bound on the predicted image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kuosan.diffusion import guidance
from kuosan.errors import Error
from kuosan.sample import constraint
from kuosan.sample.plan import check_guides
from kuosan.tasks.condition import condition

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.data.dataset import Given
    from kuosan.diffusion.denoiser import Denoiser
    from kuosan.models.model import Model
    from kuosan.sample.request import Request
    from kuosan.tasks import Task


@dataclass(frozen=True)
class Guides:
    """The other models that a request names: a noisy classifier, and a weaker model of the same images."""

    classifier: Model | None = None
    reference: Model | None = None


def check(model: Model, request: Request, guides: Guides, size: tuple[int, int] | None = None) -> None:
    """Refuse guides that are missing, not asked for, or do not fit the model. Raises: Error."""
    for name in ("classifier", "reference"):
        given, asked = getattr(guides, name), getattr(request, name)
        if asked is not None and given is None:
            raise Error(f"the request is guided by the {name} {asked!r}, but none was given: pass guides=Guides(...).")
        if asked is None and given is not None:
            raise Error(f"a {name} was given, but the request names none: set {name}= (any name).")
    check_guides(
        model.config,
        request,
        None if guides.classifier is None else guides.classifier.config,
        None if guides.reference is None else guides.reference.config,
        size,
    )


def labels(model: Model, request: Request, guides: Guides, rows: Sequence[int]) -> Tensor | None:
    """The label of each of these images, (B,) int64; None where no model takes one."""
    labelled = model if model.config.task.labels else guides.classifier
    if labelled is None:
        return None
    task = labelled.config.task
    if request.restoration is not None and not request.classes:
        return torch.full((len(rows),), _unnamed(task, guides))
    if request.classes:
        own = [task.label(request.classes[row % len(request.classes)]) for row in rows]
    else:
        own = task.default_labels([request.seed + row for row in rows])
    return torch.tensor(own)


def _unnamed(task: Task, guides: Guides) -> int:
    """The label of an image to restore whose class nobody said. Raises: Error where there must be one."""
    if guides.classifier is not None:
        raise Error("a classifier leads to a class, and none is named: say the image's (--class).")
    if not task.dropped:
        raise Error(
            "this model was trained with drop 0 and knows no image without its class: say the image's (--class)."
        )
    return task.null


def guided(
    model: Model,
    request: Request,
    guides: Guides,
    rows: Sequence[int],
    device: torch.device,
    given: Given | None = None,
) -> Denoiser:
    """The denoiser of the images `rows` of a request, of which `given` is known where the model restores."""
    label = labels(model, request, guides, rows)
    label = None if label is None else label.to(device)
    text = texts(model, request, rows)
    plain = _conditioned(model, label, given, text)
    denoise = plain
    scale = request.guidance
    if scale is not None and scale != 1:
        plain, reference = _pair(model, request, guides, label, given, text, rows)
        denoise = guidance.classifier_free(plain, reference, scale)
        denoise = guidance.rescale(denoise, plain, request.guidance_rescale or 0.0)
    if guides.classifier is not None and request.classifier_scale:
        assert label is not None
        judge, schedule = guides.classifier, model.config.schedule
        log_prob = guidance.log_prob(judge.network, judge.config.schedule, label, schedule)
        denoise = guidance.classifier(denoise, log_prob, request.classifier_scale)
    if request.guidance_interval is not None:
        denoise = guidance.interval(denoise, _conditioned(model, label, given, text), *request.guidance_interval)
    if request.threshold is not None:
        return guidance.dynamic_threshold(denoise, request.threshold)
    return guidance.clamp(denoise) if request.clip and not model.codec.latent else denoise  # latents have no bounds


def texts(model: Model, request: Request, rows: Sequence[int], away: bool = False) -> Mapping[str, Tensor] | None:
    """The text conditioning of these images' prompts, or of what guidance leads `away` from; None without text."""
    if not model.config.task.text:
        return None
    negative = request.negative or ""
    own = [request.prompts[row % len(request.prompts)] if request.prompts else "" for row in rows]
    return model.read([negative] * len(rows) if away else own, [*request.prompts, negative])


def _conditioned(
    model: Model, label: Tensor | None, given: Given | None, text: Mapping[str, Tensor] | None
) -> Denoiser:
    denoise = model.denoiser(condition(model.config.task, label, given, text=text, encode=model.codec.encode))
    return constraint.kept(denoise, model, given)


def _pair(
    model: Model,
    request: Request,
    guides: Guides,
    label: Tensor | None,
    given: Given | None,
    text: Mapping[str, Tensor] | None,
    rows: Sequence[int],
) -> tuple[Denoiser, Denoiser]:
    """The plain denoiser, remembered for all who ask it, and the one that guidance leads away from."""
    if guides.reference is not None:
        weaker = guides.reference
        return guidance.shared(_conditioned(model, label, given, text)), _conditioned(
            weaker, label, given, texts(weaker, request, rows)
        )
    task = model.config.task
    away = None
    if task.labels:
        assert label is not None
        named = request.negative if not task.text else None
        away = torch.full_like(label, task.null if named is None else task.label(named))
    text_away = texts(model, request, rows, away=True)
    if request.guidance == 0 and not request.guidance_rescale:  # the reference alone: nobody asks the other
        return _conditioned(model, label, given, text), _conditioned(model, away, given, text_away)
    plain, reference = guidance.doubled(
        model.network,
        model.config.prediction,
        condition(task, label, given, text=text, encode=model.codec.encode),
        condition(task, away, given, text=text_away, encode=model.codec.encode),
        sigma_data=model.config.sigma_data,
        learned_variance=model.config.learned_variance,
    )
    return guidance.shared(constraint.kept(plain, model, given)), constraint.kept(reference, model, given)
