"""An image file as bytes with the right meaning, or refused with the reason: `decode(content) -> Decoded`.

Meaning: what a good viewer shows, in sRGB. Transparency lies on a background or is kept, CMYK and other profiles are
converted, 16 bits are scaled (never clipped), the camera's orientation is applied, an animation gives its first frame.
The kind of a file is decided by its first bytes, never by its suffix, among a short list of formats; its size is judged
from the header, before a pixel is decoded. A file is read into layers, colour and how opaque it is, both bytes; files,
zip members and Pillow images of a data set go the same way.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from kuosan.data import bmp, tiff
from kuosan.data.colour import of_profile
from kuosan.data.config import MOST_PIXELS
from kuosan.data.footprint import (
    DECODERS,
    MAX_BYTES,
    MOST_EXIF,
    WHERE,
    Aside,
    aside,
    check_needed,
    check_profile,
    check_tags,
    has_adobe_mark,
    needed,
    needed_here,
    webp_size,
    without_mark,
)
from kuosan.data.headers import (
    Refused,
    before_pixels,
    gif_uncovered,
    read_image,
)
from kuosan.data.layers import LAID, NO_WHITE, ORIENTATION, TURNS, Layers, Scale, fill
from kuosan.data.marks import avif_colour, endless_jpeg, png_clear, png_colour, uncover, wide_png
from kuosan.errors import Error

# Anything else that Pillow knows stays shut. Importing a plugin registers it; Pillow itself imports them late.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"]  # JPEG includes MPO
for _plugin in ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Avif", "Mpo"):
    import_module(f"PIL.{_plugin}ImagePlugin")
Found = TypeVar("Found")
WHITE = (255, 255, 255)
Background = tuple[int, int, int] | None  # what transparency is laid on; None: it is kept
KEPT = "transparency kept"  # a note
GREYS = ("1", "L", "I;16", "F", "I")
MOST_BYTES = 1 << 29  # of an image's file: 64 megapixels of four 16-bit samples, uncompressed


@dataclass(frozen=True)
class Header:
    """What a file says of itself: upright size, mode as stored."""

    width: int
    height: int
    mode: str
    format: str


@dataclass(frozen=True)
class Decoded:
    """Pixels (H, W, 1, 3 or 4) uint8 in sRGB, and what was done to get them; 4: with alpha, not multiplied by it.

    `reading` is 2 where the version before this one read such a file otherwise, so that old runs notice; else 1.
    """

    pixels: np.ndarray
    mode: str
    notes: tuple[str, ...] = ()
    reading: int = 1


def read_header(
    content: bytes, max_pixels: int = 64_000_000, scale: Scale | None = None, max_bytes: int = MAX_BYTES
) -> Header:
    """The size and mode of an image file, without decoding it.

    Args:
        scale: as `decode`'s.
        max_bytes: as `decode`'s.

    Raises:
        Refused: it is no image of a format in `FORMATS`, or larger than `max_pixels` or `max_bytes`.
    """
    with _refusing(max_pixels):
        beside, bitmap, sheet = _checked(content, max_pixels, scale, max_bytes)
        if bitmap is not None:
            return Header(bitmap.width, bitmap.height, bitmap.mode, "BMP")
        if sheet is not None and not sheet.trusted:
            width, height = sheet.width, sheet.height
            if 5 <= sheet.one(ORIENTATION, 1) <= 8:
                width, height = height, width
            return Header(width, height, tiff.sheet_mode(sheet), "TIFF")
        with _opened(content, max_pixels) as image:
            check_needed(beside.held + needed(image, content, sheet), max_bytes)
            width, height = image.size
            if image.format != "TIFF" and 5 <= _orientation(image, beside) <= 8:  # TIFF's reader turns by itself
                width, height = height, width
            return Header(width, height, image.mode, str(image.format))


def decode(
    source: bytes | str | Path,
    background: Background = WHITE,
    max_pixels: int = 64_000_000,
    scale: Scale | None = None,
    max_bytes: int = MAX_BYTES,
) -> Decoded:
    """The pixels of an image file, upright, on `background`; grey where the file stores grey.

    Args:
        background: None keeps the transparency of files that have it: RGBA, also of grey ones.
        scale: the numbers that are black and white in files of floats or 32-bit integers; none: floats are in [0, 1].
        max_bytes: memory that the format's decoder may take at its peak, judged from the header; the result, and what
            is done to it, take at most a byte a sample and 64 MB beside it.

    Raises:
        Refused: it is no image, too large, damaged, or of a meaning nobody has agreed on.
        Error: a path that cannot be read.
    """
    content = source if isinstance(source, bytes) else _read(Path(source))
    return _layers(content, max_pixels, scale, max_bytes, lambda layers: _on(background, layers))


def decode_to(
    content: bytes,
    use: Callable[[Decoded], Found],
    background: Background = WHITE,
    max_pixels: int = 64_000_000,
    scale: Scale | None = None,
    max_bytes: int = MAX_BYTES,
    known: bool = False,
) -> Found:
    """What `use` makes of what `decode` gives, before another thread decodes a large image.

    Args:
        known: these very bytes were decoded before, so that memory that runs out says nothing of the file.

    Raises:
        Refused: as `decode`.
        MemoryError: memory ran out on a file that is `known`.
        Exception: whatever `use` raises, as it is.
    """

    def used(layers: Layers) -> Found:
        decoded = _on(background, layers)
        try:
            return use(decoded)
        except Exception as error:
            raise _OfUse(error) from None

    return _layers(content, max_pixels, scale, max_bytes, used, known)


def decode_image(
    image: Image.Image,
    background: Background = WHITE,
    max_pixels: int = 64_000_000,
    scale: Scale | None = None,
    max_bytes: int = MAX_BYTES,
) -> Decoded:
    """The same of a Pillow image in memory, or of one opened from a file and not yet loaded.

    Raises:
        Refused: as `decode`.
    """
    content = _unread(image)
    if content is not None:
        return decode(content, background, max_pixels, scale, max_bytes)
    with _refusing(max_pixels), _quiet():
        _check_size(*image.size, max_pixels)
        check_profile(image.info.get("icc_profile"))
        if isinstance(exif := image.info.get("exif"), bytes):
            check_tags(without_mark(exif), "its EXIF")
        image.load()
        _check_size(*image.size, max_pixels)
        layers = Layers(
            image.mode, image.format or "in memory", turn=1 if image.format == "TIFF" else _orientation(image)
        )
        fill(layers, image, image.info.get("transparency"), scale)
        if layers.format == "PNG":
            png_colour(layers, {}, image.info)
        return _on(background, layers.done())


def opacity(source: bytes | str | Path, max_pixels: int = 64_000_000, max_bytes: int = MAX_BYTES) -> np.ndarray | None:
    """How opaque each pixel of an image file is, upright: (H, W) uint8, 0 where clear; None where it says nothing.

    Raises:
        Refused, Error: as `decode`.
    """
    content = source if isinstance(source, bytes) else _read(Path(source))
    return _layers(content, max_pixels, None, max_bytes, Layers.opacity)


def _on(background: Background, layers: Layers) -> Decoded:
    if background is not None:
        return Decoded(layers.laid_on(background), layers.mode, tuple(layers.notes), layers.reading)
    notes = tuple(KEPT if note == LAID else note for note in layers.notes)
    return Decoded(layers.straight(), layers.mode, notes, layers.reading)


def _layers(
    content: bytes,
    max_pixels: int,
    scale: Scale | None,
    max_bytes: int,
    use: Callable[[Layers], Found],
    known: bool = False,
) -> Found:
    """What `use` makes of the layers of a file, which are read as it asks for them."""
    with _refusing(max_pixels, known):
        beside, bitmap, sheet = _checked(content, max_pixels, scale, max_bytes)
        if bitmap is not None:
            with DECODERS.hold(4 * bitmap.width * bitmap.height, max_bytes):
                return use(bmp.layers_of(bitmap))
        if sheet is not None and not sheet.trusted:
            with DECODERS.hold(needed_here(sheet) + 3 * sheet.width * sheet.height, max_bytes):
                return use(tiff.layers_of(sheet, scale))
        with _opened(content, max_pixels) as image:
            held = beside.held + needed(image, content, sheet)
            check_needed(held, max_bytes)
            check_profile(image.info.get("icc_profile"))
            turn = 1 if sheet is not None else _orientation(image, beside)
            layers = Layers(image.mode, str(image.format), turn=turn)
            if getattr(image, "is_animated", False) if sheet is None else sheet.has_more:
                layers.notes.append("first of several frames")
            with DECODERS.hold(held + image.width * image.height * (1 if image.mode in GREYS else 4), max_bytes):
                return use(_of_file(layers, image, content, sheet, scale))


def _of_file(
    layers: Layers, image: Image.Image, content: bytes, sheet: tiff.Sheet | None, scale: Scale | None
) -> Layers:
    """A file that Pillow has opened, with what its plugin passes over."""
    clear, kind = image.info.get("transparency"), layers.format
    chunks = before_pixels(content) if kind == "PNG" else {}
    if kind == "JPEG" and image.mode == "CMYK" and not has_adobe_mark(content):
        raise Refused("JPEG of four inks without Adobe's mark: nobody has agreed whether 0 is ink; save it as RGB")
    if kind == "PNG":
        png_colour(layers, chunks, image.info)
        if wide_png(layers, chunks, content):
            return layers.done()
        clear = png_clear(layers, chunks, clear)
    elif kind == "AVIF":
        avif_colour(layers, content, image.info)
    elif kind == "PPM" and image.mode == "F" and image.info.get("scale", 1.0) != 1:
        raise Refused(f"PFM of scale {image.info['scale']:g}: {NO_WHITE}")
    if sheet is not None and sheet.bits[0] == 16 and sheet.photometric == tiff.RGB and layers.profile is None:
        profile = image.info.get("icc_profile")
        space = of_profile(profile) if profile else None
        if space is not None and not space.is_srgb and sheet.compression in tiff.READ_HERE:
            return tiff.layers_of(sheet, scale, profile)
        if space is not None and space.is_steep:
            raise Refused("TIFF of 16 bits of linear light, compressed: save it without compression, or as PNG")
    turn = sheet.one(ORIENTATION, 1) if sheet is not None else 1
    if turn in TURNS:
        layers.notes.append(f"turned upright (orientation {turn})")  # Pillow does so itself, and forgets the tag
    try:
        image.load()
    except OSError:
        whole = endless_jpeg(content) if kind == "JPEG" else None
        if whole is None:
            raise
        image, layers.reading = whole, 2
        layers.notes.append("without the marker at its end, and whole all the same")
    if sheet is not None and sheet.whole and sheet.kind == 1 and _lowest(image) < 0:
        raise Refused("TIFF of integers of 2147483648 and more, which Pillow does not hold; save it as 16 bits")
    if sheet is not None and (table := sheet.palette()) is not None:
        image.putpalette(table.tobytes())
        layers.reading = 2
    fill(layers, image, clear, scale, "" if sheet is None else sheet.after)
    uncovered = gif_uncovered(content) if kind == "GIF" else None
    if uncovered is not None:
        uncover(layers, uncovered)
    return layers.done()


def _lowest(image: Image.Image) -> float:
    """The least number of an image of one channel."""
    low = image.getextrema()[0]
    assert isinstance(low, int | float)
    return low


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


def _checked(
    content: bytes, max_pixels: int, scale: Scale | None, max_bytes: int
) -> tuple[Aside, bmp.Bitmap | None, tiff.Sheet | None]:
    """What lies beside the pixels, and what is read here of a bitmap's or a TIFF's header, if their size is allowed."""
    beside, canvas = aside(content), webp_size(content)
    if canvas is not None:
        _check_size(*canvas, max_pixels)
    bitmap, sheet = bmp.bitmap(content), tiff.sheet(content)
    if bitmap is not None:
        _check_size(bitmap.width, bitmap.height, max_pixels)
    if sheet is not None:
        _check_size(sheet.width, sheet.height, max_pixels)
        sheet.check(scale is not None)
        check_profile(sheet.profile)
        if not sheet.trusted:
            check_needed(needed_here(sheet), max_bytes)
    elif bitmap is not None:
        check_profile(bitmap.profile)
        check_needed(bitmap.width * bitmap.height if bitmap.compression in (bmp.RLE4, bmp.RLE8) else 0, max_bytes)
    return beside, bitmap, sheet


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Refused(f"has no pixels ({width}x{height})")
    if width * height > max_pixels:
        cure = "scale it down"
        if width * height <= MOST_PIXELS:
            cure += f", or let it in where data are chosen ({WHERE} --max-pixels {width * height})"
        raise Refused(f"too large: {width}x{height} is more than {max_pixels:,} pixels (max_pixels): {cure}")


class _OfUse(Exception):
    """An error of what is done with an image, which is no fault of its file."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def _refusing(max_pixels: int, known: bool = False) -> Iterator[None]:
    """Whatever a file makes go wrong inside is a refusal; memory that runs out is not where the file is `known`."""
    try:
        yield
    except Error:
        raise
    except _OfUse as found:
        raise found.error from found.error.__cause__
    except UnidentifiedImageError:
        raise Refused("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise Refused(f"too large: more than {max_pixels:,} pixels (max_pixels): scale it down") from None
    # Damaged files make decoders fail in every way (struct.error, SyntaxError, IndexError, MemoryError ...).
    except Exception as reason:
        if known and isinstance(reason, MemoryError):
            raise
        raise Refused(f"damaged: {_sentence(reason)}") from None


@contextmanager
def _opened(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The file opened by Pillow."""
    with _quiet(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        _check_size(*image.size, max_pixels)
        yield image


def _orientation(image: Image.Image, beside: Aside | None = None) -> int:
    """How a camera was held; of a PNG from what lies beside its pixels, which Pillow would decode to find it."""
    try:
        if beside is None or image.format != "PNG":
            return _turn(image.getexif().get(ORIENTATION, 1))
        tags = Image.Exif()
        if beside.exif is not None:
            tags.load(beside.exif)
        if ORIENTATION in tags or beside.xmp is None:
            return _turn(tags.get(ORIENTATION, 1))
        found = re.search(rb'tiff:Orientation(="|>)([0-9])', beside.xmp)
        return int(found[2]) if found else 1
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        return 1


def _turn(value: object) -> int:
    return value if isinstance(value, int) else 1


def _read(path: Path) -> bytes:
    try:
        return read_image(path, MOST_BYTES)
    except OSError as reason:
        raise Error(f"cannot read the image {path}: {reason.strerror}.") from None


def _sentence(reason: Exception) -> str:
    return " ".join(f"{type(reason).__name__} {reason}".split())[:200]


_QUIET = ("ignore", None, Warning, None, 0)
_lock = threading.Lock()
_inside, _bound = 0, 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's warnings off while any thread decodes, and packed texts and profiles as long as `aside` lets in.

    The report says what is wrong with a file. `warnings.catch_warnings` restores what another thread has changed;
    counting the threads inside does not.
    """
    global _inside, _bound
    with _lock:
        if _inside == 0:
            _bound, PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_CHUNK, 2 * MOST_EXIF
            warnings.filters.insert(0, _QUIET)  # type: ignore[attr-defined]
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                PngImagePlugin.MAX_TEXT_CHUNK = _bound
            if _inside == 0 and _QUIET in warnings.filters:
                warnings.filters.remove(_QUIET)  # type: ignore[attr-defined]
