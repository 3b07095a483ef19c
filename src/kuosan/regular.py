"""Files whose names or contents a stranger may have chosen: opened only if regular, never read past what they promise.

A device or a FIFO is not even opened (either may wait for ever, or never end); a file is asked for its size through the
very handle that is read, and no more than that is read. `Places` are the folders that a recipe's paths may lie in.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import BinaryIO

from kuosan.errors import Error, shown

SMALL = 4 << 20  # bytes of a YAML or JSON file; a configuration of ours has 3 kB, and 20 a class
MOST_PATH = 4096  # characters of a path, as Linux has it
_DENSE = 16  # a file whose bytes on disk are fewer than a 16th of its size is holes
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}


def open_regular(path: str | os.PathLike[str], *, follow: bool = True) -> BinaryIO:
    """A regular file, opened for reading, unbuffered.

    Args:
        follow: whether its last name may be a symbolic link (to a regular file).

    Raises:
        Error: it is a folder, a FIFO, a device, a socket, a forbidden link, or mostly holes; or no name of a file.
        OSError: it is not there, or cannot be read.
    """
    try:
        kind = stat.S_IFMT(os.stat(path, follow_symlinks=follow).st_mode)
        if kind != stat.S_IFREG:
            raise _not_regular(path, kind)
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        handle = os.open(path, flags)
    except ValueError as error:  # a NUL in it, or half a surrogate pair
        raise Error(f"{shown(os.fspath(path))} cannot be the name of a file ({error}); give another path.") from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):  # exchanged between the two looks
        os.close(handle)
        raise _not_regular(path, stat.S_IFMT(found.st_mode))
    thin = found.st_size > 1 << 26 and found.st_blocks * 512 < found.st_size // _DENSE
    if thin and _has_holes(handle, found.st_size):
        os.close(handle)
        raise Error(
            f"{shown(os.fspath(path))} claims {found.st_size:,} bytes, and the disk holds {found.st_blocks * 512:,}: "
            f"it is mostly holes, and nothing of kuosan's; copy it again from where it was made."
        )
    return os.fdopen(handle, "rb", buffering=0)


def _has_holes(handle: int, size: int) -> bool:
    """Whether the file system knows of a hole: few blocks alone may be compression, or a mount that counts none."""
    try:
        hole = os.lseek(handle, 0, os.SEEK_HOLE)
        os.lseek(handle, 0, os.SEEK_SET)
    except (OSError, AttributeError):
        return False
    return hole < size


def read_regular(path: str | os.PathLike[str], most: int = SMALL, *, follow: bool = True) -> bytes:
    """All bytes of a regular file of at most `most` bytes; of one that grows meanwhile, what it had at first.

    Raises:
        Error, OSError: as `open_regular`; or the file is larger.
    """
    with open_regular(path, follow=follow) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise Error(
                f"{shown(os.fspath(path))} has {size:,} bytes, and {most:,} are read of such a file at most: it is "
                f"damaged, or no file of that kind."
            )
        parts, left = [], size
        while left and (part := stream.read(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether anything is at a path; false for what can be no path (too long, a NUL in it)."""
    try:
        return os.path.exists(path)
    except (OSError, ValueError):
        return False


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is at a path; false for what can be no path (too long, a NUL in it)."""
    try:
        return os.path.isdir(path)
    except (OSError, ValueError):
        return False


def _not_regular(path: str | os.PathLike[str], kind: int) -> Error:
    what = _KINDS.get(kind, "of an unknown kind")
    return Error(f"{shown(os.fspath(path))} is {what}, not a regular file, and is not opened; give a regular file.")


@dataclass(frozen=True)
class Places:
    """Real folders and files that paths from a stranger's recipe may lie in, or be; links are followed first."""

    roots: tuple[Path, ...]

    @classmethod
    def of(cls, roots: Iterable[str | os.PathLike[str]]) -> Places:
        """The places at these paths.

        Raises:
            Error: one is not there.
        """
        return cls(tuple(_real(root) for root in roots))

    def checked(self, name: str | os.PathLike[str], what: str) -> Path:
        """The real path that `name` means, below one of the places; `what` names it in messages.

        Raises:
            Error: it lies elsewhere, is not there, can be no path, or is no folder and no regular file.
        """
        real = _real(name, what)
        if not any(real == root or root in real.parents for root in self.roots):
            raise Error(
                f"{what} {shown(os.fspath(name))} lies outside the working folder, and is not opened unasked, as any "
                f"image's recipe may name it, a stranger's too. If it is yours, or you trust it, add "
                f"--allow-path {quote(shown(str(real), 200)[1:-1])}"
            )
        mode = os.stat(real).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise _not_regular(name, stat.S_IFMT(mode))
        return real


def _real(name: str | os.PathLike[str], what: str = "the path") -> Path:
    text = os.fspath(name)
    try:
        if len(text) > MOST_PATH:
            raise OSError(errno.ENAMETOOLONG, "the name is too long")
        return Path(text).resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise Error(f"{what} {shown(text)} cannot be opened: {reason}.") from None
