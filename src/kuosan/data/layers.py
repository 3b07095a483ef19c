"""Colour and how opaque it is, on the way from a file's numbers to bytes in sRGB.

A file is read into `Layers` by whoever knows its format; `done` adds what is left: alpha divided out, the profile,
8 bits. What Pillow has loaded is understood by its mode (`fill`). Nothing of the size of the image is held on the way:
`parts` gives the image part by part, and `laid_on` writes each where it lies in the upright result.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from kuosan.data.colour import Space, of_profile
from kuosan.data.headers import Refused
from kuosan.data.pixels import eight_bits, laid_on, tiles, unmultiplied
from kuosan.data.ranges import NEARLY_BLACK

ORIENTATION = 0x0112  # EXIF and TIFF tag
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # Exif 2.32, table 4.6.4 A: what turns stored rows upright
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p[::-1].swapaxes(0, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p[:, ::-1].swapaxes(0, 1),
}
VIEWS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # the upright image as its stored rows lie: undoes `TURNS`
    **{turn: TURNS[turn] for turn in (2, 3, 4, 5, 7)},
    6: lambda p: p.swapaxes(0, 1)[::-1],
    8: lambda p: p.swapaxes(0, 1)[:, ::-1],
}
# Relative colorimetric with black point compensation, as image editors do
INTENT, BLACK_TO_BLACK = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
SRGB = ImageCms.createProfile("sRGB")
Scale = tuple[float, float]  # the numbers that are black and white, where a file's own say nothing of it
LAID = "transparency laid on the background"  # a note
NO_WHITE = "nobody has agreed which value is white; save it as 8 or 16 bits"


class LayerTile(NamedTuple):
    """A rectangle of an image as stored: where it lies, and its layers."""

    top: int
    left: int
    colour: np.ndarray  # (h, w, 1 or 3) uint8 or uint16
    alpha: np.ndarray | None = None  # (h, w, 1) of the same type, or uint8


Parts = Callable[[], Iterator[LayerTile]]  # every part once, from the first at each call
Work = Callable[[Image.Image], tuple[np.ndarray, np.ndarray | None]]  # colour and alpha of a piece of an image


def nothing() -> Iterator[LayerTile]:
    """The parts of an image that nobody has read yet."""
    yield from ()


@dataclass
class Layers:
    """A file on its way: colour and how opaque it is, part by part, both uint8 in the end."""

    mode: str
    format: str
    size: tuple[int, int] = (0, 0)  # (H, W) as stored
    parts: Parts = nothing
    premultiplied: bool = False
    space: Space | None = None
    profile: bytes | None = None
    turn: int = 1
    notes: list[str] = field(default_factory=list)
    reading: int = 1
    upright: np.ndarray | None = None  # the result, where its place already holds what `parts` reads

    def done(self) -> Layers:
        """Both layers as bytes in sRGB."""
        first = next(self.parts())
        if first.alpha is not None:
            self.notes.append(LAID)
        convert = self._profiled(first) if self.profile and self.space is None else None
        parts, space, divide = self.parts, self.space, self.premultiplied

        def finished() -> Iterator[LayerTile]:
            for top, left, colour, alpha in parts():
                if alpha is not None:
                    colour = unmultiplied(colour, alpha) if divide else colour
                    alpha = eight_bits(alpha) if alpha.dtype == np.uint16 else alpha
                if space is not None:
                    colour = space.shown(colour)
                else:
                    colour = eight_bits(colour) if colour.dtype == np.uint16 else colour
                    colour = colour if convert is None else convert(colour)
                yield LayerTile(top, left, colour, alpha)

        self.parts = finished
        if self.turn in TURNS:
            self.notes.append(f"turned upright (orientation {self.turn})")
        return self

    def laid_on(self, background: tuple[int, int, int]) -> np.ndarray:
        """The finished image on a background: (H, W, 1 or 3) uint8, upright."""
        return self._joined(lambda colour, alpha: laid_on(colour, alpha, background))

    def straight(self) -> np.ndarray:
        """The finished image with its alpha: (H, W, 4) uint8, upright; (H, W, 1 or 3) where it says nothing of it.

        Colour is as it was before alpha; where alpha is 0 nobody sees it, and it is 0.
        """

        def kept(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
            seen = np.where(alpha > 0, colour, np.uint8(0))
            return np.concatenate([np.broadcast_to(seen, (*alpha.shape[:2], 3)), alpha], 2)

        return self._joined(kept)

    def _joined(self, see: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """All parts in one image, upright; those that have an alpha as `see(colour, alpha)` makes them."""
        out: np.ndarray | None = None
        for top, left, colour, alpha in self.parts():
            pixels = colour if alpha is None else see(colour, alpha)
            if out is None:
                out = self.room(pixels.shape[2])
            view = VIEWS[self.turn](out) if self.turn in VIEWS else out
            view[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        assert out is not None
        return out

    def opacity(self) -> np.ndarray | None:
        """How opaque each pixel of the finished image is, upright: (H, W) uint8; None where it says nothing."""
        out: np.ndarray | None = None
        for top, left, _, alpha in self.parts():
            if alpha is None:
                return None
            out = np.empty((*self._upright_size, 1), np.uint8) if out is None else out
            view = VIEWS[self.turn](out) if self.turn in VIEWS else out
            view[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
        return None if out is None else out[..., 0]

    def room(self, channels: int) -> np.ndarray:
        """Room for the upright image, (H, W, channels) uint8."""
        if self.upright is not None and self.upright.shape[2] == channels:
            return self.upright
        return np.empty((*self._upright_size, channels), np.uint8)

    def each(self, work: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change the colour of every part."""
        parts = self.parts

        def changed() -> Iterator[LayerTile]:
            for part in parts():
                yield part._replace(colour=work(part.colour))

        self.parts = changed

    @property
    def _upright_size(self) -> tuple[int, int]:
        return self.size[::-1] if 5 <= self.turn <= 8 else self.size

    def _profiled(self, first: LayerTile) -> Callable[[np.ndarray], np.ndarray] | None:
        """What leads through the colour profile into sRGB; None where it is sRGB, broken, or becomes `space`."""
        assert self.profile is not None
        if _is_srgb(self.profile, self):
            return None
        space, grey, wide = of_profile(self.profile), first.colour.shape[2] == 1, first.colour.dtype == np.uint16
        if wide:
            self.reading = 2
        if space is not None and (wide or (grey and space.is_steep)):
            self.space, self.reading = space, 2  # LittleCMS is asked for 8 bits, which are too few here
            self.notes.append("colour profile converted to sRGB")
            return None
        wanted = self.profile[16:20]
        if grey and (first.alpha is not None or wanted == b"RGB "):
            self.reading = 2  # grey with a profile of colour, or clear grey with its own, was taken as sRGB
        coloured = grey and wanted == b"RGB "
        change = transform(self.profile, "L" if grey and not coloured else "RGB", self.notes)
        if change is None:
            return None

        def convert(colour: np.ndarray) -> np.ndarray:
            image = Image.fromarray(np.ascontiguousarray(colour[..., 0] if grey else colour))
            pixels = np.asarray(change(image.convert("RGB") if coloured else image))
            return pixels[..., :1] if grey else pixels

        return convert


def of_image(image: Image.Image, work: Work) -> Parts:
    """The parts of a loaded image: `work` is done to a copy of one small piece at a time."""

    def parts() -> Iterator[LayerTile]:
        for top, left, bottom, right in tiles(image.height, image.width):
            whole = (right - left, bottom - top) == image.size
            yield LayerTile(top, left, *work(image if whole else image.crop((left, top, right, bottom))))

    return parts


def fill(
    layers: Layers,
    image: Image.Image,
    clear: object,
    scale: Scale | None,
    after: str = "",
) -> None:
    """Colour and opacity of a loaded image; one row a family of modes.

    Args:
        clear: the transparent colour, or opacities of a palette, as Pillow gives them.
        after: what Pillow has left to do of a TIFF, `tiff.Sheet.after`.
    """
    mode, layers.size = image.mode, (image.height, image.width)
    if layers.profile is None and layers.space is None:
        layers.profile = image.info.get("icc_profile")
    if mode.startswith("I;16") or (mode == "I" and layers.format in ("PNG", "PPM")):
        layers.parts = of_image(image, _wide(layers, mode, clear, after))
    elif mode in ("F", "I"):
        layers.parts = of_image(image, lambda piece: (np.asarray(piece)[..., None], None))
        numbers(layers, mode, scale, after == "inverted")
        layers.reading = 2 if after == "inverted" else layers.reading
    else:
        layers.parts = of_image(image, reader(layers, mode, clear))


def _wide(layers: Layers, mode: str, clear: object, after: str) -> Work:
    """Grey of 16 bits."""
    if after:
        layers.reading = 2
    layers.notes.append("12 bits scaled to 8" if after == "scaled" else "16 bits scaled to 8")

    def work(piece: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
        values = np.asarray(piece)
        wide = (np.clip(values, 0, 65535) if mode == "I" else values).astype(np.uint16)[..., None]
        if after == "inverted":
            wide = np.subtract(65535, wide, dtype=np.uint16)
        elif after == "scaled":
            wide = spread(wide, 4095)
        return wide, np.where(wide != clear, np.uint8(255), np.uint8(0)) if isinstance(clear, int) else None

    return work


def reader(layers: Layers, mode: str, clear: object) -> Work:
    """What makes colour and opacity of a piece of an image of 8 bits; notes go to the layers.

    Raises:
        Refused: a mode, or a transparent colour, without a meaning.
    """
    if mode in ("P", "PA"):
        mode, wanted = ("RGBA", "RGBA") if mode == "PA" or clear is not None else ("RGB", "RGB")
        clear = None
    else:
        wanted = {"1": "L", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB"}.get(mode, mode)
    if mode in ("LA", "La", "RGBA", "RGBa"):
        layers.premultiplied = mode in ("La", "RGBa")

        def both(piece: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
            pixels = np.asarray(_plain(wanted)(piece))
            return pixels[..., :-1], pixels[..., -1:]

        return both
    change: Callable[[Image.Image], Image.Image]
    if mode in ("1", "L", "RGB", "RGBX", "YCbCr", "HSV"):
        change = _plain(wanted)
    elif mode == "CMYK":
        change = _inks(layers)
    elif mode == "LAB":
        layers.notes.append("Lab converted to sRGB")
        lab = ImageCms.buildTransform(ImageCms.createProfile("LAB"), SRGB, "LAB", "RGB")
        layers.profile, change = None, _applied(lab)
    else:
        raise Refused(f"mode {mode} ({layers.format}): {NO_WHITE}")
    found = None if clear is None else _clear(clear, 1 if mode in ("1", "L") else 3)

    def work(piece: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
        colour = np.asarray(change(piece))
        colour = colour[..., None] if colour.ndim == 2 else colour
        if found is None:
            return colour, None
        same = (colour == found).all(2, keepdims=True)
        return colour, np.where(same, np.uint8(0), np.uint8(255))

    return work


def _clear(clear: object, channels: int) -> np.ndarray:
    """The one colour that is transparent, (channels,) uint8."""
    wanted = clear if isinstance(clear, tuple) else (clear,)
    if not all(isinstance(value, int) for value in wanted) or len(wanted) != channels:
        raise Refused(f"a transparent colour {clear!r} that is none of its kind; save it with an alpha channel")
    if max(wanted) > 255:
        raise Refused("a transparent colour of 16 bits on 8; give the file, or an alpha channel")
    return np.array(wanted, np.uint8)


def _inks(layers: Layers) -> Callable[[Image.Image], Image.Image]:
    """CMYK through its profile, else R = (1 - C)(1 - K) and so on."""
    layers.notes.append("CMYK converted to sRGB")
    change = None
    if layers.profile and not _is_srgb(layers.profile, layers):
        change = transform(layers.profile, "CMYK", layers.notes)
    layers.profile = None
    return change or (lambda piece: piece.convert("RGB"))


def numbers(layers: Layers, mode: str, scale: Scale | None, inverted: bool = False) -> None:
    """Floats or large integers become bytes, or uint16 where a profile follows.

    They are in [0, 1], or go from the black of `scale` to its white and are clipped there.
    """
    if scale is None and mode != "F":
        raise Refused(f"mode {mode} ({layers.format}): {NO_WHITE}, or set range")
    black, white = scale or (0.0, 1.0)

    def share_of(values: np.ndarray) -> np.ndarray:
        share: np.ndarray = values.astype(np.float64)
        return share if scale is None else (share - black) / (white - black)

    low, high, beyond = np.inf, -np.inf, 0
    for part in layers.parts():
        low, high = np.minimum(low, part.colour.min()), np.maximum(high, part.colour.max())  # NaN stays
        if scale is not None:
            share = share_of(part.colour)
            beyond += int(np.count_nonzero((share < 0) | (share > 1)))
    if scale is None and not (low >= 0 and high <= 1):
        raise Refused(f"floating point outside [0, 1]: {NO_WHITE}, or set range")
    if not np.isfinite([low, high]).all():
        raise Refused("holds NaN or infinite values")
    layers.reading = 2 if layers.profile or scale is not None else layers.reading
    kind: type[np.generic] = np.uint16 if layers.profile else np.uint8
    most = 65535.0 if layers.profile else 255.0

    def written(values: np.ndarray) -> np.ndarray:
        share = np.clip(share_of(values), 0, 1) if scale is not None else share_of(values)
        return np.rint(most * (1 - share if inverted else share)).astype(kind)

    layers.each(written)
    said = "floating point, 1 is white" if scale is None else f"read from {black:g} (black) to {white:g}"
    if scale is None and 0 < high * NEARLY_BLACK <= 1:
        said += ", and nearly black: if another number is white, set range, as --range=0,WHITE"
    layers.notes.append(said)
    if beyond:
        layers.notes.append("values beyond range clipped")


def spread(values: np.ndarray, white: int) -> np.ndarray:
    """Integers of which `white` is white as uint16 of which 65,535 is."""
    wide: np.ndarray = np.rint(np.minimum(values, white) * (65535.0 / white)).astype(np.uint16)
    return wide


def transform(profile: bytes, mode: str, notes: list[str]) -> Callable[[Image.Image], Image.Image] | None:
    """What leads images of 8 bits from a colour profile into sRGB; None where the profile cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        built = ImageCms.buildTransform(source, SRGB, mode, "RGB", INTENT, flags=BLACK_TO_BLACK)
        ImageCms.applyTransform(Image.new(mode, (1, 1)), built)
    except Exception:  # a profile for another mode, or a damaged one: viewers ignore it too
        notes.append("colour profile not usable, taken as sRGB")
        return None
    notes.append("colour profile converted to sRGB")
    return _applied(built)


def _applied(built: ImageCms.ImageCmsTransform) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(image, built)
        assert converted is not None
        return converted

    return change


def _plain(wanted: str) -> Callable[[Image.Image], Image.Image]:
    return lambda piece: piece if piece.mode == wanted else piece.convert(wanted)


def _is_srgb(profile: bytes, layers: Layers) -> bool:
    """Whether a profile is sRGB: by its name, unless its curves and primaries say otherwise."""
    if b"sRGB" not in profile[:512] and b"s\0R\0G\0B" not in profile[:512]:
        return False
    space = of_profile(profile)
    if space is None or space.is_srgb:
        return True
    layers.reading = 2  # such as linear sRGB: the name alone decided before
    return False
