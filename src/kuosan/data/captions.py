"""What lies beside images, read: captions, labels and split from lists and from the files of each image's name."""

from __future__ import annotations

from collections.abc import Iterable

from kuosan.data.beside import CAPTIONS as CAPTIONS
from kuosan.data.beside import Beside, Read
from kuosan.data.cells import caption_text as caption_text
from kuosan.data.cells import class_name as class_name
from kuosan.data.config import LABEL
from kuosan.data.lists import read_datasets, read_lists
from kuosan.data.naming import Finder
from kuosan.data.sidecars import read_first_texts, read_sidecars


def read_beside(
    names: Iterable[str], read: Read, label_column: str = LABEL, *, version: int = 2, root: str = ""
) -> Beside:
    """What is said of the files `names` (relative, with /), where `read(name, limit)` gives a file's bytes.

    A row of metadata wins over a sidecar; what cannot be understood is a problem with its place, never fatal.

    Args:
        root: what the data set itself is called, with which paths in lists may begin.
        version: 1 reads as older versions did: UTF-8, the names as they stand, and `.txt` alone.

    Raises:
        Error: there is a list of images of a kind that is not read.
    """
    everything = sorted(names)
    beside = Beside(read, label_column, version)
    finder = Finder(everything, root)
    read_lists(everything, finder, beside)
    if version == 1:
        read_first_texts(everything, beside)
    else:
        read_datasets(everything, finder, beside)
        read_sidecars(everything, beside)
        beside.settle()
    return beside
