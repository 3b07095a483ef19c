"""Training from Python, and what the shell's `train` is made of: prepare, start, train."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kuosan import config as trees
from kuosan import options
from kuosan.data.captioned import first_rows
from kuosan.data.pictures import Pictures, open_pictures
from kuosan.device import Compute, choose
from kuosan.errors import Error
from kuosan.journal import Log
from kuosan.model import ModelConfig
from kuosan.networks.config import Size
from kuosan.options import Tree
from kuosan.shelf import NEAR, Results
from kuosan.text.config import Encoder, NoText
from kuosan.train import codecs, loop, saving, texts
from kuosan.train.config import SHORT, RunConfig, check, encoder_named, resolve
from kuosan.train.curve import draw
from kuosan.train.distributed import World, join, leave, meet
from kuosan.train.folder import stored, untrained
from kuosan.train.loop import Run
from kuosan.train.report import Lines, Report, Silent
from kuosan.train.start import open_run
from kuosan.train.stop import Stop

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from kuosan.codec.folder import Held
    from kuosan.text.encoder import TextEncoder


@dataclass(frozen=True)
class Asked:
    """A run that was asked for, with its pictures opened and its configuration resolved."""

    out: Path
    config: RunConfig
    pictures: Pictures
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
) -> Asked:
    """Open the pictures and resolve the configuration against them.

    Args:
        typed: the text encoder's name if a person typed it, as against one in a file: only that one may be fetched.

    Raises:
        Error: no usable pictures, or a configuration that cannot be trained.
    """
    before = stored(out)  # a folder of something else is refused before the pictures are read
    check(tree)
    world = meet()  # before the data are read: however long that takes, the others see this process alive
    try:
        tree = _as_begun(before, tree)
        tree, autoencoder, note = codecs.named(out, before, tree)
        if dataset is not None:
            tree = trees.merge({"data": {"path": type(dataset).__name__}}, tree)
        data = trees.build(RunConfig, {"data": tree.get("data", {})}).data
        source = data if dataset is None else dataset
        pictures = open_pictures(
            source, config=data, progress=progress, memory=Results.at(data.cache, NEAR), outputs=(out,)
        )
        own = type(network).__name__ if network is not None else None
        encoder, text = _text(tree, pictures, typed)
        config = resolve(
            tree,
            pictures.shape,
            size,
            own=own,
            classes=tuple(pictures.classes),
            text=text,
            shapes=_shapes(pictures),
            before={"defaults": before.get("defaults", 1)} if before is not None and untrained(out) else before,
        )
        compute = choose(config.compute)
        join(world, compute.device)
    except BaseException as error:
        leave(world, error)
        raise
    return Asked(out, config, pictures, compute, world, network, encoder, autoencoder, note)


def _as_begun(before: Mapping[str, Any] | None, tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with the versions by which the run that is there understood its data, where none are given."""
    data = {} if before is None else before.get("data", {})
    known = {name: data[name] for name in ("layout", "split_version") if name in data}
    return trees.merge({"data": known}, tree) if known else tree


def _shapes(pictures: Pictures) -> tuple[tuple[int, int], ...]:
    """The shapes that are trained on, (H, W), where there are several."""
    counts = pictures.buckets.counts(pictures.train)
    found = tuple(shape for shape, count in zip(pictures.buckets.shapes, counts) if count)
    return found if len(found) > 1 else ()


def _text(tree: Mapping[str, Any], pictures: Pictures, typed: str) -> tuple[TextEncoder | None, Tree | None]:
    """The text encoder that is asked for, opened, and how captions are told; fetched only if its name was `typed`."""
    text = trees.build(ModelConfig, {"text": tree.get("model", {}).get("text", {})}).text
    if isinstance(text, NoText):
        return None, None
    said = {key: value for key, value in tree.get("train", {}).items() if key == "uncaptioned"}
    uncaptioned = trees.build(RunConfig, {"train": said}).train.uncaptioned
    encoder = None
    if isinstance(text, Encoder):
        texts.captions(pictures, uncaptioned)  # refused before the encoder is opened
        from kuosan.text.encoder import open_encoder

        folder = Path(text.encoder).expanduser()
        if folder.is_dir():  # so that the run finds it from everywhere
            text = replace(text, encoder=str(folder.resolve()))
        encoder = open_encoder(text, fetch=text.encoder == typed)
    return encoder, texts.settled(text, pictures, uncaptioned, encoder)


def start(
    asked: Asked, report: Report, *, init: Path | None = None, accept_new_data: bool = False, dry: bool = False
) -> Run:
    """The run, locked against other processes, at its newest good save or at its beginning; `dry` writes nothing."""
    if asked.note is not None:
        report.say(asked.note)
    try:
        return open_run(
            asked.out,
            asked.config,
            asked.pictures,
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
    report: Report | None = None,
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
        data: a Dataset of pictures (tensors (C, H, W) in [0, 1] or uint8, PIL images, or tuples that begin with one),
            or a path as the shell takes it.
        size: of kuosan's network, tiny to large; small if none. The pictures' is `**{"data.size": 64}`.

    Raises:
        Error: whatever the shell's `train` refuses.
    """
    if network is not None and size is not None:
        raise Error(
            f"size = {size!r} is of kuosan's networks, and a network of your own was given: leave it out. "
            'Pixels a side are **{"data.size": 64}.'
        )
    tokens = [word for key, value in settings.items() for word in options.words(key, value)]
    tree, _ = options.parse(tokens, RunConfig, SHORT)
    dataset = None if isinstance(data, str | Path) else data
    if data is None and "path" not in tree.get("data", {}):
        raise Error("no pictures given: pass data=, a torch Dataset or a path ('portraits' are built in).")
    if isinstance(data, str | Path):
        tree.setdefault("data", {})["path"] = str(data)
    asked = prepare(Path(out), tree, size=size or "small", network=network, dataset=dataset, typed=encoder_named(tree))
    heard = report or (Lines() if asked.world.first else Silent())
    for line in asked.pictures.describe():
        heard.say(f"pictures: {line}")
    if asked.config.model.task.text:
        for row in first_rows(asked.pictures):
            heard.say(f"caption: {row}")
    run = start(asked, heard, init=Path(init) if init else None, accept_new_data=accept_new_data)
    stopped = train(run)
    if stopped:  # as if it had come now: KeyboardInterrupt, or the end of the process
        signal.raise_signal(signal.Signals(stopped))
    return run.folder
