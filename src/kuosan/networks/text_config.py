"""What text networks are made of: `ByteText`, for people without a text encoder; `CLIPText`, CLIP's. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kuosan import limits
from kuosan.errors import Error
from kuosan.networks.config import check_counts, is_whole, refused

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


@dataclass(frozen=True)
class CLIPText:
    """The fields of `networks.clip.CLIPTextNetwork`; the defaults are CLIP-L's, which Stable Diffusion 1 reads with."""

    vocabulary: int = 49408  # tokens that it knows
    width: int = 768  # channels of a token
    hidden: int = 3072  # of a layer's perceptron
    depth: int = 12  # layers
    heads: int = 12  # attention heads; must divide width
    length: int = 77  # tokens of a text at most
    act: Literal["quick_gelu", "gelu"] = "quick_gelu"  # of the perceptrons; gelu in OpenCLIP's
    norm_eps: float = 1e-5
    projection: int = 0  # channels of the pooled text; 0: as they are, without a projection
    end: int = 49407  # the token that ends a text; 2, as in old files: the highest one in it

    def __post_init__(self) -> None:
        limits.check(self)
        check_counts(self, ("vocabulary", "width", "hidden", "depth", "heads", "length"))
        for name in ("projection", "end"):
            if not is_whole(getattr(self, name), 0):
                raise refused(self, name, "whole numbers from 0", "CLIP-L has 0 or 768, and 49407.")
        if self.act not in ("quick_gelu", "gelu"):
            raise refused(self, "act", "quick_gelu, gelu", "OpenAI's CLIP has quick_gelu, OpenCLIP's gelu.")
        if not self.norm_eps > 0:
            raise refused(self, "norm_eps", "small positive numbers", "CLIP has 1e-5.")
        if self.width % self.heads:
            raise refused(self, "heads", f"divisors of width {self.width}", "CLIP has heads of 64 channels.")
