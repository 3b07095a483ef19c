"""What a header may promise: refusals that Pillow does not make, or makes only after reserving the memory."""

from __future__ import annotations

import struct

from kuosan.errors import Error

TIFF_SPARE = 1 << 20


class Refused(Error):
    """A file that is no picture to learn from; `str(refused)` is the reason, without the file's name."""


def check_header(content: bytes) -> None:
    """Refuse what would cost memory as the file is opened.

    Raises:
        Refused: a TIFF whose tags point at more bytes than the file can honestly hold.
    """
    if content[:4] in (b"II*\0", b"MM\0*"):
        _check_tiff(content)


def _check_tiff(content: bytes) -> None:
    """Tags may all point at the same bytes, so their sum is not bounded by the file: 65,535 tags of a megabyte each."""
    order = "<" if content[:2] == b"II" else ">"
    if len(content) < 8:
        return
    (at,) = struct.unpack_from(order + "L", content, 4)
    if at + 2 > len(content):
        return
    (count,) = struct.unpack_from(order + "H", content, at)
    widths = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
    total = 0
    for i in range(min(count, (len(content) - at - 2) // 12)):
        _, kind, length = struct.unpack_from(order + "HHL", content, at + 2 + 12 * i)
        size = widths.get(kind, 1) * length
        total += size if size <= len(content) else 0  # Pillow skips a tag larger than the file
    if total > 2 * len(content) + TIFF_SPARE:
        raise Refused(f"too large: its tags promise {total:,} bytes, the file has {len(content):,}")
