"""A log of one JSON object a line that survives a kill: no row twice, none missing, no torn last line.

Every row has its `step`. A checkpoint flushes the log first; resuming from it drops the rows after its step, which the
repeated steps write again. Where lines are damaged, the good rows stay, and the file as it was is kept beside.

The same rows as a table, log.csv beside log.jsonl: a column a value. The log is the truth, the table is made of it.
"""

from __future__ import annotations

import bisect
import contextlib
import csv
import io
import itertools
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kuosan.errors import Error
from kuosan.storage.files import explained, fsync, is_gone, write_atomic


class Log:
    """An appender to the JSON-lines file `path`; a row is on its way to the disk when `append` returns.

    Opening it cuts off a last line that a crash left unfinished; a whole row that lacks only its line end gets one.

    Args:
        table: also keep its rows as CSV beside it.
    """

    def __init__(self, path: str | os.PathLike[str], *, table: bool = False) -> None:
        self.path, self._handle = Path(path), -1
        self._table = Table(self) if table else None
        with explained(self.path):
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
            if new:
                fsync(self.path.parent)
            if _lacks_its_end(self.path):
                os.write(self._handle, b"\n")
            self._cut(_whole_lines(self.path))

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row in one piece; NaN and infinities become null, which every JSON reader takes."""
        assert isinstance(row.get("step"), int), f"a log row needs its step: {dict(row)}"
        line = json.dumps(_finite(row), allow_nan=False).encode() + b"\n"
        with explained(self.path, len(line)):
            size = os.fstat(self._handle).st_size
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._handle, line[written:])
            except OSError:
                with contextlib.suppress(OSError):  # half a line would spoil the next row
                    os.ftruncate(self._handle, size)
                raise
        if self._table is not None:
            self._table.append(row)

    def flush(self) -> None:
        """Wait until the disk has every row; call it before the checkpoint that vouches for them."""
        with explained(self.path):
            os.fsync(self._handle)
        if self._table is not None:
            self._table.settle()

    def truncate_after(self, step: int) -> str | None:
        """Drop the rows of later steps; returns a sentence where other lines had to go too.

        Of lines that are damaged, repeated or out of order, those go that leave the most rows in order; the file as it
        was is then kept beside.

        Raises: Error where the disk does not allow it; the log is then as it was.
        """
        try:
            return self._truncated(step)
        finally:
            if self._table is not None:
                self._table.make()

    def _truncated(self, step: int) -> str | None:
        with explained(self.path), open(self.path, "rb") as stream:
            looks = [(*_look(line), len(line)) for line in stream]
        lines = [(own, size) for own, _, size in looks]
        last = {(own, names): place for place, (own, names, _) in enumerate(looks)}  # of equal rows the later one stays
        steps = [
            own if own and own <= step and last[own, names] == i else None for i, (own, names, _) in enumerate(looks)
        ]
        kept = _in_order(steps)
        later = sum(1 for own, _ in lines if own is not None and own > step)
        end = sum(size for _, size in lines[: len(kept)])
        if kept == list(range(len(kept))) and (
            len(kept) + later == len(lines) or len({steps[i] for i in kept}) == step
        ):
            self._cut(end)
            return None
        chosen = {i for i, (own, _) in enumerate(lines) if own is not None and own > step} | set(kept)
        dropped = [i + 1 for i in range(len(lines)) if i not in chosen]
        aside = self._aside()
        with explained(self.path):
            content = self.path.read_bytes()
        write_atomic(aside, content)
        ends = list(itertools.accumulate((size for _, size in lines), initial=0))
        write_atomic(self.path, b"".join(content[ends[i] : ends[i + 1]] for i in kept))
        self._open()
        return (
            f"{self.path}: {'line' if len(dropped) == 1 else 'lines'} {', '.join(map(str, dropped[:5]))}"
            f"{f' and {len(dropped) - 5} more' if len(dropped) > 5 else ''} damaged, repeated or out of order: the "
            f"{len(kept)} good rows are kept, the file as it was is {aside.name}."
        )

    def follow(self) -> str | None:
        """See that the file is still the one that is written to; one that was deleted or replaced is written again.

        Returns a sentence where that was so. Raises: Error where the disk does not allow it.
        """
        with explained(self.path):
            own = os.fstat(self._handle)
            if not is_gone(self.path, own):
                return None
            content = os.pread(self._handle, own.st_size, 0)
            aside = self._aside() if self.path.exists() else None
            if aside is not None:
                os.rename(self.path, aside)
        write_atomic(self.path, content)
        self._open()
        replaced = f"replaced by another file, now {aside.name}" if aside is not None else "deleted"
        return f"{self.path} was {replaced}, while it was in use: it is written again, whole."

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row, oldest first."""
        with explained(self.path, doing="read"), open(self.path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                yield _row(line, self.path, number)

    def close(self) -> None:
        """Flush, and let go of the file."""
        if self._handle >= 0:
            self.flush()
            os.close(self._handle)
            self._handle = -1

    def _open(self) -> None:
        """Open the file as it now is, in place of what was open."""
        with explained(self.path):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                os.close(handle)
                raise Error(f"{self.path} is not a regular file, and a log is: move it away.")
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = handle

    def _aside(self) -> Path:
        """An unused name beside the log."""
        names = (f"{self.path.stem}.damaged{n}{self.path.suffix}" for n in ("", *(f"-{i}" for i in range(2, 10_000))))
        return next(path for name in names if not (path := self.path.with_name(name)).exists())

    def _cut(self, size: int) -> None:
        if size < os.fstat(self._handle).st_size:
            os.ftruncate(self._handle, size)
            os.fsync(self._handle)


class Table:
    """A log's rows as CSV: `loss`, `held_out.loss`, `held_out.by_noise.1`, a column a number or text, empty where none.

    A table that does not match the log (a new column, a file that was cut or deleted, a full disk) is made again from
    it: at once, or with the next save. That it cannot be written never ends a training.
    """

    def __init__(self, log: Log) -> None:
        self.log, self.columns, self.size = (
            log,
            list[str](),
            -1,
        )  # bytes that the file should have; -1: to be made again

    @property
    def path(self) -> Path:
        """Where it lies: wherever the log does."""
        return self.log.path.with_suffix(".csv")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; its numbers are the log's, digit for digit."""
        flat = dict(_flat(_finite(row)))
        if self.size < 0:
            return
        try:
            if not flat.keys() <= {*self.columns} or os.stat(self.path).st_size != self.size:
                self.make()
                return
            text = _csv_line([flat.get(name, "") for name in self.columns]).encode()
            with open(self.path, "ab") as stream:
                stream.write(text)
            self.size += len(text)
        except FileNotFoundError:
            self.make()
        except OSError:  # a full disk, say
            self.size = -1

    def make(self) -> None:
        """The whole table, of the log's rows."""
        self.size = -1
        with contextlib.suppress(Error, OSError):
            found = [dict(_flat(row)) for row in self.log.rows()]
            self.columns = list(dict.fromkeys(name for row in found for name in row)) or ["step", "loss"]
            lines = [_csv_line(self.columns), *(_csv_line([row.get(c, "") for c in self.columns]) for row in found)]
            content = "".join(lines).encode()
            write_atomic(self.path, content)
            self.size = len(content)

    def settle(self) -> None:
        """Make it again if it does not match."""
        there = -2
        with contextlib.suppress(OSError):
            there = os.stat(self.path).st_size
        if there != self.size:
            self.make()


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by their columns, without those that are unknown."""
    return {name: float(text) for name, text in _flat(_finite(row)) if name != "step" and _is_number(text)}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts of what a row holds, lists counted from 1."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value, 1):
            yield from _flat(inner, f"{name}.{i}")
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _csv_line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None of one that is damaged."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        row = json.loads(line)
        if type(row["step"]) is int:
            return dict(row)
    return None


def _look(line: bytes) -> tuple[int | None, frozenset[str]]:
    """The step of a line's row and the names of its values; None of one that is damaged."""
    row = _parsed(line)
    return (None, frozenset()) if row is None or row["step"] < 1 else (int(row["step"]), frozenset(row))


def _in_order(steps: list[int | None]) -> list[int]:
    """The places of the most steps that can stay so that they never fall."""
    tails: list[int] = []  # the smallest last step of an increasing choice of each length
    ends: list[int] = []  # where that one is
    before: dict[int, int] = {}
    for place, step in enumerate(steps):
        if step is None:
            continue
        length = bisect.bisect_right(tails, step)
        tails[length : length + 1], ends[length : length + 1] = [step], [place]
        before[place] = ends[length - 1] if length else -1
    chosen: list[int] = []
    place = ends[-1] if ends else -1
    while place >= 0:
        chosen.append(place)
        place = before[place]
    return chosen[::-1]


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    if (row := _parsed(line)) is not None:
        return row
    raise Error(f"{path}, line {number} is damaged: {line[:60]!r}; mend or delete that line, or move the file away.")


def _lacks_its_end(path: Path) -> bool:
    """Whether the last line is a whole row without its line end."""
    content = path.read_bytes()
    tail = content[content.rfind(b"\n") + 1 :]
    return bool(tail) and _parsed(tail) is not None


def _whole_lines(path: Path) -> int:
    """Bytes up to the last line end, less a tail of lines that a power cut left unwritten (zeros)."""
    content = path.read_bytes()
    size = content.rfind(b"\n") + 1
    while size and b"\0" in content[(start := content.rfind(b"\n", 0, size - 1) + 1) : size]:
        size = start
    return size
