"""Bits a dimension of a model's own kind of images, in two ways, with errors, and what the bound is made of.

`likelihood(model, images)` is a function of its arguments alone: draws are keyed by (seed, ..., id of the image).
The ODE's divergence wants float32 weights: bf16's rounding is a noise in it.

The variational bound over t, drawn: what each step costs, and how the costs add up from clean to noisy.

Bits a dimension in an evaluation: of which images, by which weights, and the curve beside the figures.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from kuosan.diffusion import guidance, registry
from kuosan.diffusion.likelihood import Probe, dequantised, log_density, ode_bits, span, variational_bound
from kuosan.diffusion.loss import Chain, chain, discrete_chain
from kuosan.diffusion.schedule import Discrete, join
from kuosan.errors import Error, plural
from kuosan.evaluate.config import HELD_OUT, EvaluateConfig
from kuosan.evaluate.eval_images import Side, shuffled
from kuosan.events import Event, Progress
from kuosan.metrics.estimate import Estimate
from kuosan.models.model import require_opaque, require_pixels, require_whole, require_wordless
from kuosan.sample import pipeline
from kuosan.storage import checkpoint
from kuosan.storage.files import write_atomic
from kuosan.tasks.condition import condition

if TYPE_CHECKING:
    from kuosan.data.dataset import Images
    from kuosan.diffusion.denoiser import Denoiser
    from kuosan.diffusion.schedule import Schedule
    from kuosan.models.model import Model
    from kuosan.sample.pipeline import Pipeline
    from kuosan.storage.checkpoint import Saved

STEPS = 1000  # of the chain of a schedule that has no steps of its own
FIRST = 0.01  # sigma/alpha of its least noise, as DDPM's; a grey level is 2/255
FAINT = 1e-3  # alpha/sigma of the level below pure noise, where a chain begins there
HALVED = 8  # images on which the ODE is solved with half the steps as well

# What the figures mean, in one sentence where they are printed; of the bound alone its beginning.
MEANING = (
    "Bits/dim are what a lossless code by this model needs at most for one value of an 8-bit image (less is better, 8 "
    "is uncompressed)"
)


@dataclass(frozen=True)
class Bound:
    """The variational bound and its parts, bits a dimension; the curve has one entry a stratum of the chain's rows."""

    total: Estimate
    prior: Estimate
    steps: Estimate  # the sum of the KLs
    decoder: Estimate
    n: int
    variance: str
    chain: int  # steps of the chain
    evaluations: int  # of the network, an image
    t: tuple[float, ...]  # the timestep in the middle of each stratum
    size: tuple[int, ...]  # rows in each
    term: tuple[float, ...]  # the mean term of one row in each
    error: tuple[float, ...]  # its standard error


@dataclass(frozen=True)
class Ode:
    """Bits a dimension by the probability-flow ODE."""

    total: Estimate
    n: int
    steps: int
    evaluations: int  # of the network, an image
    probe: str
    probes: int
    probe_error: float | None  # the part of the error that more probes take away; unknown of one probe
    solver_error: float  # by how much half the steps change an image's bits, on average over a few
    first: float  # sigma/alpha of the noise that is left in


@dataclass(frozen=True)
class Likelihood:
    """Both estimates of one set of images, and their difference on the images that both saw."""

    bound: Bound
    ode: Ode | None
    gap: Estimate | None  # bound minus ode, paired

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """The figures, what they are of, and in one sentence what they mean."""
        b = self.bound
        lines = [
            f"bits/dim by the variational bound: {said(b.total)} on {plural(b.n, 'image')} "
            f"({plural(b.chain, 'step')}, variance {b.variance}): prior {b.prior.value:.4f}, steps "
            f"{b.steps.value:.3f}, decoder {b.decoder.value:.3f}."
        ]
        if self.ode is None or self.gap is None:
            return [*lines, MEANING + "."]
        o = self.ode
        return [
            *lines,
            f"bits/dim by the probability-flow ODE: {said(o.total)} on {plural(o.n, 'image')} "
            f"({plural(o.steps, 'Runge-Kutta step')}, {plural(o.probes, f'{o.probe} probe')}; half the steps change an "
            f"image's by {o.solver_error:.4f}).",
            f"Bound minus ODE: {said(self.gap)}. {MEANING}; the two are upper bounds for two models of the data with "
            f"one network, a chain of {plural(b.chain, 'random step')} with variance {b.variance} and a flow without "
            f"noise, whose density is taken at images with uniform noise of one grey level, its last noise of "
            f"{o.first:.3g} left in: compare bounds with bounds, ODEs with ODEs.",
        ]


@dataclass(frozen=True)
class LikelihoodInput:
    """A model and the images whose likelihood is measured."""

    model: Model
    x0: Tensor  # (N, C, H, W) in [-1, 1]
    ids: list[int]
    labels: Tensor | None  # (N,) of a conditional model
    batch: int

    def parts(self, n: int) -> Iterator[tuple[Denoiser, Tensor, list[int]]]:
        """The first n images by batches, each with the denoiser of their classes."""
        device = next((p.device for p in self.model.network.parameters()), torch.device("cpu"))
        for begin in range(0, n, self.batch):
            part = slice(begin, min(begin + self.batch, n))
            cond = condition(self.model.config.task, None if self.labels is None else self.labels[part])
            cond = {name: value.to(device) for name, value in cond.items()}
            yield self.model.denoiser(cond), self.x0[part].to(device), self.ids[part]


def likelihood(
    model: Model,
    images: ArrayLike | Tensor,
    *,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
    **options: Any,
) -> Likelihood:
    """Bits a dimension of images (N, C, H, W), uint8 or in [-1, 1], by the bound and, of the first few, by the ODE.

    Args:
        progress: called with what ("bound", "ode"), how many images are done, of how many.
        options: those of `likelihood_steps`.

    Raises:
        Error: images that are not 8-bit ones, settings that do not go together, fewer than 2 images.
    """
    steps = likelihood_steps(model, images, **options)
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            found: Likelihood = end.value
            return found
        progress(event.what, event.done, event.of or 0)


def likelihood_steps(
    model: Model,
    images: ArrayLike | Tensor,
    *,
    labels: ArrayLike | None = None,
    ids: Sequence[int] | None = None,
    seed: int = 0,
    evaluations: int | None = 100,
    variance: str | None = None,
    clip: bool = True,
    ode_images: int | None = None,
    ode_steps: int = 50,
    probe: Probe = "rademacher",
    probes: int = 1,
    first: float | None = None,
    batch: int = 32,
) -> Generator[Progress, None, Likelihood]:
    """`likelihood` step by step: yields how far it is, returns what it found.

    Args:
        labels: (N,) classes of a conditional model; -1, or None for all, is no class.
        ids: of the images, by which their draws are keyed; 0 to N-1.
        evaluations: network calls an image for the bound; None: every step of the chain.
        variance: posterior, beta or learned; learned, else posterior, if not given.
        clip: keep the predicted data in [-1, 1] in the bound, as published figures do.
        ode_images: how many the ODE sees, the first ones; 0: none, None: all.
        first: sigma/alpha at which the ODE's trajectory ends, if not at the first trained level (flow: 0.001).

    Raises:
        Error: as `likelihood`.
    """
    x0 = eight_bit(images, model.shape)
    keys = list(range(len(x0))) if ids is None else [int(id) for id in ids]
    n_ode = len(x0) if ode_images is None else min(ode_images, len(x0))
    if min(len(x0), n_ode or 2) < 2 or len(keys) != len(x0) or len(set(keys)) != len(keys):
        raise Error(f"likelihood of {len(x0)} images, {n_ode} by the ODE: at least 2 each, every one with its own id.")
    data = LikelihoodInput(model, x0, keys, classes(model, labels, len(x0)), batch)
    variance = registry.variance(variance or ("learned" if model.config.learned_variance else "posterior"))
    bound, each = yield from _bound(data, seed, evaluations, variance, clip)
    if n_ode == 0:
        return Likelihood(bound, None, None)
    options: dict[str, Any] = {"probe": probe, "probes": probes, "first": first}
    by_ode = yield from _ode_bits(data, n_ode, seed, ode_steps, options, "ode")
    few = min(HALVED, n_ode)
    halved = yield from _ode_bits(data, few, seed, max(1, ode_steps // 2), options)
    off = np.abs(halved - by_ode[:few]).mean()
    apart = math.sqrt(by_ode.var(1, ddof=1).mean() / by_ode.size) if by_ode.shape[1] > 1 else None
    noise = 1 / span(model.config.schedule, first).first
    ode = Ode(estimate(by_ode.mean(1)), n_ode, ode_steps, 4 * ode_steps, probe, probes, apart, float(off), float(noise))
    return Likelihood(bound, ode, estimate(each[:n_ode] - by_ode.mean(1)))


def _bound(
    data: LikelihoodInput, seed: int, evaluations: int | None, variance: str, clip: bool
) -> Generator[Progress, None, tuple[Bound, np.ndarray]]:
    """The bound, and each image's: (N,)."""
    steps = chain_of(data.model.config.schedule)
    terms, done = [], 0
    for denoise, x0, ids in data.parts(len(data.x0)):
        bounded = guidance.clamp(denoise) if clip else denoise
        terms.append(
            variational_bound(bounded, steps, x0, ids=ids, seed=seed, evaluations=evaluations, variance=variance)
        )
        done += len(x0)
        yield Progress("bound", done, len(data.x0))
    prior, bits = (torch.cat([getattr(part, name) for part in terms]).numpy() for name in ("prior", "bits"))
    rows, size = terms[0].first.numpy(), terms[0].size.numpy()
    each = prior + (bits * size).sum(1)
    ends = [steps.now.t[torch.from_numpy(row)].numpy() for row in (rows, rows + size - 1)]
    bound = Bound(
        total=estimate(each),
        prior=estimate(prior),
        steps=estimate((bits * size)[:, 1:].sum(1)),
        decoder=estimate(bits[:, 0]),
        n=len(each),
        variance=variance,
        chain=len(steps),
        evaluations=len(rows),
        t=tuple(((ends[0] + ends[1]) / 2).tolist()),
        size=tuple(size.tolist()),
        term=tuple(bits.mean(0).tolist()),
        error=tuple((bits.std(0, ddof=1) / math.sqrt(len(bits))).tolist()),
    )
    return bound, each


def _ode_bits(
    data: LikelihoodInput, n: int, seed: int, steps: int, options: Mapping[str, Any], what: str = ""
) -> Generator[Progress, None, np.ndarray]:
    """Bits a dimension of the first n images by each probe: (n, probes)."""
    schedule, size = data.model.config.schedule, int(np.prod(data.model.shape))
    log_p, done = [], 0
    for denoise, x0, ids in data.parts(n):
        x = dequantised(x0, ids=ids, seed=seed)
        log_p.append(log_density(denoise, schedule, x, ids=ids, seed=seed, steps=steps, **options))
        done += len(x0)
        if what:
            yield Progress(what, done, n)
    return np.asarray(ode_bits(torch.cat(log_p), size).numpy())


def chain_of(schedule: Schedule) -> Chain:
    """The chain whose bound is taken: a discrete schedule's own T steps, or `STEPS` even in log SNR of another's.

    Those go from the noisiest level (after alpha = 0: from alpha/sigma = `FAINT`) down to sigma/alpha = `FIRST`, whose
    square is the decoder's variance: finer noise than grey levels would be distinguished at a price, and to no use.
    """
    if isinstance(schedule, Discrete):
        return discrete_chain(schedule)
    ends, whole = span(schedule), schedule.grid(1)
    low = max(ends.last, FAINT)
    levels = schedule.at_log_snr(2 * np.linspace(math.log(low), math.log(min(ends.first, 1 / FIRST)), STEPS))
    before = whole[:1] if ends.last < low else whole[:0]
    return chain(join(before, levels, whole[-1:]), schedule.prior_std(whole[0]), published=False)


def eight_bit(images: ArrayLike | Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images as float32 in [-1, 1]: bytes, or values that are bytes exactly. Raises: Error."""
    values = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if values.ndim != 4 or values.shape[1:] != tuple(shape):
        raise Error(f"likelihood of images {values.shape}: this model's are (N, {', '.join(map(str, shape))}).")
    grey = values.astype(np.float64) if values.dtype == np.uint8 else (values.astype(np.float64) + 1) * 127.5
    whole = np.rint(grey)
    if not (np.abs(grey - whole) < 0.01).all() or whole.min(initial=0) < 0 or whole.max(initial=0) > 255:
        raise Error("likelihood of images that are not 8-bit ones: give bytes, or u/127.5 - 1 of bytes u.")
    return torch.from_numpy((whole / 127.5 - 1).astype(np.float32))


def classes(model: Model, labels: ArrayLike | None, n: int) -> Tensor | None:
    """The labels of a conditional model's images, (n,) int64, -1 where none; None for a model without classes.

    Raises:
        Error: labels for a model without classes, labels that are not n or unknown, or none where it knows no "none".
    """
    require_whole(model.config, "a likelihood")
    require_pixels(model.config, "a likelihood")
    require_wordless(model.config, "a likelihood")
    require_opaque(model.config, "a likelihood", "its densities are of bytes: measure KID instead")
    task = model.config.task
    if not task.labels:
        if labels is not None:
            raise Error("labels were given, but this model was trained without classes: leave them out.")
        return None
    own = np.full(n, -1, dtype=np.int64) if labels is None else np.array(labels, dtype=np.int64)
    if own.shape != (n,) or own.max(initial=-1) >= len(task.class_names):
        raise Error(f"labels {own.shape}: need one for each of {n} images, below {len(task.class_names)}, or -1.")
    if not task.dropped and bool((own < 0).any()):
        raise Error("this model was trained with drop 0 and knows no image without its class: give labels.")
    return torch.from_numpy(own)


def estimate(values: np.ndarray) -> Estimate:
    """The mean of one value an image, and its standard error."""
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


def said(estimate: Estimate) -> str:
    """A figure with its error."""
    return f"{estimate.value:.3f} ± {estimate.error:.3f}"


def draw(path: Path, bounds: Mapping[str, Bound]) -> None:
    """Write a PNG of one or several models' bounds by name: bits/dim a step with their error, and added up."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    each, whole = figure.subplots(1, 2)
    for name, bound in bounds.items():
        t, term, error = (np.array(values) for values in (bound.t, bound.term, bound.error))
        (line,) = each.plot(t, term, marker=".", label=name)
        each.fill_between(t, np.maximum(term - 2 * error, 1e-12), term + 2 * error, color=line.get_color(), alpha=0.25)
        whole.plot(t, np.cumsum(term * np.array(bound.size)), label=f"{name}: {bound.total.value:.3f}")
    positive = min((value for bound in bounds.values() for value in bound.term if value > 0), default=1e-6)
    each.set(xlabel="t, from clean to noisy", ylabel="bits/dim a step (band: two errors)", yscale="log")
    each.set_ylim(bottom=positive / 2)
    whole.set(xlabel="t, from clean to noisy", ylabel="bits/dim up to t", ylim=(0, None))
    whole.legend(title="bound, with its prior")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(path, buffer.getvalue())


CURVE = "bound.png"


def likelihood_side(config: EvaluateConfig, own: Images | None) -> Side | None:
    """The held-out images whose likelihood is measured, the first of the fixed order; None without --likelihood.

    Raises:
        Error: nothing was held out.
    """
    if not config.likelihood:
        return None
    if own is None:
        raise Error("likelihood is of images the run held out: leave --against PATH out, or evaluate twice.")
    side = Side.of("held-out images", own, shuffled(own, HELD_OUT), 0, config.likelihood_images)
    if len(side) < 2:
        raise Error(f"likelihood needs 2 held-out images at least; this run held {len(side)} out.")
    return side


def full_precision(model: Pipeline, saved: Saved | None) -> Pipeline:
    """The model in float32, whatever images are sampled in: the ODE's divergence would drown in bf16's noise.

    Args:
        saved: the checkpoint that the model was made of; None: it is read again.

    Raises:
        Error: it holds other weights by now.
    """
    if model.compute.dtype == torch.float32:
        return model
    compute = replace(model.compute, dtype=torch.float32)
    if saved is not None:
        return pipeline.of_saved(saved, model.name, compute=compute)
    at_step = checkpoint.folder(model.name, model.step)  # the newest may be another by now
    full = pipeline.load(at_step if at_step.is_dir() else Path(model.name), compute=compute)
    if full.weights != model.weights:
        raise Error(f"{model.name} holds other weights than when it was opened (step {model.step}): a training "
                    "run moved on. Evaluate one of its checkpoints.")  # fmt: skip
    return full


def measured(
    full: Pipeline, side: Side, config: EvaluateConfig, folder: Path
) -> Generator[Event, None, dict[str, Any]]:
    """Both estimates as plain values with their sentences; the curve of the bound is written to bound.png."""
    found = yield from likelihood_steps(
        full.model,
        side.bytes(),
        labels=side.labels() if full.model.config.task.labels else None,
        ids=side.ids.tolist(),
        ode_images=config.ode_images,
        ode_steps=config.ode_steps,
    )
    draw(folder / CURVE, {Path(full.name).name: found.bound})
    return {**found.plain(), "pictures": side.what, "sentences": found.sentences()}
