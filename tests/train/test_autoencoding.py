"""Training an autoencoder: its gradients against the formula, the critic's beginning, resume, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.func import functional_call

from kuosan import config as trees
from kuosan import options, seeds
from kuosan.data.dataset import Batch
from kuosan.device import Compute
from kuosan.errors import Error
from kuosan.metrics.image_quality import perceptual_loss
from kuosan.models.model import ModelConfig
from kuosan.networks.autoencoder import Autoencoder, generator_loss, hinge_loss
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.storage.log import Log
from kuosan.train import api
from kuosan.train.batches import Drawn
from kuosan.train.config import AutoencoderSettings, TrainConfig, recipe
from kuosan.train.objective import Autoencoding, windows
from kuosan.train.resolve import check_tree, resolve
from shell import kuosan
from train.made_runs import Stopping, ask, begin, differences, go, images, outcome
from train.test_processes import launch

TINY = AutoencoderConfig(channels=8, multipliers=(1, 2), blocks=1, groups=4, critic_channels=8, critic_layers=1)
SETTINGS: dict[str, Any] = {
    "train.objective": "autoencoder",
    "train.autoencoder.features": "random",
    "train.autoencoder.critic_start": 4,
    "train.max_steps": 8,
    "model.network.channels": 8,
    "model.network.groups": 4,
    "model.network.multipliers": [1, 2],
    "model.network.critic_channels": 8,
    "model.network.critic_layers": 1,
}


def objective(**settings: Any) -> Autoencoding:
    own = AutoencoderSettings(**{"features": "random", "critic_start": 5, **settings})
    model = ModelConfig((3, 16, 16), TINY if own.critic else TINY.alone)
    train = TrainConfig(objective="autoencoder", autoencoder=own)
    features = perceptual_loss(own.features if own.perceptual else "none")
    return Autoencoding(model, train, Compute(torch.device("cpu"), torch.float32, 1, "test"), features)


def network(config: AutoencoderConfig = TINY) -> Autoencoder:
    """None of its weights is zero."""
    made = Autoencoder(config, seed=1)
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.add_(0.1 * seeds.normal([(0, "test/weights", i, 0)], tuple(p.shape))[0])
    return made


def drawn(step: int = 0, n: int = 3) -> Drawn:
    x = seeds.normal([(0, "test/x", 0, i) for i in range(n)], (3, 16, 16)).clamp(-1, 1)
    eps = seeds.normal([(0, "test/eps", 0, i) for i in range(n)], (4, 8, 8))
    u, drop = (seeds.uniform((0, purpose, 0, i) for i in range(n)) for purpose in ("test/u", "test/drop"))
    return Drawn(Batch(x, torch.arange(n), None, None), u, eps, drop, step)


def by_the_formula(one: Autoencoding, net: Autoencoder, given: Drawn) -> dict[str, Tensor]:
    """Each weight's gradient, from the losses as the papers write them, the other player's weights held fixed."""
    settings = one.train.autoencoder
    assert one.features is not None
    x = given.batch.x0
    moments, y = net(x, given.eps)
    off = (x - y).abs() if settings.recon == "l1" else (x - y).square()
    error = off.mean((1, 2, 3)) + settings.perceptual * one.features(x, y)
    fixed = {name: weight.detach() for name, weight in net.critic.state_dict().items()}
    against = generator_loss(functional_call(net.critic, fixed, (y,)))
    last = net.decoder.exit.weight
    norms = [torch.autograd.grad(part.sum(), last, retain_graph=True)[0].norm() for part in (error, against)]
    ratio = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4)
    kl = 0.5 * (moments.mean**2 + moments.log_var.exp() - 1 - moments.log_var).sum((1, 2, 3)) / x[0].numel()
    players = error + settings.kl * kl + settings.critic * ratio * against
    players = players + hinge_loss(net.critic(x), net.critic(y.detach()))
    names, weights = zip(*net.named_parameters())
    return dict(zip(names, torch.autograd.grad(players.sum(), weights), strict=True))


@pytest.mark.parametrize("settings", [{}, {"recon": "l2", "perceptual": 0.3, "kl": 0.1, "critic": 2.0}])
def test_one_backward_gives_both_players_the_gradients_of_their_own_losses(settings: dict[str, Any]) -> None:
    one, net, given = objective(**settings), network(), drawn(step=5)
    one.losses(net, given).sum().backward()
    for name, wanted in by_the_formula(one, net, given).items():
        grad = net.get_parameter(name).grad
        assert grad is not None, name
        torch.testing.assert_close(grad, wanted, rtol=2e-3, atol=1e-4 * float(wanted.abs().max()) + 1e-7)


def test_the_critic_is_neither_taught_nor_heard_before_its_time() -> None:
    one, net, given = objective(), network(), drawn(step=4)
    loss = one.losses(net, given)
    loss.sum().backward()
    assert all(p.grad is None for p in net.critic.parameters())
    assert one.parts().keys() == {"recon", "perceptual", "kl"}
    alone = network(TINY.alone)
    alone.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("critic.")})
    same = objective(critic=0.0, critic_start=5000).losses(alone, given)
    torch.testing.assert_close(loss, same, rtol=0, atol=0)


def test_the_loss_is_what_the_autoencoder_is_at_without_the_game_and_its_parts_are_told_once() -> None:
    one, net, given = objective(perceptual=1.0, kl=0.01), network(), drawn(step=5)
    loss, parts = one.losses(net, given), one.parts()
    assert float(loss.detach().mean()) == pytest.approx(
        parts["recon"] + parts["perceptual"] + 0.01 * parts["kl"], rel=1e-5
    )
    assert parts.keys() == {"recon", "perceptual", "kl", "critic", "ratio"} and one.parts() == {}
    assert 0.3 < parts["critic"] < 3, "a discriminator that knows nothing is at about 1"


@torch.no_grad()
def test_held_out_psnr_is_the_definition_and_comes_from_the_posteriors_mean() -> None:
    one, net, given = objective(), network(), drawn()
    told = one.validate(net, given.batch, one.level(given.u), given.eps)
    x = given.batch.x0.double()
    y = net.decode(net.encode(given.batch.x0).mean).clamp(-1, 1).double()
    for i in range(len(x)):
        mse = ((255 * (x[i] - y[i]) / 2) ** 2).mean()
        assert told["psnr"][i].item() == pytest.approx(10 * np.log10(255**2 / mse.item()), abs=1e-3)
    assert all(values.shape == (3,) and values.dtype == torch.float64 for values in told.values())
    assert {"loss", "recon", "perceptual", "kl", "latent_std", "posterior_std"} < told.keys()


def test_windows_are_cut_where_the_draws_say_and_reach_every_place() -> None:
    x = torch.arange(2 * 6 * 8.0).view(2, 1, 6, 8)
    cut = windows(x, 4, np.array([0.0, 0.999]), np.array([0.5, 0.999]))
    assert torch.equal(cut[0], x[0, :, 0:4, 2:6]) and torch.equal(cut[1], x[1, :, 2:6, 4:8])
    assert windows(x, 0, np.zeros(2), np.zeros(2)) is x
    u = seeds.uniform((0, "test/u", 0, i) for i in range(200))
    corners = windows(x[:1].expand(200, -1, -1, -1), 4, u, u[::-1])[:, 0, 0, 0]
    assert set(corners.tolist()) == {8.0 * i + j for i in range(3) for j in range(5)}


@pytest.mark.parametrize("more", [{}, {"train.micro_batch": 2, "compute.precision": "bf16", "data.flip": "true"}])
def test_a_run_stopped_at_the_critics_start_or_after_goes_on_bit_for_bit(more: dict[str, Any], tmp_path: Path) -> None:
    data, settings = images(tmp_path / "pictures.npz", size=16), {**SETTINGS, "train.autoencoder.crop": 8, **more}
    assert go(tmp_path / "whole", data, settings) == 0
    whole = outcome(tmp_path / "whole")
    assert ["ratio" in row for row in whole["rows"]] == [False] * 4 + [True] * 4
    for k in (4, 6):
        assert go(tmp_path / f"at-{k}", data, settings, report=Stopping(k))
        assert go(tmp_path / f"at-{k}", data, settings) == 0
        assert not differences(outcome(tmp_path / f"at-{k}"), whole), f"stopped at {k}"


@pytest.mark.slow
def test_two_processes_train_one_autoencoder_before_and_after_the_critics_start(tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz", size=16)
    settings = {**SETTINGS, "train.batch": 4, "train.max_steps": 6, "model.network.multipliers": "1,2"}
    go(tmp_path / "one", data, {**settings, "model.network.multipliers": [1, 2]})
    launch(tmp_path / "two", data, **settings)
    alone, shared = (outcome(tmp_path / name)["rows"] for name in ("one", "two"))
    assert [row["loss"] for row in shared[:4]] == pytest.approx([row["loss"] for row in alone[:4]], rel=1e-5)
    assert all(row["critic"] > 0 for row in shared[4:]) and len(shared) == 6


def test_a_few_images_are_learned_by_heart() -> None:
    one, net = (
        objective(perceptual=0.0, features="none", critic=0.0, critic_start=5000),
        Autoencoder(TINY.alone, seed=2),
    )
    given = drawn()
    smooth = F.interpolate(given.batch.x0[:, :, :4, :4], scale_factor=4.0, mode="bilinear")
    given = replace(given, batch=given.batch._replace(x0=smooth))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        one.losses(net, given).sum().backward()
        optimizer.step()
    with torch.no_grad():
        psnr = one.validate(net, given.batch, one.level(given.u), given.eps)["psnr"]
    spread = 10 * torch.log10(4 / smooth.var(correction=0))  # of the mean colour
    assert torch.all(psnr > spread + 6)


def test_a_short_run_leaves_a_curve_a_sheet_and_the_words(tmp_path: Path) -> None:
    data, out = images(tmp_path / "pictures.npz", size=16), tmp_path / "run"
    settings = {**SETTINGS, "train.max_steps": 16, "train.evaluate_every": 8, "train.autoencoder.perceptual": 0.1}
    settings |= {"train.preview_every": 16, "train.preview_pictures": 2, "train.lr": 1e-2, "train.ema": 0.0}
    settings |= {
        "train.batch": 8,
        "train.warmup": 1,
        "data.hold_out": 0.2,
        "compute.threads": 1,
        "model.network.blocks": 1,
    }
    settings["train.autoencoder.critic_start"] = 12
    words = [word for key, value in settings.items() for word in options.words(key, value)]
    told = kuosan("train", data, "--out", out, *words)
    assert told.code == 0, told
    rows = [row for row in Log(out / "log.jsonl").rows() if row.get("held_out")]
    assert [row["step"] for row in rows] == [8, 16] and {"psnr", "kl", "latent_std"} < rows[-1]["held_out"].keys()
    with Image.open(out / "samples" / "step-00000016.png") as sheet:
        assert sheet.width > 4 * 96
    assert (out / "curve.png").is_file()
    said = " ".join(told.out.split())
    for text in (
        "turns them into latents of 4x8x8 (factor 2) and back",
        "reconstruction: PSNR",
        f"kuosan reconstruct {out}",
        f"--codec {out}",
    ):
        assert text in said, said


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model.prediction": "eps"}, "model.prediction = eps has no effect on an autoencoder"),
        ({"model.schedule.kind": "flow"}, "model.schedule = flow has no effect"),
        ({"train.t_sampling": "continuous"}, "train.t_sampling"),
        ({"train.weight": "min_snr"}, "train.weight = min_snr"),
        ({"train.offset_noise": 0.1}, "train.offset_noise"),
        ({"train.preview_steps": 5}, "train.preview_steps = 5"),
        ({"model.sigma_data": 0.4}, "model.sigma_data"),
        ({"model.task.kind": "super_resolution"}, "model.task = super_resolution"),
        ({"train.autoencoder.critic_start": 9}, r"critic_start = 9.*max_steps = 8.*--critic-start 4"),
        ({"train.autoencoder.critic": -1}, "critic = -1"),
        (
            {"train.autoencoder.critic": 0},
            "critic_start = 4 has no effect with critic = 0.0: leave it out",
        ),
        ({"train.autoencoder.perceptual": 0}, "features = random has no effect with perceptual = 0"),
        ({"train.autoencoder.crop": 6, "data.size": 16}, None),
        ({"train.autoencoder.crop": 7, "data.size": 16}, "crop = 7 of images of 16 x 16.*multiple of 2"),
        ({"train.autoencoder.crop": 16, "data.size": 16}, "crop = 16.*below 16"),
        ({"model.network.critic_channels": 0}, "a discriminator needs both or neither"),
        ({"model.network.critic_layers": 3}, "needs 24 pixels a side: use --critic-layers 2"),
        ({"model.network.multipliers": [1, 1, 1, 1, 1, 1]}, "16x16 do not fit an autoencoder of factor 32"),
        ({"model.network.in_channels": 1}, "in_channels = 1, but the images have 3"),
    ],
)
def test_settings_that_do_nothing_or_do_not_fit_are_refused(
    settings: dict[str, Any], named: str | None, tmp_path: Path
) -> None:
    data = images(tmp_path / "pictures.npz", size=16)
    if named is None:
        assert ask(tmp_path / "run", data, {**SETTINGS, **settings}).config.train.autoencoder.crop
        return
    with pytest.raises(Error, match=named):
        ask(tmp_path / "run", data, {**SETTINGS, **settings})


def test_an_autoencoders_settings_and_network_belong_to_its_objective(tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz", size=16)
    with pytest.raises(
        Error, match=r"train\.autoencoder\.kl = 0\.0001 has no effect with objective diffusion: it belongs to"
    ):
        ask(tmp_path / "run", data, {"train.autoencoder.kl": 1e-4})
    with pytest.raises(Error, match="trained with --objective autoencoder"):
        resolve({"model": {"network": {"kind": "autoencoder"}}}, (3, 32, 32))
    train = {"objective": "autoencoder", "autoencoder": {"critic_start": 4}}
    with pytest.raises(Error, match="kind = unet: objective autoencoder trains an autoencoder"):
        resolve({"train": train, "model": {"network": {"kind": "unet"}}}, (3, 32, 32))


def test_features_meant_by_auto_are_named_in_the_run_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(tmp_path / "pictures.npz", size=16)
    settings = {key: value for key, value in SETTINGS.items() if key != "train.autoencoder.features"}
    run = begin(tmp_path / "run", data, settings)
    api.saving.close(run)
    assert run.config.train.autoencoder.features == "lite0"
    loss = perceptual_loss("lite0")
    assert loss is not None and run.extra["perceptual"] == f"lite0 {loss.hash[:16]}"
    monkeypatch.setattr("kuosan.metrics.features.names.find_spec", lambda package: None)
    assert ask(tmp_path / "other", data, settings).config.train.autoencoder.features == "random"


def test_a_default_autoencoder_has_a_critic_where_one_is_heard() -> None:
    for critic in (0.5, 0.0):
        tree = {"train": {"objective": "autoencoder", "autoencoder": {"critic": critic}}}
        network = resolve(tree, (3, 32, 32)).model.network
        assert isinstance(network, AutoencoderConfig) and network.factor == 4
        assert bool(network.critic_channels) == bool(critic)


def test_a_denoiser_is_not_made_of_an_autoencoder() -> None:
    from kuosan.models.model import Model

    with pytest.raises(Error, match="is an autoencoder"):
        Model(ModelConfig((3, 16, 16), replace(TINY)), network()).denoiser()


@pytest.mark.parametrize(
    ("side", "crop", "layers"), [(8, 0, 1), (12, 0, 2), (16, 0, 2), (24, 0, 3), (64, 0, 3), (64, 16, 2)]
)
@pytest.mark.parametrize("steps", [2, 400, 20_000])
def test_an_autoencoder_is_trained_for_as_many_steps_and_of_as_small_images_as_are_asked_for(
    side: int, crop: int, layers: int, steps: int
) -> None:
    tree = {"train": {"objective": "autoencoder", "max_steps": steps, "autoencoder": {"crop": crop}}}
    config = resolve(tree, (3, side, side))
    assert isinstance(config.model.network, AutoencoderConfig) and config.model.network.critic_layers == layers
    assert 0 < config.train.autoencoder.critic_start == steps // 2 < steps


@pytest.mark.parametrize("name", ["photographs-f4", "photographs-f8", "emoji-f4"])
@pytest.mark.parametrize("steps", [None, 400])
def test_the_recipes_of_autoencoders_may_be_shortened(name: str, steps: int | None) -> None:
    tree = trees.load(recipe(name))
    assert tree["train"]["max_steps"] >= 1600
    own = check_tree(trees.merge(tree, {"train": {"max_steps": steps}} if steps else {})).train
    if own.autoencoder.critic:
        assert own.autoencoder.critic_start == (275 if steps else 1100)


def test_an_autoencoder_of_small_images_trains_with_its_usual_settings(tmp_path: Path) -> None:
    words = ["train", "portraits", "--objective", "autoencoder", "--size", 16, "--network", "tiny", "--batch", 2]
    said = kuosan(*words, "--max-steps", 4, "--features", "random", "--evaluate-pictures", 4, "--out", tmp_path / "ae")
    assert said.code == 0 and "done: " in said.out, said
    rows = list(Log(tmp_path / "ae" / "log.jsonl").rows())
    assert ["critic" in row for row in rows] == [False, False, True, True], "from half of the run on"
