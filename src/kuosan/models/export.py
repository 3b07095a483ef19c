"""A trained model as one folder to hand on: what sampling needs, in the layout of a checkpoint, and a card.

    OUT/config.yaml  ema.safetensors  state.json  README.md  manifest.json  [codec/  CREDITS.md]

Where the run's files lie is nobody else's business, so of their places the last names alone are kept. A text encoder
with weights of its own does not go with it: its folder of that name belongs where the model is used.

Exporting is a job, opened and refused before anything is written; torch loads when it is planned.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote, split
from typing import TYPE_CHECKING, Any, Literal

from kuosan import config as trees
from kuosan.errors import Error
from kuosan.events import Event, Finished, Wrote

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.storage.checkpoint import Saved


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise Error(f"{out} is there already, and an export never writes over anything: name a new folder.")


@dataclass(frozen=True)
class ExportJob:
    """A trained model as one folder to hand on, without what only training needs."""

    run: Path  # a run's folder, or one of its checkpoints
    out: Path  # the folder to write; it must not be there yet
    precision: Literal["bf16", "fp32"] = "bf16"  # of the stored weights: bf16 halves the file
    card: Path | None = None  # a text that goes with it as README.md: what it was trained on, whose images, how good

    def __post_init__(self) -> None:
        _refuse_existing(self.out)


@dataclass(frozen=True)
class ExportPlan:
    """An opened checkpoint, and where it goes."""

    job: ExportJob
    saved: Saved
    card: str | None  # the text

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before it is handed on."""
        noise = f"{self.job.run} is of step 0, before any training: what it makes is noise"
        damaged = [f"a newer checkpoint is damaged and passed over: {text}" for text in self.saved.damaged]
        return (*damaged, *((noise,) if self.saved.untrained else ()))


@dataclass(frozen=True)
class ExportedModel:
    """What was written: its folder, its bytes, and the command that uses it."""

    path: Path
    nbytes: int
    use: str


def plan_export(job: ExportJob) -> ExportPlan:
    """Open the checkpoint and read the card.

    Raises:
        Error: the card cannot be read; not a run, or a damaged one.
    """
    card = None
    if job.card is not None:
        try:
            card = job.card.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as reason:
            raise Error(f"--card {job.card} cannot be read: {reason}.") from None
    from kuosan.models.model import require_fit
    from kuosan.storage import checkpoint

    return ExportPlan(job, checkpoint.load(job.run, parts=("ema",), fits=require_fit), card)


def run_export(plan: ExportPlan) -> Iterator[Event]:
    """Write the folder. Raises: Error: it is there meanwhile, or cannot be written; the run's codec is gone."""
    out = export(plan.saved, plan.job.out, bf16=plan.job.precision == "bf16", card=plan.card)
    yield Wrote(out)
    nbytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    yield Finished(ExportedModel(out, nbytes, use(plan.saved.config.get("model", {}), quote(str(out)))[1]))


def export(saved: Saved, out: Path, *, bf16: bool = True, card: str | None = None) -> Path:
    """Write a checkpoint's averaged weights, and its codec, as a folder that `kuosan.load` opens.

    Args:
        bf16: store weights in bf16, half as large; the network computes in what the device is fast at either way.
        card: the text of README.md.

    Raises:
        Error: the folder is there already, or cannot be written; the run's codec is gone.
    """
    from kuosan.data.reading import FACT as READING
    from kuosan.models import latents as codecs
    from kuosan.models import starter
    from kuosan.models.codec import Latents
    from kuosan.models.model import ModelConfig
    from kuosan.storage import checkpoint, files
    from kuosan.storage import tensors as weights

    _refuse_existing(out)
    model = trees.build(ModelConfig, saved.config.get("model", {}))
    tree = _public(saved.config)
    held = None
    if isinstance(model.codec, Latents):
        held = codecs.of_run(model.codec, saved.path)
        held = codecs.held(held.network, _stored(held.tensors, bf16))
        tree = trees.merge(tree, {"model": {"codec": {"weights": held.sha256}}})
    state = {name: saved.state[name] for name in ("data", "kuosan", READING, starter.FACT) if name in saved.state}
    tensors = _stored(saved.ema, bf16)
    with files.staged(out, weights.nbytes(tensors), new=True) as staging:
        (staging / checkpoint.CONFIG).write_text(trees.dump(tree), encoding="utf-8")
        counted = json.dumps({"step": saved.step, "state": state}, indent=1, allow_nan=False)
        (staging / checkpoint.STATE).write_text(counted + "\n", encoding="utf-8")
        weights.write(staging / "ema.safetensors", tensors)
        (staging / checkpoint.EXPORTED).write_text(card or _card(tree, saved), encoding="utf-8")
        if named := starter.credits_of(saved.state):
            (staging / starter.CREDITS).write_text(starter.credits_page(named), encoding="utf-8")
        if held is not None:
            codecs.write(staging, held)
    return out


def _stored(tensors: Mapping[str, Tensor], bf16: bool) -> dict[str, Tensor]:
    """The tensors as they are stored; what is no float32 stays as it is."""
    import torch

    wanted = torch.bfloat16 if bf16 else torch.float32
    return {name: value.to(wanted) if value.dtype == torch.float32 else value for name, value in tensors.items()}


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration without the places of its files."""
    tree = trees.merge({}, config)
    data = dict(tree.get("data", {}))
    data.pop("cache", None)
    if "path" in data:
        data["path"] = Path(str(data["path"])).name
    tree["data"] = data
    codec = dict(tree.get("model", {}).get("codec", {}))
    if codec.get("run"):
        tree["model"] = {**tree["model"], "codec": {**codec, "run": Path(str(codec["run"])).name}}
    text = dict(tree.get("model", {}).get("text", {}))
    if Path(str(text.get("encoder", ""))).is_absolute():  # a folder; other names are a hub's, or a package's
        tree["model"] = {**tree["model"], "text": {**text, "encoder": Path(str(text["encoder"])).name}}
    return tree


def use(model: Mapping[str, Any], folder: str) -> tuple[str, str]:
    """What a model is used for: in words, a sentence's beginning; and the command, or the Python where none can be."""
    network, task = model.get("network", {}), model.get("task", {})
    kind, goal = network.get("kind"), task.get("kind", "generation")
    names = [str(name) for name in task.get("class_names") or ()] if task.get("labels") else []
    if kind == "autoencoder":
        return "Train on its latents", f"kuosan train IMAGES --codec {folder}"
    if kind == "classifier" and not network.get("noisy", True):
        return "Judge by it", f"kuosan evaluate RUN --judge {folder}"
    if kind == "classifier":
        return "Guide by it", f"kuosan sample RUN --classifier {folder} --class {quote(names[0]) if names else 'NAME'}"
    if kind == "own":
        call = "sample(16)" if goal == "generation" else "restore(images, mask)"
        if goal == "super_resolution":
            call = f"restore(images, upscale={task.get('scale')})"
        module = f"network={network.get('name') or 'YourNetwork'}(...)"
        return "Use it", f"kuosan.load({_unquoted(folder)!r}, {module}).{call} in Python: its network is your own"
    led = "" if task.get("drop") == 0 else f" --guidance {GUIDANCE}"
    conditioned = f" --class {quote(names[0])}{led}" if names else ""
    if goal == "super_resolution":
        return "Use it", f"kuosan restore {folder} IMAGE --upscale {task.get('scale')}{conditioned}"
    if goal == "inpainting":
        return "Use it", f"kuosan restore {folder} IMAGE --mask MASK{conditioned}"
    if task.get("text"):
        return "Use it", f'kuosan sample {folder} "WHAT TO MAKE"{led}'
    return "Use it", f"kuosan sample {folder} -n 16{conditioned}"


GUIDANCE = 3  # a usual scale


def _unquoted(folder: str) -> str:
    """A folder's name as it is, of one that was quoted for a shell."""
    return (split(folder) or [folder])[0]


def _card(tree: Mapping[str, Any], saved: Saved) -> str:
    """The least that can be said of a model."""
    from kuosan.models import starter

    model, train = tree["model"], tree.get("train", {})
    shape = "x".join(str(side) for side in model.get("shape") or ())
    purpose, arguments = use(model, "THIS_FOLDER")
    captions = {"bytes": "captions", "encoder": f"captions by {model.get('text', {}).get('encoder')}"}
    lines = [
        "# A model trained with kuosan",
        "",
        f"Images of {shape}, predicts {model.get('prediction')}, task {model.get('task', {}).get('kind')}, "
        f"conditioned on {captions.get(model.get('text', {}).get('kind', 'none'), 'no captions')}; {saved.step:,} "
        f"steps of {train.get('batch')} images of {tree.get('data', {}).get('path')}.",
        "",
        f"Its averaged weights. {purpose} with `{arguments}`; config.yaml holds every setting it was "
        "trained with. Say here whose",
        "images it learned from and under which licence.",
    ]
    if model.get("text", {}).get("kind") == "encoder":
        lines += ["", "Its text encoder (model.text in config.yaml) is not in it: a folder of that name is looked for"]
        lines += ["where kuosan is called, and must be the same by its hash."]
    if starter.credits_of(saved.state):
        lines += ["", f"Whom it must name, wherever it goes: {starter.CREDITS}."]
    return "\n".join(lines) + "\n"
