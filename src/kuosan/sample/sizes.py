"""Which sizes of images a model makes: its own, or with aspect-ratio buckets any between those it was trained on.

A size (width, height) is allowed of a model of buckets if both sides are multiples of what its network takes, width
over height lies between the trained extremes, and the pixels are at most a quarter more or fewer than in training.
Torch-free.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, gcd, log
from typing import TYPE_CHECKING

from kuosan.data import config as buckets
from kuosan.errors import Error
from kuosan.models.model import OwnNetwork
from kuosan.sample.request import ratio

if TYPE_CHECKING:
    from kuosan.models.model import Model, ModelConfig
    from kuosan.sample.request import Request

Size = tuple[int, int]  # width, height, as people say them
TOLERANCE = 0.25  # of the pixels of the smallest and the largest trained shape


def factor(config: ModelConfig) -> int:
    """The sides of a model's images are multiples of this; of a caller's network, as all it was trained on are."""
    if isinstance(config.network, OwnNetwork):
        return gcd(*(side for shape in config.shapes or (_own(config),) for side in shape))
    return config.codec.factor * config.network.factor


def text(size: Size) -> str:
    """96x64: width, then height."""
    return f"{size[0]}x{size[1]}"


def allowed(config: ModelConfig, size: Size) -> bool:
    """Whether a model makes images of a size."""
    return size == _own(config) or (bool(config.shapes) and _why_not(config, size) is None)


def of(config: ModelConfig, request: Request) -> Size:
    """The size of the images that a request asks of a model: as it says, else the model's own.

    Raises:
        Error: the model was not trained for that size.
    """
    own = _own(config)
    if request.aspect is not None:
        return _of_aspect(config, request.aspect)
    size = own if request.size is None else request.size
    if size == own:
        return own
    if not config.shapes:
        raise Error(
            f"size {text(size)}: this model was trained on images of {text(own)} alone and has never seen another "
            f"shape; leave --size out, or train on several with --data.resize buckets."
        )
    reason = _why_not(config, size)
    if reason is not None:
        near = _nearest(config, size[0] / size[1])
        raise Error(f"size {text(size)}: {reason}. {text(near)} would do.")
    return size


def sized(model: Model, size: Size) -> Model:
    """The same model making images of a size, which is allowed."""
    if size == _own(model.config):
        return model
    return replace(model, config=replace(model.config, shape=(model.shape[0], size[1], size[0])))


def asked(model: Model, request: Request) -> Model:
    """The model as it makes what a request asks for. Raises: Error for a size that it was not trained for."""
    return sized(model, of(model.config, request))


def taking(model: Model, size: Size) -> Model:
    """The model making images of a size, where its network takes them whole; else the model as it is."""
    return sized(model, size) if allowed(model.config, size) else model


def nearest_trained(config: ModelConfig, size: Size) -> Size:
    """The trained size whose aspect ratio is nearest to that of a size."""
    if not config.shapes:
        return _own(config)
    height, width = config.shapes[buckets.nearest(config.shapes, size[1], size[0])]
    return width, height


def _own(config: ModelConfig) -> Size:
    assert config.shape is not None, "a built model knows its shape"
    return config.shape[2], config.shape[1]


def _of_aspect(config: ModelConfig, aspect: str) -> Size:
    wanted = ratio(aspect)
    if not config.shapes:
        width, height = own = _own(config)
        if abs(width / height / wanted - 1) < 1e-6:
            return own
        raise Error(
            f"aspect {aspect}: this model was trained on images of {text(own)} alone and has never seen another "
            f"shape; leave --aspect out, or train on several with --data.resize buckets."
        )
    ratios = [w / h for h, w in config.shapes]
    if not min(ratios) * (1 - 1e-6) <= wanted <= max(ratios) * (1 + 1e-6):
        tall, wide = ((w, h) for h, w in (config.shapes[0], config.shapes[-1]))
        raise Error(
            f"aspect {aspect}: this model was trained on images from {text(tall)} to {text(wide)}, and this lies "
            f"beyond them; give one between, or --size {text(wide if wanted > 1 else tall)}."
        )
    return _nearest(config, wanted)


def _why_not(config: ModelConfig, size: Size) -> str | None:
    """What is wrong with a size for a model of buckets, in words."""
    width, height = size
    whole = factor(config)
    if width % whole or height % whole:
        return f"both sides must be multiples of {whole}, which this model's network takes"
    ratios, pixels = [w / h for h, w in config.shapes], [h * w for h, w in config.shapes]
    tall, wide = ((w, h) for h, w in (config.shapes[0], config.shapes[-1]))
    if not min(ratios) <= width / height <= max(ratios):
        return f"this model was trained on images from {text(tall)} to {text(wide)}, and this lies beyond them"
    low, high = (1 - TOLERANCE) * min(pixels), (1 + TOLERANCE) * max(pixels)
    if not low <= width * height <= high:
        return (
            f"this model was trained on images of {min(pixels):,} to {max(pixels):,} pixels, and {width * height:,} "
            f"are too {'many' if width * height > high else 'few'}"
        )
    return None


def _nearest(config: ModelConfig, wanted: float) -> Size:
    """The allowed size of the nearest ratio and number of pixels, which counts a quarter; if alike a trained one."""
    whole, shapes = factor(config), config.shapes
    middle = sum(h * w for h, w in shapes) / len(shapes)
    low, high = ((1 - TOLERANCE) * min(h * w for h, w in shapes), (1 + TOLERANCE) * max(h * w for h, w in shapes))
    every = (
        (w, h)
        for w in range(whole, 2 * max(max(shape) for shape in shapes), whole)
        for h in range(ceil(low / w / whole) * whole, int(high / w) + 1, whole)
    )

    def far(size: Size) -> float:
        w, h = size
        return abs(log(w / h / wanted)) + 0.25 * abs(log(w * h / middle)) * ((h, w) not in shapes)

    return min((size for size in every if _why_not(config, size) is None), key=far)
