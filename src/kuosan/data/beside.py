"""What is said of images in the files beside them, gathered from lists and sidecars, and what was not understood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from kuosan.data.cells import caption_text, class_name, same_numbers
from kuosan.data.config import LABEL
from kuosan.data.encodings import UTF_8, decode_text
from kuosan.data.entries import Role

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
            self.notes.append(f"{lost:,} labels that say NaN, none or null among numbers are no class.")
        for encoding, names in self.encodings.items():
            which = f"{len(names):,} file{'s are' if len(names) > 1 else ' is'} read as {encoding}"
            self.notes.append(f"{which}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}.")
