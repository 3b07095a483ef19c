"""Networks that users bring: what they keep, what they look like to safetensors, and that they stay the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import kuosan
from kuosan import Error
from kuosan.sample.generate import image_noise
from kuosan.train.report import SilentTraining

SETTINGS = {"max_steps": 2, "batch": 4, "warmup": 1, "preview_every": 1, "preview_pictures": 1, "preview_steps": 2}
IMAGES = torch.utils.data.TensorDataset(torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)))


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
        network, IMAGES, out, report=SilentTraining(), **{**SETTINGS, "evaluate_every": 1, "hold_out": 0.5, **more}
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


def test_what_becomes_of_the_images_is_said_from_python_too(tmp_path: Path) -> None:
    class Heard(SilentTraining):
        said: list[str] = []  # noqa: RUF012

        def say(self, text: str) -> None:
            self.said.append(text)

    wide = torch.utils.data.TensorDataset(torch.zeros(4, 1, 20, 30))
    kuosan.fit(Small(), wide, tmp_path / "run", report=Heard(), **{**SETTINGS, "preview_every": 0})
    assert any("Size 16x16" in line and "4 of 4 resized to it" in line for line in Heard.said)


UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "add_attention": False,
}


def test_diffusers_unet_is_trained_resumed_and_sampled_as_it_is(tmp_path: Path) -> None:
    whole = fit(diffusers.UNet2DModel(**UNET), tmp_path / "whole", max_steps=3, prediction="epsilon", seed=1)
    assert kuosan.load(whole, network=diffusers.UNet2DModel(**UNET)).model.config.prediction == "eps"
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**UNET)
    before = network.conv_in.weight.detach().clone()
    run = fit(network, tmp_path / "run", prediction="v_prediction", schedule="discrete")
    fit(diffusers.UNet2DModel(**UNET), tmp_path / "run", max_steps=3, prediction="v_prediction", schedule="discrete")
    model = kuosan.load(run, network=diffusers.UNet2DModel(**UNET))
    assert model.step == 3 and not torch.equal(model.model.network.conv_in.weight, before)
    made = model.sample(2, seed=7, sampler="DPMSolverMultistepScheduler", steps=3)
    assert made.shape == (2, 1, 8, 8) and made.isfinite().all()


class Labelled(torch.utils.data.Dataset[Any]):
    """Black images of class 0, white ones of class 1."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((1, 8, 8), float(i % 2)), i % 2


def test_classes_reach_diffusers_unet_in_training_and_sampling(tmp_path: Path) -> None:
    network = diffusers.UNet2DModel(**UNET, num_class_embeds=3)  # two classes, and none of them
    seen: list[Tensor] = []
    network.class_embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    run = kuosan.fit(
        network, Labelled(), tmp_path / "run", report=SilentTraining(), labels=True, **{**SETTINGS, "hold_out": 0}
    )
    assert {0, 1} <= {int(label) for labels in seen for label in labels} <= {0, 1, 2}
    model = kuosan.load(run, network=diffusers.UNet2DModel(**UNET, num_class_embeds=3))
    options: dict[str, Any] = {"n": 1, "steps": 3, "sampler": "ddim"}
    zero, one = (model.sample(classes=(str(label),), **options) for label in (0, 1))
    assert not torch.equal(zero, one)
    model.sample(classes=("1",), guidance=2.0, **options)


class Embedded(nn.Module):
    """Learns a shift for every timestep, in a table, behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop, self.table = nn.Conv2d(1, 1, 3, padding=1), nn.Dropout(0.3), nn.Embedding(1000, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.drop(x)
        out: Tensor = self.layer(x) + self.table(t)[:, :, None, None]
        return out


def embedded() -> Embedded:
    torch.manual_seed(0)
    return Embedded()


def test_a_network_with_a_table_of_timesteps_trains_resumes_bit_for_bit_and_samples(tmp_path: Path) -> None:
    whole = fit(embedded(), tmp_path / "whole", max_steps=4, lr_shape="constant")
    fit(embedded(), tmp_path / "parts", max_steps=2, lr_shape="constant")
    parts = fit(embedded(), tmp_path / "parts", max_steps=4, lr_shape="constant")
    models = [kuosan.load(run, network=embedded()) for run in (whole, parts)]
    for name, value in models[0].model.network.state_dict().items():
        assert torch.equal(value, models[1].model.network.state_dict()[name]), name
    assert models[0].sample(1, steps=5).isfinite().all()
    with pytest.raises(Error, match="indexes by t, so it knows whole timesteps alone"):
        models[0].sample(1, steps=5, spacing="karras")


def test_a_walk_by_hand_with_a_seed_is_the_runs_own(tmp_path: Path) -> None:
    run = fit(Small(), tmp_path / "run", prediction="epsilon")
    model = kuosan.load(run, network=Small())
    made = model.sample(3, seed=7, sampler="DDPMScheduler", steps=6)
    schedule, network = model.model.config.schedule, model.model.network
    denoise = kuosan.clamp(kuosan.denoiser(network, "epsilon"))
    with torch.no_grad():
        start = image_noise([7, 8, 9], (1, 8, 8))
        *_, last = kuosan.SAMPLERS["ddpm"](denoise, start, schedule.grid(6), seed=7)
    torch.testing.assert_close(last.x, made)


def test_a_canvas_larger_than_diffusers_unet_is_restored_in_tiles(tmp_path: Path) -> None:
    run = fit(diffusers.UNet2DModel(**UNET), tmp_path / "run")
    model = kuosan.load(run, network=diffusers.UNet2DModel(**UNET))
    wide, hole = torch.zeros(1, 1, 12, 16), torch.zeros(1, 1, 12, 16)
    hole[..., 4:8, 6:10] = 1
    made = model.restore(wide, hole, steps=3)
    assert made.shape == wide.shape and torch.equal(made[hole == 0], wide[hole == 0])


def test_a_schedule_is_given_as_a_value_and_a_table_of_ones_own_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    given = kuosan.Discrete(betas="scaled_linear", beta_start=0.00085, beta_end=0.012)
    run = fit(Small(), tmp_path / "run", schedule=given, prediction="epsilon")
    assert kuosan.load(run, network=Small()).model.config.schedule == given
    flow = fit(Small(), tmp_path / "flow", schedule=kuosan.Flow(shift=3))
    assert kuosan.load(flow, network=Small()).model.config.schedule == kuosan.Flow(shift=3)
    with pytest.raises(Error, match=r"a table of your own \(2 steps\).*kuosan.simple_loss"):
        fit(Small(), tmp_path / "own", schedule=kuosan.Discrete.from_betas([0.1, 0.2]))
    with pytest.raises(Error, match=r"schedule Discrete\(.* holds all of its numbers, so T beside it is refused"):
        fit(Small(), tmp_path / "own", schedule=given, **{"model.schedule.T": 10})
    assert not (tmp_path / "own").exists()
