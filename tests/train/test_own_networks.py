"""Networks that users bring: what they keep, what they look like to safetensors, and that they stay the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kuosan
from kuosan import Error
from kuosan.train.report import SilentTraining

SETTINGS = {"max_steps": 2, "batch": 4, "warmup": 1, "preview_every": 1, "preview_pictures": 1, "preview_steps": 2}
PICTURES = torch.utils.data.TensorDataset(torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)))


class Small(nn.Module):
    """One convolution."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class Remembering(Small):
    """Keeps its last features, gradients and all, as people do to look at them."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.features = self.layer(x)
        return self.features


class Telling(Small):
    """Puts a dict into its state dict."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: object) -> None:
        """Nothing to set."""


def fit(network: nn.Module, out: Path, **more: Any) -> Path:
    return kuosan.fit(
        network, PICTURES, out, report=SilentTraining(), **{**SETTINGS, "evaluate_every": 1, "hold_out": 0.5, **more}
    )


def test_features_that_a_network_keeps_do_not_stop_evaluation_or_sampling(tmp_path: Path) -> None:
    network = Remembering()
    run = fit(network, tmp_path / "run")
    assert (run / "samples" / "step-00000001.png").is_file()
    network(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    assert kuosan.load(run, network=network).sample(1, steps=2).shape == (1, 1, 8, 8)


def test_a_mask_of_infinities_and_buffers_of_rare_types_are_saved_and_come_back(tmp_path: Path) -> None:
    buffers = {
        "mask": torch.full((3, 3), float("-inf")).triu(1),
        "phases": torch.ones(3, dtype=torch.complex64),
        "codes": torch.tensor([1, 65535], dtype=torch.uint16),
    }
    run = fit(Small(**buffers), tmp_path / "run")
    loaded = kuosan.load(run, network=Small(**{k: torch.zeros_like(v) for k, v in buffers.items()})).model.network
    for name, buffer in buffers.items():
        assert torch.equal(loaded.get_buffer(name), buffer)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Telling(), "Telling's '_extra_state' is a dict, which safetensors cannot hold"),
        (Small(phases=torch.ones(3, dtype=torch.complex128)), "Small's 'phases' is complex128.*persistent=False"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(
    network: nn.Module, words: str, tmp_path: Path
) -> None:
    with pytest.raises(Error, match=words):
        fit(network, tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_loading_leaves_the_callers_network_trainable(tmp_path: Path) -> None:
    network = Small()
    run = fit(network, tmp_path / "run")
    kuosan.load(run, network=network).sample(1, steps=2)
    assert network.training and all(p.requires_grad for p in network.parameters())
    fit(network, tmp_path / "run", max_steps=3)  # the same network goes on
    assert kuosan.load(run, network=Small()).step == 3


def test_a_size_of_the_unet_is_refused_beside_ones_own_network(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"size = 16 is of kuosan's networks.*data.size"):
        fit(Small(), tmp_path / "run", size=16)


def test_what_becomes_of_the_pictures_is_said_from_python_too(tmp_path: Path) -> None:
    class Heard(SilentTraining):
        said: list[str] = []  # noqa: RUF012

        def say(self, text: str) -> None:
            self.said.append(text)

    wide = torch.utils.data.TensorDataset(torch.zeros(4, 1, 20, 30))
    kuosan.fit(Small(), wide, tmp_path / "run", report=Heard(), **{**SETTINGS, "preview_every": 0})
    assert any("Size 16x16" in line and "4 of 4 brought to it" in line for line in Heard.said)
