"""What files say of their numbers that Pillow passes over: PNG's chunks, AVIF's properties, a GIF's screen."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from PIL import Image, ImageFile

from kuosan.data.colour import of_code_points, of_gamma, of_profile
from kuosan.data.headers import Refused, avif_properties
from kuosan.data.layers import VIEWS, Layers, Part, of_image
from kuosan.data.pixels import tiles


def endless_jpeg(content: bytes) -> Image.Image | None:
    """A JPEG that lacks the marker at its end (EOI), loaded; None where more of it is missing.

    Its pixels are whole if they do not depend on what might follow: the same with the marker put there at once, and
    after bits of two patterns, which would become pixels. Scans that were to refine it must be there, too.
    """
    if not _is_refined(content):
        return None
    content, found, prints = content.rstrip(b"\xff"), None, set[str]()  # half of the marker may be there
    for follows in (b"\xaa" * 64, b"\x55" * 64, b""):
        found = Image.open(io.BytesIO(content + follows + b"\xff\xd9"), formats=["JPEG"])
        try:
            found.load()
        except OSError:
            return None
        digest = blake2b(digest_size=16)
        for top in range(0, found.height, 256):
            digest.update(found.crop((0, top, found.width, min(top + 256, found.height))).tobytes())
        prints.add(digest.hexdigest())
        if len(prints) > 1:
            return None
    return found


def _is_refined(content: bytes) -> bool:
    """Whether the scans of a JPEG give each component every coefficient to its last bit (ITU-T T.81, G.1.1)."""
    left: dict[int, set[int]] = {}
    at, progressive = 2, False
    while 0 <= (at := content.find(b"\xff", at)) < len(content) - 3:
        mark = content[at + 1]
        if mark in (0x00, 0x01, 0xFF) or 0xD0 <= mark <= 0xD9:
            at += 1 if mark == 0xFF else 2
            continue
        (size,) = struct.unpack_from(">H", content, at + 2)
        body = content[at + 4 : at + 2 + size]
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC) and len(body) > 5:
            progressive = mark in (0xC2, 0xC6, 0xCA, 0xCE)
            left = {part: set(range(64)) for part in body[6 : 6 + 3 * body[5] : 3]}
        elif mark == 0xDA and body and len(body) >= 4 + 2 * body[0]:
            first, last, bit = body[-3:] if progressive else (0, 63, 0)
            for part in body[1 : 1 + 2 * body[0] : 2]:
                if bit & 15 == 0:
                    left.get(part, set()).difference_update(range(first, last + 1))
        at += 2 + max(size, 2)
    return bool(left) and not any(left.values())


def png_colour(layers: Layers, chunks: dict[bytes, bytes], info: dict[str | tuple[int, int], object]) -> None:
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


def png_clear(layers: Layers, chunks: dict[bytes, bytes], clear: object) -> object:
    """tRNS in the values that Pillow gives: it scales samples of 2 and 4 bits, and forgets to scale the clear one."""
    depth, kind = chunks[b"IHDR"][8:10]
    if clear is None or kind != 0 or depth == 16:
        return clear
    (value,) = struct.unpack_from(">H", chunks[b"tRNS"])
    if depth in (2, 4) or value >> depth:
        layers.reading = 2
    return (value & (1 << depth) - 1) * 255 // ((1 << depth) - 1)  # only the low bits count


def wide_png(layers: Layers, chunks: dict[bytes, bytes], content: bytes) -> bool:
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
    layers.profile, layers.reading = profile, 2
    if kind == 4:  # the same bytes are also an image of four channels of 8 bits
        both = _as_raw(content, "RGBA", "RGBA")
        layers.size, layers.parts = (both.height, both.width), of_image(both, _two_bytes)
        return True
    mode = "RGB" if kind == 2 else "RGBA"
    first = _as_raw(content, mode, f"{mode};16B")
    layers.size = first.height, first.width
    # The high bytes wait where the result will be written: nothing else of the image's size is held beside Pillow's
    layers.upright = layers.room(3)
    high = VIEWS[layers.turn](layers.upright) if layers.turn in VIEWS else layers.upright
    opaque = None if kind == 2 else np.empty((*layers.size, 1), np.uint8)
    for top, left, bottom, right in tiles(*layers.size):
        piece = np.asarray(first.crop((left, top, right, bottom)))
        high[top:bottom, left:right] = piece[..., :3]
        if opaque is not None:
            opaque[top:bottom, left:right] = piece[..., 3:]
    first.close()
    del first
    low = _as_raw(content, mode, f"{mode};16L")

    def parts() -> Iterator[Part]:
        for top, left, bottom, right in tiles(*layers.size):
            box, piece = (slice(top, bottom), slice(left, right)), np.asarray(low.crop((left, top, right, bottom)))
            colour = (high[box].astype(np.uint16) << 8) | piece[..., :3]
            if opaque is not None:
                yield Part(top, left, colour, (opaque[box].astype(np.uint16) << 8) | piece[..., 3:])
            elif clear is not None:
                same = (colour == np.array(clear, np.uint16)).all(2, keepdims=True)
                yield Part(top, left, colour, np.where(same, np.uint8(0), np.uint8(255)))
            else:
                yield Part(top, left, colour)

    layers.parts = parts
    return True


def _two_bytes(piece: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Grey and alpha of 16 bits that were read as four bytes."""
    pixels = np.asarray(piece)
    wide = (pixels[..., ::2].astype(np.uint16) << 8) | pixels[..., 1::2]
    return wide[..., :1], wide[..., 1:]


def _as_raw(content: bytes, mode: str, raw: str) -> Image.Image:
    """A PNG's samples laid out as if it were of another mode: 16 bits' low bytes, where Pillow gives the high."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        assert isinstance(image, ImageFile.ImageFile)
        image._mode = mode
        image.tile = [image.tile[0]._replace(args=raw)]
        image.load()
        return image


def avif_colour(layers: Layers, content: bytes, info: dict[str | tuple[int, int], object]) -> None:
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


def uncover(layers: Layers, box: tuple[int, int, int, int]) -> None:
    """A GIF's screen outside its first image is clear, as viewers show it."""
    if next(layers.parts()).alpha is None:
        layers.reading = 2
    left, top, right, bottom = box
    covered = layers.parts

    def parts() -> Iterator[Part]:
        for y, x, colour, alpha in covered():
            h, w = colour.shape[:2]
            seen = np.zeros((h, w, 1), np.uint8) if alpha is None else np.zeros_like(alpha)
            inside = slice(max(0, top - y), max(0, bottom - y)), slice(max(0, left - x), max(0, right - x))
            seen[inside] = 255 if alpha is None else alpha[inside]
            yield Part(y, x, colour, seen)

    layers.parts = parts
