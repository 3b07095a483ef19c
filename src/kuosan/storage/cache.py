"""Rows of arrays computed once and kept on disk: latents, embeddings, an evaluation's images and features.

Whatever they depend on is their name.

    ROOT/KIND/HASH/key.json                  what the rows depend on, for a person to read; HASH is its sha256
    ROOT/KIND/HASH/NAME.rows                 a column, all its rows one after the other; of full length from the start,
                                             where it is known how many there will be
    ROOT/KIND/HASH/00000000-00000512.part    rows 0 to 511 are there: their sha256 and the seconds they took

Rows count from the moment their part file has its name, which it gets after they are fsynced; a process killed before
has computed them for nothing, and no more. The whole folder may be deleted at any time but while it is in use.

Where caches are kept: a folder that says of itself that it is one, so that backups pass over it.

The tag is that of https://bford.info/cachedir; a folder without it that holds anything is somebody's, and is refused.

One result of a computation kept on disk by the name of everything that it depends on, computed by one process.

    ROOT/KIND/NAME.result    the sha256 of what follows, a line; then the result

A damaged file is as good as none. Where the disk takes no file the result is computed each time.

What is computed once and kept on disk: rows of arrays, single results; and where.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kuosan.errors import Error
from kuosan.storage.files import PARTIAL, explained, room_for, sweep, write_atomic

FORMAT = 1  # of what lies in a cache's folder; part of the key
KEY = "key.json"
_PART = re.compile(r"(\d{8,})-(\d{8,})\.part")
_AT_ONCE = 1 << 22  # bytes hashed or written at a time
_ENDLESS = 1 << 48  # rows of a cache that grows

Older = tuple[int, Mapping[str, np.ndarray], float]  # first row, columns, seconds that they took
Columns = Mapping[str, tuple[Any, tuple[int, ...]]]  # name -> (numpy dtype, shape of a row)


class CachePart(NamedTuple):
    """Rows `first` to `last` - 1, good as they lie there."""

    first: int
    last: int
    seconds: float


class RowCache:
    """`rows` rows of `columns`, kept under `root` by what they depend on.

    Args:
        root: of `cache_root`.
        kind: the sort of rows, a folder's name: latents, embeddings.
        key: everything that the rows depend on, as JSON can say it: hashes of weights and contents, settings.
        rows: how many there are; None: as many as are put.
        columns: name -> (numpy dtype, shape of a row).
        at: the folder itself, of rows that belong to a run's results; then nothing lies under `root`.
        say: called with a sentence about each part that was damaged and is computed again.
        note: a word for whoever reads key.json; no part of the key.

    Attributes:
        path: root / kind / a hash of key, columns and rows.
        damaged: the sentences that `say` was called with.

    Raises:
        Error: `root` holds something else, or the folder another key than its name says.
    """

    def __init__(
        self,
        root: Path,
        kind: str,
        key: Mapping[str, Any],
        rows: int | None,
        columns: Columns,
        *,
        at: Path | None = None,
        say: Callable[[str], None] | None = None,
        note: str = "",
    ) -> None:
        assert re.fullmatch(r"[a-z][a-z0-9_-]*", kind) and (rows or 0) >= 0 and columns, (kind, rows, columns)
        self.root, self.rows, self.damaged = root, _ENDLESS if rows is None else rows, list[str]()
        self._grows, self._tagged = rows is None, at is None
        self.columns = {name: (np.dtype(dtype), tuple(shape)) for name, (dtype, shape) in columns.items()}
        for name, (dtype, shape) in self.columns.items():
            assert re.fullmatch(r"\w+", name) and not dtype.hasobject and min(shape, default=1) > 0, (name, shape)
        said = {name: [dtype.str, list(shape)] for name, (dtype, shape) in self.columns.items()}
        self._key = {"format": FORMAT, "kind": kind, "rows": rows, "columns": said, "key": dict(key)}
        name = sha256(json.dumps(self._key, sort_keys=True, allow_nan=False).encode()).hexdigest()[:20]
        self.path = at or root / kind / name
        self._say, self._note = say or (lambda _: None), note
        self._parts: dict[str, CachePart] = {}  # by file name; each was checked, or was put here
        self._begun = self._held = False
        if self._tagged:
            check_root(root)
        self._check_key()

    @property
    def row_bytes(self) -> int:
        """What a row takes on disk, all columns together."""
        return sum(self._row(name) for name in self.columns)

    @property
    def seconds(self) -> float:
        """How long the rows that are here took to compute."""
        self._look()
        return sum(part.seconds for part in self._parts.values())

    def parts(self) -> list[CachePart]:
        """What is here, in order; parts not seen before are read and checked. Raises: Error, as `missing`."""
        self._look()
        return sorted(self._parts.values())

    def missing(self, begin: int = 0, end: int | None = None) -> list[range]:
        """The rows from `begin` to `end` - 1 (else all) that no good part holds, in order.

        Raises:
            Error: the folder cannot be read.
        """
        gaps, end = [], self.rows if end is None else end
        for part in self.parts():
            if begin < part.first and begin < end:
                gaps.append(range(begin, min(part.first, end)))
            begin = max(begin, part.last)
        return gaps + ([range(begin, end)] if begin < end else [])

    def put(self, first: int, columns: Mapping[str, np.ndarray], seconds: float = 0.0) -> None:
        """Keep rows `first` ..., as many as the arrays have, once they lie safely on disk; rows here already are left.

        Args:
            columns: name -> (B, *shape of a row), converted to the column's type.
            seconds: what computing them took.

        Raises:
            Error: no room, no permission, or the disk fails; the rows are then still missing.
        """
        assert columns.keys() == self.columns.keys(), (columns.keys(), self.columns.keys())
        count = len(next(iter(columns.values())))
        assert first >= 0 and count and first + count <= self.rows, (first, count, self.rows)
        rows = {}
        for name, (dtype, shape) in self.columns.items():
            rows[name] = np.ascontiguousarray(columns[name], dtype)
            assert rows[name].shape == (count, *shape), (name, rows[name].shape, (count, *shape))
        self._begin(count)
        with self._alone():
            for gap in self.missing(first, first + count):  # another process may have put some of them meanwhile
                begin, end = max(gap.start, first), min(gap.stop, first + count)
                if begin < end:
                    part = {name: array[begin - first : end - first] for name, array in rows.items()}
                    self._write(begin, end, part, seconds * (end - begin) / count)

    def fill(
        self,
        compute: Callable[[range], Mapping[str, np.ndarray]],
        at_once: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> float:
        """Compute and keep what is missing, `at_once` rows a part; returns the seconds spent on it.

        Args:
            compute: rows -> their columns.
            progress: called as (rows here, of) at the start and after each part.

        Raises:
            Error: as `put`.
        """
        spent, progress = 0.0, progress or (lambda done, of: None)
        while gaps := self.missing():
            progress(self.rows - sum(map(len, gaps)), self.rows)
            rows, before = gaps[0][:at_once], time.perf_counter()
            columns = compute(rows)
            seconds = time.perf_counter() - before
            self.put(rows.start, columns, seconds)
            spent += seconds
        progress(self.rows, self.rows)
        return spent

    def open(self, begin: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """Every column with its rows from `begin` to `end` - 1 (else all), (rows, *shape), mapped and read-only.

        What goes to torch is copied first.

        Raises:
            Error: rows are missing.
        """
        end = self.rows if end is None else end
        if gaps := self.missing(begin, end):
            count = sum(map(len, gaps))
            raise Error(
                f"{self.path} lacks {count:,} of {end - begin:,} rows, from row {gaps[0].start} on: compute them."
            )
        if begin == end:
            return {name: np.empty((0, *shape), dtype) for name, (dtype, shape) in self.columns.items()}
        with explained(self.path, doing="read"):
            return {
                name: np.memmap(self._file(name), dtype, "r", begin * self._row(name), shape=(end - begin, *shape))
                for name, (dtype, shape) in self.columns.items()
            }

    def adopt(self, pattern: str, read: Callable[[Path], Older]) -> None:
        """Take over rows that an older kuosan kept in this folder; a file of its goes when its rows are here.

        Args:
            read: makes rows of a file; one that it cannot read is damaged, which is said, and its rows are missing.

        Raises:
            Error: as `put`.
        """
        for path in sorted(self.path.glob(pattern)) if self.path.is_dir() else []:
            try:
                first, columns, seconds = read(path)
            except OSError:  # it is there, and may be read another time
                continue
            except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                self._report(path.name, str(error))
            else:
                self.put(first, columns, seconds)
            path.unlink(missing_ok=True)

    def _row(self, name: str) -> int:
        dtype, shape = self.columns[name]
        return dtype.itemsize * int(np.prod(shape, dtype=np.int64))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.rows"

    def _check_key(self) -> None:
        path = self.path / KEY
        with explained(path, doing="read"):
            if not path.is_file():
                return
            try:
                found = json.loads(path.read_bytes())
                found.pop("note", None)
            except (ValueError, AttributeError, RecursionError):
                found = None
        if found != json.loads(json.dumps(self._key)):
            raise Error(f"{path} is damaged or was edited, so what lies beside it is unknown: delete {self.path}.")

    def _look(self) -> None:
        """Read and check the parts not known yet, and drop the damaged ones; nothing is written where all are good."""
        with explained(self.path, doing="read"):
            names = [item for item in os.listdir(self.path) if _PART.fullmatch(item)] if self.path.is_dir() else []
        there = set(names)
        self._parts = {name: part for name, part in self._parts.items() if name in there}
        for name in sorted(there - self._parts.keys()):
            if (part := self._checked(name)[0]) is not None:
                self._parts[name] = part
                continue
            with self._alone():  # another process may just have written it again
                part, reason = self._checked(name)
                if part is not None:
                    self._parts[name] = part
                    continue
                if not (self.path / name).exists():  # another process has said so already
                    continue
                (self.path / name).unlink()
            self._report(name, reason)

    def _report(self, name: str, reason: str) -> None:
        self.damaged.append(f"cache {self.path}: {name} is damaged ({reason}); its rows are computed again.")
        self._say(self.damaged[-1])

    def _checked(self, name: str) -> tuple[CachePart | None, str]:
        """A part whose rows have the hashes it says, or what is wrong with it."""
        match = _PART.fullmatch(name)
        assert match, name
        first, last = int(match[1]), int(match[2])
        try:
            body = json.loads((self.path / name).read_bytes())
            own = body.pop("sha256")
            if own != _hash_of(body) or (body["first"], body["last"]) != (first, last):
                return None, "the part's own file was changed"
            if not 0 <= first < last <= self.rows:
                return None, "rows that do not exist"
            for column in self.columns:
                if self._hash(column, first, last) != body["columns"][column]:
                    return None, f"{column}.rows was changed or cut short"
            return CachePart(first, last, float(body["seconds"])), ""
        except OSError as error:
            return None, str(error.strerror)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None, "the part's own file cannot be read"

    def _hash(self, name: str, first: int, last: int) -> str:
        """The sha256 of some rows of a column as they lie on disk; of fewer where the file is short."""
        digest, left = sha256(), (last - first) * self._row(name)
        with self._file(name).open("rb") as stream:
            stream.seek(first * self._row(name))
            while left and (content := stream.read(min(left, _AT_ONCE))):
                digest.update(content)
                left -= len(content)
        return digest.hexdigest()

    def _begin(self, count: int) -> None:
        """Make the folder with its key, before something is put for the first time or after it was deleted.

        There must be room for all, or where nobody knows how many that is, for the `count` that are put.
        """
        if self._begun and (self.path / KEY).is_file():
            return
        try:
            room_for(self.path, self.row_bytes * (count if self._grows else sum(map(len, self.missing()))))
            if self._tagged:
                claim(self.root)
        except Error as error:
            if not self._tagged:
                raise
            where = f"A cache may lie elsewhere: --data.cache FOLDER, or ${VARIABLE}."
            raise Error(f"{error} {where}", exit_code=error.exit_code) from error
        if not (self.path / KEY).is_file():
            said = {**self._key, "note": self._note} if self._note else self._key
            write_atomic(self.path / KEY, json.dumps(said, indent=1, ensure_ascii=False) + "\n")
        sweep(self.path)
        self._begun = True

    def _write(self, first: int, last: int, columns: Mapping[str, np.ndarray], seconds: float) -> None:
        hashes = {}
        for name, array in columns.items():
            path, content = self._file(name), array.tobytes()
            with explained(path, len(content)), open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", 0) as stream:
                whole = (last if self._grows else self.rows) * self._row(name)
                if os.fstat(stream.fileno()).st_size < whole:
                    stream.truncate(whole)  # takes no room before rows are written
                stream.seek(first * self._row(name))
                left = memoryview(content)
                while left:
                    left = left[stream.write(left[:_AT_ONCE]) :]
                os.fsync(stream.fileno())
            hashes[name] = sha256(content).hexdigest()
        body: dict[str, Any] = {"first": first, "last": last, "seconds": round(seconds, 3), "columns": hashes}
        name = f"{first:08d}-{last:08d}.part"
        write_atomic(self.path / name, json.dumps({**body, "sha256": _hash_of(body)}, indent=1) + "\n")
        self._parts[name] = CachePart(first, last, body["seconds"])

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process writes here, and keep others waiting; where there are no locks, go on without."""
        if self._held:
            yield
            return
        with explained(self.path):
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            self._held = True
            yield
        finally:
            self._held = False
            os.close(handle)


def _hash_of(body: Mapping[str, Any]) -> str:
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


VARIABLE = "KUOSAN_CACHE"  # the environment's word on where caches are
TAG = "CACHEDIR.TAG"
SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of kuosan: what is here can be computed again.\n"


def cache_root(said: str | None = None) -> Path:
    """Where caches are: as said, else $KUOSAN_CACHE, $XDG_CACHE_HOME/kuosan or ~/.cache/kuosan; nothing is made yet.

    Raises:
        Error: it is a file, or a folder that holds anything but a cache of kuosan.
    """
    if said is not None and not said.strip():
        raise Error("the cache's folder is an empty text: name one, or leave it out.")
    named = said or os.environ.get(VARIABLE)
    above = os.environ.get("XDG_CACHE_HOME", "")
    above = above if os.path.isabs(above) else "~/.cache"  # the standard has relative ones ignored
    root = Path(named or f"{above}/kuosan")
    with contextlib.suppress(RuntimeError):  # a user without a home: a folder called ~
        root = root.expanduser()
    check_root(root)
    return root


def check_root(root: Path) -> None:
    """Refuse a folder that holds something else than a cache; one that is empty or not there yet becomes one."""
    with explained(root, doing="read"):
        if root.exists() and not root.is_dir():
            raise Error(f"the cache {root} is a file: name a folder.")
        if not root.is_dir() or _is_ours(root):
            return
        other = next((item for item in sorted(os.listdir(root)) if not item.startswith(PARTIAL)), None)
    if other is not None:
        raise Error(
            f"{root} is no cache of kuosan: it holds {other} and no {TAG} of kuosan. Name an empty or a new folder "
            f"(data.cache, or ${VARIABLE})."
        )


def _is_ours(root: Path) -> bool:
    tag = root / TAG
    return tag.is_file() and tag.stat().st_size == len(SIGNATURE) and tag.read_bytes() == SIGNATURE.encode()


def claim(root: Path) -> None:
    """Make the folder and its tag. Raises: Error where the disk does not allow it."""
    if not _is_ours(root):
        write_atomic(root / TAG, SIGNATURE)


NEAR = "near"  # the kind: near duplicates among a data set's images


class Results:
    """Results of one kind under a root of `cache_root`."""

    def __init__(self, root: Path, kind: str) -> None:
        assert re.fullmatch(r"[a-z][a-z0-9_-]*", kind), kind
        self.root, self.folder = root, root / kind

    @classmethod
    def at(cls, said: str | None, kind: str) -> Results | None:
        """Those in the cache's folder; None where nobody named one and the default one cannot be a cache.

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


__all__ = ["NEAR", "Results", "RowCache", "cache_root"]
