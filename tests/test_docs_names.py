"""The pages name only modules, files, functions and symbols that exist."""

from __future__ import annotations

import ast
import importlib
import re
import unicodedata
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from kuosan.models.codec import Latents
from kuosan.options import options
from kuosan.train.config import RunConfig

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "kuosan"
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *DOCS.glob("*.md"),
        ROOT / "README.md",
        ROOT / "README.zh-CN.md",
        ROOT / "LICENSES-DATA.md",
        ROOT / "benchmarks" / "README.md",
        *(SOURCE / "recipes").glob("*.yaml"),
    ]
)
ids = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

OF_OTHERS = {"train_unconditional.py": "a script of diffusers"}  # files that are not ours
LIBRARIES = {"torch", "nn", "os", "diffusers", "transformers"}
NAMES_OF_OTHERS = {
    "StableDiffusionPipeline.encode_prompt": "diffusers",
    "Trainer.train": "denoising-diffusion-pytorch",
    "loss.item": "torch",
}
INSTANCES = {
    "level": "diffusion.level.Level",
    "config": "networks.config.UNetConfig",
    "images": "data.dataset.Images",
    "model": "sample.pipeline.Pipeline",
}  # what a page calls by a variable's name: the class of it
FILES = {
    "bin", "csv", "db", "html", "ini", "json", "jsonl", "md", "npz", "parquet", "png", "pth", "py", "safetensors",
    "toml", "txt", "yaml", "zip",
}  # fmt: skip


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def modules() -> dict[str, str]:
    """Every module of the package, dotted without `kuosan.`, and its file's text."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


@cache
def settings() -> set[str]:
    """Every setting of a run by name and stored key, the groups that hold them, and what a run fills in."""
    found = {name for option in options(RunConfig).values() for name in (option.key, option.name)}
    found |= {name.rpartition(".")[0] for name in found}
    return found | {f"model.codec.{name.name}" for name in fields(Latents)}


@cache
def homes(name: str) -> tuple[str, ...]:
    """The modules that define a class or function of this name at their top level."""
    return tuple(
        module
        for module, text in modules().items()
        if re.search(rf"^(class|def) {re.escape(name)}\b", text, flags=re.MULTILINE)
        and any(getattr(node, "name", None) == name for node in ast.parse(text).body)
    )


def has(thing: object, names: list[str]) -> bool:
    """Whether a chain of attributes leads somewhere; a dataclass has its fields."""
    for i, name in enumerate(names):
        if isinstance(thing, type) and is_dataclass(thing) and name in {field.name for field in fields(thing)}:
            return i == len(names) - 1
        if not hasattr(thing, name):
            return False
        thing = getattr(thing, name)
    return True


def exists(dotted: str) -> bool:
    """Whether `room.module.name`, counted from the package, is a module or something in one."""
    parts = dotted.split(".") if dotted else []
    for end in range(len(parts), -1, -1):
        if ".".join(parts[:end]) in modules():
            module = importlib.import_module(".".join(["kuosan", *parts[:end]]))
            return has(module, parts[end:])
    return False


def sets(dotted: str, attribute: str) -> bool:
    """Whether a class gives its instances an attribute."""
    home, _, name = dotted.rpartition(".")
    body = next(node for node in ast.parse(modules()[home]).body if getattr(node, "name", None) == name)
    return any(
        isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == attribute
        for node in ast.walk(body)
    )


def is_true(dotted: str) -> bool:
    """Whether a page may write `dotted`: a module, something in one, a setting, or a field of a known variable."""
    first, *rest = dotted.split(".")
    if first in LIBRARIES or dotted in NAMES_OF_OTHERS or rest[-1] in FILES or dotted in settings() or exists(dotted):
        return True
    if first in INSTANCES and (exists(".".join([INSTANCES[first], *rest])) or sets(INSTANCES[first], rest[0])):
        return True
    if first[0].isupper():
        return any(exists(".".join([home, first, *rest])) for home in homes(first))
    ends = [name for name in modules() if name.rpartition(".")[2] == first]
    return any(exists(".".join([name, *rest])) for name in ends)


@ids
def test_the_files_that_pages_name_exist(page: Path) -> None:
    missing = set()
    for found in re.findall(r"(?<![\w/.~$-])((?:[\w.-]+/)*[\w-]+\.(?:py|mjs))(?![\w/])", text_of(page)):
        places = [ROOT / found, ROOT / "src" / found, SOURCE / found, page.parent / found]
        bare = "/" not in found and any(any((ROOT / top).rglob(found)) for top in ("src", "tests", "tools"))
        if not (any(place.exists() for place in places) or bare or found in OF_OTHERS):
            missing.add(found)
    missing |= {
        found
        for found in re.findall(r"(?<![\w/.-])(?:src|tests|tools|benchmarks)/[\w./-]*[\w/]", text_of(page))
        if not (ROOT / found).exists()
    }
    assert not missing, f"{page.name} names files that do not exist: {sorted(missing)}"


@ids
def test_the_modules_that_pages_name_exist(page: Path) -> None:
    text = text_of(page)
    named = set(re.findall(r"(?<![\w./:@-])kuosan((?:\.[A-Za-z_]\w*)+)", text))
    for module, names in re.findall(r"from kuosan((?:\.\w+)*) import ([\w, ]+)", text):
        named |= {f"{module}.{name.split(' as ')[0].strip()}" for name in names.split(",")}
    missing = {name for name in named if not exists(name.removeprefix("."))}
    assert not missing, f"{page.name} names what kuosan does not have: {sorted(missing)}"


@ids
def test_the_dotted_names_that_pages_show_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    named = set(re.findall(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\([^`]*\))?`", text))
    wrong = {name for name in named if not name.startswith("kuosan.") and not is_true(name)}
    assert not wrong, f"{page.name} shows names that lead nowhere: {sorted(wrong)}"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@ids
def test_links_to_headings_find_one(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text_of(page)):
        if "://" not in target:
            other = page.parent / target if target else page
            assert anchor in anchors(text_of(other)), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize(
    "stale", ["neighbours.precision_recall", "codec.latents.measure", "Level.sigmas", "diffusion.names.check"]
)
def test_the_search_for_stale_names_finds_one(stale: str) -> None:
    assert not is_true(stale)


@pytest.mark.parametrize("name", ["prdc.precision_recall", "level.alpha", "model.codec.run", "Discrete.alpha_bar"])
def test_true_names_are_found(name: str) -> None:
    assert is_true(name)


def test_every_file_of_the_package_has_its_line_in_the_architecture() -> None:
    text = text_of(DOCS / "architecture.md")
    listed = dict(re.findall(r"^\| `([\w/]+\.py)` \| (.+) \|$", text, flags=re.MULTILINE))
    files = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if path.name != "__init__.py" or path.read_text(encoding="utf-8").count("\n") > 20
    }
    files -= {"__init__.py"}
    lacking, gone = sorted(files - set(listed)), sorted(set(listed) - files)
    assert not lacking and not gone, f"docs/architecture.md, 'The rooms': add lines for {lacking}; remove {gone}"


# Symbols: what docs/mathematics.md uses stands in docs/glossary.md.

MARKS = r"[\u0300-\u036f]"
GREEK = rf"[Α-Ωα-ω]{MARKS}*|[A-Za-z]{MARKS}+(?![a-zà-ÿ])"
NAMES_OF_PEOPLE = {"ä", "ń", "ö", "é"}  # letters with marks that are no symbols
NUMBERS = {"π", "Π"}  # 3.14159...; the product, and ΠGDM's name


def rows(page: str, heading: str = "") -> list[list[str]]:
    """The cells of all tables of a page, or of those below one heading."""
    text = unicodedata.normalize("NFD", text_of(DOCS / page))
    if heading:
        text = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|") and not set(line) <= set("|-: ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def glossary() -> list[list[str]]:
    return [row for row in rows("glossary.md") if row[0] != "symbol"]


def test_each_symbol_of_the_mathematics_is_in_the_glossary() -> None:
    known = {symbol.strip() for row in glossary() for symbol in re.split(r"[,;]", row[0])}
    for symbol, code, _ in rows("mathematics.md", "Symbols")[1:]:
        if symbol == "(a, b)":
            assert any(row[0] == "(a, b)" for row in glossary())
            continue
        for one in symbol.split(", "):
            assert one in known, f"{one} of docs/mathematics.md is not in docs/glossary.md"
        for name in re.findall(r"`([^`]+)`", code):
            assert any(f"`{name}`" in row[1] for row in glossary()), f"{name} is not in docs/glossary.md"


def test_each_greek_letter_and_hat_of_the_mathematics_is_in_the_glossary() -> None:
    text = unicodedata.normalize("NFD", text_of(DOCS / "mathematics.md"))
    used = {unicodedata.normalize("NFC", found) for found in re.findall(GREEK, text)} - NAMES_OF_PEOPLE - NUMBERS
    shown = unicodedata.normalize("NFD", " ".join(f"{row[0]} {row[2]}" for row in glossary()))
    known = {unicodedata.normalize("NFC", found) for found in re.findall(GREEK, shown)}
    known |= {letter for found in known for letter in (found,)}
    assert {"α", "σ", "ε", "β̃", "ᾱ"} <= used
    assert used <= known, f"docs/mathematics.md uses {sorted(used - known)}, which docs/glossary.md lacks"


def test_the_glossary_names_code_that_exists() -> None:
    everything = "\n".join(modules().values())
    for row in glossary():
        assert len(row) == 7, f"{row[0]} | {row[1]}: {len(row)} cells"
        for code in re.findall(r"`([^`]+)`", row[1]):
            for word in re.findall(r"[A-Za-z_]\w+", code.partition("(")[0]):
                assert re.search(rf"\b{word}\b", everything), f"{word} of docs/glossary.md is not in the code"


def test_the_glossarys_names_of_diffusers_exist_there() -> None:
    found = find_spec("diffusers")
    if found is None or found.origin is None:
        pytest.skip("diffusers is not installed")
    package = Path(found.origin).parent
    rooms = (
        "schedulers",
        "guiders",
        "models",
        "pipelines/stable_diffusion",
        "pipelines/repaint",
        "pipelines/deprecated",
    )
    texts = [path.read_text(encoding="utf-8") for room in rooms for path in (package / room).rglob("*.py")]
    everything = "\n".join([*texts, (package / "training_utils.py").read_text(encoding="utf-8")])
    for row in glossary():
        for name in re.findall(r"`([^`]+)`", row[4]) if "scripts" not in row[4] else []:
            for word in re.findall(r"[A-Za-z_]\w+", name):
                assert re.search(rf"\b{word}\b", everything), f"{word} of docs/glossary.md is not in diffusers"


def test_the_mathematics_names_code_that_exists() -> None:
    everything = "\n".join(modules().values())
    text = re.sub(r"```.*?```", "", text_of(DOCS / "mathematics.md"), flags=re.DOTALL)
    names = set(re.findall(r"`([A-Za-z_]\w+)(?:\([^`]*\))?`", text))
    gone = {name for name in names if not re.search(rf"\b{name}\b", everything)}
    assert len(names) > 50 and not gone, f"docs/mathematics.md names what the code lacks: {sorted(gone)}"


def test_the_glossary_has_one_row_for_each_name_and_meaning() -> None:
    seen: set[tuple[str, ...]] = set()
    for row in glossary():
        key = (row[0], row[1], row[2])
        assert key not in seen, row[:3]
        seen.add(key)


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "docs/architecture.md", "docs/mathematics.md"])
def test_the_glossary_is_linked(page: str) -> None:
    assert "glossary.md)" in text_of(ROOT / page)


def test_the_files_that_the_source_names_exist() -> None:
    source = ROOT / "src" / "kuosan"
    wrong = [
        f"{path.relative_to(source)}: {name}"
        for path in sorted(source.rglob("*.py"))
        for name in re.findall(
            r"(?<![\w./{}-])((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|md))\b", path.read_text(encoding="utf-8")
        )
        if not any((root / name).exists() for root in (source, ROOT, ROOT / "docs"))
    ]
    assert not wrong, "\n".join(wrong)
