"""A process with a heartbeat and no training: `beating.py RANK SIZE FOLDER WHAT`; its main thread does WHAT."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from kuosan.train.heartbeat import Heartbeat, Times

TIMES = Times(beat=0.1, silence=1.5, arrival=4.0)


class Shelf:
    """A store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, key: str, value: str) -> None:
        """Put a value there, whole."""
        (self.folder / "part").write_text(value)
        (self.folder / "part").rename(self.folder / key)

    def get(self, key: str) -> bytes:
        """Wait for a value."""
        while not (self.folder / key).exists():
            time.sleep(0.01)
        return (self.folder / key).read_bytes()


def main(rank: int, size: int, folder: Path, what: str) -> None:
    """Meet, do it, say goodbye."""
    heartbeat = Heartbeat(rank, size, TIMES)
    heartbeat.start()
    if what == "hang before":
        time.sleep(60)
    heartbeat.meet(Shelf(folder))
    (folder / f"here-{rank}").touch()
    match what:
        case "work":  # far longer than the silence, in a call that gives up Python's lock
            time.sleep(4)
        case "compute":  # and in one that does not
            sum(range(100_000_000))
        case "fail":
            time.sleep(1)
            heartbeat.close("ValueError: image 7 is broken")
            return
        case "wait":
            time.sleep(60)
    heartbeat.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
