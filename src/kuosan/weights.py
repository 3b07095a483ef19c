"""Tensors in safetensors files, written by name and read with suspicion.

A file is 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the tensors' bytes. The
reader believes no header: length, names, dtypes, shapes and offsets must account for every byte of the file once,
before any memory is taken. What a file is, its first bytes decide, never its suffix; pickle is refused unread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kuosan.errors import Error
from kuosan.files import explained, size_text

HEADER_LIMIT = 100_000_000  # bytes; the safetensors library's own limit
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PICKLES = {  # the first bytes of files that only unpickling could open
    b"PK\x03\x04": "a zip of pickled objects (torch.save)",
    b"\x1f\x8b": "a gzip file",
    **{bytes([0x80, protocol]): "a pickle (torch.save's old form)" for protocol in range(1, 6)},
}


class _Place(NamedTuple):
    """Where a tensor lies in the file's data, as its header says."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def kind(path: str | os.PathLike[str]) -> str:
    """What a file is by its first bytes: 'safetensors', 'unknown', or a phrase for one that holds pickle."""
    with explained(Path(path), doing="read"), open(path, "rb") as stream:
        head = stream.read(265)
        size = os.fstat(stream.fileno()).st_size
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= HEADER_LIMIT and 8 + length <= size:
        return "safetensors"  # also of a header of 896 bytes, say, whose length begins as a pickle does
    for magic, phrase in _PICKLES.items():
        if head.startswith(magic):
            return phrase
    if head[257:262] == b"ustar":
        return "a tar archive (torch.save's oldest form)"
    return "safetensors" if head[8:9] == b"{" else "unknown"


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of a file that holds `tensors`, within a few hundred a tensor."""
    return sum(tensor.numel() * tensor.element_size() + 256 for tensor in tensors.values()) + 64


def unwritable(values: Mapping[str, object]) -> str | None:
    """The name of the first value that a safetensors file cannot hold, and what it is; None if there is none."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            return f"{name!r} is a {type(value).__name__}"
        if value.dtype not in _NAMES:
            return f"{name!r} is {str(value.dtype).removeprefix('torch.')}"
    return None


def first_nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor.detach().float() if tensor.element_size() < 4 else tensor.detach())
            if not (math.isfinite(low) and math.isfinite(high)):
                return name
    return None


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors`, each whole and in its own dtype; tensors that share memory are written once each.

    The file is neither atomic nor fsynced: write into a `files.staged` folder, which also explains a full disk.
    """
    # The widest dtypes first, so that every tensor starts at a multiple of its element.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=1 << 20) as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                stream.write(flat.view(torch.uint8).numpy().data)


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each in memory of its own.

    Raises: Error that names the file, the tensor and what is wrong.
    """
    return read_hashed(path)[0]


def read_hashed(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors, and the sha256 of the very bytes they were made from."""
    path = Path(path)
    if (found := kind(path)) != "safetensors":
        raise Error(not_weights(path, found))
    tensors: dict[str, Tensor] = {}
    sha256 = hashlib.sha256()
    with explained(path, doing="read"), open(path, "rb", buffering=0) as stream:
        for place in sorted(_places(path, stream, sha256), key=lambda place: (place.start, place.end)):
            flat = torch.empty(place.end - place.start, dtype=torch.uint8)
            if flat.numel():
                view = flat.numpy()
                _fill(stream, view.data, path)
                sha256.update(view.data)
            tensors[place.name] = flat.view(place.dtype).reshape(place.shape)
    return tensors, sha256.hexdigest()


def not_weights(path: Path, found: str) -> str:
    """The sentence about a file that is no safetensors."""
    if found == "unknown":
        return f"{path} is not a safetensors file (or its start is damaged); give one, or a run's folder."
    return (
        f"{path} is {found}, which can run code when opened: kuosan never opens it, whatever its suffix. "
        "Ask its author for safetensors, or convert it where you trust it (safetensors.torch.save_file)."
    )


def _fill(stream: Any, view: memoryview, path: Path) -> None:
    """Read exactly len(view) bytes; one read gives 2 GB at most."""
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
            raise Error(f"{path} became shorter while it was read; is something else writing it?")
        done += count


def _places(path: Path, stream: Any, sha256: Any) -> list[_Place]:
    """The header, checked so that its tensors cover every byte after it exactly once."""
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(8)
    length = struct.unpack("<Q", start)[0]
    if length > HEADER_LIMIT:
        raise Error(
            f"{path}: its header claims {size_text(length)}, more than {size_text(HEADER_LIMIT)}; it is damaged."
        )
    if 8 + length > size:
        raise Error(f"{path} is cut short: its header alone needs {8 + length} bytes, the file has {size}.")
    text = bytearray(length)
    _fill(stream, memoryview(text), path)
    sha256.update(start)
    sha256.update(text)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_twice)
        header.pop("__metadata__", None)
    except (ValueError, AttributeError, RecursionError) as error:
        raise Error(f"{path}: its header is not the JSON of safetensors ({error}); it is damaged.") from None
    places = [_place(path, name, entry) for name, entry in header.items()]
    end = 0
    for place in sorted(places, key=lambda place: (place.start, place.end)):
        if place.start != end:
            how = "overlaps the tensor before it" if place.start < end else "leaves a gap before it"
            raise Error(f"{path}: tensor {place.name!r} {how} (offset {place.start}, not {end}); it is damaged.")
        end = place.end
    if 8 + length + end != size:
        state = "is cut short" if 8 + length + end > size else "has bytes that belong to no tensor"
        raise Error(f"{path} {state}: {size} bytes instead of {8 + length + end}; copy it again.")
    return places


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _place(path: Path, name: str, entry: Any) -> _Place:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
        if whole and len(shape) <= 64 and end - start == math.prod(shape) * dtype.itemsize:
            return _Place(name, dtype, shape, start, end)
    raise Error(
        f"{path}: tensor {name!r} is impossible: {str(entry)[:200]}; dtypes are {', '.join(DTYPES)}, "
        "and the offsets must span the shape."
    )
