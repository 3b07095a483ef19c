"""The U-Net's shapes, doors, options and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.errors import Error
from kuosan.models.latents import prepare
from kuosan.networks.config import UNetConfig
from kuosan.networks.unet import UNet, UNetEncoder, parameter_count

SMALL = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(False, True), groups=8)
OPTIONS: dict[str, dict[str, Any]] = {
    "as_it_is": {},
    "one_level": {"multipliers": (1,), "attention": (True,)},
    "three_levels": {"multipliers": (1, 2, 3), "attention": (False, True, True), "blocks": 2},
    "scale_shift": {"time_conditioning": "scale_shift"},
    "heads": {"head_channels": 8},
    "no_middle_attention": {"middle_attention": False, "attention": (False, False)},
    "asymmetric": {"resample": "conv_asymmetric"},
    "block": {"resample": "block", "time_conditioning": "scale_shift"},
    "patch": {"patch": 2},
    "learned_variance": {"out_channels": 6},
    "grey": {"in_channels": 1, "out_channels": 1},
    "ddpm_time": {"cos_first": False, "freq_shift": 1.0},
}


def noise(name: str, *shape: int) -> Tensor:
    return seeds.normal([(0, name, 0, i) for i in range(shape[0])], shape[1:])


def lively(config: UNetConfig, seed: int = 0) -> UNet:
    """A network in evaluation mode whose every weight is random, those that begin at zero too."""
    network = UNet(config, seed).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.add_(noise(name, *weight.shape) * (0.3 / max(1, weight[0].numel()) ** 0.5))
    return network


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_images_of_the_right_shape_and_all_weights_gradients(name: str) -> None:
    config = replace(SMALL, **OPTIONS[name])
    network = lively(config)
    out = network(noise("x", 2, config.in_channels, 16, 24), torch.tensor([0.5, 999.0]))
    assert out.shape == (2, config.out_channels, 16, 24)
    assert out.dtype == torch.float32
    out.square().mean().backward()
    for key, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", OPTIONS)
def test_no_image_depends_on_its_neighbours(name: str) -> None:
    config = replace(SMALL, **OPTIONS[name])
    network, x, t = lively(config), noise("x", 3, config.in_channels, 16, 16), torch.tensor([3.0, 500.0, 999.0])
    with torch.no_grad():
        together = network(x, t)
        alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert (together - alone).abs().max() <= 2e-6 * together.abs().max()


@pytest.mark.parametrize("name", ["as_it_is", "block", "asymmetric", "heads"])
def test_the_layout_of_memory_changes_nothing(name: str) -> None:
    network, x, t = lively(replace(SMALL, **OPTIONS[name])), noise("x", 2, 3, 32, 32), torch.tensor([3.0, 500.0])
    with torch.no_grad():
        plain = network(x, t)
        last = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), t)
    assert (plain - last).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["as_it_is", "block", "three_levels"])
def test_checkpointing_gives_equal_gradients(name: str) -> None:
    config = replace(SMALL, **OPTIONS[name])
    gradients = []
    for checkpointing in (False, True):
        network = lively(replace(config, checkpointing=checkpointing))
        network(noise("x", 2, 3, 16, 16), torch.tensor([3.0, 500.0])).square().sum().backward()
        gradients.append([weight.grad for weight in network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_checkpointing_with_dropout_recomputes_the_same_draws() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = lively(replace(SMALL, dropout=0.5, checkpointing=checkpointing)).train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network(noise("x", 2, 3, 16, 16), torch.tensor([3.0, 500.0])).square().sum().backward()
        gradients.append([weight.grad for weight in network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_dropout_acts_in_training_only() -> None:
    network, x, t = lively(replace(SMALL, dropout=0.5)), noise("x", 1, 3, 16, 16), torch.tensor(3)
    with torch.no_grad(), torch.random.fork_rng():
        assert torch.equal(network(x, t), lively(SMALL)(x, t))
        assert not torch.allclose(network.train()(x, t), lively(SMALL)(x, t))


def test_one_time_serves_the_whole_batch_whatever_its_shape() -> None:
    network, x = lively(SMALL), noise("x", 2, 3, 16, 16)
    with torch.no_grad():
        wanted = network(x, torch.tensor([7, 7]))
        for t in (torch.tensor(7), torch.tensor([7]), torch.tensor(7.0), torch.tensor([7.0, 7.0])):
            assert torch.equal(network(x, t), wanted)


def test_time_matters_and_between_two_whole_times_lies_a_fractional_one() -> None:
    network, x = lively(SMALL), noise("x", 1, 3, 16, 16)
    with torch.no_grad():
        at_3, between, at_4 = (network(x, torch.tensor([t])) for t in (3.0, 3.5, 4.0))
    assert not torch.equal(at_3, at_4)
    assert (between - (at_3 + at_4) / 2).abs().max() < (at_3 - at_4).abs().max() / 2


def test_the_label_input_changes_the_output_and_the_null_label_adds_nothing_at_first() -> None:
    network, x, t = lively(replace(SMALL, classes=3)), noise("x", 2, 3, 16, 16), torch.tensor(5.0)
    with torch.no_grad():
        outs = [network(x, t, label=torch.tensor([label, 0])) for label in range(4)]
    for other in outs[1:]:
        assert not torch.equal(outs[0][0], other[0])
        assert torch.allclose(outs[0][1], other[1], atol=1e-6)
    assert network.config.null_label == 3
    rows = UNet(replace(SMALL, classes=30)).encoder.label.weight
    assert rows[30].abs().sum() == 0
    assert rows[:30].std().item() == pytest.approx(1, rel=0.1)


def test_a_label_weighs_as_much_as_the_time_from_the_first_step() -> None:
    encoder = UNet(replace(SMALL, classes=3)).encoder
    embedded = torch.cat([encoder.embed(torch.tensor([float(t)]), None) for t in range(0, 1000, 50)])
    by_time = (embedded - embedded.mean(0)).std()
    labels = encoder.label.weight[:3]
    by_label = (labels - labels.mean(0)).std()
    assert by_label / by_time > 0.3, (by_label, by_time)


def test_the_concat_input_changes_the_output() -> None:
    network, x, t = lively(replace(SMALL, concat_channels=2)), noise("x", 2, 3, 16, 16), torch.tensor(5.0)
    with torch.no_grad():
        first = network(x, t, concat=noise("a", 2, 2, 16, 16))
        second = network(x, t, concat=noise("b", 2, 2, 16, 16))
    assert first.shape == x.shape
    assert not torch.allclose(first, second)


def test_weights_make_the_round_trip_through_a_state_dict() -> None:
    first, second = lively(SMALL, 1), UNet(SMALL, 2).eval()
    x, t = noise("x", 1, 3, 16, 16), torch.tensor(5.0)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(first(x, t), second(x, t))


def test_the_encoder_stands_alone() -> None:
    encoding = UNetEncoder(SMALL)(noise("x", 2, 3, 16, 16), torch.tensor([1.0, 2.0]))
    assert encoding.h.shape == (2, 32, 8, 8)
    assert encoding.emb.shape == (2, SMALL.time_width)
    assert [tuple(skip.shape[1:]) for skip in encoding.skips] == [(16, 16, 16), (16, 16, 16), (16, 8, 8), (32, 8, 8)]


def test_the_parameter_count_needs_no_weights() -> None:
    assert parameter_count(SMALL) == sum(weight.numel() for weight in UNet(SMALL).parameters())
    assert 35e6 < parameter_count(UNetConfig(multipliers=(1, 2, 2, 2))) < 36e6  # 35.7 M (Ho et al. 2020)


def test_double_precision_is_kept() -> None:
    network = lively(SMALL)
    x, t = noise("x", 1, 3, 16, 16), torch.tensor([5.0])
    with torch.no_grad():
        single = network(x, t)
        double = network.double()(x.double(), t.double())
    assert double.dtype == torch.float64
    assert 0 < (single - double).abs().max() < 1e-5


BAD_CALLS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"x": (2, 3, 15, 16)}, r"image size 15x16.*multiples of 2.*16x16"),
    ({"patch": 4}, {"x": (2, 3, 20, 16)}, r"multiples of 8.*24x16"),
    ({}, {"x": (2, 1, 16, 16)}, r"takes \(B, 3, H, W\)"),
    ({}, {"x": (3, 16, 16)}, r"takes \(B, 3, H, W\)"),
    ({}, {"t": (3,)}, r"t has shape \(3,\)"),
    ({}, {"t": (2, 1)}, r"t has shape \(2, 1\)"),
    ({}, {"label": (2,)}, "no label input"),
    ({"classes": 4}, {}, r"label is missing; this network has 4 classes.*4 for none"),
    ({"classes": 4}, {"label": (3,)}, r"label is of shape \(3,\)"),
    ({}, {"concat": (2, 1, 16, 16)}, "no concat input"),
    ({"concat_channels": 2}, {}, r"concat is missing.*\(2, 2, 16, 16\)"),
    ({"concat_channels": 2}, {"concat": (2, 2, 8, 8)}, r"concat is of shape \(2, 2, 8, 8\)"),
    ({}, {"context": (2, 4, 8)}, "no context input"),
]


@pytest.mark.parametrize(("fields", "shapes", "message"), BAD_CALLS)
def test_a_call_that_cannot_be_answered_is_refused(fields: Any, shapes: Any, message: str) -> None:
    network = UNet(replace(SMALL, **fields))
    inputs = {key: torch.zeros(shape) for key, shape in {"x": (2, 3, 16, 16), "t": (2,), **shapes}.items()}
    with pytest.raises(Error, match=message):
        network(inputs.pop("x"), inputs.pop("t"), **inputs)


def test_a_label_out_of_range_is_refused() -> None:
    network = UNet(replace(SMALL, classes=4))
    with pytest.raises(Error, match=r"label 5: this network takes 0 to 3, or 4 for none"):
        network(torch.zeros(2, 3, 16, 16), torch.zeros(2), label=torch.tensor([0, 5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_a_skip_the_output_is_what_is_added_to_the_first_joined_channels(dtype: torch.dtype) -> None:
    config = UNetConfig(channels=32, multipliers=(1,), attention=(False,), blocks=1, groups=8, concat_channels=4)
    x, concat = (seeds.normal([(i, "test/skip", 0, 0) for i in range(2)], (c, 8, 8)) for c in (3, 4))
    t = torch.tensor([3.0, 700.0])
    plain, skipping = (prepare(UNet(replace(config, concat_skip=on), seed=1), "cpu", dtype) for on in (False, True))
    difference = skipping(x, t, concat=concat) - plain(x, t, concat=concat)
    assert torch.allclose(difference, concat[:, :3], atol=1e-5)
    with pytest.raises(Error, match="concat_skip"):
        replace(config, concat_channels=2, concat_skip=True)
