"""The pages speak the field's language: none of the dialect's words, but where an option or a stored key is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GENERATED = {
    "cli.md": "tools/build_cli_page.py writes it from the package's own words",
    "conformance.md": "tools/build_conformance.py writes it, with the package's messages",
}
PAGES = sorted(page for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"] if page.name not in GENERATED)

# the word, and what the field says
WORDS = {
    r"told|tells?|telling": "conditioned on, given, says, shows, distinguishes",
    r"heard|hears?|hearing": "reads, recorded",
    r"brought|brings?|bringing": "given, resized, installed",
    r"anew": "again, filled",
    r"deeds?": "operation",
    r"astray": "wrong",
    r"clocks?": "timestep, wall time",
    r"doors?": "conditioning input",
    r"pictures?": "image",
    r"critics?": "discriminator",
}

# page -> words that stay, and why
EXCEPTIONS: dict[str, dict[str, str]] = {
    "evaluation.md": {"evaluations/pictures/": "a folder that results were always kept in"},
    "autoencoder.md": {
        "`--train.autoencoder.critic`": "an option",
        "`--critic-start`": "an option",
        "`critic`": "a key of the log, and part of the options' names",
    },
    "glossary.md": {"`critic`": "the options and keys that it explains"},
    "text-to-image.md": {
        "clocks, globes": "things that emoji show",
        "five\no'clock is a clock face": "a thing that emoji show",
    },
    "text.md": {"`told`": "a value that stored configurations hold"},
    "training.md": {"`--critic-start`": "an option"},
    "README.md": {"a clock, pizza": "a thing that emoji show"},
}


def without_exceptions(page: str, text: str) -> str:
    for phrase in EXCEPTIONS.get(page, {}):
        text = text.replace(phrase, "\n" * phrase.count("\n"))
    return text


def found_in(text: str) -> list[str]:
    """Each word of the dialect with its line and what to say in its place."""
    return [
        f"line {number}: {word!r}; say {better}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, better in WORDS.items()
        for word in re.findall(rf"\b(?:{pattern})\b", line, flags=re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_speak_the_fields_language(page: Path) -> None:
    found = found_in(without_exceptions(page.name, page.read_text(encoding="utf-8")))
    assert not found, f"{page.name}: " + "; ".join(found)


@pytest.mark.parametrize("page", EXCEPTIONS)
def test_every_exception_is_used(page: str) -> None:
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    text = path.read_text(encoding="utf-8")
    for phrase in EXCEPTIONS[page]:
        assert phrase in text and found_in(phrase), f"{page} has no {phrase!r} any more: take it off the list"


def test_generated_pages_say_so() -> None:
    for name in GENERATED:
        assert "Written by `tools/" in (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("sentence", ["The network is told it.", "It opens the door.", "Pictures, drawn anew."])
def test_the_search_finds_the_dialect(sentence: str) -> None:
    assert found_in(sentence)


@pytest.mark.parametrize("sentence", ["evaluate_pictures: 256", "An outdoor scene.", "critical, foretold, indeed"])
def test_the_search_leaves_other_words_alone(sentence: str) -> None:
    assert not found_in(sentence)
