"""Which file a row of a list means: its name as it stands, else written otherwise, else the end of a path.

Lists are written on one machine and read on another: backslashes, absolute paths of the first machine, other capitals,
accents composed otherwise (NFC, NFD), names without their suffix. Each of these is taken only where one file answers.

Bytes as text: by their byte order mark, else UTF-8, else Windows-1252 where that is likely; never by half.

UTF-8 is strict, so text of another kind all but never passes for it. Windows-1252 takes nearly any bytes, so it is
believed only where letters beyond ASCII are as rare as in the languages that it was made for.

What one cell of a list, one key of an object or one sidecar says: the name of a class, or a caption.

What is said of images in the files beside them, gathered from lists and sidecars, and what was not understood.
"""

from __future__ import annotations

import codecs
import math
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from kuosan.data.config import LABEL
from kuosan.data.walk import Role
from kuosan.errors import plural

IMAGES = (  # common names of image files; what they are, their bytes say
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
ABSOLUTE = re.compile(r"(?:file:)?(?:/|[A-Za-z]:/|~)")


class Match(NamedTuple):
    """A file and how it was found: by its very name, by a name written otherwise, or by the end of a path."""

    name: str
    how: str
    dropped: str = ""  # of a path whose end is the file's: what comes before


EXACT, OTHERWISE, END = "exact", "otherwise", "end"


class NoMatch(ValueError):
    """No file, or several, answer to a name; the text says so."""


class Finder:
    """The files of a data set by every way that a list may write their names."""

    def __init__(self, names: Iterable[str], root: str = "") -> None:
        self.names = {*names}
        self.root = root  # the data set's own name, with which paths in lists may begin
        self.folded: dict[str, list[str]] = {}
        self.stems: dict[str, list[str]] = {}
        for name in sorted(self.names):
            self.folded.setdefault(fold(name), []).append(name)
            stem, suffix = posixpath.splitext(name)
            if suffix.lower() in IMAGES:
                self.stems.setdefault(fold(stem), []).append(name)

    def exact(self, folder: str, given: str) -> str | None:
        """The file of this very name, relative to `folder`."""
        name = posixpath.normpath(posixpath.join(folder, given))
        return name if name in self.names else None

    def find(self, folder: str, given: str) -> Match:
        """The file that a row in `folder` means.

        Raises:
            NoMatch: none, or more than one that it could be.
        """
        if name := self.exact(folder, given):
            return Match(name, EXACT)
        path = given.strip().replace("\\", "/")
        if not path.strip("./"):
            raise NoMatch(f"names {given!r}, which is no file")
        if not ABSOLUTE.match(path):
            for home in dict.fromkeys((folder, "")):
                if name := self._otherwise(posixpath.join(home, path), given):
                    return Match(name, OTHERWISE)
            first, _, rest = posixpath.normpath(path).partition("/")
            if rest and self.root and fold(first) == fold(self.root) and (name := self._otherwise(rest, given)):
                return Match(name, OTHERWISE)
            raise NoMatch(f"names {given!r}, which is not there")
        steps = [step for step in posixpath.normpath(path).split("/") if step and not step.endswith(":")]
        for begin in range(len(steps)):
            for home in dict.fromkeys((folder, "")):
                if name := self._otherwise(posixpath.join(home, *steps[begin:]), given):
                    return Match(name, END, "/".join(steps[:begin]))
        raise NoMatch(f"names {given!r}, no end of which is the path of a file here")

    def _otherwise(self, path: str, given: str) -> str | None:
        """The one file whose name differs in capitals, accents' composition or a missing suffix alone."""
        path = posixpath.normpath(path)
        if path in self.names:
            return path
        for found in (self._alike(path), self.stems.get(fold(path), [])):
            if len(found) > 1:
                raise NoMatch(f"names {given!r}, which could be {' or '.join(found[:3])}: write it as it is called")
            if found:
                return found[0]
        return None

    def _alike(self, path: str) -> list[str]:
        """Names that differ in how accents are composed, else those that differ in capitals too."""
        alike = self.folded.get(fold(path), [])
        composed = [name for name in alike if _composed(name) == _composed(path)]
        return composed or alike


def fold(name: str) -> str:
    """One text for all ways to write a name's accents and capitals."""
    return _composed(_composed(name).casefold())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


UTF_8 = "UTF-8"
MARKS = (  # the longest first: a UTF-32 mark begins as one of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8", UTF_8),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
WESTERN = "Windows-1252"
LONGEST_RUN = 4  # letters beyond ASCII in a row
CURE = "save it as UTF-8"


def decode_text(content: bytes, *, beginning: bool = False) -> tuple[str, str]:
    """The text, and what it was written in.

    Args:
        beginning: more follows, so the last character may be cut.

    Raises:
        ValueError: it is no text in any of these encodings.
    """
    for mark, codec, name in MARKS:
        if content.startswith(mark):
            return _decoded(content[len(mark) :], codec, name, beginning), name
    if content.count(0) * 4 > len(content):
        raise ValueError(f"looks like UTF-16 without a byte order mark: {CURE}")
    try:
        return _decoded(content, "utf-8", UTF_8, beginning), UTF_8
    except ValueError as reason:
        text = _western(content)
        if text is None:
            raise ValueError(f"{reason}, nor {WESTERN}: {CURE}") from None
        return text, WESTERN


def _decoded(content: bytes, codec: str, name: str, beginning: bool) -> str:
    try:
        return codecs.getincrementaldecoder(codec)("strict").decode(content, not beginning)
    except UnicodeDecodeError as reason:
        raise ValueError(f"is not {name} at byte {reason.start:,}") from None


def _western(content: bytes) -> str | None:
    """Windows-1252, if it is likely: few letters beyond ASCII, and never many in a row as in Cyrillic or Chinese."""
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return None
    beyond = [letter for letter in text if letter > "\x7f" and letter.isalpha()]
    plain = sum(letter.isalpha() for letter in text) - len(beyond)
    longest = max(map(len, re.findall(r"[^\x00-\x7f]+", text)), default=0)
    if longest > LONGEST_RUN or (len(beyond) >= LONGEST_RUN and len(beyond) > plain):
        return None
    return text


MISSING = ("nan", "none", "null", "na", "n/a")  # where all other labels are numbers, these are none


def class_name(value: object, *, whole: bool = True) -> str | None:
    """A cell as the name of a class: text and numbers as they are written; empty, null and NaN are none.

    Args:
        whole: 3.0 is class 3, as it is in another row.

    Raises:
        ValueError: it is a list or an object, or no text that can be written down.
    """
    match value:
        case None:
            return None
        case bool():
            return str(value).lower()
        case float() if math.isnan(value):
            return None
        case float() if whole and value.is_integer():
            return str(int(value))
        case int() | float():
            return str(value)
        case str():
            return _text(value)
    raise ValueError(f"{value!r} is neither text nor a number")


def caption_text(value: object) -> str | None:
    """A cell as a caption, its blanks made one space each; of a list the first; empty and null are none.

    Raises:
        ValueError: it is no text.
    """
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = next((each for each in value if each.strip()), None)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return _text(value)


def _text(value: str) -> str | None:
    value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    if "\0" in value:
        raise ValueError(f"{value[:40]!r} holds NUL bytes, which no text does")
    return " ".join(value.split()) or None


def same_numbers(labels: Iterable[str]) -> dict[str, str | None]:
    """What each label is called: 3.0 is 3 where that is one too, and NaN among numbers is none."""
    found = {*labels}
    numbers = {name for name in found if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?", name)}
    alone = bool(numbers) and all(name in numbers or name.lower() in MISSING for name in found)
    called: dict[str, str | None] = {name: name for name in found}
    for name in found:
        if name in numbers and (short := re.sub(r"\.0*$", "", name)) in found:
            called[name] = short
        elif alone and name not in numbers:
            called[name] = None
    return called


CAPTIONS = ("text", "caption", "prompt")  # columns that hold a caption, the first that is there
MOST_CAPTION = 1 << 16  # bytes

Value = TypeVar("Value", bound=str)
Read = Callable[[str, int], bytes]  # a file's bytes by name, at most so many


@dataclass
class Beside:
    """What lies beside the images, by image name; `taken` are the files that were captions, not images."""

    read: Read
    label_column: str = LABEL
    version: int = 2  # 1 reads as older versions of kuosan did
    captions: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    splits: dict[str, Role] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    masks: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)  # what rows say of images, in the order met
    notes: list[str] = field(default_factory=list)
    encodings: dict[str, list[str]] = field(default_factory=dict)  # files that are not UTF-8

    def problem(self, place: str, what: str) -> None:
        """Keep what could not be understood, with its place."""
        self.problems.append((place, what))

    def text(self, name: str, limit: int = MOST_CAPTION) -> str | None:
        """The text of a file; None, and a problem, where it is none."""
        try:
            content = self.read(name, limit + 1)
            if len(content) > limit:
                raise ValueError(f"more than {limit:,} bytes")
            if self.version == 1:
                return content.decode("utf-8-sig")
            text, encoding = decode_text(content)
        except Exception as reason:  # a damaged zip member fails in as many ways as an image does
            self.problem(name, f"captions not readable: {reason}")
            return None
        if encoding != UTF_8:
            self.encodings.setdefault(encoding, []).append(name)
        return text

    def caption(self, place: str, value: object, column: str = "") -> str | None:
        """A cell as a caption; None, and a problem, where it is none."""
        try:
            return caption_text(value)
        except ValueError as reason:
            self.problem(place, f"has no caption{f' in {column}' if column else ''}: {reason}")
            return None

    def say_class(self, place: str, images: list[str], value: object) -> None:
        """Keep the class that a row or sidecar gives to images."""
        try:
            label = class_name(value, whole=self.version > 1)
        except ValueError as reason:
            self.problem(place, f"has no class in {self.label_column}: {reason}")
            return
        for image in images:
            self.say(self.labels, image, label, place)

    def say(self, kept: dict[str, Value], image: str, value: Value | None, place: str) -> None:
        """Keep what a row says of an image, and report where an earlier file said otherwise."""
        if value is None:
            return
        before = kept.setdefault(image, value)
        if before != value:
            self.problem(place, f"says {value!r} of {image}: {before!r} from another file is not used")
        kept[image] = value

    def settle(self) -> None:
        """Make one class of 3 and 3.0, none of NaN among numbers, and say which files were in which encoding."""
        called = same_numbers(self.labels.values())
        lost = sum(called[label] is None for label in self.labels.values())
        self.labels = {name: new for name, label in self.labels.items() if (new := called[label]) is not None}
        if lost:
            self.notes.append(f"{plural(lost, 'label', 'says')} NaN, none or null among numbers: no class.")
        for encoding, names in self.encodings.items():
            which = f"{plural(len(names), 'file', 'is')} read as {encoding}"
            self.notes.append(f"{which}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}.")
