"""A stranger's model phones nobody, and its encoder takes no more memory than its weights have."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="text encoders need transformers (pip install transformers)")

from kuosan.errors import Error
from kuosan.text.encoder import open_encoder
from kuosan.text.loading import locate
from kuosan.text.tokens import TextEncoderConfig
from text.made_encoders import bert

SOCKETS: list[str] = []


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A connection or a look-up fails the test; the hub's cache is empty, and the hub is not said to be offline."""
    import socket

    def connect(*_: object, **__: object) -> None:
        SOCKETS.append("tried")
        raise OSError("no network here")

    SOCKETS.clear()
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def refused(name: object, **more: Any) -> str:
    with pytest.raises(Error) as caught:
        open_encoder(TextEncoderConfig(encoder=str(name)), fetch=False, **more)
    assert "\n" not in str(caught.value) and not SOCKETS
    return str(caught.value)


def test_a_name_of_the_hub_in_a_configuration_is_not_fetched_and_the_command_is_given() -> None:
    said = refused("hub:evil/model")
    assert "not in the hub's cache" in said and "hf download evil/model" in said
    for name in ("hub:../../etc", "hub:a b", "hub:x; rm -rf", "hub:" + "x" * 5000, "hub:-x\x1b"):
        with pytest.raises(Error):
            locate(name)
    assert not SOCKETS


def test_what_the_cache_holds_is_opened_though_it_was_not_typed(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--someone--tiny"
    bert(folder / "snapshots" / "a1")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a1")
    assert open_encoder(TextEncoderConfig(encoder="hub:someone/tiny"), fetch=False).width == 16
    assert not SOCKETS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers = 10000000"),
        ({"hidden_size": 10**9}, "hidden_size = 1000000000"),
        ({"vocab_size": 16_000_000}, "describes"),
        ({"hidden_size": 4096, "num_attention_heads": 2, "intermediate_size": 65536}, "describes"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"_attn_implementation": "evil/kernel"}, "names code elsewhere"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "is quantised"),
        ({"nested": {"text_config": {"num_layers": 10**6}}}, "num_layers"),
        ({"depths": [1] * 10**5}, "entries"),
        ({"model_type": ["bert"]}, "damaged config.json"),
    ],
)
def test_a_configuration_beyond_its_weights_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    bert(tmp_path / "enc")
    path = tmp_path / "enc" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert said in refused(tmp_path / "enc")


def test_an_adapter_an_index_that_leads_elsewhere_and_a_fifo_are_refused(tmp_path: Path) -> None:
    import os

    bert(tmp_path / "enc")
    (tmp_path / "enc" / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    assert "is an adapter" in refused(tmp_path / "enc")
    (tmp_path / "enc" / "adapter_config.json").unlink()
    os.mkfifo(tmp_path / "enc" / "generation_config.json")
    assert "is a FIFO" in refused(tmp_path / "enc")
    (tmp_path / "enc" / "generation_config.json").unlink()
    (tmp_path / "enc" / "model.safetensors").rename(tmp_path / "other.safetensors")
    index = {"weight_map": {"a": "../other.safetensors"}}
    (tmp_path / "enc" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside its folder" in refused(tmp_path / "enc")


def test_a_tokenizer_reads_its_own_folder_whatever_its_configuration_names(tmp_path: Path) -> None:
    bert(tmp_path / "enc")
    plain = open_encoder(TextEncoderConfig(encoder=str(tmp_path / "enc")), fetch=False)
    path = tmp_path / "enc" / "tokenizer_config.json"
    elsewhere = {"vocab_file": "/dev/zero", "tokenizer_file": "/dev/zero", "name_or_path": "evil/model", "auto_map": {}}
    code = {"auto_map": {"AutoTokenizer": ["evil/model--x.T", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | elsewhere | code))
    strange = open_encoder(TextEncoderConfig(encoder=str(tmp_path / "enc")), fetch=False)
    assert torch.equal(strange.row("a red fox").features, plain.row("a red fox").features)
    assert not SOCKETS and "evil" not in " ".join(sys.modules)
