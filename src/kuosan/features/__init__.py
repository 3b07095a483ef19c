"""Named feature networks, for distances between sets of pictures: `features(name)(pictures)`."""

from kuosan.features.names import FEATURES, check, features

__all__ = ["FEATURES", "check", "features"]
