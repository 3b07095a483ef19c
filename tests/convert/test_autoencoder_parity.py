"""Our autoencoder computes what diffusers' AutoencoderKL computes, with its weights carried over by the name table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kuosan import config as trees
from kuosan import seeds
from kuosan.convert.autoencoder import (
    autoencoder_from_diffusers,
    autoencoder_to_diffusers,
    config_from_diffusers,
    config_to_diffusers,
    name_table,
)
from kuosan.errors import Error
from kuosan.networks.autoencoder import Autoencoder, parameter_count
from kuosan.networks.autoencoder_config import AutoencoderConfig

diffusers = pytest.importorskip("diffusers")

STABLE_DIFFUSION: dict[str, Any] = {  # config.json of the vae of stable-diffusion-v1-5
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SCALED = {**STABLE_DIFFUSION, "block_out_channels": [16, 32, 64, 64], "norm_num_groups": 8}
OTHERS = [
    {},
    {"layers_per_block": 1, "latent_channels": 3, "in_channels": 1, "out_channels": 1},
    {"mid_block_add_attention": False},
]


def theirs(config: dict[str, Any]) -> Any:
    """A diffusers model with weights, biases and norms all moved from their beginnings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.AutoencoderKL(**config)
    with torch.no_grad():
        for i, (name, weight) in enumerate(sorted(model.named_parameters())):
            if weight.ndim == 1:
                noise = seeds.normal([(1, name, 0, i)], tuple(weight.shape))[0]
                weight.add_(0.3 * noise)
    return model.eval()


def ours(model: Any) -> Autoencoder:
    config, state = autoencoder_from_diffusers(model.config, model.state_dict())
    network = Autoencoder(config)
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("change", OTHERS)
@torch.no_grad()
def test_moments_and_images_are_those_of_diffusers(change: dict[str, Any]) -> None:
    model = theirs({**SCALED, **change})
    network = ours(model)
    x = seeds.normal([(2, "x", 0, i) for i in range(2)], (model.config.in_channels, 64, 48))
    posterior, moments = model.encode(x).latent_dist, network.encode(x)
    torch.testing.assert_close(moments.mean, posterior.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments.log_var, posterior.logvar, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments.kl(), posterior.kl(), rtol=1e-4, atol=1e-4)
    z = posterior.mean
    torch.testing.assert_close(network.decode(z), model.decode(z).sample, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_images_large_enough_for_the_quick_enlargement_are_the_same_too() -> None:
    model = theirs({**SCALED, "block_out_channels": [16, 32], "down_block_types": ["DownEncoderBlock2D"] * 2,
                    "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 1})  # fmt: skip
    z = seeds.normal([(3, "z", 0, 0)], (4, 24, 32))
    torch.testing.assert_close(ours(model).decode(z), model.decode(z).sample, rtol=1e-4, atol=1e-4)


def test_stable_diffusions_autoencoder_has_its_published_number_of_weights() -> None:
    assert parameter_count(config_from_diffusers(STABLE_DIFFUSION)) == 83_653_863


def test_there_and_back_gives_the_same_weights_without_the_discriminator() -> None:
    config = AutoencoderConfig(channels=16, multipliers=(1, 2), blocks=1, groups=8, critic_channels=8)
    state = Autoencoder(config, seed=5).state_dict()
    told, weights = autoencoder_to_diffusers(config, state)
    model = diffusers.AutoencoderKL(**{key: value for key, value in told.items() if key != "_class_name"})
    model.load_state_dict(weights)
    back, again = autoencoder_from_diffusers(told, weights)
    assert back == config.alone
    assert again.keys() == {name for name in state if not name.startswith("critic.")}
    assert all(torch.equal(state[name], weight) for name, weight in again.items())


def test_attention_spelt_the_old_way_is_understood() -> None:
    model = theirs({**SCALED, "layers_per_block": 1})
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    spelt = {}
    for name, weight in model.state_dict().items():
        for new, before in old.items():
            if new in name:
                name, weight = name.replace(new, before), weight[..., None, None] if weight.ndim == 2 else weight
        spelt[name] = weight
    _, state = autoencoder_from_diffusers(model.config, spelt)
    assert all(torch.equal(state[name], weight) for name, weight in ours(model).state_dict().items())


def test_every_name_is_used_once() -> None:
    table = name_table(AutoencoderConfig(channels=16, multipliers=(1, 2), blocks=1, groups=8))
    names = [name for parts in table.values() for name in parts]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_quant_conv": False}, "use_quant_conv"),
        ({"shift_factor": 0.1}, "shift_factor"),
        ({"act_fn": "relu"}, "act_fn"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "down_block_types"),
        ({"block_out_channels": [16, 24, 64, 64]}, "block_out_channels"),
        ({"out_channels": 4}, "out_channels"),
        ({"made_up": 1}, "made_up"),
    ],
)
def test_an_option_we_do_not_have_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(Error, match=named):
        config_from_diffusers({**SCALED, **change})


def test_weights_missing_or_left_over_are_refused() -> None:
    model = theirs({**SCALED, "layers_per_block": 1})
    weights = model.state_dict()
    lacking = {name: weight for name, weight in weights.items() if name != "quant_conv.bias"}
    with pytest.raises(Error, match=r"missing: quant_conv\.bias"):
        autoencoder_from_diffusers(model.config, lacking)
    with pytest.raises(Error, match="unknown: extra"):
        autoencoder_from_diffusers(model.config, {**weights, "extra": torch.zeros(1)})
    with pytest.raises(Error, match="patch is 2"):
        config = AutoencoderConfig(channels=16, multipliers=(1,), blocks=1, groups=8, patch=2)
        autoencoder_to_diffusers(config, Autoencoder(config).state_dict())


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sample_size": 512},
        {"scaling_factor": 0.13025},
        {"scaling_factor": 0.13025, "force_upcast": False, "sample_size": 1024},
        {"force_upcast": True},
    ],
    ids=lambda change: "-".join(change) or "as it is",
)
@torch.no_grad()
def test_no_number_that_was_read_is_lost_and_diffusers_opens_what_is_written(
    change: dict[str, Any], tmp_path: Path
) -> None:
    given = {**SCALED, "layers_per_block": 1, **change}
    model = theirs(given)
    config, weights = autoencoder_to_diffusers(*autoencoder_from_diffusers(given, model.state_dict()))
    for name, value in given.items():
        assert config[name] == value, name
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    opened = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    for name in ("sample_size", "scaling_factor", "force_upcast"):
        assert opened.config[name] == model.config[name], name
    x = seeds.normal([(2, "x", 0, 0)], (3, 32, 32))
    assert torch.equal(opened.encode(x).latent_dist.mean, model.encode(x).latent_dist.mean)
    stored = trees.build(AutoencoderConfig, json.loads(json.dumps(trees.plain(config_from_diffusers(given)))))
    assert autoencoder_to_diffusers(stored, autoencoder_from_diffusers(given, model.state_dict())[1])[0] == config


def test_numbers_named_on_the_way_out_go_before_those_that_were_read() -> None:
    config = config_from_diffusers({**SCALED, "scaling_factor": 0.13025})
    assert config_to_diffusers(config)["scaling_factor"] == 0.13025
    assert config_to_diffusers(config, 0.3)["scaling_factor"] == 0.3
    assert config_to_diffusers(config, sample_size=256)["sample_size"] == 256
    assert config_to_diffusers(AutoencoderConfig())["scaling_factor"] == 0.18215
    for wrong in ({"scaling_factor": 0.0}, {"scaling_factor": float("nan")}, {"sample_size": 0}):
        with pytest.raises(Error, match=next(iter(wrong))):
            config_to_diffusers(config, **wrong)
