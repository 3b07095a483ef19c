"""One flat buffer for the weights: names, values and layouts stay; what cannot be in it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kuosan import Error, seeds
from kuosan.storage import checkpoint
from kuosan.train import saving
from kuosan.train.config import TrainConfig
from kuosan.train.state import FlatParameters, adamw, learning_rate
from train.made_runs import OwnNetwork, begin, go, images


def test_names_values_and_layouts_stay() -> None:
    network = OwnNetwork()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flat = FlatParameters(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert network.inward.weight.is_contiguous(memory_format=torch.channels_last)
    views = flat.named_views(flat.values)
    assert views.keys() == dict(network.named_parameters(remove_duplicate=False)).keys()
    assert all(torch.equal(view, after[name]) for name, view in views.items())


def test_weights_and_gradients_lie_in_the_buffers() -> None:
    network = OwnNetwork(dropout=0)
    flat = FlatParameters(network)
    flat.values.mul_(2)
    assert all(p.data_ptr() >= flat.values.data_ptr() for p in network.parameters())
    network(torch.ones(2, 3, 4, 4), torch.ones(2)).square().sum().backward()
    total = torch.stack([p.grad.square().sum() for p in network.parameters() if p.grad is not None]).sum().sqrt()
    torch.testing.assert_close(flat.grad_norm(), total)
    assert flat.values.numel() == sum(p.numel() for p in network.parameters()), "a shared weight counts once"


def test_weight_decay_falls_on_matrices_and_kernels_alone() -> None:
    network = OwnNetwork()
    flat = FlatParameters(network)
    optimizer = adamw(flat, TrainConfig(weight_decay=0.5, lr=0.1))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    flat.grads.zero_()
    optimizer.step()
    for name, p in network.named_parameters():
        factor = 1 - 0.1 * 0.5 if p.ndim >= 2 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor, rtol=1e-6, atol=0)


def test_it_steps_as_torchs_own_adamw_does() -> None:
    ours, theirs = OwnNetwork(dropout=0), OwnNetwork(dropout=0)
    flat = FlatParameters(ours)
    config = TrainConfig(lr=1e-2, weight_decay=0.1)
    optimizer = adamw(flat, config)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=config.betas, eps=1e-8)
    for step in range(5):
        for i, (p, q) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
            drawn = seeds.normal([(0, "test/gradient", step, i)], tuple(p.shape))[0]
            assert p.grad is not None
            p.grad.copy_(drawn)
            q.grad = drawn
        optimizer.step()
        reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_stay_as_they_are(tmp_path: Path) -> None:
    network = OwnNetwork()
    network.inward.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    go(tmp_path / "run", images(tmp_path / "pictures.npz"), {"train.max_steps": 3}, network=network)
    saved = checkpoint.load(tmp_path / "run")
    assert torch.equal(saved.network["inward.weight"], before["inward.weight"])
    assert torch.equal(saved.ema["inward.weight"], before["inward.weight"])
    assert not torch.equal(saved.network["outward.weight"], before["outward.weight"])


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Nothing(), "Nothing has nothing to train: it has no parameters"),
        (OwnNetwork().requires_grad_(False), r"nothing to train: all \d+ parameters are frozen"),
        (OwnNetwork().double(), r"OwnNetwork\.inward\.weight is float64; .* network\.float\(\)"),
        (OwnNetwork().bfloat16(), r"OwnNetwork\.inward\.weight is bfloat16"),
        (nn.Sequential(nn.LazyConv2d(3, 1)), r"Sequential\.0\.weight has no shape yet"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(network: nn.Module, words: str, tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz")
    for _ in range(2):  # the lock is let go: the second time says the same
        with pytest.raises(Error, match=words):
            begin(tmp_path / "run", data, network=network)


@pytest.mark.parametrize("shape", ["constant", "cosine", "inverse_sqrt"])
def test_the_learning_rate_warms_up_and_then_has_its_shape(shape: str) -> None:
    config = TrainConfig(lr=0.1, warmup=10, max_steps=110, lr_shape=shape)
    rates = [learning_rate(config, step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.01 * k for k in range(1, 11)])
    wanted = {"constant": (0.1, 0.1), "cosine": (0.05, 0.0), "inverse_sqrt": (0.1 / 61**0.5 * 10**0.5, 0.1 / 11**0.5)}
    middle, end = wanted[shape]
    assert rates[60] == pytest.approx(middle)
    assert rates[109] == pytest.approx(end, abs=1e-4)
    assert max(rates) == 0.1


def test_the_gradient_is_clipped_to_its_norm(tmp_path: Path) -> None:
    from kuosan.train import loop

    run = begin(tmp_path / "run", images(tmp_path / "pictures.npz"), {"train.clip": 0.5}, network=OwnNetwork())
    flat, seen = run.state.parameters, list[float]()
    real = run.state.optimizer.step
    run.state.optimizer.step = lambda: (seen.append(float(flat.grad_norm())), real())[1]  # type: ignore[method-assign]
    for size in (2.0, 0.25):
        flat.grads.fill_(size / flat.grads.numel() ** 0.5)
        row = loop.update(run, 1.0, float(flat.grad_norm()))
        assert row["grad_norm"] == pytest.approx(size, rel=1e-5), "the log has the norm before clipping"
    assert seen == pytest.approx([0.5, 0.25], rel=1e-5)
    saving.close(run)


def test_accumulated_parts_have_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    from kuosan.train.loop import backward

    data, grads = images(tmp_path / "pictures.npz"), []
    for part in (0, 1, 2, 3, 5):
        settings = {"train.micro_batch": part, "train.batch": 7}
        run = begin(tmp_path / f"run-{part}", data, settings)
        with torch.random.fork_rng():
            loss = float(backward(run, run.batches.draw(4)).sum())
        grads.append((loss, run.state.parameters.grads.clone()))
        saving.close(run)
    for loss, grad in grads[1:]:
        assert loss == pytest.approx(grads[0][0], rel=1e-6)
        assert float((grad - grads[0][1]).norm() / grads[0][1].norm()) < 1e-6
