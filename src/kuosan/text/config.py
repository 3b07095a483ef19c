"""Conditioning on text: none, by a transformer trained with the model, or by a text encoder. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kuosan import limits
from kuosan.errors import Error
from kuosan.networks.config import ByteText as ByteText

Long = Literal["refuse", "cut", "chunks"]
Padding = Literal["masked", "attended"]
PADDING_ALIASES = {"told": "attended"}  # what the values were called before


@dataclass(frozen=True)
class NoText:
    """The model is not conditioned on captions."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True)
class TextEncoderConfig:
    """A text encoder with weights of its own, which training leaves as they are."""

    kind: Literal["encoder"] = "encoder"
    encoder: str = ""  # encoder: a folder in Hugging Face's layout, `hub:NAME`, or minilm
    hidden: int = -1  # encoder: the layer whose output is the context, -1 the last; -2 is SD's clip skip
    long: Long = "refuse"  # encoder: a prompt that is too long: refuse it, cut it, or encode it in chunks
    length: int = 0  # encoder: tokens of a prompt; 0: as many as the encoder takes, 512 at most
    padding: Padding = field(
        default="masked", metadata={"aliases": PADDING_ALIASES}
    )  # encoder: padding behind a short prompt is masked, or attended to, as in Stable Diffusion
    width: int = 0  # encoder: channels of a token; from the encoder itself
    weights: str = ""  # encoder: hash of its files; from the encoder itself

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", PADDING_ALIASES.get(self.padding, self.padding))
        if not self.encoder:
            raise Error("text.encoder is not given: name a text encoder's folder (--encoder FOLDER), or minilm.")
        if self.hidden >= 0:
            raise Error(f"text.hidden = {self.hidden} is not allowed: -1 (the last layer), -2, ...")
        limits.check(self)
        if self.length < 0 or self.width < 0:
            raise Error("text.length and text.width are 0 or more; leave them out, the encoder gives them.")


Text = NoText | ByteText | TextEncoderConfig


def width(text: Text) -> int | None:
    """Channels of a token's features; None where the network is not conditioned on text."""
    return None if isinstance(text, NoText) else text.width
