"""Colour and how opaque it is, on the way from a file's numbers to bytes in sRGB.

A file is read into `Layers` by whoever knows its format; `done` does what is left: alpha divided out, the profile,
8 bits, upright. What Pillow has loaded is understood by its mode (`fill`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageCms

from kuosan.data.colour import Space, of_profile
from kuosan.data.headers import Refused
from kuosan.data.pixels import bands, eight_bits, unmultiplied

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
# Relative colorimetric with black point compensation, as image editors do
INTENT, BLACK_TO_BLACK = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
SRGB = ImageCms.createProfile("sRGB")
Scale = tuple[float, float]  # the numbers that are black and white, where a file's own say nothing of it
NO_WHITE = "nobody has agreed which value is white; save it as 8 or 16 bits"


@dataclass
class Layers:
    """A file on its way: colour (H, W, 1 or 3), how opaque it is, (H, W, 1) or None, both uint8 in the end."""

    mode: str
    format: str
    colour: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 1), np.uint8))
    alpha: np.ndarray | None = None
    premultiplied: bool = False
    space: Space | None = None
    profile: bytes | None = None
    turn: int = 1
    notes: list[str] = field(default_factory=list)
    reading: int = 1

    def done(self) -> Layers:
        """Both layers as bytes in sRGB, upright."""
        if self.alpha is not None:
            self.notes.append("transparency laid on the background")
            if self.premultiplied:
                self.colour = unmultiplied(self.colour, self.alpha)
            self.alpha = eight_bits(self.alpha) if self.alpha.dtype == np.uint16 else self.alpha
        if self.profile and self.space is None:
            self._use_profile()
        if self.space is not None:
            self.colour = self.space.shown(self.colour)
        elif self.colour.dtype == np.uint16:
            self.colour = eight_bits(self.colour)
        if self.turn in TURNS:
            self.notes.append(f"turned upright (orientation {self.turn})")
            self.colour = np.ascontiguousarray(TURNS[self.turn](self.colour))
            self.alpha = None if self.alpha is None else np.ascontiguousarray(TURNS[self.turn](self.alpha))
        return self

    def _use_profile(self) -> None:
        """Through the colour profile into sRGB; as it is where the profile is sRGB or broken."""
        assert self.profile is not None
        if _is_srgb(self.profile, self):
            return
        space, grey = of_profile(self.profile), self.colour.shape[2] == 1
        if self.colour.dtype == np.uint16:
            self.reading = 2
        if space is not None and (self.colour.dtype == np.uint16 or (grey and space.is_steep)):
            self.space, self.reading = space, 2  # LittleCMS is asked for 8 bits, which are too few here
            self.notes.append("colour profile converted to sRGB")
            return
        if self.colour.dtype == np.uint16:
            self.colour = eight_bits(self.colour)
        wanted = self.profile[16:20]
        if grey and (self.alpha is not None or wanted == b"RGB "):
            self.reading = 2  # grey with a profile of colour, or clear grey with its own, was taken as sRGB
        flat = self.colour[..., 0] if grey else self.colour
        image = Image.fromarray(flat)
        converted = _converted(image.convert("RGB") if grey and wanted == b"RGB " else image, self.profile, self.notes)
        if converted is not None:
            pixels = np.asarray(converted)
            self.colour = pixels[..., :1] if grey else pixels


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
    mode = image.mode
    if layers.profile is None and layers.space is None:
        layers.profile = image.info.get("icc_profile")
    if mode in ("P", "PA"):
        image, clear = image.convert("RGBA" if mode == "PA" or clear is not None else "RGB"), None
        mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and layers.format in ("PNG", "PPM")):
        values = np.asarray(image)
        wide = (np.clip(values, 0, 65535) if mode == "I" else values).astype(np.uint16)[..., None]
        if after == "inverted":
            wide, layers.reading = np.subtract(65535, wide, dtype=np.uint16), 2
        if after == "scaled":
            wide, layers.reading = spread(wide, 4095), 2
            layers.notes.append("12 bits scaled to 8")
        else:
            layers.notes.append("16 bits scaled to 8")
        layers.colour = wide
        if isinstance(clear, int):
            layers.alpha = np.where(wide != clear, np.uint8(255), np.uint8(0))
        return
    if mode in ("F", "I"):
        inverted = after == "inverted"
        layers.colour = numbers(np.asarray(image)[..., None], mode, layers, scale, inverted)
        layers.reading = 2 if inverted else layers.reading
        return
    if mode in ("1", "L"):
        layers.colour = np.asarray(image.convert("L"))[..., None]
    elif mode in ("LA", "La", "RGBA", "RGBa"):
        pixels = np.asarray(image)
        layers.colour, layers.alpha = pixels[..., :-1], pixels[..., -1:]
        layers.premultiplied = mode in ("La", "RGBa")
        return
    elif mode in ("RGB", "RGBX", "YCbCr", "HSV"):
        layers.colour = np.asarray(image.convert("RGB"))
    elif mode == "CMYK":
        _inks(layers, image)
    elif mode == "LAB":
        layers.notes.append("Lab converted to sRGB")
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), SRGB, "LAB", "RGB")
        layers.colour, layers.profile = np.asarray(ImageCms.applyTransform(image, transform)), None
    else:
        raise Refused(f"mode {mode} ({layers.format}): {NO_WHITE}")
    if clear is not None:
        _clear(layers, clear)


def _clear(layers: Layers, clear: object) -> None:
    """The one colour that is transparent, in values of the layer."""
    wanted = clear if isinstance(clear, tuple) else (clear,)
    if not all(isinstance(value, int) for value in wanted) or len(wanted) != layers.colour.shape[2]:
        raise Refused(f"a transparent colour {clear!r} that is none of its kind; save it with an alpha channel")
    if max(wanted) > 255:
        raise Refused("a transparent colour of 16 bits on 8; give the file, or an alpha channel")
    layers.alpha = np.empty((*layers.colour.shape[:2], 1), np.uint8)
    for rows in bands(layers.colour):
        same = (layers.colour[rows] == np.array(wanted, np.uint8)).all(2, keepdims=True)
        layers.alpha[rows] = np.where(same, np.uint8(0), np.uint8(255))


def _inks(layers: Layers, image: Image.Image) -> None:
    """CMYK through its profile, else R = (1 - C)(1 - K) and so on."""
    layers.notes.append("CMYK converted to sRGB")
    converted = None
    if layers.profile and not _is_srgb(layers.profile, layers):
        converted = _converted(image, layers.profile, layers.notes)
    layers.colour = np.asarray(image.convert("RGB") if converted is None else converted)
    layers.profile = None


def numbers(values: np.ndarray, mode: str, layers: Layers, scale: Scale | None, inverted: bool = False) -> np.ndarray:
    """Floats or large integers (H, W, C) as bytes, or uint16 where a profile follows.

    They are in [0, 1], or go from the black of `scale` to its white and are clipped there.
    """
    if scale is None and mode != "F":
        raise Refused(f"mode {mode} ({layers.format}): {NO_WHITE}, or set range")
    low, high = float(values.min()), float(values.max())
    if scale is None and not (low >= 0 and high <= 1):  # NaN fails both
        raise Refused(f"floating point outside [0, 1]: {NO_WHITE}, or set range")
    if not np.isfinite([low, high]).all():
        raise Refused("holds NaN or infinite values")
    black, white = scale or (0.0, 1.0)
    layers.reading = 2 if layers.profile or scale is not None else layers.reading
    out = np.empty(values.shape, np.uint16 if layers.profile else np.uint8)
    most, beyond = float(np.iinfo(out.dtype).max), 0
    for rows in bands(values):
        share = values[rows].astype(np.float64)
        if scale is not None:
            share = (share - black) / (white - black)
            beyond += int(np.count_nonzero((share < 0) | (share > 1)))
            share = np.clip(share, 0, 1)
        out[rows] = np.rint(most * (1 - share if inverted else share))
    layers.notes.append("floating point, 1 is white" if scale is None else f"read from {black:g} (black) to {white:g}")
    if beyond:
        layers.notes.append("values beyond range clipped")
    return out


def spread(values: np.ndarray, white: int) -> np.ndarray:
    """Integers of which `white` is white as uint16 of which 65,535 is."""
    out = np.empty(values.shape, np.uint16)
    for rows in bands(values):
        out[rows] = np.rint(np.minimum(values[rows], white) * (65535.0 / white))
    return out


def _converted(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image | None:
    """An image of 8 bits through a colour profile into sRGB; None where the profile cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, SRGB, INTENT, "RGB", flags=BLACK_TO_BLACK)
    except Exception:  # a profile for another mode, or a damaged one: viewers ignore it too
        notes.append("colour profile not usable, taken as sRGB")
        return None
    notes.append("colour profile converted to sRGB")
    return converted


def _is_srgb(profile: bytes, layers: Layers) -> bool:
    """Whether a profile is sRGB: by its name, unless its curves and primaries say otherwise."""
    if b"sRGB" not in profile[:512] and b"s\0R\0G\0B" not in profile[:512]:
        return False
    space = of_profile(profile)
    if space is None or space.is_srgb:
        return True
    layers.reading = 2  # such as linear sRGB: the name alone decided before
    return False
