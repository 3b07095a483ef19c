"""The codec of a run in training: the autoencoder it names found, or found again, and its latents measured.

A run carries its autoencoder (RUN/codec), so the one it was made from may be moved or deleted afterwards. What is
measured when a run starts is in its configuration, and with that in every save; going on, it is taken from there.
"""

from __future__ import annotations

import contextlib
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
) -> tuple[Mapping[str, Any], Held | None, str | None]:
    """The tree with its codec filled in; the autoencoder that it names, None in pixel space; and what is to be said.

    A run's own copy of its autoencoder that is damaged or lost is made again from where it came from, or from the run
    named now, if the weights there have the hash that the run knows.

    Args:
        before: the configuration of the run that lies in `out` already.

    Raises:
        Error: no such autoencoder, or something else is typed than its run.
    """
    own = (before or {}).get("model", {}).get("codec", {})
    codec = codec_settings.said(tree)
    if codec.get("kind", "pixels") != "latents":
        return tree, None, None
    codec_settings.refuse_typed(codec, own)
    if not codec.get("run"):
        raise Error("model.codec.kind = latents: name the run of an autoencoder (--codec RUN), which makes them.")
    where = Path(str(codec["run"]))
    carried, note = _carried(out, own, where) if own.get("kind") == "latents" else (None, None)
    if carried is not None:
        held, filled = carried, dict(own)
        if where.exists() and str(where) != own.get("run"):
            held = autoencoder_of(where)
            filled |= {"run": str(where)}
            filled |= {} if held.sha256 == own.get("weights") else {"weights": held.sha256}
    else:
        held = autoencoder_of(where)
        filled = {"kind": "latents", "run": str(where), "weights": held.sha256}
        filled |= {name: own[name] for name in ("shift", "scale") if own.get("weights") == held.sha256}
    filled["network"] = trees.plain(held.network)
    return trees.merge(tree, {"model": {"codec": filled}}), held, note


def _carried(out: Path, own: Mapping[str, Any], typed: Path) -> tuple[Held | None, str | None]:
    """The autoencoder of the run in `out`: its own copy, else one of the same hash, and what is to be said of that.

    None where the run has no copy yet.

    Raises:
        Error: the copy is damaged, and neither the run it came from nor the one named now has the same weights.
    """
    place, wanted = out / folders.NAME, own.get("weights")
    begun = any(checkpoint.step_of(path) for path in checkpoint.checkpoints(out))
    try:
        held = folders.read(place)
        if held.sha256 == wanted:
            return held, None
        reason = f"{place} holds another autoencoder (sha256 {held.sha256[:10]}...)"
    except Error as error:
        reason = str(error)
    for source in dict.fromkeys((Path(str(own.get("run") or "")), typed)):
        with contextlib.suppress(Error):
            if source != Path() and source.exists() and (held := autoencoder_of(source)).sha256 == wanted:
                missing = not place.exists()
                what = "is missing" if missing else "is damaged"
                note = f"{place} {what}: it is copied again from {source}, whose weights have the same sha256."
                return held, note if begun or not missing else None
    if not begun:
        return None, None
    raise Error(
        f"{reason} The autoencoder that this run was trained with has sha256 {str(wanted)[:10]}...; "
        f"{own.get('run') or 'the run it came from'} is gone or has other weights now. Put {place} back from a copy of "
        f"this run, or name a run that has the same autoencoder: --codec RUN."
    )


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
    """The pictures' latents made (or found in the cache), and measured where the run is new; nothing in its folder.

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
    return Ready(config, shown, shown.codec)
