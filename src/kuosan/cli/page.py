"""The demo's page: one HTML file that shows the pictures beside it, with the commands that made them."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import kuosan
from kuosan.cli.console import duration
from kuosan.files import write_atomic

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
4,096 small drawings on this machine, and everything below was sampled from it. The single pictures lie in
<code>pictures/</code>, each with the recipe that makes it again: <code>{escape(commands["like"])}</code>.</p>
{_section("64 new portraits", "portraits.png", "Seeds in order, none picked out.", commands["portraits"])}
<section><h2>Three samplers, the same weights, the same seeds</h2>{rows}</section>
<div class="two">
{_section("From noise to pictures", "denoising.gif", "50 DDIM steps.", commands["denoising"])}
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
    figures = f"{entry['evaluations']} network evaluations, {entry['seconds']:.1f} s for 8 pictures{faster}"
    return (
        f'<div class="row"><span class="figures">{figures}</span><h2>{escape(entry["title"])}</h2>'
        f'<p>{escape(entry["words"])}</p><img src="{entry["name"]}.png" alt="{escape(entry["title"])}">'
        f"<pre>{escape(command)}</pre></div>"
    )
