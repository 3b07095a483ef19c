"""Runs killed with SIGKILL, half of them inside a save, and started again until they are done: are they the same?

Used by test_kills.py (some) and benchmarks/resume_kills.py (many).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.harness import KILLED, ForkServer, Outcome, note
from kuosan import Error, seeds
from kuosan.storage import checkpoint
from kuosan.train import saving
from kuosan.train.state import State
from train.made_runs import OwnNetwork, Stopping, differences, go, images, outcome

PRELOAD = ["train.warmed", "train.killing"]
STEPS = 12
KINDS: dict[str, dict[str, Any]] = {
    "own": {"train.micro_batch": 3},
    "unet": {"model.network.dropout": 0.1, "data.flip": "true"},
}


@dataclass(frozen=True)
class Trial:
    """What came of one run that was killed `kills` times."""

    kind: str
    inside: int  # kills inside a save
    kills: int
    lost: int  # steps lost past the last completed save
    different: list[str]


def train(out: str, data: str, kind: str) -> None:
    """In the fork: train to the end, noting each completed save and where the run went on from."""
    real = State.save

    def noted(self: State, *args: Any, **kwargs: Any) -> Path:
        path = real(self, *args, **kwargs)
        note({"saved": self.step})
        return path

    State.save = noted  # type: ignore[method-assign]
    saving.PAUSE, report = 0.0, Stopping()
    try:
        go(Path(out), Path(data), KINDS[kind] | {"train.max_steps": STEPS}, network=network(kind), report=report)
    except Error as error:
        note({"error": str(error), "said": report.said})
        raise SystemExit(error.exit_code) from None
    note({"said": report.said})


def network(kind: str) -> Any:
    """The network of a kind of run."""
    return OwnNetwork() if kind == "own" else None


class Killer:
    """Makes trials in a folder; the uninterrupted runs come first, and say how many operations one takes."""

    def __init__(self, folder: Path, shim: Path, kinds: tuple[str, ...] = tuple(KINDS)) -> None:
        self.folder, self.kinds = folder, kinds
        self.data = images(folder / "pictures.npz")
        self.server = ForkServer(shim, PRELOAD)
        self.whole, self.operations, self.seconds = {}, {}, {}
        for kind in kinds:
            for run in (folder / f"first-{kind}", folder / f"whole-{kind}"):  # the first one of all is slow
                begin = time.monotonic()
                done = self.run(run, kind)
                assert done.status == 0, done.output
                self.seconds[kind] = time.monotonic() - begin
            self.operations[kind] = len(done.ops)
            self.whole[kind] = outcome(folder / f"whole-{kind}")

    def trial(self, number: int, seed: int = 0) -> Trial:
        """Kill a run once to three times, then let it end, and compare it with the uninterrupted one."""
        draw = seeds.rng(seed, "test/kills", number)
        kind = self.kinds[number % len(self.kinds)]
        out = self.folder / f"trial-{number}"
        kills = inside = lost = 0
        for _ in range(int(draw.integers(1, 4))):
            if draw.random() < 0.5:
                at = int(draw.integers(1, self.operations[kind] + 1))
                ended = self.run(out, kind, at=at, mode="torn" if draw.random() < 0.5 else "kill")
                inside += ended.status == KILLED
            else:
                ended = self.run(out, kind, kill_after=float(draw.uniform(0.05, 1.0)) * self.seconds[kind])
            kills += ended.status == KILLED
            lost += self._lost(out, ended)
            assert ended.status in (0, KILLED), ended.output
        ended = self.run(out, kind)
        assert ended.status == 0, ended.output
        different = differences(outcome(out), self.whole[kind])
        shutil.rmtree(out)
        return Trial(kind, inside, kills, lost, different)

    def run(self, out: Path, kind: str, **faults: Any) -> Outcome:
        """One start of a run; faults count below its checkpoints unless `prefix` says otherwise."""
        return self.server.run("train.killing:train", out, self.data, kind, **{"prefix": out / "checkpoints", **faults})

    def close(self) -> None:
        """End the fork server."""
        self.server.close()

    def _lost(self, out: Path, ended: Outcome) -> int:
        """How many steps the newest good save lies behind the last one that was completed."""
        completed = max([entry["saved"] for entry in ended.notes if "saved" in entry], default=0)
        path = checkpoint.latest(out).path if out.is_dir() else None
        return max(0, completed - (checkpoint.step_of(path) if path else 0))
