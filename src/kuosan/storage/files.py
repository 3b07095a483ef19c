"""Writing that a kill, a power cut or a full disk cannot halve, and reading that notices damage.

Whatever is written goes aside first, under a name that starts with `.kuosan-partial-`; it is fsynced, renamed to its
final name, and the folder is fsynced. A folder gets a `manifest.json` as its last file: the size and sha256 of every
other file in it, and the manifest's own. A crash leaves the old file, the new one, or a partial one that the next
`staged` or `sweep` removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from kuosan.errors import Error
from kuosan.storage import manifest

PARTIAL = ".kuosan-partial-"  # what an unfinished write is called until its rename
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h: swap two names in one step
_NOREPLACE = 1  # RENAME_NOREPLACE: fail where the new name is taken
_AT_FDCWD = -100

_REASONS = {
    errno.ENOSPC: ("no space is left on the disk", "free some space or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another folder"),
    errno.EACCES: ("permission is denied", "change the folder's permissions or choose another folder"),
    errno.EPERM: ("permission is denied", "change the folder's permissions or choose another folder"),
    errno.EROFS: ("the file system is read-only", "choose another folder or remount it writable"),
    errno.EIO: ("the disk reports an input/output error", "check the disk or choose another one"),
    errno.EFBIG: ("the file would be larger than is allowed", "raise the limit with `ulimit -f`"),
    errno.EMFILE: ("this process has too many files open", "raise the limit with `ulimit -n`"),
    errno.ENOENT: ("the file or folder is gone", "was it moved or deleted meanwhile? check the path"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter path"),
}


def reason(error: OSError) -> tuple[str, str]:
    """What the operating system refused, and the cure."""
    return _REASONS.get(error.errno or 0, (error.strerror or str(error), "check the path and the disk"))


def size_text(count: float) -> str:
    """A number of bytes as people read it: 1536 -> '1.5 kB' (1 kB = 1024 bytes)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def _above(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    folder = path.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _free(path: Path) -> int:
    """Free bytes on the disk that holds `path`, or will."""
    return shutil.disk_usage(_above(path)).free


def _is_read_only(path: Path) -> bool:
    """Whether the file system that holds `path`, or would, takes no writes."""
    return bool(os.statvfs(_above(path)).f_flag & os.ST_RDONLY)


@contextlib.contextmanager
def explained(path: Path, needed: int = 0, doing: str = "write") -> Iterator[None]:
    """Turn an OSError inside into an `Error` that names `path`, the cause, the bytes needed and free, and the cure."""
    try:
        yield
    except OSError as error:
        cause, cure = reason(error)
        room = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = f"{size_text(needed)} needed, " if needed else ""
            with contextlib.suppress(OSError):
                room = f" ({need}{size_text(_free(path))} free)"
        at = f" (at {error.filename})" if error.filename and Path(str(error.filename)) != path else ""
        raise Error(f"cannot {doing} {path}: {cause}{room}{at}; {cure}.", exit_code=74) from error


def room_for(path: str | os.PathLike[str], needed: int) -> None:
    """Raise an `Error` unless `needed` bytes are free where `path` is, or will be."""
    path = Path(path)
    with explained(path, needed, "look for room at"):
        free = _free(path)
        if free < needed and _is_read_only(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
    if free < needed:
        raise Error(
            f"no room for {path}: {size_text(needed)} needed, {size_text(free)} free; "
            "free some space or choose another folder.",
            exit_code=74,
        )


def fsync(path: Path) -> None:
    """Have the disk keep a file's content, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # EINVAL: some network file systems, for folders only
            raise
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    """Create `folder` and its parents, each name fsynced into the folder above it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync(folder.parent)


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace the file `path` by `data` (text as UTF-8) wholly or not at all; the mode is what the umask leaves.

    Raises: Error where the disk is full, read-only or forbids it; the old file is then untouched.
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    marks = [note(path, content) for note in tuple(_watching)]
    partial = path.with_name(f"{PARTIAL}{path.name}-{os.getpid()}")
    with explained(path, len(content)):
        _make_folder(path.parent)
        try:
            with open(partial, "wb") as stream:
                flock(stream.fileno())
                stream.write(content)
                stream.flush()
                for mark in marks:
                    if mark is not None:
                        mark(partial)
                os.fsync(stream.fileno())
                os.rename(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        fsync(path.parent)


Note = Callable[[Path, bytes], Callable[[Path], None] | None]
_watching: list[Note] = []


@contextlib.contextmanager
def watched(note: Note) -> Iterator[None]:
    """Have `note` called with the path and content of every `write_atomic` inside, before it; it may refuse.

    What it returns is called with the partial file, written but not renamed yet.
    """
    _watching.append(note)
    try:
        yield
    finally:
        _watching.remove(note)


def flock(handle: int) -> bool:
    """Take the flock of an open file or folder without waiting: False where another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without flock: nobody can hold one there
    return True


def sweep(folder: Path) -> list[Path]:
    """Remove and return what crashed writes left in `folder`; a write in progress holds its flock and is left alone."""
    swept = []
    for partial in sorted(folder.glob(f"{PARTIAL}*")):
        try:
            handle = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # another sweep was faster, or it is not ours to open
        try:
            if not flock(handle):
                continue
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    partial.unlink()
            swept.append(partial)
        finally:
            os.close(handle)
    return swept


@contextlib.contextmanager
def staged(final: str | os.PathLike[str], needed: int = 0, new: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; leaving the block makes it `final`, complete, fsynced and with its manifest.

    With `new`, anything that has come to lie at `final` meanwhile stays, and an Error is raised instead.

    An exception inside, or a full disk, removes the staging folder and leaves an earlier `final` as it was; one that
    exists is exchanged in one step. `needed` bytes must be free beforehand. Leftovers of crashes beside are swept.

    Raises: Error where there is no room, no permission, or the disk fails.
    """
    final = Path(final)
    staging = final.with_name(f"{PARTIAL}{final.name}-{os.getpid()}")
    with explained(final, needed):
        _make_folder(final.parent)
        sweep(final.parent)
        room_for(final, needed)
        staging.mkdir()
        handle = os.open(staging, os.O_RDONLY)
        try:
            flock(handle)
            yield staging
            _seal(staging)
            _put_new(staging, final) if new else _put(staging, final)
            fsync(final.parent)
        finally:
            if staging.exists():  # the failed one, or the old one after an exchange
                shutil.rmtree(staging, ignore_errors=True)
            os.close(handle)


@contextlib.contextmanager
def staged_file(final: str | os.PathLike[str], needed: int = 0) -> Iterator[Path]:
    """Yield the path of a file to write; leaving the block makes it `final`, complete and fsynced, over nothing.

    Raises: Error where there is no room, no permission, the disk fails, or `final` is there.
    """
    final = Path(final)
    partial = final.with_name(f"{PARTIAL}{final.name}-{os.getpid()}")
    with explained(final, needed):
        _make_folder(final.parent)
        sweep(final.parent)
        room_for(final, needed)
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            flock(handle)
            yield partial
            fsync(partial)
            _put_new(partial, final)
            fsync(final.parent)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
            os.close(handle)


def _seal(staging: Path) -> None:
    """fsync every file and folder under `staging`, and write its manifest last."""
    for name in manifest.names(staging):
        fsync(staging / name)
    (staging / manifest.NAME).write_bytes(manifest.describe(staging))
    fsync(staging / manifest.NAME)
    for folder, _, _ in os.walk(staging, topdown=False):
        fsync(Path(folder))


def _put(staging: Path, final: Path) -> None:
    """Rename `staging` to `final`; an existing `final` is exchanged with it, so that there is one at every instant."""
    if not final.exists():
        os.rename(staging, final)
        return
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux >= 3.15; not on every file system
    if rename and rename(_AT_FDCWD, os.fsencode(staging), _AT_FDCWD, os.fsencode(final), _EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if rename and code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(final))
    aside = final.with_name(f"{PARTIAL}{final.name}-old-{os.getpid()}")
    os.rename(final, aside)
    os.rename(staging, final)
    shutil.rmtree(aside, ignore_errors=True)


def _put_new(staging: Path, final: Path) -> None:
    """Rename `staging` to `final`, which must not be there. Raises: Error."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename and rename(_AT_FDCWD, os.fsencode(staging), _AT_FDCWD, os.fsencode(final), _NOREPLACE) == 0:
        return
    if os.path.lexists(final):
        raise Error(f"{final} is there already, and nothing is written over: name a new folder.")
    os.rename(staging, final)


def remove(path: Path) -> None:
    """Delete a folder so that a crash on the way leaves a partial name, never a folder that looks damaged."""
    doomed = path.with_name(f"{PARTIAL}{path.name}-gone-{os.getpid()}")
    with explained(path, doing="delete"):
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def verify(directory: str | os.PathLike[str]) -> None:
    """Check a folder that `staged` made, byte for byte.

    Raises: Error that names the damaged, missing or extra file and how it is wrong.
    """
    directory = Path(directory)
    with explained(directory, doing="read"):
        for name, entry in manifest.read(directory).items():
            manifest.check_hash(directory, name, manifest.sha256(directory / name), entry)


def is_gone(path: Path, own: os.stat_result) -> bool:
    """Whether `path` is not the file or folder that is open as `own`; where the disk does not answer, it is."""
    try:
        return not os.path.samestat(os.stat(path), own)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


class Lock:
    """One process a run: the flock of `run/.lock`, released when the process ends, however it ends.

    `with Lock(run): ...`. `held` is False where the file system knows no locks, for the caller to say so aloud.

    Raises: Error that names the process and host that hold it.
    """

    def __init__(self, run: str | os.PathLike[str]) -> None:
        self.run, self._handle, self._folder = Path(run), -1, -1
        with explained(self.path):
            _make_folder(self.run)
            self._folder = os.open(self.run, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.held = self._take()
        except BaseException:
            self.release()
            raise
        os.register_at_fork(after_in_child=self.release)  # else a data worker that outlives a killed run keeps the lock

    @property
    def path(self) -> Path:
        """The file that is locked."""
        return self.run / ".lock"

    def place(self) -> Path:
        """Where the locked folder lies now: `run`, or the place on the same disk that it was moved to.

        A lock file that was deleted is made again. Nothing is created where the folder was.

        Raises: Error where the folder is gone, or another process has locked it meanwhile.
        """
        if self._folder < 0:
            return self.run
        own = os.fstat(self._folder)
        if is_gone(self.run, own):
            with contextlib.suppress(OSError):
                moved = Path(os.readlink(f"/proc/self/fd/{self._folder}"))
                if not is_gone(moved, own):
                    self.run = moved
                    return self.run
            raise Error(
                f"{self.run} was deleted while in use, or moved to another disk; nothing is written in its place.",
                exit_code=74,
            )
        if self._handle >= 0 and is_gone(self.path, os.fstat(self._handle)):
            os.close(self._handle)
            self._handle = -1
            self.held = self._take()
        return self.run

    def _take(self) -> bool:
        """Open and lock the file; False where the file system knows no locks."""
        with explained(self.path):
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        held = True
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 200, 0).decode(errors="replace").strip() or "another process"
            raise Error(
                f"{self.run} is in use by {holder}: two trainings cannot share a run; "
                "wait for it, stop it (kill PID), or choose another run folder."
            ) from None
        except OSError:
            held = False
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, only its note is missing
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return held

    @staticmethod
    def was_here(run: Path) -> bool:
        """Whether a process once locked this folder as a run."""
        path = run / ".lock"
        with contextlib.suppress(OSError):
            return path.is_file() and path.read_bytes()[:8] in (b"process ", b"")
        return False

    def release(self) -> None:
        """Let another process have the run; called again it does nothing."""
        for handle in (self._handle, self._folder):
            if handle >= 0:
                os.close(handle)
        self._handle = self._folder = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
