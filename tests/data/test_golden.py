"""The golden set: what every sample's number means in every format, within 2/255 of a float64 reference made from the
format's specification, or refused by name. Files are written here from the specifications (`golden_files`)."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from golden_files import bmp_file, boxes_changed, gif_file, numbers, png_file, tiff_file
from made_files import (
    P3_D50,
    SRGB_D50,
    chunk,
    encode_srgb,
    grey_profile,
    lab_to_srgb,
    matrix_profile,
    saved,
    smooth,
    through_matrix,
    turned,
)
from PIL import Image

from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.data.decoding import decode, decode_image, opacity, read_header
from kuosan.data.headers import Refused

UNDER = np.array([200.0, 40.0, 90.0])  # the background
BACKGROUND = (200, 40, 90)
H, W = 9, 11
Case = tuple[bytes, np.ndarray, np.ndarray | None]  # file, colour in [0, 255] (H, W, 1 or 3), alpha in [0, 1] (H, W, 1)
CASES: dict[str, Callable[[], Case]] = {}
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {}


def shown(colour: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """What is seen of it on the background."""
    return colour if alpha is None else alpha * colour + (1 - alpha) * UNDER


# PNG: every colour type at every depth, plain and interlaced, with and without a transparent colour
KINDS = {0: ((1, 2, 4, 8, 16), 1), 2: ((8, 16), 3), 3: ((1, 2, 4, 8), 1), 4: ((8, 16), 2), 6: ((8, 16), 4)}
PALETTE = numbers(256, 1, 3, 255, "palette")[:, 0]


def png_case(kind: int, depth: int, interlaced: bool = False, clear: str = "", before: bytes = b"") -> Case:
    white = 2**depth - 1
    values = numbers(H, W, KINDS[kind][1], white, f"png {kind} {depth}")
    alpha = None
    if kind == 3:
        before += chunk(b"PLTE", PALETTE[: white + 1].astype(np.uint8).tobytes())
        colour = PALETTE[values[..., 0]].astype(float)
        if clear:
            alphas = np.full(256, 255)
            alphas[: min(3, white + 1)] = [0, 128, 60][: min(3, white + 1)]
            before += chunk(b"tRNS", bytes(alphas[: min(3, white + 1)].tolist()))
            alpha = alphas[values] / 255
    else:
        count = {0: 1, 4: 1}.get(kind, 3)
        colour = values[..., :count] * 255 / white
        alpha = values[..., count:] / white if kind in (4, 6) else None
        if clear:
            wanted = values[3, 4]
            high = 0 if clear == "low bits" else (0xFFFF << depth) & 0xFFFF  # which do not count
            before += chunk(b"tRNS", struct.pack(f">{count}H", *(int(v) | high for v in wanted)))
            alpha = 1.0 - (values == wanted).all(2, keepdims=True)
    return png_file(values, depth, kind, before, interlaced), colour, alpha


for kind, (depths, _) in KINDS.items():
    for depth in depths:
        for interlaced in (False, True):
            tail = ", interlaced" if interlaced else ""
            CASES[f"PNG type {kind}, {depth} bits{tail}"] = lambda k=kind, d=depth, i=interlaced: png_case(k, d, i)
            if kind in (0, 2, 3):
                CASES[f"PNG type {kind}, {depth} bits, clear{tail}"] = lambda k=kind, d=depth, i=interlaced: png_case(
                    k, d, i, "low bits"
                )
for depth in (1, 2, 4, 8):
    CASES[f"PNG grey {depth} bits, clear, bits beyond the depth set"] = lambda d=depth: png_case(0, d, clear="high")
for name, body in ((b"sBIT", b"\5"), (b"bKGD", b"\0\7"), (b"hIST", b"\0\1"), (b"pHYs", b"\0\0\0\1\0\0\0\2\0")):
    CASES[f"PNG {name.decode()} changes nothing"] = lambda n=name, b=body: png_case(0, 8, before=chunk(n, b))


def by_gamma(case: Case, gamma: float, matrix: np.ndarray | None = None) -> Case:
    """Colour of a file whose gAMA is `gamma`: sample ** (1 / gamma) is linear light; alpha is left."""
    content, colour, alpha = case
    linear = (colour / 255) ** (1 / gamma)
    return content, encode_srgb(linear if matrix is None else linear @ matrix.T), alpha


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100000)))


D65 = np.array([0.3127, 0.3290])
SRGB_XY, P3_XY, REC2020_XY = (
    np.array(xy) for xy in (((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
                            ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)))
)  # fmt: skip


def to_xyz(primaries: np.ndarray, white: np.ndarray = D65) -> np.ndarray:
    """Linear light of these primaries to XYZ of its white (SMPTE RP 177)."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    target = np.array([white[0] / white[1], 1, (1 - white[0] - white[1]) / white[1]])
    return columns * np.linalg.solve(columns, target)


def to_srgb(primaries: np.ndarray) -> np.ndarray:
    """Both have the white of D65: no adaptation is needed."""
    return np.linalg.inv(to_xyz(SRGB_XY)) @ to_xyz(primaries)


def chrm(primaries: np.ndarray) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(100000 * v) for v in (*D65, *primaries.reshape(-1)))))


for gamma in (1.0, 1 / 1.8, 0.5, 1 / 2.6):
    for kind, depth in ((0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 4), (4, 8), (4, 16), (6, 8), (6, 16)):
        CASES[f"PNG type {kind}, {depth} bits, gamma {gamma:.3f}"] = lambda g=gamma, k=kind, d=depth: by_gamma(
            png_case(k, d, before=gama(g)), g
        )
for kind, depth in ((0, 8), (0, 16), (2, 8), (2, 16), (6, 8)):
    CASES[f"PNG type {kind}, {depth} bits, gamma 1/2.2 is sRGB's"] = lambda k=kind, d=depth: png_case(
        k, d, before=gama(0.45455)
    )
    CASES[f"PNG type {kind}, {depth} bits, sRGB before gamma"] = lambda k=kind, d=depth: png_case(
        k, d, before=chunk(b"sRGB", b"\0") + gama(1.0)
    )
for kind, depth in ((2, 16), (0, 16), (0, 2)):
    CASES[f"PNG type {kind}, {depth} bits, gamma 1.0, clear"] = lambda k=kind, d=depth: by_gamma(
        png_case(k, d, clear="low bits", before=gama(1.0)), 1.0
    )
for depth in (8, 16):
    CASES[f"PNG rgb {depth} bits, gamma 1.0 and P3 (cHRM)"] = lambda d=depth: by_gamma(
        png_case(2, d, before=gama(1.0) + chrm(P3_XY)), 1.0, to_srgb(P3_XY)
    )
    CASES[f"PNG rgb {depth} bits, gamma 1/2.2 and P3 (cHRM)"] = lambda d=depth: by_gamma(
        png_case(2, d, before=gama(0.45455) + chrm(P3_XY)), 1 / 2.2, to_srgb(P3_XY)
    )
CASES["PNG cHRM without gamma says nothing"] = lambda: png_case(2, 8, before=chrm(P3_XY))
CASES["PNG gamma of 0 says nothing"] = lambda: png_case(2, 8, before=gama(0))


def cicp(primaries: int, transfer: int, full: int = 1) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, 0, full]))


def by_srgb_curve(case: Case, primaries: np.ndarray) -> Case:
    content, colour, alpha = case
    v = colour / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return content, encode_srgb(linear @ to_srgb(primaries).T), alpha


for depth in (8, 16):
    CASES[f"PNG rgb {depth} bits, cICP sRGB"] = lambda d=depth: png_case(2, d, before=cicp(1, 13) + gama(1.0))
    CASES[f"PNG rgb {depth} bits, cICP P3"] = lambda d=depth: by_srgb_curve(
        png_case(2, d, before=cicp(12, 13) + chunk(b"sRGB", b"\0")), P3_XY
    )
    CASES[f"PNG rgb {depth} bits, cICP BT.2020 linear"] = lambda d=depth: by_gamma(
        png_case(2, d, before=cicp(9, 8)), 1.0, to_srgb(REC2020_XY)
    )
REFUSED["PNG cICP PQ"] = (lambda: png_case(2, 16, before=cicp(9, 16))[0], "high dynamic range")
REFUSED["PNG cICP HLG"] = (lambda: png_case(2, 16, before=cicp(9, 18))[0], "high dynamic range")
REFUSED["PNG cICP of video's range"] = (lambda: png_case(2, 8, before=cicp(1, 13, 0))[0], "video's range")


def iccp(profile: bytes, name: bytes = b"any") -> bytes:
    return chunk(b"iCCP", name + b"\0\0" + zlib.compress(profile))


def profiled(case: Case, gamma: float, matrix: np.ndarray = SRGB_D50) -> Case:
    content, colour, alpha = case
    wide = np.repeat(colour, 3, 2) if colour.shape[2] == 1 else colour
    return content, through_matrix(wide, matrix, gamma)[..., : colour.shape[2]], alpha


for kind, depth in ((2, 8), (2, 16), (3, 4), (6, 8), (6, 16)):
    for gamma in (1.0, 1.8):
        CASES[f"PNG type {kind}, {depth} bits, profile P3 of gamma {gamma}"] = lambda k=kind, d=depth, g=gamma: (
            profiled(png_case(k, d, before=iccp(matrix_profile(P3_D50, g)) + gama(0.3)), g, P3_D50)
        )
for kind, depth in ((0, 1), (0, 4), (0, 8), (0, 16), (4, 8), (4, 16)):
    for gamma in (1.0, 1.8):
        CASES[f"PNG type {kind}, {depth} bits, grey profile of gamma {gamma}"] = lambda k=kind, d=depth, g=gamma: (
            profiled(png_case(k, d, before=iccp(grey_profile(g))), g)
        )
        CASES[f"PNG type {kind}, {depth} bits, colour profile of gamma {gamma}"] = lambda k=kind, d=depth, g=gamma: (
            profiled(png_case(k, d, before=iccp(matrix_profile(SRGB_D50, g))), g)
        )
CASES["PNG rgb, a linear profile that calls itself sRGB"] = lambda: profiled(
    png_case(2, 8, before=iccp(matrix_profile(SRGB_D50, 1.0) + b"Linear sRGB", b"sRGB linear")), 1.0
)


def exif(turn: int) -> bytes:
    return chunk(b"eXIf", b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, turn, 0) + b"\0" * 4)


for kind, depth, clear in ((2, 16, "low bits"), (0, 2, "low bits"), (3, 4, "low bits"), (6, 16, "")):
    for turn in (3, 5, 6, 8):

        def turned_png(k: int = kind, d: int = depth, c: str = clear, t: int = turn) -> Case:
            content, colour, alpha = png_case(k, d, clear=c, before=exif(t))
            return content, turned(colour, t), None if alpha is None else turned(alpha, t)

        CASES[f"PNG type {kind}, {depth} bits, orientation {turn}"] = turned_png

# TIFF: every depth of grey, both zeros, both byte orders, planes, palettes, floats, inks, alpha
RAW, DEFLATE, PACKBITS = 1, 8, 32773


def tiff_case(bits: int, photometric: int, samples: int = 1, name: str = "", **options: object) -> Case:
    white = 2**bits - 1
    values = numbers(H, W, samples, white, f"tiff {bits} {samples} {name}")
    colour = values * 255 / white
    colour = 255 - colour if photometric == 0 else colour
    return tiff_file(values, photometric, bits, **options), colour, None  # type: ignore[arg-type]


for bits in range(1, 17):
    for zero in (0, 1):
        for order in "<>":
            CASES[f"TIFF grey {bits} bits, white is {1 - zero}, {order}"] = lambda b=bits, z=zero, o=order: tiff_case(
                b, z, order=o
            )
for bits in (1, 2, 4, 8, 10, 12, 16):
    CASES[f"TIFF grey {bits} bits, packed bits"] = lambda b=bits: tiff_case(b, 1, compression=PACKBITS)
    CASES[f"TIFF grey {bits} bits, deflated"] = lambda b=bits: tiff_case(b, 0, compression=DEFLATE)
    CASES[f"TIFF grey {bits} bits, fill order 2"] = lambda b=bits: tiff_case(b, 1, fill=2)
    CASES[f"TIFF grey {bits} bits, tiles"] = lambda b=bits: tiff_case(b, 1, tile=16)
    CASES[f"TIFF grey {bits} bits, big"] = lambda b=bits: tiff_case(b, 1, big=True)
for bits in (1, 2, 4, 5, 8, 10, 12, 14, 16):
    for planar in (False, True):
        for order in "<>":
            CASES[f"TIFF rgb {bits} bits{', planes' if planar else ''}, {order}"] = lambda b=bits, p=planar, o=order: (
                tiff_case(b, 2, 3, planar=p, order=o)
            )
for bits in (8, 16):
    for samples in (1, 3):
        for planar in (False, True) if samples == 3 else (False,):
            CASES[f"TIFF {bits} bits x {samples}, predictor{', planes' if planar else ''}"] = (
                lambda b=bits, s=samples, p=planar: tiff_case(
                    b, 2 if s == 3 else 1, s, compression=DEFLATE, predictor=2, planar=p, order="<"
                )
            )
for turn in (2, 5, 6, 7):

    def turned_tiff(t: int = turn, bits: int = 12) -> Case:
        content, colour, _ = tiff_case(bits, 1, more=[(274, 3, [t])])
        return content, turned(colour, t), None

    CASES[f"TIFF 12 bits, orientation {turn}"] = turned_tiff
    CASES[f"TIFF 16 bits, orientation {turn}"] = lambda t=turn, make=turned_tiff: make(t, 16)
CASES["TIFF statistics of samples change nothing"] = lambda: tiff_case(8, 1, more=[(280, 3, [20]), (281, 3, [90])])


def tiff_alpha(bits: int, samples: int, extra: int, planar: bool) -> Case:
    white = 2**bits - 1
    colour = numbers(H, W, samples, white, f"extra {bits}").astype(float)
    alpha = numbers(H, W, 1, white, f"alpha {bits}").astype(float)
    stored = np.rint(colour * alpha / white) if extra == 1 else colour
    if extra == 1:  # what can be known of the colour again
        colour = np.divide(stored * white, alpha, out=np.zeros_like(stored), where=alpha > 0)
    values = np.concatenate([stored, alpha], 2).astype(np.int64)
    content = tiff_file(values, 2 if samples == 3 else 1, bits, extra=[extra], planar=planar)
    return content, colour * 255 / white, None if extra == 0 else alpha / white


for bits in (4, 8, 12, 16):
    for samples in (1, 3):
        for extra in (0, 1, 2):
            for planar in (False, True):
                CASES[f"TIFF {bits} bits x {samples}, extra {extra}{', planes' if planar else ''}"] = (
                    lambda b=bits, s=samples, e=extra, p=planar: tiff_alpha(b, s, e, p)
                )


def tiff_palette(bits: int, wide: bool, alpha: bool = False, **options: object) -> Case:
    count = 2**bits
    table = numbers(count, 1, 3, 65535 if wide else 255, f"colours {bits}")[:, 0]
    values = numbers(H, W, 1, count - 1, f"indices {bits}")
    stored, seen = values, None
    if alpha:
        opaque = numbers(H, W, 1, count - 1, "palette's alpha")
        stored, seen = np.concatenate([values, opaque], 2), opaque / (count - 1)
        options["extra"] = [2]
    content = tiff_file(stored, 3, bits, more=[(320, 3, table.T.reshape(-1).tolist())], **options)  # type: ignore[arg-type]
    return content, table[values[..., 0]] / (257 if wide else 1), seen


for bits in (1, 2, 4, 8):
    CASES[f"TIFF palette {bits} bits"] = lambda b=bits: tiff_palette(b, True)
    CASES[f"TIFF palette {bits} bits, deflated"] = lambda b=bits: tiff_palette(b, True, compression=DEFLATE)
    CASES[f"TIFF palette {bits} bits, colours as bytes"] = lambda b=bits: tiff_palette(b, False)
CASES["TIFF palette with alpha"] = lambda: tiff_palette(8, True, True)


def tiff_float(bits: int, photometric: int, samples: int, **options: object) -> Case:
    values = (numbers(H, W, samples, 10000, f"float {bits}") / 10000).astype(f"f{bits // 8}")
    colour = values.astype(float) * 255
    return (
        tiff_file(values, photometric, bits, **options),  # type: ignore[arg-type]
        255 - colour if photometric == 0 else colour,
        None,
    )


for bits in (16, 32, 64):
    for zero, samples in ((0, 1), (1, 1), (2, 3)):
        for order in "<>":
            CASES[f"TIFF float {bits} bits, photometric {zero}, {order}"] = lambda b=bits, z=zero, s=samples, o=order: (
                tiff_float(b, z, s, order=o)
            )
    CASES[f"TIFF float {bits} bits, planes"] = lambda b=bits: tiff_float(b, 2, 3, planar=True)
    CASES[f"TIFF float {bits} bits, predictor 3"] = lambda b=bits: tiff_float(b, 2, 3, compression=DEFLATE, predictor=3)


def tiff_inks(bits: int, planar: bool) -> Case:
    white = 2**bits - 1
    inks = numbers(H, W, 4, white, f"inks {bits}")
    share = inks / white
    return tiff_file(inks, 5, bits, planar=planar), 255 * (1 - share[..., :3]) * (1 - share[..., 3:]), None


for bits in (4, 8, 12, 16):
    for planar in (False, True):
        CASES[f"TIFF inks {bits} bits{', planes' if planar else ''}"] = lambda b=bits, p=planar: tiff_inks(b, p)


def tiff_ycbcr(planar: bool, compression: int) -> Case:
    y, cb, cr = np.moveaxis(numbers(H, W, 3, 255, "ycbcr").astype(float), 2, 0)
    colour = np.stack([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
                       y + 1.772 * (cb - 128)], 2)  # fmt: skip
    values = np.stack([y, cb, cr], 2).astype(np.int64)
    content = tiff_file(values, 6, 8, planar=planar, compression=compression, more=[(530, 3, [1, 1])])
    return content, np.clip(colour, 0, 255), None


CASES["TIFF YCbCr"] = lambda: tiff_ycbcr(False, RAW)
CASES["TIFF YCbCr, planes"] = lambda: tiff_ycbcr(True, RAW)


def tiff_lab(planar: bool) -> Case:
    lab = np.stack([np.full((H, W), 60.0), np.full((H, W), 20.0), np.full((H, W), -30.0)], 2)
    stored = np.stack([lab[..., 0] * 2.55, lab[..., 1] % 256, lab[..., 2] % 256], 2).round().astype(np.int64)
    return tiff_file(stored, 8, 8, planar=planar), lab_to_srgb(lab), None


CASES["TIFF Lab"], CASES["TIFF Lab, planes"] = lambda: tiff_lab(False), lambda: tiff_lab(True)


def icc_tag(profile: bytes) -> list[tuple[int, int, list[int]]]:
    return [(34675, 7, list(profile))]


for bits in (8, 12, 16):
    CASES[f"TIFF grey {bits} bits, grey profile of gamma 1"] = lambda b=bits: profiled(
        tiff_case(b, 1, more=icc_tag(grey_profile(1.0))), 1.0
    )
    CASES[f"TIFF rgb {bits} bits, profile P3 of gamma 1"] = lambda b=bits: profiled(
        tiff_case(b, 2, 3, more=icc_tag(matrix_profile(P3_D50, 1.0))), 1.0, P3_D50
    )
CASES["TIFF float with a profile of gamma 1"] = lambda: profiled(
    tiff_float(32, 1, 1, more=icc_tag(grey_profile(1.0))), 1.0
)
for name, options, words in (
    ("signed 8 bits", {"bits": 8, "photometric": 1, "more": [(339, 3, [2])]}, "signed integers"),
    ("signed 16 bits", {"bits": 16, "photometric": 1, "more": [(339, 3, [2])]}, "signed integers"),
    ("samples of no format", {"bits": 8, "photometric": 1, "more": [(339, 3, [4])]}, "no format"),
    ("complex", {"bits": 32, "photometric": 1, "more": [(339, 3, [6])]}, "complex"),
    ("24 bits", {"bits": 24, "photometric": 1}, "24-bit integers"),
    ("32 bits", {"bits": 32, "photometric": 1}, "32-bit integers"),
    ("a transparency mask", {"bits": 1, "photometric": 4}, "transparency mask"),
    ("a camera's filter array", {"bits": 16, "photometric": 32803}, "raw file"),
    ("ICC Lab", {"bits": 8, "photometric": 9, "samples": 3}, "ICC Lab"),
    ("inks of other names", {"bits": 8, "photometric": 5, "samples": 4, "more": [(332, 3, [2])]}, "InkSet"),
    ("inks of another range", {"bits": 8, "photometric": 5, "samples": 4, "more": [(336, 3, [16, 235])]}, "DotRange"),
    ("packed YCbCr", {"bits": 8, "photometric": 6, "samples": 3}, "not read"),
    ("a reduced copy", {"bits": 8, "photometric": 1, "more": [(254, 4, [1])]}, "reduced copy"),
    ("unknown compression of 12 bits", {"bits": 12, "photometric": 0, "more": [(259, 3, [5])]}, "not read"),
    ("several depths", {"bits": 8, "photometric": 2, "samples": 3, "more": [(258, 3, [5, 6, 5])]}, "several depths"),
):  # fmt: skip

    def refused_tiff(options: dict[str, object] = options) -> bytes:
        given = dict(options)
        bits, zero, samples = (int(given.pop(key, 1)) for key in ("bits", "photometric", "samples"))  # type: ignore[call-overload]
        return tiff_file(numbers(H, W, samples, 2 ** min(bits, 30) - 1, "refused"), zero, bits, **given)  # type: ignore[arg-type]

    REFUSED[f"TIFF of {name}"] = (refused_tiff, words)
for value in (-0.002, 1.01, np.nan, np.inf):
    REFUSED[f"TIFF float with {value}"] = (
        lambda v=value: tiff_file(np.array([[[0.5], [v]]], np.float32), 1, 32),
        r"outside \[0, 1\]|NaN",
    )

# BMP: palettes, masks, runs, both directions
for bits in (1, 2, 4, 8):
    for head in (12, 40, 108, 124):
        for top_down in (False, True) if head == 40 else (False,):

            def bmp_palette(b: int = bits, head: int = head, top_down: bool = top_down) -> Case:
                indices = numbers(H, W, 1, 2**b - 1, f"bmp {b}")[..., 0]
                return bmp_file(indices, b, PALETTE[: 2**b], head=head, top_down=top_down), PALETTE[indices] * 1.0, None

            CASES[f"BMP palette {bits} bits, header {head}{', from the top' if top_down else ''}"] = bmp_palette
TWO = np.array([[0, 0, 0], [255, 255, 255]])
RAMP = np.arange(256)[:, None].repeat(3, 1)
for name, bits, table in (
    ("two colours", 8, TWO),
    ("two colours", 4, TWO),
    ("two colours", 1, TWO),
    ("white first", 1, TWO[::-1]),
    ("dark greys", 4, RAMP[:16]),
    ("greys", 8, RAMP),
    ("ten colours", 8, PALETTE[:10]),
):

    def bmp_few(b: int = bits, table: np.ndarray = table) -> Case:
        indices = numbers(H, W, 1, len(table) - 1, f"few {b}")[..., 0]
        return bmp_file(indices, b, table, colours=len(table)), table[indices] * 1.0, None

    CASES[f"BMP {bits} bits, {name}"] = bmp_few


def bmp_masks(bits: int, masks: tuple[int, ...], head: int = 40, usual: bool = False) -> Case:
    words = numbers(H, W, 1, 2**bits - 1, f"masks {bits}")[..., 0]
    low = [(mask & -mask).bit_length() - 1 for mask in masks]
    channels = np.stack([((words & mask) >> shift) / (mask >> shift) for mask, shift in zip(masks, low) if mask], 2)
    content = bmp_file(words, bits, masks=() if usual else masks, head=head)
    return content, channels[..., :3] * 255, channels[..., 3:] if channels.shape[2] == 4 else None


CASES["BMP 16 bits, 555"] = lambda: bmp_masks(16, (0x7C00, 0x3E0, 0x1F), usual=True)
CASES["BMP 16 bits, 565"] = lambda: bmp_masks(16, (0xF800, 0x7E0, 0x1F))
CASES["BMP 16 bits, 4444"] = lambda: bmp_masks(16, (0xF00, 0xF0, 0xF, 0xF000), head=56)
CASES["BMP 16 bits, 1555"] = lambda: bmp_masks(16, (0x7C00, 0x3E0, 0x1F, 0x8000), head=108)
CASES["BMP 32 bits"] = lambda: bmp_masks(32, (0xFF0000, 0xFF00, 0xFF), usual=True)
CASES["BMP 32 bits, red lowest"] = lambda: bmp_masks(32, (0xFF, 0xFF00, 0xFF0000))
CASES["BMP 32 bits, alpha"] = lambda: bmp_masks(32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), head=108)
CASES["BMP 32 bits, alpha, header 124"] = lambda: bmp_masks(32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), head=124)
CASES["BMP 32 bits, 10 bits a channel"] = lambda: bmp_masks(32, (0x3FF00000, 0xFFC00, 0x3FF))
CASES["BMP 24 bits"] = lambda: (
    bmp_file(numbers(H, W, 3, 255, "bmp 24")[..., ::-1], 24),
    numbers(H, W, 3, 255, "bmp 24") * 1.0,
    None,
)


def bmp_runs(four: bool) -> Case:
    """Two rows of runs, literals of an odd number, a jump, and the end: pixels that are jumped over have colour 0."""
    want = np.zeros((3, 8), np.int64)
    if four:
        data = b"\x05\x12" + b"\x00\x03\x34\x50" + b"\0\0"  # 1 2 1 2 1 | 3 4 5
        data += b"\0\2\3\0" + b"\x02\x66" + b"\0\0" + b"\x08\x78" + b"\0\1"
        want[2], want[1, 3:5], want[0] = [1, 2, 1, 2, 1, 3, 4, 5], 6, [7, 8] * 4
    else:
        data = b"\x05\x21" + b"\x00\x03\x04\x05\x06\x00" + b"\0\0"
        data += b"\0\2\3\0" + b"\x02\x66" + b"\0\0" + b"\x08\x78" + b"\0\1"
        want[2], want[1, 3:5], want[0] = [0x21] * 5 + [4, 5, 6], 0x66, 0x78
    bits = 4 if four else 8
    return bmp_file(want, bits, PALETTE[: 2**bits], compression=2 if four else 1, data=data), PALETTE[want] * 1.0, None


CASES["BMP runs of 8 bits"], CASES["BMP runs of 4 bits"] = lambda: bmp_runs(False), lambda: bmp_runs(True)
REFUSED["BMP whose masks overlap"] = (lambda: bmp_file(np.zeros((2, 2)), 16, masks=(0xF800, 0xF800, 0x1F)), "masks")
REFUSED["BMP cut short"] = (lambda: bmp_file(np.zeros((9, 9)), 8, PALETTE)[:-20], "cut short")

# GIF: a clear colour, a local palette, a first image smaller than the screen
INDICES = numbers(H, W, 1, 255, "gif")[..., 0]
CASES["GIF"] = lambda: (gif_file(INDICES, PALETTE), PALETTE[INDICES] * 1.0, None)
CASES["GIF local palette"] = lambda: (gif_file(INDICES, PALETTE, local=True), PALETTE[INDICES] * 1.0, None)
for local in (False, True):
    for clear in (0, 77):
        CASES[f"GIF colour {clear} clear{', local palette' if local else ''}"] = lambda c=clear, l=local: (
            gif_file(np.where(INDICES % 3 == 0, c, INDICES), PALETTE, c, local=l),
            PALETTE[INDICES] * 1.0,
            1.0 - ((INDICES % 3 == 0) | (c == INDICES))[..., None],
        )
    for clear in (None, 77):

        def gif_part(clear: int | None = clear, local: bool = local) -> Case:
            colour, alpha = np.zeros((H + 5, W + 6, 3)), np.zeros((H + 5, W + 6, 1))
            colour[2 : 2 + H, 4 : 4 + W] = PALETTE[INDICES]
            alpha[2 : 2 + H, 4 : 4 + W, 0] = 1.0 if clear is None else 1.0 * (clear != INDICES)
            content = gif_file(INDICES, PALETTE, clear, (4, 2), (W + 6, H + 5), local, background=9)
            return content, colour, alpha

        CASES[f"GIF smaller than its screen, clear {clear}{', local palette' if local else ''}"] = gif_part
CASES["GIF grey palette, smaller than its screen"] = lambda: (
    gif_file(INDICES, RAMP, None, (0, 0), (W + 2, H)),
    np.pad(RAMP[INDICES] * 1.0, ((0, 0), (0, 2), (0, 0))),
    np.pad(np.ones((H, W, 1)), ((0, 0), (0, 2), (0, 0))),
)


# PNM: every maxval means white
def pnm(kind: int, maxval: int, plain: bool) -> Case:
    samples = 3 if kind == 3 else 1
    values = numbers(H, W, samples, maxval, f"pnm {maxval}")
    head = f"P{kind if plain else kind + 3}\n# a comment\n{W} {H}\n{maxval}\n".encode()
    if plain:
        return head + " ".join(map(str, values.reshape(-1))).encode(), values * 255 / maxval, None
    return head + values.astype(">u2" if maxval > 255 else "u1").tobytes(), values * 255 / maxval, None


for maxval in (1, 2, 3, 7, 15, 100, 254, 255, 256, 1000, 1023, 4095, 65534, 65535):
    for kind in (2, 3):
        for plain in (False, True):
            CASES[f"PNM P{kind if plain else kind + 3}, maxval {maxval}"] = lambda k=kind, m=maxval, p=plain: pnm(
                k, m, p
            )
BITS = numbers(H, W, 1, 1, "pbm")
CASES["PNM P1, 1 is black"] = lambda: (
    f"P1\n{W} {H}\n{' '.join(map(str, BITS.reshape(-1)))}\n".encode(),
    255.0 * (1 - BITS),
    None,
)
CASES["PNM P4, 1 is black"] = lambda: (
    f"P4\n{W} {H}\n".encode() + np.packbits(BITS[..., 0].astype(np.uint8), axis=1).tobytes(),
    255.0 * (1 - BITS),
    None,
)
for order, scale in (("<", b"-1.0"), (">", b"1.0")):
    CASES[f"PFM {order}"] = lambda o=order, s=scale: (
        b"Pf\n%d %d\n%s\n" % (W, H, s) + (numbers(H, W, 1, 1000, "pfm")[::-1] / 1000).astype(f"{o}f4").tobytes(),
        numbers(H, W, 1, 1000, "pfm") * 0.255,
        None,
    )
REFUSED["PFM of another scale"] = (lambda: b"Pf\n1 1\n-2.0\n" + struct.pack("<f", 0.5), "scale")
REFUSED["PAM"] = (
    lambda: b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\n\0",
    "not an image",
)


# JPEG: inks and their mark, RGB kept
def adobe_free(content: bytes) -> bytes:
    at = content.index(b"\xff\xee")
    return content[:at] + content[at + 2 + struct.unpack(">H", content[at + 2 : at + 4])[0] :]


CASES["JPEG rgb, not YCbCr"] = lambda: (
    saved(smooth(), "JPEG", quality=100, keep_rgb=True),
    smooth() * 1.0,
    None,
)
CASES["JPEG inks, Adobe's"] = lambda: (
    saved(Image.merge("CMYK", [Image.fromarray(c) for c in np.moveaxis(smooth(), 2, 0)] + [Image.new("L", (48, 32))]),
          "JPEG", quality=100, subsampling=0),
    255.0 - smooth(),
    None,
)  # fmt: skip
REFUSED["JPEG inks without Adobe's mark"] = (
    lambda: adobe_free(saved(Image.fromarray(smooth()).convert("CMYK"), "JPEG")),
    "Adobe",
)
CASES["JPEG grey with a profile of colour"] = lambda: profiled(
    (saved(smooth()[..., :1], "JPEG", quality=100, icc_profile=matrix_profile(SRGB_D50, 1.8)), smooth()[..., :1], None),
    1.8,
)

# WebP and AVIF
ALPHA = (np.arange(32)[:, None] * 8 + np.zeros(48)).astype(np.uint8)[..., None]
RGBA = np.concatenate([smooth(), ALPHA], 2)
CASES["WebP alpha"] = lambda: (saved(RGBA, "WEBP", lossless=True, exact=True), smooth() * 1.0, ALPHA / 255)
CASES["WebP alpha and profile"] = lambda: profiled(
    (
        saved(RGBA, "WEBP", lossless=True, exact=True, icc_profile=matrix_profile(P3_D50, 1.8)),
        smooth() * 1.0,
        ALPHA / 255,
    ),
    1.8,
    P3_D50,
)


def avif(**options: object) -> bytes:
    return saved(smooth(), "AVIF", quality=100, subsampling="4:4:4", **options)


CASES["AVIF alpha"] = lambda: (saved(RGBA, "AVIF", quality=100, subsampling="4:4:4"), smooth() * 1.0, ALPHA / 255)


def seen(content: bytes) -> np.ndarray:
    """What Pillow's decoder gives of a file that loses: only what the numbers mean is under test."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image).astype(float)


CASES["AVIF profile"] = lambda: profiled(
    (avif(icc_profile=matrix_profile(P3_D50, 1.8)), seen(avif()), None), 1.8, P3_D50
)
CASES["AVIF P3 by code points"] = lambda: by_srgb_curve(
    (boxes_changed(avif(), b"nclx", struct.pack(">HH", 12, 13), 0), seen(avif()), None), P3_XY
)
CASES["AVIF BT.709 by code points is sRGB"] = lambda: (
    boxes_changed(avif(), b"nclx", struct.pack(">HH", 1, 1), 0),
    smooth() * 1.0,
    None,
)
for transfer in (16, 18):
    REFUSED[f"AVIF of transfer {transfer}"] = (
        lambda t=transfer: boxes_changed(avif(), b"nclx", struct.pack(">HH", 9, t), 0),
        "high dynamic range",
    )
for turn in range(2, 9):

    def turned_avif(t: int = turn) -> Case:
        tags = Image.Exif()
        tags[0x0112] = t
        return avif(exif=tags), turned(smooth(), t) * 1.0, None

    CASES[f"AVIF orientation {turn}, kept as irot and imir"] = turned_avif


def test_the_golden_set_has_at_least_250_files() -> None:
    assert len(CASES) >= 250 and len(REFUSED) >= 25


def matches(pixels: np.ndarray, want: np.ndarray) -> bool:
    """Whether every value is within 2/255."""
    return pixels.dtype == np.uint8 and pixels.shape[:2] == want.shape[:2] and bool(np.abs(pixels - want).max() <= 2)


@pytest.mark.parametrize("name", CASES)
def test_every_number_means_what_its_format_says(name: str) -> None:
    content, colour, alpha = CASES[name]()
    decoded, header = decode(content, BACKGROUND), read_header(content)
    assert (header.height, header.width) == colour.shape[:2]
    assert matches(decoded.pixels, shown(colour, alpha)), np.abs(decoded.pixels - shown(colour, alpha)).max()
    clear = opacity(content)
    assert (clear is None) == (alpha is None)
    assert alpha is None or np.abs(clear - 255 * alpha[..., 0]).max() <= 2  # type: ignore[operator]


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_agreed_meaning_is_refused_by_name(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(Refused, match=words):
        decode(make())


@pytest.mark.parametrize(("bits", "kind"), [(16, 2), (32, 2), (32, 1)])
def test_integers_without_a_white_are_read_where_the_range_is_given(bits: int, kind: int) -> None:
    values = numbers(H, W, 1, 3000, f"whole {bits}") - (1000 if kind == 2 else 0)
    content = tiff_file(values % (1 << bits), 1, bits, more=[(339, 3, [kind])])
    with pytest.raises(Refused, match="which value is white"):
        decode(content)
    got = decode(content, scale=(-500, 1500)).pixels
    assert matches(got, np.clip((values + 500) / 2000, 0, 1) * 255)
    assert read_header(content, scale=(-500, 1500)).width == W


def test_a_tiff_of_a_hostile_header_is_refused_at_once() -> None:
    good = numbers(4, 4, 1, 4095, "hostile")
    for more in ([(277, 4, [4_000_000_000])], [(322, 4, [4_000_000_000]), (323, 4, [9]), (324, 4, [8])]):
        with pytest.raises(Refused):
            decode(tiff_file(good, 1, 12, more=more))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(CASES)[::3])
def test_a_pillow_image_that_is_not_loaded_means_what_its_file_does(name: str) -> None:
    content, colour, alpha = CASES[name]()
    try:
        image = Image.open(io.BytesIO(content))
    except OSError:
        return  # Pillow does not open it, so no data set has such an item
    assert matches(decode_image(image, BACKGROUND).pixels, shown(colour, alpha))


COLOUR = numbers(H, W, 3, 255, "memory").astype(np.uint8)
CLEAR = numbers(H, W, 1, 255, "memory's alpha").astype(np.uint8)
GREY = COLOUR[..., :1]
LEVELS = numbers(H, W, 1, 65535, "memory of 16 bits").astype(np.uint16)


def image_of(mode: str, *planes: np.ndarray, **info: object) -> Image.Image:
    image = Image.frombytes(mode, (W, H), np.ascontiguousarray(np.concatenate(planes, 2)).tobytes())
    image.info |= info
    return image


def multiplied(colour: np.ndarray) -> np.ndarray:
    return np.rint(colour * (CLEAR / 255.0)).astype(np.uint8)


def indexed(mode: str, *planes: np.ndarray, **info: object) -> Image.Image:
    image = image_of(mode, *planes, **info)
    image.putpalette(PALETTE.astype(np.uint8).tobytes())
    return image


SEEN_GREY, SEEN = shown(GREY, CLEAR / 255), shown(COLOUR, CLEAR / 255)
YCC = COLOUR @ np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]).T
MEMORY: dict[str, Callable[[], tuple[Image.Image, np.ndarray]]] = {
    "1": lambda: (Image.fromarray(GREY[..., 0] > 127), 255.0 * (GREY > 127)),
    "L": lambda: (image_of("L", GREY), GREY),
    "L, one level clear": lambda: (image_of("L", GREY, transparency=0), np.where(GREY == 0, UNDER, GREY)),
    "LA": lambda: (image_of("LA", GREY, CLEAR), SEEN_GREY),
    "La": lambda: (image_of("La", multiplied(GREY), CLEAR), SEEN_GREY),
    "P": lambda: (indexed("P", GREY), PALETTE[GREY[..., 0]]),
    "P, one colour clear": lambda: (
        indexed("P", GREY, transparency=0),
        np.where(GREY == 0, UNDER, PALETTE[GREY[..., 0]]),
    ),
    "P, alpha a colour": lambda: (
        indexed("P", GREY, transparency=bytes(range(256))),
        shown(PALETTE[GREY[..., 0]], GREY / 255),
    ),
    "PA": lambda: (indexed("PA", GREY, CLEAR), shown(PALETTE[GREY[..., 0]], CLEAR / 255)),
    "RGB": lambda: (image_of("RGB", COLOUR), COLOUR),
    "RGB, one colour clear": lambda: (
        image_of("RGB", COLOUR, transparency=tuple(int(v) for v in COLOUR[2, 2])),
        np.where((COLOUR[2, 2] == COLOUR).all(2, keepdims=True), UNDER, COLOUR),
    ),
    "RGBA": lambda: (image_of("RGBA", COLOUR, CLEAR), SEEN),
    "RGBa": lambda: (image_of("RGBa", multiplied(COLOUR), CLEAR), SEEN),
    "RGBX": lambda: (image_of("RGBX", COLOUR, CLEAR), COLOUR),
    "CMYK": lambda: (image_of("CMYK", 255 - COLOUR, 0 * GREY), COLOUR),
    "YCbCr": lambda: (image_of("YCbCr", np.rint(YCC + [0, 128, 128]).clip(0, 255).astype(np.uint8)), COLOUR),
    "I;16": lambda: (Image.fromarray(LEVELS[..., 0]), LEVELS / 257.0),
    "I;16B": lambda: (Image.frombytes("I;16B", (W, H), LEVELS.astype(">u2").tobytes()), LEVELS / 257.0),
    "F": lambda: (Image.fromarray((LEVELS / 65535).astype(np.float32)[..., 0]), LEVELS / 257.0),
    "L, a grey profile": lambda: (
        image_of("L", GREY, icc_profile=grey_profile(1.0)),
        encode_srgb(GREY / 255.0),
    ),
    "RGB, a profile": lambda: (
        image_of("RGB", COLOUR, icc_profile=matrix_profile(P3_D50, 1.8)),
        through_matrix(COLOUR, P3_D50, 1.8),
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_a_pillow_image_in_memory_means_what_its_mode_says(name: str) -> None:
    image, want = MEMORY[name]()
    assert np.abs(decode_image(image, BACKGROUND).pixels - want.astype(float)).max() <= 2
    items = [(image.copy(), 0), (image.copy(), 1)]
    config = DataConfig(path="mine", size=16, resize="centre", background="#c8285a", hold_out=0)
    got = open_images(items, config).pixels(1)[3 : 3 + H, 2 : 2 + W].astype(float)
    assert np.abs(got - want).max() <= 2


def test_the_orientation_of_an_image_in_memory_is_applied_once() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    image = Image.open(io.BytesIO(saved(smooth(), "PNG", exif=tags)))
    image.load()
    for each in (image, image.copy()):
        assert matches(decode_image(each).pixels, turned(smooth(), 6))


@pytest.mark.parametrize("image", [Image.new("I", (4, 4), 70000), Image.new("F", (4, 4), 7.5)], ids=["I", "F"])
def test_an_image_in_memory_without_a_white_is_refused(image: Image.Image) -> None:
    with pytest.raises(Refused, match="which value is white"):
        decode_image(image)


def test_a_folder_a_zip_and_a_python_data_set_read_the_same_file_alike(tmp_path: Path) -> None:
    names = [name for name in CASES if any(mark in name for mark in ("12 bits", "clear", "gamma", "white is 1"))][::6]
    folder = tmp_path / "files"
    folder.mkdir()
    contents = [CASES[name]()[0] for name in names]
    for i, content in enumerate(contents):
        (folder / f"{i:03}").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "files.zip", "w") as file:
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
    settings = {"size": 16, "resize": "centre", "channels": "rgb", "hold_out": 0, "background": "#c8285a"}
    found = [
        open_images(DataConfig(path=str(path), workers=0, **settings))  # type: ignore[arg-type]
        for path in (folder, tmp_path / "files.zip")
    ]
    one, other = ({images.name(i): images.pixels(i) for i in range(len(images))} for images in found)
    assert len(one) == len(names) > 10 and one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    opened = [(i, Image.open(io.BytesIO(c))) for i, c in enumerate(contents) if not c.startswith((b"II", b"MM"))]
    items = open_images([image for _, image in opened], DataConfig(path="mine", **settings))  # type: ignore[arg-type]
    assert len(items) > 5
    assert all((items.pixels(n) == one[f"{i:03}"]).all() for n, (i, _) in enumerate(opened))


def test_a_set_whose_files_are_read_otherwise_than_before_is_another_and_others_stay(tmp_path: Path) -> None:
    # what the version before gave: an old run on the first goes on, one on the second, then nearly black, is refused
    plain = png_file(np.full((8, 8, 1), 200), 8, 0)
    changed = tiff_file(np.full((8, 8, 1), 4095), 1, 12)
    (tmp_path / "a.png").write_bytes(plain)
    config = DataConfig(path=str(tmp_path), hold_out=0, split_version=1)
    assert open_images(config).fingerprint == "30cc4d182c38a5f0eee23725b981585d"
    (tmp_path / "a.png").write_bytes(changed)
    assert open_images(config).fingerprint != "2611580cd0c71f26938b196a40edc30b"
