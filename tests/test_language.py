"""The code speaks the words of the field's papers and tools, and a public class name means one class."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "kuosan"
# whose identifiers, strings and comments are checked, below src/kuosan
ROOMS = (
    *(
        "__init__.py",
        "__main__.py",
        "jobs.py",
        "cli",
        "train",
        "config.py",
        "ddpm.py",
        "device.py",
        "errors.py",
        "events.py",
        "limits.py",
        "options.py",
    ),
    *(
        "regular.py",
        "sample",
        "seeds.py",
        "convert",
        "data",
        "diffusion",
        "evaluate",
        "metrics",
        "models",
        "networks",
        "storage",
        "tasks",
        "text",
    ),
)
WORDS = {  # a private word: the field's
    **dict.fromkeys(("tell", "tells", "told", "telling"), "condition, conditioning, say, pass"),
    **dict.fromkeys(("hear", "hears", "heard", "hearing"), "attention mask, report, update"),
    **dict.fromkeys(("bring", "brings", "brought", "bringing"), "resize, input, pass"),
    **dict.fromkeys(("door", "doors"), "input, conditioning input"),
    **dict.fromkeys(("clock", "clocks"), "timestep"),
    **dict.fromkeys(("walk", "walks", "walked", "walking"), "trajectory, sampler"),
    **dict.fromkeys(("picture", "pictures"), "image"),
    **dict.fromkeys(("critic", "critics"), "discriminator"),
    **dict.fromkeys(("shelf", "shelves", "ledger", "ledgers"), "cache"),
    "journal": "log",
    "anew": "again",
    "astray": "diverged",
    "deed": "what, purpose",
    "deeds": "what, purpose",
}
ALLOWED = {  # what may hold a word, and why
    r"\.tell\(\)": "Python's files",
    r'"told"': "the value of text.padding before it was called attended, in old files and in keys of caches",
    r"\bcritic[_-](channels|layers|start)\b": "settings' keys in files",
    r"\b(autoencoder|settings)\.critic\b|\bcritic: float\b|\bcritic=ANY\b|\"critic\"|\+ critic \* ratio": "another",
    r'(self|inner)\.critic\b|"critic\."': "names of weights in files",
    r"\bos\.walk\b|\brandom walk\b": "Python's, and mathematics'",
    r"\bdata\.walk import .*|\bwalk\((root|self\.path)": "the files of a folder, and of the folders in it",
    r"""["']pictures?["']|"[\w.]+_pictures"|\bpictures=part\.images""": "keys in files, and a folder of kept images",
    r"\bpictures/": "a folder that results were always written to",
    r'"Pictures"|"open_pictures"': "public names of before, which still work",
}


def files() -> Iterator[Path]:
    for room in ROOMS:
        path = SOURCE / room
        assert path.exists(), f"no room {room}"
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def words(line: str) -> set[str]:
    """A line's words in small letters, `text_encoder` and `TextEncoder` two each."""
    for allowed in ALLOWED:
        line = re.sub(allowed, " ", line)
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", line)}


def found(text: str) -> list[str]:
    """Lines with a word of the list, and what to write instead."""
    return [
        f"{number}: {word!r} -> {WORDS[word]}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        for word in sorted(words(line) & WORDS.keys())
    ]


def test_identifiers_strings_and_comments_use_the_words_of_the_field() -> None:
    wrong = [f"{path.relative_to(SOURCE)}:{each}" for path in files() for each in found(path.read_text())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("def _told(self): ...", "told"),
        ("class NextDoor: ...", "door"),
        ("CLOCK_WIDTH = 256", "clock"),
        ('raise Error("this network has no label door.")', "door"),
        ("x = 1  # made anew", "anew"),
        ("usualDoors", "doors"),
    ],
)
def test_a_word_is_found_in_names_messages_and_comments(line: str, word: str) -> None:
    assert any(repr(word) in each for each in found(line))


@pytest.mark.parametrize("line", ["place = file.tell()", "self.critic = None", "intellect, indoors, heart, adequately"])
def test_aliases_and_parts_of_other_words_are_allowed(line: str) -> None:
    assert found(line) == []


def test_every_exception_is_still_needed() -> None:
    text = "\n".join(path.read_text() for path in files())
    assert [pattern for pattern in ALLOWED if not re.search(pattern, text)] == []


def test_a_public_class_name_means_one_class() -> None:
    places = defaultdict[str, list[str]](list)
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice, twice
