"""What a training is made of: prepare (images, configuration), open (a save, or a fresh start), begin, train."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

from kuosan import config as trees
from kuosan import moved
from kuosan.data.dataset import Images, open_images
from kuosan.device import Compute, choose
from kuosan.errors import Error
from kuosan.models.grow import require_growth
from kuosan.models.model import ModelConfig
from kuosan.models.starter import NAME, suits
from kuosan.networks.config import Size
from kuosan.options import Tree
from kuosan.storage.cache import NEAR, Results
from kuosan.storage.checkpoint import Saved
from kuosan.storage.log import Log
from kuosan.text.tokens import NoText, TextEncoderConfig
from kuosan.train import budget as budgets
from kuosan.train import latents, loop, resume, saving, text_conditioning
from kuosan.train.config import CHANGEABLE, RunConfig
from kuosan.train.distributed import World, join, leave, meet
from kuosan.train.report import SilentTraining, draw
from kuosan.train.resolve import check_tree, lengthened, resolve, take_along
from kuosan.train.resume import untrained
from kuosan.train.saving import Stop
from kuosan.train.setup import attach, open_run
from kuosan.train.state import Run

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from kuosan.models.latents import Held
    from kuosan.text.encoder import TextEncoder


NOT_READ: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class TrainingSetup:
    """A run that was asked for, with its images opened and its configuration resolved."""

    out: Path
    config: RunConfig
    images: Images
    compute: Compute
    world: World
    network: nn.Module | None = None
    encoder: TextEncoder | None = None
    autoencoder: Held | None = None  # of a model of latents
    note: str | None = None  # what is to be said once the run starts
    saves: Sequence[Saved] = ()  # read before, without their tensors: the one to go on from, the one of --init
    begun: float = field(default_factory=lambda: budgets.seconds_now())  # since when a time budget is used
    init: Path | None = None  # what a new run begins with unasked


def prepare(
    out: Path,
    tree: Mapping[str, Any],
    *,
    size: Size | None = None,
    network: nn.Module | None = None,
    dataset: Dataset[Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    typed: str = "",
    before: Mapping[str, Any] | None = NOT_READ,
    checked: RunConfig | None = None,
    origin: Mapping[str, Any] | None = None,
    saves: Sequence[Saved] = (),
    begun: float | None = None,
    starter: Saved | None = None,
) -> TrainingSetup:
    """Open the images and resolve the configuration against them.

    Args:
        typed: the text encoder's name if a person typed it, as against one in a file: only that one may be fetched.
        before: the configuration of the run that is there, if it was read already.
        checked: what `check_tree` made of the tree, if it was checked already.
        origin: the configuration of the run whose weights a new one begins with.
        saves: those that were read already, without their tensors.
        begun: by `budget.seconds_now`, since when a time budget is used; None: since now.
        starter: the starter weights without their tensors, which the run begins with where they suit its model.

    Raises:
        Error: no usable images, or a configuration that cannot be trained.
    """
    begun = budgets.seconds_now() if begun is None else begun
    if before is NOT_READ:
        before, saves = resume.begun(out)  # a folder of something else is refused before the images are read
    checked = checked or check_tree(tree)
    world = meet()  # before the data are read: however long that takes, the others see this process alive
    try:
        tree = _as_begun(before, tree, begun=before is not None and not untrained(out))
        tree, autoencoder, note = latents.named(out, before, tree)
        if dataset is not None:
            tree = trees.merge({"data": {"path": type(dataset).__name__}}, tree)
        data = trees.build(RunConfig, {"data": tree.get("data", {})}).data
        source = data if dataset is None else dataset
        images = open_images(
            source, config=data, progress=progress, memory=Results.at(data.cache, NEAR), outputs=(out,)
        )
        own = type(network).__name__ if network is not None else None
        encoder, text = _text(tree, images, typed)
        compute = choose(checked.compute)
        begun_from = None if origin is None else trees.build(ModelConfig, origin.get("model", {}))
        resolved = partial(
            resolve,
            shape=images.shape,
            size=size,
            own=own,
            classes=tuple(images.classes),
            text=lengthened(text, tree, begun_from),
            shapes=_shapes(images),
            before={"defaults": before.get("defaults", 1)} if before is not None and untrained(out) else before,
            checked=checked,
            origin=begun_from,
            cores=compute.cores,
        )
        config, init = resolved(tree), None
        if starter is not None and (other := _with_starter(config, tree, starter, resolved)):
            config, init, saves = other, Path(NAME), (*saves, starter)
        join(world, compute.device)
    except BaseException as error:
        leave(world, error)
        raise
    return TrainingSetup(out, config, images, compute, world, network, encoder, autoencoder, note, saves, begun, init)


def _with_starter(
    config: RunConfig, tree: Mapping[str, Any], starter: Saved, resolved: Callable[..., RunConfig]
) -> RunConfig | None:
    """The configuration of a run that begins with the starter weights; None where they do not suit what was asked."""
    weights = trees.build(ModelConfig, starter.config.get("model", {}))
    if config.train.objective != "diffusion" or not suits(config.model, weights):
        return None
    try:
        other = resolved(take_along(tree, starter.config, NAME), origin=weights)
        require_growth(weights, other.model, NAME)
    except Error:  # what was said of captions or task goes with no weights of a model without
        return None
    return other


def _as_begun(before: Mapping[str, Any] | None, tree: Mapping[str, Any], *, begun: bool) -> Mapping[str, Any]:
    """The configuration with what the run that is there has where nothing is said: the versions by which it understood
    its data, and once it has begun what may change on its way."""
    before = before or {}
    names = {"data": ("layout", "split_version"), "train": CHANGEABLE if begun else ()}
    known = {group: {name: before[group][name] for name in each if name in before.get(group, {})}
             for group, each in names.items()}  # fmt: skip
    return trees.merge({group: each for group, each in known.items() if each}, tree)


def _shapes(images: Images) -> tuple[tuple[int, int], ...]:
    """The shapes that are trained on, (H, W), where there are several."""
    counts = images.buckets.counts(images.train)
    found = tuple(shape for shape, count in zip(images.buckets.shapes, counts) if count)
    return found if len(found) > 1 else ()


def _text(tree: Mapping[str, Any], images: Images, typed: str) -> tuple[TextEncoder | None, Tree | None]:
    """The text encoder that is asked for, opened (fetched only if its name was `typed`), and how captions are used."""
    text = trees.build(ModelConfig, {"text": tree.get("model", {}).get("text", {})}).text
    if isinstance(text, NoText):
        return None, None
    said = {key: value for key, value in tree.get("train", {}).items() if key == "uncaptioned"}
    uncaptioned = trees.build(RunConfig, {"train": said}).train.uncaptioned
    encoder = None
    if isinstance(text, TextEncoderConfig):
        text_conditioning.captions(images, uncaptioned)  # refused before the encoder is opened
        from kuosan.text.encoder import open_encoder

        folder = Path(text.encoder).expanduser()
        if folder.is_dir():  # so that the run finds it from everywhere
            text = replace(text, encoder=str(folder.resolve()))
        encoder = open_encoder(text, fetch=text.encoder == typed)
    return encoder, text_conditioning.settled(text, images, uncaptioned, encoder)


def opened(
    asked: TrainingSetup,
    report: SilentTraining,
    *,
    init: Path | None = None,
    nothing: bool = False,
    accept_new_data: bool = False,
    dry: bool = False,
) -> Run:
    """The run at its newest good save or at its beginning. Nothing is written; where a run is there, it is locked.

    Args:
        dry: only look: lock nothing, and keep nothing of what is computed.
    """
    if asked.note is not None:
        report.say(asked.note)
    try:
        return open_run(
            asked.out,
            asked.config,
            asked.images,
            asked.compute,
            asked.world,
            report,
            network=asked.network,
            encoder=asked.encoder,
            autoencoder=asked.autoencoder,
            init=init or asked.init,
            nothing=nothing,
            accept_new_data=accept_new_data,
            saves=asked.saves,
            begun=asked.begun,
            dry=dry,
        )
    except BaseException as error:
        leave(asked.world, error)  # a process that ends within its group may be aborted by the group's own threads
        raise


def begin(run: Run, asked: TrainingSetup) -> None:
    """Lock the run's folder against other processes, and write what makes it a run."""
    try:
        attach(run, asked.autoencoder)
    except BaseException as error:
        close(run, error)
        raise


def start(asked: TrainingSetup, report: SilentTraining, *, dry: bool = False, **more: Any) -> Run:
    """A run ready to train; `dry` only looks, and writes nothing."""
    run = opened(asked, report, dry=dry, **more)
    if not dry:
        begin(run, asked)
    return run


def train(run: Run) -> int:
    """Train to the end; the signal that stopped it, or 0."""
    steps = training(run)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return int(end.value)


def training(run: Run) -> Generator[None, None, int]:
    """Train, draw the curve, let go of the run; yields after every step, returns the signal that stopped it, or 0.

    Torch's generator is left as it was.
    """
    try:
        with Stop() as stop, loop.callers_generator(run.objective.compute.device):
            stopped = yield from loop.train(run, stop)
        if run.log is not None:
            _draw_curve(run, run.log)
    except BaseException as error:
        close(run, error)
        raise
    close(run)
    return stopped


def close(run: Run, error: BaseException | None = None) -> None:
    """Let go of log, lock and the other processes, which are given the error that ended this one. Once is enough."""
    if run.closed:
        return
    run.closed = True
    saving.close(run)
    leave(run.world, error)


def _draw_curve(run: Run, log: Log) -> None:
    try:
        saving.follow(run)
        draw(list(log.rows()), run.folder / "curve.png")
    except (Error, OSError, TypeError, ValueError, KeyError) as error:  # a log may hold anything; matplotlib wants room
        run.report.say(f"warning: no curve: {error}")


__getattr__ = moved.later(__name__, {"fit": "train.job"})  # where it was in version 0.1.0
