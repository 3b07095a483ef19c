"""Training from Python, and what the shell's `train` is made of: prepare, start, train."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kuosan import config as trees
from kuosan import options
from kuosan.data.dataset import Images, first_rows, open_images
from kuosan.device import Compute, choose
from kuosan.errors import Error, shown
from kuosan.models.model import ModelConfig, stored_schedule
from kuosan.networks.config import Size
from kuosan.options import Tree
from kuosan.storage.cache import NEAR, Results
from kuosan.storage.log import Log
from kuosan.text.config import NoText, TextEncoderConfig
from kuosan.train import latents, loop, saving, text_conditioning
from kuosan.train.config import SHORT, RunConfig
from kuosan.train.distributed import World, join, leave, meet
from kuosan.train.report import Lines, SilentTraining, TrainingReport, draw
from kuosan.train.resolve import check_tree, encoder_named, resolve
from kuosan.train.resume import stored, untrained
from kuosan.train.run import Run
from kuosan.train.saving import Stop
from kuosan.train.setup import open_run

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from kuosan.models.latents import Held
    from kuosan.text.encoder import TextEncoder


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


def prepare(
    out: Path,
    tree: Mapping[str, Any],
    *,
    size: Size = "small",
    network: nn.Module | None = None,
    dataset: Dataset[Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    typed: str = "",
) -> TrainingSetup:
    """Open the images and resolve the configuration against them.

    Args:
        typed: the text encoder's name if a person typed it, as against one in a file: only that one may be fetched.

    Raises:
        Error: no usable images, or a configuration that cannot be trained.
    """
    before = stored(out)  # a folder of something else is refused before the images are read
    check_tree(tree)
    world = meet()  # before the data are read: however long that takes, the others see this process alive
    try:
        tree = _as_begun(before, tree)
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
        config = resolve(
            tree,
            images.shape,
            size,
            own=own,
            classes=tuple(images.classes),
            text=text,
            shapes=_shapes(images),
            before={"defaults": before.get("defaults", 1)} if before is not None and untrained(out) else before,
        )
        compute = choose(config.compute)
        join(world, compute.device)
    except BaseException as error:
        leave(world, error)
        raise
    return TrainingSetup(out, config, images, compute, world, network, encoder, autoencoder, note)


def _as_begun(before: Mapping[str, Any] | None, tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with the versions by which the run that is there understood its data, where none are given."""
    data = {} if before is None else before.get("data", {})
    known = {name: data[name] for name in ("layout", "split_version") if name in data}
    return trees.merge({"data": known}, tree) if known else tree


def _shapes(images: Images) -> tuple[tuple[int, int], ...]:
    """The shapes that are trained on, (H, W), where there are several."""
    counts = images.buckets.counts(images.train)
    found = tuple(shape for shape, count in zip(images.buckets.shapes, counts) if count)
    return found if len(found) > 1 else ()


def _text(tree: Mapping[str, Any], images: Images, typed: str) -> tuple[TextEncoder | None, Tree | None]:
    """The text encoder that is asked for, opened, and how captions are told; fetched only if its name was `typed`."""
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


def start(
    asked: TrainingSetup,
    report: TrainingReport,
    *,
    init: Path | None = None,
    accept_new_data: bool = False,
    dry: bool = False,
) -> Run:
    """The run, locked against other processes, at its newest good save or at its beginning; `dry` writes nothing."""
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
            init=init,
            accept_new_data=accept_new_data,
            dry=dry,
        )
    except BaseException as error:
        leave(asked.world, error)  # a process that ends within its group may be aborted by the group's own threads
        raise


def train(run: Run) -> int:
    """Train, draw the curve, let go of the run; the signal that stopped it, or 0. Torch's generator stays as it was."""
    try:
        with Stop() as stop, loop.callers_generator(run.objective.compute.device):
            stopped = loop.train(run, stop)
        if run.log is not None:
            _draw_curve(run, run.log)
    except BaseException as error:
        saving.close(run)
        let_go(run, error)
        raise
    saving.close(run)
    let_go(run)
    return stopped


def let_go(run: Run, error: BaseException | None = None) -> None:
    """Leave the run's processes, of which the others are given the error that ended this one."""
    leave(run.world, error)


def _draw_curve(run: Run, log: Log) -> None:
    try:
        saving.follow(run)
        draw(list(log.rows()), run.folder / "curve.png")
    except (Error, OSError, TypeError, ValueError, KeyError) as error:  # a log may hold anything; matplotlib wants room
        run.report.say(f"warning: no curve: {error}")


def fit(
    network: nn.Module | None = None,
    data: Dataset[Any] | str | Path | None = None,
    out: str | Path = "run",
    *,
    report: TrainingReport | None = None,
    size: Size | None = None,
    init: str | Path | None = None,
    accept_new_data: bool = False,
    **settings: Any,
) -> Path:
    """Train on a folder or a torch Dataset, kuosan's network or a module of one's own; returns the run's folder.

    The same call again goes on where the run stopped. Settings are those of the configuration, by their last name
    (`max_steps=1000`) or dotted (`**{"train.batch": 32}`).

    Args:
        network: called as network(x, t) with x (B, C, H, W) float32, t (B,) float32; None builds the U-Net, or a
            transformer if `**{"network.kind": "dit"}`.
        data: a Dataset of images (tensors (C, H, W) in [0, 1] or uint8, PIL images, or tuples that begin with one),
            or a path as the shell takes it.
        settings: `schedule` may be a `Discrete`, `Karras` or `Flow` besides a word.
        size: of kuosan's network, tiny to large; small if none. The images' is `**{"data.size": 64}`.

    Raises:
        Error: whatever the shell's `train` refuses.
    """
    if network is not None and size is not None:
        raise Error(
            f"size = {size!r} is of kuosan's networks, and a network of your own was given: leave it out. "
            'Pixels a side are **{"data.size": 64}.'
        )
    schedule = settings.pop("schedule") if dataclasses.is_dataclass(settings.get("schedule")) else None
    tokens = [word for key, value in settings.items() for word in options.words(key, value)]
    tree, _ = options.parse(tokens, RunConfig, SHORT)
    if schedule is not None:
        if also := tree.get("model", {}).get("schedule"):
            raise Error(
                f"schedule {shown(schedule)} holds all of its numbers, so {', '.join(also)} beside it is refused."
            )
        tree = trees.merge(tree, {"model": {"schedule": trees.plain(stored_schedule(schedule))}})
    dataset = None if isinstance(data, str | Path) else data
    if data is None and "path" not in tree.get("data", {}):
        raise Error("no images given: pass data=, a torch Dataset or a path ('portraits' are built in).")
    if isinstance(data, str | Path):
        tree.setdefault("data", {})["path"] = str(data)
    asked = prepare(Path(out), tree, size=size or "small", network=network, dataset=dataset, typed=encoder_named(tree))
    heard = report or (Lines() if asked.world.first else SilentTraining())
    for line in asked.images.describe():
        heard.say(f"images: {line}")
    if asked.config.model.task.text:
        for row in first_rows(asked.images):
            heard.say(f"caption: {row}")
    run = start(asked, heard, init=Path(init) if init else None, accept_new_data=accept_new_data)
    stopped = train(run)
    if stopped:  # as if it had come now: KeyboardInterrupt, or the end of the process
        signal.raise_signal(signal.Signals(stopped))
    return run.folder
