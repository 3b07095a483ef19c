"""Which source a path names, decided from what lies there; its listing says so in a sentence.

Files (folders, zips, tars) are decoded later; arrays (IDX, npz, the portraits) are pixels already.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from kuosan.data.archives import BLOCK, PACKED_TAR, is_tar, packed
from kuosan.data.arrays import Arrays
from kuosan.data.config import LABEL, PORTRAITS, DataConfig
from kuosan.data.entries import Source
from kuosan.data.folders import Archive, Folder
from kuosan.data.idx import Idx, is_idx, is_idx_folder
from kuosan.data.portraits import Portraits
from kuosan.errors import Error


def find_source(config: DataConfig, outputs: Collection[Path] = ()) -> Source:
    """The source that `config.path` names, by what lies there.

    Args:
        outputs: folders that are written to, which are no data where they lie below it.

    Raises:
        Error: nothing is there, or nothing that holds pictures.
    """
    if config.path == PORTRAITS:
        return Portraits(config.hold_out, config.label_column)
    path = Path(config.path).expanduser()
    try:
        if path.is_dir():
            return _numbered(Idx, path, config) if is_idx_folder(path) else Folder(path, config, outputs)
        if not path.exists():
            raise _not_there(path)
        if not path.is_file():
            raise Error(f"{path} is neither a file nor a folder.")
        with path.open("rb") as file:
            head = file.read(BLOCK)
    except PermissionError:
        raise Error(f"no permission to read {path}: change its mode, or run as a user who may.") from None
    if path.suffix.lower() in (".npz", ".npy"):
        return _numbered(Arrays, path, config)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return Archive(path, config, zipped=True)
    if PACKED_TAR.fullmatch(path.name):
        raise packed(path)
    if is_idx(path, head):
        return _numbered(Idx, path, config)
    if is_tar(path, head):
        return Archive(path, config, zipped=False)
    raise Error(
        f"{path} is no data set kuosan knows. Give a folder, .zip or .tar of pictures, an IDX file (.gz or not), "
        f"an .npz or .npy file, or {PORTRAITS!r}; for one picture, give the folder it lies in."
    )


def _numbered(kind: Callable[[Path, DataConfig], Source], path: Path, config: DataConfig) -> Source:
    """Arrays, whose labels lie in an array of their own: there is no column to choose."""
    if config.label_column != LABEL:
        raise Error(
            f"label_column is {config.label_column!r}, but {path} holds arrays, and labels as one more array: "
            "leave label_column out. It chooses a column of metadata.csv or metadata.jsonl in a folder or zip."
        )
    return kind(path, config)


def _not_there(path: Path) -> Error:
    near: Sequence[str] = []
    if path.parent.is_dir():
        names = [other.name for other in path.parent.iterdir()]
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    guess = f" Did you mean {path.parent / near[0]}?" if near else ""
    return Error(
        f"there is no {path}.{guess} Allowed: a folder, a .zip or .tar, IDX, .npz or .npy file, or {PORTRAITS!r}."
    )
