"""Where caches are kept: a folder that says of itself that it is one, so that backups pass over it.

The tag is that of https://bford.info/cachedir; a folder without it that holds anything is somebody's, and is refused.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kuosan.errors import Error
from kuosan.files import PARTIAL, explained, write_atomic

VARIABLE = "KUOSAN_CACHE"  # the environment's word on where caches are
TAG = "CACHEDIR.TAG"
SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of kuosan: what is here can be computed again.\n"


def cache_root(said: str | None = None) -> Path:
    """Where caches are: as said, else $KUOSAN_CACHE, $XDG_CACHE_HOME/kuosan or ~/.cache/kuosan; nothing is made yet.

    Raises:
        Error: it is a file, or a folder that holds anything but a cache of kuosan.
    """
    if said is not None and not said.strip():
        raise Error("the cache's folder is an empty text: name one, or leave it out.")
    named = said or os.environ.get(VARIABLE)
    above = os.environ.get("XDG_CACHE_HOME", "")
    above = above if os.path.isabs(above) else "~/.cache"  # the standard has relative ones ignored
    root = Path(named or f"{above}/kuosan")
    with contextlib.suppress(RuntimeError):  # a user without a home: a folder called ~
        root = root.expanduser()
    check_root(root)
    return root


def check_root(root: Path) -> None:
    """Refuse a folder that holds something else than a cache; one that is empty or not there yet becomes one."""
    with explained(root, doing="read"):
        if root.exists() and not root.is_dir():
            raise Error(f"the cache {root} is a file: name a folder.")
        if not root.is_dir() or _is_ours(root):
            return
        other = next((item for item in sorted(os.listdir(root)) if not item.startswith(PARTIAL)), None)
    if other is not None:
        raise Error(
            f"{root} is no cache of kuosan: it holds {other} and no {TAG} of kuosan. Name an empty or a new folder "
            f"(data.cache, or ${VARIABLE})."
        )


def _is_ours(root: Path) -> bool:
    tag = root / TAG
    return tag.is_file() and tag.stat().st_size == len(SIGNATURE) and tag.read_bytes() == SIGNATURE.encode()


def claim(root: Path) -> None:
    """Make the folder and its tag. Raises: Error where the disk does not allow it."""
    if not _is_ours(root):
        write_atomic(root / TAG, SIGNATURE)
