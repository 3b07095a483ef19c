"""Training on the bound, the hybrid, drawn times and offset noise: what is drawn, that it resumes, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import oracle
from kuosan import Error
from kuosan.data.config import DataConfig
from kuosan.data.dataset import Images, open_images
from kuosan.device import ComputeConfig, choose
from kuosan.diffusion.schedule import Discrete
from kuosan.models.model import ModelConfig, OwnNetwork
from kuosan.storage import checkpoint
from kuosan.train.batches import KEPT, UNIFORM, BatchStream, LossAwareSampler, gathered
from kuosan.train.config import RunConfig, TrainConfig
from kuosan.train.objective import Diffusion
from kuosan.train.resolve import check_tree
from train.made_runs import Stopping, differences, go, images, outcome
from train.test_processes import launch, losses

BOUND: dict[str, Any] = {
    "train.loss": "vlb",
    "train.t_sampling": "importance",
    "model.schedule.T": 3,
    "model.schedule.beta_start": 0.02,
    "model.schedule.beta_end": 0.5,
    "train.max_steps": 14,
}
KINDS: dict[str, dict[str, Any]] = {
    "the bound, by importance": BOUND,
    "the hybrid, by importance, in parts": {
        **BOUND,
        "train.loss": "hybrid",
        "model.learned_variance": "true",
        "train.micro_batch": 2,
        "train.weight": "min_snr",
        "train.min_snr_gamma": 3.0,
    },
    "offset noise, logit-normal times": {
        "train.offset_noise": 0.1,
        "train.t_sampling": "logit_normal",
        "train.t_mean": 0.5,
        "train.weight": "p2",
        "train.p2_gamma": 0.5,
        "train.max_steps": 8,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """Also after the history is warm, when what was learned so far decides which t are drawn."""
    data, settings = images(tmp_path / "pictures.npz"), KINDS[kind]
    assert go(tmp_path / "whole", data, settings) == 0
    whole = outcome(tmp_path / "whole")
    for k in (4, 11) if "importance" in kind else (4,):
        assert go(tmp_path / f"at-{k}", data, settings, report=Stopping(k)) == 15
        assert go(tmp_path / f"at-{k}", data, settings) == 0
        assert not differences(outcome(tmp_path / f"at-{k}"), whole), f"stopped at {k}"
    if "importance" in kind:
        counts = [
            checkpoint.load(path).optimizer["importance.counts"] for path in checkpoint.checkpoints(tmp_path / "whole")
        ]
        assert sorted(int(each.sum()) for each in counts)[-1] == 14 * 5, "every row of every step was heard"
        assert any(bool((each >= KEPT).all()) for each in counts), "the history got warm"


def test_two_processes_draw_the_times_of_one(tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz")
    settings = {**BOUND, "train.batch": 6, "train.evaluate_every": 6}
    go(tmp_path / "one", data, settings)
    launch(tmp_path / "two", data, **settings)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    heard = [checkpoint.load(tmp_path / name).optimizer for name in ("one", "two")]
    assert torch.equal(*(each["importance.counts"] for each in heard))
    assert int(heard[0]["importance.counts"].min()) >= KEPT
    torch.testing.assert_close(*(each["importance.losses"] for each in heard), rtol=1e-5, atol=0)


def warm(T: int = 5) -> LossAwareSampler:
    history, draw = LossAwareSampler(T), np.random.Generator(np.random.Philox(1))
    while not history.warm:
        u = draw.random(7)
        history.update_history(u, (history.times(u) + 0.5) * draw.uniform(0.5, 1.5, 7))
    return history


def test_times_are_uniform_until_each_has_ten_losses() -> None:
    history, u = LossAwareSampler(4), np.array([0.0, 0.24, 0.26, 0.99])
    for _ in range(KEPT):
        assert not history.warm and history.times(u).tolist() == [0, 0, 1, 3]
        assert history.scale(np.arange(4)).tolist() == [1.0] * 4
        history.update_history(np.array([0.1, 0.3, 0.6, 0.9]), np.array([1.0, 1.0, 1.0, 5.0]))
    assert history.warm and history.times(u).tolist() != [0, 0, 1, 3]
    assert history.chances() == pytest.approx((1 - UNIFORM) * np.array([1, 1, 1, 5]) / 8 + UNIFORM / 4)
    for _ in range(KEPT):  # the last ten count, each as it was before it was scaled
        t = np.arange(4)
        u = np.cumsum(history.chances()) - 1e-9
        history.update_history(u, history.scale(t) * np.array([2.0, 2.0, 2.0, 2.0]))
    assert history.chances() == pytest.approx([0.25] * 4)


def reference(kept: np.ndarray) -> np.ndarray:
    """improved-diffusion's LossSecondMomentResampler.weights, normalised (Nichol & Dhariwal 2021)."""
    weights = np.sqrt(np.mean(kept**2, axis=-1))
    weights /= np.sum(weights)
    weights *= 1 - 0.001
    weights += 0.001 / len(weights)
    return weights


def test_the_chances_are_the_published_ones_and_draws_follow_them() -> None:
    history = warm()
    p = history.chances()
    assert p == pytest.approx(reference(history.losses.numpy())) and p.sum() == pytest.approx(1)
    u = (np.arange(100_000) + 0.5) / 100_000
    assert np.bincount(history.times(u), minlength=5) / 1e5 == pytest.approx(p, abs=2e-5)
    assert history.times(np.array([0.0, 1 - 2.0**-53])).tolist() == [0, 4]


def test_a_scaled_loss_has_the_mean_of_a_uniform_one_and_less_spread() -> None:
    history, u = warm(), (np.arange(200_000) + 0.5) / 200_000
    loss = np.arange(5) + 0.5
    t = history.times(u)
    scaled = loss[t] * history.scale(t)
    assert scaled.mean() == pytest.approx(loss.mean(), rel=1e-4)
    assert scaled.std() < 0.3 * loss.std()


def test_the_rows_of_all_processes_are_put_in_their_order() -> None:
    class Sum:
        rank, size = 1, 2

        def sum(self, values: torch.Tensor) -> torch.Tensor:
            values[:, 0::2] += torch.tensor([[0.1, 0.3, 0.5], [1.0, 3.0, 5.0]])
            return values

    u, heard = gathered(Sum(), 5, torch.device("cpu"), np.array([0.2, 0.4]), torch.tensor([2.0, 4.0]))  # type: ignore[arg-type]
    assert u == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5]) and heard.tolist() == [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return open_images(DataConfig(str(images(tmp_path_factory.mktemp("bound") / "pictures.npz", n=40))))


def test_offset_noise_is_shared_by_a_channel_s_pixels_and_keyed(opened: Images) -> None:
    plain, moved = BatchStream(opened, 1, 32), BatchStream(opened, 1, 32, offset=0.5)
    shift = moved.draw(3).eps - plain.draw(3).eps
    flat = shift.flatten(2)
    torch.testing.assert_close(flat, flat[:, :, :1].expand_as(flat), rtol=0, atol=1e-6)
    z = torch.cat([(moved.draw(k).eps - plain.draw(k).eps)[:, :, 0, 0].flatten() / 0.5 for k in range(8)])
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    rows = [BatchStream(opened, 1, 32, rank, 2, offset=0.5).draw(3).eps for rank in range(2)]
    assert torch.equal(rows[1], moved.draw(3).eps[1::2])
    assert not torch.equal(BatchStream(opened, 1, 32, retry=1, offset=0.5).draw(3).eps, moved.draw(3).eps)


def objective(**train: Any) -> Diffusion:
    model = ModelConfig((3, 8, 8), OwnNetwork(name="exact"), Discrete(T=50, beta_start=0.002, beta_end=0.2))
    return Diffusion(model, TrainConfig(**train), choose(ComputeConfig("cpu", "fp32")))


def test_offset_noise_is_in_the_image_and_in_the_target(opened: Images) -> None:
    """The exact network of one image has no loss, whatever the noise: both sides saw the same."""
    made = objective(offset_noise=0.5)
    drawn = BatchStream(opened, 1, 6, offset=0.5).draw(0)
    one = replace(drawn, batch=drawn.batch._replace(x0=drawn.batch.x0[:1].expand(6, -1, -1, -1)))
    exact = oracle.network(oracle.points(drawn.batch.x0[:1]), "v", made.model.schedule)  # type: ignore[arg-type]
    assert float(made.losses(exact, one).max()) < 1e-6  # type: ignore[arg-type]


def test_logit_normal_times_have_a_normal_logit() -> None:
    made = objective(t_sampling="logit_normal", t_mean=-0.5, t_std=0.8)
    made = replace(made, model=replace(made.model, schedule=Discrete(T=100_000, beta_start=1e-6, beta_end=2e-4)))
    u = np.random.Generator(np.random.Philox(2)).random(4000)
    share = (made.level(u).t.numpy() + 0.5) / 100_000
    assert stats.kstest(np.log(share / (1 - share)), stats.norm(-0.5, 0.8).cdf).pvalue > 1e-3
    assert objective(t_sampling="logit_normal").level(np.array([0.0, 1 - 2.0**-53])).t.tolist() == [0, 49]


def test_under_importance_held_out_levels_stay_uniform_and_training_s_do_not() -> None:
    made = replace(objective(t_sampling="importance", loss="vlb"), history=LossAwareSampler(50))
    u = np.array([0.0, 0.5, 0.99])
    assert made.level(u).t.tolist() == [0, 25, 49]


def test_the_hybrid_trains_the_variance_and_judges_held_out_images_by_both(tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz")
    settings = {**KINDS["the hybrid, by importance, in parts"], "train.max_steps": 12, "train.t_sampling": "uniform"}
    go(tmp_path / "run", data, settings)
    saved = checkpoint.load(tmp_path / "run")
    weight = next(value for name, value in saved.network.items() if value.ndim == 4 and len(value) == 6)
    assert float(weight[3:].abs().max()) > 0 and float(weight[:3].abs().max()) > 0
    held = [row["held_out"] for row in outcome(tmp_path / "run")["rows"] if "held_out" in row]
    assert len(held) == 3 and all(math.isfinite(each["loss"]) for each in held)
    assert held[-1]["by_noise"] != held[0]["by_noise"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"train": {"loss": "hybrid"}}, r"trains the error and, by the bound, a variance; add --model\.learned-variance"),
    ({"model": {"learned_variance": True}}, "loss simple, which does not reach the variance"),
    ({"train": {"loss": "vlb"}, "model": {"schedule": {"kind": "flow"}}}, "the bound of T discrete steps"),
    ({"train": {"loss": "vlb", "weight": "min_snr"}}, "no effect on loss vlb"),
    ({"train": {"loss": "vlb", "offset_noise": 0.1}}, "belongs to loss simple"),
    ({"train": {"offset_noise": -0.1}}, "0 or more"),
    ({"train": {"vlb_weight": 0.1}}, "belongs to loss hybrid"),
    ({"train": {"vlb_weight": 0.0, "loss": "hybrid"}}, "above 0"),
    ({"train": {"vlb_variance": "beta"}}, "belongs to loss vlb"),
    ({"train": {"loss": "vlb", "vlb_variance": "beta"}, "model": {"learned_variance": True}}, "learns its variance"),
    ({"train": {"t_mean": 1.0, "t_sampling": "uniform"}}, "belongs to t_sampling logit_normal"),
    ({"train": {"t_std": 0.0, "t_sampling": "logit_normal"}}, "above 0"),
    ({"train": {"t_sampling": "logit_normal", "loss": "vlb"}}, "would make the bound another"),
    ({"train": {"t_sampling": "logit_normal", "weight": "vlb"}}, "would make the bound another"),
    ({"train": {"t_sampling": "importance"}, "model": {"schedule": {"kind": "karras"}}}, "p_mean and p_std"),
    ({"train": {"t_sampling": "logit_normal"}, "model": {"schedule": {"kind": "flow"}}}, "density, mean and std"),
    ({"train": {"weight": "simple", "min_snr_gamma": 3.0}}, "weight 'simple' has none"),
    ({"train": {"loss": "vlb", "min_snr_gamma": 3.0}}, "weight 'simple' has none"),
    ({"train": {"p2_gamma": 0.5}}, "weight 'simple' has none"),
    ({"train": {"weight": "min_snr", "p2_k": 2.0}}, "weight 'min_snr' has none"),
    ({"train": {"objective": "classifier", "offset_noise": 0.1}}, r"train\.offset_noise = 0\.1 has no effect"),
    ({"train": {"objective": "classifier", "loss": "vlb"}}, r"train\.loss = vlb has no effect"),
    (
        {"model": {"prediction": "eps", "schedule": {"kind": "discrete", "zero_terminal_snr": True}}},
        "prediction 'eps' with zero_terminal_snr",
    ),
]


@pytest.mark.parametrize("tree, says", REFUSED, ids=[says for _, says in REFUSED])
def test_what_does_not_go_together_is_refused_before_the_images_are_read(tree: dict[str, Any], says: str) -> None:
    with pytest.raises(Error, match=says):
        check_tree(tree)


def test_every_setting_of_the_loss_belongs_to_a_denoisers_training() -> None:
    fields = list(TrainConfig.__dataclass_fields__.values())
    names = [each.name for each in fields]
    for each in fields[names.index("loss") : names.index("offset_noise") + 1]:
        assert each.metadata["only"].owners["objective"] == ("diffusion",), each.name
    assert RunConfig().train.weighting.name == "simple"
