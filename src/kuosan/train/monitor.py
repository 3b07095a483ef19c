"""Judging a run while it trains, with the averaged weights and never touching the ones in training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.data.images import grid, save_png, to_uint8
from kuosan.diffusion.loss import simple_loss, weight
from kuosan.files import explained
from kuosan.model import Model
from kuosan.networks.precision import prepare
from kuosan.sample.generate import sample
from kuosan.train.config import preview_request

if TYPE_CHECKING:
    from kuosan.data.pictures import Pictures
    from kuosan.device import Compute
    from kuosan.train.config import TrainConfig

BANDS = 8  # noise levels at which the held-out loss is reported
AT_ONCE = 64  # held-out pictures in memory


@dataclass
class Monitor:
    """Held-out losses by noise level, and preview grids from fixed seeds."""

    folder: Path
    model: Model
    pictures: Pictures
    config: TrainConfig
    compute: Compute

    def averaged_model(self, weights: dict[str, Tensor]) -> Model:
        """A model of its own with these weights, ready to sample."""
        own = self.model.config.network.kind == "own"  # a caller's module is called with float32, and keeps to it
        network = prepare(self.model.network, self.compute.device)
        network.load_state_dict(weights)
        return Model(self.model.config, network if own else prepare(network, self.compute.device, self.compute.dtype))

    @torch.no_grad()
    def held_out(self, weights: dict[str, Tensor]) -> dict[str, Any] | None:
        """The loss on held-out pictures: `loss` with training's weight over all levels, `by_noise` without a weight in
        `BANDS` bands from clean to noisy. None if no picture is held out.

        The same pictures, levels and noise every time, so that the curve is smooth.
        """
        order = seeds.permutation(len(self.pictures.held_out), self.config.seed, -1)  # classes lie one after another
        ids = self.pictures.held_out[order][: self.config.evaluate_pictures]
        if not len(ids):
            return None
        model, config = self.averaged_model(weights), self.model.config
        sums, counts, weighted = np.zeros(BANDS), np.zeros(BANDS, dtype=int), 0.0
        for begin in range(0, len(ids), AT_ONCE):
            part = ids[begin : begin + AT_ONCE]
            keys = [(self.config.seed, "evaluate", 0, begin + row) for row in range(len(part))]
            bands = (begin + np.arange(len(part))) % BANDS
            level = config.schedule.at((bands + seeds.uniform(keys)) / BANDS)
            eps = seeds.normal([(seed, "evaluate/noise", 0, row) for seed, _, _, row in keys], self.pictures.shape)
            x0 = self.pictures.batch(part, None).x0
            losses = simple_loss(
                model.network,
                config.prediction,
                x0.to(self.compute.device),
                level,
                eps.to(self.compute.device),
                sigma_data=config.sigma_data,
            )
            losses = losses.cpu().double()
            weights_here = weight(self.config.weight, level, config.prediction, config.sigma_data)
            weighted += float((losses * weights_here).sum())
            np.add.at(sums, bands, losses.numpy())
            np.add.at(counts, bands, 1)
        means = [round(float(total / n), 6) if n else None for total, n in zip(sums, counts)]
        return {"loss": weighted / len(ids), "by_noise": means}

    def preview_path(self, step: int) -> Path:
        """Where a preview lies: samples/step-00001000.png."""
        return self.folder / "samples" / f"step-{step:08d}.png"

    def preview(self, weights: dict[str, Tensor], step: int) -> Path:
        """Write a grid of pictures from fixed seeds."""
        pictures = sample(self.averaged_model(weights), preview_request(self.config)).cpu().numpy()
        path = self.preview_path(step)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(path, grid(to_uint8(pictures)))
        return path
