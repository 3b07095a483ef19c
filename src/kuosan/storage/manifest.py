"""The last file of a folder that kuosan wrote: the size and sha256 of every other file in it, and its own.

Neither safetensors nor YAML notices a flipped bit or an edited line; the manifest does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kuosan.errors import Error, shown

FORMAT = 1  # of the manifest and of everything it covers; a reader refuses a higher one
NAME = "manifest.json"
LIMIT = 1 << 20  # bytes; a manifest of ours has about 100 a file
CURE = "use an earlier checkpoint, or copy the folder again"


class ManifestEntry(NamedTuple):
    """What the manifest says of one file."""

    size: int
    sha256: str


def names(directory: Path) -> Iterator[str]:
    """The files under `directory` by relative POSIX name, but the manifest and hidden ones (a desktop's, NFS's)."""
    for folder, folders, files in os.walk(directory):
        for name in files + [name for name in folders if os.path.islink(os.path.join(folder, name))]:
            path = Path(folder, name)
            relative = path.relative_to(directory).as_posix()
            if relative == NAME or name.startswith("."):
                continue
            if path.is_symlink() or not path.is_file():
                raise Error(f"{directory}: {relative} is not a plain file; remove the link, or copy the folder again.")
            yield relative


def sha256(path: Path) -> str:
    """The hex sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe(directory: Path) -> bytes:
    """The manifest of the files now in `directory`."""
    entries = {
        name: ManifestEntry((directory / name).stat().st_size, sha256(directory / name)) for name in names(directory)
    }
    files = {name: entry._asdict() for name, entry in sorted(entries.items())}
    return _text({"format": FORMAT, "files": files})


def _text(body: Mapping[str, object]) -> bytes:
    return json.dumps({**body, "sha256": _own_sha256(body)}, indent=1).encode() + b"\n"


def _own_sha256(body: Mapping[str, object]) -> str:
    """The manifest's hash of itself: of its JSON without that hash."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read(directory: Path) -> dict[str, ManifestEntry]:
    """What the manifest of `directory` says, checked against itself and against the names and sizes there.

    Raises: Error that names the file and what is wrong with it: damaged, missing, extra, or of another size.
    """
    path = directory / NAME
    if not path.is_file() or path.is_symlink():
        raise Error(f"{directory}: {NAME} is missing, so nothing in it can be trusted; {CURE}.")
    entries = _parsed(path)
    there = set(names(directory))
    if missing := sorted(entries.keys() - there):
        raise Error(f"{directory}: {missing[0]} is missing; {CURE}.")
    if extra := sorted(there - entries.keys()):
        raise Error(f"{directory}: {extra[0]} is not in its {NAME}; move that file elsewhere.")
    for name, entry in entries.items():
        if (size := (directory / name).stat().st_size) != entry.size:
            raise Error(f"{directory}: {name} is damaged: {size} bytes instead of {entry.size}; {CURE}.")
    return entries


def _parsed(path: Path) -> dict[str, ManifestEntry]:
    damaged = Error(f"{path.parent}: {NAME} is damaged; {CURE}.")
    if path.stat().st_size > LIMIT:
        raise damaged
    try:
        content = path.read_bytes()
        body = json.loads(content)
        own = body.pop("sha256")
        if own != _own_sha256(body):
            raise damaged
        if body["format"] != FORMAT:
            raise Error(
                f"{path.parent}: written in format {shown(body['format'])}, this kuosan reads {FORMAT}; update kuosan."
            )
        if content != _text(body):  # not even a blank differs
            raise damaged
        return {name: ManifestEntry(int(entry["size"]), str(entry["sha256"])) for name, entry in body["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None


def check_hash(directory: Path, name: str, found: str, entry: ManifestEntry) -> None:
    """Raise an `Error` unless the sha256 `found` over a file's bytes is the manifest's."""
    if found != entry.sha256:
        raise Error(
            f"{directory}: {name} is damaged or was edited: its sha256 is {found[:12]}..., "
            f"{NAME} says {entry.sha256[:12]}...; {CURE}."
        )
