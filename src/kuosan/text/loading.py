"""A text encoder's network and tokenizer, loaded by transformers: from files, never code, and without a word.

Known families lose what is not text (CLIP's picture tower, a T5's decoder); of others, whatever gives a
`last_hidden_state` for tokens will do.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from torch import nn

from kuosan.errors import Error
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
            tokenizer = transformers.AutoTokenizer.from_pretrained(place.tokenizer, **_SAFE)
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


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise Error(f"the text encoder {name} needs transformers: {INSTALL}") from None
    return transformers


def _network(transformers: Any, place: Place, name: str) -> nn.Module:
    try:
        kind = json.loads((place.model / "config.json").read_bytes()).get("model_type", "")
    except (ValueError, AttributeError, RecursionError):
        raise Error(f"the text encoder {name} has a damaged config.json in {place.model}.") from None
    family = getattr(transformers, FAMILIES.get(kind, "AutoModel"))
    safe = place.weights()[0].suffix == ".safetensors"
    try:
        network, told = family.from_pretrained(
            place.model, **_SAFE, use_safetensors=safe, weights_only=True, output_loading_info=True
        )
    except Exception as error:
        raise Error(f"the text encoder {name} in {place.model} cannot be opened: {_first(error)}") from None
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


def _first(error: Exception) -> str:
    """What an error of another library says, in one sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bars and no advice on the terminal while files are read; mistakes are raised here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
