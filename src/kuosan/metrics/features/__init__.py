"""Named feature networks, for distances between sets of images: `features(name)(images)`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from kuosan.metrics.features.names import FAMILIES, FEATURES, check_features, split

if TYPE_CHECKING:
    from kuosan.metrics.features.network import FeatureNetwork

__all__ = ["FEATURES", "check_features", "features"]


@cache
def features(name: str = "lite0") -> FeatureNetwork:
    """The feature network called `name`, loaded once a process.

    Raises:
        Error: an unknown name; its weights are not installed (the message holds the command); damaged weights.
    """
    family, path = split(name)
    if path is None:
        from kuosan.metrics.features import lite0

        return lite0.load(family, FEATURES[family])
    if family == "dinov2":
        from kuosan.metrics.features import dinov2

        return dinov2.load(path, FAMILIES[family])
    from kuosan.metrics.features import inception

    return inception.load(family, path, FAMILIES[family])
