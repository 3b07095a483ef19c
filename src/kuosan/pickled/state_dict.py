"""Plain tensors out of `torch.save` files (.pt, .pth, .bin), without unpickling: a machine of 40 opcodes, and no more.

It knows dicts, lists, tuples, numbers, texts and tensors. The names of classes and functions in the file are compared
with a short list and never looked up; anything else is refused. Sizes are the file's own: a tensor's bytes lie in it,
once, uncompressed. TorchScript archives are code and refused, as is what NumPy or a user's own class has pickled.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kuosan.errors import Error, shown
from kuosan.files import explained
from kuosan.pickled.machine import Machine, Refused, Storage, View
from kuosan.regular import read_regular

MOST_BYTES = 16 << 30  # of a file; it is read whole
_WRONG = (ValueError, TypeError, LookupError, AttributeError, RecursionError, RuntimeError, ArithmeticError, EOFError)
_DAMAGE = (*_WRONG, struct.error, zipfile.BadZipFile)  # what reading a damaged file may raise
_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles that torch.save wrote before it wrote zips


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a `torch.save` file by name, and the file's SHA-256; groups of them by dotted names.

    Raises:
        Error: unreadable, damaged, code, or anything but tensors by name.
    """
    with explained(path, doing="read"):
        content = read_regular(path, MOST_BYTES)
    try:
        found = _zipped(content) if content[:4] == b"PK\x03\x04" else _old(content)
    except Refused as error:
        reason = str(error)
    except _DAMAGE as error:
        reason = shown(str(error) or type(error).__name__, 200)
    else:
        return found, hashlib.sha256(content).hexdigest()
    raise Error(f"{path} holds no plain tensors ({reason}): damaged, or code. Give a state dict.")


def _zipped(content: bytes) -> dict[str, Tensor]:
    """Of a zip: NAME/data.pkl, and NAME/data/KEY for each storage."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) > 200_000 or len(entries) != len(archive.infolist()):
            raise Refused("its zip lists names twice, or far too many")
        if any(name.endswith("constants.pkl") or "/code/" in name for name in entries):
            raise Refused("it is a TorchScript program")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise Refused("its zip is compressed, and torch.save's are not")
        if sum(entry.file_size for entry in entries.values()) > len(content):
            raise Refused("its zip claims more than it holds")
        main = next((name for name in entries if name.endswith("data.pkl") and name.count("/") <= 1), None)
        if main is None:
            raise Refused("it is a zip without data.pkl")
        folder = main.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in entries and archive.read(order) != b"little":
            raise Refused("its numbers are big-endian")
        tree = Machine(archive.read(main)).run()[0]
        raw: dict[str, bytearray] = {}

        def bytes_of(storage: Storage) -> bytearray:
            if storage.key not in raw:
                raw[storage.key] = bytearray(archive.read(f"{folder}data/{storage.key}"))
            return raw[storage.key]

        return _tensors(tree, bytes_of, 4 * len(content))


def _old(content: bytes) -> dict[str, Tensor]:
    """Of the form before zips: five pickles (magic, version, machine, tree, keys), then each storage with its count."""
    magic, at = Machine(content).run()
    if magic != _MAGIC:
        raise Refused("it does not begin as torch.save's files do")
    _, at = Machine(content, at).run()
    system, at = Machine(content, at).run()
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Refused("its numbers are big-endian")
    tree_machine = Machine(content, at)
    tree, at = tree_machine.run()
    keys, at = Machine(content, at).run()
    raw: dict[str, bytearray] = {}
    for key in keys:
        storage = tree_machine.storages[str(key)]
        (count,) = struct.unpack_from("<q", content, at)
        size = count * storage.dtype.itemsize
        if count < 0 or at + 8 + size > len(content):
            raise Refused("it is cut short")
        raw[str(key)] = bytearray(content[at + 8 : at + 8 + size])
        at += 8 + size
    return _tensors(tree, lambda storage: raw[storage.key], 4 * len(content))


def _tensors(tree: Any, bytes_of: Callable[[Storage], bytearray], room: int) -> dict[str, Tensor]:
    """The tensors of a dict, all together of at most `room` bytes: views may share numbers, but not without end."""
    found: dict[str, Tensor] = {}
    if not isinstance(tree, dict) or not tree:
        raise Refused(f"it holds {_kind(tree)}, not tensors by name")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, View):
            raise Refused(f"it holds a dict in which {shown(name)} is {_kind(value)}, not a tensor")
        found[name] = _tensor(name, value, bytes_of)
        room -= found[name].nbytes
        if room < 0:
            raise Refused("its tensors have far more numbers than the file")
    return found


def _kind(value: Any) -> str:
    return "a tensor without a name" if isinstance(value, View) else f"a {type(value).__name__.strip('_').lower()}"


def _tensor(name: str, view: View, bytes_of: Callable[[Storage], bytearray]) -> Tensor:
    """A view in memory of its own."""
    shape, stride = view.shape, view.stride
    whole = all(type(number) is int and 0 <= number < 1 << 62 for number in (*shape, *stride, view.offset))
    if not whole or len(shape) != len(stride) or len(shape) > 64:
        raise Refused(f"{shown(name)} has an impossible shape")
    raw = bytes_of(view.storage)
    size, count = view.storage.dtype.itemsize, math.prod(shape)
    last = view.offset + sum((side - 1) * step for side, step in zip(shape, stride)) if count else -1
    if count * size > len(raw) or (last + 1) * size > len(raw):  # also what stands for more numbers than there are
        raise Refused(f"{shown(name)} reaches beyond its {len(raw):,} bytes")
    if not count:
        return torch.empty(shape, dtype=view.storage.dtype)
    flat = torch.frombuffer(raw, dtype=view.storage.dtype, count=len(raw) // size)
    return flat.as_strided(shape, stride, view.offset).clone()
