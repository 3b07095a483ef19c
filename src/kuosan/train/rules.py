"""Which settings of a training go together, and whether its network fits the images. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from math import gcd, lcm, sqrt
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from kuosan import config as trees
from kuosan.config import build, merge
from kuosan.diffusion.registry import check_weight
from kuosan.diffusion.schedule import Discrete
from kuosan.errors import Error, pip_install, plural
from kuosan.metrics.features.names import perceptual_features
from kuosan.networks.autoencoder_config import most_layers
from kuosan.networks.config import network_line
from kuosan.options import Tree
from kuosan.sample.plan import factor
from kuosan.tasks import SuperResolution
from kuosan.text.tokens import width
from kuosan.train.config import AutoencoderSettings, RunConfig

if TYPE_CHECKING:
    from kuosan.models.model import ModelConfig
    from kuosan.networks.autoencoder_config import AutoencoderConfig
    from kuosan.networks.config import DiTConfig, UNetConfig
    from kuosan.train.config import TrainConfig


def _length(tree: Mapping[str, Any]) -> tuple[float, int]:
    """The minutes and the steps that a tree asks for; 0 where it says nothing of them."""
    said = {key: value for key, value in _group(tree, "train").items() if key in ("minutes", "max_steps")}
    kept = {key: value for key, value in said.items() if str(value) != "0"}
    train = trees.build(RunConfig, {"train": kept}).train
    return train.minutes, train.max_steps if "max_steps" in kept else 0


def _group(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tree.get(name, {})
    return found if isinstance(found, Mapping) else {}


def check_length(tree: Mapping[str, Any], where: str) -> None:
    """Raises: Error: both a time and a number of steps are asked for."""
    minutes, steps = _length(tree)
    if minutes and steps:
        raise Error(
            f"train.minutes = {minutes:g} and train.max_steps = {steps}{where}: each says how long the run is. Leave "
            f"--max-steps out, and as many steps are taken as fit into {minutes:g} minutes, or leave --minutes out."
        )


def without_length(of_file: Tree, tree: Mapping[str, Any]) -> Tree:
    """A file's settings without its length, where another kind of length is typed; looks are counted with it."""
    minutes, steps = _length(tree)
    idle = ["minutes"] if steps else ["max_steps", "save_every", "evaluate_every"] if minutes else []
    train = dict(_group(of_file, "train"))
    if minutes and str(train.get("preview_every")) != "0":
        idle.append("preview_every")
    kept = {key: value for key, value in train.items() if key not in idle}
    return {**of_file, "train": kept} if idle and train else of_file


def check_length_kept(out: Path, before: Mapping[str, Any], tree: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """Refuse a time budget for a run that counts steps, and steps for one that has a time budget. Raises: Error."""
    begun, now, steps = _length(before)[0], _length(tree)[0], _length(typed)[1]
    if begun and (steps or not now):
        asked = f"train.max_steps = {steps}" if steps else "no time budget"
        raise Error(
            f"{out} was begun with train.minutes = {begun:g}, and now {asked} is asked for: say --minutes {begun:g} to "
            f"go on as planned, more minutes for a longer run, or begin another with --out ANOTHER --init "
            f"{quote(str(out))}."
        )
    if now and not begun:
        raise Error(
            f"train.minutes = {now:g}, but {out} was begun with a number of steps: say --max-steps for a longer run, "
            f"or begin another with --out ANOTHER --init {quote(str(out))} --minutes {now:g}."
        )


def check_log_to(train: TrainConfig) -> None:
    """Raises: Error: TensorBoard's files are asked for, and its package is not there."""
    if train.log_to == "tensorboard" and find_spec("tensorboard") is None:
        raise Error(
            f"train.log_to = tensorboard needs the Python package tensorboard, not installed here: "
            f"{pip_install('tensorboard')}. log.jsonl and log.csv are written without it: leave --log-to out."
        )


def check_clear(train: TrainConfig, model: ModelConfig) -> None:
    """Refuse what knows no alpha beside channels rgba. Raises: Error."""
    if train.objective == "autoencoder":
        raise Error(
            "data.channels = rgba with objective autoencoder is not built: its perceptual distance knows colours "
            "alone. Train a model of pixels, or use --channels rgb."
        )
    if isinstance(model.task, SuperResolution) and model.task.jpeg:
        raise Error(
            f"model.task.jpeg = {model.task.jpeg} with data.channels = rgba: a JPEG file holds no alpha; leave it out, "
            "or use --channels rgb."
        )
    if train.objective == "diffusion" and train.loss != "simple":
        raise Error(
            f"train.loss = {train.loss} with data.channels = rgba: the bound is of bytes, and colour times alpha is "
            "none; use loss simple."
        )


def check_loss(train: TrainConfig, model: ModelConfig) -> None:
    """Refuse what this model cannot be trained with. Raises: Error."""
    schedule, discrete = model.schedule, model.schedule.kind == "discrete"
    check_weight(train.weighting, schedule, model.prediction)
    if train.loss != "simple" and not discrete:
        raise Error(
            f"train.loss = {train.loss} with schedule {schedule.kind}: it is the bound of T discrete steps; use "
            "schedule discrete, or loss simple with weight vlb."
        )
    if train.t_sampling != "uniform" and not discrete:
        own = {"karras": "p_mean and p_std", "flow": "density, mean and std"}[schedule.kind]
        raise Error(
            f"train.t_sampling = {train.t_sampling} with schedule {schedule.kind}, whose own {own} say how levels are "
            "drawn (--model.schedule...); leave it out."
        )
    if model.learned_variance and train.loss == "simple":
        raise Error(
            "model.learned_variance = true with loss simple, which does not reach the variance: use --train.loss "
            "hybrid (or vlb)."
        )
    if model.learned_variance and train.vlb_variance != "posterior":
        raise Error(f"train.vlb_variance = {train.vlb_variance}, but this model learns its variance; leave it out.")
    if train.loss == "hybrid" and not model.learned_variance:
        raise Error(
            "train.loss = hybrid trains the error and, by the bound, a variance; add --model.learned-variance, or use "
            "loss simple or vlb."
        )


# What follows: every image is shown with its class, and there is nothing to preview.
CLASSIFIER_FOLLOWS: Tree = {"train": {"preview_every": 0}, "model": {"task": {"labels": True, "drop": 0.0}}}


def check_classifier(train: TrainConfig, model: ModelConfig, usual: str) -> None:
    """Refuse what only a denoiser has, or its previews; `usual` is the prediction that nobody had to say.

    Raises:
        Error: a setting without effect.
    """
    bare = type(model)()
    idle = [
        *((f"model.{name}", getattr(model, name), getattr(bare, name)) for name in ("sigma_data", "learned_variance")),
        ("model.prediction", model.prediction, usual),
        ("train.preview_every", train.preview_every, 0),
        ("model.task.kind", model.task.kind, "generation"),
        ("model.text.kind", model.text.kind, "none"),
        ("model.task.labels", model.task.labels, True),
        ("model.task.drop", model.task.drop, 0.0),
    ]
    for key, value, only in idle:
        if value != only:
            raise Error(
                f"{key} = {value} has no effect on a classifier: it names images and denoises none. Leave it out."
            )


def check_classifier_fit(model: ModelConfig) -> None:
    """Refuse a network that is none of a classifier, or does not fit the images. Raises: Error."""
    network, shape = model.network, model.sample_shape
    if network.kind != "classifier":
        raise Error(f"model.network.kind = {network.kind}: objective classifier trains a classifier; leave it out.")
    for name, given, wanted in (
        ("in_channels", network.in_channels, shape[0]),
        ("classes", network.classes, len(model.task.class_names)),
    ):
        if given != wanted:
            raise Error(f"model.network.{name} = {given}, but the data have {wanted}: leave it out.")
    if not network.noisy and model.schedule != Discrete():
        raise Error("model.schedule has no effect on a judge of clean images (noisy = false): leave it out.")
    if shape[1] % network.factor or shape[2] % network.factor:
        raise Error(
            f"images of {shape[1]} x {shape[2]} do not fit this network: sides must be multiples of "
            f"{network.factor}. Set --data.size to such a number, or fewer --model.network.multipliers."
        )


def fill_autoencoder(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree, the perceptual features that are meant by `auto` named: a run keeps to them wherever it goes on."""
    settings = build(AutoencoderSettings, tree.get("train", {}).get("autoencoder", {}))
    name = perceptual_features(settings.features) if settings.perceptual else "none"
    return merge(tree, {"train": {"autoencoder": {"features": name}}})


IDLE_IN_MODEL = ("schedule", "sigma_data", "learned_variance", "task", "text", "codec")


def check_autoencoder(train: TrainConfig, model: ModelConfig, usual: str) -> None:
    """Refuse what only a denoiser has, or its previews; `usual` is the prediction that nobody had to say.

    Raises:
        Error: a setting without effect, or a discriminator that would never learn.
    """
    bare = type(model)()
    idle = [
        *((f"model.{name}", getattr(model, name, 0), getattr(bare, name, 0)) for name in IDLE_IN_MODEL),
        ("model.prediction", model.prediction, usual),
    ]
    for key, value, only in idle:
        if value != only:
            named = getattr(value, "kind", value)
            raise Error(
                f"{key} = {named} has no effect on an autoencoder: it adds no noise and takes no conditioning. Leave "
                "it out."
            )
    start = train.autoencoder.critic_start
    if train.autoencoder.critic and start >= train.max_steps and not train.minutes:
        raise Error(
            f"train.autoencoder.critic_start = {start}, but the run ends at train.max_steps = {train.max_steps}: its "
            f"discriminator would never learn. Use --critic-start {train.max_steps // 2}, or "
            "--train.autoencoder.critic 0."
        )


def check_autoencoder_fit(train: TrainConfig, model: ModelConfig) -> None:
    """Refuse a network that is no autoencoder, or does not fit images or settings. Raises: Error."""
    network, shape = model.network, model.shape
    assert shape is not None
    if network.kind != "autoencoder":
        raise Error(f"model.network.kind = {network.kind}: objective autoencoder trains an autoencoder; leave it out.")
    if network.in_channels != shape[0]:
        raise Error(f"model.network.in_channels = {network.in_channels}, but the images have {shape[0]}: leave it out.")
    seen = _seen(train.autoencoder, network, shape)
    if bool(network.critic_channels) != bool(train.autoencoder.critic):
        raise Error(
            f"model.network.critic_channels = {network.critic_channels} with train.autoencoder.critic = "
            f"{train.autoencoder.critic:g}: a discriminator needs both or neither; leave critic_channels out."
        )
    least = 3 << network.critic_layers  # behind the halvings two convolutions take one cell each
    if network.critic_channels and min(seen) < least:
        layers = most_layers(min(seen))
        raise Error(
            f"images of {seen[0]} x {seen[1]} are too small for a discriminator of {network.critic_layers} layers, "
            f"which needs {least} pixels a side: use --critic-layers {layers}, or --train.autoencoder.critic 0."
        )


def _seen(settings: AutoencoderSettings, network: AutoencoderConfig, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of what is trained on. Raises: Error for what the network or the images do not allow."""
    network.latent_shape(shape)
    if not settings.crop:
        return shape[1:]
    if settings.crop % network.factor or settings.crop >= min(shape[1:]):
        raise Error(
            f"train.autoencoder.crop = {settings.crop} of images of {shape[1]} x {shape[2]} is not allowed: a "
            f"multiple of {network.factor} below {min(shape[1:])}, or 0 for whole images."
        )
    return settings.crop, settings.crop


def noise_shape(train: TrainConfig, model: ModelConfig) -> tuple[int, int, int] | None:
    """The shape of one image's noise in training: its latent's, of what is seen of it; None: the model's own."""
    network, shape = model.network, model.shape
    if network.kind != "autoencoder" or shape is None:
        return None
    return network.latent_shape((shape[0], *_seen(train.autoencoder, network, shape)))


MEASURED = {
    "shift": "the mean of the training images' latents, measured when a run starts",
    "scale": "1 / the standard deviation of the training images' latents, measured when a run starts",
    "weights": "the hash of the autoencoder's file",
    "network": "the autoencoder's own shape, which its run gives",
}


def codec_tree(tree: Mapping[str, Any]) -> Tree:
    """What a run's tree says of its codec; one that names a run is of latents."""
    model = tree.get("model", {})
    codec = dict(model.get("codec") or {}) if isinstance(model, Mapping) else {}
    return {"kind": "latents", **codec} if "run" in codec else codec


def fill_codec(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree, in which a codec that names a run is of latents; those have standard deviation 1, where images have
    0.5 or so."""
    codec = codec_tree(tree)
    if codec.get("kind", "pixels") == "pixels":
        return tree
    usual = {} if tree.get("train", {}).get("objective") == "classifier" else {"sigma_data": 1.0}
    return trees.merge({"model": usual}, tree, {"model": {"codec": codec}})


def refuse_typed(codec: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Refuse what is measured, or follows from the autoencoder, unless it repeats what the run has.

    Raises:
        Error: it names the setting and where it comes from.
    """
    for name, source in MEASURED.items():
        if name in codec and codec[name] != before.get(name):
            raise Error(
                f"model.codec.{name} is given, but it is {source}, and stored in the run: a number from elsewhere "
                f"would not fit these images. Leave it out; only model.codec.run is yours to say."
            )


def check_codec(train: TrainConfig, model: ModelConfig) -> None:
    """Refuse latents where nothing is made of them. Raises: Error."""
    if model.codec.kind == "pixels":
        return
    if model.network.kind == "classifier" and not model.network.noisy:
        raise Error(
            "model.codec: a judge of clean images (noisy = false) is shown images, of whatever model; leave "
            "--codec out."
        )
    if train.objective not in ("diffusion", "classifier"):
        raise Error(f"model.codec has no effect with objective {train.objective}; leave --codec out.")


SHOWN = 3  # shapes that a refusal names


def common_step(shapes: tuple[tuple[int, int], ...]) -> int:
    """The largest number of pixels that all sides of the buckets are multiples of; 0 without buckets."""
    return gcd(*(side for each in shapes for side in each))


def square(shape: tuple[int, int, int], shapes: tuple[tuple[int, int], ...]) -> tuple[int, int, int]:
    """What a network's usual depth is decided for: with buckets a square of about their pixels, as divisible as they.

    (C, H, W) of the model, (H, W) of its buckets -> (C, H, W).
    """
    if not shapes:
        return shape
    common = common_step(shapes)
    pixels = sum(h * w for h, w in shapes) / len(shapes)
    side = max(1, round(sqrt(pixels) / common)) * common
    return shape[0], side, side


def check_buckets(model: ModelConfig) -> None:
    """Refuse buckets of an autoencoder, and those whose sides the network, the codec or the task cannot take.

    Raises: Error.
    """
    if model.shapes and model.network.kind == "autoencoder":
        raise Error(
            "data.resize = buckets with objective autoencoder: it is trained on images of one shape, and takes any "
            "afterwards; use --data.resize random_crop."
        )
    whole = lcm(factor(model), model.task.scale if isinstance(model.task, SuperResolution) else 1)
    wrong = [f"{w}x{h}" for h, w in model.shapes if h % whole or w % whole]
    if wrong:
        more = ", ..." if len(wrong) > SHOWN else ""
        raise Error(
            f"{plural(len(wrong), 'bucket', of=len(model.shapes))} ({', '.join(wrong[:SHOWN])}{more}) do not fit this "
            "model: "
            f"sides must be multiples of {whole}. Set --data.bucket-step {whole}, and --data.size to a multiple of it."
        )


def shown_network(model: ModelConfig) -> str | None:
    """The network in a line, and what the images' size made of it; None of one of the caller's, or an autoencoder."""
    network, shape = model.network, model.shape
    plain = network.encoder if network.kind == "classifier" else network
    if shape is None or not (plain.kind == "unet" or plain.kind == "dit"):
        return None
    cells = model.codec.sample_shape(square(shape, model.shapes))
    step = common_step(model.shapes) // model.codec.factor
    return network_line(plain, cells[1:], latent=model.codec.kind != "pixels", step=step)


def check_network_fit(model: ModelConfig, network: UNetConfig | DiTConfig) -> None:
    """Refuse a network that does not fit the images, or their latents. Raises: Error."""
    cells = model.sample_shape
    what = "the images" if model.codec.kind == "pixels" else "the images' latents"
    for name, wanted in (("in_channels", cells[0]), ("out_channels", cells[0] * (1 + model.learned_variance))):
        if getattr(network, name) != wanted:
            twice = " and a variance is learned" if wanted > cells[0] else ""
            cure = "leave it out, or set data.channels" if model.codec.kind == "pixels" else "leave it out"
            raise Error(
                f"model.network.{name} = {getattr(network, name)}, but {what} have {plural(cells[0], 'channel')}"
                f"{twice}: {wanted} are needed; {cure}."
            )
    if network.classes != len(model.task.class_names):
        raise Error(
            f"model.network.classes = {network.classes}, but {plural(len(model.task.class_names), 'class', 'is')} "
            "trained "
            f"on: leave it out; --labels sets it from the data."
        )
    if network.context_width != width(model.text):
        raise Error(
            f"model.network.context_width = {network.context_width}, but model.text.kind = {model.text.kind} "
            f"gives it text in {width(model.text) or 0} channels: leave it out; it follows from the text."
        )
    wanted = model.task.concat_channels(cells[0])
    if network.concat_channels != wanted:
        raise Error(
            f"model.network.concat_channels = {network.concat_channels}, but task {model.task.kind} joins "
            f"{plural(wanted, 'channel')} to {what}: leave it out; it follows from the task."
        )
    if network.concat_skip and model.prediction != "x0":
        raise Error(
            f"model.network.concat_skip = true with prediction {model.prediction}: what is joined is an image, as x0 "
            f"is and nothing else; leave it out."
        )
    _check_sides(model, network)


def _check_sides(model: ModelConfig, network: UNetConfig | DiTConfig) -> None:
    _, height, width_ = model.sample_shape
    factor = network.factor
    if height % factor or width_ % factor:
        smaller = "another --model.network.patch" if network.kind == "dit" else "fewer --model.network.multipliers"
        whole = factor * model.codec.factor
        of = "" if model.codec.kind == "pixels" else f" (latents of {whole // factor} pixels a cell)"
        assert model.shape is not None
        raise Error(
            f"images of {model.shape[1]} x {model.shape[2]} do not fit this network{of}: sides must be multiples of "
            f"{whole}. Set --data.size to such a number, or {smaller}."
        )
