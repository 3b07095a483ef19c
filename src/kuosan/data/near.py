"""The near duplicates of a data set that was looked at, and the key of each image's side of the split. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from kuosan.data.entries import Look, Role
from kuosan.data.twins import Groups, groups
from kuosan.data.views import View


@dataclass(frozen=True)
class Near:
    """Near duplicates among images, by their looks.

    Attributes:
        pixels: hash of the pixels of each image.
        views: what each is compared by.
        found: the groups, copies of the same pixels among them.
    """

    pixels: Sequence[str]
    views: Sequence[View]
    found: Groups

    @classmethod
    def of(cls, looks: Sequence[Look]) -> Near | None:
        """None where images are not compared: the split is the data set's own, or holds nothing out."""
        if not all(look.view for look in looks):
            return None
        views, pixels = [View.unpacked(look.view) for look in looks], [look.pixels for look in looks]
        return cls(pixels, views, groups(views, pixels))

    @cached_property
    def groups(self) -> list[list[int]]:
        """The groups that hold more than copies of the same pixels."""
        return [ids for ids in self.found.members if len({self.pixels[i] for i in ids}) > 1]

    def parted(self, roles: Sequence[Role]) -> list[tuple[int, int]]:
        """Pairs of near duplicates of different roles, one trained on and one held out say."""
        pairs = [(i, own) for i, own in enumerate(self.found.leader.tolist()) if i != own]
        return [(i, j) for i, j in [*pairs, *self.found.across] if roles[i] != roles[j]]

    def keys(self) -> list[str]:
        """What each side follows from, hexadecimal: the lowest frequencies of the leader; of flat ones the pixels.

        A near duplicate mostly has the same; so even one that comes to lead its group moves few to another side.
        """
        codes = [view.code for view in self.views]
        own = [
            key if code is None else blake2b(code, digest_size=16).hexdigest() for key, code in zip(self.pixels, codes)
        ]
        return [own[leader] for leader in self.found.leader.tolist()]
