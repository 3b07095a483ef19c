"""A picture file as bytes with the right meaning, or refused with the reason: `decode(content) -> Decoded`.

Meaning: what a good viewer shows, in sRGB. Transparency lies on a background, CMYK and other profiles are converted,
16 bits are scaled (never clipped), the camera's orientation is applied, an animation gives its first frame. The kind
of a file is decided by its first bytes, never by its suffix, among a short list of formats; its size is judged from
the header, before a pixel is decoded.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from kuosan.data.headers import Refused, check_header
from kuosan.data.pixels import laid_on, rounded
from kuosan.errors import Error
from kuosan.regular import read_regular

# Anything else that Pillow knows stays shut. Importing a plugin registers it; Pillow itself imports them late.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"]  # JPEG includes MPO
for _plugin in ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Avif", "Mpo"):
    import_module(f"PIL.{_plugin}ImagePlugin")
ORIENTATION = 0x0112  # EXIF tag
TURNS = {  # Exif 2.32, table 4.6.4 A: what brings the stored rows upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Relative colorimetric with black point compensation, as image editors do
INTENT, BLACK_TO_BLACK = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
SRGB = ImageCms.createProfile("sRGB")
WHITE = (255, 255, 255)
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
    """Pixels (H, W, 1 or 3) uint8 in sRGB, and what was done to get them."""

    pixels: np.ndarray
    mode: str
    notes: tuple[str, ...] = ()


def read_header(content: bytes, max_pixels: int = 64_000_000) -> Header:
    """The size and mode of a picture file, without decoding it.

    Raises:
        Refused: it is no picture of a format in `FORMATS`, or larger than `max_pixels`.
    """
    with _opened(content, max_pixels) as image:
        width, height = image.size
        if 5 <= _orientation(image) <= 8 and image.format != "TIFF":  # whose reader turns by itself
            width, height = height, width
        return Header(width, height, image.mode, str(image.format))


def decode(
    source: bytes | str | Path, background: tuple[int, int, int] = WHITE, max_pixels: int = 64_000_000
) -> Decoded:
    """The pixels of a picture file, upright, on `background`; grey where the file stores grey.

    Raises:
        Refused: it is no picture, too large, damaged, or of a meaning nobody has agreed on.
        Error: a path that cannot be read.
    """
    content = source if isinstance(source, bytes) else _read(Path(source))
    with _opened(content, max_pixels) as image:
        notes = []
        mode, turn = image.mode, _orientation(image)  # the TIFF reader turns by itself and forgets the tag
        if getattr(image, "is_animated", False):
            notes.append("first of several frames")
        image.load()
        upright = image.transpose(TURNS[turn]) if turn in TURNS and image.format != "TIFF" else image
        if turn in TURNS:
            notes.append(f"turned upright (orientation {turn})")
        pixels = _meaning(upright, image, background, notes)
    return Decoded(pixels, mode, tuple(notes))


def opacity(source: bytes | str | Path, max_pixels: int = 64_000_000) -> np.ndarray | None:
    """How opaque each pixel of a picture file is, upright: (H, W) uint8, 0 where clear; None where it says nothing.

    Raises:
        Refused, Error: as `decode`.
    """
    content = source if isinstance(source, bytes) else _read(Path(source))
    with _opened(content, max_pixels) as image:
        turn = _orientation(image)
        image.load()
        if "A" not in image.getbands() and "a" not in image.getbands() and image.info.get("transparency") is None:
            return None
        upright = image.transpose(TURNS[turn]) if turn in TURNS and image.format != "TIFF" else image
        return np.asarray(upright.convert("RGBA"))[..., 3]


@contextmanager
def _opened(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The file opened by Pillow; whatever goes wrong inside is a refusal."""
    try:
        check_header(content)
        with _quiet(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width < 1 or height < 1:
                raise Refused(f"has no pixels ({width}x{height})")
            if width * height > max_pixels:
                raise Refused(f"too large: {width}x{height} is more than {max_pixels:,} pixels (max_pixels)")
            yield image
    except Error:
        raise
    except UnidentifiedImageError:
        raise Refused("not a picture of a known format") from None
    except Image.DecompressionBombError:
        raise Refused(f"too large: more than {max_pixels:,} pixels (max_pixels)") from None
    # Damaged files make decoders fail in every way (struct.error, SyntaxError, IndexError, MemoryError ...).
    except Exception as reason:
        raise Refused(f"damaged: {_sentence(reason)}") from None


def _meaning(
    image: Image.Image, opened: Image.Image, background: tuple[int, int, int], notes: list[str]
) -> np.ndarray:  # (H, W, 1 or 3)
    """One row a family of modes; `image` is upright, `opened` still knows format and profile."""
    mode, clear = image.mode, image.info.get("transparency")
    if mode.startswith("I;16") or (mode == "I" and opened.format in ("PNG", "PPM")):
        return _grey16(image, clear, background, notes)
    if mode == "F":
        return _float(image, notes)
    if mode in ("1", "L") and clear is None:
        return _profiled(image.convert("L"), opened, notes)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or clear is not None:
        notes.append("transparency laid on the background")
        rgba = _profiled(image.convert("RGBA"), opened, notes)
        grey = mode in ("1", "L", "LA", "La")
        return laid_on(rgba[..., :1] if grey else rgba[..., :3], rgba[..., 3:] / 255.0, background)
    if mode in ("P", "RGB", "RGBX", "YCbCr"):
        return _profiled(image.convert("RGB"), opened, notes)
    if mode == "CMYK":
        notes.append("CMYK converted to sRGB")
        return _profiled(image, opened, notes)
    if mode == "LAB":
        notes.append("Lab converted to sRGB")
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), SRGB, "LAB", "RGB")
        return np.asarray(ImageCms.applyTransform(image, transform))
    raise Refused(f"mode {mode} ({opened.format}): nobody has agreed which value is white; save it as 8 or 16 bits")


def _profiled(image: Image.Image, opened: Image.Image, notes: list[str]) -> np.ndarray:
    """Through the file's colour profile into sRGB, alpha kept; as it is where the profile is sRGB, absent or broken."""
    profile = opened.info.get("icc_profile")
    converted = None
    if profile and not _is_srgb(profile):
        to = "RGBA" if image.mode == "RGBA" else "RGB"
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, SRGB, INTENT, to, flags=BLACK_TO_BLACK)
            notes.append("colour profile converted to sRGB")
        except Exception:  # a profile for another mode, or a damaged one: viewers ignore it too
            notes.append("colour profile not usable, taken as sRGB")
    if converted is not None:
        pixels = np.asarray(converted)
        if image.mode == "RGBA":
            pixels = np.concatenate([pixels[..., :3], np.asarray(image)[..., 3:]], axis=2)
        return pixels[..., :1] if image.mode == "L" else pixels
    pixels = np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _is_srgb(profile: bytes) -> bool:
    return b"sRGB" in profile[:512] or b"s\0R\0G\0B" in profile[:512]


def _grey16(image: Image.Image, clear: object, background: tuple[int, int, int], notes: list[str]) -> np.ndarray:
    wide = np.asarray(image).astype(np.float64)  # (H, W)
    notes.append("16 bits scaled to 8")
    grey = rounded(wide / 257.0)[..., None]
    if isinstance(clear, int):
        notes.append("transparency laid on the background")
        return laid_on(grey, (wide != clear)[..., None].astype(np.float64), background)
    return grey


def _float(image: Image.Image, notes: list[str]) -> np.ndarray:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise Refused("floating point outside [0, 1]: nobody has agreed which value is white; save it as 8 or 16 bits")
    notes.append("floating point, 1 is white")
    return rounded(values * 255)[..., None]


def _orientation(image: Image.Image) -> int:
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        return 1
    return turn if isinstance(turn, int) else 1


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_BYTES)
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
