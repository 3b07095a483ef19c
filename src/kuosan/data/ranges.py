"""Which number of an array is black and which is white: decided over the whole data set, said in a line, or refused.

Bytes and 16 bits have a white of their own, 255 and 65,535. Floats have none: of [0, 1], [-1, 1] and [0, 255] that one
is taken which they fit, at most a little beyond it as resampling overshoots. What fits none, or would be nearly black,
is refused with the cure: the setting `range`; what stays below half of white is said, with the same cure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kuosan.data.headers import Refused
from kuosan.data.pixels import bands, eight_bits, pieces, rounded
from kuosan.errors import Error, plural

Scale = tuple[float, float]  # the numbers that are black and white
UNIT, SIGNED, BYTES, WIDE = (0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0)
OWN = {"uint8": BYTES, "uint16": WIDE, "bool": UNIT}
LITTLE, FEW, SOME = 0.01, 0.05, 0.1  # overshoot by a hundredth is anybody's; by a tenth, a twentieth of the values'
NEARLY_BLACK = 15  # a set whose brightest value is below white / 15, as 4 bits in 8 or 12 in 16, is not taken for dark
CURE = "say which numbers are black and white with the setting range"


@dataclass
class _Tally:
    """What was seen of the numbers of one type."""

    name: str
    images: int = 0
    values: int = 0
    low: float = np.inf
    high: float = -np.inf
    alpha_low: float = np.inf
    alpha_high: float = -np.inf
    beyond: dict[Scale, int] = field(default_factory=dict)  # values below black or above white, by scale
    negative: int = 0
    unlike: int = 0  # images from about 0 up, as in [0, 1]
    from_zero: int = 0  # of these, from 0 exactly, which no byte gives in [-1, 1]
    dim: int = 0  # images of several values of which none is above 1
    unknown: int = 0  # images with NaN or infinite values
    first_unknown: int = -1

    @property
    def is_float(self) -> bool:
        return self.name == "floats"


@dataclass(frozen=True)
class RangeReading:
    """How the numbers of a data set are read: a scale for each type, and the sentences that say so."""

    scales: dict[str, Scale]
    lines: tuple[str, ...]

    def bytes(self, values: np.ndarray, halved: bool = False) -> np.ndarray:
        """Numbers of any shape as bytes, a band at a time.

        Args:
            halved: [-1, 1] is first mapped to [0, 1], as items of a data set always were; else multiplied by 127.5.

        Raises:
            Refused: there are NaN or infinite values.
        """
        name = _name(values.dtype)
        scale = self.scales.get(name)
        if name == "bool":
            return values.astype(np.uint8) * np.uint8(255)
        if scale == OWN.get(name):
            return eight_bits(values) if name == "uint16" else values
        if scale is None:
            raise Refused("holds NaN or infinite values")
        out = np.empty(values.shape, np.uint8)
        for source, target in pieces(values, out):
            target[...] = _bytes(source, scale, halved)
        return out


def _bytes(part: np.ndarray, scale: Scale, halved: bool) -> np.ndarray:
    if part.dtype.kind == "f" and not np.isfinite(part).all():
        raise Refused("holds NaN or infinite values")
    if part.dtype.kind == "f" and scale == UNIT:
        return rounded(np.clip(part, 0, 1) * 255.0)
    if part.dtype.kind == "f" and scale == SIGNED:
        part = np.clip(part, -1, 1)
        return rounded((part + 1) / 2 * 255.0 if halved else (part + 1) * 127.5)
    black, white = scale
    return rounded(np.clip((part.astype(np.float64) - black) / (white - black), 0, 1) * 255)


class Survey:
    """The numbers of a data set looked at, image by image, until `reading` decides."""

    def __init__(self, what: str, scale: Scale | None) -> None:
        self.what, self.scale = what, scale
        self.tallies: dict[str, _Tally] = {}
        self.channels: set[int] = set()

    def add(self, images: np.ndarray) -> None:
        """Look at images (N, H, W, C), C 1, 3 or 4, of any numbers.

        Raises:
            Error: a type that is no number.
        """
        if images.dtype.kind not in "biuf":
            raise Error(f"{self.what} is {images.dtype}; images are uint8, uint16, bool, or floats.")
        name = _name(images.dtype)
        tally = self.tallies.setdefault(name, _Tally(name))
        self.channels.add(images.shape[3])
        if name == "bool":
            tally.images += len(images)
            tally.low, tally.high = min(tally.low, float(images.min())), max(tally.high, float(images.max()))
            return
        for items in bands(images):
            self._add(tally, images[items])

    def _add(self, tally: _Tally, part: np.ndarray) -> None:
        flat = part[..., :3].reshape(len(part), -1)
        alpha = part[..., 3] if part.shape[3] == 4 else None
        if tally.is_float:
            known = np.isfinite(part.reshape(len(part), -1)).all(1)
            if not known.all():
                if tally.unknown == 0:
                    tally.first_unknown = tally.images + int(np.argmin(known))
                tally.unknown += int(np.count_nonzero(~known))
                flat, alpha = flat[known], None if alpha is None else alpha[known]
        tally.images += len(part)
        if not len(flat):
            return
        low, high = flat.min(1).astype(np.float64), flat.max(1).astype(np.float64)
        tally.values += flat.size
        tally.low, tally.high = min(tally.low, low.min()), max(tally.high, high.max())
        if alpha is not None:
            tally.alpha_low = min(tally.alpha_low, float(alpha.min()))
            tally.alpha_high = max(tally.alpha_high, float(alpha.max()))
        scales = [UNIT, SIGNED, BYTES] if tally.is_float else []
        for scale in scales if self.scale is None else [self.scale]:
            black, white = sorted(scale)
            count = tally.beyond.get(scale, 0)
            count += int(np.count_nonzero(flat < black)) if low.min() < black else 0
            tally.beyond[scale] = count + (int(np.count_nonzero(flat > white)) if high.max() > white else 0)
        tally.negative += int(np.count_nonzero(flat < 0)) if low.min() < 0 else 0
        varied = high - low >= 0.25
        from_about_zero = varied & (low >= 0) & (low <= 0.02) & (high <= 1 + SOME)
        tally.unlike += int(np.count_nonzero(from_about_zero))
        tally.from_zero += int(np.count_nonzero(from_about_zero & (low == 0)))
        tally.dim += int(np.count_nonzero((high > low) & (high > 0) & (high <= 1)))

    def reading(self, damaged_are_skipped: bool = False) -> RangeReading:
        """Decide.

        Args:
            damaged_are_skipped: images with NaN are refused one by one, not the whole.

        Raises:
            Error: numbers that fit no range well, or that hold NaN or infinite values.
        """
        scales: dict[str, Scale] = {}
        lines = []
        for name, tally in sorted(self.tallies.items()):
            if tally.unknown and not damaged_are_skipped:
                raise Error(
                    f"{self.what} holds floats from nan to nan: "
                    f"{plural(tally.unknown, 'image', 'has', of=tally.images)} "
                    f"NaN or infinite values, the first is number {tally.first_unknown}: leave them out, or mend them."
                )
            if tally.low > tally.high:
                continue  # nothing but NaN
            scale = self._scale(tally)
            self._check_alpha(tally, scale)
            scales[name] = scale
            lines.append(self._line(tally, scale))
        channels = {1: "grey", 3: "red, green, blue", 4: "red, green, blue and transparency"}
        if lines and max(self.channels) > 1:
            lines[-1] += f" Channels are taken as {' or '.join(channels[c] for c in sorted(self.channels))}."
        return RangeReading(scales, tuple(lines))

    def _scale(self, tally: _Tally) -> Scale:
        if tally.name == "bool":
            return UNIT
        if self.scale is not None:
            return self.scale
        if not tally.is_float:
            return self._of_integers(tally)
        low, high = tally.low, tally.high
        if _fits(tally, BYTES) and high >= 192:
            if tally.dim:
                raise self._refused(
                    tally, f"{plural(tally.dim, 'image', 'holds')} nothing above 1, as if in [0, 1]", (0, 255)
                )
            return BYTES
        if _fits(tally, UNIT):
            if 0 < high * NEARLY_BLACK <= 1:
                raise self._refused(tally, "as numbers in [0, 1] they would be nearly black", (0, high))
            return UNIT
        signed = low <= -0.5 and max(-low, high) >= 0.9 and tally.negative >= LITTLE * tally.values
        if _fits(tally, SIGNED) and signed:
            if tally.from_zero or tally.unlike >= max(1, LITTLE * tally.images):
                raise self._refused(
                    tally,
                    f"{plural(tally.unlike, 'image', 'holds')} no number below 0, as if in [0, 1], others do",
                    (-1, 1),
                )
            return SIGNED
        raise self._refused(tally, "they fit none of [0, 1], [-1, 1] and [0, 255] well", (low, high))

    def _of_integers(self, tally: _Tally) -> Scale:
        own = OWN.get(tally.name)
        if own is None:
            raise self._refused(tally, "whole numbers of this type have no agreed white", (0, max(1, tally.high)))
        if 0 < tally.high * NEARLY_BLACK <= own[1]:
            raise self._refused(tally, f"of {own[1]:g} they would be nearly black", (0, tally.high))
        return own

    def _refused(self, tally: _Tally, why: str, example: Scale) -> Error:
        return Error(
            f"{self.what} holds {tally.name} from {tally.low:g} to {tally.high:g}: {why}. If images were normalised, "
            f"undo the normalisation by mean and standard deviation; or {CURE}: "
            f"--range={example[0]:g},{example[1]:g} if {example[0]:g} is black and {example[1]:g} is white."
        )

    def _check_alpha(self, tally: _Tally, scale: Scale) -> None:
        if tally.alpha_low > tally.alpha_high:
            return
        low, high = tally.alpha_low, tally.alpha_high
        span = f"the fourth channel of {self.what}, transparency, goes from {low:g} to {high:g}"
        if scale[0] != 0 or scale[1] < 0:
            raise Error(f"{span} where black is {scale[0]:g}: nobody has agreed what is clear; give three channels.")
        if low < -LITTLE * scale[1] or high > (1 + LITTLE) * scale[1] or 0 < high * NEARLY_BLACK <= scale[1]:
            raise Error(
                f"{span}, colours from {scale[0]:g} to {scale[1]:g}: give both in one range, or three channels."
            )

    def _line(self, tally: _Tally, scale: Scale) -> str:
        black, white = scale
        if tally.name == "bool":
            return "Numbers: bool, true is white."
        text = f"Numbers: {tally.name} read from {black:g} (black) to {white:g} (white)"
        text += f"; they go from {tally.low:g} to {tally.high:g}"
        beyond = tally.beyond.get(scale, 0)
        if beyond:
            far = tally.low if black - tally.low > tally.high - white else tally.high
            many = "1 value" if beyond == 1 else f"{beyond:,} of {tally.values:,} values"
            text += f"; {many} beyond this range clipped (the farthest is {far:g})"
        text += "."
        if self.scale is None and black == 0 < tally.high <= white / 2:
            text += f" None is above {tally.high:g}: if that is white, set --range=0,{tally.high:g}."
        if self.scale is None and scale == SIGNED and tally.unlike:
            text += f" {plural(tally.unlike, 'image', 'holds')} no number below 0."
        return text


def _fits(tally: _Tally, scale: Scale) -> bool:
    """Whether all numbers are inside, or beyond by little, or a few of them by somewhat more."""
    black, white = scale
    farthest = max(black - tally.low, tally.high - white) / (white - black)
    few = tally.beyond[scale] <= FEW * tally.values
    return farthest <= LITTLE or (farthest <= SOME and few)


def _name(kind: np.dtype) -> str:
    return "floats" if kind.kind == "f" else kind.name
