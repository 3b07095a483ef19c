"""Plain tensors out of a pickled checkpoint (`.ckpt`, `.bin`, `.pt`), in a process of its own: `unpickle(path, out)`.

The child reads with torch's `weights_only`, which makes tensors and plain values and looks up nothing else, under
limits on memory and processor time, with an audit hook that ends it where anything would start a program, open a
connection, or write another file; what it writes is safetensors. The parent believes nothing but that file, which it
opens as any other.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kuosan.errors import Error, escaped
from kuosan.regular import open_regular
from kuosan.storage.files import explained

ROOM = 3 << 30  # bytes of address space beside the tensors: what torch alone takes
SECONDS = 60  # of processor time, and one more for every 50 MB
_OUTSIDE = 13  # what the child exits with where the audit hook ends it
_GONE_ON = {
    _OUTSIDE: "it would have started a program, opened a connection, or changed a file",
    -24: "it took too long",
    -9: "it was killed, for memory as a rule",
    -11: "it broke the reader",
}
_REFUSED = (
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "socket."),
    *("ctypes.dlopen", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "shutil."),
)


def unpickle(path: Path, out: Path) -> None:
    """Write the tensors of a pickled file to a safetensors file.

    Raises:
        Error: it holds anything but plain tensors and values, is damaged, or takes too much memory or time.
    """
    with explained(path, doing="read"), open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
    seconds = SECONDS + size // (50 << 20)
    command = [sys.executable, "-m", "kuosan.storage.unpickle", str(path), str(out), str(ROOM + 3 * size), str(seconds)]
    try:
        done = subprocess.run(  # noqa: S603 (this very Python, and this module)
            command, capture_output=True, timeout=10 * seconds, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise _refused(path, f"it took more than {10 * seconds} s") from None
    if done.returncode != 0 or not out.is_file():
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        reason = _GONE_ON.get(done.returncode, escaped(last)[:300] or f"exit code {done.returncode}")
        out.unlink(missing_ok=True)
        raise _refused(path, reason)


def _refused(path: Path, reason: str) -> Error:
    return Error(
        f"{path} holds no plain tensors that could be read ({reason.rstrip('.')}): damaged, or code. Ask its author "
        f"for safetensors."
    )


def _child(path: str, out: str, memory: int, seconds: int) -> None:
    """Read and write, here, under limits."""
    import torch

    from kuosan.storage import tensors as weights

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    torch.load(_smallest(), weights_only=True)  # whatever torch imports for it, it has imported

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and (
            any(letter in str(args[1] or "") for letter in "wax+") or int(args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        )
        if event.startswith(_REFUSED) or (writes and str(args[0]) != out):
            os._exit(_OUTSIDE)

    sys.addaudithook(hook)
    try:
        found = _plain(torch.load(path, map_location="cpu", weights_only=True), torch.Tensor)
        places = [weights.TensorPlace(name, each.dtype, tuple(each.shape), 0, 0) for name, each in found.items()]
        if wrong := weights.unwritable(found):
            raise ValueError(wrong)
        for _ in weights.write_parts(out, places, found.__getitem__, {"format": "pt"}):
            pass
    except Exception as error:
        os.write(2, (" ".join(str(error).split())[:1000] or type(error).__name__).encode())
        os._exit(1)
    os._exit(0)


def _smallest() -> Any:
    import io

    import torch

    stream = io.BytesIO()
    torch.save({"x": torch.zeros(1, dtype=torch.float16)}, stream)
    stream.seek(0)
    return stream


def _plain(tree: Any, kind: type) -> dict[str, Any]:
    """The tensors by name of a state dict, or of a training's checkpoint that holds one. Raises: ValueError."""
    for _ in range(2):
        if isinstance(tree, Mapping) and isinstance(tree.get("state_dict"), Mapping):
            tree = tree["state_dict"]
    if not isinstance(tree, Mapping):
        raise ValueError(f"it holds a {type(tree).__name__}, not tensors by name")
    found = {}
    for name, value in tree.items():
        if isinstance(value, kind):
            if getattr(value, "layout", None) is not None and "strided" not in str(value.layout):  # type: ignore[attr-defined]
                raise ValueError(f"{name!r} is sparse")
            found[str(name)] = value
        elif isinstance(value, Mapping):
            raise ValueError(f"{name!r} is a group, not a tensor")
    if not found:
        raise ValueError("it holds no tensors")
    return found


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
