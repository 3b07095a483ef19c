"""The first minutes of a training: kuosan and its peers after equal core-seconds, by KID and by eye.

    python benchmarks/first_minutes.py run WORK [--only CONTESTANT ...] [--kinds KIND ...] [--seconds 60 150 300 600]
    python benchmarks/first_minutes.py table WORK                           KID and core-seconds to a KID, as Markdown
    python benchmarks/first_minutes.py picture WORK --kinds portraits --seconds 300 --out PICTURE.png
    python benchmarks/first_minutes.py speed WORK                           images a core-second of each, fp32 and bf16

WORK/data holds the arrays of `recipe_study.py prepare`. A contestant trains on one kind of data with one thread in a
process of its own, from nothing, for so many seconds of that process's own processor time; the images it has seen, 400
images by its own sampler, their KID (`recipe_study.judge`) and a sheet are kept at each number of seconds, whose making
is not counted. WORK/results.jsonl gets a line each, and what has one is skipped.

Contestants:
- `kuosan`: what `kuosan train DATA --minutes` gives, its budget counted in processor time; a run each number of
  seconds, since the rate's course depends on it. Previews and validation are off, as in the peers; saves are not.
- `kuosan-47b8b58`: the defaults of that commit, whose checkout `--old` names, with as many steps as a probe says fit.
- `diffusers`, `denoising-diffusion-pytorch`: usual settings, one run with a stop at each number of seconds (their
  rates do not depend on the end), bf16 autocast, which is faster. `-ours`: our settings; a run each number of seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from peer_trainings import PEERS
from recipe_study import KINDS, MADE, STEPS, array, judge, results, save_sheet

SIZE = 32
SECONDS = (60, 150, 300, 600)
OLD = "kuosan-47b8b58"
USUAL = PEERS[:2]
CONTESTANTS = ("kuosan", OLD, *PEERS)
DDIM = 25  # steps of the peers' sampler
PROBE = (5, 25)  # steps of the two short runs whose difference says what a step of the old commit costs
YARDSTICK = 20.0  # core-seconds between two measures of the machine's speed


def stem(name: str, kind: str, seconds: int) -> str:
    """What files of a training are called."""
    return f"{name}-{kind}-{seconds}"


# --- a contestant's own process ---------------------------------------------------------------------------------------


class Yardstick:
    """A fixed amount of work, timed now and then: how fast a core-second is beside what else the machine does."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.net = torch.nn.Conv2d(64, 64, 3, padding=1).bfloat16()
        self.x = torch.randn(32, 64, 32, 32).bfloat16()
        self.seen: list[float] = []
        self.due = 0.0

    def measure(self, spent: float) -> None:
        """Time it if it is due; the first of three warms up."""
        import torch

        if spent < self.due:
            return
        self.due = spent + YARDSTICK
        with torch.no_grad():
            for turn in range(3):
                begin = time.process_time()
                self.net(self.x)
                if turn:
                    self.seen.append(time.process_time() - begin)

    @property
    def milliseconds(self) -> float:
        return round(1000 * statistics.median(self.seen), 3)


def train_peer(work: Path, name: str, kind: str, stops: list[int]) -> None:
    """Train to the last stop; averaged weights and a note at each."""
    import torch
    from peer_trainings import PRECISION, trainee
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    images = np.load(array(work, kind, SIZE))["images"]
    learner, yardstick, spent, steps = trainee(name, images), Yardstick(), 0.0, 0
    for stop in stops:
        while spent < stop:
            yardstick.measure(spent)
            learner.lr(spent / stops[-1])
            begin = time.process_time()
            learner.advance()
            spent, steps = spent + time.process_time() - begin, steps + 1
        state = {key: value.to(torch.bfloat16) if value.is_floating_point() and value.numel() > 4096 else value
                 for key, value in learner.averaged().items()}  # fmt: skip
        out = work / "runs" / stem(name, kind, stop)
        out.mkdir(parents=True, exist_ok=True)
        save_file(state, out / "averaged.safetensors")
        note(out, core_seconds=spent, steps=steps, batch=learner.batch, parameters=learner.parameters,
             precision=PRECISION, yardstick=yardstick.milliseconds)  # fmt: skip


def train(out: Path, tree: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What `kuosan train --minutes` gives, its seconds being those of this process's own processor time.

    Previews and validation are off; the rest that the tree leaves out is the default.
    """
    import torch

    torch.set_num_threads(1)
    from kuosan.train import budget

    budget.seconds_now = time.process_time  # before the job's module takes it over
    from kuosan import config
    from kuosan.train.job import TrainJob, plan_train, run_train

    plain = {
        "train": {"minutes": seconds / 60, "preview_every": 0, "evaluate_every": 0, "seed": 1},
        "compute": {"threads": 1},
    }
    shutil.rmtree(out, ignore_errors=True)
    begin = time.process_time()
    with plan_train(TrainJob(out, settings=config.merge(plain, tree))) as plan:
        batch = plan.run.config.train.batch
        parameters = sum(each.numel() for each in plan.run.state.network.parameters())
        for _ in run_train(plan):
            pass
        steps = plan.run.state.step
    spent = round(time.process_time() - begin, 1)
    return {"core_seconds": spent, "steps": steps, "batch": batch, "images": steps * batch, "parameters": parameters}


def train_kuosan(work: Path, kind: str, seconds: int) -> None:
    """The defaults of this tree."""
    yardstick, out = Yardstick(), work / "runs" / stem("kuosan", kind, seconds)
    yardstick.measure(0.0)
    found = train(out, {"data": {"path": str(array(work, kind, SIZE)), "hold_out": 0.0}}, seconds)
    yardstick.due = 0.0
    yardstick.measure(0.0)
    note(out, **found, precision="auto", yardstick=yardstick.milliseconds)


def train_old(work: Path, kind: str, seconds: int) -> None:
    """The defaults of a commit without time budgets: as many steps as two short runs say fit."""
    import kuosan

    yardstick, out = Yardstick(), work / "runs" / stem(OLD, kind, seconds)
    yardstick.measure(0.0)

    def run(folder: Path, steps: int) -> float:
        shutil.rmtree(folder, ignore_errors=True)
        begin = time.process_time()
        never = {"preview_every": 0, "evaluate_every": 0, "save_every": steps, "hold_out": 0.0}
        kuosan.fit(data=str(array(work, kind, SIZE)), out=folder, max_steps=steps, threads=1, seed=1, **never)
        return time.process_time() - begin

    probe = out.with_name(out.name + "-probe")
    short, long = (run(probe, steps) for steps in PROBE)
    cost = (long - short) / (PROBE[1] - PROBE[0])
    shutil.rmtree(probe)
    steps = max(1, round((seconds - max(0.0, short - PROBE[0] * cost)) / cost))
    spent = run(out, steps)
    network = kuosan.load(out).model.network
    yardstick.due = 0.0
    yardstick.measure(0.0)
    note(out, core_seconds=spent, steps=steps, batch=64, parameters=sum(p.numel() for p in network.parameters()),
         precision="auto", yardstick=yardstick.milliseconds)  # fmt: skip


def note(out: Path, **figures: Any) -> None:
    """What a training came to, beside its weights; there when they are."""
    figures["core_seconds"] = round(figures["core_seconds"], 1)
    (out / "trained.tmp").write_text(json.dumps(figures) + "\n")
    (out / "trained.tmp").rename(out / "trained.json")


def sample(work: Path, name: str, kind: str, seconds: int, n: int, steps: int) -> None:
    """WORK/made: images (n, 32, 32, C) uint8 of what was trained, by the contestant's own sampler."""
    run, out = work / "runs" / stem(name, kind, seconds), made_file(work, name, kind, seconds)
    if name in PEERS:
        from peer_trainings import sample as by_peer
        from safetensors.torch import load_file

        channels = np.load(array(work, kind, SIZE))["images"].shape[3]
        made = by_peer(name, load_file(run / "averaged.safetensors"), channels, SIZE, n, steps)
    else:
        import torch

        import kuosan

        torch.set_num_threads(1)
        x = np.asarray(kuosan.load(run).sample(n, seed=0, steps=steps))
        made = np.moveaxis(np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8), 1, -1)
    out.parent.mkdir(exist_ok=True)
    np.save(out, made)


def made_file(work: Path, name: str, kind: str, seconds: int) -> Path:
    return work / "made" / f"{stem(name, kind, seconds)}.npy"


# --- all of them ------------------------------------------------------------------------------------------------------


def stops_of(name: str, seconds: list[int]) -> list[list[int]]:
    """The trainings that give figures at those seconds: one with all as stops, or one each."""
    return [seconds] if name in USUAL else [[each] for each in seconds]


def worker(asked: argparse.Namespace, what: str, name: str, kind: str, stops: list[int]) -> None:
    """Run a part in a process of its own. Raises: SystemExit: it failed."""
    command = [sys.executable, __file__, "worker", str(asked.work), "--part", what, "--only", name, "--kinds", kind]
    command += ["--seconds", *map(str, stops), "-n", str(asked.n)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "CUDA_VISIBLE_DEVICES": ""}
    if name == OLD:
        rest = [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if not _holds_kuosan(each)]
        environment["PYTHONPATH"] = os.pathsep.join([str((asked.old / "src").resolve()), *rest])
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{name} on {kind}: {what} ended with {done.returncode}; see above")


def _holds_kuosan(folder: str) -> bool:
    return (Path(folder) / "kuosan").is_dir()


def run(asked: argparse.Namespace) -> None:
    """All that has no line yet; a contestant that fails is said and passed over."""
    for kind in asked.kinds or KINDS:
        for name in asked.only or CONTESTANTS:
            for stops in stops_of(name, sorted(asked.seconds)):
                try:
                    contest(asked, name, kind, stops)
                except RuntimeError as error:
                    print(error, file=sys.stderr, flush=True)


def contest(asked: argparse.Namespace, name: str, kind: str, stops: list[int]) -> None:
    """Train, sample, judge, as far as that is not done."""
    work = asked.work
    done = {(r["contestant"], r["kind"], r["seconds"]) for r in results(work)}
    left = [stop for stop in stops if (name, kind, stop) not in done and stop in (asked.judge or stops)]
    if not left:
        return
    if name == OLD and asked.old is None:
        raise RuntimeError(f"{name}: say --old CHECKOUT, a checkout of that commit")
    folders = {stop: work / "runs" / stem(name, kind, stop) for stop in stops}
    if not all((folders[stop] / "trained.json").exists() for stop in left):
        for stop in stops:
            shutil.rmtree(folders[stop], ignore_errors=True)
        worker(asked, "train", name, kind, stops)
    for stop in sorted(left, reverse=True):
        if not made_file(work, name, kind, stop).exists():
            worker(asked, "sample", name, kind, [stop])
        made = np.load(made_file(work, name, kind, stop))
        estimate = judge(work, kind, SIZE, made)
        save_sheet(work, stem(name, kind, stop), made)
        trained = json.loads((folders[stop] / "trained.json").read_text())
        row = {"contestant": name, "kind": kind, "seconds": stop, **trained}
        row["images"] = trained["steps"] * trained["batch"]
        row |= {"sampler": f"DDIM {DDIM}" if name in PEERS else f"default {STEPS}", "made": len(made)}
        row |= {"kid": round(estimate.value, 5), "error": round(estimate.error, 5)}
        with open(work / "results.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


# --- figures ----------------------------------------------------------------------------------------------------------


def seconds_to(curve: list[tuple[float, float]], kid: float) -> tuple[str, float]:
    """Core-seconds after which a curve [(core-seconds, KID)] reaches a KID, straight in both logarithms between points.

    Returns what stands before the figure: nothing, "<" (the first point is there) or ">" (no point is).
    """
    curve = sorted(curve)
    if curve[0][1] <= kid:
        return "<", curve[0][0]
    for (before, high), (after, low) in pairwise(curve):
        if low <= kid:
            part = (math.log(high) - math.log(kid)) / (math.log(high) - math.log(low))
            return "", math.exp(math.log(before) + part * (math.log(after) - math.log(before)))
    return ">", curve[-1][0]


def table(work: Path) -> str:
    """Markdown: a table a kind, and what kuosan needs to reach each other's last KID."""
    rows = [row for row in results(work) if "kid" in row]
    lines: list[str] = []
    for kind in [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]:
        own = [row for row in rows if row["kind"] == kind]
        stops = sorted({row["seconds"] for row in own})
        names = [name for name in CONTESTANTS if any(row["contestant"] == name for row in own)]
        head = [kind, "M parameters", *(f"{stop} s" for stop in stops), "images seen, last"]
        if "kuosan" in names:
            head.append("kuosan reaches its last KID in")
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        curves = {name: [(r["core_seconds"], max(r["kid"], 1e-5)) for r in own if r["contestant"] == name]
                  for name in names}  # fmt: skip
        for name in names:
            at = {row["seconds"]: row for row in own if row["contestant"] == name}
            last = at[max(at)]
            cells = [name, f"{last['parameters'] / 1e6:.1f}"]
            cells += [f"{1000 * at[s]['kid']:,.0f} ± {1000 * at[s]['error']:,.0f}" if s in at else "" for s in stops]
            cells.append(f"{last['images']:,}")
            if "kuosan" in names:
                sign, found = seconds_to(curves["kuosan"], last["kid"])
                times = f", {last['core_seconds'] / found:.1f}x fewer" if name != "kuosan" and sign != ">" else ""
                cells.append("" if name == "kuosan" else f"{sign}{found:,.0f} core-s{times}")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def picture(work: Path, kind: str, seconds: int, out: Path, names: list[str]) -> None:
    """Contestants' first images side by side, the same core-seconds each, with what they have seen above."""
    from kuosan.data.pixels import enlarge, grid, save_png

    blocks, labels = [], []
    for name in names or CONTESTANTS:
        found = [r for r in results(work) if (r["contestant"], r["kind"], r["seconds"]) == (name, kind, seconds)]
        if found and made_file(work, name, kind, seconds).exists():
            made = np.load(made_file(work, name, kind, seconds))[:20]
            block = enlarge(grid(made, 4, padding=1)[None], 2)[0]
            blocks.append(np.repeat(block, 3, 2) if block.shape[2] == 1 else block)
            row = found[-1]
            labels.append(f"{name}: {row['images']:,} images seen, KID {1000 * row['kid']:,.0f}")
    if not blocks:
        sys.exit(f"no result of {kind} after {seconds} core-seconds in {work}: run that first")
    save_png(out, grid(blocks, len(blocks), padding=6, labels=labels))
    print(out)


def speed(work: Path, kinds: list[str], rounds: int = 3) -> None:
    """Images a core-second of each peer's steps, fp32 and bf16 in turns in one process each."""
    command = [sys.executable, __file__, "worker", str(work), "--part", "speed", "--kinds", (kinds or KINDS)[0]]
    for name in PEERS:
        for _ in range(rounds):
            for precision in ("no", "bf16"):
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "PRECISION": precision}
                subprocess.run([*command, "--only", name], env=environment, check=True)


def speed_of(work: Path, name: str, kind: str, steps: int = 4) -> None:
    import peer_trainings as peers

    peers.PRECISION = os.environ["PRECISION"]
    learner = peers.trainee(name, np.load(array(work, kind, SIZE))["images"][:500])
    learner.advance()
    times = []
    for _ in range(steps):
        begin = time.process_time()
        learner.advance()
        times.append(time.process_time() - begin)
    print(
        f"{name} {peers.PRECISION}: {learner.batch / statistics.median(times):.1f} images/core-second", file=sys.stderr
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "picture", "speed", "worker"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", default=[], choices=[*CONTESTANTS, []], help="contestants; all")
    parser.add_argument("--kinds", nargs="*", default=[], choices=[*KINDS, []], help="kinds of data; all")
    parser.add_argument("--seconds", nargs="*", type=int, default=list(SECONDS), help="core-seconds of training")
    parser.add_argument("--judge", nargs="*", type=int, default=[], help="of these, which get images now; all")
    parser.add_argument("--old", type=Path, help=f"a checkout of the commit of {OLD}")
    parser.add_argument("-n", type=int, default=MADE, help="images made")
    parser.add_argument("--out", type=Path, help="the picture's file")
    parser.add_argument("--part", choices=("train", "sample", "speed"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "run": lambda: run(asked),
        "table": lambda: print(table(asked.work)),
        "speed": lambda: speed(asked.work, asked.kinds),
        "worker": lambda: work_on(asked),
    }
    if asked.what == "picture":
        if len(asked.kinds) != 1 or len(asked.seconds) != 1 or asked.out is None:
            sys.exit("picture needs one kind, one number of seconds and --out")
        picture(asked.work, asked.kinds[0], asked.seconds[0], asked.out, asked.only)
    else:
        parts[asked.what]()


def work_on(asked: argparse.Namespace) -> None:
    """A part of one contestant on one kind."""
    (name,), (kind,) = asked.only, asked.kinds
    if asked.part == "speed":
        speed_of(asked.work, name, kind)
    elif asked.part == "sample":
        sample(asked.work, name, kind, asked.seconds[0], asked.n, DDIM if name in PEERS else STEPS)
    elif name in PEERS:
        train_peer(asked.work, name, kind, asked.seconds)
    else:
        (train_old if name == OLD else train_kuosan)(asked.work, kind, asked.seconds[0])


if __name__ == "__main__":
    main()
