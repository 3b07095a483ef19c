"""Which file a row of a list means: its name as it stands, else written otherwise, else the end of a path.

Lists are written on one machine and read on another: backslashes, absolute paths of the first machine, other capitals,
accents composed otherwise (NFC, NFD), names without their suffix. Each of these is taken only where one file answers.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

IMAGES = (  # how files of images are usually called; what they are, their bytes say
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
