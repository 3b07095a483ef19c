"""Image files made by hand or by Pillow, each with the float64 pixels a good viewer would show."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from kuosan.seeds import rng

WHITE = np.array([255.0, 255.0, 255.0])


def drawn(h: int = 10, w: int = 12, channels: int = 3, name: str = "picture") -> np.ndarray:
    """Random bytes (h, w, channels), the same at every call."""
    return rng(0, f"test {name}").integers(0, 256, (h, w, channels)).astype(np.uint8)


def smooth(h: int = 32, w: int = 48) -> np.ndarray:
    """A gradient (h, w, 3) that lossy formats keep, with no symmetry that would hide a wrong turn."""
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([30 + 3 * x + 2 * y, 40 + 3 * x + 2 * y, 25 + 3 * x + 2 * y], 2).astype(np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """The file Pillow writes."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(w: int, h: int, depth: int, colour: int, rows: bytes, before: bytes = b"") -> bytes:
    """A PNG of packed `rows` (each led by its filter byte), with chunks `before` the pixels."""
    header = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + chunk(b"IEND", b"")


def png16(values: np.ndarray, colour: int, before: bytes = b"") -> bytes:
    """A 16-bit PNG of (H, W, C) values."""
    h, w, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(w, h, 16, colour, rows, before)


def tiff(values: np.ndarray, photometric: int, sample_format: int = 1, bits: int = 16) -> bytes:
    """An uncompressed little-endian TIFF of (H, W, C) values."""
    h, w, c = values.shape
    pixels = np.ascontiguousarray(values).tobytes()
    bits_at = 8 + len(pixels)
    ifd_at = bits_at + 2 * c + (2 * c) % 2
    bits_value = struct.pack("<HH", bits, 0) if c == 1 else struct.pack("<I", bits_at)
    tags = [
        (256, 3, 1, struct.pack("<HH", w, 0)),
        (257, 3, 1, struct.pack("<HH", h, 0)),
        (258, 3, c, bits_value),
        (259, 3, 1, struct.pack("<HH", 1, 0)),
        (262, 3, 1, struct.pack("<HH", photometric, 0)),
        (273, 4, 1, struct.pack("<I", 8)),
        (277, 3, 1, struct.pack("<HH", c, 0)),
        (278, 3, 1, struct.pack("<HH", h, 0)),
        (279, 4, 1, struct.pack("<I", len(pixels))),
        (339, 3, 1, struct.pack("<HH", sample_format, 0)),
    ]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in tags) + b"\0" * 4
    return b"II*\0" + struct.pack("<I", ifd_at) + pixels + struct.pack(f"<{c}H", *[bits] * c) + ifd


def icc(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", connection: bytes = b"XYZ ") -> bytes:
    """An ICC 2.4 profile of these tags (ICC.1:2001-04, section 6)."""
    at = 128 + 4 + 12 * len(tags)
    table, bodies = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += name + struct.pack(">II", at + len(bodies), len(body))
        bodies += body + b"\0" * (-len(body) % 4)
    white = struct.pack(">iii", *(round(value * 65536) for value in D50))
    head = struct.pack(">I4sI4s4s4s", at + len(bodies), b"\0" * 4, 0x02400000, kind, space, connection)
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + white
    return head.ljust(128, b"\0") + table + bodies


D50 = np.array([0.9642, 1.0, 0.8249])
# sRGB's primaries adapted to D50 (Bradford), as in the sRGB ICC profile; columns are R, G, B
SRGB_D50 = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
# Display P3's likewise
P3_D50 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])


def curve(gamma: float) -> bytes:
    """A curveType of one gamma."""
    return b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"


def xyz(values: np.ndarray) -> bytes:
    """An XYZType of one colour."""
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(float(value) * 65536) for value in values))


def matrix_profile(matrix: np.ndarray, gamma: float) -> bytes:
    """A display profile of three primaries and one gamma."""
    tags = {b"wtpt": xyz(D50)}
    for i, name in enumerate((b"r", b"g", b"b")):
        tags |= {name + b"XYZ": xyz(matrix[:, i]), name + b"TRC": curve(gamma)}
    return icc(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    """A grey display profile of one gamma."""
    return icc(b"GRAY", {b"wtpt": xyz(D50), b"kTRC": curve(gamma)})


def lut_profile(corners: np.ndarray) -> bytes:
    """A profile whose full-or-none mixtures have the Lab bytes `corners`: CMYK (2, 2, 2, 2, 3) or RGB (2, 2, 2, 3)."""
    channels = corners.ndim - 1
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    ramp = bytes(range(256))
    body = b"mft1\0\0\0\0" + struct.pack(">BBBB", channels, 3, 2, 0) + identity + ramp * channels
    body += corners.astype(np.uint8).tobytes() + ramp * 3
    tags = {b"wtpt": xyz(D50), b"A2B0": body, b"A2B1": body}  # perceptual, relative colorimetric
    return icc(b"CMYK", tags, b"prtr", b"Lab ") if channels == 4 else icc(b"RGB ", tags, b"scnr", b"Lab ")


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] as sRGB in [0, 255] (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def through_matrix(pixels: np.ndarray, matrix: np.ndarray, gamma: float) -> np.ndarray:
    """What a matrix profile means in sRGB, (H, W, 3) bytes to [0, 255] floats."""
    linear = (pixels / 255.0) ** gamma
    return encode_srgb(linear @ matrix.T @ np.linalg.inv(SRGB_D50).T)


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D50) as sRGB in [0, 255]."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], -1)
    xyz_values = D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return encode_srgb(xyz_values @ np.linalg.inv(SRGB_D50).T)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored rows upright: EXIF's row 0 and column 0 are at (top, left), (top, right), (bottom, right), ..."""
    return {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: p[::-1].swapaxes(0, 1),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: p[:, ::-1].swapaxes(0, 1),
    }[orientation](pixels)


def over(colour: np.ndarray, alpha: np.ndarray, background: np.ndarray = WHITE) -> np.ndarray:
    """Composited in float64; alpha in [0, 255]."""
    share = alpha / 255.0
    return share * colour + (1 - share) * background
