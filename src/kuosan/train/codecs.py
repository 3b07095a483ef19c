"""The codec of a run in training: the autoencoder it names found, its latents measured, and its folder written.

A run carries its autoencoder (RUN/codec), so the one it was made from may be moved or deleted afterwards. What is
measured when a run starts is in its configuration, and with that in every save; going on, it is taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuosan import checkpoint
from kuosan import config as trees
from kuosan.codec import folder as folders
from kuosan.codec.config import Latents
from kuosan.codec.latents import LatentCodec
from kuosan.codec.pixels import PIXELS, Codec
from kuosan.errors import Error
from kuosan.model import ModelConfig, require_fit
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.train import codec_settings
from kuosan.train.latents import Encoding, LatentPictures

if TYPE_CHECKING:
    from kuosan.codec.folder import Held
    from kuosan.data.pictures import Pictures
    from kuosan.device import Compute
    from kuosan.train.config import RunConfig
    from kuosan.train.distributed import World
    from kuosan.train.folder import Asked, Found
    from kuosan.train.report import Report


def named(
    out: Path, before: Mapping[str, Any] | None, tree: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Held | None]:
    """The tree with its codec filled in, and the autoencoder that it names; None in pixel space.

    Args:
        before: the configuration of the run that lies in `out` already.

    Raises:
        Error: no such autoencoder, or something else is typed than its run.
    """
    own = (before or {}).get("model", {}).get("codec", {})
    codec = codec_settings.said(tree)
    if codec.get("kind", "pixels") != "latents":
        return tree, None
    codec_settings.refuse_typed(codec, own)
    if not codec.get("run"):
        raise Error("model.codec.kind = latents: name the run of an autoencoder (--codec RUN), which makes them.")
    where = Path(str(codec["run"]))
    if own.get("kind") == "latents" and (found := folders.find(out)) is not None:
        held, filled = folders.read(found), dict(own)
        if where.exists() and str(where) != own.get("run"):
            held = autoencoder_of(where)
            filled |= {"run": str(where)}
            filled |= {} if held.sha256 == own.get("weights") else {"weights": held.sha256}
    else:
        held = autoencoder_of(where)
        filled = {"kind": "latents", "run": str(where), "weights": held.sha256}
        filled |= {name: own[name] for name in ("shift", "scale") if own.get("weights") == held.sha256}
    filled["network"] = trees.plain(held.network)
    return trees.merge(tree, {"model": {"codec": filled}}), held


def autoencoder_of(path: Path) -> Held:
    """The autoencoder of a run that trained one, of a latent model's run, or of a codec's folder.

    Raises:
        Error: there is none.
    """
    found = folders.find(path) if path.is_dir() else None
    if found is not None:
        return folders.read(found)
    saved = checkpoint.load(path, parts=("ema",), fits=require_fit)
    network = trees.build(ModelConfig, saved.config.get("model", {})).network
    if not isinstance(network, AutoencoderConfig):
        raise Error(
            f"--codec {path} is a run of a {network.kind}, which makes no latents: train an autoencoder with "
            f"--objective autoencoder, and name its run."
        )
    return folders.held(network, saved.ema)


@dataclass(frozen=True)
class Ready:
    """What a run of latents trains on; in pixel space, what it was asked for."""

    config: RunConfig
    pictures: Pictures
    codec: Codec


def ready(
    asked: Asked,
    found: Found,
    pictures: Pictures,
    held: Held | None,
    compute: Compute,
    world: World,
    report: Report,
    cache: Path | None,
) -> Ready:
    """The pictures' latents made (or found in the cache), measured where the run is new, and the codec written.

    Args:
        cache: the root of all caches; None writes nothing: latents are made as they are asked for.
    """
    config = asked.config
    if held is None:
        return Ready(config, pictures, PIXELS)
    codec = config.model.codec
    assert isinstance(codec, Latents)
    encoding = Encoding.of(folders.build(held.network, held.tensors, codec.run), held.sha256, compute)
    shown = LatentPictures(pictures, encoding, cache, config.model.task, report)
    world.on_first(shown.fill)
    shown.open()
    if found.saved is None or not codec.scale:
        shift, scale = world.on_first(lambda: shown.measure(few=cache is None))
        codec = replace(codec, shift=shift, scale=scale)
        config = replace(config, model=replace(config.model, codec=codec))
    shown.codec = LatentCodec(codec, encoding.network)
    if cache is not None:
        world.on_first(lambda: folders.write(asked.folder, held))
    return Ready(config, shown, shown.codec)
