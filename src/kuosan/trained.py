"""A trained model opened for use: from a run's folder to a network on the device, and pictures from it in one call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kuosan import checkpoint, manifest, weights
from kuosan import config as trees
from kuosan.codec.pixels import PIXELS, Codec
from kuosan.data.headers import Refused
from kuosan.data.images import from_uint8
from kuosan.data.reading import OLDER, Reading, refused
from kuosan.device import Compute, ComputeConfig, choose
from kuosan.errors import Error, shown, unknown
from kuosan.model import Model, ModelConfig, build, require_fit
from kuosan.networks.precision import prepare
from kuosan.networks.tiled import Tiled
from kuosan.sample import coding, embedded, sizes
from kuosan.sample.generate import sample
from kuosan.sample.guided import Guides
from kuosan.sample.plan import plan, refuse_to_itself
from kuosan.sample.recipe import Recipe, fingerprint, require_start
from kuosan.sample.request import Request
from kuosan.text.config import Encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from kuosan.diffusion.operators import Operator
    from kuosan.sample.generate import Frame
    from kuosan.text.encoder import TextEncoder


@dataclass(frozen=True)
class Trained:
    """A model with the averaged weights of one checkpoint, and where they came from."""

    model: Model
    compute: Compute
    name: str  # the run or checkpoint, as the caller named it
    step: int
    weights: str  # sha256 of the averaged weights' file
    damaged: tuple[str, ...] = ()  # newer checkpoints that were passed over, in words
    reading: Reading = field(default_factory=Reading)  # how its training images were read, and so any image file for it
    untrained: bool = False  # the weights are as they were drawn: of step 0, and not another run's

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before anything is made of it."""
        noise = f"{self.name} is of step 0, before any training: what it makes is noise; train it, or name another run"
        return (noise,) if self.untrained else ()

    def image(self, path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
        """An image file as training images were: their background, their rule; at `size` (width, height) if given.

        (C, H, W) float32 in [-1, 1]. Raises: Error for no such file, or no image that can be decoded.
        """
        return picture(self.model if size is None else sizes.sized(self.model, size), Path(path), self.reading)

    def helpers(self, request: Request) -> dict[str, Trained]:
        """The classifier and the weaker model that a request names, opened, by those words.

        Raises:
            Error: not a run, or one that cannot be opened.
        """
        paths = {"classifier": request.classifier, "reference": request.reference}
        return {name: load(path, compute=self.compute) for name, path in paths.items() if path is not None}

    def recipe(
        self,
        request: Request,
        start: Tensor | None = None,
        helpers: Mapping[str, Trained] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Recipe:
        """What a request to this model will have made, from the pixels `start` where it names an image or restores one.

        `size` (width, height) is the pictures', where a restoration has another than the model's.
        """
        steps = plan(self.model.config, request).steps
        precision = str(self.compute.dtype).replace("torch.bfloat16", "bf16").replace("torch.float32", "fp32")
        return Recipe(
            self.name,
            self.step,
            self.weights,
            request,
            picture=0,
            compute=str(self.compute),
            precision=precision,
            size=size or sizes.of(self.model.config, request),
            steps=steps,
            threads=self.compute.threads if self.compute.device.type == "cpu" else 0,
            start=fingerprint(start),
            classifier=_weights(helpers, "classifier"),
            reference=_weights(helpers, "reference"),
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
            prompts: of a text model, a text or several that take turns (`prompt` is understood too).
            start: (C, H, W) or (n, C, H, W) in [-1, 1], to start from instead of from noise, with `strength=`.
            on_step: called with a `Frame` after every denoising step.

        Raises:
            Error: what this model cannot be sampled with.
        """
        tree = {"n": n, "seed": seed, "sampler": sampler, "steps": steps, **spoken(options)}
        if start is not None:
            tree.setdefault("image", "a tensor")
        request = trees.build(Request, tree)
        refuse_to_itself(self.model.config, request)
        return sample(self.model, request, start=start, guides=guides_of(self.helpers(request)), on_step=on_step)

    def restore(
        self,
        pictures: Tensor,
        mask: Tensor | None = None,
        *,
        operator: Operator | None = None,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        on_step: Callable[[Frame], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """Restored pictures: (B, C, H, W) float32 in [-1, 1]. Further options are those of `Restoration` and `Request`.

        Row i has seed + i; for several answers to one picture, repeat it.

        Args:
            pictures: (B, C, h, w) in [-1, 1], with what is wrong with them: `upscale=4`, `deblur=2`, `colorise=True`.
            mask: (B or 1, 1, h, w), 1 where a picture is to be made anew.
            operator: a linear map of one's own that `pictures` are the result of (see `diffusion.operators`).

        Raises:
            Error: damage that this model cannot undo, or pictures of a size that it cannot make.
        """
        from kuosan.sample import bring, restoration

        options = spoken(options)
        own = {name: options.pop(name) for name in restoration.NAMES if name in options}
        own |= {"mask": None if mask is None else "a tensor", "operator": operator and type(operator).__name__}
        own["upscale"] = restoration.implied(self.model.config, own)
        for name in options:
            if name not in Request.__dataclass_fields__:
                raise unknown("option of restore", name, [*restoration.NAMES, *Request.__dataclass_fields__])
        asked = trees.build(restoration.Restoration, {"picture": "a tensor", **own})
        tree = {"n": len(pictures), "seed": seed, "steps": steps, "restoration": asked, **options}
        request = trees.build(Request, tree if sampler is None else {**tree, "sampler": sampler})
        request = restoration.usual(self.model.config, request, named=sampler is not None)
        refuse_to_itself(self.model.config, request)
        model, given, measurement = bring.tensors(self.model, asked, pictures, mask, operator, request.batch)
        if isinstance(model.network, Tiled):
            request = replace(request, batch=max(1, request.batch // model.network.tile_count(*model.walk_shape[1:])))
        guides = guides_of(self.helpers(request))
        made = sample(model, request, guides=guides, given=given, measurement=measurement, on_step=on_step)
        return made.clamp(-1, 1)  # methods act after the bound on the prediction

    def encode(self, pictures: Tensor, *, tile: int | None = None, overlap: int | None = None) -> Tensor:
        """Latents of pictures (B, C, H, W), of an autoencoder or as a model of them denoises; see `sample.coding`."""
        return coding.encode(self.model, pictures.to(self.compute.device), tile, overlap)

    def decode(
        self,
        latents: Tensor,
        size: tuple[int, int] | None = None,
        *,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Tensor:
        """Pictures in [-1, 1] of latents (B, c, h, w); `size` is their height and width; see `sample.coding`."""
        return coding.decode(self.model, latents.to(self.compute.device), size, tile, overlap)


def _weights(helpers: Mapping[str, Trained] | None, name: str) -> str:
    return helpers[name].weights if helpers and name in helpers else ""


def guides_of(helpers: Mapping[str, Trained]) -> Guides:
    """The models of opened helpers, as `sample.generate` takes them."""
    return Guides(**{name: helper.model for name, helper in helpers.items()})


def load(run: str | Path, *, network: nn.Module | None = None, compute: Compute | None = None) -> Trained:
    """Open a run folder (its newest good checkpoint), a checkpoint folder or an exported model for sampling.

    Args:
        run: its path, or `embedded` for the text-to-image model inside the package.
        network: the caller's own module, where the run was trained with one; its weights are replaced, nothing else.

    Raises:
        Error: not a run, a damaged or newer checkpoint, a network that does not fit.
    """
    compute = compute or choose(ComputeConfig())
    saved = checkpoint.load(embedded.opened(run), parts=("ema",), fits=partial(require_fit, network=network))
    config = trees.build(ModelConfig, saved.config.get("model", {}))
    if config.shape is None and network is None:
        raise Error(f"{saved.path}: its configuration says nothing of the images' shape (model.shape): it is damaged.")
    model = build(config, network=network)
    numbers = {name for name, _ in model.network.named_parameters()}
    if name := weights.first_nonfinite({name: value for name, value in saved.ema.items() if name in numbers}):
        raise Error(
            f"{saved.path}: {shown(name)} holds NaN or infinity, so nothing can be made of these weights: their "
            f"training has diverged, or the file was changed. Use another checkpoint."
        )
    try:
        model.network.load_state_dict(saved.ema)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise Error(f"{saved.path}: the weights do not fit the network: {reason}") from None
    if config.network.kind == "own":
        compute = replace(compute, dtype=torch.float32)  # a caller's module may not take bf16
    ready = replace(model, network=prepare(model.network, compute.device, compute.dtype), encoder=encoder_of(config))
    ready.codec = codec_of(config, saved.path, compute)
    sha256 = manifest.read(saved.path)["ema.safetensors"].sha256
    reading = Reading.of(saved.config, saved.state)
    noise = saved.untrained and not checkpoint.is_exported(saved.path)  # an export does not say what it began from
    return Trained(ready, compute, str(run), saved.step, sha256, saved.damaged, reading, noise)


def spoken(options: dict[str, Any]) -> dict[str, Any]:
    """Options with `prompts` as a request has them, from one text or several, also by the name that diffusers uses."""
    for name in ("prompt", "prompts"):
        if name in options:
            said = options[name]
            rest = {key: value for key, value in options.items() if key not in ("prompt", "prompts")}
            return {**rest, "prompts": (said,) if isinstance(said, str) else tuple(said)}
    return options


def encoder_of(config: ModelConfig) -> TextEncoder | None:
    """The text encoder that a model is told of captions by, opened; None where it has none.

    Raises:
        Error: it is not there any more, or is another.
    """
    if not isinstance(config.text, Encoder):
        return None
    from kuosan.text.encoder import open_encoder

    return open_encoder(config.text, fetch=False)


def codec_of(config: ModelConfig, path: Path, compute: Compute) -> Codec:
    """The codec of a model whose checkpoint is at `path`, opened: of latents, by the autoencoder that the run carries.

    Raises:
        Error: that is missing, damaged, or another.
    """
    if config.codec.kind == "pixels":
        return PIXELS
    from kuosan.codec import folder

    return folder.opened(config.codec, folder.of_run(config.codec, path), compute.device, compute.dtype)


def picture(
    model: Model, path: Path, reading: Reading | None = None, say: Callable[[str], None] = lambda note: None
) -> Tensor:
    """An image file as the model takes it: (C, H, W) in [-1, 1].

    Args:
        reading: of the run. None reads as kuosan did before runs' own readings were kept: transparency on white,
            scaled to cover the model's size, centre cut.
        say: called with each thing that was done to it, in words.

    Raises:
        Error: no such file, or no image that can be decoded.
    """
    try:
        shown = (OLDER if reading is None else reading).shown(path, model.shape)
    except Refused as reason:
        raise refused(path, "used", reason) from None
    for note in shown.notes:
        say(f"{path}: {note}")
    return torch.from_numpy(from_uint8(shown.pixels))


def start_of(recipe: Recipe, model: Model, reading: Reading) -> Tensor | None:
    """The image that a recipe's request started from, read as then; None where it started from noise alone.

    Raises:
        Error: it is not there, or is another.
    """
    if recipe.request.image is None:
        return None
    start = picture(model, Path(recipe.request.image), reading)
    if fingerprint(start) != recipe.start:
        older = picture(model, Path(recipe.request.image))
        start = older if fingerprint(older) == recipe.start else start
    require_start(recipe, start)
    return start


def checkpoint_of(run: Path, recipe: Recipe) -> Path:
    """The checkpoint of a run that a recipe names: the one of its step if it is still there, else the run itself."""
    at_step = checkpoint.folder(run, recipe.step)
    return at_step if at_step.is_dir() else run


def require_weights(trained: Trained, recipe: Recipe) -> None:
    """Raises: Error unless these are the very weights that made a recipe's picture."""
    if trained.weights != recipe.weights:
        raise Error(
            f"{trained.name} holds other weights (step {trained.step}, {trained.weights[:10]}) than those that made "
            f"the picture (step {recipe.step}, {recipe.weights[:10]}): that checkpoint is gone, or the run is another. "
            f"Name the right one: kuosan sample CHECKPOINT --like PICTURE."
        )


def require_helper(name: str, helper: Trained, recipe: Recipe) -> None:
    """Raises: Error unless a classifier or weaker model has the very weights that a recipe's picture was made with."""
    if helper.weights != getattr(recipe, name):
        raise Error(
            f"the {name} {helper.name} holds other weights (step {helper.step}, {helper.weights[:10]}) than those that "
            f"guided the picture ({getattr(recipe, name)[:10]}): put that checkpoint back in its place."
        )
