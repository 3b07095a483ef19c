"""A verb's options, help and page from its job's dataclass: the one adapter between a shell and jobs. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.panel import Panel
from rich.table import Table

from kuosan import config as trees
from kuosan import options
from kuosan.cli.console import console
from kuosan.errors import Error
from kuosan.options import Option, Tree

HELP = frozenset(("--help", "-h", "--help-all"))


@dataclass(frozen=True)
class Verb:
    """One word of the shell: what it takes, and what it does.

    Attributes:
        job: the dataclass whose fields are its options; a field with metadata {"option": False} is none.
        usage: the words it takes, as RUN [IMAGE ...].
        text: what it does, in a sentence or a few.
        run: does it, from the tree of what was typed and the bare words; an exit code, or None for 0.
        first: the options that --help shows, by their names; empty: all. --help-all shows every one.
        defaults: shown in the place of the dataclass's own.
        keyed: settings may stand in a file too, so messages name them by their keys and not as they are typed.
        hidden: keys, or first parts of keys, that this verb does not take.
        place: the name of its first word, which may be typed as an option too (--run RUN).
    """

    name: str
    job: type
    usage: str
    text: str
    run: Callable[[Tree, list[str]], int | None]
    first: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    hidden: Collection[str] = ()
    short: Mapping[str, str] = field(default_factory=dict)
    keyed: bool = False
    place: str = ""

    def options(self) -> list[Option]:
        """What it takes, in the order of the dataclass."""
        return [
            replace(each, default=self.defaults.get(each.key, each.default))
            for each in options.options(self.job).values()
            if not options.within(each.key, self.hidden)
        ]

    def flag(self, option: Option) -> str:
        """How an option is best typed: its shortest name that is meant by nothing else."""
        if option.flags and not option.flags[0].startswith("-"):
            return f"--{option.flags[0].replace('_', '-')}"
        for name, key in self.short.items():
            if key == option.key:
                return f"--{name.replace('_', '-')}"
        last = option.name.rpartition(".")[2]
        alone = sum(each.name.rpartition(".")[2] == last for each in self.options()) == 1
        letters = "".join(f", {flag}" for flag in option.flags if flag.startswith("-"))
        return f"--{(last if alone else option.name).replace('_', '-')}{letters}"

    def __call__(self, tokens: Sequence[str]) -> int | None:
        """Read the tokens and run.

        Raises:
            Error: an unknown option, a value that is impossible, or whatever the job refuses.
        """
        if not HELP.isdisjoint(tokens):
            self.show(everything="--help-all" in tokens)
            return 0
        try:
            tree, words = options.parse(self._placed(tokens), self.job, self.short, hidden=self.hidden)
            return self.run(tree, words)
        except Error as error:
            raise self._spoken(error) from error

    def _placed(self, tokens: Sequence[str]) -> list[str]:
        """The tokens with the first word in front, where it was typed as an option."""
        end = tokens.index("--") if "--" in tokens else len(tokens)
        for i, token in enumerate(tokens[:end]):
            name, equals, value = token.partition("=")
            if self.place and name == f"--{self.place}" and (equals or i + 1 < end):
                return [value if equals else tokens[i + 1], *tokens[:i], *tokens[i + 1 + (not equals) :]]
        return list(tokens)

    def _spoken(self, error: Error) -> Error:
        """The error with the option as it is typed, where it begins with a setting's key."""
        key = re.match(r"([\w.]+)(\[\d+\])? = ", str(error))
        known = {each.key: each for each in self.options()} | {each.name: each for each in self.options()}
        if self.keyed or key is None or key[1] not in known:
            return error
        flag, value = self.flag(known[key[1]]).partition(",")[0], str(error)[key.end() :]
        said = f"{flag} = {value}"
        if options.is_bool(known[key[1]].type):  # typed as --force, or --no-force
            said = re.sub("^--(.*?) = False ", r"--no-\1 ", re.sub("^(--.*?) = True ", r"\1 ", said))
        return Error(said, exit_code=error.exit_code)

    def build(self, tree: Tree) -> Any:
        """The job of a tree. Raises: Error: what is impossible, or was typed without effect, be it the default."""
        job: Any = trees.build(self.job, tree)
        options.check(job, given=tree)
        return job

    def show(self, everything: bool = False) -> None:
        """Print what it takes."""
        console.print(f"{' '.join(filter(None, ('kuosan', self.name, self.usage, '[OPTIONS]')))}\n", markup=False)
        for line in (*self.text.splitlines(), ""):
            console.print(line, markup=False)
        shown = [each for each in self.options() if everything or not self.first or self._first(each)]
        if self.first and not everything:
            shown.sort(key=lambda each: self.first.index(each.name if each.name in self.first else each.key))
        grouped = len(shown) == len(self.options()) and bool(self.first)
        groups: dict[str, list[Option]] = {}
        for option in shown:
            groups.setdefault(option.key.rpartition(".")[0] if grouped else "", []).append(option)
        for name, members in groups.items():
            table = Table.grid(padding=(0, 2))
            table.add_column(no_wrap=True)
            table.add_column()
            for option in members:
                table.add_row(*(_escaped(cell) for cell in self.row(option)))
            console.print(Panel(table, title=name or "options", title_align="left"), soft_wrap=False)
        if len(shown) < len(self.options()):
            console.print(f"All {len(self.options())} options: kuosan {self.name} --help-all", markup=False)

    def row(self, option: Option) -> tuple[str, str]:
        """An option's names, and its meaning with type and default."""
        kind = "" if options.is_bool(option.type) else f" ({option.type_text})"
        default = f" [default: {option.default_text}]" if option.default_text not in ("", "false") else ""
        return self.flag(option), f"{option.doc}{kind}{default}"

    def _first(self, option: Option) -> bool:
        return option.name in self.first or option.key in self.first


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
