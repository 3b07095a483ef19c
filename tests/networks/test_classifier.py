"""The classifier: logits of every shape, a U-Net's own first half, gradients for guidance, its refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kuosan import seeds
from kuosan.diffusion.guidance import gradient, log_prob
from kuosan.diffusion.schedule import Discrete
from kuosan.errors import Error
from kuosan.models.latents import prepare
from kuosan.networks.classifier_config import ClassifierConfig, default_classifier
from kuosan.networks.config import default_unet
from kuosan.networks.unet import Classifier, UNet, classifier_parameter_count

SMALL = ClassifierConfig(in_channels=4, classes=5, channels=32, multipliers=(1, 2), attention=(False, True), groups=8)
OPTIONS: dict[str, dict[str, Any]] = {
    "as_it_is": {},
    "scale_shift": {"time_conditioning": "scale_shift", "resample": "block"},
    "one_level": {"multipliers": (1,), "attention": (False,), "middle_attention": False},
    "patch": {"patch": 2, "head_channels": 16},
    "checkpointing": {"checkpointing": True},
    "judge": {"noisy": False},
}


def noise(name: str, *shape: int) -> Tensor:
    return seeds.normal([(0, name, 0, i) for i in range(shape[0])], shape[1:])


def lively(config: ClassifierConfig) -> Classifier:
    """A classifier whose every weight is random, those that begin at zero too."""
    network = Classifier(config, 0).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.add_(noise(name, *weight.shape) * (0.5 / max(1, weight[0].numel()) ** 0.5))
    return network


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_logits_and_all_weights_gradients(name: str) -> None:
    config = replace(SMALL, **OPTIONS[name])
    network = lively(config)
    clock = (torch.tensor([0.5, 999.0]),) if config.noisy else ()
    out = network(noise("x", 2, 4, 16, 24), *clock)
    assert out.shape == (2, 5) and out.dtype == torch.float32
    F.cross_entropy(out, torch.tensor([0, 4])).backward()
    for key, weight in network.named_parameters():
        constant = not config.noisy and key == "encoder.time.0.weight"  # the timestep of a judge is 0: its sines are 0
        assert weight.grad is not None and (constant or weight.grad.abs().sum() > 0), key
    assert sum(p.numel() for p in network.parameters()) == classifier_parameter_count(config)


def test_the_first_half_is_the_u_nets_own() -> None:
    """The same names and shapes, so that a classifier's encoder can take a trained U-Net's."""
    config = default_classifier((3, 32, 32), "small", classes=7)
    unet, network = UNet(default_unet((3, 32, 32), "small"), 3), Classifier(config, 5)
    network.encoder.load_state_dict(unet.encoder.state_dict())
    x, t = noise("x", 2, 3, 32, 32), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        assert torch.equal(network.encoder(x, t).h, unet.encoder(x, t).h)


def test_the_weights_are_a_function_of_config_and_seed() -> None:
    state = torch.get_rng_state()
    one, same, other = Classifier(SMALL, 1), Classifier(SMALL, 1), Classifier(SMALL, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_an_untrained_classifier_is_nearly_undecided() -> None:
    with torch.no_grad():
        chance = Classifier(SMALL, 0)(noise("x", 8, 4, 16, 16), torch.zeros(8)).softmax(1)
    assert float(chance.min()) > 0.02 and float(chance.max()) < 0.6


def test_the_timestep_changes_the_output() -> None:
    network, x = lively(SMALL), noise("x", 2, 4, 16, 16)
    with torch.no_grad():
        early, late = network(x, torch.tensor([3.0, 3.0])), network(x, torch.tensor([900.0, 900.0]))
    assert float((early - late).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_gradient_reaches_x_under_no_grad_and_is_each_images_own(dtype: torch.dtype) -> None:
    network, schedule = prepare(lively(SMALL), dtype=dtype), Discrete()
    x, label, level = noise("x", 4, 4, 16, 16), torch.tensor([0, 3, 1, 4]), schedule.at_t(400)
    with torch.no_grad():
        together = gradient(log_prob(network, schedule, label), x, level)
        alone = [gradient(log_prob(network, schedule, label[i : i + 1]), x[i : i + 1], level) for i in range(len(x))]
    assert together.dtype == torch.float32 and together.shape == x.shape
    assert all(float(part.abs().max()) > 1e-6 for part in alone)
    assert all(p.grad is None for p in network.parameters())
    most = float(together.abs().max())
    # alone, the last float32 layer may round otherwise, and bf16 layers behind it then by a few of their 2^-8
    assert float((together - torch.cat(alone)).abs().max()) <= (1e-5 if dtype == torch.float32 else 2**-6) * most
    for i in range(len(x)):  # among others, at the same sizes: the same in either precision
        others = noise("others", 4, 4, 16, 16)
        others[i] = x[i]
        among = gradient(log_prob(network, schedule, label), others, level)
        assert float((together - among)[i].abs().max()) <= 1e-5 * most


def test_the_gradient_is_the_slope() -> None:
    """Central differences in float64 along one direction."""
    network, schedule = lively(SMALL).double(), Discrete()
    x, along, level = noise("x", 1, 4, 16, 16).double(), noise("d", 1, 4, 16, 16).double(), schedule.at_t(100)
    told = log_prob(network, schedule, torch.tensor([2]))
    h = 1e-5
    with torch.no_grad():
        slope = float((told(x + h * along, level) - told(x - h * along, level)) / (2 * h))
    assert float((gradient(told, x, level) * along).sum()) == pytest.approx(slope, rel=1e-5)


def test_in_bf16_it_says_nearly_the_same() -> None:
    network, x, t = lively(SMALL), noise("x", 8, 4, 16, 16), torch.full((1,), 500.0)
    with torch.no_grad():
        exact, low = prepare(network)(x, t), prepare(network, dtype=torch.bfloat16)(x, t)
    assert low.dtype == torch.float32
    assert float((low - exact).abs().max()) < 0.03 * float(exact.std() + 1)


def test_a_judge_takes_no_timestep_and_a_noisy_classifier_needs_one() -> None:
    x = noise("x", 1, 4, 16, 16)
    with pytest.raises(Error, match="it needs their time t"):
        lively(SMALL)(x)
    with pytest.raises(Error, match=r"judge of clean images.*takes no time t"):
        lively(replace(SMALL, noisy=False))(x, torch.zeros(1))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"classes": 1}, "ClassifierConfig.classes is 1; allowed: whole numbers from 2"),
    ({"classes": True}, "ClassifierConfig.classes is True"),
    ({"channels": 0}, "ClassifierConfig.channels is 0"),
    ({"groups": 48}, "ClassifierConfig.groups is 48"),
    ({"attention": (True,)}, "ClassifierConfig.attention is"),
    ({"resample": "conf"}, "unknown resample 'conf': did you mean 'conv'"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_a_bad_value_is_refused_in_the_classifiers_own_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        ClassifierConfig(**fields)


@pytest.mark.parametrize("size", ["tiny", "small", "medium", "large"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (4, 128, 96), (3, 256, 256)])
def test_the_default_shape_takes_its_images(shape: tuple[int, int, int], size: Any) -> None:
    config = default_classifier(shape, size, classes=3)
    assert shape[1] % config.factor == 0 and shape[2] % config.factor == 0
    assert config.in_channels == shape[0] and config.noisy
    with torch.device("meta"):
        out = Classifier(config)(torch.zeros(2, *shape), torch.zeros(2))
    assert out.shape == (2, 3)


def test_lists_become_tuples_so_that_yaml_and_python_give_equal_configs() -> None:
    lists = ClassifierConfig(multipliers=[1, 2], attention=[False, True])  # type: ignore[arg-type]
    assert lists == ClassifierConfig(multipliers=(1, 2), attention=(False, True))
    assert hash(lists)
