"""The house stands: arrows point down, importing is light, draws are keyed, and the shell answers without torch."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kuosan

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "kuosan"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")
LONGEST = 500  # lines a file


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def room(module: str) -> str:
    """The folder or file directly under the package that a module lives in."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path, at_once: bool = False) -> Iterator[tuple[str, int]]:
    """Every kuosan module a file imports, wherever in it the import stands, with its line.

    `at_once`: only those that run when the file is imported, not in functions nor for type checkers.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    later += [node for node in ast.walk(tree) if isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING"]
    ignored = {id(node) for block in later for node in ast.walk(block)} if at_once else set()
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            base = node.module or ""
            found = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in NAMES else base for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno) for name in found if name.split(".")[0] == "kuosan")


def floors() -> dict[str, int]:
    """The table of docs/architecture.md: room -> floor."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| ([^|]+) \|", text, flags=re.MULTILINE):
        for name in re.findall(r"`(\w+)", rooms):
            assert name not in found, f"{name} is on two floors"
            found[name] = int(floor)
    return found


def test_the_table_of_floors_names_every_room_that_exists_and_no_other() -> None:
    rooms = {room(module_name(path)) for path in MODULES}
    assert set(floors()) == rooms


def test_every_import_goes_to_a_lower_floor_or_stays_in_its_room() -> None:
    table, wrong = floors(), []
    for path in MODULES:
        here = room(module_name(path))
        for name, line in imports(path):
            there = room(name)
            if there and there != here and table[there] >= table[here]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} ({table[here]}) -> {there} ({table[there]})")
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle() -> None:
    # imports within functions and for type checkers count, too
    graph = {module_name(path): {name for name, _ in imports(path)} - {"kuosan"} for path in MODULES}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_public_names_are_the_lazy_ones_sorted_and_each_is_documented() -> None:
    assert set(kuosan.__all__) == set(kuosan._HOMES)
    assert list(kuosan._HOMES) == kuosan.__all__
    for name in kuosan.__all__:
        value = getattr(kuosan, name)
        if inspect.ismodule(value):
            assert value.__name__ == f"kuosan.diffusion.{name}" and value.__doc__
        if callable(value):
            assert value.__module__.startswith("kuosan."), name
            assert inspect.getdoc(value), f"kuosan.{name} has no docstring"
    with pytest.raises(AttributeError, match="nosuch"):
        getattr(kuosan, "nosuch")  # noqa: B009


def test_the_names_for_type_checkers_are_the_lazy_ones() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert found == {name: f"kuosan.{home}" for name, home in kuosan._HOMES.items()}


def test_the_rooms_of_the_mathematics_are_public_and_load_when_used() -> None:
    rooms = ["guidance", "inversion", "likelihood", "operators", "restoration", "samplers"]
    assert set(rooms) <= set(kuosan.__all__) and set(rooms) <= set(dir(kuosan))
    for room in rooms:  # each first, in a process of its own
        code = f"import sys, kuosan; assert 'torch' not in sys.modules; print(kuosan.{room}.__name__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.strip() == f"kuosan.diffusion.{room}"


def test_every_module_says_what_it_holds() -> None:
    silent = [
        path.name for path in MODULES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_no_file_is_longer_than_a_person_reads_in_one_go() -> None:
    long = {str(path.relative_to(ROOT)): n for path in MODULES if (n := len(path.read_text().splitlines())) > LONGEST}
    assert not long


def test_only_the_shell_and_the_trainer_print() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        if room(module_name(path)) not in ("cli", "train")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not found


def dotted(node: ast.expr) -> str:
    """`torch.random.x` of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


BARE = re.compile(
    r"torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial|poisson|manual_seed|seed)(_like)?$"
    r"|(np|numpy)\.random\.(?!Generator$|Philox$)\w+$|random\.\w+$|.*\.(normal_|uniform_|random_|bernoulli_)$"
)


# torch's dropout draws from the global generator only: the loop seeds it from the step's key, in a fork. A sampler's
# caller may give a torch.Generator of his own for the noise of its steps.
KEYED = {("kuosan.train.loop", "torch.manual_seed"), ("kuosan.diffusion.samplers.step", "torch.randn")}


def test_every_draw_is_keyed_but_the_introductions() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {dotted(node.func)}"
        for path in MODULES
        if module_name(path) not in ("kuosan.seeds", "kuosan.ddpm")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and BARE.match(dotted(node.func))
        if (module_name(path), dotted(node.func)) not in KEYED
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("call", ["torch.randn", "torch.rand_like", "np.random.rand", "random.choice", "x.normal_"])
def test_the_search_for_bare_draws_finds_one(call: str) -> None:
    assert BARE.match(call)


WITHOUT_TORCH = """
import sys
import kuosan
from kuosan.cli.main import main
said = []
for words in {commands!r}:
    try:
        main(words)
    except SystemExit as end:
        said.append(end.code)
heavy = [name for name in ("torch", "matplotlib", "PIL", "scipy", "diffusers", "transformers") if name in sys.modules]
print("CODES", said, "HEAVY", heavy)
"""

BAD = [
    ["sample", "nowhere", "--sampler", "dimm"],
    ["sample", "nowhere", "--stepz", "3"],
    ["sample", "nowhere", "--strength", "0.5"],
    ["sample", "nowhere", "-n", "-1"],
    ["sample", "x", "--like", "x.png", "--steps", "3"],
    ["sample"],
    ["train"],
    ["train", "nowhere", "--max-stepz", "3"],
    ["train", "nowhere", "--schedule", "cosine"],
    ["train", "nowhere", "--prediction", "eps", "--schedule", "flow"],
    ["train", "nowhere", "--zero-terminal-snr", "--prediction", "eps"],
    ["train", "nowhere", "--train.batch", "0"],
    ["train", "nowhere", "--config", "nosuch"],
    ["evaluate"],
    ["evaluate", "nowhere"],
    ["evaluate", "nowhere", "--metrics", "fid"],
    ["evaluate", "nowhere", "--sweep", "stepz=3"],
    ["evaluate", "nowhere", "--features", "lite1"],
    ["doctor", "nowhere", "--size", "x"],
    ["demo", "--minutes", "x"],
    ["trian"],
]


def without_torch(commands: list[list[str]]) -> str:
    code = WITHOUT_TORCH.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_help_is_given_without_torch() -> None:
    said = without_torch(
        [
            ["--help"],
            ["--version"],
            ["train", "--help"],
            ["sample", "--help"],
            ["doctor", "--help"],
            ["train", "--help-all"],
        ]
    )
    assert "CODES [0, 0, 0, 0, 0, 0] HEAVY []" in said
    assert "--max-steps" in said and "--train.betas" in said  # --help-all lists every setting


def test_bad_flags_are_answered_without_torch() -> None:
    assert f"CODES {[2] * len(BAD)} HEAVY []" in without_torch(BAD)
