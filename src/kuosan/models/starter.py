"""The starter weights inside the package, a general model to begin a run with; and whom a model must name.

    src/kuosan/starter/      an exported model: config.yaml  ema.safetensors  state.json  README.md  CREDITS.md

`tools/build_starter.py` makes it. Some of the images that it learned from are CC BY: their credits are a list of lines
in its state.json, which every run that begins with it, every save and every export of one takes along.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuosan.errors import Error
from kuosan.models.codec import Latents
from kuosan.models.model import ModelConfig, OwnNetwork
from kuosan.regular import exists

if TYPE_CHECKING:
    from kuosan.storage.checkpoint import Saved

NAME = "starter"  # as --init has it, and as a run remembers what it began with
NOTHING = "none"  # --init none: from nothing
OF_A_RUN = ("checkpoints", "manifest.json", "config.yaml")  # one of them makes a folder a run, or an exported model
FACT = "credits"  # in state.json: a list of lines
CREDITS = "CREDITS.md"
HEADING = "# Credits that go with these weights\n"
CHANNELS = 3  # of the images that it is used for unasked

# Of a network, what need not be the starter's: what follows from classes, captions and task, what changes no weight.
_FREE = {
    *("in_channels", "out_channels", "classes", "context_width", "context_vector", "concat_channels"),
    *("context_attention", "transformer_depth", "transformer_mlp", "dropout", "checkpointing", "grid"),
}


def folder() -> Path:
    """Where the starter weights lie, in an installation that has them."""
    return Path(str(files("kuosan"))) / "starter"


def is_there() -> bool:
    """Whether this installation has them."""
    return exists(folder() / "manifest.json")


def is_meant(init: str | Path) -> bool:
    """Whether --init names the starter weights, and no run of that name lies here."""
    return str(init) == NAME and not _is_run(init)


def is_nothing(init: str | Path | None) -> bool:
    """Whether --init says to start from nothing, and no run of that name lies here."""
    return init is not None and str(init) == NOTHING and not _is_run(init)


def _is_run(path: str | Path) -> bool:
    return any(exists(Path(path, name)) for name in OF_A_RUN)


def opened(init: str | Path) -> Path:
    """The folder of what --init names.

    Raises:
        Error: the starter weights, which this installation came without.
    """
    if not is_meant(init):
        return Path(init)
    if not is_there():
        raise Error(
            f"--init {NAME}: the starter weights are not in this installation ({folder()}): install kuosan again, or "
            f"say --init {NOTHING} to start from nothing."
        )
    return folder()


def described() -> Saved | None:
    """The starter weights' configuration and state; None in an installation without them. Raises: Error: damaged."""
    return load(NAME) if is_there() and is_meant(NAME) else None


def load(init: str | Path, parts: Collection[str] = (), **more: Any) -> Saved:
    """What --init names, read as a checkpoint is.

    Raises:
        Error: as `storage.checkpoint.load`; of the starter weights with the cure.
    """
    from kuosan.storage import checkpoint

    source = opened(init)
    try:
        return checkpoint.load(source, parts=parts, **more)
    except Error as error:
        if not is_meant(init):
            raise
        cure = f"install kuosan again, or say --init {NOTHING} to start from nothing"
        text = f"the starter weights inside the package cannot be used: {str(error).rstrip('.')}; {cure}."
        raise Error(text) from None


def suits(model: ModelConfig, starter: ModelConfig) -> bool:
    """Whether a run of a model that was asked for begins with the starter weights unasked.

    Its network, its schedule and what it predicts are the starter's, and it denoises RGB images. Their size, classes,
    captions and task may be others, in as far as `grow.require_growth` allows.
    """
    mine, theirs = model.network, starter.network
    if isinstance(mine, OwnNetwork) or isinstance(model.codec, Latents) or model.shape is None:
        return False
    if model.shape[0] != CHANNELS or mine.kind != theirs.kind:
        return False
    names = ("schedule", "prediction", "sigma_data", "learned_variance")
    if any(getattr(model, name) != getattr(starter, name) for name in names):
        return False
    return all(getattr(mine, name) == value for name, value in vars(theirs).items() if name not in _FREE)


def credits_of(state: Mapping[str, Any]) -> list[str]:
    """Whom a model must name, by its state: a line each."""
    found = state.get(FACT, [])
    return [str(line) for line in found] if isinstance(found, list) else []


def credits_page(lines: list[str]) -> str:
    """CREDITS.md of a run or an export."""
    request = (
        "They began with kuosan's starter weights, which learned, among others, from images whose authors ask to be\n"
        "named (CC BY). Please keep this list with the weights, and with models that are begun from them:\n"
    )
    return f"{HEADING}\n{request}\n" + "".join(f"- {line}\n" for line in lines)
