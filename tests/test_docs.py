"""The documentation is true: the shell's page is what the code says, and pages name only what exists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from kuosan.cli import verbs
from kuosan.cli.flags import Verb
from kuosan.diffusion import registry
from kuosan.options import options
from kuosan.train.config import SHORT, RunConfig
from scripted import load_script

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    return load_script("build_cli_page")


def test_the_shells_page_is_what_the_code_says(builder: ModuleType) -> None:
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == builder.page(), "run tools/build_cli_page.py (make docs)"


def test_every_setting_is_on_the_page_with_its_documentation() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for option in options(RunConfig).values():
        assert option.doc.strip(), f"{option.key} has no line of documentation"
        assert f"| `{option.name}` |" in text


def test_an_option_without_documentation_fails(builder: ModuleType) -> None:
    @dataclass(frozen=True)
    class Job:
        undocumented: int = 3

    with pytest.raises(KeyError, match="undocumented"):
        builder.converted(Verb("verb", Job, "", "A verb.", lambda tree, words: None))


def test_groups_hold_every_setting_once() -> None:
    listed = [option.key for members in verbs.groups().values() for option in members]
    assert sorted(listed) == sorted(options(RunConfig))
    assert list(verbs.groups()) == [
        "data",
        "model",
        "model.network",
        "model.schedule",
        "model.task",
        "model.text",
        "model.codec",
        "train",
        "train.autoencoder",
        "compute",
    ]


def test_short_names_stand_for_settings_that_exist() -> None:
    assert set(SHORT.values()) <= set(options(RunConfig))


def test_every_sampler_is_named_on_the_page() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for name in registry.SAMPLERS:
        assert re.search(rf"\b{name}\b", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_pages_show_exist(page: Path) -> None:
    known = {option.rsplit(".", 1)[-1] for option in options(RunConfig)} | set(options(RunConfig)) | set(SHORT)
    flags = re.findall(r"`--([a-z][\w-]*)", (DOCS / "cli.md").read_text(encoding="utf-8"))
    flags += re.findall(r", --([a-z][\w-]*)", (DOCS / "cli.md").read_text(encoding="utf-8"))
    known |= {flag.replace("-", "_") for flag in flags} | {"help", "version", "key", "slow", "flag", "no_flag"}
    lines = [
        line
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bkuosan (train|sample|evaluate|doctor|demo)\b", line)
    ]
    for line in lines:
        for flag in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", line):
            assert flag.replace("-", "_").removeprefix("no_") in known, f"{page.name}: --{flag} in: {line}"
