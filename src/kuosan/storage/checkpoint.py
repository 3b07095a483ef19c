"""A checkpoint is a folder that says all about itself: configuration, weights, optimiser and state, never pickle.

    run/checkpoints/step-00001000/
        config.yaml             the whole resolved configuration
        ema.safetensors         the averaged weights, which sampling uses
        network.safetensors     the raw weights, which training goes on with
        optimizer.safetensors   its moments
        state.json              the step, and what else the trainer counts
        manifest.json           size and sha256 of each, written last

Sampling reads config.yaml and ema.safetensors alone. Every byte that is read is checked against the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from kuosan import config as trees
from kuosan.config import as_begun
from kuosan.errors import Error, shown
from kuosan.regular import SMALL, read_regular
from kuosan.storage import files, manifest
from kuosan.storage import tensors as weights

CONFIG = "config.yaml"
STATE = "state.json"
FOLDER = "checkpoints"
EXPORTED = "README.md"  # of an exported model, which has no training state
PARTS = ("ema", "network", "optimizer")  # each a safetensors file
Read = TypeVar("Read")
Fits = Callable[[Mapping[str, Any], str, Path, weights.Header], None]  # (configuration, part, its file, its header)
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint held; a part that was not asked for is empty."""

    path: Path
    step: int
    config: dict[str, Any]
    state: dict[str, Any]
    ema: dict[str, Tensor]
    network: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    damaged: tuple[str, ...] = ()  # what is wrong with newer checkpoints that were passed over; say it aloud
    entries: Mapping[str, manifest.ManifestEntry] = field(default_factory=dict)  # what its manifest lists
    stamp: tuple[int, ...] = ()  # of its manifest, by which a folder written again is known

    @property
    def untrained(self) -> bool:
        """Whether its weights are as they were drawn: of step 0, and not begun from another run's."""
        return self.step == 0 and not self.state.get("init")


class Newest(NamedTuple):
    """The newest checkpoint that verifies (None where there is none yet), and a sentence for each newer damaged one."""

    path: Path | None
    damaged: tuple[str, ...]


def folder(run: str | os.PathLike[str], step: int) -> Path:
    """Where the checkpoint of `step` lies: run/checkpoints/step-00001000."""
    return Path(run) / FOLDER / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = _STEP.fullmatch(path.name)
    assert match, f"{path} is not named step-NNNNNNNN"
    return int(match[1])


def checkpoints(run: str | os.PathLike[str]) -> list[Path]:
    """The run's checkpoint folders, oldest step first; unfinished ones are not among them."""
    parent = Path(run) / FOLDER
    if not parent.is_dir():
        return []
    with files.explained(parent, doing="read"):
        found = [path for path in parent.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def save(
    run: str | os.PathLike[str],
    step: int,
    *,
    config: Mapping[str, Any],
    ema: Mapping[str, Tensor],
    network: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 2,
    keep_steps: Collection[int] = (),
    constants: Collection[str] = (),
) -> Path:
    """Write the checkpoint of `step` so that it is there wholly or not at all, then rotate; returns its folder.

    When it returns, the disk has it. Only then are older ones deleted, down to the `keep` newest; those of `keep_steps`
    stay for ever. Ones of a later step belong to a future that a roll-back gave up, and go too. `constants` are
    names of tensors that may hold infinities, a causal mask's say.

    Raises: Error where there is no room or permission, the disk fails, or a weight is not finite. The checkpoints that
        were there are untouched, unless the message says that an old one could not be deleted.
    """
    assert keep >= 2, f"keep is {keep}: with fewer than 2, a damaged newest checkpoint would be the only one"
    parts = {"ema": ema, "network": network, "optimizer": optimizer}
    for part, tensors in parts.items():
        if name := weights.first_nonfinite({name: t for name, t in tensors.items() if name not in constants}):
            raise Error(
                f"step {step} is not saved: {part} {name!r} holds NaN or infinity; go back to the last good save."
            )
    text = trees.dump(config)
    if len(text.encode()) > SMALL:  # refused now, not when it is read again
        raise Error(
            f"step {step} is not saved: its configuration would have {len(text.encode()):,} bytes, and {SMALL:,} are "
            f"read at most: shorten the names of the classes."
        )
    counted = json.dumps({"step": step, "state": dict(state)}, indent=1, allow_nan=False)
    needed = sum(weights.nbytes(tensors) for tensors in parts.values()) + len(text) + len(counted) + (1 << 16)
    final = folder(run, step)
    with files.staged(final, needed) as staging:
        (staging / CONFIG).write_text(text, encoding="utf-8")
        for part, tensors in parts.items():
            weights.write(staging / f"{part}.safetensors", tensors)
        (staging / STATE).write_text(counted + "\n", encoding="utf-8")
    _rotate(run, step, keep, keep_steps)
    return final


def _rotate(run: str | os.PathLike[str], step: int, keep: int, keep_steps: Collection[int]) -> None:
    """Delete what the checkpoint of `step`, now safe, makes superfluous."""
    there = checkpoints(run)
    given_up = [path for path in there if step_of(path) > step]
    old = [path for path in there if step_of(path) <= step][:-keep]
    for path in given_up + old:
        if step_of(path) not in keep_steps:
            files.remove(path)


def latest(run: str | os.PathLike[str]) -> Newest:
    """The newest checkpoint of the run that verifies byte for byte, and what is wrong with the newer ones.

    Raises: Error when there are checkpoints and none of them verifies.
    """

    def verified(path: Path, damaged: tuple[str, ...]) -> Newest:
        files.verify(path)
        return Newest(path, damaged)

    return _newest(run, verified) or Newest(None, ())


def load(
    path: str | os.PathLike[str],
    parts: Collection[str] = PARTS,
    fits: Fits = lambda *_: None,
    opened: Sequence[Saved] = (),
) -> Saved:
    """What a run's newest good checkpoint, or the checkpoint folder given, holds; tensors on the CPU, dtypes as saved.

    `parts=("ema",)` is all that sampling needs, and all that is then read and checked. `fits` (`model.require_fit`)
    compares each part's header with the configuration before the part is read. Of a checkpoint `opened` before,
    with fewer parts, only these parts are read.

    Raises: Error that says what `path` is instead, or which file of it is damaged and how.
    """
    path = Path(path)
    if not _is_run(path):
        return _load(path, parts, fits, opened=opened)
    found = _newest(path, lambda checkpoint, damaged: _load(checkpoint, parts, fits, damaged, opened))
    if found is None:
        raise Error(f"{path} has no checkpoint yet: train it first, or wait for its first save.")
    return found


def _newest(run: str | os.PathLike[str], read: Callable[[Path, tuple[str, ...]], Read]) -> Read | None:
    """What `read` makes of the newest checkpoint that it does not refuse, given what is wrong with the newer ones."""
    damaged: list[str] = []
    for path in reversed(checkpoints(run)):
        try:
            return read(path, tuple(damaged))
        except Error as error:
            if path.exists():
                damaged.append(str(error))
            else:  # a training has rotated it away meanwhile, after saving a newer one
                return _newest(run, read)
    if damaged:
        raise Error(f"no checkpoint of {run} can be used:\n  " + "\n  ".join(damaged))
    return None


def home(path: Path) -> Path:
    """The run that a checkpoint lies in; what is no checkpoint of a run is its own."""
    above = path.resolve().parent
    return above.parent if above.name == FOLDER else path


def is_exported(path: Path) -> bool:
    """Whether a folder is a model that was exported, or a checkpoint away from its run: it holds but what it lists."""
    return (path / manifest.NAME).is_file() and path.resolve().parent.name != FOLDER


def load_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of a run's newest good checkpoint, or of the checkpoint folder given."""
    return load(path, parts=()).config


def _load(
    path: Path, parts: Collection[str], fits: Fits, damaged: tuple[str, ...] = (), opened: Sequence[Saved] = ()
) -> Saved:
    stamp = _stamp(path)
    known = next((each for each in opened if stamp and (each.path, each.stamp) == (path, stamp)), None)
    entries = manifest.read(path) if known is None else known.entries
    for name in (CONFIG, STATE, *(f"{part}.safetensors" for part in parts)):
        if name not in entries and EXPORTED in entries:
            raise Error(f"{path} is an exported model: it can be sampled, or begun from with --init, not gone on with.")
        if name not in entries:
            raise Error(f"{path} is not a checkpoint: {name} is missing; give a run or a checkpoint folder.")
    config, step, state = _described(path, entries) if known is None else (known.config, known.step, known.state)
    tensors: dict[str, dict[str, Tensor]] = {}
    for part in parts:
        name = f"{part}.safetensors"
        check = partial(fits, config, part, path / name)
        tensors[part], sha256 = weights.read_hashed(path / name, check)
        manifest.check_hash(path, name, sha256, entries[name])
    loaded = {part: tensors.get(part, {}) for part in PARTS}
    return Saved(path, step, config, state, **loaded, damaged=damaged, entries=entries, stamp=stamp)


def _stamp(path: Path) -> tuple[int, ...]:
    """Of a checkpoint's manifest, which is written last: another one, once it is written again. Nothing without one."""
    with contextlib.suppress(OSError, ValueError):
        found = (path / manifest.NAME).stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return ()


def _described(path: Path, entries: Mapping[str, manifest.ManifestEntry]) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """A checkpoint's configuration, step and state."""
    config = trees.parse(_text(path, CONFIG, entries), path / CONFIG)
    for group in ("model", "train", "data", "compute"):
        if not isinstance(config.get(group, {}), dict):
            raise Error(
                f"{path / CONFIG}: {group} is {shown(config[group])}, not a group of settings; {manifest.CURE}."
            )
    return as_begun(config), *_parse_state(_text(path, STATE, entries), path)


def _parse_state(text: str, path: Path) -> tuple[int, dict[str, Any]]:
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        counted = json.loads(text)
        step, state = counted["step"], counted["state"]
        if type(step) is int and 0 <= step < 1 << 63 and isinstance(state, dict):
            return step, state
    raise Error(f"{path}: {STATE} holds no step and state; use an earlier checkpoint, or copy the folder again.")


def _text(path: Path, name: str, entries: Mapping[str, manifest.ManifestEntry]) -> str:
    """A small file's text, from the very bytes that were hashed."""
    with files.explained(path / name, doing="read"):
        content = read_regular(path / name)
    manifest.check_hash(path, name, hashlib.sha256(content).hexdigest(), entries[name])
    return content.decode(errors="replace")


def _is_run(path: Path) -> bool:
    """True for a run's folder, False for a checkpoint's; an Error that says what else it is."""
    cure = "give a run folder (the one that `kuosan train` made) or one of its checkpoints"
    with files.explained(path, doing="read"):
        if "\0" in str(path):
            raise Error(f"{shown(str(path))} can be no path: it holds a NUL; {cure}.")
        if path.is_file():
            if (path.parent / manifest.NAME).is_file():
                raise Error(f"{path} is one file of a checkpoint: give its folder, {path.parent}.")
            found = weights.kind(path)
            if found == "safetensors":
                raise Error(f"{path} is bare weights without a configuration; {cure}.")
            raise Error(weights.not_weights(path, found) if found != "unknown" else f"{path} is no checkpoint; {cure}.")
        if not path.is_dir():
            raise Error(f"{path} does not exist; {cure}.")
        if (path / FOLDER).is_dir():
            return True
        if _STEP.fullmatch(path.name) or (path / manifest.NAME).is_file():
            return False
        if path.name == FOLDER:
            raise Error(f"{path} is the inside of a run: give {path.parent}.")
        what = "holds no checkpoints" if any(path.iterdir()) else "is empty"
    raise Error(f"{path} is not a run: it {what}; {cure}.")
