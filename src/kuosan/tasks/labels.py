"""Classes, which every task may tell its network: which there are, how one is named, how often none is told.

The settings are torch-free. A label is the number of a class; the number after the last, `null`, is "no class": what
dropped and unlabelled pictures are shown, and guidance's reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kuosan import limits
from kuosan.errors import Error, unknown

DROP = 0.1  # the usual share without their class (Ho & Salimans 2022 found 0.1 and 0.2 alike)
NULL = "none"  # what a person writes for "no class"


@dataclass(frozen=True)
class Labelled:
    """What every task can be told of a picture's class."""

    kind: str = ""
    labels: bool = False  # tell the network each picture's class (its folder, column or label file)
    drop: float | None = None  # with labels or text: share shown without, for classifier-free guidance; 0.1
    class_names: tuple[str, ...] = ()  # with labels: the classes in the order of their numbers; from the data
    text: bool = False  # tell the network each picture's caption; follows from model.text

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.drop is not None and not self.told:
            raise Error(
                f"drop = {self.drop} has no effect without classes or captions: say --labels or --text, or leave "
                f"--drop out."
            )
        if self.drop is not None and not 0 <= self.drop < 1:
            raise Error(f"drop = {self.drop} is not allowed: 0 (never) to below 1; 0.1 is usual.")
        if self.class_names and not self.labels:
            raise Error("class_names have no effect without labels: say --labels; the data give the names.")
        limits.check(self)  # after the checks that say what is usual
        if NULL in self.class_names:
            raise Error(f"a class is called {NULL!r}, which here means no class at all: give it another name.")

    @property
    def told(self) -> bool:
        """Whether a network is told anything of a picture that can be left out."""
        return self.labels or self.text

    @property
    def dropped(self) -> float:
        """The share of training pictures that are shown the null label, and the empty caption."""
        return (DROP if self.drop is None else self.drop) if self.told else 0.0

    @property
    def null(self) -> int:
        """The label of no class."""
        return len(self.class_names)

    def label(self, name: str) -> int:
        """The label of a class by name, or by number where no class is called by one; `none` is the null label.

        Raises:
            Error: no such class, a model without classes, or `none` where no picture was ever shown without its class.
        """
        if not self.labels:
            raise Error(f"class {name!r}: this model was trained without classes; train with --labels to name one.")
        if name in self.class_names:
            return self.class_names.index(name)
        if name == NULL:
            if not self.dropped:
                raise Error("class 'none': this model was trained with drop 0 and knows no picture without its class.")
            return self.null
        by_number = not any(other.isdigit() for other in self.class_names)  # else "2" could be either
        if by_number and name.isascii() and name.isdigit() and int(name) < len(self.class_names):
            return int(name)
        shown = [*self.class_names[:50], *(["..."] if len(self.class_names) > 50 else []), NULL]
        raise unknown("class", name, shown)

    def usual(self, seeds: Sequence[int]) -> list[int]:
        """The labels of pictures of which no class is asked: each class in turn, by the picture's own seed."""
        return [seed % len(self.class_names) for seed in seeds]
