"""Tensors in safetensors files, written by name and read with suspicion.

A file is 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the tensors' bytes. The
reader believes no header: length, names, dtypes, shapes and offsets must account for every byte of the file once,
before any memory is taken. What a file is, its first bytes decide, never its suffix; pickle is refused unread.
`require` compares a header with the network that it is for, so that neither decides memory alone.

Behind that check the `safetensors` library reads: tensors lie mapped where the file's pages are, and take memory of
their own only where they are cast, moved or written to. Writing stays here: the library orders tensors and pads headers
as it likes, and every stored hash would change.

A network's names, shapes and dtypes without its memory: `skeleton(make)`, on the meta device and undrawn; `assign` puts
a file's tensors into such a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kuosan.errors import Error, shown
from kuosan.regular import open_regular
from kuosan.storage.files import explained, size_text

HEADER_LIMIT = 25_000_000  # bytes; the safetensors library's own is 100 MB, which as Python's objects is gigabytes
MOST_TENSORS = 20_000  # of one file; the largest published models have some thousands a file
_AT_ONCE = 1 << 22  # bytes hashed at a time
MARKS_LIMIT = 50 * MOST_TENSORS  # braces, brackets and commas of a header, each of which may become an object
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
_SAME = ("st_dev", "st_ino", "st_size", "st_mtime_ns")  # of a file, as long as nobody replaces or writes it
_PICKLES = {  # the first bytes of files that only unpickling could open
    b"PK\x03\x04": "a zip of pickled objects (torch.save)",
    b"\x1f\x8b": "a gzip file",
    **{bytes([0x80, protocol]): "a pickle (torch.save's old form)" for protocol in range(1, 6)},
}


class TensorPlace(NamedTuple):
    """Where a tensor lies in the file's data, as its header says."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


Header = Mapping[str, TensorPlace]


class FileHead(NamedTuple):
    """A file's header: its tensors in the order that it lists them, what else it says, and its own bytes."""

    places: dict[str, TensorPlace]
    metadata: dict[str, str]
    text: bytes


def kind(path: str | os.PathLike[str]) -> str:
    """What a file is by its first bytes: 'safetensors', 'unknown', or a phrase for one that holds pickle."""
    with explained(Path(path), doing="read"), open_regular(path) as stream:
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


def write_parts(
    path: str | os.PathLike[str],
    places: Iterable[TensorPlace],
    tensor_of: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    text: bytes = b"",
) -> Iterator[int]:
    """Write a file tensor by tensor, each asked for when its turn comes; yields the bytes of each as it is written.

    Args:
        places: name, dtype and shape of each, in the order in which they are written.
        text: the header's own bytes, of a file that is written again as it was.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end, order = 0, list(places)
    for place in order:
        start, end = end, end + math.prod(place.shape) * place.dtype.itemsize
        header[place.name] = {"dtype": _NAMES[place.dtype], "shape": list(place.shape), "data_offsets": [start, end]}
    if not text:
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=1 << 20) as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for place in order:
            tensor = tensor_of(place.name).detach()
            assert (tensor.dtype, tuple(tensor.shape)) == (place.dtype, place.shape), (place, tensor.shape)
            flat = tensor.cpu().contiguous().reshape(-1)
            if flat.numel():
                stream.write(flat.view(torch.uint8).numpy().data)
            yield flat.numel() * flat.element_size()


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors`, each whole and in its own dtype; tensors that share memory are written once each.

    The file is neither atomic nor fsynced: write into a `files.staged` folder, which also explains a full disk.
    """
    with open(path, "wb", buffering=1 << 20) as stream:
        for part in _content(tensors):
            stream.write(part)


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """The hex sha256 of the file that `write` makes of `tensors`; no file is written."""
    digest = hashlib.sha256()
    for part in _content(tensors):
        digest.update(part)
    return digest.hexdigest()


def _content(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, part by part."""
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
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped as `read_hashed` maps them.

    Raises: Error that names the file, the tensor and what is wrong.
    """
    return read_hashed(path)[0]


def read_header(path: str | os.PathLike[str]) -> dict[str, TensorPlace]:
    """What a safetensors file holds, by name, without reading it.

    Raises: Error that names the file, the tensor and what is wrong.
    """
    return read_head(path).places


def read_head(path: str | os.PathLike[str]) -> FileHead:
    """The whole header of a safetensors file, checked as `read_header` checks it. Raises: Error, as it."""
    path = Path(path)
    if (found := kind(path)) != "safetensors":
        raise Error(not_weights(path, found))
    with explained(path, doing="read"), open_regular(path) as stream:
        return _head(path, stream, hashlib.sha256())


def read_hashed(
    path: str | os.PathLike[str], check: Callable[[Header], None] = lambda _: None
) -> tuple[dict[str, Tensor], str]:
    """The tensors, mapped, and the sha256 of the file's bytes, which is known before any of them is used.

    What is written to a tensor stays this process's own. Whoever keeps tensors for long copies them: a file that
    another process cuts short under its mapping ends this one.

    Args:
        check: called with the header before memory is taken; it raises an `Error` where that is not what is wanted.

    Raises:
        Error: the file is damaged, is no safetensors, or was changed while it was read.
    """
    path = Path(path)
    if (found := kind(path)) != "safetensors":
        raise Error(not_weights(path, found))
    sha256 = hashlib.sha256()
    with explained(path, doing="read"), open_regular(path) as stream:
        places = _head(path, stream, sha256).places
        check(places)
        before = os.fstat(stream.fileno())
        buffer = memoryview(bytearray(min(_AT_ONCE, max((place.end for place in places.values()), default=0))))
        left = before.st_size - stream.tell()
        while left:
            part = buffer[: min(left, len(buffer))]
            _fill(stream, part, path)
            sha256.update(part)
            left -= len(part)
        try:
            with safe_open(path, framework="pt") as mapped:
                after = os.stat(path)
                tensors = {name: _aligned(mapped.get_tensor(name)) for name in places}
        except SafetensorError as error:
            raise Error(f"{path}: its header is not the JSON of safetensors ({shown(str(error), 200)}).") from None
        if any(getattr(before, name) != getattr(after, name) for name in _SAME):
            raise Error(f"{path} was replaced while it was read; is something else writing it?")
    return tensors, sha256.hexdigest()


def _aligned(tensor: Tensor) -> Tensor:
    """A tensor whose file begins it at a multiple of its element, as ours do; else a copy."""
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def require(wanted: Mapping[str, Tensor], found: Header, what: str, *, ignored: tuple[str, ...] = ()) -> None:
    """Refuse a file whose tensors are not a network's, before any is read.

    Args:
        wanted: the network's state dict, on the meta device where it is not made yet.
        what: begins the message: a file's name.
        ignored: beginnings of names that the file may have beside.

    Raises:
        Error: the first names that are missing, unknown, of another shape, or of another kind of numbers.
    """
    wrong = [f"{shown(name)} is missing" for name in wanted if name not in found]
    for name, place in found.items():
        own = wanted.get(name)
        if own is None:
            if not name.startswith(ignored or ("\0",)):
                wrong.append(f"{shown(name)} is unknown")
        elif tuple(own.shape) != place.shape:
            wrong.append(f"{shown(name)} has the shape {shown(place.shape)}, not {shown(tuple(own.shape))}")
        elif not _converts(place.dtype, own.dtype):
            wrong.append(f"{shown(name)} is of {_NAMES[place.dtype]}, not {_NAMES.get(own.dtype, own.dtype)}")
    if wrong:
        more = f", and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
        raise Error(f"{what}: the weights do not fit the network: {'; '.join(wrong[:3])}{more}.")


_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _converts(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether numbers of one dtype are taken for another's: floats for floats, whole ones for whole ones."""
    return given == wanted or any(given in kind and wanted in kind for kind in (_FLOATS, _WHOLE))


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


def _head(path: Path, stream: Any, sha256: Any) -> FileHead:
    """The header, checked so that its tensors cover every byte after it exactly once."""
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(8)
    if len(start) < 8:
        raise Error(f"{path} is cut short: it has {size} bytes.")
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
    marks = sum(text.count(mark) for mark in (b"{", b"[", b","))
    if marks > MARKS_LIMIT:
        raise Error(
            f"{path}: its header lists far more than {MOST_TENSORS:,} tensors, which is the most that is read of one "
            f"file ({marks:,} braces, brackets and commas in {size_text(length)}); it is damaged, or nothing of ours."
        )
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_twice)
        metadata = header.pop("__metadata__", None) or {}
        if not all(type(value) is str for value in metadata.values()):
            raise ValueError("its __metadata__ holds something else than texts by name")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Error(
            f"{path}: its header is not the JSON of safetensors ({shown(str(error))}); it is damaged."
        ) from None
    if len(header) > MOST_TENSORS:
        raise Error(f"{path}: its header lists {len(header):,} tensors; {MOST_TENSORS:,} are read of one file at most.")
    places = {name: _place(path, name, entry) for name, entry in header.items()}
    end = 0
    for place in sorted(places.values(), key=lambda place: (place.start, place.end)):
        if place.start != end:
            how = "overlaps the tensor before it" if place.start < end else "leaves a gap before it"
            raise Error(
                f"{path}: tensor {shown(place.name)} {how} (offset {shown(place.start)}, not {end}); it is damaged."
            )
        end = place.end
    if 8 + length + end != size:
        state = "is cut short" if 8 + length + end > size else "has bytes that belong to no tensor"
        raise Error(f"{path} {state}: {size} bytes instead of {8 + length + end}; copy it again.")
    return FileHead(places, metadata, bytes(text))


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _place(path: Path, name: str, entry: Any) -> TensorPlace:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, start, end))
        # a shape of [2^60, 2^60, 0] has no number, and yet strides beyond 64 bits: torch would raise, or worse
        spanned = math.prod(max(1, side) for side in shape) if whole and len(shape) <= 64 else 1 << 63
        if spanned * dtype.itemsize < 1 << 63 and end - start == math.prod(shape) * dtype.itemsize:
            return TensorPlace(name, dtype, shape, start, end)
    raise Error(
        f"{path}: tensor {shown(name)} is impossible: {shown(entry, 200)}; dtypes are {', '.join(DTYPES)}, "
        "and the offsets must span the shape."
    )


class _NoDraws(TorchFunctionMode):
    """Initial weights are left out: on the meta device each would be a slow call for nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def undrawn(make: Callable[[], nn.Module]) -> Any:
    """The network that `make` makes, every tensor on the meta device, of no bytes."""
    with _NoDraws(), torch.device("meta"):
        return make()


def skeleton(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Its state dict."""
    state: dict[str, Tensor] = undrawn(make).state_dict()
    return state


def assign(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give an undrawn network its tensors as they lie, without a copy; only those of another dtype are converted.

    Raises:
        RuntimeError: they are not its own, as `load_state_dict` says it.
    """
    own = network.state_dict()
    network.load_state_dict(
        {name: value.to(own[name].dtype) if name in own else value for name, value in tensors.items()}, assign=True
    )
