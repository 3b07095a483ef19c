"""One result of a computation kept on disk by the name of everything that it depends on, computed by one process.

    ROOT/KIND/NAME.result    the sha256 of what follows, a line; then the result

A damaged file is as good as none. Where the disk takes no file the result is computed each time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from kuosan.errors import Error
from kuosan.files import write_atomic
from kuosan.shelf.roots import cache_root, claim

NEAR = "near"  # the kind: near duplicates among a data set's images


class Results:
    """Results of one kind under a root of `cache_root`."""

    def __init__(self, root: Path, kind: str) -> None:
        assert re.fullmatch(r"[a-z][a-z0-9_-]*", kind), kind
        self.root, self.folder = root, root / kind

    @classmethod
    def at(cls, said: str | None, kind: str) -> Results | None:
        """Those in the cache's folder; None where nobody named one and the usual one cannot be a cache.

        Raises:
            Error: the folder that was named is no cache.
        """
        try:
            return cls(cache_root(said), kind)
        except Error:
            if said is not None:
                raise
            return None

    def get(self, name: str) -> bytes | None:
        """What is kept; None where nothing whole is."""
        try:
            content = self._file(name).read_bytes()
        except OSError:
            return None
        own, _, result = content.partition(b"\n")
        return result if own == sha256(result).hexdigest().encode() else None

    def once(self, name: str, compute: Callable[[], bytes]) -> bytes:
        """What is kept, else what `compute` gives; of several processes that ask, one computes and the others wait."""
        if (found := self.get(name)) is not None:
            return found
        with self._alone(name):
            if (found := self.get(name)) is not None:
                return found
            result = compute()
            with contextlib.suppress(Error):
                claim(self.root)
                write_atomic(self._file(name), sha256(result).hexdigest().encode() + b"\n" + result)
            return result

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.result"

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Keep other processes of this name waiting; where there are no locks, go on without."""
        handle = None
        with contextlib.suppress(OSError, Error):
            claim(self.root)
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if handle is not None:
                os.close(handle)
