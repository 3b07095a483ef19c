"""Plain tensors out of `torch.save` files (.pt, .pth, .bin), without unpickling: a machine of 40 opcodes, and no more.

It knows dicts, lists, tuples, numbers, texts and tensors. The names of classes and functions in the file are compared
with a short list and never looked up; anything else is refused. Sizes are the file's own: a tensor's bytes lie in it,
once, uncompressed. TorchScript archives are code and refused, as is what NumPy or a user's own class has pickled.

A pickle of plain tensors, interpreted: `Machine(content).run()`, of 40 opcodes, four calls, and no import.

What a file names is compared with a short list and never looked up.

Plain tensors out of pickled files, without unpickling.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kuosan.errors import Error, shown
from kuosan.regular import read_regular
from kuosan.storage.files import explained

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
    except NoPlainTensors as error:
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
            raise NoPlainTensors("its zip lists names twice, or far too many")
        if any(name.endswith("constants.pkl") or "/code/" in name for name in entries):
            raise NoPlainTensors("it is a TorchScript program")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise NoPlainTensors("its zip is compressed, and torch.save's are not")
        if sum(entry.file_size for entry in entries.values()) > len(content):
            raise NoPlainTensors("its zip claims more than it holds")
        main = next((name for name in entries if name.endswith("data.pkl") and name.count("/") <= 1), None)
        if main is None:
            raise NoPlainTensors("it is a zip without data.pkl")
        folder = main.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in entries and archive.read(order) != b"little":
            raise NoPlainTensors("its numbers are big-endian")
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
        raise NoPlainTensors("it does not begin as torch.save's files do")
    _, at = Machine(content, at).run()
    system, at = Machine(content, at).run()
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise NoPlainTensors("its numbers are big-endian")
    tree_machine = Machine(content, at)
    tree, at = tree_machine.run()
    keys, at = Machine(content, at).run()
    raw: dict[str, bytearray] = {}
    for key in keys:
        storage = tree_machine.storages[str(key)]
        (count,) = struct.unpack_from("<q", content, at)
        size = count * storage.dtype.itemsize
        if count < 0 or at + 8 + size > len(content):
            raise NoPlainTensors("it is cut short")
        raw[str(key)] = bytearray(content[at + 8 : at + 8 + size])
        at += 8 + size
    return _tensors(tree, lambda storage: raw[storage.key], 4 * len(content))


def _tensors(tree: Any, bytes_of: Callable[[Storage], bytearray], room: int) -> dict[str, Tensor]:
    """The tensors of a dict, all together of at most `room` bytes: views may share numbers, but not without end."""
    found: dict[str, Tensor] = {}
    if not isinstance(tree, dict) or not tree:
        raise NoPlainTensors(f"it holds {_kind(tree)}, not tensors by name")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, TensorView):
            raise NoPlainTensors(f"it holds a dict in which {shown(name)} is {_kind(value)}, not a tensor")
        found[name] = _tensor(name, value, bytes_of)
        room -= found[name].nbytes
        if room < 0:
            raise NoPlainTensors("its tensors have far more numbers than the file")
    return found


def _kind(value: Any) -> str:
    return (
        "a tensor without a name" if isinstance(value, TensorView) else f"a {type(value).__name__.strip('_').lower()}"
    )


def _tensor(name: str, view: TensorView, bytes_of: Callable[[Storage], bytearray]) -> Tensor:
    """A view in memory of its own."""
    shape, stride = view.shape, view.stride
    whole = all(type(number) is int and 0 <= number < 1 << 62 for number in (*shape, *stride, view.offset))
    if not whole or len(shape) != len(stride) or len(shape) > 64:
        raise NoPlainTensors(f"{shown(name)} has an impossible shape")
    raw = bytes_of(view.storage)
    size, count = view.storage.dtype.itemsize, math.prod(shape)
    last = view.offset + sum((side - 1) * step for side, step in zip(shape, stride)) if count else -1
    if count * size > len(raw) or (last + 1) * size > len(raw):  # also what stands for more numbers than there are
        raise NoPlainTensors(f"{shown(name)} reaches beyond its {len(raw):,} bytes")
    if not count:
        return torch.empty(shape, dtype=view.storage.dtype)
    flat = torch.frombuffer(raw, dtype=view.storage.dtype, count=len(raw) // size)
    return flat.as_strided(shape, stride, view.offset).clone()


MOST_OPCODES = 5_000_000  # of a pickle; a state dict has about 40 a tensor
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MARK = object()


class NoPlainTensors(Exception):
    """Why a file is none of plain tensors."""


@dataclass(frozen=True)
class Name:
    """A class or function that the file names; never looked up."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class TensorView:
    """A tensor as the file describes it: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Machine:
    """One pickle, interpreted from `content` on; `run` gives what it makes, and where it ends."""

    def __init__(self, content: bytes, at: int = 0) -> None:
        self.content, self.at = content, at
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> tuple[Any, int]:
        for _ in range(MOST_OPCODES):
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                return self.stack.pop(), self.at
            act = _ACTS.get(code)
            if act is None:
                raise NoPlainTensors(f"it has the pickle opcode {code:#04x}, which no plain tensors need")
            act(self)
        raise NoPlainTensors("its pickle is far too long")

    def _take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.content):
            raise NoPlainTensors("it is cut short")
        part = self.content[self.at : self.at + count]
        self.at += count
        return part

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _line(self) -> str:
        end = self.content.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise NoPlainTensors("it is cut short")
        return self._take(end + 1 - self.at)[:-1].decode("ascii")

    def _marked(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise NoPlainTensors("its pickle is damaged")

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise NoPlainTensors("it fills what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):  # a tuple of tuples of tuples takes for ever to hash
                raise NoPlainTensors("it has keys that are no names")
            target[key] = value

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise NoPlainTensors("it fills what is no list")
        self.stack[-1].extend(items)

    def _long(self, count: int) -> None:
        if count > 16:
            raise NoPlainTensors("it has integers that no tensor needs")
        self.stack.append(int.from_bytes(self._take(count), "little", signed=True))

    def _global(self, module: str, name: str) -> None:
        self.stack.append(Name(module, name))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise NoPlainTensors("its pickle is damaged")
        self._global(module, name)

    def _reduce(self) -> None:
        """The four calls that plain tensors need, made here; none of the file's."""
        args, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise NoPlainTensors("it calls what is no function")
        match name.module, name.name:
            case "collections", "OrderedDict":
                if args:
                    raise NoPlainTensors("it makes a dict of something")
                self.stack.append({})
            case "torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor":
                storage, offset, shape, stride = args[:4]
                if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
                    raise NoPlainTensors("it makes a tensor of something else than numbers in it")
                self.stack.append(TensorView(storage, offset, shape, stride))
            case "torch._utils", "_rebuild_parameter":
                self.stack.append(args[0])
            case "torch", "Size":
                self.stack.append(tuple(args[0]))
            case module, own:
                raise NoPlainTensors(f"it calls {shown(f'{module}.{own}')}, which is code")

    def _persistent(self) -> None:
        """A storage: ("storage", torch.FloatStorage, key, device, count), and in old files a view of it."""
        match self.stack.pop():
            case ("storage", Name("torch", kind), str(key), str(), int(count), *view) if view in ([], [None]):
                if kind not in _STORAGES:
                    raise NoPlainTensors(f"it holds a {shown(kind)}")
                storage = Storage(_STORAGES[kind], key, count)
                self.storages[key] = storage
                self.stack.append(storage)
            case _:
                raise NoPlainTensors("it refers to something outside itself")

    def _build(self) -> None:
        """A state dict's own notes (`_metadata`) are left out."""
        state = self.stack.pop()
        if not isinstance(state, dict) or type(self.stack[-1]) is not dict:
            raise NoPlainTensors("it sets the state of an object")

    def _tuple(self, count: int) -> None:
        parts = tuple(self.stack[len(self.stack) - count :]) if count else ()
        if len(parts) != count:
            raise NoPlainTensors("its pickle is damaged")
        del self.stack[len(self.stack) - count :]
        self.stack.append(parts)

    def _text(self, count: int) -> None:
        self.stack.append(self._take(count).decode("utf-8", "surrogatepass"))


def _push(value: Any) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(value)


_ACTS: Mapping[int, Callable[[Machine], Any]] = {
    0x80: lambda m: m._take(1),  # PROTO
    0x95: lambda m: m._take(8),  # FRAME
    0x28: _push(_MARK),
    0x30: lambda m: m.stack.pop(),  # POP
    0x4E: _push(None),
    0x88: _push(True),
    0x89: _push(False),
    0x7D: lambda m: m.stack.append({}),
    0x5D: lambda m: m.stack.append([]),
    0x29: _push(()),
    0x74: lambda m: m.stack.append(tuple(m._marked())),  # TUPLE
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    0x4A: lambda m: m.stack.append(m._number("<i")),  # BININT
    0x4B: lambda m: m.stack.append(m._number("<B")),
    0x4D: lambda m: m.stack.append(m._number("<H")),
    0x8A: lambda m: m._long(m._number("<B")),  # LONG1
    0x47: lambda m: m.stack.append(struct.unpack(">d", m._take(8))[0]),  # BINFLOAT
    0x58: lambda m: m._text(m._number("<I")),  # BINUNICODE
    0x8C: lambda m: m._text(m._number("<B")),
    0x8D: lambda m: m._text(m._number("<Q")),
    0x55: lambda m: m._text(m._number("<B")),  # SHORT_BINSTRING, of Python 2
    0x54: lambda m: m._text(m._number("<i")),  # BINSTRING
    0x71: lambda m: m.memo.__setitem__(m._number("<B"), m.stack[-1]),  # BINPUT
    0x72: lambda m: m.memo.__setitem__(m._number("<I"), m.stack[-1]),
    0x94: lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),  # MEMOIZE
    0x68: lambda m: m.stack.append(m.memo[m._number("<B")]),  # BINGET
    0x6A: lambda m: m.stack.append(m.memo[m._number("<I")]),
    0x73: lambda m: m._set([m.stack.pop(-2), m.stack.pop()]),  # SETITEM
    0x75: lambda m: m._set(m._marked()),  # SETITEMS
    0x61: lambda m: m._extend([m.stack.pop()]),  # APPEND
    0x65: lambda m: m._extend(m._marked()),  # APPENDS
    0x63: lambda m: m._global(m._line(), m._line()),  # GLOBAL
    0x93: lambda m: m._stack_global(),
    0x52: lambda m: m._reduce(),
    0x51: lambda m: m._persistent(),  # BINPERSID
    0x62: lambda m: m._build(),
}
