"""The demo's page: one HTML file that shows the images beside it, with the commands that made them.

`kuosan demo`: train on the built-in portraits for a few minutes, then show everything on one page.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from shlex import quote
from typing import Any

import kuosan
from kuosan.cli.console import duration, say
from kuosan.cli.flags import Verb
from kuosan.cli.sample import make
from kuosan.cli.train import train_job
from kuosan.config import load
from kuosan.device import ComputeConfig
from kuosan.errors import Error
from kuosan.options import Tree
from kuosan.sample.request import Request
from kuosan.storage import outputs
from kuosan.storage.files import write_atomic
from kuosan.train.job import TrainJob

STYLE = """
:root { color-scheme: light dark; --ink: #1c1b1a; --soft: #6b6862; --paper: #faf9f7; --card: #fff; --line: #e4e1db; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eeece8; --soft: #a09c94; --paper: #191817; --card: #222120; --line: #37352f; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2.1rem; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; }
p { margin: .3rem 0 .8rem; color: var(--soft); max-width: 70ch; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.2rem;
          margin: 1.2rem 0; }
img { max-width: 100%; height: auto; display: block; border-radius: 6px; background: #fff; }
pre { margin: .8rem 0 0; padding: .6rem .8rem; overflow-x: auto; border-radius: 6px; background: var(--paper);
      border: 1px solid var(--line); font: 13px/1.45 ui-monospace, monospace; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 1.2rem; }
.two section { margin: 0; }
.row { padding: .9rem 0; border-top: 1px solid var(--line); }
.row:first-of-type { border-top: 0; }
.figures { float: right; color: var(--soft); font-variant-numeric: tabular-nums; }
footer { color: var(--soft); font-size: .9rem; }
"""


def write(out: Path, shown: dict[str, Any]) -> None:
    """Write index.html into `out`; `shown` is what the demo measured."""
    commands, model = shown["commands"], shown["model"]
    held = f", held-out loss {model['held_out']:.4f}" if model["held_out"] is not None else ""
    schedule, prediction = model["config"]["schedule"], model["config"]["prediction"]
    trained = (
        f"{shown['steps']} steps in {duration(shown['training'])} at {model['speed']:.0f} images/s{held}. "
        f"The network predicts {prediction}; schedule {schedule.get('betas', schedule['kind'])}."
    )
    slowest = shown["contest"][0]
    rows = "\n".join(_row(entry, slowest, commands[entry["name"]]) for entry in shown["contest"])
    body = f"""
<h1>kuosan 扩散</h1>
<p>These portraits did not exist {
        duration(shown["total"])
    } before this page was written. A diffusion model was trained on
4,096 small drawings on this machine, and everything below was sampled from it. The single images lie in
<code>images/</code>, each with the recipe that makes it again: <code>{escape(commands["like"])}</code>.</p>
{_section("64 new portraits", "portraits.png", "Seeds in order, none picked out.", commands["portraits"])}
<section><h2>Three samplers, the same weights, the same seeds</h2>{rows}</section>
<div class="two">
{_section("From noise to images", "denoising.gif", "50 DDIM steps.", commands["denoising"])}
{_section("Training", "curve.png", trained, commands["training"])}
</div>
{
        _section(
            "From one seed to another",
            "between.png",
            "Spherical interpolation between two seeds' noises.",
            commands["between"],
        )
    }
<footer><p>kuosan {
        kuosan.__version__
    }. Training data: Toon Head by Johan Melin, CC BY 4.0, drawn with DiceBear by Florian
Körner (MIT).</p></footer>
"""
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>kuosan: the demo</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )
    write_atomic(out / "index.html", html)


def _section(title: str, image: str, words: str, command: str) -> str:
    return (
        f'<section><h2>{escape(title)}</h2><p>{escape(words)}</p><img src="{image}" alt="{escape(title)}">'
        f"<pre>{escape(command)}</pre></section>"
    )


def _row(entry: dict[str, Any], slowest: dict[str, Any], command: str) -> str:
    ratio = slowest["seconds"] / max(entry["seconds"], 1e-9)
    faster = f", {ratio:.0f}x faster" if entry is not slowest else ""
    figures = f"{entry['evaluations']} network evaluations, {entry['seconds']:.1f} s for 8 images{faster}"
    return (
        f'<div class="row"><span class="figures">{figures}</span><h2>{escape(entry["title"])}</h2>'
        f'<p>{escape(entry["words"])}</p><img src="{entry["name"]}.png" alt="{escape(entry["title"])}">'
        f"<pre>{escape(command)}</pre></div>"
    )


FEWEST, MOST = 500, 20_000  # training steps, whatever the machine

# name on the page, sampler, steps, what is said of it
CONTEST = (
    ("DDPM", "ddpm", 1000, "the ancestral sampling of Ho et al. 2020, all 1000 steps"),
    ("DDIM", "ddim", 50, "Song et al. 2021, deterministic"),
    ("DPM-Solver++ 2M", "dpm_solver_2m", 10, "Lu et al. 2022, second order"),
)


@dataclass(frozen=True)
class DemoJob:
    """Training on the built-in portraits, and everything that is sampled afterwards, on one page."""

    out: Path = Path("demo")  # the folder to write; the page is index.html in it
    minutes: float = 3.2  # how long to train, about
    seed: int = 1  # the first seed of the images

    def __post_init__(self) -> None:
        Request(64, self.seed + 100)  # a seed that cannot be is refused now, not after training
        if not 0 < self.minutes < 24 * 60:
            raise Error(f"minutes = {self.minutes} is not allowed: above 0, below {24 * 60}.")


def demo(tree: Tree, words: list[str]) -> int:
    """Train, sample and write the page into a folder that is its own."""
    if words:
        raise Error(f"{words[0]!r} is more than `kuosan demo` takes; see --help.")
    job: DemoJob = VERB.build(tree)
    pages = [f"{name}.png" for name in ("portraits", "curve", "between", *(sampler for _, sampler, *_ in CONTEST))]
    with outputs.claimed(job.out, "demo", {"seed": job.seed}, ["index.html", "denoising.gif", "denoising.png", *pages]):
        return _demo(job.out, job.minutes, job.seed)


def _demo(out: Path, minutes: float, seed: int) -> int:
    """Train, sample, and write the page into a claimed folder."""
    begin = time.perf_counter()
    run = out / "run"
    steps = _steps(run, minutes)
    stopped = train_job(TrainJob(run, config="portraits", settings={"train": {"max_steps": steps}}))
    if stopped:
        return stopped
    shown: dict[str, Any] = {"training": time.perf_counter() - begin, "steps": steps, "commands": {}}
    shown["commands"]["training"] = f"kuosan train --config portraits --max-steps {steps} --out {quote(str(run))}"
    _images(run, out, seed, shown)
    _copy(run / "curve.png", out / "curve.png")
    shown["total"] = time.perf_counter() - begin
    shown["model"] = _facts(run)
    write(out, shown)
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
    with kuosan.plan(TrainJob(run, config="portraits", dry_run=True)) as trial:
        assert trial.cost is not None
        seconds = trial.cost.seconds
    fitting = round(minutes * 60 / seconds / 100) * 100
    if fitting < FEWEST:
        say(f"demo: {minutes:g} minutes are too few here for images worth showing: {FEWEST} steps are trained.")
    return max(FEWEST, min(MOST, fitting))


def _images(run: Path, out: Path, seed: int, shown: dict[str, Any]) -> None:
    """Everything that is sampled: the grid, the contest on the same seeds, the animation, the interpolation."""
    where = ComputeConfig()

    def sample(name: str, request: Request, flags: str, columns: int, gif: bool = False) -> tuple[float, int]:
        folder = out / "images" / name
        shown["commands"][name] = f"kuosan sample {quote(str(run))} {flags} --out {quote(str(folder))}"
        result = make(run, request, folder, columns, gif, where)
        _copy(folder / "sheet.png", out / f"{name}.png")
        if gif:
            _copy(folder / "denoising.gif", out / "denoising.gif")
        return result

    first = out / "images" / "portraits" / f"seed-{seed:08d}.png"
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


VERB = Verb(
    "demo",
    DemoJob,
    "",
    "Train a diffusion model on the built-in portraits, sample it in every way there is, and show it on one page.",
    demo,
)
