"""From what a person said and the images' shape to a whole `RunConfig`: network, prediction, task. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kuosan import config as trees
from kuosan.data.config import RGBA
from kuosan.errors import Error
from kuosan.models.model import ModelConfig, OwnNetwork
from kuosan.networks.autoencoder_config import AutoencoderConfig, default_autoencoder
from kuosan.networks.classifier_config import ClassifierConfig, default_classifier
from kuosan.networks.config import DiTConfig, Size, default_dit, default_unet
from kuosan.networks.text_config import ByteText
from kuosan.options import Tree
from kuosan.sample.plan import choose
from kuosan.sample.request import Request, Restoration
from kuosan.tasks import Inpainting, SuperResolution, Task
from kuosan.text.tokens import width
from kuosan.train import config as defaults
from kuosan.train import rules
from kuosan.train.config import AutoencoderSettings, RunConfig, TrainConfig
from kuosan.train.rules import check_buckets, common_step, square

# What a network predicts on a kind of schedule when nobody says.
USUAL_PREDICTION = {"discrete": "v", "karras": "edm", "flow": "flow"}


def network_tree(
    tree: Mapping[str, Any],
    shape: tuple[int, int, int],
    size: Size,
    tree_of_task: Tree,
    version: int,
    step: int,
) -> Tree:
    """The usual network of a size for what is denoised, of a shape (C, H, W), and of the kind that was asked for."""
    task = trees.build(ModelConfig, {"task": tree_of_task}).task
    classes = len(task.class_names)
    asked = tree.get("model", {}).get("network", {})
    cells = {"latent": rules.codec_tree(tree).get("kind", "pixels") != "pixels", "step": step, "version": version}
    if tree.get("train", {}).get("objective") == "classifier":
        network = trees.plain(default_classifier(shape, size, classes=classes, **cells))
        return network | _patch(asked, network["patch"], (*shape[1:], step))
    if tree.get("train", {}).get("objective") == "autoencoder":
        settings = trees.build(AutoencoderSettings, tree["train"].get("autoencoder", {}))
        return trees.plain(default_autoencoder(shape, size, discriminator=settings.critic > 0, crop=settings.crop))
    said = tree.get("model", {})
    text = trees.build(ModelConfig, {"text": said.get("text", {}), "task": tree_of_task}).text
    conditioning: dict[str, Any] = {"classes": classes, "context_width": width(text)}
    if isinstance(asked, Mapping) and asked.get("kind") == "dit":
        network = trees.plain(default_dit(shape, size, **conditioning))
    else:
        network = trees.plain(default_unet(shape, size, **conditioning, **cells))
        network |= _patch(asked, network["patch"], (*shape[1:], step))
    network["concat_channels"] = task.concat_channels(shape[0])
    few = {key: value for key, value in said.items() if key in ("prediction", "schedule", "learned_variance")}
    model = trees.build(ModelConfig, few | prediction(said))
    if model.learned_variance:
        network["out_channels"] = 2 * shape[0]
    # a small image enlarged is nearly right, and a network's last norm would lose its brightness and contrast; what a
    # hole is filled with is too far from the truth to be added to: docs/restoration.md has it measured, twice
    network["concat_skip"] = task.kind == "super_resolution" and model.prediction == "x0" and not model.learned_variance
    return network


def _patch(asked: object, usual: int, sides: tuple[int, ...]) -> Tree:
    """The usual patch, or 1 where the sides cannot also be halved as often as the levels that were asked for."""
    given = asked.get("multipliers") if isinstance(asked, Mapping) else None
    levels = len(given) if isinstance(given, list | tuple) else 0
    return {"patch": 1 if levels and any(side % (usual << (levels - 1)) for side in sides) else usual}


def task_tree(said: Mapping[str, Any], classes: tuple[str, ...]) -> Tree:
    """The task that was asked for, with the data's classes filled in."""
    task = trees.build(ModelConfig, {"task": said.get("task", {})}).task
    if not task.labels:
        return trees.plain(task) | ({"drop": task.dropped} if task.text else {})
    if not classes:
        raise Error(
            "classes are asked for, but the images have none: put each class into its own folder, give a `label` in "
            "metadata.jsonl or metadata.csv, lay the label file beside an IDX file, or say --labels false."
        )
    if task.class_names and task.class_names != classes:
        raise Error(
            f"class_names = {', '.join(task.class_names)}, but the data have {', '.join(classes)}: leave class_names "
            f"out, the data give them."
        )
    return trees.plain(task) | {"drop": task.dropped, "class_names": list(classes)}


def prediction(said: Mapping[str, Any]) -> dict[str, str]:
    """The usual prediction of the schedule asked for, where none is said."""
    schedule = said.get("schedule")
    if "prediction" in said or not isinstance(schedule, Mapping):
        return {}
    return {"prediction": USUAL_PREDICTION.get(str(schedule.get("kind", "discrete")), "v")}


# What of a network follows from the data, the text and the task, and is not taken along.
_FOLLOWS = ("in_channels", "out_channels", "classes", "context_width", "context_vector", "concat_channels")
_OF_IMAGES = ("network", "schedule", "prediction", "sigma_data", "learned_variance", "task", "text", "codec")
_TRAINS = {"classifier": "classifier", "autoencoder": "autoencoder"}  # networks that have an objective of their own


def take_along(
    tree: Mapping[str, Any],
    origin: Mapping[str, Any],
    source: str,
    *,
    own: bool = False,
    sized: bool = False,
    begun: bool = False,
) -> Tree:
    """What was said, over the model of the run that the weights come from (`--init`).

    Args:
        origin: that run's whole configuration, or the new one's own where that was `begun` already.
        source: the run's folder, as it is named.
        own: a network of the caller's is given.
        sized: the network's size was said, so that it is not the old one's.

    Raises:
        Error: it is trained for something else.
    """
    old = trees.plain(trees.build(ModelConfig, origin.get("model", {})))
    said = _mapping(tree, "model")
    network, objective = old["network"], str(_mapping(tree, "train").get("objective", "diffusion"))
    has, wanted = _TRAINS.get(network["kind"], "diffusion"), _TRAINS.get(objective, "diffusion")
    if has != wanted:
        cure = "" if has == "diffusion" else f"say --objective {has}, or "
        raise Error(
            f"--init {source}: it is a {network['kind']} (objective {has}), and a model for objective {wanted} is "
            f"asked for: {cure}name a run of that kind, or leave --init out."
        )
    along = {name: old[name] for name in _OF_IMAGES}
    if wanted != "diffusion":
        noisy = wanted == "classifier" and network.get("noisy", True)
        along = {name: along[name] for name in ("network", *(("schedule", "codec") if noisy else ()))}
    kind = _mapping(said, "schedule").get("kind")
    if kind is not None and kind != old["schedule"]["kind"]:  # what is usual on that schedule
        for name in ("prediction", "sigma_data", "learned_variance"):
            along.pop(name, None)
    if along.get("codec", {}).get("kind") == "latents":
        along["codec"] = {"kind": "latents", "run": old["codec"]["run"] if begun else source}
    else:
        along.pop("codec", None)
    if wanted == "diffusion":
        left = ("width", "weights") if old["text"]["kind"] == "encoder" else () if begun else ("length",)
        along["text"] = {name: value for name, value in old["text"].items() if name not in left}
        along["task"] = _task_along(said, old)
    if own or sized:
        along.pop("network")
    else:
        along["network"] = _network_along(said, old, network)
    model = trees.merge(along, said)
    train = _mapping(origin, "train")
    learned = str(model.get("learned_variance", False)).lower() == "true"
    loss = {"loss": train["loss"]} if learned and "loss" in train else {}
    return trees.merge({"train": loss}, tree, {"model": model})


def lengthened(text: Tree | None, tree: Mapping[str, Any], origin: ModelConfig | None) -> Tree | None:
    """How captions are read, of as many tokens as the captions have or the run that the weights come from reads."""
    said = _mapping(_mapping(tree, "model"), "text").get("length")
    if text is None or origin is None or said or not isinstance(origin.text, ByteText) or text["kind"] != "bytes":
        return text
    return {**text, "length": max(text["length"], origin.text.length)}


def _mapping(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of settings; nothing where something else stands there, which is refused when it is built."""
    found = tree.get(name, {})
    return found if isinstance(found, Mapping) else {}


def _text_kind(said: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    """How captions are read, where that is taken along unless it is said."""
    return str(_mapping(said, "text").get("kind", old["text"]["kind"]))


def _task_along(said: Mapping[str, Any], old: Mapping[str, Any]) -> Tree:
    """The old task, or of another the classes and how often none is given."""
    task, asked = dict(old["task"]), _mapping(said, "task")
    kept = {name: task[name] for name in ("labels", "drop")}
    conditioned = str(asked.get("labels", kept["labels"])).lower() == "true" or _text_kind(said, old) != "none"
    kept = kept if conditioned else {"labels": kept["labels"]}
    if asked.get("kind", task["kind"]) != task["kind"]:
        return {"kind": asked["kind"], **kept}
    return {name: value for name, value in task.items() if name not in ("class_names", "text", "drop")} | kept


def _network_along(said: Mapping[str, Any], old: Mapping[str, Any], network: Mapping[str, Any]) -> Tree:
    """The old network, in as far as it does not follow from the data, the text and the task."""
    along = {name: value for name, value in network.items() if name not in _FOLLOWS}
    if "concat_skip" in along:
        kind = _mapping(said, "task").get("kind", old["task"]["kind"])
        along["concat_skip"] = network["concat_skip"] and kind != "generation"
    if _text_kind(said, old) != "none":
        if network.get("context_width") is not None:
            along["context_vector"] = network["context_vector"]
        elif network["kind"] == "unet":
            along["context_attention"] = "cross"
            for name in ("transformer_depth", "transformer_mlp"):
                along.pop(name, None)
    return along


def _stretched(config: RunConfig, tree: Mapping[str, Any], origin: ModelConfig | None) -> RunConfig:
    """The configuration, the positions of a transformer for images of another size over those that it knows."""
    network = config.model.network
    if origin is None or not isinstance(network, DiTConfig) or not isinstance(origin.network, DiTConfig):
        return config
    if "grid" in _mapping(_mapping(tree, "model"), "network") and network.grid != origin.network.grid:
        return config
    known, wanted = (max(each.sample_shape[1:]) // each.network.patch for each in (origin, config.model))  # type: ignore[union-attr]
    grid = origin.network.grid or (known if known != wanted else 0)
    return replace(config, model=replace(config.model, network=replace(network, grid=grid)))


def check_tree(tree: Mapping[str, Any]) -> RunConfig:
    """Refuse what can be refused before the images are read: all but the network, whose defaults follow from them.

    Returns what was checked, for `resolve`.

    Raises:
        Error: whatever the configuration classes refuse.
    """
    tree = trees.as_stored(RunConfig, tree)
    tree = _filled(tree, defaults.defaults_version(tree))
    said = tree.get("model", {})
    model = {key: value for key, value in said.items() if key not in ("network", "shape")} | prediction(said)
    config = trees.build(RunConfig, trees.merge(trees.plain(RunConfig()), {**tree, "model": model}))
    rules.check_log_to(config.train)
    _check_training(config)
    return config


def encoder_named(tree: Mapping[str, Any]) -> str:
    """The text encoder that a tree of settings names."""
    return str(tree.get("model", {}).get("text", {}).get("encoder", ""))


def resolve(
    tree: Mapping[str, Any],
    shape: tuple[int, int, int],
    size: Size | None = None,
    own: str | None = None,
    classes: tuple[str, ...] = (),
    text: Tree | None = None,
    shapes: tuple[tuple[int, int], ...] = (),
    before: Mapping[str, Any] | None = None,
    checked: RunConfig | None = None,
    origin: ModelConfig | None = None,
    cores: float = 1.0,
) -> RunConfig:
    """The whole configuration of a run from what its user said and the images' shape.

    What is not said is filled in: the network from the images' shape and `size` (small, or what fits a time budget),
    everything else from the defaults.

    Args:
        own: the class name of a network that the caller gives, in place of one of kuosan's.
        classes: the names of the data's classes, in the order of their labels.
        text: how captions condition the network, with what the data or the encoder decide filled in.
        shapes: (H, W) of all aspect-ratio buckets, where there are several.
        before: the stored configuration of the run that goes on; of one without a step its `defaults` alone.
        checked: what `check_tree` made of the same tree; what it refused is not looked for again.
        origin: the model whose weights a new run begins with.
        cores: how many processor cores the machine is worth, by which a time budget chooses the network.

    Raises:
        Error: whatever the configuration classes refuse, or a network that does not fit the images.
    """
    version, tree = defaults.defaults_version(tree, before), trees.as_stored(RunConfig, tree)
    codec = trees.build(ModelConfig, {"codec": rules.codec_tree(rules.fill_codec(tree))}).codec
    cells, step = codec.sample_shape(square(shape, shapes)), common_step(shapes) // codec.factor
    if minutes := _minutes(tree):
        tree, chosen = _under_row(tree, max(cells[1:]), minutes * cores, before, version)
        size = size or chosen
    size = size or "small"
    tree = _filled(tree if text is None else trees.merge(tree, {"model": {"text": text}}), version)
    said = dict(tree.get("model", {}))
    task = task_tree(said, classes)
    network: Tree = {"kind": "own", "name": own} if own else network_tree(tree, cells, size, task, version, step)
    decided = {"shape": list(shape), "shapes": [list(each) for each in shapes], "task": task}
    model = trees.merge(trees.plain(ModelConfig()), {"network": network}, said, prediction(said), decided)
    longest = tree.get("train", {}).get("max_steps", TrainConfig.max_steps)
    train = trees.merge(tree.get("train", {}), {"planned_steps": defaults.planned_steps(longest, before, version)})
    whole = {**tree, "model": model, "train": train, "defaults": version}
    config = trees.build(RunConfig, trees.merge(trees.plain(RunConfig()), whole))
    config = _stretched(config, tree, origin)
    _check_fit(config, checked)
    return config


def _minutes(tree: Mapping[str, Any]) -> float:
    """The time budget that is asked for; 0: none."""
    said = {key: value for key, value in dict(tree.get("train", {})).items() if key == "minutes"}
    return trees.build(RunConfig, {"train": said}).train.minutes


def _under_row(
    tree: Mapping[str, Any], side: int, minutes: float, before: Mapping[str, Any] | None, version: int
) -> tuple[Mapping[str, Any], Size]:
    """The tree over what a time budget gets where nothing is said, and the network's size; of a run, as it began."""
    begun = float((before or {}).get("train", {}).get("planned_minutes", 0.0)) or minutes
    under: dict[str, Any] = {"planned_minutes": begun}
    row = defaults.budget_row(side, begun, version)
    if dict(tree.get("train", {})).get("objective", "diffusion") == "diffusion":
        under |= {name: getattr(row, name) for name in ("batch", "lr", "warmup", "lr_shape", "ema")}
    return trees.merge({"train": under}, tree), row.network


def _filled(tree: Mapping[str, Any], version: int) -> Mapping[str, Any]:
    """The tree over the version's defaults, with what follows from captions and from training a classifier."""
    tree = rules.fill_codec(tree)
    text = tree.get("model", {}).get("text", {})
    if isinstance(text, Mapping) and text.get("kind", "none") != "none":
        tree = trees.merge(tree, {"model": {"task": {"text": True}}})
    said = {key: value for key, value in dict(tree.get("train", {})).items() if key == "objective"}
    objective = trees.build(RunConfig, {"train": said}).train.objective
    tree = defaults.laid_under_defaults(tree, version, objective)
    if objective == "autoencoder":
        tree = rules.fill_autoencoder(tree)
    if objective == "classifier":
        tree = trees.merge(rules.CLASSIFIER_FOLLOWS, tree)
    return defaults.under_budget(tree) if _minutes(tree) else tree


def _check_fit(config: RunConfig, checked: RunConfig | None) -> None:
    model, shape = config.model, config.model.shape
    assert shape is not None
    if model.network.kind == "classifier" and config.train.objective != "classifier":
        raise Error("model.network.kind = classifier: a classifier is trained with --objective classifier; say that.")
    if model.network.kind == "autoencoder" and config.train.objective != "autoencoder":
        raise Error("model.network.kind = autoencoder: it is trained with --objective autoencoder; say that.")
    _check_training(config, checked)
    check_buckets(model)
    if config.train.objective == "classifier":
        rules.check_classifier_fit(model)
    if config.train.objective == "autoencoder":
        rules.check_autoencoder_fit(config.train, model)
    if isinstance(model.task, SuperResolution) and (shape[1] % model.task.scale or shape[2] % model.task.scale):
        raise Error(
            f"images of {shape[1]} x {shape[2]} cannot be shrunk by scale = {model.task.scale}: their sides must be "
            f"multiples of it. Set --size to one, or another --scale."
        )
    if isinstance(model.network, (OwnNetwork, ClassifierConfig, AutoencoderConfig)):
        return
    rules.check_network_fit(model, model.network)


def _check_text(model: ModelConfig, train: TrainConfig, captions: str) -> None:
    """Refuse settings of text without text, and text that a network cannot take. Raises: Error."""
    if captions != "beside" and model.text.kind == "none":
        raise Error(f"data.captions = {captions} has no effect without text: say --text bytes, or leave it out.")
    if train.uncaptioned != "refuse" and model.text.kind == "none":
        raise Error(f"train.uncaptioned = {train.uncaptioned} has no effect without text: say --text, or leave it out.")
    if model.task.text and model.text.kind == "none":
        raise Error("model.task.text = true follows from model.text: say --text bytes, or an encoder.")
    if isinstance(model.text, ByteText) and model.network.kind == "own":
        raise Error(
            "model.text.kind = bytes trains its transformer with kuosan's networks; one of your own takes an "
            "encoder's features (--text encoder --encoder FOLDER), as network(x, t, context=, context_mask=)."
        )


def _check_training(config: RunConfig, checked: RunConfig | None = None) -> None:
    model, train = config.model, config.train
    _check_text(model, train, config.data.captions)
    if config.data.channels == "rgba" or (model.shape is not None and model.shape[0] == RGBA):
        rules.check_clear(train, model)
    rules.check_codec(train, model)
    if train.objective == "classifier":
        rules.check_classifier(train, model, USUAL_PREDICTION[model.schedule.kind])
    if train.objective == "autoencoder":
        rules.check_autoencoder(train, model, USUAL_PREDICTION[model.schedule.kind])
        return
    if train.objective == "classifier":
        return
    rules.check_loss(train, model)
    if train.preview_every and not (checked is not None and _previewed(checked) == _previewed(config)):
        try:
            choose(model, preview_request(train, model.task))
        except Error as error:
            raise Error(f"previews cannot be sampled: {error} Or --train.preview-every 0 for none.") from None


def _previewed(config: RunConfig) -> tuple[object, ...]:
    """All that decides on whether previews can be sampled."""
    model, train = config.model, config.train
    kept = ("schedule", "prediction", "sigma_data", "learned_variance", "text", "codec")
    task = replace(model.task, class_names=(), drop=None), model.task.dropped
    return *(getattr(model, name) for name in kept), *task, preview_request(train, model.task), train.preview_every > 0


def preview_request(train: TrainConfig, task: Task) -> Request:
    """What a preview shows: always the same seeds, and where a task restores, always the same images."""
    restoration = None
    if isinstance(task, SuperResolution):
        down = "bicubic" if task.down == "bicubic" else "area"
        restoration = Restoration("held-out images", upscale=task.scale, down=down)  # type: ignore[arg-type]
    elif isinstance(task, Inpainting):
        restoration = Restoration("held-out images", mask="drawn")
    return Request(n=train.preview_images, seed=0, steps=train.preview_steps, restoration=restoration)
