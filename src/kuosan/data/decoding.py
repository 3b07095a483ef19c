"""A picture file as bytes with the right meaning, or refused with the reason: `decode(content) -> Decoded`.

Meaning: what a good viewer shows, in sRGB. Transparency lies on a background, CMYK and other profiles are converted,
16 bits are scaled (never clipped), the camera's orientation is applied, an animation gives its first frame. The kind
of a file is decided by its first bytes, never by its suffix, among a short list of formats; its size is judged from
the header, before a pixel is decoded. A file is read into layers, colour and how opaque it is, both bytes; files, zip
members and Pillow images of a data set go the same way.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from kuosan.data import bmp, tiff
from kuosan.data.colour import Space, of_code_points, of_gamma, of_profile
from kuosan.data.headers import (
    Refused,
    avif_properties,
    check_header,
    gif_uncovered,
    has_adobe_mark,
    png_chunks,
)
from kuosan.data.pixels import bands, eight_bits, laid_on, unmultiplied
from kuosan.errors import Error

# Anything else that Pillow knows stays shut. Importing a plugin registers it; Pillow itself imports them late.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"]  # JPEG includes MPO
for _plugin in ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Avif", "Mpo"):
    import_module(f"PIL.{_plugin}ImagePlugin")
ORIENTATION = 0x0112  # EXIF tag
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
WHITE = (255, 255, 255)


Scale = tuple[float, float]  # the numbers that are black and white, where a file's own say nothing of it
NO_WHITE = "nobody has agreed which value is white; save it as 8 or 16 bits"


@dataclass(frozen=True)
class Header:
    """What a file says of itself: upright size, mode as stored."""

    width: int
    height: int
    mode: str
    format: str


@dataclass(frozen=True)
class Decoded:
    """Pixels (H, W, 1 or 3) uint8 in sRGB, and what was done to get them.

    `reading` is 2 where the version before this one read such a file otherwise, so that old runs notice; else 1.
    """

    pixels: np.ndarray
    mode: str
    notes: tuple[str, ...] = ()
    reading: int = 1


@dataclass
class _Layers:
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

    def done(self) -> _Layers:
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


def read_header(content: bytes, max_pixels: int = 64_000_000) -> Header:
    """The size and mode of a picture file, without decoding it.

    Raises:
        Refused: it is no picture of a format in `FORMATS`, or larger than `max_pixels`.
    """
    with _refusing(max_pixels):
        bitmap, sheet = _checked(content, max_pixels)
        if bitmap is not None:
            return Header(bitmap.width, bitmap.height, bitmap.mode, "BMP")
        if sheet is not None and not sheet.trusted:
            width, height = sheet.width, sheet.height
            if 5 <= sheet.one(ORIENTATION, 1) <= 8:
                width, height = height, width
            return Header(width, height, _sheet_mode(sheet), "TIFF")
        with _opened(content, max_pixels) as image:
            width, height = image.size
            if 5 <= _orientation(image) <= 8 and image.format != "TIFF":  # whose reader turns by itself
                width, height = height, width
            return Header(width, height, image.mode, str(image.format))


def decode(
    source: bytes | str | Path,
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = 64_000_000,
    scale: Scale | None = None,
) -> Decoded:
    """The pixels of a picture file, upright, on `background`; grey where the file stores grey.

    Args:
        scale: the numbers that are black and white in files of floats or 32-bit integers; none: floats are in [0, 1].

    Raises:
        Refused: it is no picture, too large, damaged, or of a meaning nobody has agreed on.
        Error: a path that cannot be read.
    """
    content = source if isinstance(source, bytes) else _read(Path(source))
    return _on(background, _layers(content, max_pixels, scale))


def decode_image(
    image: Image.Image,
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = 64_000_000,
    scale: Scale | None = None,
) -> Decoded:
    """The same of a Pillow image in memory, or of one opened from a file and not yet loaded.

    Raises:
        Refused: as `decode`.
    """
    content = _unread(image)
    if content is not None:
        return decode(content, background, max_pixels, scale)
    with _refusing(max_pixels), _quiet():
        image.load()
        _check_size(*image.size, max_pixels)
        layers = _Layers(
            image.mode, image.format or "in memory", turn=1 if image.format == "TIFF" else _orientation(image)
        )
        _fill(layers, image, image.info.get("transparency"), scale)
        if layers.format == "PNG":
            _png_colour(layers, {}, image.info)
        return _on(background, layers.done())


def opacity(source: bytes | str | Path, max_pixels: int = 64_000_000) -> np.ndarray | None:
    """How opaque each pixel of a picture file is, upright: (H, W) uint8, 0 where clear; None where it says nothing.

    Raises:
        Refused, Error: as `decode`.
    """
    content = source if isinstance(source, bytes) else _read(Path(source))
    alpha = _layers(content, max_pixels, None).alpha
    return None if alpha is None else alpha[..., 0]


def _on(background: tuple[int, int, int], layers: _Layers) -> Decoded:
    pixels = layers.colour if layers.alpha is None else laid_on(layers.colour, layers.alpha, background)
    return Decoded(pixels, layers.mode, tuple(layers.notes), layers.reading)


def _layers(content: bytes, max_pixels: int, scale: Scale | None) -> _Layers:
    with _refusing(max_pixels):
        bitmap, sheet = _checked(content, max_pixels)
        if bitmap is not None:
            return _of_bitmap(bitmap)
        if sheet is not None and not sheet.trusted:
            return _of_sheet(sheet, scale)
        with _opened(content, max_pixels) as image:
            layers = _Layers(image.mode, str(image.format), turn=_orientation(image))
            if layers.format == "TIFF":
                layers.turn = 1
            if getattr(image, "is_animated", False):
                layers.notes.append("first of several frames")
            return _of_file(layers, image, content, sheet, scale)


def _of_file(
    layers: _Layers, image: Image.Image, content: bytes, sheet: tiff.Sheet | None, scale: Scale | None
) -> _Layers:
    """A file that Pillow has opened, with what its plugin passes over."""
    clear, kind = image.info.get("transparency"), layers.format
    chunks = png_chunks(content) if kind == "PNG" else {}
    if kind == "JPEG" and image.mode == "CMYK" and not has_adobe_mark(content):
        raise Refused("JPEG of four inks without Adobe's mark: nobody has agreed whether 0 is ink; save it as RGB")
    if kind == "PNG":
        _png_colour(layers, chunks, image.info)
        if _wide_png(layers, chunks, content):
            return layers.done()
        clear = _png_clear(layers, chunks, clear)
    elif kind == "AVIF":
        _avif_colour(layers, content, image.info)
    elif kind == "PPM" and image.mode == "F" and image.info.get("scale", 1.0) != 1:
        raise Refused(f"PFM of scale {image.info['scale']:g}: {NO_WHITE}")
    if sheet is not None and sheet.bits[0] == 16 and sheet.photometric == tiff.RGB and layers.profile is None:
        profile = image.info.get("icc_profile")
        space = of_profile(profile) if profile else None
        if space is not None and not space.is_srgb and sheet.compression in tiff.READ_HERE:
            return _of_sheet(sheet, scale, profile)
        if space is not None and space.is_steep:
            raise Refused("TIFF of 16 bits of linear light, compressed: save it without compression, or as PNG")
    turn = sheet.one(ORIENTATION, 1) if sheet is not None else 1
    if turn in TURNS:
        layers.notes.append(f"turned upright (orientation {turn})")  # Pillow does so itself, and forgets the tag
    image.load()
    if sheet is not None and (table := sheet.palette()) is not None:
        image.putpalette(table.tobytes())
        layers.reading = 2
    _fill(layers, image, clear, scale, sheet)
    uncovered = gif_uncovered(content) if kind == "GIF" else None
    if uncovered is not None:
        _uncover(layers, uncovered)
    return layers.done()


def _fill(
    layers: _Layers,
    image: Image.Image,
    clear: object,
    scale: Scale | None,
    sheet: tiff.Sheet | None = None,
) -> None:
    """Colour and opacity of a loaded image; one row a family of modes."""
    mode = image.mode
    if layers.profile is None and layers.space is None:
        layers.profile = image.info.get("icc_profile")
    if mode in ("P", "PA"):
        image, clear = image.convert("RGBA" if mode == "PA" or clear is not None else "RGB"), None
        mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and layers.format in ("PNG", "PPM")):
        values = np.asarray(image)
        wide = (np.clip(values, 0, 65535) if mode == "I" else values).astype(np.uint16)[..., None]
        if sheet is not None and sheet.after == "inverted":
            wide, layers.reading = np.subtract(65535, wide, dtype=np.uint16), 2
        if sheet is not None and sheet.after == "scaled":
            wide, layers.reading = _spread(wide, 4095), 2
            layers.notes.append("12 bits scaled to 8")
        else:
            layers.notes.append("16 bits scaled to 8")
        layers.colour = wide
        if isinstance(clear, int):
            layers.alpha = np.where(wide != clear, np.uint8(255), np.uint8(0))
        return
    if mode in ("F", "I"):
        inverted = sheet is not None and sheet.after == "inverted"
        layers.colour = _numbers(np.asarray(image)[..., None], mode, layers, scale, inverted)
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


def _clear(layers: _Layers, clear: object) -> None:
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


def _inks(layers: _Layers, image: Image.Image) -> None:
    """CMYK through its profile, else R = (1 - C)(1 - K) and so on."""
    layers.notes.append("CMYK converted to sRGB")
    converted = None
    if layers.profile and not _is_srgb(layers.profile, layers):
        converted = _converted(image, layers.profile, layers.notes)
    layers.colour = np.asarray(image.convert("RGB") if converted is None else converted)
    layers.profile = None


def _numbers(values: np.ndarray, mode: str, layers: _Layers, scale: Scale | None, inverted: bool = False) -> np.ndarray:
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


def _spread(values: np.ndarray, white: int) -> np.ndarray:
    """Integers of which `white` is white as uint16 of which 65,535 is."""
    out = np.empty(values.shape, np.uint16)
    for rows in bands(values):
        out[rows] = np.rint(np.minimum(values[rows], white) * (65535.0 / white))
    return out


def _png_colour(layers: _Layers, chunks: dict[bytes, bytes], info: dict[str | tuple[int, int], object]) -> None:
    """PNG's own words on colour, the first of cICP, iCCP, sRGB, gAMA with cHRM (PNG third edition, 4.3)."""
    if b"cICP" in chunks and len(chunks[b"cICP"]) >= 4:
        primaries, transfer, matrix, full = chunks[b"cICP"][:4]
        if matrix or full != 1:
            raise Refused("PNG of video's range or matrix (cICP); save it as sRGB")
        layers.space = of_code_points(primaries, transfer)
        info.pop("icc_profile", None)
        what = "code points"
    elif info.get("icc_profile") or "srgb" in info or "gamma" not in info:
        return
    else:
        given = info.get("chromaticity")
        layers.space = of_gamma(
            float(info["gamma"]),  # type: ignore[arg-type]
            tuple(given) if given else None,  # type: ignore[arg-type]
        )
        what = "gamma"
    if layers.space is not None and layers.space.is_srgb:
        layers.space = None
    if layers.space is not None:
        layers.notes.append(f"{what} converted to sRGB")
        layers.reading = 2


def _png_clear(layers: _Layers, chunks: dict[bytes, bytes], clear: object) -> object:
    """tRNS in the values that Pillow gives: it scales samples of 2 and 4 bits, and forgets to scale the clear one."""
    depth, kind = chunks[b"IHDR"][8:10]
    if clear is None or kind != 0 or depth == 16:
        return clear
    (value,) = struct.unpack_from(">H", chunks[b"tRNS"])
    if depth in (2, 4) or value >> depth:
        layers.reading = 2
    return (value & (1 << depth) - 1) * 255 // ((1 << depth) - 1)  # only the low bits count


def _wide_png(layers: _Layers, chunks: dict[bytes, bytes], content: bytes) -> bool:
    """Fill the layers with colour of 16 bits where 8, which is what Pillow gives of it, are too few."""
    depth, kind = chunks[b"IHDR"][8:10]
    if depth != 16 or kind not in (2, 4, 6):
        return False
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        profile = image.info.get("icc_profile") if layers.space is None else None
    space = layers.space or (of_profile(profile) if profile else None)
    clear = struct.unpack(">3H", chunks[b"tRNS"][:6]) if kind == 2 and b"tRNS" in chunks else None
    if clear is None and (space is None or space.is_srgb):
        return False
    if kind == 4:  # the same bytes are also an image of four channels of 8 bits
        pixels = np.asarray(_as_raw(content, "RGBA", "RGBA"))
        wide = pixels[..., ::2].astype(np.uint16) << 8 | pixels[..., 1::2]
    else:
        mode = "RGB" if kind == 2 else "RGBA"
        high, low = (np.asarray(_as_raw(content, mode, f"{mode};16{order}")) for order in "BL")
        wide = high.astype(np.uint16) << 8 | low
    colours = wide.shape[2] if kind == 2 else wide.shape[2] - 1
    layers.colour, layers.alpha, layers.profile = (
        wide[..., :colours],
        wide[..., colours:] if kind != 2 else None,
        profile,
    )
    if clear is not None:
        layers.alpha = np.empty((*wide.shape[:2], 1), np.uint8)
        for rows in bands(wide):
            same = (wide[rows] == np.array(clear, np.uint16)).all(2, keepdims=True)
            layers.alpha[rows] = np.where(same, np.uint8(0), np.uint8(255))
    layers.reading = 2
    return True


def _as_raw(content: bytes, mode: str, raw: str) -> Image.Image:
    """A PNG's samples laid out as if it were of another mode: 16 bits' low bytes, where Pillow gives the high."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        assert isinstance(image, ImageFile.ImageFile)
        image._mode = mode
        image.tile = [image.tile[0]._replace(args=raw)]
        image.load()
        return image


def _avif_colour(layers: _Layers, content: bytes, info: dict[str | tuple[int, int], object]) -> None:
    """The code points of an AVIF without a profile; a cut (clap) that Pillow would not make is refused."""
    properties = avif_properties(content)
    if any(name == b"clap" for name, _ in properties):
        raise Refused("AVIF that is to be cut to a part of itself (clap); save the part")
    if info.get("icc_profile"):
        return
    for name, body in properties:
        if name == b"colr" and body[:4] == b"nclx":
            layers.space = of_code_points(*struct.unpack_from(">HH", body, 4))
            if layers.space is not None:
                layers.notes.append("code points converted to sRGB")
                layers.reading = 2
            return


def _uncover(layers: _Layers, box: tuple[int, int, int, int]) -> None:
    """A GIF's screen outside its first image is clear, as viewers show it."""
    if layers.alpha is None:
        layers.alpha, layers.reading = np.full((*layers.colour.shape[:2], 1), 255, np.uint8), 2
    left, top, right, bottom = box
    inside = np.zeros_like(layers.alpha, bool)
    inside[top:bottom, left:right] = True
    layers.alpha = np.where(inside, layers.alpha, np.uint8(0))


def _of_bitmap(bitmap: bmp.Bitmap) -> _Layers:
    layers = _Layers(bitmap.mode, "BMP", profile=bitmap.profile)
    pixels = bitmap.read()
    if bitmap.palette is None and bitmap.masks[3]:
        layers.colour, layers.alpha = pixels[..., :3], pixels[..., 3:]
    else:
        layers.colour = pixels
    layers.reading = 1 if bitmap.as_before and bitmap.profile is None else 2
    return layers.done()


def _of_sheet(sheet: tiff.Sheet, scale: Scale | None, profile: bytes | None = None) -> _Layers:
    """A TIFF of a kind that is read here and not by Pillow."""
    layers = _Layers(_sheet_mode(sheet), "TIFF", profile=profile or sheet.profile, turn=sheet.one(ORIENTATION, 1))
    layers.reading = 2
    values, zero = sheet.read(), sheet.photometric
    if sheet.kind == 3:
        values = _numbers(values, "F", layers, scale)
    elif sheet.bits[0] not in (1, 2, 4, 8):
        layers.notes.append(f"{sheet.bits[0]} bits scaled to 8")
    count = sheet.colours
    colours = values[..., :count]
    if sheet.extra and sheet.extra[0] in (tiff.PREMULTIPLIED, tiff.STRAIGHT):
        layers.alpha, layers.premultiplied = values[..., count : count + 1], sheet.extra[0] == tiff.PREMULTIPLIED
    if zero == tiff.WHITE_IS_ZERO:
        colours = np.subtract(np.iinfo(colours.dtype).max, colours, dtype=colours.dtype)
    elif zero == tiff.PALETTE:
        colours = sheet.colours_of(colours[..., 0])
    elif zero in (tiff.YCBCR, tiff.LAB, tiff.INKS):
        eight = np.ascontiguousarray(eight_bits(colours) if colours.dtype == np.uint16 else colours)
        mode = {tiff.YCBCR: "YCbCr", tiff.LAB: "LAB", tiff.INKS: "CMYK"}[zero]
        image = Image.frombytes(mode, (sheet.width, sheet.height), eight.tobytes())
        alpha = layers.alpha
        _fill(layers, image, None, None)
        layers.alpha = alpha if alpha is None or alpha.dtype == np.uint8 else eight_bits(alpha)
        return layers.done()
    layers.colour = colours
    return layers.done()


def _sheet_mode(sheet: tiff.Sheet) -> str:
    """Pillow's name of the nearest mode."""
    if sheet.photometric in (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO):
        kind = "F" if sheet.kind == 3 else "L" if sheet.bits[0] <= 8 else "I;16"
        return "LA" if sheet.extra and kind == "L" else kind
    return {tiff.PALETTE: "P", tiff.INKS: "CMYK", tiff.YCBCR: "YCbCr", tiff.LAB: "LAB"}.get(sheet.photometric, "RGB")


def _unread(image: Image.Image) -> bytes | None:
    """The file's bytes of an image that Pillow has opened and not yet loaded."""
    if not isinstance(image, ImageFile.ImageFile) or image.format not in (*FORMATS, "MPO") or not image.tile:
        return None
    file = image.fp
    if file is None or image.decoderconfig or image.tell() != 0:
        return None
    try:
        place = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(place)
    except (OSError, ValueError):
        return None
    return content


def _checked(content: bytes, max_pixels: int) -> tuple[bmp.Bitmap | None, tiff.Sheet | None]:
    """What is read here of a bitmap's or a TIFF's header, of a size that is allowed."""
    check_header(content)
    bitmap, sheet = bmp.bitmap(content), tiff.sheet(content)
    if bitmap is not None:
        _check_size(bitmap.width, bitmap.height, max_pixels)
    if sheet is not None:
        _check_size(sheet.width, sheet.height, max_pixels)
        sheet.check()
    return bitmap, sheet


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Refused(f"has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise Refused(f"too large: {width}x{height} is more than {max_pixels:,} pixels (max_pixels)")


@contextmanager
def _refusing(max_pixels: int) -> Iterator[None]:
    """Whatever goes wrong inside is a refusal."""
    try:
        yield
    except Error:
        raise
    except UnidentifiedImageError:
        raise Refused("not a picture of a known format") from None
    except Image.DecompressionBombError:
        raise Refused(f"too large: more than {max_pixels:,} pixels (max_pixels)") from None
    # Damaged files make decoders fail in every way (struct.error, SyntaxError, IndexError, MemoryError ...).
    except Exception as reason:
        raise Refused(f"damaged: {_sentence(reason)}") from None


@contextmanager
def _opened(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The file opened by Pillow."""
    with _quiet(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        _check_size(*image.size, max_pixels)
        yield image


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


def _is_srgb(profile: bytes, layers: _Layers) -> bool:
    """Whether a profile is sRGB: by its name, unless its curves and primaries say otherwise."""
    if b"sRGB" not in profile[:512] and b"s\0R\0G\0B" not in profile[:512]:
        return False
    space = of_profile(profile)
    if space is None or space.is_srgb:
        return True
    layers.reading = 2  # such as linear sRGB: the name alone decided before
    return False


def _orientation(image: Image.Image) -> int:
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        return 1
    return turn if isinstance(turn, int) else 1


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as reason:
        raise Error(f"cannot read the picture {path}: {reason.strerror}.") from None


def _sentence(reason: Exception) -> str:
    return " ".join(f"{type(reason).__name__} {reason}".split())[:200]


_QUIET = ("ignore", None, Warning, None, 0)
_lock = threading.Lock()
_inside = 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's warnings off while any thread decodes: the report says what is wrong with a file.

    `warnings.catch_warnings` restores what another thread has changed; counting the threads inside does not.
    """
    global _inside
    with _lock:
        if _inside == 0:
            warnings.filters.insert(0, _QUIET)  # type: ignore[attr-defined]
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _QUIET in warnings.filters:
                warnings.filters.remove(_QUIET)  # type: ignore[attr-defined]
