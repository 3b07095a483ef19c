"""One process of a training under torchrun: `two_processes.py OUT DATA KEY=VALUE ...`; rank r notes what it saw."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from kuosan import Error
from train.made_runs import Stopping, go


def main(place: str, images: str, *words: str) -> None:
    """Train as the shell does, with the rank's own pictures and outcome written beside the run."""
    out, data = Path(place), Path(images)
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    settings = dict(word.split("=", 1) for word in words)
    stop, own = int(settings.pop("stop", -1)), [Path(settings.pop(f"data{r}", data)) for r in range(2)]
    report = Stopping(stop if rank == 0 else -1)
    seen: list[tuple[int, list[int]]] = []
    note: dict[str, Any] = {"code": 0}
    leaving = dist.destroy_process_group

    def leave() -> None:
        note["reducing"] = sum(isinstance(each, DistributedDataParallel) for each in gc.get_objects())
        leaving()

    dist.destroy_process_group = leave
    try:
        note["code"] = go(out, own[rank], settings, report=report, seen=seen)
    except Error as error:
        note |= {"code": error.exit_code, "error": str(error)}
    note |= {"ids": [(step, ids) for step, ids, *_ in seen], "said": report.said}
    out.with_name(f"{out.name}-rank{rank}.json").write_text(json.dumps(note))
    sys.exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
