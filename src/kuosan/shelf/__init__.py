"""What is computed once and kept on disk: rows of arrays, single results; and where."""

from kuosan.shelf.results import NEAR, Results
from kuosan.shelf.roots import cache_root
from kuosan.shelf.rows import Shelf

__all__ = ["NEAR", "Results", "Shelf", "cache_root"]
