"""Models, recipes, encoders and weights that a stranger could send, each opened: memory, time, sockets, tracebacks.

    python benchmarks/hostile_files.py [--every 5] [--only recipe]

The rule: at most 256 MB of memory and 2 s of processor time beyond a warm start, no socket, no traceback; what cannot
be used is one sentence. Peak memory is the kernel's (VmHWM, reset before each case); an audit hook counts sockets.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

MEMORY = 256.0  # MB
SECONDS = 2.0
SOCKETS: list[str] = []
Make = Callable[[Path], list[str] | Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """One hostile thing: `make` writes it into a folder, and gives the command (or the call) that opens it."""

    name: str
    make: Make
    refused: bool = True  # whether a sentence is wanted; else it may work as well


@dataclass(frozen=True)
class Outcome:
    """What opening it cost and said."""

    name: str
    megabytes: float
    seconds: float
    sockets: int
    trace: str  # what else than a sentence came out
    said: str

    @property
    def fine(self) -> bool:
        """Whether it keeps the rule."""
        return self.megabytes <= MEMORY and self.seconds <= SECONDS and not self.sockets and not self.trace


def watch_sockets() -> None:
    """Count every connection, look-up and binding from now on; each is refused."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto"):
            SOCKETS.append(f"{event} {args[1:]}")
            raise OSError("no network here")

    sys.addaudithook(hook)


def _peak() -> float:
    """Megabytes resident at most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def opened(case: Case, folder: Path) -> Outcome:
    """Write a case and open it."""
    from kuosan.cli import console
    from kuosan.cli.main import main
    from kuosan.errors import Error

    folder.mkdir(parents=True)
    wanted = case.make(folder)
    out, err = io.StringIO(), io.StringIO()
    console.console.file = out
    before = Path.cwd()
    os.chdir(folder)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    start, sockets, begin, trace, code = _peak(), len(SOCKETS), time.process_time(), "", 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if callable(wanted):
                wanted()
            else:
                main(wanted)
    except SystemExit as end:
        code = int(end.code or 0)
    except Error as error:
        code, _ = 2, err.write(f"kuosan: error: {error}")
    except BaseException as error:
        trace = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        seconds = time.process_time() - begin
        os.chdir(before)
        console.console.file = sys.stdout
    said = err.getvalue()
    if not trace and code and not said.startswith("kuosan: error: "):
        trace = f"exit {code} without a sentence"
    if not trace and case.refused and not code:
        trace = "it was taken"
    if not trace and (len(said) > 6000 or any(char in said for char in "\x1b\x07\r\u202e\u200b")):
        trace = "the sentence is endless, or steers the terminal"
    return Outcome(case.name, _peak() - start, seconds, len(SOCKETS) - sockets, trace, said.strip())


# ---------------------------------------------------------------- a small honest run, and ways to spoil it


def base(tree: dict[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of a small model."""
    network = {
        "kind": "unet",
        "channels": 32,
        "multipliers": [1],
        "blocks": 1,
        "attention": [False],
        "groups": 8,
        "middle_attention": False,
    }
    return {
        "model": {"shape": [3, 8, 8], "network": network, "schedule": {"kind": "discrete", "T": 10}, **(tree or {})}
    }


def _weights() -> dict[str, torch.Tensor]:
    from kuosan import config as trees
    from kuosan.models.model import ModelConfig, build

    return build(trees.build(ModelConfig, base()["model"])).network.state_dict()


def run(folder: Path, config: Any = None, state: str | None = None, text: str | None = None) -> Path:
    """A run's folder, its manifest true whatever is in it."""
    from kuosan import config as trees
    from kuosan.storage import tensors

    at = folder / "run" / "checkpoints" / "step-00000003"
    at.mkdir(parents=True)
    (at / "config.yaml").write_text(trees.dump(base() if config is None else config) if text is None else text)
    (at / "state.json").write_text(json.dumps({"step": 3, "state": {}}) if state is None else state)
    tensors.write(at / "ema.safetensors", _weights())
    seal(at)
    return folder / "run"


def seal(at: Path) -> None:
    """Write the manifest of what is there."""
    from kuosan.storage import manifest

    (at / manifest.NAME).unlink(missing_ok=True)
    (at / manifest.NAME).write_bytes(manifest.describe(at))


SAMPLE = ["-n", "1", "--steps", "1", "--out", "out", "--threads", "1"]


def sample(run: Path) -> list[str]:
    """The command that opens a run."""
    return ["sample", str(run), *SAMPLE]


def _with(path: tuple[str, ...], value: Any) -> Make:
    def make(folder: Path) -> list[str]:
        tree = base()
        at = tree["model"]
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = value
        return sample(run(folder, tree))

    return make


def configs() -> Iterator[Case]:
    """Settings far beyond any weights."""
    whole = {
        "channels": 1024,
        "blocks": 100_000,
        "groups": 10**9,
        "in_channels": 10**8,
        "out_channels": 10**8,
        "classes": 10**9,
        "context_width": 10**9,
        "transformer_depth": 10**6,
        "transformer_mlp": 10**6,
        "concat_channels": 10**8,
        "patch": 10**6,
        "head_channels": 10**8,
    }
    for name, value in whole.items():
        for each in (
            value,
            -value,
            2**70,
            None if name not in ("context_width", "head_channels") else "x",
            "x" * 10**5,
        ):
            yield Case(f"config unet {name} {str(each)[:12]}", _with(("network", name), each))
    yield Case("config unet multipliers", _with(("network", "multipliers"), [1] * 10_000))
    yield Case("config unet widths", _with(("network", "multipliers"), [10**6]))
    for kind, name, value in (
        ("dit", "depth", 10**6),
        ("dit", "width", 4 * 10**7),
        ("dit", "mlp", 10**6),
        ("dit", "heads", 10**7),
        ("autoencoder", "channels", 32_768),
        ("autoencoder", "blocks", 10**5),
        ("autoencoder", "critic_channels", 10**6),
        ("autoencoder", "critic_layers", 40),
        ("autoencoder", "latent_channels", 10**8),
        ("classifier", "blocks", 10**5),
        ("classifier", "classes", 10**9),
        ("own", "name", "x" * 10**6),
    ):
        yield Case(f"config {kind} {name}", _with(("network",), {"kind": kind, name: value}))
    for kind, name, value in (
        ("discrete", "T", 10**8),
        ("discrete", "T", -1),
        ("discrete", "beta_end", 1e300),
        ("karras", "sigma_max", 1e300),
        ("karras", "rho", 1e300),
        ("flow", "shift", 1e300),
        ("martian", "T", 1),
    ):
        yield Case(f"config {kind} {name} {value}", _with(("schedule",), {"kind": kind, name: value}))
    for name, value in (
        ("shape", [3, 10**5, 10**5]),
        ("shape", [3, 16_384, 16_384]),
        ("shape", [0, 8, 8]),
        ("shape", [3, -8, 8]),
        ("shape", None),
        ("shape", "x"),
        ("shapes", [[8, 8]] * 10**5),
        ("sigma_data", 1e300),
        ("prediction", "x" * 10**5),
        ("network", 5),
        ("network", None),
        ("schedule", []),
        ("task", {"kind": "generation", "labels": True, "class_names": ["x"] * 200_000}),
        ("task", {"kind": "super_resolution", "scale": 10**6}),
        ("text", {"kind": "bytes", "length": 8, "depth": 10**6}),
        ("text", {"kind": "bytes", "length": 8, "width": 6 * 10**6}),
        ("text", {"kind": "encoder", "encoder": "x" * 10**5}),
        ("codec", {"kind": "latents", "scale": [1.0] * 10**5}),
    ):
        yield Case(f"config {name} {str(value)[:30]}", _with((name,), value))


def texts() -> Iterator[Case]:
    """config.yaml, state.json and manifest.json that are something else."""
    yaml = {
        "deep": "[" * 100_000,
        "deep mapping": "a: " * 5000 + "1",
        "alias": "a: &a [x]\nb: [*a,*a]\n",
        "laughs": "a: &a [x,x]\n" + "".join(f"b{i}: &b{i} [*a,*a]\n" for i in range(30)),
        "tag": "!!python/object:os.system x",
        "digits": "model: " + "9" * 5000,
        "hexadecimal": "model: 0x" + "f" * 100_000,
        "sixties": "model: " + "1:" * 3000 + "1",
        "date": "model: 2001-99-99",
        "binary": "model: !!binary =",
        "integer": "model: !!int x",
        "boolean": "model: !!bool x",
        "timestamp": "model: !!timestamp x",
        "float": "model: !!float x",
        "null": "",
        "list": "- 1",
        "number": "5",
        "model null": "model:",
        "model list": "model: [1]",
        "model text": "model: abc",
        "data number": "data: 5\nmodel: {}",
        "keys": "".join(f"k{i}: 1\n" for i in range(200_000)),
        "large": "a: " + "x" * 8_000_000,
        "zeros": "\0" * 1000,
        "twice": "model: {}\nmodel: {}",
        "key of a list": "? [a, b]\n: 1",
        "escape": 'model: {"\\e[2J": 1}',
        "bidi": "model: {kind: \u202eabc}",
        "nan": "model: {sigma_data: .nan}",
        "infinite": "model: {sigma_data: .inf}",
    }
    for name, text in yaml.items():
        yield Case(f"yaml {name}", lambda folder, text=text: sample(run(folder, text=text)))
    states = [
        "null",
        "{}",
        "[]",
        "5",
        "",
        "{",
        '{"step": null, "state": {}}',
        '{"step": true, "state": {}}',
        '{"step": -1, "state": {}}',
        '{"step": 1.5, "state": {}}',
        '{"step": 3, "state": null}',
        '{"step": ' + "9" * 5000 + ', "state": {}}',
        '{"step": 3, "state": [1]}',
        "[" * 100_000,
        '{"step": 1e999, "state": {}}',
        "x" * 10_000_000,
    ]
    for text in states:
        yield Case(f"state {text[:24]}", lambda folder, text=text: sample(run(folder, state=text)))
    manifests = ["", "null", "[]", "{}", "[" * 50_000, '{"sha256": 1}', "9" * 6000, '{"format": ' + "9" * 100 + "}"]
    for text in manifests:

        def make(folder: Path, text: str = text) -> list[str]:
            made = run(folder)
            (made / "checkpoints" / "step-00000003" / "manifest.json").write_text(text)
            return sample(made)

        yield Case(f"manifest {text[:24]}", make)
    for name in ("config.yaml", "state.json", "ema.safetensors", "manifest.json"):
        for kind in ("fifo", "folder", "link", "device"):
            yield Case(f"{kind} {name}", _replaced(name, kind))


def _replaced(name: str, kind: str) -> Make:
    def make(folder: Path) -> list[str]:
        made = run(folder)
        path = made / "checkpoints" / "step-00000003" / name
        path.unlink()
        match kind:
            case "fifo":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "link":
                path.symlink_to("/etc/hostname")
            case "device":
                path.symlink_to("/dev/zero")
        return sample(made)

    return make


def _file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(dtype: str = "F32", shape: Any = (1,), start: Any = 0, end: Any = 4) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def headers() -> Iterator[Case]:
    """safetensors files that lie."""
    big = 1 << 60
    found: dict[str, bytes] = {
        "2^60 and 0": _file({"a": _entry(shape=[big, big, 0], end=0)}),
        "2^63 and 0": _file({"a": _entry(shape=[1 << 63, 0], end=0)}),
        "wrapping": _file({"a": _entry(shape=[1 << 32, 1 << 32], end=0)}),
        "negative": _file({"a": _entry(shape=[-1, -1])}, b"1234"),
        "digits": _file(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}'),
        "deep": _file(b"[" * 100_000),
        "no mapping": _file(b"[1, 2]" + b" " * 8),
        "null": _file(b'{"a": null}'),
        "gap": _file({"a": _entry(start=4, end=8)}, b"12345678"),
        "overlap": _file({"a": _entry(), "b": _entry()}, b"1234"),
        "past the end": _file({"a": _entry(shape=[1000], end=4000)}, b"1234"),
        "trailing": _file({"a": _entry()}, b"12345678"),
        "twice": _file(b'{"a": {}, "a": {}}'),
        "huge offset": _file({"a": _entry(start=0, end=10**30)}),
        "length": _file(b"{}", length=1 << 62),
        "cut": b"\x10\0\0",
        "empty": b"",
        "true": _file({"a": _entry(shape=[True])}, b"1234"),
        "floats": _file({"a": _entry(shape=[1.0])}, b"1234"),
        "dimensions": _file({"a": _entry(shape=[1] * 10_000)}, b"1234"),
        "escape": _file({"\x1b[2J\u202e": _entry(dtype="X")}),
        "long name": _file({"x" * 10**6: _entry(dtype="X")}),
        "names": _file({f"tensor.{'n' * 60}.{i}": _entry(shape=[0], end=0) for i in range(400_000)}),
        "many": _file({f"{i}": _entry(shape=[0], end=0) for i in range(19_000)}),
        "lists": _file(b'{"a": [' + b"[]," * 6_000_000 + b"[]]}"),
        "notes": _file({"__metadata__": {"k": "\U0001f600" * 4_000_000}}),
    }
    for dtype in (
        "F64",
        "C64",
        "BOOL",
        "F8_E4M3",
        "F8_E5M2",
        "F8_E8M0",
        "I4",
        "F4",
        "U64",
        "I64",
        "X" * 100_000,
        None,
        5,
        [],
    ):
        size = {"F64": 8, "C64": 8, "U64": 8, "I64": 8, "BOOL": 1}.get(str(dtype), 1)
        found[f"dtype {str(dtype)[:8]}"] = _file(
            {"encoder.entrance.bias": _entry(dtype, [32], 0, 32 * size)}, bytes(32 * size)
        )  # type: ignore[arg-type]
    for name, content in found.items():

        def make(folder: Path, content: bytes = content) -> list[str]:
            made = run(folder)
            at = made / "checkpoints" / "step-00000003"
            (at / "ema.safetensors").write_bytes(content)
            seal(at)
            return sample(made)

        yield Case(f"header {name}", make)


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(path: Path, *chunks: bytes) -> Path:
    """An 8 x 8 grey PNG with chunks in front of its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(bytes(72))) + chunk(b"IEND", b"")
    )
    return path


def recipe(**changes: Any) -> dict[str, Any]:
    """A recipe of the model inside the package."""
    from kuosan.sample import embedded
    from kuosan.storage import manifest

    sha256 = manifest.read(embedded.folder())["ema.safetensors"].sha256
    request = {"n": 1, "seed": 0, "steps": 1, **changes.pop("request", {})}
    return {
        "run": "embedded",
        "step": 3600,
        "weights": sha256,
        "request": request,
        "picture": 0,
        "compute": "cpu",
        "precision": "fp32",
        "size": [64, 64],
        "steps": 1,
        "format": 1,
        **changes,
    }


def _like(path: Path) -> list[str]:
    return ["sample", "--like", str(path), "--out", "again.png", "--threads", "1"]


def recipes() -> Iterator[Case]:
    """Images whose recipes name what they should not."""
    places = [
        "/dev/zero",
        "/dev/stdin",
        "/dev/full",
        "/etc/passwd",
        "../../../../etc/passwd",
        "~/.ssh/id_rsa",
        "fifo",
        "socket",
        "//server/share/x.png",
        "\\\\server\\share\\x.png",
        "folder",
        "link",
        "sparse.png",
        "a\0b",
        "x" * 100_000,
        "\ud800",
        "/proc/self/mem",
        "/proc/kcore",
        "\x1b[2J",
        "hub:evil/model",
        "http://127.0.0.1:9/x.png",
        "loop",
        "",
    ]
    for what in ("run", "image", "classifier", "reference", "picture", "mask"):
        for place in places:

            def make(folder: Path, what: str = what, place: str = place) -> list[str]:
                os.mkfifo(folder / "fifo")
                (folder / "folder").mkdir()
                (folder / "link").symlink_to("/etc/passwd")
                (folder / "loop").symlink_to("loop")
                with open(folder / "sparse.png", "wb") as stream:
                    stream.truncate(50 << 30)
                png(folder / "p.png")
                more = {"guidance": 2.0} if what == "reference" else {}
                if what == "run":
                    tree = recipe(run=place)
                elif what in ("picture", "mask"):
                    damage = {"picture": "p.png", "mask": "1,1,2,2", what: place}
                    tree = recipe(request={"restoration": damage})
                else:
                    tree = recipe(request={what: place, **more})
                return _like(png(folder / "like.png", chunk(b"iTXt", b"kuosan\0\0\0\0\0" + json.dumps(tree).encode())))

            yield Case(f"recipe {what} {place[:16]!r}", make)
    key = b"kuosan\0\0"
    bombs: dict[str, Callable[[], bytes]] = {
        "zTXt bomb": lambda: chunk(b"zTXt", key + zlib.compress(b" " * 300_000_000, 9)),
        "iTXt bomb": lambda: chunk(b"iTXt", b"kuosan\0\1\0\0\0" + zlib.compress(b" " * 300_000_000, 9)),
        "iTXt of 100 MB": lambda: chunk(b"iTXt", b"kuosan\0\0\0\0\0" + b" " * 100_000_000),
        "deep": lambda: chunk(b"tEXt", b"kuosan\0" + b"[" * 200_000),
        "digits": lambda: chunk(b"tEXt", b"kuosan\0" + b'{"format": ' + b"9" * 5000 + b"}"),
        "format": lambda: chunk(b"tEXt", b"kuosan\0" + b'{"format": "' + b"x" * 100_000 + b'"}'),
        "list": lambda: chunk(b"tEXt", b"kuosan\0[]"),
        "damaged": lambda: chunk(b"tEXt", b"kuosan\0{}")[:-1] + b"\0",
        "chunks": lambda: chunk(b"tEXt", b"a\0b") * 150_000,
        "length": lambda: struct.pack(">I", 0xFFFFFFFF) + b"tEXt",
        "brackets": lambda: chunk(
            b"iTXt", b"kuosan\0\0\0\0\0" + json.dumps(recipe(request={"prompts": ["(" * 100_000]})).encode()
        ),
        "threads": lambda: chunk(b"iTXt", b"kuosan\0\0\0\0\0" + json.dumps(recipe(threads=10**9)).encode()),
        "size": lambda: chunk(b"iTXt", b"kuosan\0\0\0\0\0" + json.dumps(recipe(size=[10**9, 10**9])).encode()),
        "n": lambda: chunk(b"iTXt", b"kuosan\0\0\0\0\0" + json.dumps(recipe(request={"n": 10**12})).encode()),
        "null": lambda: chunk(b"iTXt", b"kuosan\0\0\0\0\0" + json.dumps({**recipe(), "request": None}).encode()),
    }
    for name, content in bombs.items():
        yield Case(f"recipe {name}", lambda folder, content=content: _like(png(folder / "like.png", content())))
    for special in ("/dev/zero", "fifo", "folder"):

        def like(folder: Path, special: str = special) -> list[str]:
            os.mkfifo(folder / "fifo")
            (folder / "folder").mkdir()
            return _like(Path(special))

        yield Case(f"recipe in {special}", like)


class Touch:
    """A pickle that would make a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("kuosan-was-run",)


def weights() -> Iterator[Case]:
    """Pickled weights, as a features' file and as a run."""

    def zipped(tree: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(tree, buffer)
        return buffer.getvalue()

    def squeezed() -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", pickle.dumps({}))
            archive.writestr("a/data/0", bytes(500_000_000))
        return buffer.getvalue()

    def reduced(module: str, name: str, count: int) -> bytes:
        size = b"\x8a\x05" + count.to_bytes(5, "little")
        return b"\x80\x02" + f"c{module}\n{name}\n".encode() + size + b"\x85R."

    nested = b"\x80\x04" + b")" + b"2\x86" * 60 + b"}" + b"."
    contents: dict[str, bytes | Callable[[], bytes]] = {
        "call": pickle.dumps(Touch()),
        "call inside": zipped({"a": Touch()}),
        "squeezed": squeezed,
        "numbers": zipped({"a": 1}),
        "expanded": zipped({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}),
        "bytearray": reduced("builtins", "bytearray", 10**10),
        "tensor": reduced("torch", "Tensor", 10**10),
        "nested": nested,
        "cut": zipped({"a": torch.zeros(1000)})[:3000],
        "tar": b"\0" * 257 + b"ustar" + b"\0" * 250,
        "gzip": b"\x1f\x8b" + bytes(100),
        "empty": b"",
        "digits": b"I" + b"9" * 100_000 + b"\n.",
    }
    for name, content in contents.items():

        def features(folder: Path, content: Any = content) -> Callable[[], object]:
            from kuosan.metrics.features import inception

            (folder / "w.pth").write_bytes(content() if callable(content) else content)
            return lambda: inception.read(folder / "w.pth")

        def model(folder: Path, content: Any = content) -> list[str]:
            made = run(folder)
            at = made / "checkpoints" / "step-00000003"
            (at / "ema.safetensors").write_bytes(content() if callable(content) else content)
            seal(at)
            return sample(made)

        yield Case(f"pickle {name}", features)
        yield Case(f"pickle as a run {name}", model)


def encoders() -> Iterator[Case]:
    """Models whose text encoder is somebody else's."""
    for name in (
        "hub:evil/model",
        "hub:../../etc",
        "hub:" + "x" * 10_000,
        "evil/model",
        "/dev",
        "/proc/self",
        "~/x",
        "enc",
        "hub:a b",
    ):
        yield Case(f"encoder {name[:20]}", _with(("text",), {"kind": "encoder", "encoder": name, "width": 8}))
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 10,
    }
    changes: dict[str, Any] = {
        "layers": {"num_hidden_layers": 10**7},
        "width": {"hidden_size": 10**9},
        "words": {"vocab_size": 10**12},
        "places": {"max_position_embeddings": 10**12},
        "digits": {"x": 10**4000},
        "code": {"auto_map": {"AutoConfig": "evil--x.C", "AutoModel": "evil/model--x.M"}, "model_type": "evil"},
        "kernel": {"_attn_implementation": "evil/kernel"},
        "quantised": {"quantization_config": {"quant_method": "mxfp4"}},
        "name": {"_name_or_path": "evil/model"},
        "list": {"depths": [1] * 10**6},
        "type": {"model_type": 5},
    }
    for name, change in changes.items():

        def make(folder: Path, change: Any = change) -> list[str]:
            from kuosan.storage import tensors

            (folder / "enc").mkdir()
            tree = {"model_type": "bert", **shape, **change}
            (folder / "enc" / "config.json").write_text(
                json.dumps(tree) if "x" not in change else '{"x": ' + "9" * 5000 + "}"
            )
            (folder / "enc" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
            tensors.write(folder / "enc" / "model.safetensors", {"a": torch.zeros(4)})
            return _with(("text",), {"kind": "encoder", "encoder": "enc", "width": 16})(folder)  # type: ignore[return-value]

        yield Case(f"encoder {name}", make)
    for name in ("adapter_config.json", "fifo.json"):

        def beside(folder: Path, name: str = name) -> list[str]:
            made = make(folder, {})
            if name.startswith("fifo"):
                os.mkfifo(folder / "enc" / name)
            else:
                (folder / "enc" / name).write_text(json.dumps({"base_model_name_or_path": "evil/model"}))
            return made  # type: ignore[no-any-return]

        yield Case(f"encoder with {name}", beside)


def cases() -> list[Case]:
    """All of them."""
    return [*configs(), *texts(), *headers(), *recipes(), *weights(), *encoders()]


def warm(folder: Path) -> None:
    """Open honest things once, so that imports are not counted."""
    with contextlib.suppress(ImportError):
        import transformers  # noqa: F401
        from transformers import AutoModel, AutoTokenizer, BertModel  # noqa: F401
    for i, make in enumerate((lambda at: sample(run(at)), _with(("network", "blocks"), 7))):
        outcome = opened(Case("honest", make, refused=False), folder / f"warm-{i}")
        assert not outcome.trace, outcome
    opened(
        Case(
            "honest recipe",
            lambda at: _like(png(at / "x.png", chunk(b"iTXt", b"kuosan\0\0\0\0\0" + json.dumps(recipe()).encode()))),
            False,
        ),
        folder / "warm-like",
    )
    for case in list(encoders())[8:9]:
        opened(case, folder / "warm-encoder")
    np.zeros(1)


def main() -> int:
    """Open them all; the exit status is 1 where one breaks the rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    watch_sockets()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        warm(folder)
        outcomes = []
        for i, case in enumerate([each for each in cases() if options.only in each.name][:: options.every]):
            outcomes.append(opened(case, folder / str(i)))
            if not outcomes[-1].fine or options.verbose:
                print(outcomes[-1], flush=True)
    worst = max(outcomes, key=lambda each: each.megabytes), max(outcomes, key=lambda each: each.seconds)
    print(
        f"{len(outcomes)} hostile files: {sum(not each.fine for each in outcomes)} break the rule; at most "
        f"+{worst[0].megabytes:.0f} MB ({worst[0].name}), {worst[1].seconds:.2f} s ({worst[1].name}); "
        f"{sum(each.sockets for each in outcomes)} sockets, {sum(bool(each.trace) for each in outcomes)} tracebacks."
    )
    return int(not all(each.fine for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
