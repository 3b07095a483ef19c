"""A log of one JSON object a line that survives a kill: no row twice, none missing, no torn last line.

Every row has its `step`. A checkpoint flushes the log first; resuming from it drops the rows after its step, which the
repeated steps write again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kuosan.errors import Error
from kuosan.files import explained, fsync


class Log:
    """An appender to the JSON-lines file `path`; a row is on its way to the disk when `append` returns.

    Opening it cuts off a last line that a crash left unfinished.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with explained(self.path):
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
            if not stat.S_ISREG(os.fstat(self._handle).st_mode):
                os.close(self._handle)
                raise Error(f"{self.path} is not a regular file, and a log is: move it away.")
            if new:
                fsync(self.path.parent)
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

    def flush(self) -> None:
        """Wait until the disk has every row; call it before the checkpoint that vouches for them."""
        with explained(self.path):
            os.fsync(self._handle)

    def truncate_after(self, step: int) -> None:
        """Drop every row of a later step: the first such row and all that follow it.

        Raises: Error that names the line if one before them is damaged.
        """
        end = 0
        with explained(self.path), open(self.path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if _row(line, self.path, number)["step"] > step:
                    break
                end += len(line)
            self._cut(end)

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

    def _cut(self, size: int) -> None:
        if size < os.fstat(self._handle).st_size:
            os.ftruncate(self._handle, size)
            os.fsync(self._handle)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if type(row["step"]) is int:
            return dict(row)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise Error(f"{path}, line {number} is damaged: {line[:60]!r}; mend or delete that line, or move the file away.")


def _whole_lines(path: Path) -> int:
    """Bytes up to the last line end, less a tail of lines that a power cut left unwritten (zeros)."""
    content = path.read_bytes()
    size = content.rfind(b"\n") + 1
    while size and b"\0" in content[(start := content.rfind(b"\n", 0, size - 1) + 1) : size]:
        size = start
    return size
