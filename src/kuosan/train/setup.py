"""From what a person asked to a run that is ready to train: a new one, one that goes on, or one from another's weights.

The first process locks, reads and writes; the others receive what it found, or its error.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import kuosan
from kuosan import seeds
from kuosan.data.dataset import Images
from kuosan.data.reading import FACT as READING
from kuosan.data.reading import stored_rule
from kuosan.device import Compute
from kuosan.diffusion.schedule import Discrete
from kuosan.errors import Error
from kuosan.metrics.image_quality import perceptual_loss
from kuosan.models import latents as codec_folder
from kuosan.models import starter
from kuosan.models.grow import begun_from
from kuosan.models.model import ModelConfig, build
from kuosan.storage import checkpoint
from kuosan.storage.cache import cache_root
from kuosan.storage.files import Lock
from kuosan.storage.log import Log
from kuosan.train import budget as budgets
from kuosan.train import latents
from kuosan.train.batches import BatchStream, LossAwareSampler
from kuosan.train.budget import Budget
from kuosan.train.config import RunConfig
from kuosan.train.distributed import World
from kuosan.train.memory import Sizes
from kuosan.train.monitor import Monitor
from kuosan.train.objective import Autoencoding, Classification, Diffusion, Objective, check_labels
from kuosan.train.report import SilentTraining, TensorBoard
from kuosan.train.resume import LOG, RunRequest, RunState, lock, look, stored, write_head
from kuosan.train.rules import noise_shape
from kuosan.train.state import Run, State, exact
from kuosan.train.text_conditioning import Texts, open_texts

if TYPE_CHECKING:
    from kuosan.models.codec import Codec
    from kuosan.models.latents import Held
    from kuosan.text.encoder import TextEncoder


def open_run(
    folder: Path,
    config: RunConfig,
    images: Images,
    compute: Compute,
    world: World,
    report: SilentTraining,
    *,
    network: nn.Module | None = None,
    encoder: TextEncoder | None = None,
    autoencoder: Held | None = None,
    init: Path | None = None,
    nothing: bool = False,
    accept_new_data: bool = False,
    saves: Sequence[checkpoint.Saved] = (),
    begun: float | None = None,
    dry: bool = False,
) -> Run:
    """A run opened: its newest good save loaded, or a fresh start; `attach` makes it ready to train.

    Nothing is written into its folder; one that is there is locked, but with `dry`.

    Args:
        nothing: it was said to start from nothing.
        saves: what was read of saves before, without their tensors, and is not read again.
        begun: by `budget.seconds_now`, since when a time budget is used; None: since now.

    Raises:
        Error: another configuration or data set than the run's, a damaged save without a good one before it, a folder
            that cannot be written. On every process.
    """
    begun = budgets.seconds_now() if begun is None else begun
    _check_processes(world, config, images)
    if network is not None and config.model.task.kind != "generation":
        _check_conditioning(network)
    asked = RunRequest(folder, config, _fingerprint(config, images), init, accept_new_data, nothing, saves)
    held: list[Lock] = []
    try:
        found = world.on_first(lambda: look(asked, held if not dry and _may_be_there(folder) else None))
        for text in found.notes:
            report.say(text)
        kept = autoencoder is not None or encoder is not None
        cache = cache_root(config.data.cache) if kept and not dry else None
        latent = latents.ready(asked, found, images, autoencoder, compute, world, report, cache)
        asked.config, images = latent.config, latent.images
        texts = open_texts(config.model, images, config.train.uncaptioned, encoder, cache, report, world)
        run = _ready(asked, found, images, compute, world, report, network, encoder, texts, latent.codec, begun)
        run.lock, run.new_data = held[0] if held else None, found.new_data
        return run
    except BaseException:
        for lock in held:
            lock.release()
        raise


def _may_be_there(folder: Path) -> bool:
    """Whether there is anything of that name, as far as can be seen."""
    try:
        os.lstat(folder)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def attach(run: Run, autoencoder: Held | None) -> None:
    """Make an opened run ready to train: the first process locks its folder, and writes what makes it a run.

    Raises:
        Error: another process holds the folder, or began a run there meanwhile; it cannot be written. On every process.
    """
    run.world.on_first(lambda: _attach(run, autoencoder))


def _fingerprint(config: RunConfig, images: Images) -> str:
    """Of what this run uses: a label or caption that it is not conditioned on may be edited."""
    labels = config.train.objective == "classifier" or bool(config.model.task.class_names)
    return images.fingerprint_of(labels, config.model.text.kind != "none")


def _check_processes(world: World, config: RunConfig, images: Images) -> None:
    if config.train.batch < world.size:
        raise Error(
            f"train.batch = {config.train.batch} is fewer than the {world.size} processes: each needs an image a "
            f"step. Raise --train.batch, or start fewer processes."
        )
    prints = world.gather(images.fingerprint)
    other = next((rank for rank, own in enumerate(prints) if own != prints[0]), None)
    if other is not None:
        raise Error(
            f"process {other} sees other images ({prints[other][:12]}) than process 0 ({prints[0][:12]}): every "
            f"process must be given the same folder."
        )


def _ready(
    asked: RunRequest,
    found: RunState,
    images: Images,
    compute: Compute,
    world: World,
    report: SilentTraining,
    network: nn.Module | None,
    encoder: TextEncoder | None,
    texts: Texts | None,
    codec: Codec,
    begun: float,
) -> Run:
    """The run at the state that was found."""
    config, train = asked.config, asked.config.train
    model = build(config.model, seed=train.seed, network=network)
    model.encoder, model.codec = encoder, codec
    model.network.to(compute.device).train()
    state = State.fresh(model.network, train, _history(config))
    budget = Budget(train.minutes, found.plans, begun=begun, **found.spent) if train.minutes else None
    objective = _objective(config, images, compute, state, codec, budget)
    facts = {"torch": torch.__version__, "compute": str(compute), "processes": world.size}
    if isinstance(objective, Autoencoding) and objective.features is not None:
        facts["perceptual"] = f"{objective.features.name} {objective.features.hash[:16]}"
    if found.saved is not None:
        _restore(state, found.saved, asked)
        if budget is not None:
            budget.retry = state.retry
            _check_minutes(budget, asked)
        report.fact("resumed", step=state.step, of=train.max_steps or None, folder=str(asked.folder))
        _say_differences(found.saved, facts, report)
    elif found.weights is not None:
        assert found.origin is not None
        _initialise(state, found.weights, found.origin, asked, report)
    sizes = Sizes(found.halvings)
    return Run(
        asked.folder,
        config,
        model,
        world.parallel(model.network),
        state,
        BatchStream(
            images,
            train.seed,
            train.batch,
            world.rank,
            world.size,
            state.retry,
            train.offset_noise,
            config.model.task,
            threads=seeds.BESIDE_A_GPU if compute.device.type == "cuda" else 1,
            texts=texts,
            noise_shape=noise_shape(config.train, config.model),
            sizes=tuple((each.step, each.batch) for each in found.course.changes),
        ),
        objective,
        None,
        None,
        world,
        report,
        extra={
            "data": asked.fingerprint,
            "init": found.init,
            "kuosan": kuosan.__version__,
            READING: stored_rule(images.plan),
            **facts,
            **({"halvings": sizes.plain()} if sizes.halvings else {}),
            **({"changes": found.course.plain()} if found.course.changes else {}),
            **({starter.FACT: found.credits} if found.credits else {}),
        },
        saved_at=found.saved.step if found.saved is not None else -1,
        sizes=sizes,
        course=found.course,
        budget=budget,
    )


def _check_conditioning(network: nn.Module) -> None:
    """Raises: Error for a caller's network that takes no image to restore as conditioning."""
    taken = inspect.signature(network.forward).parameters.values()
    if not any(each.name == "concat" or each.kind is inspect.Parameter.VAR_KEYWORD for each in taken):
        raise Error(
            f"{type(network).__name__} takes no conditioning: a task that restores calls "
            f"network(x, t, concat=...), so give forward a concat of (B, K, H, W); docs/restoration.md says which."
        )


def _history(config: RunConfig) -> LossAwareSampler | None:
    """The losses that importance sampling remembers; nothing else does."""
    schedule = config.model.schedule
    if config.train.t_sampling != "importance" or not isinstance(schedule, Discrete):
        return None
    return LossAwareSampler(schedule.T)


def _objective(
    config: RunConfig, images: Images, compute: Compute, state: State, codec: Codec, budget: Budget | None
) -> Objective:
    if config.train.objective == "classifier":
        check_labels(images)
        return Classification(config.model, compute)
    if config.train.objective == "autoencoder":
        features = perceptual_loss(config.train.autoencoder.features)
        return Autoencoding(config.model, config.train, compute, features and features.to(compute.device), budget)
    return Diffusion(config.model, config.train, compute, state.history, codec)


def _attach(run: Run, autoencoder: Held | None) -> None:
    """Give the first process what it alone has: the lock, the head, the log cut to the state's step, the monitor.

    The head comes first: it is what makes the folder a run, which the same command completes.
    """
    if run.lock is None:
        run.lock = lock(run.folder, run.report.say)
        if stored(run.folder) is not None:
            raise Error(f"{run.folder} was begun by another process meanwhile: the same command again goes on with it.")
    write_head(run)
    if autoencoder is not None:
        codec_folder.write(run.folder, autoencoder)
    run.log = Log(run.folder / LOG, table=True)
    if damage := run.log.truncate_after(run.state.step):
        run.report.say(f"warning: {damage}")
    lacking = run.state.step - len({row["step"] for row in run.log.rows()})
    if lacking:
        run.report.say(
            f"warning: {run.log.path} lacks {lacking} of the {run.state.step} rows up to here; they stay lost."
        )
    batches, train = run.batches, run.config.train
    if train.log_to == "tensorboard":
        run.board = TensorBoard(run.folder, run.state.step)
    run.monitor = Monitor(
        run.folder, run.model, batches.images, train, run.objective, batches.texts, batches.noise_shape
    )


def _restore(state: State, saved: checkpoint.Saved, asked: RunRequest) -> None:
    try:
        state.restore(saved)
    except (RuntimeError, KeyError) as error:
        raise Error(f"{saved.path} does not hold this run's state: {' '.join(str(error).split())[:300]}") from error
    last = asked.config.train.max_steps
    if state.step > last and not asked.config.train.minutes:
        raise Error(
            f"train.max_steps = {last}, but {asked.folder} is at step {state.step} already; give {state.step} or more."
        )


def _check_minutes(budget: Budget, asked: RunRequest) -> None:
    """Raises: Error for a budget that was lowered below what is used of it."""
    if budget.changed and budget.before >= budget.seconds:
        raise Error(
            f"train.minutes = {budget.minutes:g}, but {asked.folder} has used {budget.before / 60:.1f} minutes "
            f"already: give more (it had {budget.plans[-1].minutes:g})."
        )


def _say_differences(saved: checkpoint.Saved, facts: Mapping[str, Any], report: SilentTraining) -> None:
    for name, now in facts.items():
        before = saved.state.get(name)
        if before != now:
            report.fact("other_machine", what=name, before=before, now=now)


def _initialise(
    state: State, weights: Mapping[str, Tensor], origin: ModelConfig, asked: RunRequest, report: SilentTraining
) -> None:
    """The state with another run's averaged weights, and what was added to them as it begins."""
    fresh = {name: value.cpu() for name, value in state.network.state_dict().items()}
    grown = begun_from(weights, fresh, origin, asked.config.model, str(asked.init))
    if grown.news:
        report.say(f"new in it: {'; '.join(grown.news)}.")
    state.network.load_state_dict(grown.weights)
    state.ema.values.copy_(exact(state.parameters.values))
