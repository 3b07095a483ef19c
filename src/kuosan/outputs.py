"""Where a verb writes its results: a folder claimed for one result, in which nothing else is ever written over.

    with claimed(folder, "sample", about, names) as output:
        files.write_atomic(folder / "seed-00000000.png", content)

A claim refuses a folder in which one of `names` is taken by a file that is not provably this very result. Proof is a
mark on the file, written before the file has its name: its sha256, and a hash of all that the result follows from
(`about`). The mark is an extended attribute, or where a file system has none a line of `.kuosan-outputs.jsonl` beside.
A file that was changed since, a user's own, or another recipe's has no such mark. Only where nothing in a folder has
one, as an older kuosan left it, other proof counts (`proof`), and such files are marked first of all. While a claim is
open, every write into the folder is checked and marked, the folder is locked against other processes, and
`UNFINISHED.txt` lies in it; a crash leaves that file, so a part of a set never looks like the whole.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from kuosan import files
from kuosan.errors import Error
from kuosan.regular import is_folder

MARK_NAME = "user.kuosan.output"  # the extended attribute
RECORD = ".kuosan-outputs.jsonl"
UNFINISHED = "UNFINISHED.txt"
MOST = 10_000  # names tried before one is unused
SHOWN = 3  # files that a refusal names

Names = Iterable[str] | Mapping[str, Any]
Proof = Callable[[Path], bool]  # whether a file that no record knows is this result all the same


def identity(verb: str, about: Any) -> str:
    """A hash of all that a result follows from."""
    return sha256(json.dumps([verb, about], sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]


class Output:
    """A folder that this process alone writes results into; made by `claimed`."""

    def __init__(self, folder: Path, verb: str, about: Any, names: Names, proof: Proof, option: str) -> None:
        own = names if isinstance(names, Mapping) else {}
        self.folder, self.verb, self.names = folder, verb, list(names)
        self._about = {name: identity(verb, said) for name, said in own.items()}
        self._usual = identity(verb, about)
        self._proof, self._option = proof, option
        self._known = _recorded_marks(folder)
        self._old = not recorded(folder)  # nothing of a kuosan that marks its files lies there

    def about(self, name: str) -> str:
        """The hash of all that a file follows from."""
        return self._about.get(name, self._usual)

    def ours(self, name: str) -> bool:
        """Whether the file of this name is there as this very result left it."""
        path = self.folder / name
        if path.is_symlink() or not path.is_file():
            return False
        marks = {(mark["about"], mark["sha256"]) for mark in _marks(path)} | self._known.get(name, set())
        if any(about == self.about(name) for about, _ in marks):
            return (self.about(name), _hash(path)) in marks
        return not marks and self._old and self._proof(path)

    def taken(self) -> list[str]:
        """Of the names that will be written, those of files that are not ours."""
        return [name for name in self.names if os.path.lexists(self.folder / name) and not self.ours(name)]

    def free(self, name: str, about: Any) -> str:
        """The name, or the first of name-2, name-3, ... that is free or holds the very result that follows from this.

        Raises:
            Error: all of them are taken.
        """
        path = Path(name)
        for i in range(1, MOST):
            other = name if i == 1 else f"{path.stem}-{i}{path.suffix}"
            self._about[other] = identity(self.verb, about)
            if not os.path.lexists(self.folder / other) or self.ours(other):
                return other
            del self._about[other]
        raise Error(f"{self.folder / name} and {MOST:,} names like it are taken: name another {self._option}.")

    def note(self, path: Path, content: bytes) -> Callable[[Path], None] | None:
        """Check a file of the folder that is about to be written; what marks it, still under its partial name.

        Raises:
            Error: a file of that name is there and is not ours.
        """
        if path.parent != self.folder or path.name in (RECORD, UNFINISHED):
            return None
        if os.path.lexists(path) and not self.ours(path.name):
            refuse(self.folder, [path.name], self._option)
        return lambda partial: self._mark(path.name, partial, sha256(content).hexdigest())

    def adopt(self) -> None:
        """Mark what an older kuosan left of this very result, so that it is known when only a part is made again."""
        for name in self.names if self._old else ():
            if os.path.lexists(self.folder / name) and self.ours(name):
                self._mark(name, self.folder / name, _hash(self.folder / name))

    def _mark(self, name: str, path: Path, digest: str) -> None:
        """Mark the file of this name, which lies at `path` as yet."""
        mark = {"about": self.about(name), "sha256": digest, "verb": self.verb}
        try:
            os.setxattr(path, MARK_NAME, json.dumps(mark).encode())
        except (OSError, AttributeError):  # a file system, or a system, without them
            self._record(name, mark)

    def _record(self, name: str, mark: dict[str, str]) -> None:
        """The mark as a line of the record."""
        line = {"name": name, **mark}
        with files.explained(self.folder / RECORD), (self.folder / RECORD).open("a", encoding="utf-8") as record:
            record.write(json.dumps(line, ensure_ascii=True) + "\n")
        self._known.setdefault(name, set()).add((mark["about"], mark["sha256"]))


@contextlib.contextmanager
def claimed(
    folder: Path,
    verb: str,
    about: Any,
    names: Names,
    *,
    inputs: Iterable[Path] = (),
    proof: Proof = lambda path: False,
    option: str = "--out",
) -> Iterator[Output]:
    """Claim a folder, which is made, for one result; released and marked as finished when the block ends well.

    Args:
        about: all that the result follows from, as plain values: the same result may be written again.
        names: the files that will be written; as a mapping, each with what that file alone follows from.
        inputs: files or folders that are read, which the folder must not be.
        proof: whether a file of an older kuosan, which kept no record, is this result; asked where no file has a mark.
        option: what the folder was named by.

    Raises:
        Error: the folder is a file, cannot be written, is in use, is read from, or holds other files of these names.
    """
    check_folder(folder, inputs, option)
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Error(f"cannot write into {folder}: permission is denied; choose another {option}.", exit_code=74)
        handle = os.open(folder, os.O_RDONLY)
    try:
        if not files.flock(handle):
            raise Error(f"another process is writing into {folder}: wait for it, or name another {option}.")
        output = Output(folder, verb, about, names, proof, option)
        refuse(folder, output.taken(), option)
        output.adopt()
        with contextlib.suppress(OSError):
            files.sweep(folder)
        marked = not os.path.lexists(folder / UNFINISHED) or unfinished(folder)
        if marked:
            text = f"{MARK} `kuosan {verb}` has not finished here, files may be missing. Give the command again.\n"
            files.write_atomic(folder / UNFINISHED, text)
        try:
            with files.watched(output.note):
                yield output
        except Error:
            _remove_empty(made)
            raise
        if marked:
            with contextlib.suppress(OSError):
                (folder / UNFINISHED).unlink(missing_ok=True)
    finally:
        os.close(handle)


def _remove_empty(made: list[Path]) -> None:
    """Remove folders that a claim has made, the innermost first, where nothing but its mark came into them."""
    with contextlib.suppress(OSError):
        for i, folder in enumerate(made):
            if i == 0 and os.listdir(folder) == [UNFINISHED]:
                (folder / UNFINISHED).unlink()
            folder.rmdir()


def named(
    out: str | None, place: Path, verb: str, about: Any, names: Names, *read: str
) -> contextlib.AbstractContextManager[Output]:
    """A claim on the folder that a person named, which must be free; else on `place`, or an unused one like it.

    Args:
        read: names of data that are read; those of folders, with `~` for the home, are never written into.
    """
    if out is None:
        return claimed_unused(place, verb, about, names)
    inputs = [path for path in (Path(os.path.expanduser(each)) for each in read if each) if is_folder(path)]
    return claimed(Path(out), verb, about, names, inputs=inputs)


@contextlib.contextmanager
def claimed_unused(
    folder: Path, verb: str, about: Any, names: Names, *, proof: Proof = lambda path: False
) -> Iterator[Output]:
    """Claim the folder, or the first of folder-2, folder-3, ... that is free or holds this very result.

    Raises:
        Error: none of them is, or the folder above cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for i in range(1, MOST):
            place = folder if i == 1 else folder.with_name(f"{folder.name}-{i}")
            try:
                found = stack.enter_context(claimed(place, verb, about, names, proof=proof))
            except Error as error:
                if error.exit_code == 74:
                    raise
                continue
            yield found
            return
        raise Error(f"{folder} and {MOST:,} folders called like it are taken: name another with --out.")


MARK = "Unfinished:"  # how the file begins that says so


def check_folder(folder: Path, inputs: Iterable[Path] = (), option: str = "--out") -> None:
    """Refuse what is no folder to write into, or is one that is read from. Raises: Error."""
    if folder.is_symlink() and not folder.exists():
        raise Error(f"{option} {folder} is a link to {os.readlink(folder)}, which is not there: name a folder.")
    if folder.exists() and not folder.is_dir():
        raise Error(f"{option} {folder} is a file; name a folder.")
    own = folder.resolve()
    for each in inputs:
        place = each.resolve()
        if own == place or (place.is_file() and own == place.parent):
            raise Error(f"{option} {folder} holds the images that are read ({each}), and they would be written over: "
                        "name another.")  # fmt: skip


def refuse(folder: Path, taken: list[str], option: str = "--out") -> None:
    """Raises: Error where files are in the way that are not this result's."""
    if taken:
        more = f" and {len(taken) - SHOWN:,} more" if len(taken) > SHOWN else ""
        raise Error(
            f"{option} {folder} already holds {', '.join(taken[:SHOWN])}{more}, of another recipe or of your own, and "
            f"nothing is written over: name another {option}, or move these away."
        )


def new_file(path: Path, same: Proof, option: str = "--out") -> None:
    """Refuse to write over a single file, unless `same` proves it to be this very result. Raises: Error."""
    if path.is_symlink() or (os.path.lexists(path) and not (path.is_file() and same(path))):
        raise Error(
            f"{option} {path} is there already, of another recipe or of your own, and nothing is written over: name "
            f"another {option}, or move it away."
        )


def write_file(path: Path, content: bytes, verb: str, about: Any, proof: Proof) -> None:
    """Write and mark a single file; one that is there is replaced only where it is this very result, untouched.

    Raises:
        Error: it is not, or cannot be written.
    """
    output = Output(path.parent, verb, about, [path.name], proof, "--out")
    with files.watched(output.note):
        files.write_atomic(path, content)


def unfinished(folder: Path) -> bool:
    """Whether a verb was stopped before its results in this folder were whole."""
    return _is_mark(folder / UNFINISHED)


def recorded(folder: Path) -> dict[str, str]:
    """The files that kuosan wrote into a folder, each with the verb that wrote it last."""
    found = {row["name"]: row.get("verb", "") for row in _rows(folder)}
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            for mark in _marks(path):
                found[path.name] = mark.get("verb", "")
    return found


def _marks(path: Path) -> list[dict[str, str]]:
    """The mark on a file; none where it has none, or one that is damaged."""
    try:
        mark = json.loads(os.getxattr(path, MARK_NAME))
    except (OSError, AttributeError, ValueError, RecursionError):
        return []
    good = isinstance(mark, dict) and all(isinstance(mark.get(key), str) for key in ("about", "sha256"))
    return [mark] if good else []


def _is_mark(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(len(MARK)) == MARK
    except (OSError, UnicodeDecodeError):
        return False


def _recorded_marks(folder: Path) -> dict[str, set[tuple[str, str]]]:
    known: dict[str, set[tuple[str, str]]] = {}
    for line in _rows(folder):
        known.setdefault(line["name"], set()).add((line["about"], line["sha256"]))
    return known


def _rows(folder: Path) -> Iterator[dict[str, str]]:
    """The record's good lines; a crash may have left half a line."""
    try:
        text = (folder / RECORD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("name", "about", "sha256")):
            yield row


def _hash(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
