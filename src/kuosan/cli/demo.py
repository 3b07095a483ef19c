"""`kuosan demo`: train on the built-in portraits for a few minutes, then show everything on one page."""

from __future__ import annotations

import json
import time
from pathlib import Path
from shlex import quote
from typing import Any

from kuosan import outputs
from kuosan.cli import page
from kuosan.cli.console import duration, say
from kuosan.cli.numbers import Whole
from kuosan.cli.sample import make
from kuosan.cli.train import recipe
from kuosan.cli.train import train as train_command
from kuosan.config import load
from kuosan.device import ComputeConfig
from kuosan.errors import Error
from kuosan.files import write_atomic
from kuosan.sample.request import Request

FEWEST, MOST = 500, 20_000  # training steps, whatever the machine

# name on the page, sampler, steps, what is said of it
CONTEST = (
    ("DDPM", "ddpm", 1000, "the ancestral walk of Ho et al. 2020, all 1000 steps"),
    ("DDIM", "ddim", 50, "Song et al. 2021, deterministic"),
    ("DPM-Solver++ 2M", "dpm_solver_2m", 10, "Lu et al. 2022, second order"),
)


def demo(*, out: Path = Path("demo"), minutes: float = 3.2, seed: Whole = 1) -> int:
    """Train a diffusion model on the built-in portraits, sample it in every way there is, and show it on one page.

    Parameters
    ----------
    out
        The folder to write; the page is index.html in it.
    minutes
        How long to train, about.
    seed
        The first seed of the pictures.
    """
    Request(64, seed + 100)  # a seed that cannot be is refused now, not after training
    if not 0 < minutes < 24 * 60:
        raise Error(f"minutes = {minutes} is not allowed: above 0, below {24 * 60}.")
    pages = [f"{name}.png" for name in ("portraits", "curve", "between", *(sampler for _, sampler, *_ in CONTEST))]
    with outputs.claimed(out, "demo", {"seed": seed}, ["index.html", "denoising.gif", "denoising.png", *pages]):
        return _demo(out, minutes, seed)


def _demo(out: Path, minutes: float, seed: int) -> int:
    """Train, sample, and write the page into a claimed folder."""
    begin = time.perf_counter()
    run = out / "run"
    steps = _steps(run, minutes)
    stopped = train_command("--max-steps", str(steps), config="portraits", out=run)
    if stopped:
        return stopped
    shown: dict[str, Any] = {"training": time.perf_counter() - begin, "steps": steps, "commands": {}}
    shown["commands"]["training"] = f"kuosan train --config portraits --max-steps {steps} --out {quote(str(run))}"
    _pictures(run, out, seed, shown)
    _copy(run / "curve.png", out / "curve.png")
    shown["total"] = time.perf_counter() - begin
    shown["model"] = _facts(run)
    page.write(out, shown)
    say(f"demo: {duration(shown['total'])} in all. Open {out / 'index.html'}")
    return 0


def _copy(source: Path, place: Path) -> None:
    """A copy that is whole or not there."""
    write_atomic(place, source.read_bytes())


def _steps(run: Path, minutes: float) -> int:
    """As many steps as fit into the time on this machine; those of the run that is there already, if one is."""
    if (run / "config.yaml").is_file():
        steps = int(load(run / "config.yaml")["train"]["max_steps"])
        say(f"demo: {run} is there already: it goes on to its {steps} steps, whatever the minutes.")
        return steps
    from kuosan.train import api
    from kuosan.train.estimate import measure
    from kuosan.train.report import Silent

    asked = api.prepare(run, load(recipe("portraits")))
    trial = api.start(asked, Silent(), dry=True)
    seconds = measure(trial).seconds
    fitting = round(minutes * 60 / seconds / 100) * 100
    if fitting < FEWEST:
        say(f"demo: {minutes:g} minutes are too few here for pictures worth showing: {FEWEST} steps are trained.")
    return max(FEWEST, min(MOST, fitting))


def _pictures(run: Path, out: Path, seed: int, shown: dict[str, Any]) -> None:
    """Everything that is sampled: the grid, the contest on the same seeds, the animation, the interpolation."""
    where = ComputeConfig()

    def sample(name: str, request: Request, flags: str, columns: int, gif: bool = False) -> tuple[float, int]:
        folder = out / "pictures" / name
        shown["commands"][name] = f"kuosan sample {quote(str(run))} {flags} --out {quote(str(folder))}"
        result = make(run, request, folder, columns, gif, where)
        _copy(folder / "sheet.png", out / f"{name}.png")
        if gif:
            _copy(folder / "denoising.gif", out / "denoising.gif")
        return result

    first = out / "pictures" / "portraits" / f"seed-{seed:08d}.png"
    shown["commands"]["like"] = f"kuosan sample --like {quote(str(first))}"
    sample("portraits", Request(64, seed, batch=32), f"-n 64 --seed {seed} --batch 32 --columns 16", 16)
    shown["contest"] = []
    for title, sampler, steps, words in CONTEST:
        request = Request(8, seed, sampler, steps)
        seconds, evaluations = sample(
            sampler, request, f"-n 8 --sampler {sampler} --steps {steps} --seed {seed} --columns 8", 8
        )
        entry = {"name": sampler, "title": title, "words": words, "seconds": seconds, "evaluations": evaluations}
        shown["contest"].append(entry)
    gif = Request(16, seed + 100, "ddim", 50)
    sample("denoising", gif, f"-n 16 --sampler ddim --steps 50 --seed {seed + 100} --columns 4 --gif", 4, gif=True)
    between = Request(8, sampler="ddim", steps=50, between=(seed, seed + 3))
    flags = f"-n 8 --sampler ddim --steps 50 --between {seed} {seed + 3} --columns 8"
    sample("between", between, flags, 8)


def _facts(run: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    speeds = sorted(row["images_per_s"] for row in rows if row.get("images_per_s"))
    held = [row["held_out"]["loss"] for row in rows if row.get("held_out")]
    return {
        "speed": speeds[len(speeds) // 2] if speeds else 0.0,
        "held_out": held[-1] if held else None,
        "config": load(run / "config.yaml")["model"],
    }
