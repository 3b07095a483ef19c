"""Networks as users have them: diffusers' own, those with other names for conditions, and those that index by t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from kuosan.diffusion import guidance
from kuosan.diffusion.denoiser import denoiser
from kuosan.diffusion.loss import simple_loss
from kuosan.diffusion.network import Called, call
from kuosan.diffusion.samplers import SAMPLERS
from kuosan.diffusion.schedule import Discrete, Flow
from kuosan.errors import Error

SCHEDULE = Discrete(betas="scaled_linear", beta_start=0.00085, beta_end=0.012)
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LEVEL = SCHEDULE.at_t([100, 700])
SHAPE: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
PLAIN: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "add_attention": False,
}
CROSS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}


def unet(**more: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**SHAPE, **PLAIN, **more).eval()


def conditional(**more: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**SHAPE, **CROSS, **more).eval()


def noise_of(network: Any, x: Tensor, **cond: Any) -> Tensor:
    """eps by the network, asked as its own documentation asks it, at LEVEL."""
    out: Tensor = network(x, LEVEL.t.float(), **cond).sample
    return out


def x0_of(eps: Tensor, x: Tensor) -> Tensor:
    """x0 of eps in closed form: (x - sigma·eps)/alpha."""
    alpha, sigma = LEVEL.alpha.float().view(-1, 1, 1, 1), LEVEL.sigma.float().view(-1, 1, 1, 1)
    return (x - sigma * eps) / alpha


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_diffusers_unet_is_taken_as_it_is() -> None:
    network = unet()
    same(denoiser(network, "epsilon")(X, LEVEL).x0, x0_of(noise_of(network, X), X))


@torch.no_grad()
def test_classes_reach_diffusers_unet_as_class_labels() -> None:
    network, label = unet(num_class_embeds=5), torch.tensor([1, 4])
    theirs = x0_of(noise_of(network, X, class_labels=label), X)
    for name in ("label", "class_labels"):
        same(denoiser(network, "epsilon", cond={name: label})(X, LEVEL).x0, theirs)
    other = denoiser(network, "epsilon", cond={"label": torch.tensor([0, 4])})(X, LEVEL).x0
    assert not torch.allclose(other[0], theirs[0]) and torch.allclose(other[1], theirs[1], atol=1e-4)


@torch.no_grad()
def test_text_reaches_diffusers_conditional_unet_with_its_mask_and_classes() -> None:
    network, label = conditional(num_class_embeds=3), torch.tensor([2, 0])
    context = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    given = {"encoder_hidden_states": context, "encoder_attention_mask": mask, "class_labels": label}
    cond = {"context": context, "context_mask": mask, "label": label}
    theirs = x0_of(noise_of(network, X, **given), X)
    same(denoiser(network, "epsilon", cond=cond)(X, LEVEL).x0, theirs)
    same(denoiser(network, "epsilon", cond=given)(X, LEVEL).x0, theirs)
    unmasked = denoiser(network, "epsilon", cond={"context": context, "label": label})(X, LEVEL).x0
    assert not torch.allclose(unmasked[1], theirs[1], atol=1e-4)


@torch.no_grad()
def test_a_walk_of_diffusers_network_is_diffusers_own_walk() -> None:
    network = unet()
    theirs = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    theirs.set_timesteps(5)
    x = X
    for t in theirs.timesteps:
        x = theirs.step(network(x, t).sample, t, x).prev_sample
    *_, last = SAMPLERS["DDIMScheduler"](denoiser(network, "epsilon"), X, SCHEDULE.grid(5))
    same(last.x, x)


def test_a_loss_of_diffusers_network_is_the_mean_squared_error_of_its_sample() -> None:
    network, eps = unet(), torch.randn(X.shape, generator=torch.Generator().manual_seed(5))
    loss = simple_loss(network, "epsilon", X, LEVEL, eps)
    x = LEVEL.add(X, eps)
    same(loss, (noise_of(network, x) - eps).square().flatten(1).mean(1))
    loss.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@torch.no_grad()
def test_guidance_doubles_diffusers_network() -> None:
    network = unet(num_class_embeds=5)
    label, null = {"label": torch.tensor([1, 2])}, {"label": torch.tensor([4, 4])}
    guided = guidance.classifier_free(*guidance.doubled(network, "epsilon", label, null), 3.0)(X, LEVEL).x0
    one, other = (x0_of(noise_of(network, X, class_labels=each["label"]), X) for each in (label, null))
    torch.testing.assert_close(guided, other + 3 * (one - other), rtol=1e-3, atol=1e-3)


class Plain(nn.Module):
    """Answers with x's shape."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x + t.reshape(-1, 1, 1, 1) / 1000)


def tuple_of_one(x: Tensor, t: Tensor) -> Any:
    return (Plain()(x, t),)


def test_a_tuple_of_one_is_that_one_and_other_answers_are_refused() -> None:
    assert torch.equal(denoiser(tuple_of_one, "v")(X, LEVEL).x0, denoiser(Plain(), "v")(X, LEVEL).x0)
    answers: list[Callable[..., Any]] = [lambda x, t: (x, t), lambda x, t: {"out": x}, lambda x, t: None]
    for answer, word in zip(answers, ("tuple of 2", "dict", "NoneType")):
        with pytest.raises(Error, match=f"answered with a {word}: need a tensor"):
            denoiser(answer, "v")(X, LEVEL)


class GuidedDiffusion(Plain):
    """Names its class y, as guided-diffusion and DiT do."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, t) + (0 if y is None else y.reshape(-1, 1, 1, 1))


class OwnName(Plain):
    """Has kuosan's name beside another tool's."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, y: float = 0.0) -> Tensor:  # type: ignore[override]
        return super().forward(x, t) + (0 if label is None else 2 * label.reshape(-1, 1, 1, 1)) + 100 * y


class AnyName(Plain):
    """Takes whatever comes."""

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:  # type: ignore[override]
        assert list(cond) == ["label"]
        return super().forward(x, t) + cond["label"].reshape(-1, 1, 1, 1)


def test_a_condition_goes_by_the_network_s_own_name_of_it() -> None:
    label, t = torch.tensor([1, 3]), torch.tensor([1.0, 2.0])
    plain = Plain()(X, t)
    add = label.reshape(-1, 1, 1, 1)
    assert torch.equal(call(GuidedDiffusion(), X, t, {"label": label}), plain + add)
    assert torch.equal(call(OwnName(), X, t, {"label": label}), plain + 2 * add)
    assert torch.equal(call(AnyName(), X, t, {"label": label}), plain + add)
    assert torch.equal(call(GuidedDiffusion().forward, X, t, {"label": label}), plain + add)
    assert torch.equal(Called(GuidedDiffusion())(X, t, label=label), plain + add)


def test_a_condition_that_the_network_does_not_take_is_refused_by_name() -> None:
    for given, words in (
        ("label", "condition 'label': Plain takes x, t.*label or class_labels or y"),
        ("size", "'size'"),
    ):
        with pytest.raises(Error, match=words):
            denoiser(Plain(), "v", cond={given: torch.zeros(2)})(X, LEVEL)
    with pytest.raises(Error, match="UNet2DModel takes sample, timestep, class_labels"):
        denoiser(unet(), "v", cond={"context": torch.zeros(2, 3, 4)})(X, LEVEL)


class Embedded(nn.Module):
    """Embeds t by a table, dropping some of x before: its first call must not cost it a draw."""

    def __init__(self, T: int = 1000, drop: float = 0.0) -> None:
        super().__init__()
        self.table, self.drop = nn.Embedding(T, 3), nn.Dropout(drop)
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.drop(x)
        shift = self.table(t)
        self.asked.append(t)
        out: Tensor = torch.tanh(x) + shift[:, :, None, None]
        return out


def by_brackets(x: Tensor, t: Tensor) -> Tensor:
    return x * torch.linspace(0, 1, 1000)[t].reshape(-1, 1, 1, 1)


def by_gather(x: Tensor, t: Tensor) -> Tensor:
    return x * torch.linspace(0, 1, 1000).gather(0, t).reshape(-1, 1, 1, 1)


def by_one_hot(x: Tensor, t: Tensor) -> Tensor:
    return x * (nn.functional.one_hot(t, 1000) * torch.linspace(0, 1, 1000)).sum(1).reshape(-1, 1, 1, 1)


def by_take(x: Tensor, t: Tensor) -> Tensor:
    return x * torch.linspace(0, 1, 1000).take(t).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("network", [Embedded(), by_brackets, by_gather, by_one_hot, by_take])
def test_a_network_that_indexes_by_t_gets_whole_numbers(network: Any) -> None:
    theirs = network(X, torch.tensor([100, 700]))
    for _ in range(2):  # found out, then remembered
        assert torch.equal(call(network, X, torch.tensor([100.0, 700.0])), theirs)


def test_only_the_first_call_finds_out_and_no_network_in_float_is_asked_twice() -> None:
    calls: list[torch.dtype] = []

    def table(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t.dtype)
        return by_brackets(x, t)

    def real(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t.dtype)
        return x

    for _ in range(2):
        call(table, X, torch.tensor([1.0, 2.0]))
    assert calls == [torch.float32, torch.int64, torch.int64]
    calls.clear()
    for _ in range(2):
        call(real, X, torch.tensor([1.0, 2.0]))
    assert calls == [torch.float32, torch.float32]


def test_the_first_call_draws_what_every_call_draws() -> None:
    """Dropout before the embedding: a resumed run, whose first call is another, must give the same."""
    outs = []
    for network in (Embedded(drop=0.5), Embedded(drop=0.5)):
        network.table.weight.data.fill_(0.1)
        if outs:
            call(network, X, torch.tensor([1.0, 2.0]))  # found out before
        torch.manual_seed(3)
        outs.append(call(network, X, torch.tensor([1.0, 2.0])))
    assert torch.equal(*outs)


def test_a_timestep_between_two_is_refused_with_the_cure_by_a_network_that_indexes_by_t() -> None:
    denoise = denoiser(Embedded(), "eps")
    for spacing in ("trailing", "leading", "linspace"):
        *_, last = SAMPLERS["dpmpp_2m"](denoise, X, SCHEDULE.grid(5, spacing))
        assert last.x.isfinite().all()
    for grid in (SCHEDULE.grid(5, "karras"), SCHEDULE.grid(5, "log_snr")):
        with pytest.raises(Error, match=r"indexes by t, so it knows whole timesteps alone.*spacing trailing"):
            list(SAMPLERS["ddim"](denoise, X, grid))
    with pytest.raises(Error, match="Use a Discrete schedule"):
        list(SAMPLERS["euler"](denoiser(Embedded(T=1001), "v"), X, Flow(shift=3).grid(7)))


def test_other_errors_of_a_network_stay_its_own() -> None:
    with pytest.raises(IndexError, match="out of range"):
        call(Embedded(T=5), X, torch.tensor([100.0, 700.0]))
    with pytest.raises(RuntimeError, match="size"):
        call(lambda x, t: x + torch.zeros(2, 3, 16, 5), X, torch.tensor([1.0, 2.0]))
    with pytest.raises(TypeError):
        call(lambda x: x, X, torch.tensor([1.0, 2.0]))


class Bare:
    """Neither hashable nor to be held weakly."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return by_brackets(x, t)


class Unhashable:
    """Not hashable, as what defines __eq__."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return by_brackets(x, t)


@pytest.mark.parametrize("network", [Bare(), Unhashable()], ids=["bare", "unhashable"])
def test_a_network_that_cannot_be_remembered_is_called_as_any(network: Any) -> None:
    for _ in range(2):
        assert torch.equal(call(network, X, torch.tensor([1.0, 2.0])), by_brackets(X, torch.tensor([1, 2])))


def test_a_compiled_or_wrapped_network_is_looked_into() -> None:
    label = torch.tensor([1, 3])
    wrapped = nn.DataParallel(GuidedDiffusion())
    out = call(wrapped, X, torch.tensor([1.0, 2.0]), {"label": label})
    assert torch.equal(out, call(GuidedDiffusion(), X, torch.tensor([1.0, 2.0]), {"y": label}))
    compiled = torch.compile(GuidedDiffusion(), backend="eager")
    torch.testing.assert_close(call(compiled, X, torch.tensor([1.0, 2.0]), {"label": label}), out)


def test_a_classifier_that_indexes_by_t_guides() -> None:
    table = torch.linspace(-1, 1, 1000)

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] * table[t][:, None]

    asked = guidance.log_prob(classifier, SCHEDULE, torch.tensor([0, 2]))(X, LEVEL)
    theirs = (X.flatten(1)[:, :4] * table[torch.tensor([100, 700])][:, None]).log_softmax(1)
    torch.testing.assert_close(asked, theirs[torch.arange(2), torch.tensor([0, 2])])
