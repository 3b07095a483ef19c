"""What earlier looks told, in a file the caller names: a file of the same size and time is not looked at again."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kuosan.data.config import DataConfig
from kuosan.data.entries import Entry, Look
from kuosan.data.views import View
from kuosan.files import write_atomic

VERSION = 2


class Ledger:
    """Looks by name and stamp; a ledger that is damaged or of other settings is as good as none."""

    def __init__(self, path: Path | None, config: DataConfig) -> None:
        self.path = path
        self.head = {
            "version": VERSION,
            "path": str(Path(config.path).absolute()),
            "max_pixels": config.max_pixels,
            "background": config.background,  # grey pictures may be seen as grey on one, not on another
            "resize": config.resize,
            "range": config.range,
            "split_version": config.split_version,
        }
        if config.max_bytes != DataConfig.max_bytes:
            self.head["max_bytes"] = config.max_bytes
        self.rows: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        try:
            found = json.loads(path.read_text())
            if found["head"] == self.head:
                self.rows = {name: row for name, row in found["rows"].items() if isinstance(row, dict)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.rows = {}

    def look(self, entry: Entry) -> Look | None:
        """What was told of the file, if size and time are the same."""
        row = self.rows.get(entry.name)
        if row is None or entry.stamp is None or row.get("stamp") != list(entry.stamp):
            return None
        try:
            look = Look(**row["look"])
            view = base64.b64decode(row["look"]["view"], validate=True)
            if view:
                View.unpacked(view)
        except (TypeError, KeyError, ValueError):
            return None
        return None if look.reason else replace(look, notes=tuple(look.notes), view=view)

    def write(self, entries: list[Entry], looks: list[Look]) -> None:
        """Put down what was told; the file is replaced whole.

        Raises:
            Error: it cannot be written.
        """
        if self.path is None:
            return
        rows = {
            entry.name: {"stamp": entry.stamp, "look": _plain(look)}
            for entry, look in zip(entries, looks)
            if entry.stamp is not None and not look.reason
        }
        write_atomic(self.path, json.dumps({"head": self.head, "rows": rows}))


def _plain(look: Look) -> dict[str, Any]:
    """A look as JSON takes it."""
    return {**asdict(look), "view": base64.b64encode(look.view).decode()}
