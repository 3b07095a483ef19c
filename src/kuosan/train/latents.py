"""Images whose batches hold latents: encoded once and kept on disk, or, where a window is drawn, as they are shown.

Kept is each image's posterior, mean and standard deviation in float16, by what it follows from: the images' content
and how they are resized, and the autoencoder's weights. A draw of the posterior, keyed as all draws are, is
what an image is shown as; so an epoch sees other latents of it than the one before.

The codec of a run in training: the autoencoder it names found, or found again, and its latents measured.

A run carries its autoencoder (RUN/codec), so the one it was made from may be moved or deleted afterwards. What is
measured when a run starts is in its configuration, and with that in every save; going on, it is taken from there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kuosan import config as trees
from kuosan import seeds
from kuosan.data.dataset import Batch, Images, Request
from kuosan.data.pixels import from_uint8
from kuosan.errors import Error
from kuosan.models import latents as folders
from kuosan.models.codec import PIXELS, Codec, Latents
from kuosan.models.latents import LatentCodec, measure, prepare
from kuosan.models.model import ModelConfig, require_fit
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.storage import checkpoint
from kuosan.storage.cache import RowCache
from kuosan.tasks import Generation
from kuosan.train import rules

if TYPE_CHECKING:
    from kuosan.data.dataset import Images
    from kuosan.device import Compute
    from kuosan.models.latents import Held
    from kuosan.networks.autoencoder import Autoencoder
    from kuosan.tasks import Task
    from kuosan.train.config import RunConfig
    from kuosan.train.distributed import World
    from kuosan.train.report import SilentTraining
    from kuosan.train.resume import RunRequest, RunState

AT_ONCE = 8  # images through the encoder together
PART = 256  # rows of latents that are kept together
MEASURED = 1024  # images that shift and scale are measured on where latents are not kept
PATIENCE = 15.0  # seconds between two words of how far it is
Moments = tuple[Tensor, Tensor]  # mean and standard deviation of posteriors, (B, c, h, w) each


@dataclass(frozen=True)
class LatentEncoder:
    """An autoencoder ready to encode, and what its latents depend on."""

    network: Autoencoder
    sha256: str  # of its weights
    compute: Compute

    @classmethod
    def of(cls, network: Autoencoder, sha256: str, compute: Compute) -> LatentEncoder:
        """The autoencoder on its device, in its precision."""
        return cls(prepare(network, compute.device, compute.dtype), sha256, compute)

    @torch.no_grad()
    def moments(self, x0: Tensor) -> Moments:
        """Of images (B, C, H, W), on the processor."""
        found = [self.network.encode(part.to(self.compute.device)) for part in torch.split(x0, AT_ONCE)]
        mean = torch.cat([each.mean for each in found]).cpu()
        return mean, torch.cat([(0.5 * each.log_var).exp() for each in found]).cpu()


@dataclass
class CachedLatents:
    """Latents of images of one shape in a cache; with mirror images, those of all images follow."""

    ids: np.ndarray  # (n,) their numbers
    cache: RowCache
    columns: dict[str, np.ndarray] = field(default_factory=dict)


class LatentImages(Images):
    """A data set whose batches hold latents as x0; beside pixels, as `latent`, for a task that damages images.

    Attributes:
        codec: by which latents are scaled; set once they are measured.
        kept: on disk, by shape; None where latents are made as they are asked for.
    """

    codec: LatentCodec

    def __init__(
        self, images: Images, encoding: LatentEncoder, cache: Path | None, task: Task, report: SilentTraining
    ) -> None:
        vars(self).update(vars(images))  # everything but the batches is the data set's own
        self.encoding, self.training_report = encoding, report
        self.with_pixels = not isinstance(task, Generation)
        self.windows = self.plan.side != self.plan.size  # random_crop: another window each time
        self.kept = None if cache is None or self.windows else self._caches(cache)
        self._place: dict[int, tuple[int, int]] = {}
        for group, each in enumerate(self.kept or ()):
            self._place |= {int(id): (group, row) for row, id in enumerate(each.ids)}

    def fill(self) -> None:
        """Encode what the caches lack, and say how long it took, or what the cache saved."""
        if self.kept is None:
            if self.windows:
                self.training_report.fact("latents_not_kept", resize="random_crop")
            return
        lacking = sum(len(gap) for each in self.kept for gap in each.cache.missing())
        saved = sum(each.cache.seconds for each in self.kept)
        progress = _Encoding(self.training_report, lacking)
        spent = sum(each.cache.fill(partial(self._encoded, each), PART, progress) for each in self.kept)
        rows = sum(each.cache.rows for each in self.kept)
        if rows > lacking:
            self.training_report.fact("latents_cached", images=rows - lacking, seconds=saved)
        if lacking:
            folder = self.kept[0].cache.path.parent
            self.training_report.fact("latents_encoded", images=lacking, seconds=spent, folder=str(folder))

    def open(self) -> None:
        """Read the caches; what another machine's process lacks on its own disk is encoded first."""
        for each in self.kept or ():
            if each.cache.missing():
                each.cache.fill(partial(self._encoded, each), PART)
            each.columns = each.cache.open()

    def measure(self, few: bool = False) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Shift and scale of the training images' latents: of all that are kept, else of a keyed sample.

        Args:
            few: of a handful, to try what a run would cost.
        """
        if self.kept is not None and not few:
            train = set(self.train.tolist())
            return measure(part for each in self.kept for part in _of_rows(each, train))
        order = self.train[seeds.permutation(len(self.train), 0, -2)][: AT_ONCE if few else MEASURED]
        if not few:
            self.training_report.fact("latents_measured", images=len(order))
        keys = [(0, "latents/measure", 0, int(id)) for id in order]
        parts = (slice(i, i + AT_ONCE) for i in range(0, len(order), AT_ONCE))
        return measure(self.encoding.moments(Images.batch(self, order[part], keys[part]).x0) for part in parts)

    def batch(self, ids: Sequence[int] | np.ndarray, keys: Sequence[seeds.Key] | None = None) -> Batch:
        """Images by number, each as a draw of its latents' posterior."""
        if self._alone:
            return self._with_words(self._drawn_latents(ids, keys), ids)
        return super().batch(ids, keys)

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """`batch` of each request in order; where latents are kept and pixels are not needed, none are decoded."""
        if not self._alone:
            yield from super().batches(requests)
            return
        for ids, keys in requests:
            yield self.batch(ids, keys)

    @property
    def _alone(self) -> bool:
        """Whether latents are all that is needed, and all are kept."""
        return self.kept is not None and not self.with_pixels

    def _finish(
        self, ids: Sequence[int] | np.ndarray, pixels: list[np.ndarray], keys: Sequence[seeds.Key] | None
    ) -> Batch:
        batch = super()._finish(ids, pixels, keys)
        if not hasattr(self, "codec"):
            return batch  # while shift and scale are measured
        if self.kept is not None:
            latent = self._drawn_latents(ids, keys)
        else:
            latent = self._draw(self.encoding.moments(batch.x0), ids, keys)
        return batch._replace(latent=latent) if self.with_pixels else batch._replace(x0=latent)

    def _drawn_latents(self, ids: Sequence[int] | np.ndarray, keys: Sequence[seeds.Key] | None) -> Tensor:
        """Draws of kept posteriors, of images of one shape: (B, c, h, w)."""
        assert self.kept is not None
        places = [self._place[int(id)] for id in ids]
        each = self.kept[places[0][0]]
        assert all(group == places[0][0] for group, _ in places), "a batch is of one shape"
        drawn: Sequence[seeds.Key | None] = keys or [None] * len(ids)
        rows = [row + len(each.ids) * self._mirrored(key) for (_, row), key in zip(places, drawn)]
        mean, std = (torch.from_numpy(each.columns[name][rows].astype(np.float32)) for name in ("mean", "std"))
        return self._draw((mean, std), ids, keys)

    def _mirrored(self, key: seeds.Key | None) -> bool:
        """Whether the key draws the mirror image; as `Images` draws it."""
        return key is not None and self.config.flip and bool(seeds.rng(*key).random() < 0.5)

    def _draw(self, moments: Moments, ids: Sequence[int] | np.ndarray, keys: Sequence[seeds.Key] | None) -> Tensor:
        """What the posteriors' draws are as a network is shown them; without keys, each image's always the same."""
        mean, std = moments
        drawn = keys or [(0, "latents", 0, int(id)) for id in ids]
        noise = seeds.normal([(seed, f"{what}/posterior", step, id) for seed, what, step, id in drawn], mean.shape[1:])
        return self.codec.scaled(mean + std * noise)

    def _encoded(self, each: CachedLatents, rows: range) -> dict[str, np.ndarray]:
        """The columns of rows of a cache; of equal images (one image with several captions) one is encoded."""
        n = len(each.ids)
        shown = [(self.scan.identity(int(each.ids[row % n])), row >= n) for row in rows]
        first = {image: row for image, row in reversed(list(zip(shown, rows)))}
        place = {image: i for i, image in enumerate(sorted(first, key=first.__getitem__))}
        unique = sorted(first.values())
        pixels = np.stack([self.pixels(int(each.ids[row % n]))[:, :: -1 if row >= n else 1] for row in unique])
        mean, std = self.encoding.moments(torch.from_numpy(from_uint8(pixels)))
        of_row = [place[image] for image in shown]
        return {"mean": mean.numpy()[of_row], "std": std.numpy()[of_row]}

    def _caches(self, cache: Path) -> list[CachedLatents]:
        """One cache for all images of a shape."""
        sides = [self.plan.shape_of(look) for look in self.scan.looks]
        found = []
        for side in sorted(set(sides)):
            ids = np.array([i for i, own in enumerate(sides) if own == side])
            shape = self.encoding.network.config.latent_shape((self.plan.channels, *side))
            columns = {name: (np.float16, shape) for name in ("mean", "std")}
            rows = len(ids) * (2 if self.config.flip else 1)
            key = self._key(ids, side)
            say = self.training_report.say
            found.append(
                CachedLatents(ids, RowCache(cache, "latents", key, rows, columns, say=say, note=self.config.path))
            )
        return found

    def _key(self, ids: np.ndarray, side: tuple[int, int]) -> dict[str, object]:
        """All that latents of these images follow from."""
        digest = blake2b(digest_size=16)
        for i in ids:
            look = self.scan.looks[i]
            digest.update(self.scan.identity(int(i)).encode() + b"\0")
            if look.reading != 1 and not self.scan.by_pixels:
                digest.update(f"{look.reading} {self.config.range}\0".encode())
        plan, compute = self.plan, self.encoding.compute
        return {
            "autoencoder": self.encoding.sha256,
            "pictures": digest.hexdigest(),
            "resize": [*side, plan.rule, plan.channels, *(plan.background or ())],
            "flip": self.config.flip,
            "computed": [compute.device.type, str(compute.dtype)],
        }


def _of_rows(each: CachedLatents, ids: set[int]) -> Iterator[Moments]:
    """The posteriors of some images, part by part, mirror images too."""
    rows = [row for row in range(each.cache.rows) if int(each.ids[row % len(each.ids)]) in ids]
    for begin in range(0, len(rows), PART):
        part = rows[begin : begin + PART]
        mean, std = (torch.from_numpy(each.columns[name][part].astype(np.float32)) for name in ("mean", "std"))
        yield mean, std


class _Encoding:
    """Says now and then how far the encoding is."""

    def __init__(self, report: SilentTraining, lacking: int) -> None:
        self.report, self.lacking, self.done = report, lacking, 0
        self.begun = self.said = time.monotonic()
        self.before: int | None = None

    def __call__(self, done: int, of: int) -> None:
        """Of one cache, `done` rows are there."""
        self.done += 0 if self.before is None or done < self.before else done - self.before
        self.before = None if done == of else done
        now = time.monotonic()
        if self.done and self.done < self.lacking and now - self.said > PATIENCE:
            self.said = now
            left = (now - self.begun) / self.done * (self.lacking - self.done)
            self.report.fact("latents_encoding", done=self.done, of=self.lacking, seconds_left=left)


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
    codec = rules.codec_tree(tree)
    if codec.get("kind", "pixels") != "latents":
        return tree, None, None
    rules.refuse_typed(codec, own)
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
    images: Images
    codec: Codec


def ready(
    asked: RunRequest,
    found: RunState,
    images: Images,
    held: Held | None,
    compute: Compute,
    world: World,
    report: SilentTraining,
    cache: Path | None,
) -> Ready:
    """The images' latents made (or found in the cache), and measured where the run is new; nothing in its folder.

    Args:
        cache: the root of all caches; None writes nothing: latents are made as they are asked for.
    """
    config = asked.config
    if held is None:
        return Ready(config, images, PIXELS)
    codec = config.model.codec
    assert isinstance(codec, Latents)
    encoding = LatentEncoder.of(folders.build(held.network, held.tensors, codec.run), held.sha256, compute)
    shown = LatentImages(images, encoding, cache, config.model.task, report)
    world.on_first(shown.fill)
    shown.open()
    if found.saved is None or not codec.scale:
        shift, scale = world.on_first(lambda: shown.measure(few=cache is None))
        codec = replace(codec, shift=shift, scale=scale)
        config = replace(config, model=replace(config.model, codec=codec))
    shown.codec = LatentCodec(codec, encoding.network)
    return Ready(config, shown, shown.codec)
