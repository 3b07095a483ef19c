"""Every setting of a run, as `kuosan train --help` and docs/cli.md list them. Torch-free."""

from __future__ import annotations

from dataclasses import replace

from rich.panel import Panel
from rich.table import Table

from kuosan import options
from kuosan.cli.console import console
from kuosan.options import Option
from kuosan.train.config import RunConfig
from kuosan.train.defaults import GIVEN


def groups() -> dict[str, list[Option]]:
    """The settings by their group: data, model, model.network, model.schedule, train, compute.

    Their defaults are those of a new run of a diffusion model.
    """
    found: dict[str, list[Option]] = {}
    for option in options.options(RunConfig).values():
        option = replace(option, default=GIVEN.get(option.key, option.default))
        group, _, name = option.key.rpartition(".")
        group = option.key.removesuffix(".kind") if name == "kind" else group
        found.setdefault(group, []).append(option)
    return dict(sorted(found.items(), key=lambda item: _ORDER.index(item[0].partition(".")[0])))


def show(verb: str = "train") -> None:
    """Print every setting of a verb with its type, default and meaning."""
    where = "in a YAML file or as --key value" if verb == "train" else "as --key value"
    console.print(f"Every setting, {where}; the last part of a key is enough where it is unique.\n")
    for group, members in (groups() if verb == "train" else evaluate_groups()).items():
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column()
        for option in members:
            default = f" [default: {option.default_text}]" if option.default_text else ""
            kind = (
                f" ({option.type_text})" if len(option.type_text) <= 30 else f" ({option.type_text.split('|')[0]}|...)"
            )
            table.add_row(f"--{option.key}", _plain(f"{option.doc}{kind}{default}"))
        console.print(Panel(table, title=group, title_align="left"), soft_wrap=False)


def evaluate_groups() -> dict[str, list[Option]]:
    """The settings of `kuosan evaluate` by their group."""
    from kuosan.cli.evaluate import settings

    found: dict[str, list[Option]] = {}
    for option in settings():
        found.setdefault(option.key.rpartition(".")[0] or "evaluate", []).append(option)
    return found


_ORDER = ("data", "model", "train", "compute")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
