"""Validation of a run while it trains, with the averaged weights and never touching the ones in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kuosan import seeds
from kuosan.data.pixels import grid, save_png, to_uint8
from kuosan.models.latents import prepare
from kuosan.models.model import Model
from kuosan.sample.generate import sample
from kuosan.sample.write import check_sheet
from kuosan.storage.files import explained
from kuosan.tasks.condition import degrade
from kuosan.tasks.task import NULL
from kuosan.text.tokens import escaped
from kuosan.train.resolve import preview_request

if TYPE_CHECKING:
    from kuosan.data.dataset import Batch, Images
    from kuosan.networks.autoencoder import Autoencoder
    from kuosan.sample.request import Request
    from kuosan.train.config import TrainConfig
    from kuosan.train.objective import Objective
    from kuosan.train.text_conditioning import Texts

BANDS = 8  # noise levels at which the validation loss is reported
AT_ONCE = 64  # held-out images in memory
GUIDANCE = 3.0  # of previews from captions


@dataclass
class Monitor:
    """Validation losses by noise level, and preview grids from fixed seeds."""

    folder: Path
    model: Model
    images: Images
    config: TrainConfig
    objective: Objective
    texts: Texts | None = None  # what the network is given of captions
    noise_shape: tuple[int, int, int] | None = None  # of one image's noise; None: the image's own
    at_once: int = AT_ONCE  # held-out images computed together

    def averaged_model(self, weights: dict[str, Tensor]) -> Model:
        """A model of its own with these weights, ready to sample."""
        own = self.model.config.network.kind == "own"  # a caller's module is called with float32, and keeps to it
        network = prepare(self.model.network, self.objective.compute.device)
        network.load_state_dict(weights)
        return replace(
            self.model,
            network=network if own else prepare(network, self.objective.compute.device, self.objective.compute.dtype),
        )

    @torch.no_grad()
    def validate(self, weights: dict[str, Tensor]) -> dict[str, Any] | None:
        """What the objective says of held-out images: `loss` over all levels, `by_noise` in `BANDS` bands from clean
        to noisy. None if no image is held out.

        The same images, levels and noise every time, so that the curve is smooth.
        """
        order = seeds.permutation(len(self.images.held_out), self.config.seed, -1)  # classes lie one after another
        ids = self.images.held_out[order][: self.config.evaluate_images]
        if not len(ids):
            return None
        model = self.averaged_model(weights)
        sums: dict[str, np.ndarray] = {}
        counts = np.zeros(BANDS, dtype=int)
        for rows in self._parts(ids):
            part, bands = ids[rows], rows % BANDS
            keys = [(self.config.seed, "evaluate", 0, int(row)) for row in rows]
            level = self.objective.level((bands + seeds.uniform(keys)) / BANDS)
            batch = self._damaged(part, [(seed, "evaluate/degrade", 0, row) for seed, _, _, row in keys]).denoised
            shape = self.noise_shape or tuple(batch.x0.shape[1:])
            eps = seeds.normal([(seed, "evaluate/noise", 0, row) for seed, _, _, row in keys], shape)
            measured = self.objective.validate(model.network, batch, level, eps)
            for name, values in measured.items():
                np.add.at(sums.setdefault(name, np.zeros(BANDS)), bands, values.numpy())
            np.add.at(counts, bands, 1)
        return {
            name: by_band(total, counts) if name.endswith("by_noise") else float(total.sum() / counts.sum())
            for name, total in sums.items()
        }

    def _parts(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """The rows of these images, a batch of one bucket after another."""
        of = self.images.buckets.of[ids]
        for bucket in np.unique(of):
            rows = np.flatnonzero(of == bucket)
            yield from (rows[begin : begin + self.at_once] for begin in range(0, len(rows), self.at_once))

    def _shown(self, n: int) -> np.ndarray:
        """The images of previews, held-out ones where there are any; of the model's own shape, as previews are.

        Of a model of captions: images that have one.
        """
        own = self.images.only(self.images.shape[1:])
        captions = self.images.captions if self.texts is not None else None
        ids = own.held_out if captions is None else _captioned(own.held_out, captions)
        if not len(ids):
            ids = own.train if captions is None else _captioned(own.train, captions)
        order = seeds.permutation(len(ids), self.config.seed, -1)
        return np.asarray(ids[order][:n])

    def preview_path(self, step: int) -> Path:
        """Where a preview lies: samples/step-00001000.png."""
        return self.folder / "samples" / f"step-{step:08d}.png"

    def preview(self, weights: dict[str, Tensor], step: int, at_once: int | None = None) -> Path:
        """Write a grid of images from fixed seeds; where they are restored, what was given, made, and the truth.

        Args:
            at_once: images computed together; None: as sampling does.
        """
        request = preview_request(self.config, self.model.config.task)
        request = replace(request, batch=at_once or request.batch)
        if self.texts is not None and self.images.captions is not None:
            guidance = GUIDANCE if self.model.config.task.dropped else None
            request = replace(request, prompts=self._prompts(request.n), guidance=guidance)
        if self.model.config.network.kind == "autoencoder":
            made = self._reconstructed(weights, request.batch)
        else:
            images, columns = self._previewed(weights, request)
            made = grid(to_uint8(images.numpy()), columns)
        path = self.preview_path(step)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(path, made)
        return path

    @torch.no_grad()
    def _reconstructed(self, weights: dict[str, Tensor], at_once: int) -> np.ndarray:
        """An autoencoder's sheet of held-out images: what went in, came out, is wrong, and the latents between."""
        network = cast("Autoencoder", self.averaged_model(weights).network)
        ids = self._shown(self.config.preview_images)
        x = self.images.batch(ids, None).x0.to(self.objective.compute.device)
        z = torch.cat([network.encode(part).mean for part in torch.split(x, at_once)])
        y = torch.cat([network.decode(part) for part in torch.split(z, at_once)]).clamp(-1, 1)
        return check_sheet(x, y, z, columns=max(1, round((len(ids) / 4) ** 0.5)))

    def _previewed(self, weights: dict[str, Tensor], request: Request) -> tuple[Tensor, int | None]:
        """The images of a preview's grid and its columns."""
        model = self.averaged_model(weights)
        if request.restoration is None:
            return sample(model, request).cpu(), None
        ids = self._shown(request.n)
        batch = self._damaged(ids, [(self.config.seed, "preview/degrade", 0, row) for row in range(len(ids))])
        assert batch.given is not None
        classes: tuple[str, ...] = ()
        if model.config.task.labels and batch.label is not None:  # each image's own
            names = (*model.config.task.class_names, NULL)  # -1 is the last
            classes = tuple(names[int(label)] for label in batch.label)
        made = sample(model, replace(request, n=len(ids), classes=classes), given=batch.given).cpu()
        shown = F.interpolate(batch.given.image, made.shape[-2:], mode="nearest")
        return torch.stack([shown, made, batch.x0], dim=1).flatten(0, 1), 3 * max(1, round((len(ids) / 3) ** 0.5))

    def _prompts(self, n: int) -> tuple[str, ...]:
        """The captions of the very images that a preview shows."""
        assert self.images.captions is not None
        return tuple(escaped(self.images.captions[int(i)] or "") for i in self._shown(n))

    def _damaged(self, ids: np.ndarray, keys: list[seeds.Key]) -> Batch:
        """Held-out images, each with its damage."""
        batch = self.images.batch(ids, None)
        if self.texts is not None:
            batch = batch._replace(text=self.texts.of(np.asarray(ids), np.zeros(len(ids), bool)))
        return batch._replace(given=degrade(self.model.config.task, batch.x0, [seeds.rng(*key) for key in keys]))


def _captioned(ids: np.ndarray, captions: Sequence[str | None]) -> np.ndarray:
    """Those of these images that have a caption."""
    return ids[[bool(captions[int(i)]) for i in ids]] if len(ids) else ids


def by_band(total: np.ndarray, counts: np.ndarray) -> list[float | None]:
    """The mean of each band, None of one without images."""
    return [round(float(value / n), 6) if n else None for value, n in zip(total, counts)]
