"""Rows of arrays computed once and kept on disk, and where."""

from kuosan.shelf.roots import cache_root
from kuosan.shelf.rows import Shelf

__all__ = ["Shelf", "cache_root"]
