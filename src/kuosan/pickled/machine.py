"""A pickle of plain tensors, interpreted: `Machine(content).run()`, of 40 opcodes, four calls, and no import.

What a file names is compared with a short list and never looked up.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kuosan.errors import shown

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


class Refused(Exception):
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
class View:
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
                raise Refused(f"it has the pickle opcode {code:#04x}, which no plain tensors need")
            act(self)
        raise Refused("its pickle is far too long")

    def _take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.content):
            raise Refused("it is cut short")
        part = self.content[self.at : self.at + count]
        self.at += count
        return part

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _line(self) -> str:
        end = self.content.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise Refused("it is cut short")
        return self._take(end + 1 - self.at)[:-1].decode("ascii")

    def _marked(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise Refused("its pickle is damaged")

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise Refused("it fills what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):  # a tuple of tuples of tuples takes for ever to hash
                raise Refused("it has keys that are no names")
            target[key] = value

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise Refused("it fills what is no list")
        self.stack[-1].extend(items)

    def _long(self, count: int) -> None:
        if count > 16:
            raise Refused("it has integers that no tensor needs")
        self.stack.append(int.from_bytes(self._take(count), "little", signed=True))

    def _global(self, module: str, name: str) -> None:
        self.stack.append(Name(module, name))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("its pickle is damaged")
        self._global(module, name)

    def _reduce(self) -> None:
        """The four calls that plain tensors need, made here; none of the file's."""
        args, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise Refused("it calls what is no function")
        match name.module, name.name:
            case "collections", "OrderedDict":
                if args:
                    raise Refused("it makes a dict of something")
                self.stack.append({})
            case "torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor":
                storage, offset, shape, stride = args[:4]
                if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
                    raise Refused("it makes a tensor of something else than numbers in it")
                self.stack.append(View(storage, offset, shape, stride))
            case "torch._utils", "_rebuild_parameter":
                self.stack.append(args[0])
            case "torch", "Size":
                self.stack.append(tuple(args[0]))
            case module, own:
                raise Refused(f"it calls {shown(f'{module}.{own}')}, which is code")

    def _persistent(self) -> None:
        """A storage: ("storage", torch.FloatStorage, key, device, count), and in old files a view of it."""
        match self.stack.pop():
            case ("storage", Name("torch", kind), str(key), str(), int(count), *view) if view in ([], [None]):
                if kind not in _STORAGES:
                    raise Refused(f"it holds a {shown(kind)}")
                storage = Storage(_STORAGES[kind], key, count)
                self.storages[key] = storage
                self.stack.append(storage)
            case _:
                raise Refused("it refers to something outside itself")

    def _build(self) -> None:
        """A state dict's own notes (`_metadata`) are left out."""
        state = self.stack.pop()
        if not isinstance(state, dict) or type(self.stack[-1]) is not dict:
            raise Refused("it sets the state of an object")

    def _tuple(self, count: int) -> None:
        parts = tuple(self.stack[len(self.stack) - count :]) if count else ()
        if len(parts) != count:
            raise Refused("its pickle is damaged")
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
