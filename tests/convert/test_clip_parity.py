"""Our CLIP text network computes what transformers' CLIPTextModel and CLIPTextModelWithProjection compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kuosan.convert.clip import (
    PREFIX,
    clip_from_transformers,
    clip_names,
    clip_to_transformers,
    config_from_transformers,
    open_clip_names,
    open_clip_weights,
)
from kuosan.errors import Error
from kuosan.networks.clip import CLIPTextNetwork
from kuosan.networks.text_config import CLIPText

transformers = pytest.importorskip("transformers")

CLIP_L: dict[str, Any] = {  # of its shape, narrow
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "hidden_act": "quick_gelu",
    "projection_dim": 32,
    "bos_token_id": 198,
    "eos_token_id": 199,
    "pad_token_id": 1,
}
CLIP_G = {**CLIP_L, "hidden_act": "gelu", "projection_dim": 20, "num_hidden_layers": 2}
OLD = {**CLIP_L, "eos_token_id": 2}  # as files say that were written before the end token's number was mended
KINDS = {
    "clip_l": ("CLIPTextModel", CLIP_L),
    "clip_g": ("CLIPTextModelWithProjection", CLIP_G),
    "old": ("CLIPTextModel", OLD),
    "old_projected": ("CLIPTextModelWithProjection", {**OLD, "layer_norm_eps": 1e-3}),
}


def peer(name: str) -> Any:
    """A CLIP of random weights, large enough that tokens differ."""
    kind, config = KINDS[name]
    model = getattr(transformers, kind)(transformers.CLIPTextConfig(**config)).eval()
    with torch.no_grad():
        for i, (own, parameter) in enumerate(sorted(model.named_parameters())):
            draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.copy_(1 + 0.3 * draw if "norm" in own and own.endswith("weight") else 0.2 * draw)
    return model


def prompts() -> torch.Tensor:
    """Rows of tokens that begin, end, and are filled up with the end token, with zeros, or not at all."""
    rows = [[198, 5, 7, 199, 199, 199], [198, 9, 199, 0, 0, 0], [198, 3, 150, 20, 42, 199]]
    return torch.tensor(rows)


@pytest.mark.parametrize("name", KINDS)
def test_every_layer_and_the_pooled_text_equal_those_of_transformers(name: str) -> None:
    model = peer(name)
    config, state = clip_from_transformers(model.config.to_dict(), model.state_dict())
    network = CLIPTextNetwork(config).eval()
    network.load_state_dict(state)
    with torch.no_grad():
        ours = network(prompts())
        theirs = model(prompts(), output_hidden_states=True)
    assert theirs.last_hidden_state.std() > 0.1
    assert (ours.last_hidden_state - theirs.last_hidden_state).abs().max() <= 1e-5
    assert len(ours.hidden_states) == len(theirs.hidden_states) == config.depth + 1
    for one, other in zip(ours.hidden_states, theirs.hidden_states):
        assert (one - other).abs().max() <= 1e-5
    pooled = theirs.text_embeds if config.projection else theirs.pooler_output
    assert pooled.shape == ours.pooled.shape and (ours.pooled - pooled).abs().max() <= 1e-5


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_names_on_disk_are_read_with_and_without_their_prefix(name: str, prefix: str, tmp_path: Path) -> None:
    model = peer(name)
    model.save_pretrained(tmp_path)
    bare = {key.removeprefix(PREFIX): each for key, each in load_file(tmp_path / "model.safetensors").items()}
    weights = {key if key.startswith("text_projection") else prefix + key: each for key, each in bare.items()}
    weights[f"{prefix}embeddings.position_ids"] = torch.arange(16)[None]
    read = json.loads((tmp_path / "config.json").read_text())
    config, state = clip_from_transformers(read, weights)
    CLIPTextNetwork(config).load_state_dict(state)
    assert clip_names(weights, config)[1] == (f"{prefix}embeddings.position_ids",)
    # the way back: the names that every version of transformers reads, and what its config said
    back, own = clip_to_transformers(config, state, read)
    assert {**back, **read} == back
    assert all(key.startswith(PREFIX) or key == "text_projection.weight" for key in own)
    assert all(torch.equal(own[key if key == "text_projection.weight" else PREFIX + key], bare[key]) for key in bare)


def test_what_is_written_is_opened_by_transformers(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name, (kind, _) in KINDS.items():
        model = peer(name)
        config, weights = clip_to_transformers(*clip_from_transformers(model.config.to_dict(), model.state_dict()))
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        opened = getattr(transformers, kind).from_pretrained(folder).eval()
        with torch.no_grad():
            one, other = opened(prompts()), model(prompts())
        assert torch.equal(one.last_hidden_state, other.last_hidden_state)


def test_weights_and_options_that_do_not_fit_are_named() -> None:
    model = peer("clip_g")
    weights, config = dict(model.state_dict()), model.config.to_dict()
    with pytest.raises(Error, match=r"1 unknown: stranger"):
        clip_from_transformers(config, {**weights, "stranger": torch.zeros(1)})
    with pytest.raises(Error, match=r"weight text_projection\.weight has shape \(20, 32\).*\(24, 32\)"):
        clip_from_transformers({**config, "projection_dim": 24}, weights)
    with pytest.raises(Error, match=r"missing: encoder\.layers\.2\.layer_norm1\.bias"):
        clip_from_transformers({**config, "num_hidden_layers": 3}, weights)
    with pytest.raises(Error, match="depth is 100000"):
        clip_from_transformers({**config, "num_hidden_layers": 100_000}, weights)
    with pytest.raises(Error, match="200 layers"):
        clip_from_transformers({**config, "num_hidden_layers": 200}, weights)
    with pytest.raises(Error, match=r"final_layer_norm\.bias is there twice"):
        clip_names([*weights, "final_layer_norm.bias"])
    for option, value in (("hidden_act", "relu"), ("model_type", "t5"), ("quantization_config", {"bits": 4})):
        with pytest.raises(Error, match=option.partition("_config")[0]):
            clip_from_transformers({**config, option: value}, weights)
    with pytest.raises(Error, match="heads is 5"):
        clip_from_transformers({**config, "num_attention_heads": 5}, weights)


def test_a_whole_clips_config_gives_its_text_tower() -> None:
    whole = transformers.CLIPConfig(text_config=CLIP_G, projection_dim=20).to_dict()
    assert config_from_transformers(whole, projected=True) == CLIPText(200, 32, 64, 2, 4, 16, "gelu", 1e-5, 20, 199)


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(Error, match="17 tokens: this text network reads 16 at most"):
        CLIPTextNetwork(CLIPText(200, 32, 64, 1, 4, 16))(torch.zeros(1, 17, dtype=torch.long))


def test_open_clips_layout_holds_the_same_network() -> None:
    """OpenCLIP's names: q, k and v in one, the projection transposed, 0-dimensional and mask tensors beside."""
    model = peer("clip_g")
    config, state = clip_from_transformers(model.config.to_dict(), model.state_dict())
    theirs = {"logit_scale": torch.zeros(()), "attn_mask": torch.zeros(16, 16)}
    theirs["token_embedding.weight"] = state["embeddings.token_embedding.weight"]
    theirs["positional_embedding"] = state["embeddings.position_embedding.weight"]
    theirs["text_projection"] = state["text_projection.weight"].T
    for end in ("weight", "bias"):
        theirs[f"ln_final.{end}"] = state[f"final_layer_norm.{end}"]
        for i in range(config.depth):
            own, block = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            stacked = [state[f"{own}.self_attn.{each}_proj.{end}"] for each in "qkv"]
            theirs[f"{block}.attn.in_proj_{end}"] = torch.cat(stacked)
            theirs[f"{block}.attn.out_proj.{end}"] = state[f"{own}.self_attn.out_proj.{end}"]
            for there, here in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                theirs[f"{block}.{there}.{end}"] = state[f"{own}.{here}.{end}"]
            for there, here in (("c_fc", "fc1"), ("c_proj", "fc2")):
                theirs[f"{block}.mlp.{there}.{end}"] = state[f"{own}.mlp.{here}.{end}"]
    table, made = open_clip_names(theirs), {}
    for name, weight in theirs.items():
        made |= open_clip_weights(name, weight, table[name])
    assert made.keys() == state.keys() and all(torch.equal(made[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("field", "value"), [("width", 0), ("heads", 5), ("act", "relu"), ("norm_eps", 0.0), ("end", -1), ("depth", 257)]
)
def test_a_shape_that_cannot_be_is_refused(field: str, value: object) -> None:
    with pytest.raises(Error, match=field):
        CLIPText(**{field: value})


def test_the_shapes_of_the_published_ones() -> None:
    with torch.device("meta"):
        large = sum(each.numel() for each in CLIPTextNetwork(CLIPText()).parameters())
        big = CLIPText(width=1280, hidden=5120, depth=32, heads=20, act="gelu", projection=1280)
        assert (large, sum(each.numel() for each in CLIPTextNetwork(big).parameters())) == (123_060_480, 694_659_840)
