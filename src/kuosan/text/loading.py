"""A text encoder's network and tokenizer, loaded by transformers: from files, never code, and without a word.

Known families lose what is not text (CLIP's picture tower, a T5's decoder); of others, whatever gives a
`last_hidden_state` for tokens will do. The files may be a stranger's: the configuration is bounded and compared with
the weights before a network is made, pickled weights are read by `pickled` alone, and the hub is shut meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kuosan import pickled, weights
from kuosan.errors import Error, escaped, shown
from kuosan.networks.meta import undrawn
from kuosan.regular import SMALL, read_regular
from kuosan.text.locate import INSTALL, Place

FAMILIES = {  # model_type of config.json -> the class that is the text tower alone
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
    "chinese_clip": "ChineseCLIPTextModel",
    "chinese_clip_text_model": "ChineseCLIPTextModel",
}
_UNUSED = ("pooler", "position_ids", "text_projection", "visual_projection", "logit_scale", "head.")  # may be missing


def load(place: Place, name: str) -> tuple[nn.Module, Any]:
    """The network (frozen, float32, in evaluation) and the tokenizer.

    Raises:
        Error: transformers is missing, knows no such model, or the files do not make one.
    """
    transformers = _transformers(name)
    with _quiet(transformers):
        network = _network(transformers, place, name)
        try:
            with _own_words(place.tokenizer) as folder:
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_SAFE)
        except Exception as error:  # from a dozen libraries
            raise Error(f"the tokenizer of {name} in {place.tokenizer} cannot be read: {_first(error)}") from None
    known = getattr(network.config, "vocab_size", None)
    if known is not None and len(tokenizer) > known:
        raise Error(
            f"the text encoder {name} knows {known:,} tokens and its tokenizer {len(tokenizer):,}: they do not belong "
            f"together; give the tokenizer it was trained with."
        )
    return network.float().eval().requires_grad_(False), tokenizer


_SAFE = {"local_files_only": True, "trust_remote_code": False}

MOST_LAYERS = 256
MOST_WHOLE = 1 << 24  # of any number in config.json: a vocabulary, a width, a place
MOST_ENTRIES = 10_000  # of any list or group in it
_REPEATED = re.compile(  # settings that say how often a part is made
    r"(num|n|encoder|decoder|text|inner)_?\w*(layer|block|expert|group|stage|codebook|depth)\w*|depths?|\w*layers?"
)
_ELSEWHERE = re.compile(r"(?!special_tokens_map_file).*_file|.*name_or_path|auto_map|.*_map_file")  # of a tokenizer


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise Error(f"the text encoder {name} needs transformers: {INSTALL}") from None
    return transformers


def _network(transformers: Any, place: Place, name: str) -> nn.Module:
    where = f"the text encoder {name} in {place.model}"
    try:
        config = json.loads(read_regular(place.model / "config.json"))
        kind = config.get("model_type", "")
        family = getattr(transformers, FAMILIES.get(kind, "AutoModel"))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise Error(f"the text encoder {name} has a damaged config.json in {place.model}.") from None
    try:
        tensors, count, numbers = _weights(place)
    except Error as error:
        raise Error(f"{where} cannot be opened: {error}") from None
    _check_config(config, where, count)
    try:
        own = _configured(transformers, family, place)
        bare = family._from_config if hasattr(family, "_from_config") else family.from_config
        bare_network = undrawn(lambda: bare(own))
        made = sum(value.numel() for value in bare_network.state_dict().values())
        if made > 3 * numbers + (1 << 22):  # weights that may be missing, as a pooler's, and tied ones counted twice
            raise Error(f"{where}: its config.json describes {made:,} weights, and its files hold {numbers:,}.")
        if tensors is None:
            network, told = family.from_pretrained(place.model, **_SAFE, use_safetensors=True, output_loading_info=True)
        else:
            network, told = type(bare_network).from_pretrained(
                None, config=own, state_dict=tensors, **_SAFE, output_loading_info=True
            )
    except Error:
        raise
    except Exception as error:
        raise Error(f"{where} cannot be opened: {_first(error)}") from None
    missing = sorted(key for key in told["missing_keys"] if not any(part in key for part in _UNUSED))
    wrong = missing + sorted(str(key) for key in told.get("mismatched_keys", ()))
    if wrong:
        raise Error(
            f"the text encoder {name} in {place.model} is no whole {type(network).__name__}: {len(wrong)} of its "
            f"weights are missing or of another shape, {wrong[0]} first."
        )
    if getattr(network.config, "is_encoder_decoder", False) and hasattr(network, "get_encoder"):
        network = network.get_encoder()
    assert isinstance(network, nn.Module)
    return network


def _configured(transformers: Any, family: Any, place: Place) -> Any:
    """The configuration of the class that is opened, of a text tower its own part."""
    kind = getattr(family, "config_class", None) or transformers.AutoConfig
    return kind.from_pretrained(place.model, **_SAFE)


def _weights(place: Place) -> tuple[dict[str, Tensor] | None, int, int]:
    """The tensors of pickled files (None of safetensors, which transformers reads), how many, and of how many numbers.

    Raises:
        Error: a file is damaged, or holds anything but tensors by name.
    """
    files = place.weights()
    if all(path.suffix == ".safetensors" for path in files):
        headers = [weights.read_header(path) for path in files]
        sizes = [(entry.end - entry.start) // entry.dtype.itemsize for header in headers for entry in header.values()]
        return None, len(sizes), sum(sizes)
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= pickled.read(path)[0]
    return tensors, len(tensors), sum(value.numel() for value in tensors.values())


def _check_config(value: Any, where: str, tensors: int, key: str = "") -> None:
    """Refuse settings that would take memory or time beyond the weights' own, or ask for code. Raises: Error."""
    own = key.rpartition(".")[2]
    if own == "quantization_config" and value is not None:
        raise Error(f"{where} is quantised ({key}), which kuosan does not read: give the plain model.")
    if own.endswith("implementation") and isinstance(value, str) and not re.fullmatch(r"\w{1,40}", value):
        raise Error(f"{where}: {key} = {shown(value)} in its config.json names code elsewhere, which is never run.")
    if isinstance(value, dict | list):
        if len(value) > MOST_ENTRIES or key.count(".") > 8:
            raise Error(f"{where}: {shown(key)[1:-1] or 'config.json'} has {len(value):,} entries, or lies too deep.")
        items = value.items() if isinstance(value, dict) else ((own, each) for each in value)
        for name, each in items:
            _check_config(each, where, tensors, f"{key}.{name}" if key else str(name))
    elif isinstance(value, int) and not isinstance(value, bool):
        most = min(MOST_LAYERS, max(2, tensors // 2)) if _REPEATED.fullmatch(own) else MOST_WHOLE
        if abs(value) > most:
            raise Error(
                f"{where}: {shown(key)[1:-1]} = {shown(value)} in its config.json is not allowed: at most {most:,}"
                + (f" with {tensors:,} tensors of weights." if most < MOST_WHOLE else ".")
            )


@contextlib.contextmanager
def _own_words(folder: Path) -> Iterator[Path]:
    """A tokenizer's folder whose tokenizer_config.json names no file elsewhere; where it does, one made of links."""
    path = folder / "tokenizer_config.json"
    try:
        told = json.loads(read_regular(path, 4 * SMALL)) if path.exists() else {}
    except (ValueError, RecursionError):
        raise Error(f"{path} is damaged: it is not valid JSON.") from None
    if not isinstance(told, dict):
        raise Error(f"{path} is damaged: it is no mapping.")
    elsewhere = [name for name, value in told.items() if value and _ELSEWHERE.fullmatch(name)]
    if not elsewhere:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="kuosan-tokenizer-") as made:
        for each in folder.iterdir():
            if each.is_file() and each != path and each.suffix in (".json", ".txt", ".model", ".jinja"):
                (Path(made) / each.name).symlink_to(each.resolve())
        kept = {name: value for name, value in told.items() if name not in elsewhere}
        (Path(made) / path.name).write_text(json.dumps(kept), encoding="utf-8")
        yield Path(made)


def _first(error: Exception) -> str:
    """What an error of another library says, in one sentence."""
    text = escaped(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bars and no advice on the terminal while files are read, and no connection; mistakes are raised here."""
    from huggingface_hub import constants

    logging = transformers.utils.logging
    online, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = online
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
