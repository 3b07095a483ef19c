"""What text networks are made of: `ByteText`, for people who have no text encoder at all. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kuosan import limits
from kuosan.errors import Error
from kuosan.networks.config import is_whole

WORD = 16  # bytes of a token at most; longer words are several
LONGEST = 512  # tokens


@dataclass(frozen=True)
class ByteText:
    """A transformer over words, each read byte by byte, trained together with the network that it conditions."""

    kind: Literal["bytes"] = "bytes"
    length: int = 0  # bytes: tokens of a prompt at most, its beginning and each word or mark; 0: the longest caption's
    width: int = 192  # bytes: channels of a token's features
    depth: int = 3  # bytes: transformer blocks
    heads: int = 6  # bytes: attention heads; must divide width

    def __post_init__(self) -> None:
        for name, low in (("length", 0), ("width", 8), ("depth", 0), ("heads", 1)):
            if not is_whole(getattr(self, name), low):
                raise Error(f"text.{name} = {getattr(self, name)!r} is not allowed: whole numbers from {low}.")
        if self.length > LONGEST:
            raise Error(
                f"text.length = {self.length} is not allowed: at most {LONGEST} tokens of a prompt are read, its "
                "beginning among them."
            )
        limits.check(self)
        if self.width % self.heads:
            raise Error(f"text.heads = {self.heads} does not divide text.width = {self.width}: choose one that does.")
