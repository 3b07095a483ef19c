"""Named feature networks, for distances between sets of pictures: `features(name)(pictures)`."""

from kuosan.metrics.features.names import FEATURES, check_features, features

__all__ = ["FEATURES", "check_features", "features"]
