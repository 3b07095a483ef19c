"""A trained model opened for use: from a run's folder to a network on the device, and pictures from it in one call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kuosan import checkpoint, manifest
from kuosan import config as trees
from kuosan.device import Compute, ComputeConfig, choose
from kuosan.errors import Error
from kuosan.model import Model, ModelConfig, build
from kuosan.networks.precision import prepare
from kuosan.sample.generate import sample
from kuosan.sample.plan import plan
from kuosan.sample.recipe import Recipe
from kuosan.sample.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from kuosan.sample.generate import Frame


@dataclass(frozen=True)
class Trained:
    """A model with the averaged weights of one checkpoint, and where they came from."""

    model: Model
    compute: Compute
    name: str  # the run or checkpoint, as the caller named it
    step: int
    weights: str  # sha256 of the averaged weights' file
    damaged: tuple[str, ...] = ()  # newer checkpoints that were passed over, in words

    def recipe(self, request: Request) -> Recipe:
        """What a request to this model will have made."""
        _, height, width = self.model.shape
        steps = plan(self.model.config, request).steps
        precision = str(self.compute.dtype).replace("torch.bfloat16", "bf16").replace("torch.float32", "fp32")
        return Recipe(
            self.name, self.step, self.weights, request, 0, str(self.compute), precision, (width, height), steps
        )

    def sample(
        self,
        n: int = 16,
        *,
        seed: int = 0,
        sampler: str = "dpm_solver_2m",
        steps: int | None = None,
        start: Tensor | None = None,
        on_step: Callable[[Frame], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """New pictures: (n, C, H, W) float32 in [-1, 1]. Further options are those of `Request`.

        Args:
            start: (C, H, W) or (n, C, H, W) in [-1, 1], to start from instead of from noise, with `strength=`.
            on_step: called with a `Frame` after every denoising step.

        Raises:
            Error: what this model cannot be sampled with.
        """
        tree = {"n": n, "seed": seed, "sampler": sampler, "steps": steps, **options}
        if start is not None:
            tree.setdefault("image", "a tensor")
        return sample(self.model, trees.build(Request, tree), start=start, on_step=on_step)


def load(run: str | Path, *, network: nn.Module | None = None, compute: Compute | None = None) -> Trained:
    """Open a run folder (its newest good checkpoint) or a checkpoint folder for sampling.

    Args:
        network: the caller's own module, where the run was trained with one; its weights are replaced.

    Raises:
        Error: not a run, a damaged or newer checkpoint, a network that does not fit.
    """
    compute = compute or choose(ComputeConfig())
    saved = checkpoint.load(run, parts=("ema",))
    config = trees.build(ModelConfig, saved.config.get("model", {}))
    model = build(config, network=network)
    try:
        model.network.load_state_dict(saved.ema)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise Error(f"{saved.path}: the weights do not fit the network: {reason}") from None
    model.network.requires_grad_(False).eval()
    dtype = compute.dtype if config.network.kind == "unet" else torch.float32  # a caller's module is given float32
    ready = Model(config, prepare(model.network, compute.device, dtype))
    sha256 = manifest.read(saved.path)["ema.safetensors"].sha256
    return Trained(ready, compute, str(run), saved.step, sha256, saved.damaged)


def picture(model: Model, path: Path) -> Tensor:
    """A picture file as the model wants it: (C, H, W) in [-1, 1], shorter side scaled, centre cut.

    Raises:
        Error: no such file, or no picture that can be decoded.
    """
    import torch

    from kuosan.data.config import DataConfig
    from kuosan.data.pictures import open_pictures

    channels, height, width = model.shape
    if height != width:
        raise Error(f"a model of {width}x{height} pictures cannot start from a file yet; give pixels from Python.")
    config = DataConfig(str(path), size=height, channels="grey" if channels == 1 else "rgb", resize="crop")
    opened = open_pictures(config)
    return torch.as_tensor(opened.batch([0]).x0[0])


def checkpoint_of(run: Path, recipe: Recipe) -> Path:
    """The checkpoint of a run that a recipe names: the one of its step if it is still there, else the run itself."""
    at_step = checkpoint.folder(run, recipe.step)
    return at_step if at_step.is_dir() else run


def require_weights(trained: Trained, recipe: Recipe) -> None:
    """Raises: Error unless these are the very weights that made a recipe's picture."""
    if trained.weights != recipe.weights:
        raise Error(
            f"{trained.name} holds other weights (step {trained.step}, {trained.weights[:10]}) than those that made the "
            f"picture (step {recipe.step}, {recipe.weights[:10]}): that checkpoint is gone or the run is another one. "
            f"Name the right one: kuosan sample CHECKPOINT --like PICTURE."
        )
