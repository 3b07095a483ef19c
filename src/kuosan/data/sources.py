"""Which source a path names, decided from what lies there; its listing says so in a sentence.

Files (folders, zips) are decoded later; arrays (IDX, npz, the portraits) are pixels already.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from kuosan.data.arrays import Arrays
from kuosan.data.config import PORTRAITS, DataConfig
from kuosan.data.entries import Source
from kuosan.data.folders import Folder, ZipFolder
from kuosan.data.idx import Idx, is_idx, is_idx_folder
from kuosan.data.portraits import Portraits
from kuosan.errors import Error


def find_source(config: DataConfig) -> Source:
    """The source that `config.path` names, by what lies there.

    Raises:
        Error: nothing is there, or nothing that holds pictures.
    """
    if config.path == PORTRAITS:
        return Portraits(config.hold_out)
    path = Path(config.path).expanduser()
    try:
        if path.is_dir():
            return Idx(path, config) if is_idx_folder(path) else Folder(path)
        if not path.exists():
            raise _not_there(path)
        if not path.is_file():
            raise Error(f"{path} is neither a file nor a folder.")
        with path.open("rb") as file:
            head = file.read(8)
    except PermissionError:
        raise Error(f"no permission to read {path}: change its mode, or run as a user who may.") from None
    if path.suffix.lower() in (".npz", ".npy"):
        return Arrays(path, config)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return ZipFolder(path, config.max_pixels)
    if is_idx(path, head):
        return Idx(path, config)
    raise Error(
        f"{path} is no data set kuosan knows. Give a folder or .zip of pictures, an IDX file (.gz or not), "
        f"an .npz or .npy file, or {PORTRAITS!r}; for one picture, give the folder it lies in."
    )


def _not_there(path: Path) -> Error:
    near: Sequence[str] = []
    if path.parent.is_dir():
        names = [other.name for other in path.parent.iterdir()]
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    guess = f" Did you mean {path.parent / near[0]}?" if near else ""
    return Error(f"there is no {path}.{guess} Allowed: a folder, a .zip, IDX or .npz file, or {PORTRAITS!r}.")
