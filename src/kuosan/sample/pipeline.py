"""A trained model opened for use: from a run's folder to a network on the device, and images from it in one call.

`encode` and `decode` go between images and latents: an autoencoder's are as its encoder gives them; those of a latent
model are shifted and scaled as its network denoises them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from PIL import Image
from torch import nn

from kuosan import config as trees
from kuosan.data.headers import Refused
from kuosan.data.pixels import from_uint8, to_uint8
from kuosan.data.reading import OLDER, Reading, refused
from kuosan.device import Compute, ComputeConfig, choose
from kuosan.errors import Error, shown, unknown
from kuosan.models.codec import PIXELS, Codec
from kuosan.models.latents import Coder, LatentCodec, prepare
from kuosan.models.model import Model, ModelConfig, build, require_fit
from kuosan.models.tiling import Tiled, TiledAutoencoder
from kuosan.networks.autoencoder import Autoencoder
from kuosan.sample import embedded
from kuosan.sample import plan as sizes
from kuosan.sample.generate import sample
from kuosan.sample.guidance_models import Guides
from kuosan.sample.plan import SamplePlan, plan, refuse_to_itself
from kuosan.sample.recipe import Recipe, fingerprint, require_start
from kuosan.sample.request import Request
from kuosan.storage import checkpoint, manifest, tensors
from kuosan.tasks.task import class_words
from kuosan.text.tokens import TextEncoderConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from kuosan.diffusion.operators import Operator
    from kuosan.models.model import Model
    from kuosan.sample.generate import Frame
    from kuosan.storage.checkpoint import Saved
    from kuosan.text.encoder import TextEncoder


OUTPUTS = ("tensor", "pil")  # what `sample` and `restore` return


@torch.no_grad()
def encode(model: Model, images: Tensor, tile: int | None = None, overlap: int | None = None) -> Tensor:
    """Latents of images (B, C, H, W) in [-1, 1], where the model is: (B, c, ceil(H / f), ceil(W / f)) float32.

    Args:
        tile: pixels a side of tiles, blended; each image in one piece if None.
        overlap: that tiles share; a quarter of a tile if None.

    Raises:
        Error: a model without an autoencoder, images that it does not take, or impossible tiles.
    """
    network, codec = _coder(model)
    if images.ndim != 4 or images.shape[1] != model.shape[0]:
        raise Error(f"this autoencoder takes images (B, {model.shape[0]}, H, W); got {tuple(images.shape)}.")
    tiled = _tiled(network, max(images.shape[2:]), tile, overlap)
    mean = tiled.encode(images).mean
    return mean if codec is None else codec.scaled(mean)


@torch.no_grad()
def decode(
    model: Model,
    latents: Tensor,
    size: tuple[int, int] | None = None,
    tile: int | None = None,
    overlap: int | None = None,
) -> Tensor:
    """Images (B, C, *size) in [-1, 1] of latents (B, c, h, w); of all that these hold where no size is given.

    Args:
        size: the images' height and width, where they were no multiples of the factor.
        tile, overlap: as `encode`.

    Raises:
        Error: as `encode`, or latents of other images.
    """
    network, codec = _coder(model)
    tiled = _tiled(network, max(latents.shape[2:], default=0) * network.config.factor, tile, overlap)
    raw = latents if codec is None else codec.raw(latents)
    return tiled.decode(raw, size).float().clamp(-1, 1)


def _coder(model: Model) -> tuple[Autoencoder, LatentCodec | None]:
    """The autoencoder of a model, and how a model of its latents scales them. Raises: Error for a model of pixels."""
    if isinstance(model.network, Autoencoder):
        return model.network, None
    if isinstance(model.codec, LatentCodec):
        network: Coder = model.codec.network
        assert isinstance(network, Autoencoder), type(network)
        return network, model.codec
    raise Error(
        "this model has no autoencoder, so there are no latents: open the run of one, or of a model of its latents."
    )


def _tiled(network: Autoencoder, longest: int, tile: int | None, overlap: int | None) -> TiledAutoencoder:
    """The autoencoder in tiles; in one piece where none are asked for."""
    if tile is None and overlap is not None:
        raise Error(f"overlap = {overlap} has no effect without tiles: give tile, or leave it out.")
    factor = network.config.factor
    return TiledAutoencoder(network, max(1, -(-longest // factor)) * factor if tile is None else tile, overlap)


@dataclass(frozen=True, repr=False)
class Pipeline:
    """A model with the averaged weights of one checkpoint, and where they came from."""

    model: Model
    compute: Compute
    name: str  # the run or checkpoint, as the caller named it
    step: int
    weights: str  # sha256 of the averaged weights' file
    damaged: tuple[str, ...] = ()  # newer checkpoints that were passed over, in words
    reading: Reading = field(default_factory=Reading)  # how its training images were read, and so any image file for it
    untrained: bool = False  # the weights are as they were drawn: of step 0, and not another run's

    def __repr__(self) -> str:
        config = self.model.config
        count = sum(p.numel() for p in self.model.network.parameters())
        about = f"{'x'.join(map(str, config.shape))} images" if config.shape else "images"
        task = "" if config.task.kind == "generation" else f", {config.task.kind}"
        size = f"{count / 1e6:.2f} M parameters"
        return f"<Pipeline {self.name!r}: step {self.step:,}, {about}, {size}{task}, {self.compute}>"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before anything is made of it."""
        noise = f"{self.name} is of step 0, before any training: what it makes is noise; train it, or name another run"
        return (noise,) if self.untrained else ()

    def image(self, path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
        """An image file as training images were: their background, their rule; at `size` (width, height) if given.

        (C, H, W) float32 in [-1, 1]. Raises: Error for no such file, or no image that can be decoded.
        """
        return image(self.model if size is None else sizes.sized(self.model, size), Path(path), self.reading)

    def helpers(self, request: Request) -> dict[str, Pipeline]:
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
        helpers: Mapping[str, Pipeline] | None = None,
        size: tuple[int, int] | None = None,
        resolved: SamplePlan | None = None,
    ) -> Recipe:
        """What a request to this model will have made, from the pixels `start` where it names an image or restores one.

        `size` (width, height) is the images', where a restoration has another than the model's; `resolved` the
        request's plan, where the caller has it.
        """
        trajectory = plan(self.model.config, request) if resolved is None else resolved
        precision = str(self.compute.dtype).replace("torch.bfloat16", "bf16").replace("torch.float32", "fp32")
        return Recipe(
            self.name,
            self.step,
            self.weights,
            request,
            index=0,
            compute=str(self.compute),
            precision=precision,
            size=size or trajectory.size or sizes.of(self.model.config, request),
            steps=trajectory.steps,
            threads=self.compute.threads if self.compute.device.type == "cpu" else 0,
            start=fingerprint(start),
            classifier=_weights(helpers, "classifier"),
            reference=_weights(helpers, "reference"),
        )

    @overload
    def sample(self, n: int = 16, *, output_type: Literal["tensor"] = "tensor", **options: Any) -> Tensor: ...

    @overload
    def sample(self, n: int = 16, *, output_type: Literal["pil"], **options: Any) -> list[Image.Image]: ...

    def sample(
        self,
        n: int = 16,
        *,
        seed: int = 0,
        sampler: str = "dpm_solver_2m",
        steps: int | None = None,
        start: Tensor | None = None,
        on_step: Callable[[Frame], None] | None = None,
        output_type: str = "tensor",
        **options: Any,
    ) -> Tensor | list[Image.Image]:
        """New images: (n, C, H, W) float32 in [-1, 1]; of four channels colour times alpha, and alpha.

        Further options are those of `Request`. `kuosan.data.pixels.to_uint8` makes RGBA bytes of four channels.

        Args:
            output_type: `pil` returns a list of Pillow images, with the bytes that `kuosan sample` would write.
            prompts: of a text model, a text or several that take turns (`prompt` is understood too).
            start: (C, H, W) or (n, C, H, W) in [-1, 1], to start from instead of from noise, with `strength=`.
            on_step: called with a `Frame` after every denoising step.

        Raises:
            Error: what this model cannot be sampled with.
        """
        _check_output(output_type)
        if isinstance(n, str):
            raise Error(
                f"n = {shown(n)} is how many images are made, first of all: sample(4, prompt={n!r}); a class is "
                f"sample(4, classes={n!r})."
            )
        tree = {"n": n, "seed": seed, "sampler": sampler, "steps": steps, **spoken(options)}
        if start is not None:
            tree.setdefault("image", "a tensor")
        request = trees.build(Request, tree)
        refuse_to_itself(self.model.config, request)
        made = sample(self.model, request, start=start, guides=guides_of(self.helpers(request)), on_step=on_step)
        return _as_asked(made, output_type)

    @overload
    def restore(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        *,
        output_type: Literal["tensor"] = "tensor",
        **options: Any,
    ) -> Tensor: ...

    @overload
    def restore(
        self, images: Tensor, mask: Tensor | None = None, *, output_type: Literal["pil"], **options: Any
    ) -> list[Image.Image]: ...

    def restore(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        *,
        operator: Operator | None = None,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        on_step: Callable[[Frame], None] | None = None,
        output_type: str = "tensor",
        **options: Any,
    ) -> Tensor | list[Image.Image]:
        """Restored images: (B, C, H, W) float32 in [-1, 1]. Further options are those of `Restoration` and `Request`.

        Row i has seed + i; for several answers to one image, repeat it.

        Args:
            images: (B, C, h, w) in [-1, 1], with what is wrong with them: `upscale=4`, `deblur=2`, `colorise=True`.
            mask: (B or 1, 1, h, w), 1 where an image is to be generated.
            output_type: `pil` returns a list of Pillow images.
            operator: a linear map of one's own that `images` are the result of (see `diffusion.operators`).

        Raises:
            Error: damage that this model cannot undo, or images of a size that it cannot make.
        """
        from kuosan.sample import inputs
        from kuosan.sample import request as restoration

        _check_output(output_type)
        options = spoken(options)
        own = {name: options.pop(name) for name in restoration.NAMES if name in options}
        own |= {"mask": None if mask is None else "a tensor", "operator": operator and type(operator).__name__}
        own["upscale"] = restoration.implied(self.model.config, own)
        for name in options:
            if name not in Request.__dataclass_fields__:
                raise unknown("option of restore", name, [*restoration.NAMES, *Request.__dataclass_fields__])
        asked = trees.build(restoration.Restoration, {"image": "a tensor", **own})
        tree = {"n": len(images), "seed": seed, "steps": steps, "restoration": asked, **options}
        request = trees.build(Request, tree if sampler is None else {**tree, "sampler": sampler})
        request = restoration.usual(self.model.config, request, named=sampler is not None)
        refuse_to_itself(self.model.config, request)
        model, given, measurement = inputs.tensors(self.model, asked, images, mask, operator, request.batch)
        if isinstance(model.network, Tiled):
            request = replace(request, batch=max(1, request.batch // model.network.tile_count(*model.sample_shape[1:])))
        guides = guides_of(self.helpers(request))
        made = sample(model, request, guides=guides, given=given, measurement=measurement, on_step=on_step)
        return _as_asked(made.clamp(-1, 1), output_type)  # methods act after the bound on the prediction

    def encode(self, images: Tensor, *, tile: int | None = None, overlap: int | None = None) -> Tensor:
        """Latents of images (B, C, H, W), of an autoencoder or as a model of them denoises; see `sample.coding`."""
        return encode(self.model, images.to(self.compute.device), tile, overlap)

    def decode(
        self,
        latents: Tensor,
        size: tuple[int, int] | None = None,
        *,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Tensor:
        """Images in [-1, 1] of latents (B, c, h, w); `size` is their height and width; see `sample.coding`."""
        return decode(self.model, latents.to(self.compute.device), size, tile, overlap)


def _weights(helpers: Mapping[str, Pipeline] | None, name: str) -> str:
    return helpers[name].weights if helpers and name in helpers else ""


def guides_of(helpers: Mapping[str, Pipeline]) -> Guides:
    """The models of opened helpers, as `sample.generate` takes them."""
    return Guides(**{name: helper.model for name, helper in helpers.items()})


def load(run: str | Path, *, network: nn.Module | None = None, compute: Compute | None = None) -> Pipeline:
    """Open a run folder (its newest good checkpoint), a checkpoint folder or an exported model for sampling.

    Args:
        run: its path, or `embedded` for the text-to-image model inside the package.
        network: the caller's own module, where the run was trained with one; its weights are replaced, nothing else.

    Raises:
        Error: not a run, a damaged or newer checkpoint, a network that does not fit.
    """
    return of_saved(saved_weights(run, network=network), run, network=network, compute=compute)


def saved_weights(run: str | Path, *, network: nn.Module | None = None) -> Saved:
    """The averaged weights of a run's newest good checkpoint, with its configuration and state. Raises: Error."""
    return checkpoint.load(embedded.opened(run), parts=("ema",), fits=partial(require_fit, network=network))


def of_saved(
    saved: Saved, run: str | Path, *, network: nn.Module | None = None, compute: Compute | None = None
) -> Pipeline:
    """A checkpoint that was read, ready on a device; `run` is what the caller calls it. Raises: Error, as `load`."""
    compute = compute or choose(ComputeConfig())
    config = trees.build(ModelConfig, saved.config.get("model", {}))
    if config.shape is None and network is None:
        raise Error(f"{saved.path}: its configuration says nothing of the images' shape (model.shape): it is damaged.")
    if network is None:  # takes the mapped tensors as they lie; `prepare` copies them one by one, in its precision
        model = Model(config, tensors.undrawn(lambda: build(config).network))
    else:
        model = build(config, network=network)
    numbers = {name for name, _ in model.network.named_parameters()}
    if name := tensors.first_nonfinite({name: value for name, value in saved.ema.items() if name in numbers}):
        raise Error(
            f"{saved.path}: {shown(name)} holds NaN or infinity, so nothing can be made of these weights: their "
            f"training has diverged, or the file was changed. Use another checkpoint."
        )
    try:
        (tensors.assign if network is None else nn.Module.load_state_dict)(model.network, saved.ema)
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
    return Pipeline(ready, compute, str(run), saved.step, sha256, saved.damaged, reading, noise)


def pil_images(images: Tensor) -> list[Image.Image]:
    """Images (n, C, H, W) in [-1, 1] as Pillow has them, with the bytes that a PNG of each would hold."""
    pixels = to_uint8(images.detach().float().cpu().numpy())
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]


def _as_asked(images: Tensor, output_type: str) -> Tensor | list[Image.Image]:
    return pil_images(images) if output_type == "pil" else images


def _check_output(output_type: str) -> None:
    if output_type not in OUTPUTS:
        raise unknown("output_type", output_type, OUTPUTS)


def spoken(options: dict[str, Any]) -> dict[str, Any]:
    """Options with `prompts` as a request has them, from one text or several, also by the name that diffusers uses.

    Classes may be numbers, one or several; `class_` and `class_labels` are understood.
    """
    for name in ("classes", "class_", "class_labels"):
        if name in options:
            rest = {key: value for key, value in options.items() if key != name}
            options = {**rest, "classes": class_words(options[name])}
    for name in ("prompt", "prompts"):
        if name in options:
            said = options[name]
            rest = {key: value for key, value in options.items() if key not in ("prompt", "prompts")}
            return {**rest, "prompts": (said,) if isinstance(said, str) else tuple(said)}
    return options


def encoder_of(config: ModelConfig) -> TextEncoder | None:
    """The text encoder of a model's captions, opened; None where it has none.

    Raises:
        Error: it is not there any more, or is another.
    """
    if not isinstance(config.text, TextEncoderConfig):
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
    from kuosan.models import latents as folder

    return folder.opened(config.codec, folder.of_run(config.codec, path), compute.device, compute.dtype)


def image(
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
    start = image(model, Path(recipe.request.image), reading)
    if fingerprint(start) != recipe.start:
        older = image(model, Path(recipe.request.image))
        start = older if fingerprint(older) == recipe.start else start
    require_start(recipe, start)
    return start


def checkpoint_of(run: Path, recipe: Recipe) -> Path:
    """The checkpoint of a run that a recipe names: the one of its step if it is still there, else the run itself."""
    at_step = checkpoint.folder(run, recipe.step)
    return at_step if at_step.is_dir() else run


def require_weights(trained: Pipeline, recipe: Recipe) -> None:
    """Raises: Error unless these are the very weights that made a recipe's image."""
    if trained.weights != recipe.weights:
        raise Error(
            f"{trained.name} holds other weights (step {trained.step}, {trained.weights[:10]}) than those that made "
            f"the image (step {recipe.step}, {recipe.weights[:10]}): that checkpoint is gone, or the run is another. "
            f"Name the right one: kuosan sample CHECKPOINT --like IMAGE."
        )


def require_helper(name: str, helper: Pipeline, recipe: Recipe) -> None:
    """Raises: Error unless a classifier or weaker model has the very weights that a recipe's image was made with."""
    if helper.weights != getattr(recipe, name):
        raise Error(
            f"the {name} {helper.name} holds other weights (step {helper.step}, {helper.weights[:10]}) than those that "
            f"guided the image ({getattr(recipe, name)[:10]}): put that checkpoint back in its place."
        )
