"""A run's folder: what lies in it, whether it is what was asked for, and the two files that say so.

A run's configuration is that of its newest good save; config.yaml and data.json beside the saves are copies for people
and for the next start, written again when they are lost or damaged. A run is never silently begun again.

What makes a folder a run is config.yaml, the first visible file that kuosan writes into it; codec/, the log and the
first save follow. Until that save is complete, all of it is set-up, which the same command completes or replaces.

What may differ between two starts of one run, and what would make it another. Torch-free.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from kuosan import config as trees
from kuosan.config import as_begun
from kuosan.data.config import PORTRAITS
from kuosan.errors import Error, setting
from kuosan.models import latents as codec_folder
from kuosan.models import starter
from kuosan.models.codec import apart
from kuosan.models.grow import require_growth
from kuosan.models.model import ModelConfig, require_fit
from kuosan.options import Tree
from kuosan.regular import read_regular
from kuosan.storage import checkpoint, files
from kuosan.storage.files import Lock
from kuosan.train import budget, memory
from kuosan.train.budget import Planned
from kuosan.train.config import CHANGEABLE, Course, RunConfig, TrainConfig, read_course
from kuosan.train.memory import Halving

if TYPE_CHECKING:
    from kuosan.train.state import Run

CONFIG = "config.yaml"
DATA = "data.json"
CHANGES = "changes.json"  # of settings on the run's way, by step
LOG = "log.jsonl"
SAMPLES = "samples"
GIVEN = "config.before.yaml"  # a configuration written by hand, found where a run begins


@dataclass
class RunRequest:
    """What was asked of a run's folder."""

    folder: Path
    config: RunConfig
    fingerprint: str  # of the images
    init: Path | None
    accept_new_data: bool
    nothing: bool = False  # it was said to start from nothing
    opened: Sequence[checkpoint.Saved] = ()  # what was read of saves already, without their tensors


class RunOrigin(NamedTuple):
    """What a run knows of itself: the fingerprints of its data, and the run whose weights it began with."""

    prints: tuple[str, ...]
    init: str | None


@dataclass
class RunState:
    """What the first process found there; it travels to the others."""

    saved: checkpoint.Saved | None = None
    weights: dict[str, Tensor] | None = None  # of --init
    origin: ModelConfig | None = None  # the model that they are of
    init: str | None = None  # the run whose weights this one began with
    new_data: bool = False  # the images are not those that it was trained on before
    halvings: list[Halving] = field(default_factory=list)  # where memory ran out before
    course: Course = Course()  # noqa: RUF009 (frozen); where settings changed on its way
    plans: list[Planned] = field(default_factory=list)  # of a time budget
    spent: dict[str, Any] = field(default_factory=dict)  # of it, and how quick the machine was
    notes: list[str] = field(default_factory=list)
    credits: list[str] = field(default_factory=list)  # whom its weights must name


def stored(folder: Path) -> Tree | None:
    """The configuration of the run in a folder, None where there is none yet. Raises: Error: as `begun`."""
    return begun(folder)[0]


def begun(folder: Path) -> tuple[Tree | None, tuple[checkpoint.Saved, ...]]:
    """The configuration of the run in a folder, None where there is none yet; and the save that it was read from.

    Raises:
        Error: the folder holds something else, or neither config.yaml nor any save can be read.
    """
    with files.explained(folder, doing="read"):
        if not folder.exists():
            return None, ()
        if not folder.is_dir():
            raise Error(f"{folder} is a file, not a folder; choose another --out.")
        if checkpoint.checkpoints(folder):
            saved = checkpoint.load(folder, parts=())
            return _at_last(saved.config, known_course(folder, saved, [])), (saved,)
        if (folder / CONFIG).is_file():
            return _set_up(folder), ()
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others == [codec_folder.NAME] and Lock.was_here(folder) and codec_folder.is_whole(folder):
            return None, ()  # the set-up of an earlier version, which wrote the codec first
    if others:
        raise Error(
            f"{folder} is not empty and holds no run ({', '.join(sorted(others)[:3])}); "
            f"choose a new folder with --out, or empty this one yourself."
        )
    return None, ()


def of_run(out: Path, tree: Mapping[str, Any]) -> tuple[Tree | None, Tree, tuple[checkpoint.Saved, ...]]:
    """The configuration of the run in a folder, what was said laid over it, and the save that was read.

    Raises:
        Error: there is no run, or its images are no longer where they were.
    """
    if not checkpoint.checkpoints(out) and not (out / CONFIG).is_file():
        raise Error(
            f"no images given, and {out} holds no run to go on with: kuosan train FOLDER --out {quote(str(out))}."
        )
    before, saves = begun(out)  # a save's own configuration: the run's copy may be lost, damaged or edited
    tree = trees.merge(trees.load(out / CONFIG) if before is None else before, tree)  # None: written by hand
    _check_there(str(tree.get("data", {}).get("path", PORTRAITS)), out)
    return before, tree, saves


def _check_there(path: str, out: Path) -> None:
    """Refuse to go on where a run's images are no longer where they were."""
    if path == PORTRAITS or Path(path).expanduser().exists():
        return
    place = "" if Path(path).expanduser().is_absolute() else f" (seen from {Path.cwd()})"
    raise Error(
        f"{out} was trained on {path}, which is not here{place}: name where the images are now: "
        f"kuosan train IMAGES --out {quote(str(out))}. A data set of your own from Python goes on there: "
        f"kuosan.fit(DATASET, out={str(out)!r})."
    )


def is_whole(tree: Mapping[str, Any]) -> bool:
    """Whether a configuration says what every run's own does; one written by hand says less."""
    groups = {"data": "path", "model": "shape", "train": "seed"}
    return all(isinstance(tree.get(group), Mapping) and name in tree[group] for group, name in groups.items())


def _set_up(folder: Path) -> Tree | None:
    """The configuration of a run without a save, None where a person wrote it, so that no run is begun yet.

    Raises:
        Error: config.yaml is something else's.
    """
    tree = trees.load(folder / CONFIG)
    if not any(isinstance(tree.get(group), Mapping) for group in ("data", "model", "train")):
        raise Error(
            f"{folder} holds a {CONFIG} that is no configuration of kuosan's, and no run: choose a new folder with "
            f"--out, or move that file elsewhere."
        )
    return as_begun(tree) if is_whole(tree) else None


def look(asked: RunRequest, held: list[Lock] | None) -> RunState:
    """Lock the folder, and find what to start from."""
    found, folder = RunState(), asked.folder
    if held is not None:
        held.append(lock(folder, found.notes.append))
    saved = _newest(folder, asked.opened)
    before = stored(folder) if saved is None else saved.config
    known = _known(folder, saved)
    if before is not None:
        try:
            found.new_data = bool(known.prints) and asked.fingerprint not in known.prints
            begun = saved if saved is not None and not untrained(folder) else None
            if begun is not None:
                found.course = known_course(folder, begun, found.notes)
                before = _at_last(before, found.course)
            found.notes += _compare(asked, before, known, CHANGEABLE if begun is not None else ())
            if begun is not None:
                found.course = _changed(asked.config.train, before, begun.step, found)
        except Error:
            if not untrained(folder):
                raise
            known, saved, found.new_data, found.course = RunOrigin((), None), None, False, Course()
            found.notes.append(f"{folder} holds a run of no step yet: it begins again with what is asked for now.")
    found.init = known.init or (None if asked.init is None else str(asked.init))
    found.saved = saved
    if saved is not None:
        found.notes += [f"warning: a newer save is damaged and passed over: {text}" for text in saved.damaged]
        found.halvings = memory.known(folder, saved, found.notes)
        found.plans, found.spent = budget.known(folder, saved, found.notes)
    elif asked.init is not None:
        saved = starter.load(asked.init, parts=("ema",), fits=require_fit, opened=asked.opened)
        found.weights, found.origin = saved.ema, trees.build(ModelConfig, saved.config.get("model", {}))
        require_growth(found.origin, asked.config.model, str(asked.init))
        found.notes += _init_notes(asked, saved, found.origin)
    found.credits = starter.credits_of(saved.state) if saved is not None else []
    return found


def known_course(folder: Path, saved: checkpoint.Saved, notes: list[str]) -> Course:
    """Where the settings of a run changed: by its folder, or where that cannot be read by its save."""
    path = folder / CHANGES
    try:
        with files.explained(path, doing="read"):
            if path.is_file():
                return read_course(json.loads(read_regular(path)))
    except (Error, ValueError, RecursionError) as error:
        notes.append(f"warning: {path} cannot be read ({error}); what changed after step {saved.step} is not known.")
    try:
        return read_course(saved.state.get("changes", []))
    except (Error, ValueError) as error:
        raise Error(
            f"{saved.path}: the changes in state.json are none ({error}): it is damaged; use an earlier checkpoint."
        ) from None


def _at_last(tree: Tree, course: Course) -> Tree:
    """A save's configuration with what changed after it."""
    if not course.changes:
        return tree
    last = {name: value for name, value in course.plain()[-1].items() if name != "step"}
    return trees.merge(tree, {"train": last})


def _changed(now: TrainConfig, before: Mapping[str, Any], step: int, found: RunState) -> Course:
    """The course with what is asked for now, which is said where it changes something."""
    was = trees.build(TrainConfig, before.get("train", {}))
    names = [name for name in CHANGEABLE if getattr(was, name) != getattr(now, name)]
    if not names:
        return found.course
    changes = ", ".join(f"{name} {_number(getattr(was, name))} -> {_number(getattr(now, name))}" for name in names)
    found.notes.append(f"from step {step + 1:,} on: {changes}.")
    return found.course.changed(step, was, now)


def _number(value: object) -> str:
    """A setting as it is typed: 5e-4, 0.1, 32, cosine."""
    if not isinstance(value, float):
        return str(value)
    if not 0 < value < 0.01:
        return f"{value:g}"
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def lock(folder: Path, say: Callable[[str], None]) -> Lock:
    """The folder's lock, taken. Raises: Error: another process holds it."""
    taken = Lock(folder)
    if not taken.held:
        say(f"warning: {folder} lies on a file system without locks: start no second training there.")
    return taken


def untrained(folder: Path) -> bool:
    """Whether a run was only begun: its saves are of step 0 and its log is empty, so there is nothing to lose."""
    log = folder / LOG
    begun = all(checkpoint.step_of(path) == 0 for path in checkpoint.checkpoints(folder))
    return begun and not (log.is_file() and log.stat().st_size)


def _compare(asked: RunRequest, before: Mapping[str, Any], known: RunOrigin, aloud: tuple[str, ...] = ()) -> list[str]:
    """Refuse another configuration, data set or --init than the run's; what else there is to say."""
    folder, now = asked.folder, trees.plain(asked.config)
    notes = refuse_changes(before, now, str(folder), tuple(f"train.{name}" for name in aloud))
    if asked.init is not None and known.init != str(asked.init) and checkpoint.checkpoints(folder):
        raise Error(
            f"{folder} already holds a run, so --init {asked.init} would be ignored; leave it out, or --out ANOTHER."
        )
    if asked.nothing and known.init:
        raise Error(
            f"{folder} began with {known.init}, so --init {starter.NOTHING} would be ignored; leave it out, or --out "
            f"ANOTHER."
        )
    with contextlib.suppress(Error):
        if trees.differences(before, as_begun(trees.load(folder / CONFIG))):
            notes.append(f"warning: {folder / CONFIG} is not what the run was saved with; it is written again.")
    if known.prints and asked.fingerprint not in known.prints:
        if not asked.accept_new_data:
            raise Error(
                f"the images are not the ones this run was trained on ({folder} knows data {known.prints[0][:12]}, "
                f"now {asked.fingerprint[:12]}): some were added, removed or changed, or are drawn each time, or "
                f"this version reads them otherwise (docs/data.md, What is read otherwise): put them back, say "
                f"--accept-new-data (in Python accept_new_data=True) to go on with these (no longer bit for bit the "
                f"same run), or start a new run with --out ANOTHER --init {folder}."
            )
        notes.append("going on with other images, as --accept-new-data says; no longer bit for bit the same run.")
    return notes


def beginning(folder: Path, saves: Sequence[checkpoint.Saved], goes_on: bool, may: bool) -> tuple[Path | None, bool]:
    """What the run in a folder began with, where nothing is said of it, and whether the starter weights may suit it.

    One that has no step yet, and is named by its images again, begins as a new one; by its folder alone it `goes_on`.
    """
    known = _known(folder, saves[0] if saves else None)
    if untrained(folder) and known.init in (None, starter.NAME) and not (goes_on and known.prints):
        return None, may
    if known.init is not None and (known.init == starter.NAME or (goes_on and untrained(folder))):
        return Path(known.init), False
    return None, False


def _known(folder: Path, saved: checkpoint.Saved | None) -> RunOrigin:
    """What a run knows of itself by data.json and its newest good save; either may be lost or damaged."""
    prints, init = [], None
    if saved is not None:
        prints, init = [str(saved.state.get("data"))], saved.state.get("init")
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError, Error):
        head = json.loads(read_regular(folder / DATA).decode("utf-8"))
        prints, init = [str(head["fingerprint"]), *prints], init or head["init"]
    return RunOrigin(tuple(prints), init)


def _newest(folder: Path, opened: Sequence[checkpoint.Saved]) -> checkpoint.Saved | None:
    """The newest good save; None where there is none yet. Raises: Error: there were some, and none can be used."""
    if not checkpoint.checkpoints(folder):
        if (folder / LOG).is_file() and (folder / LOG).stat().st_size:
            raise Error(
                f"{folder} holds the log of a run but none of its saves ({folder / checkpoint.FOLDER} is empty or "
                f"gone): put them back, or choose another --out; to begin again here, delete the folder yourself."
            )
        return None
    return checkpoint.load(folder, fits=require_fit, opened=opened)


def _init_notes(asked: RunRequest, saved: checkpoint.Saved, old: ModelConfig) -> list[str]:
    """Whose weights a run begins with, what it has of that run's model, and what it has not."""
    new = asked.config.model
    along = [name for name in ("schedule", "prediction", "sigma_data") if getattr(new, name) == getattr(old, name)]
    own = [name for name in ("schedule", "prediction", "sigma_data") if name not in along]
    along = ["network", *along, *(("text",) if new.text == old.text and new.task.text else ())]
    start = f"starting from the averaged weights of {asked.init}, step {saved.step}, with its {', '.join(along)}."
    if asked.init is not None and starter.is_meant(asked.init):
        start = (
            f"starting from kuosan's starter weights, with their {', '.join(along)}: --init {starter.NOTHING} starts "
            f"from nothing. {starter.CREDITS} in the run's folder names whose images they learned from."
        )
    notes = [f"warning: a newer save is damaged and passed over: {text}" for text in saved.damaged] + [start]
    why = apart(new.codec, old.codec)
    notes += [f"note: {asked.init} {why}."] if why and new.codec.kind != "pixels" and new.codec.scale else []
    mine, theirs = trees.plain(new), trees.plain(old)
    return notes + [f"note: those were trained with model.{name} {theirs[name]}, now {mine[name]}." for name in own]


def write_head(run: Run) -> None:
    """Look for room, sweep what crashes left, and write config.yaml and data.json.

    A config.yaml that a person wrote into a folder without a save is kept beside, under another name.
    """
    folder, images = run.folder, run.batches.images
    parameters = run.state.parameters.values.numel()
    there = len(checkpoint.checkpoints(folder))
    saves = max(1, run.config.train.keep + 1 - there)
    files.room_for(folder, saves * 24 * parameters)  # two copies of the weights, two moments, the float64 average
    for place in (folder, folder / SAMPLES):
        with contextlib.suppress(OSError):
            files.sweep(place)
    if not there and (text := _by_hand(folder / CONFIG)):
        files.write_atomic(folder / GIVEN, text)
        run.report.fact("config_by_hand", path=str(folder / CONFIG), kept=GIVEN)
    facts = {
        "fingerprint": run.extra["data"],
        "train": len(images.train),
        "held_out": len(images.held_out),
        "init": run.extra["init"],
    }
    if run.saved_at < 0:  # a run that begins has neither halvings nor plans yet: those are another's
        for name in (memory.FILE, budget.FILE):
            with files.explained(folder / name):
                (folder / name).unlink(missing_ok=True)
    _write_credits(folder / starter.CREDITS, run.extra.get(starter.FACT, []))
    if run.course.changes:  # before the configuration, which they have changed
        files.write_atomic(folder / CHANGES, json.dumps(run.course.plain(), indent=1) + "\n")
    else:
        with files.explained(folder / CHANGES):
            (folder / CHANGES).unlink(missing_ok=True)
    files.write_atomic(folder / CONFIG, trees.dump(trees.plain(run.config)))
    files.write_atomic(folder / DATA, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _write_credits(path: Path, lines: list[str]) -> None:
    """Whom a run's weights must name; of one that names nobody, the page of a start before it goes."""
    if lines:
        files.write_atomic(path, starter.credits_page(lines))
        return
    with files.explained(path):
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith(starter.HEADING):
            path.unlink()


def _by_hand(path: Path) -> str | None:
    """The text of a configuration that is not as kuosan writes one; None where there is none, or none that is read."""
    with contextlib.suppress(Error, OSError, ValueError):
        if path.is_file():
            tree = trees.parse(text := path.read_text(encoding="utf-8"), path)
            return text if text != trees.dump(tree) or not is_whole(tree) else None
    return None


# What may change between two starts of the same run: how long, how often and where; and, aloud, `CHANGEABLE`.
FREE_ON_RESUME = (
    "train.max_steps",
    "train.minutes",
    "train.save_every",
    "train.keep",
    "train.evaluate_every",
    "train.evaluate_pictures",
    "train.preview_every",
    "train.preview_pictures",
    "train.preview_steps",
    "train.log_to",
    "train.micro_batch",
    "compute.",
    "model.codec.run",
    "model.text.encoder",  # its place; model.text.weights says which it is
    "data.path",
    "data.workers",
    "data.memory_gib",
    "data.max_pixels",
    "data.max_bytes",
    "data.cache",
    "data.range",  # what it changes in the pixels of arrays and float files, their fingerprint shows
)
# Of these, what changes the order of sums, and with it the last bits of what is learned.
INEXACT = ("train.micro_batch", "compute.")


def refuse_changes(
    stored: Mapping[str, Any], now: Mapping[str, Any], run: str, aloud: tuple[str, ...] = ()
) -> list[str]:
    """What differs harmlessly between a run's stored configuration and the one given now, in words.

    Args:
        aloud: keys that may change as well, which others say.

    Raises:
        Error: something differs that would make this another run; it names each key with both values and the choices.
    """
    with contextlib.suppress(Error):  # an older run knows nothing of newer settings, which had their defaults
        stored = trees.plain(trees.build(RunConfig, stored))
    changed = trees.differences(stored, now)
    fixed = {key: pair for key, pair in changed.items() if not _is_in(key, FREE_ON_RESUME + aloud)}
    if fixed:
        lines = "\n".join(
            f"  {key}: the run has {setting(old)}, now {setting(new)}" for key, (old, new) in fixed.items()
        )
        raise Error(
            f"{run} holds a run with another configuration:\n{lines}\n"
            f"  Either repeat the run's own values (they are in {run}/config.yaml), start a new run with --out "
            f"ANOTHER, or start a new one from this run's weights with --out ANOTHER --init {run}."
        )
    return [_said(key, old, new, now) for key, (old, new) in changed.items() if key not in aloud]


def _said(key: str, old: Any, new: Any, now: Mapping[str, Any]) -> str:
    text = f"{key}: {old} -> {new}"
    if key == "train.max_steps" and now["train"]["lr_shape"] == "cosine":
        return f"{text}; from here on the learning rate is that of a cosine over {new} steps, a jump from {old}'s."
    if _is_in(key, INEXACT):
        return f"{text}; the run goes on, but no longer bit for bit as it would have."
    return text


def _is_in(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of `names`, or under one that ends with a dot."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)
