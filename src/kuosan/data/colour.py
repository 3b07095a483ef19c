"""Which colour a file's numbers mean: a curve for each channel and three primaries, and the way to sRGB.

    linear = curve(value), sRGB = encode(M · linear), M = inv(sRGB to XYZ) · (source to XYZ), XYZ adapted to D50

Made from an ICC profile of curves and primaries, from PNG's gAMA and cHRM, or from the code points of ITU-T H.273
(PNG's cICP, AVIF's nclx). Profiles of another kind (tables, CMYK) are left to LittleCMS; see `decoding`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from kuosan.data.headers import Refused
from kuosan.data.pixels import bands

KEPT = 1 << 17  # bytes of a profile that is remembered
LEVELS = 65536  # entries of a curve: one a 16-bit value
SAME = 1.0  # levels of 255 within which a curve counts as sRGB's own
STEEP = 5.0  # levels of 255 that neighbouring bytes may lie apart before LittleCMS is off by more than 2
GAMMA_SLACK = 0.05  # libpng's threshold: a gamma nearer to the screen's than this is the screen's
D50 = np.array([0.9642, 1.0, 0.8249])
SRGB = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])  # to XYZ of D50
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D65_XY = (0.3127, 0.3290)
PRIMARIES = {  # ITU-T H.273, table 2: x, y of red, green, blue, white
    1: (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *D65_XY),
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *D65_XY),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65_XY),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65_XY),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65_XY),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *D65_XY),
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *D65_XY),
}
VIDEO = (1, 2, 6, 13, 14, 15)  # transfers that viewers show as sRGB's: BT.709 and its kin, unspecified, sRGB


@dataclass(frozen=True, eq=False)
class Space:
    """What a value means: linear light by `curves` (1 or 3 of `LEVELS` float32), of primaries that `matrix` changes."""

    curves: tuple[np.ndarray, ...]
    matrix: np.ndarray | None = None  # (3, 3) linear light to linear sRGB; None where the primaries are sRGB's

    @cached_property
    def bytes_of(self) -> tuple[np.ndarray, ...]:
        """Each curve as sRGB levels in [0, 255], (LEVELS,) float32: what a value alone is shown as."""
        return tuple(255 * encoded(curve) for curve in self.curves)

    @cached_property
    def is_srgb(self) -> bool:
        """Whether nothing would change by more than `SAME`."""
        own = np.linspace(0, 255, LEVELS)
        near = all(np.abs(shown - own).max() <= SAME for shown in self.bytes_of)
        return near and (self.matrix is None or bool(np.abs(self.matrix - np.eye(3)).max() < 0.01))

    @cached_property
    def is_steep(self) -> bool:
        """Whether neighbouring bytes are shown far apart, as with linear light: 16 bits are needed where there are."""
        return any(np.abs(np.diff(shown[::257])).max() > STEEP for shown in self.bytes_of)

    def shown(self, values: np.ndarray) -> np.ndarray:
        """Values (H, W, 1 or 3) uint8 or uint16 as sRGB bytes of the same shape."""
        step = 257 if values.dtype == np.uint8 else 1
        out = np.empty(values.shape, np.uint8)
        grey = values.shape[2] == 1
        tables = self.bytes_of if self.matrix is None or grey else self.curves
        tables = tuple(np.ascontiguousarray(table[::step]) for table in tables) * (3 // len(tables))
        if self.matrix is None or grey:
            levels = [np.rint(table).astype(np.uint8) for table in tables]
            for c in range(values.shape[2]):
                out[..., c] = levels[c][values[..., c]]
            return out
        for rows in bands(values):
            part = values[rows]
            light = np.stack([tables[c][part[..., c]] for c in range(3)], 2) @ self.matrix.T.astype(np.float32)
            out[rows] = np.rint(255 * encoded(light)).astype(np.uint8)
        return out


def encoded(light: np.ndarray) -> np.ndarray:
    """Linear light as sRGB values in [0, 1] (IEC 61966-2-1); light outside [0, 1] is clipped."""
    light = np.clip(light, 0, 1)
    low: np.ndarray = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return low


def decoded(values: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] as linear light."""
    light: np.ndarray = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return light


def of_gamma(gamma: float, chromaticities: tuple[float, ...] | None) -> Space | None:
    """What PNG's gAMA (the encoding's exponent) says, with cHRM (x, y of white, red, green, blue) beside it.

    None where it says sRGB: an exponent within 5 % of 1/2.2, which is what the screen undoes, and its primaries.
    """
    if not 0.01 < gamma < 100:
        return None  # no exponent: ignored, as the specification wants of an unreasonable chunk
    matrix = None
    if chromaticities is not None:
        white, red, green, blue = (chromaticities[i : i + 2] for i in range(0, 8, 2))
        matrix = _matrix((*red, *green, *blue, *white))
    same = matrix is None or np.abs(matrix - np.eye(3)).max() < 0.01
    if same:
        matrix = None
    if abs(gamma * 2.2 - 1) <= GAMMA_SLACK:
        if same:
            return None
        gamma = 1 / 2.2
    return Space((_power(1 / gamma),), matrix)


def of_code_points(primaries: int, transfer: int) -> Space | None:
    """What the code points of ITU-T H.273 say; None where they say sRGB, or nothing (2).

    Raises:
        Refused: light beyond white (PQ, HLG), or code points that no standard has given a meaning.
    """
    if transfer in (16, 18):
        kind = {16: "PQ", 18: "HLG"}[transfer]
        raise Refused(f"high dynamic range ({kind}): nobody has agreed which value is white; save it as sRGB")
    values = np.linspace(0, 1, LEVELS)
    curve = {4: _power(2.2), 5: _power(2.8), 8: values.astype(np.float32)}.get(transfer)
    if curve is None and transfer not in VIDEO:
        raise Refused(f"colour of transfer {transfer} (ITU-T H.273), which is not read; save it as sRGB")
    if primaries not in PRIMARIES and primaries != 2:
        raise Refused(f"colour of primaries {primaries} (ITU-T H.273), which are not read; save it as sRGB")
    matrix = None if primaries in (1, 2) else _matrix(PRIMARIES[primaries])
    if curve is None and matrix is None:
        return None
    return Space((decoded(values).astype(np.float32) if curve is None else curve,), matrix)


def of_profile(profile: bytes) -> Space | None:
    """What an ICC profile of curves (and primaries) says; None where it is of another kind, or damaged."""
    return _kept(profile) if len(profile) <= KEPT else _kept.__wrapped__(profile)


@lru_cache(maxsize=16)
def _kept(profile: bytes) -> Space | None:
    try:
        return _of_profile(profile)
    except (struct.error, ValueError, IndexError, KeyError, OverflowError, np.linalg.LinAlgError):
        return None


def _of_profile(profile: bytes) -> Space | None:
    kind, connection = profile[16:20], profile[20:24]
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {}
    for i in range(min(count, 100)):
        name, at, size = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        tags[name] = memoryview(profile)[at : at + size]
    if connection != b"XYZ " or any(name in tags for name in (b"A2B0", b"A2B1", b"A2B2", b"D2B1")):
        return None
    if kind == b"GRAY":
        return Space((_curve(tags[b"kTRC"]),))
    if kind != b"RGB ":
        return None
    columns = [np.array(struct.unpack_from(">iii", tags[name], 8)) / 65536 for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
    matrix = np.linalg.inv(SRGB) @ np.stack(columns, 1)
    return Space(tuple(_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")), matrix)


def _curve(tag: memoryview) -> np.ndarray:
    """A curveType or parametricCurveType (ICC.1:2022, 10.6 and 10.18) at `LEVELS` values, float32."""
    x = np.linspace(0, 1, LEVELS)
    if bytes(tag[:4]) == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            return x.astype(np.float32)
        points = np.frombuffer(tag, ">u2", count, 12)
        if count == 1:
            return _power(float(points[0]) / 256)
        return np.interp(x, np.linspace(0, 1, count), points / 65535.0).astype(np.float32)
    if bytes(tag[:4]) != b"para":
        raise ValueError("no curve")
    (function,) = struct.unpack_from(">H", tag, 8)
    count = (1, 3, 4, 5, 7)[function]
    g, a, b, c, d, e, f = [v / 65536 for v in struct.unpack_from(f">{count}i", tag, 12)] + [0.0] * (7 - count)
    if function == 0:
        return _power(g)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if function in (1, 2):
            above, low = x >= -b / a, np.full_like(x, c)
            high = (a * x + b) ** g + c
        else:
            above, low = x >= d, c * x + f
            high = (a * x + b) ** g + e
    return np.clip(np.where(above, high, low), 0, 1).astype(np.float32)


def _power(exponent: float) -> np.ndarray:
    curve: np.ndarray = (np.linspace(0, 1, LEVELS) ** exponent).astype(np.float32)
    return curve


def _matrix(xy: tuple[float, ...]) -> np.ndarray:
    """Linear light of primaries and white (x, y of red, green, blue, white) to linear sRGB, adapted by Bradford."""
    if any(not 0 < y < 1 for y in xy[1::2]):
        raise Refused("primaries that are no colours (cHRM); save it as sRGB")
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in zip(xy[::2], xy[1::2])]).T
    white = columns[:, 3]
    try:
        to_xyz = columns[:, :3] * np.linalg.solve(columns[:, :3], white)
    except np.linalg.LinAlgError:
        raise Refused("primaries that are no colours (cHRM); save it as sRGB") from None
    adapt = np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / (BRADFORD @ white)) @ BRADFORD
    matrix: np.ndarray = np.linalg.inv(SRGB) @ adapt @ to_xyz
    return matrix
