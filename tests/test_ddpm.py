"""The introduction's class against its own listing, written out by hand here."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from kuosan.ddpm import DiffusionModel
from kuosan.errors import Error


class Net(nn.Module):
    """A small smooth network that uses t, in whatever shape it comes, and remembers how it was called."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.calls: list[tuple[torch.Size, torch.dtype]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls.append((t.shape, t.dtype))
        return torch.tanh(self.conv(x)) + torch.cos(t.to(x.dtype) / 50).reshape(-1, 1, 1, 1) * x


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def listing_tables(T: int, start: float, end: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    betas = torch.linspace(start, end, T, dtype=dtype)
    alphas = 1 - betas
    return betas, alphas, torch.cumprod(alphas, 0)


@torch.no_grad()
def listing_sample(
    model: nn.Module, shape: tuple[int, ...], T: int, start: float, end: float, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Ho et al. 2020, algorithm 2, with sigma_t² = beta_t; every x on the way."""
    betas, alphas, alpha_bars = listing_tables(T, start, end, dtype)
    x = torch.randn(shape, dtype=dtype)
    yield x
    for t in reversed(range(T)):
        z = torch.randn(shape, dtype=dtype) if t > 0 else 0
        eps = model(x, torch.tensor([t]))
        x = 1 / torch.sqrt(alphas[t]) * (x - (1 - alphas[t]) / torch.sqrt(1 - alpha_bars[t]) * eps)
        x = x + torch.sqrt(betas[t]) * z
        yield x


@pytest.mark.parametrize("T, start, end", [(1, 0.3, 0.3), (10, 1e-4, 0.2), (100, 1e-3, 0.05), (1000, 1e-4, 0.02)])
def test_sample_is_the_listing_over_the_whole_chain_in_float64(T: int, start: float, end: float) -> None:
    network = net().double()
    diffusion = DiffusionModel(network, T, start, end).double()
    torch.manual_seed(5)
    ours = diffusion.sample((2, 3, 4, 4))
    torch.manual_seed(5)
    *_, hand = listing_sample(network, (2, 3, 4, 4), T, start, end, torch.float64)
    assert ours.dtype == torch.float64
    assert (ours - hand).abs().max() <= 1e-10 * max(1.0, float(hand.abs().max()))


@pytest.mark.parametrize("T, start, end", [(1, 0.02, 0.02), (10, 1e-4, 0.2), (1000, 1e-4, 0.02)])
def test_every_step_is_the_listing_s_in_float32(T: int, start: float, end: float) -> None:
    network, states = net(), []

    def spy(x: Tensor, t: Tensor) -> Tensor:
        states.append((x, t))
        return network(x, t)

    torch.manual_seed(7)
    last = DiffusionModel(spy, T, start, end).sample((1, 3, 4, 4))
    betas, alphas, alpha_bars = listing_tables(T, start, end, torch.float32)
    torch.manual_seed(7)
    assert torch.equal(states[0][0], torch.randn((1, 3, 4, 4)))
    worst = 0.0
    for (x, t), after in zip(states, [x for x, _ in states[1:]] + [last], strict=True):
        z = torch.randn(x.shape) if t > 0 else 0
        with torch.no_grad():
            eps = network(x, t)
        hand = 1 / torch.sqrt(alphas[t]) * (x - (1 - alphas[t]) / torch.sqrt(1 - alpha_bars[t]) * eps)
        worst = max(
            worst, float((after - hand - torch.sqrt(betas[t]) * z).abs().max() / max(1.0, float(x.abs().max())))
        )
    assert len(states) == T and worst <= 1e-5


def test_sample_follows_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        network = net()
        diffusion = DiffusionModel(network, 20, 1e-4, 0.1)
        torch.manual_seed(1)
        ours = diffusion.sample((1, 3, 4, 4))
        torch.manual_seed(1)
        *_, hand = listing_sample(network, (1, 3, 4, 4), 20, 1e-4, 0.1, torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)
    assert diffusion.betas.dtype == torch.float64
    assert (ours - hand).abs().max() <= 1e-10


def test_the_state_of_the_global_generator_ends_where_the_listing_leaves_it() -> None:
    torch.manual_seed(3)
    DiffusionModel(net(), 7, 1e-4, 0.1).sample((1, 3, 4, 4))
    ours = torch.get_rng_state()
    torch.manual_seed(3)
    for _ in range(7):  # one for x, one a step while t > 0
        torch.randn(1, 3, 4, 4)
    assert torch.equal(ours, torch.get_rng_state())


def test_sample_calls_the_model_with_one_long_t_from_T_minus_1_to_0_and_builds_no_graph() -> None:
    network = net()
    seen: list[int] = []
    network.register_forward_pre_hook(lambda _, args: seen.append(int(args[1])))
    x = DiffusionModel(network, 9, 1e-4, 0.1).sample((5, 3, 4, 4))
    assert seen == list(range(8, -1, -1))
    assert set(network.calls) == {(torch.Size([1]), torch.int64)}
    assert x.shape == (5, 3, 4, 4) and not x.requires_grad


def test_sample_leaves_the_model_in_training_mode_as_the_listing_does() -> None:
    network = nn.Sequential()
    network.forward = lambda x, t: x * 0.1  # type: ignore[method-assign,assignment]
    diffusion = DiffusionModel(network, 3, 1e-4, 0.1).train()
    diffusion.sample((1, 3, 2, 2))
    assert diffusion.training and network.training


def test_a_network_with_dropout_draws_after_z_as_in_algorithm_2() -> None:
    class Dropping(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, self.training)

    network = Dropping().train()
    torch.manual_seed(2)
    ours = DiffusionModel(network, 5, 1e-4, 0.1).double().sample((1, 3, 2, 2))
    torch.manual_seed(2)
    *_, hand = listing_sample(network, (1, 3, 2, 2), 5, 1e-4, 0.1, torch.float64)
    assert (ours - hand).abs().max() <= 1e-10


@pytest.mark.parametrize("t", [torch.tensor(4), torch.tensor([4]), torch.tensor([0, 4, 9], dtype=torch.int32), 4])
def test_forward_is_the_mean_squared_error_of_the_noise(t: Tensor | int) -> None:
    network = net().double()
    x0, noise = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, _, alpha_bars = listing_tables(10, 1e-4, 0.2, torch.float64)
    steps = torch.as_tensor(t).long().reshape(-1)
    ab = alpha_bars[steps].reshape(-1, 1, 1, 1)
    hand = nn.functional.mse_loss(network(ab.sqrt() * x0 + (1 - ab).sqrt() * noise, steps), noise)
    loss = DiffusionModel(network, 10, 1e-4, 0.2).double()(x0, t, noise)
    assert loss.shape == () and (loss - hand).detach().abs() <= 1e-12
    loss.backward()
    assert network.conv.weight.grad is not None


def test_forward_gives_the_model_t_of_shape_one_or_batch_in_long() -> None:
    network = net()
    diffusion = DiffusionModel(network, 10, 1e-4, 0.2)
    x0 = torch.zeros(3, 3, 4, 4)
    for t in (torch.tensor(2), torch.tensor([2]), torch.tensor([1, 2, 3], dtype=torch.int16)):
        diffusion(x0, t, x0)
    assert network.calls == [((1,), torch.int64), ((1,), torch.int64), ((3,), torch.int64)]


def test_forward_without_noise_draws_it_like_the_image() -> None:
    diffusion, x0 = DiffusionModel(net(), 10, 1e-4, 0.2), torch.zeros(2, 3, 4, 4)
    torch.manual_seed(0)
    drawn = diffusion(x0, torch.tensor([3]))
    torch.manual_seed(0)
    assert torch.equal(drawn, diffusion(x0, torch.tensor([3]), torch.randn(2, 3, 4, 4)))


def test_training_with_it_learns_a_gaussian() -> None:
    """Data N(2, 0.25²) in one dimension: the network learns, and the samples have its mean and spread."""
    torch.manual_seed(0)

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            u = (t / 50).reshape(-1, 1).expand(len(x), 1)
            return self.body(torch.cat([x, u, u**2, torch.exp(-8 * u)], 1))

    diffusion = DiffusionModel(Line(), 50, 1e-3, 0.2)
    optimiser = torch.optim.Adam(diffusion.parameters(), 2e-3)
    for _ in range(600):
        x0 = 2 + 0.25 * torch.randn(256, 1)
        loss = diffusion(x0, torch.randint(0, 50, (256,)), torch.randn_like(x0))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = diffusion.sample((2000, 1))
    assert abs(float(x.mean()) - 2) < 0.1 and abs(float(x.std()) - 0.25) < 0.08


def test_the_tables_are_the_listing_s_and_are_not_saved() -> None:
    diffusion = DiffusionModel(net(), 50, 1e-4, 0.02)
    for ours, hand in zip(
        (diffusion.betas, diffusion.alphas, diffusion.alpha_bars), listing_tables(50, 1e-4, 0.02, torch.float32)
    ):
        assert torch.equal(ours, hand) and ours.dtype == torch.float32
    assert not set(diffusion.state_dict()) & {"betas", "alphas", "alpha_bars"}
    assert {name for name, _ in diffusion.named_buffers()} == {"betas", "alphas", "alpha_bars"}


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_double_makes_the_tables_exact_and_half_keeps_them_in_float32(low: torch.dtype) -> None:
    diffusion = DiffusionModel(net(), 50, 1e-4, 0.02).double()
    for ours, hand in zip(
        (diffusion.betas, diffusion.alphas, diffusion.alpha_bars), listing_tables(50, 1e-4, 0.02, torch.float64)
    ):
        assert torch.equal(ours, hand)
    half = diffusion.to(low)
    assert half.betas.dtype == torch.float32 and half.model.conv.weight.dtype == low
    assert half.sample((1, 3, 4, 4)).dtype == torch.float32
    assert math.isfinite(half(torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]), torch.ones(2, 3, 4, 4)).item())


@pytest.mark.parametrize("with_tables", [True, False])
def test_old_state_dicts_load_strictly_with_and_without_tables(with_tables: bool) -> None:
    old = {f"model.{key}": value for key, value in net(1).state_dict().items()}
    if with_tables:
        names = ("betas", "alphas", "alpha_bars")
        old |= dict(zip(names, listing_tables(50, 1e-4, 0.02, torch.float32)))
    diffusion = DiffusionModel(net(), 50, 1e-4, 0.02)
    keys = set(old)
    assert diffusion.load_state_dict(old, strict=True) == ([], [])
    assert torch.equal(diffusion.model.conv.weight, net(1).conv.weight)
    assert set(old) == keys  # the caller's dict is not changed
    wrapped = nn.ModuleDict({"inner": DiffusionModel(net(), 50, 1e-4, 0.02)})
    wrapped.load_state_dict({f"inner.{key}": value for key, value in old.items()}, strict=True)


def test_a_state_dict_of_another_schedule_is_refused_with_its_T() -> None:
    old = DiffusionModel(net(), 100, 1e-4, 0.02)
    state = old.state_dict() | {"betas": old.betas}
    with pytest.raises(Error, match=r"T=100.*T=50"):
        DiffusionModel(net(), 50, 1e-4, 0.02).load_state_dict(state)
    with pytest.raises(Error, match="beta_end"):
        DiffusionModel(net(), 100, 1e-4, 0.05).load_state_dict(state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_samples_the_same(copied: Callable[[DiffusionModel], DiffusionModel]) -> None:
    diffusion = DiffusionModel(net(), 5, 1e-4, 0.2)
    torch.manual_seed(0)
    first = diffusion.sample((1, 3, 4, 4))
    again = copied(diffusion)
    torch.manual_seed(0)
    assert torch.equal(first, again.sample((1, 3, 4, 4)))
    again.load_state_dict(diffusion.state_dict() | {"betas": diffusion.betas})


def test_tables_saved_in_half_precision_load_too() -> None:
    diffusion = DiffusionModel(net(), 1000, 1e-4, 0.02)
    halves = {name: getattr(diffusion, name).bfloat16() for name in ("betas", "alphas", "alpha_bars")}
    diffusion.load_state_dict(diffusion.state_dict() | halves, strict=True)


@pytest.mark.parametrize(
    "t, says",
    [
        (torch.tensor(10), "0..9"),
        (torch.tensor([-1]), "0..9"),
        (torch.tensor([0, 5]), "shape"),
        (torch.tensor([[1], [2], [3]]), "shape"),
        (torch.tensor([0.5]), "dtype"),
        (torch.tensor([True]), "dtype"),
        (torch.tensor([], dtype=torch.long), "shape"),
    ],
)
def test_a_wrong_t_is_refused(t: Tensor, says: str) -> None:
    with pytest.raises(Error, match=says):
        DiffusionModel(net(), 10, 1e-4, 0.2)(torch.zeros(3, 3, 4, 4), t, torch.zeros(3, 3, 4, 4))


@pytest.mark.parametrize(
    "settings", [(0, 1e-4, 0.02), (10, 0.0, 0.02), (10, 0.02, 1e-4), (10, 1e-4, 1.0), (10.5, 1e-4, 0.02)]
)
def test_impossible_settings_are_refused(settings: tuple[int, float, float]) -> None:
    with pytest.raises(Error):
        DiffusionModel(net(), *settings)


def test_wrong_shapes_are_refused() -> None:
    diffusion, x0 = DiffusionModel(net(), 10, 1e-4, 0.2), torch.zeros(3, 3, 4, 4)
    with pytest.raises(Error, match="noise has shape"):
        diffusion(x0, torch.tensor(1), torch.zeros(1, 3, 4, 4))
    with pytest.raises(Error, match="put out"):
        DiffusionModel(lambda x, t: x[:, :1], 10, 1e-4, 0.2)(x0, 1, x0)
    with pytest.raises(Error, match=r"uint8.*127\.5"):
        diffusion(x0.byte(), torch.tensor(1), x0)
    for shape in (4, (), (0, 3), ("a",)):
        with pytest.raises(Error, match="shape"):
            diffusion.sample(shape)  # type: ignore[arg-type]
    with pytest.raises(Error, match="model"):
        DiffusionModel(None, 10)  # type: ignore[arg-type]
