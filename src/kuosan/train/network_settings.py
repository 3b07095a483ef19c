"""The network, the prediction and the task of a run whose user says nothing of them, or a part. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kuosan import config as trees
from kuosan.errors import Error
from kuosan.models.model import ModelConfig
from kuosan.networks.autoencoder_config import default_autoencoder
from kuosan.networks.classifier_config import default_classifier
from kuosan.networks.config import Size, default_dit, default_unet
from kuosan.options import Tree
from kuosan.text.config import width
from kuosan.train import codec_settings
from kuosan.train.autoencoder_settings import AutoencoderSettings

# What a network predicts on a kind of schedule when nobody says.
USUAL_PREDICTION = {"discrete": "v", "karras": "edm", "flow": "flow"}


def network(
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
    cells = {"latent": codec_settings.said(tree).get("kind", "pixels") != "pixels", "step": step, "version": version}
    if tree.get("train", {}).get("objective") == "classifier":
        network = trees.plain(default_classifier(shape, size, classes=classes, **cells))
        return network | _patch(asked, network["patch"], (*shape[1:], step))
    if tree.get("train", {}).get("objective") == "autoencoder":
        settings = trees.build(AutoencoderSettings, tree["train"].get("autoencoder", {}))
        return trees.plain(default_autoencoder(shape, size, critic=settings.critic > 0))
    said = tree.get("model", {})
    told = trees.build(ModelConfig, {"text": said.get("text", {}), "task": tree_of_task}).text
    doors: dict[str, Any] = {"classes": classes, "context_width": width(told)}
    if isinstance(asked, Mapping) and asked.get("kind") == "dit":
        network = trees.plain(default_dit(shape, size, **doors))
    else:
        network = trees.plain(default_unet(shape, size, **doors, **cells))
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


def task(said: Mapping[str, Any], classes: tuple[str, ...]) -> Tree:
    """The task that was asked for, with the data's classes filled in."""
    task = trees.build(ModelConfig, {"task": said.get("task", {})}).task
    if not task.labels:
        return trees.plain(task) | ({"drop": task.dropped} if task.text else {})
    if not classes:
        raise Error(
            "classes are asked for, but the pictures have none: put each class into its own folder, give a `label` in "
            "metadata.jsonl or metadata.csv, or lay the label file beside an IDX file."
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
