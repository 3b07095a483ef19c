"""What was found of an autoencoder: every picture's values, its latents, and the tables made of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

import kuosan
from kuosan.evaluate.estimate import Estimate, mean
from kuosan.evaluate.latent_space import Channel, warnings
from kuosan.files import write_atomic

FORMAT = 1
NAME, TABLE, SHEET, PICTURE = "reconstruction.json", "table.md", "sheet.png", "reconstruction.png"
TITLES = {  # of the figures: name -> title, digits
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 4),
    "perceptual": ("perceptual", 4),
    "kid": ("KID", 5),
}
HEADS = ("latent channel", "mean", "std", "scale", "noise", "bits a value", "farthest (std)")
STORED = "std as stored"  # the column of a latent model: 1 where its own scale still holds
EXPLAINED = (
    "PSNR, SSIM: of 8-bit pictures, higher is nearer; perceptual, KID: lower is nearer. KID leaves each picture's own "
    "reconstruction out of its pairs. Std: of draws from the posterior; scale = 1/std, what stage two multiplies by; "
    "noise: the posterior's; bits: what a value tells of its picture, at most. ± one standard error over the pictures."
)


@dataclass(frozen=True)
class Reconstructed:
    """An autoencoder's figures, and all that they depend on."""

    run: str
    step: int
    weights: str  # sha256 of the autoencoder's
    kind: str  # autoencoder, or latents: a latent model's
    settings: dict[str, Any]
    what: str  # the pictures, in words
    pictures: tuple[str, ...]
    fingerprint: str  # of their data set, or sha256 of the one file
    shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    features: dict[str, str]
    values: dict[str, list[float]]  # a number a picture for each measure
    kid: Estimate | None
    channels: tuple[Channel, ...]
    stored: tuple[float, ...] = ()  # a latent model's scale, a number a channel
    tiles: str = ""  # in words; empty: in one piece
    encode_seconds: float = 0.0  # a picture
    decode_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    compute: str = ""
    folder: str = ""
    version: str = kuosan.__version__
    format: int = FORMAT

    @property
    def figures(self) -> dict[str, Estimate]:
        """The mean of each measure with its standard error over the pictures, nan for a single one; and KID."""
        found = {name: mean(values) for name, values in self.values.items()}
        return found | ({"kid": self.kid} if self.kid is not None else {})

    @property
    def warnings(self) -> list[str]:
        """What stage two would stumble over."""
        return warnings(self.channels)

    def about(self) -> list[str]:
        """What the figures are of, in sentences."""
        channels, height, width = self.shape
        colour = "grey" if channels == 1 else "colour"
        many = f"{len(self.pictures):,} picture{'s' * (len(self.pictures) > 1)}"
        shown = f"{width}x{height} {colour}{self.tiles and ', '}{self.tiles}"
        lines = [
            f"{self.run}, step {self.step:,}, weights {self.weights[:12]}.",
            f"{many}: {self.what} ({self.fingerprint[:12]}), {shown}.",
            *(f"{note[0].upper()}{note[1:]}." for note in self.notes),
            self.bits(),
        ]
        if self.features:
            lines.append(
                f"Features: {self.features['features']} ({self.features['hash'][:12]}), {self.features['resize']}."
            )
        lines.append(f"Encoded in {self.encode_seconds:.3g} s a picture, decoded in {self.decode_seconds:.3g} s.")
        return [*lines, f"Computed on {self.compute}."] if self.compute else lines

    def bits(self) -> str:
        """How much smaller latents are, in a sentence."""
        values, latents = prod(self.shape), prod(self.latent_shape)
        picture, latent = ("x".join(map(str, shape)) for shape in (self.shape, self.latent_shape))
        bits = sum(one.bits for one in self.channels) / len(self.channels) * latents / values
        return (
            f"A picture of {picture} = {values:,} values becomes {latent} = {latents:,}: {values / latents:.3g} times "
            f"fewer; in bytes {values / latents / 2:.3g} times less (8 bits against bf16). They tell at most "
            f"{bits:.3g} bits a value of the picture."
        )

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of the figures."""
        figures = self.figures
        names = [name for name in TITLES if name in figures]
        return [TITLES[name][0] for name in names], [[text(figures[name], TITLES[name][1]) for name in names]]

    def latent_table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of the latents' channels."""
        rows = []
        for i, one in enumerate(self.channels):
            numbers = [one.mean, one.std, one.scale, one.noise, one.bits, one.farthest]
            rows.append([str(i), *(f"{number:.3g}" for number in numbers)])
            if self.stored:
                rows[-1].append(f"{one.std * self.stored[i]:.3f}")
        return [*HEADS, *([STORED] if self.stored else [])], rows

    def markdown(self) -> str:
        """The sentences and the tables."""
        lines = [*self.about(), *(f"Warning: {warning}." for warning in self.warnings), ""]
        for heads, rows in (self.table(), self.latent_table()):
            lines += [f"| {' | '.join(heads)} |", "|" + "---:|" * len(heads)]
            lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
        return "\n".join([*lines, EXPLAINED, ""])

    def json(self) -> str:
        """Everything, with each picture's values; a figure that cannot be told is null."""
        tree = asdict(self)
        tree["figures"] = {name: asdict(estimate) for name, estimate in self.figures.items()}
        for one, told in zip(self.channels, tree["channels"]):
            told |= {"scale": one.scale, "bits": one.bits}
        tree["warnings"] = self.warnings
        return json.dumps(finite(tree), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path) -> None:
        """reconstruction.json and table.md."""
        write_atomic(folder / TABLE, self.markdown())
        write_atomic(folder / NAME, self.json())


def text(estimate: Estimate, digits: int) -> str:
    """A figure with its error, where it has one."""
    error = f" ± {estimate.error:.{digits}f}" if isfinite(estimate.error) else ""
    return f"{estimate.value:.{digits}f}{error}"


def finite(tree: Any) -> Any:
    """A tree of plain values with None in the place of what JSON cannot say."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not isfinite(tree) else tree
