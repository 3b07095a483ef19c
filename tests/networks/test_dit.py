"""The diffusion transformer: equal to diffusers', its doors, its beginning, its independence of neighbours."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kuosan import seeds
from kuosan.errors import Error
from kuosan.models.latents import prepare
from kuosan.networks.config import DiTConfig, default_dit
from kuosan.networks.dit import DiT, from_patches, parameter_count, positions, to_patches

SMALL = DiTConfig(width=32, depth=2, heads=4)
OPTIONS: dict[str, dict[str, Any]] = {
    "as_it_is": {},
    "patch_1": {"patch": 1},
    "patch_4": {"patch": 4},
    "one_head": {"heads": 1},
    "wide_perceptron": {"mlp": 6},
    "learned_variance": {"out_channels": 6},
    "grey": {"in_channels": 1, "out_channels": 1},
    "checkpointing": {"checkpointing": True},
}


def noise(name: str, *shape: int) -> Tensor:
    return seeds.normal([(0, name, 0, i) for i in range(shape[0])], shape[1:])


def lively(config: DiTConfig, seed: int = 0) -> DiT:
    """A network in evaluation mode whose every weight is random, those that begin at zero too."""
    network = DiT(config, seed).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.add_(noise(name, *weight.shape) * (0.5 / max(1, weight[0].numel()) ** 0.5))
    return network


def from_diffusers(state: dict[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The weights of diffusers' DiTTransformer2DModel under our names; each of theirs is used, or equal to one used."""

    def both(name: str) -> dict[str, Tensor]:
        return {kind: state.pop(f"{name}.{kind}") for kind in ("weight", "bias")}

    ours: dict[str, Tensor] = {}

    def put(name: str, pair: dict[str, Tensor]) -> None:
        ours.update({f"{name}.{kind}": value for kind, value in pair.items()})

    entrance = both("pos_embed.proj")
    put("entrance", {"weight": entrance["weight"].flatten(1), "bias": entrance["bias"]})
    shares = []
    for i in range(config.depth):
        theirs = f"transformer_blocks.{i}"
        embedder = f"{theirs}.norm1.emb"
        time = {j: both(f"{embedder}.timestep_embedder.linear_{j}") for j in (1, 2)}
        label = state.pop(f"{embedder}.class_embedder.embedding_table.weight")
        if i == 0:  # each block has tables of its own; trained ones are equal, and the exit uses the first
            put("time.0", time[1])
            put("time.2", time[2])
            ours["label.weight"] = label
        shares.append(both(f"{theirs}.norm1.linear"))
        parts = [both(f"{theirs}.attn1.to_{part}") for part in "qkv"]
        put(f"blocks.{i}.qkv", {kind: torch.cat([part[kind] for part in parts]) for kind in parts[0]})
        put(f"blocks.{i}.out", both(f"{theirs}.attn1.to_out.0"))
        put(f"blocks.{i}.up", both(f"{theirs}.ff.net.0.proj"))
        put(f"blocks.{i}.down", both(f"{theirs}.ff.net.2"))
    shares.append(both("proj_out_1"))
    put("conditioning", {kind: torch.cat([share[kind] for share in shares]) for kind in shares[0]})
    last = both("proj_out_2")  # theirs has the channel innermost, ours outermost
    put("exit.out", {kind: value.unflatten(0, (-1, config.out_channels)).transpose(0, 1).flatten(0, 1)
                     for kind, value in last.items()})  # fmt: skip
    assert not state, sorted(state)
    return ours


@pytest.mark.parametrize("patch", [2, 4])
def test_equal_weights_give_diffusers_outputs(patch: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    config = DiTConfig(in_channels=4, out_channels=8, patch=patch, width=48, depth=3, heads=4, classes=10)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=3,
        sample_size=16, patch_size=patch, num_embeds_ada_norm=10, norm_eps=1e-6,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            # one table of times and labels for all blocks, as in the paper
            shared = name.replace(name.split(".norm1")[0], "transformer_blocks.0") if ".emb." in name else name
            weight.copy_(noise(shared, *weight.shape) * (0.7 / weight[0].numel() ** 0.5 if weight.ndim > 1 else 0.1))
        for block in theirs.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0  # the paper's frequencies; diffusers has them off by one
    ours = DiT(config).eval()
    ours.load_state_dict(from_diffusers(theirs.state_dict(), config))
    x, t, label = noise("x", 4, 4, 16, 16), torch.tensor([0, 1, 500, 999]), torch.tensor([0, 3, 9, 10])
    with torch.no_grad():
        expected, out = theirs(x, t, label).sample, ours(x, t, label=label)
    assert expected.std() > 0.3
    assert (out - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
)
def test_the_papers_sizes_have_the_papers_parameters(width: int, depth: int, heads: int, millions: int) -> None:
    config = DiTConfig(in_channels=4, out_channels=8, patch=2, width=width, depth=depth, heads=heads, classes=1000)
    assert round(parameter_count(config) / 1e6) == millions  # Peebles & Xie 2023, table 4


def test_patches_are_those_of_a_convolution_and_come_back() -> None:
    x, kernel = noise("x", 2, 3, 8, 12), noise("kernel", 5, 3, 4, 4)
    tokens = to_patches(x, 4) @ kernel.flatten(1).T
    expected = nn.functional.conv2d(x, kernel, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(from_patches(to_patches(x, 4), 2, 3, 4), x)


def test_positions_differ_everywhere_and_are_of_column_then_row() -> None:
    found = positions(3, 5, 16, torch.device("cpu"), torch.float32).view(3, 5, 16)
    assert len(found.view(15, 16).unique(dim=0)) == 15
    assert (found[:, :, :8] == found[:1, :, :8]).all() and (found[:, :, 8:] == found[:, :1, 8:]).all()
    assert found[2, 4, 0] == torch.tensor(4.0).sin() and found[2, 4, 8] == torch.tensor(2.0).sin()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_images_of_the_right_shape_and_all_weights_gradients(name: str) -> None:
    config = replace(SMALL, **OPTIONS[name])
    network = lively(config)
    out = network(noise("x", 2, config.in_channels, 16, 24), torch.tensor([0.5, 999.0]))
    assert out.shape == (2, config.out_channels, 16, 24) and out.dtype == torch.float32
    out.square().mean().backward()
    for key, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, key


def test_checkpointing_gives_equal_gradients() -> None:
    x, grads = noise("x", 2, 3, 8, 8), []
    for checkpointing in (False, True):
        network = lively(replace(SMALL, checkpointing=checkpointing))
        network(x, torch.tensor(3.0)).square().mean().backward()
        grads.append([weight.grad for weight in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))  # type: ignore[arg-type]


def test_it_begins_with_an_output_of_zero_and_blocks_that_are_the_identity() -> None:
    network = DiT(SMALL)
    h, time = noise("h", 2, 6, 32), network.conditioning(noise("time", 2, 32)).split(network.conditioning.widths, 1)
    assert torch.equal(network.blocks[0](h, time[0]), h)
    assert (network(noise("x", 2, 3, 8, 8), torch.tensor(7.0)) == 0).all()


def test_weights_are_a_function_of_config_and_seed_and_the_global_generator_is_untouched() -> None:
    before = torch.random.get_rng_state()
    one, same, other = DiT(SMALL, 1).state_dict(), DiT(SMALL, 1).state_dict(), DiT(SMALL, 2).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.qkv.weight"], other["blocks.0.qkv.weight"])
    deeper = DiT(replace(SMALL, depth=3), 1).state_dict()
    assert torch.equal(deeper["blocks.1.up.weight"], one["blocks.1.up.weight"])


def test_the_beginning_is_the_papers() -> None:
    network = DiT(DiTConfig(width=256, depth=1, heads=4, classes=40))
    assert network.time[0].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert network.time[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert network.label is not None
    assert network.label.weight[:-1].std().item() == pytest.approx(0.02, rel=0.05)
    assert (network.label.weight[-1] == 0).all()  # the null label adds nothing at first
    xavier = (2 / (256 + 1024)) ** 0.5
    assert network.blocks[0].up.weight.std().item() == pytest.approx(xavier, rel=0.02)  # type: ignore[union-attr]
    assert network.blocks[0].up.weight.abs().max() < 3**0.5 * xavier  # type: ignore[union-attr]


def test_the_label_input_and_the_concat_input_change_the_output() -> None:
    x, t = noise("x", 2, 3, 8, 8), torch.tensor(4.0)
    network = lively(replace(SMALL, classes=3))
    one, other = (network(x, t, label=torch.tensor(label)) for label in ([0, 1], [0, 3]))
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    network = lively(replace(SMALL, concat_channels=2))
    concat = noise("concat", 2, 2, 8, 8)
    assert not torch.equal(network(x, t, concat=concat), network(x, t, concat=-concat))


def test_time_and_places_matter() -> None:
    network, x = lively(SMALL), noise("x", 1, 3, 8, 8)
    out = network(x, torch.tensor(4.0))
    assert not torch.allclose(out, network(x, torch.tensor(5.0)), atol=1e-4)
    turned = network(x.roll(2, dims=3), torch.tensor(4.0)).roll(-2, dims=3)
    assert not torch.allclose(out, turned, atol=1e-4)  # without positions this would be equal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [0, 3])
def test_no_image_depends_on_its_neighbours(dtype: torch.dtype, classes: int) -> None:
    network = prepare(lively(replace(SMALL, classes=classes)), "cpu", dtype)
    x, t = noise("x", 8, 3, 16, 16), torch.tensor(400.0)
    label = torch.arange(8) % 4 if classes else None
    with torch.no_grad():
        all_of_them = network(x, t, label=label)
        other = network(torch.cat([x[:1], -x[1:]]), t, label=label)
        assert torch.equal(all_of_them[0], other[0])  # in a batch of one size, to the bit
        alone = torch.cat(
            [network(x[i : i + 1], t, label=None if label is None else label[i : i + 1]) for i in range(8)]
        )
    scale = all_of_them.std()
    assert (alone - all_of_them).abs().max() < (1e-5 if dtype == torch.float32 else 0.05) * scale


def test_in_sampling_a_labelled_images_conditioning_is_its_own_to_the_bit() -> None:
    network = lively(replace(SMALL, classes=3))
    emb = noise("emb", 7, 32)
    with torch.no_grad():
        together = [share[4] for share in network.conditioning.shares(emb, 7)]
        alone = [share[0] for share in network.conditioning.shares(emb[4:5], 1)]
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
    trained = next(network.conditioning.shares(emb, 7))  # with gradients: one product
    assert trained.requires_grad and torch.allclose(trained[4], together[0], atol=1e-5)


def test_bf16_is_near_float32_and_answers_in_float32() -> None:
    network, x, t = lively(SMALL), noise("x", 2, 3, 16, 16), torch.tensor([999.0, 1000.0])
    with torch.no_grad():
        exact, low = network(x, t), prepare(network, "cpu", torch.bfloat16)(x, t)
    assert low.dtype == torch.float32
    assert 0 < (exact - low).abs().max() < 0.05 * exact.std()
    ready = prepare(network, "cpu", torch.bfloat16)
    low_names = {name for name, weight in ready.named_parameters() if weight.dtype == torch.bfloat16}
    assert low_names == {name for name in ready.state_dict() if name.startswith(("entrance", "blocks", "exit"))}


def test_training_under_autocast_gives_float32_gradients_near_the_exact_ones() -> None:
    network, x, t = lively(SMALL), noise("x", 2, 3, 16, 16), torch.tensor([10.0, 700.0])
    network(x, t).square().mean().backward()
    exact = {name: weight.grad.clone() for name, weight in network.named_parameters()}  # type: ignore[union-attr]
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        network(x, t).square().mean().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.dtype == torch.float32
        assert (weight.grad - exact[name]).norm() < 0.05 * exact[name].norm() + 1e-6, name


def test_double_precision_is_kept() -> None:
    network = lively(SMALL).double()
    x = noise("x", 1, 3, 8, 8).double()
    out = network(x, torch.tensor(3.0))
    assert out.dtype == torch.float64
    assert 0 < (out - lively(SMALL)(x.float(), torch.tensor(3.0))).abs().max() < 1e-4


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"x": noise("x", 2, 1, 8, 8)}, r"x has shape \(2, 1, 8, 8\)"),
    ({"patch": 4}, {"x": noise("x", 2, 3, 10, 8)}, r"image size 10x8.*multiples of 4.*12x8"),
    ({}, {"t": torch.zeros(3)}, "one time an image"),
    ({}, {"label": torch.zeros(2, dtype=torch.int64)}, "no label input"),
    ({"classes": 3}, {}, "label is missing.*3 classes"),
    ({"classes": 3}, {"label": torch.tensor([0, 4])}, "label 4"),
    ({}, {"context": noise("c", 2, 3, 4)}, "no context input"),
    ({}, {"concat": noise("c", 2, 3, 8, 8)}, "no concat input"),
    ({"concat_channels": 1}, {}, "concat is missing"),
]


@pytest.mark.parametrize(("fields", "inputs", "message"), REFUSED)
def test_a_call_that_cannot_be_answered_is_refused(
    fields: dict[str, Any], inputs: dict[str, Any], message: str
) -> None:
    call = {"x": noise("x", 2, 3, 8, 8), "t": torch.tensor(1.0), **inputs}
    with pytest.raises(Error, match=message):
        DiT(replace(SMALL, **fields))(**call)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 30}, r"DiTConfig.width is 30; allowed: multiples of 4"),
        ({"heads": 5}, r"DiTConfig.heads is 5; allowed: divisors of width 384"),
        ({"depth": 0}, "DiTConfig.depth is 0"),
        ({"patch": True}, "DiTConfig.patch is True"),
        ({"classes": -1}, "DiTConfig.classes is -1.*without that input"),
    ],
)
def test_a_bad_value_is_refused_with_its_field_value_and_cure(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        DiTConfig(**fields)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 24, 40), (3, 64, 64), (1, 28, 28), (3, 1024, 768)])
def test_the_default_shape_takes_its_images_in_at_most_256_tokens(shape: tuple[int, int, int]) -> None:
    counts = []
    for size in ("tiny", "small", "medium", "large"):
        config = default_dit(shape, size, classes=2)  # type: ignore[arg-type]
        assert shape[1] % config.patch == shape[2] % config.patch == 0
        assert shape[1] * shape[2] <= 256 * config.patch**2
        assert config.in_channels == config.out_channels == shape[0] and config.null_label == 2
        counts.append(parameter_count(config))
    assert counts == sorted(counts)
    if shape == (3, 32, 32):
        assert [round(count / 1e6, 1) for count in counts] == [1.1, 2.9, 16.5, 62.4]


def test_sides_that_cannot_be_cut_are_refused_with_the_nearest_size() -> None:
    with pytest.raises(Error, match=r"51x102 cannot be cut into patches of 8.*pad to 56x104"):
        default_dit((3, 51, 102))
    with pytest.raises(Error, match="unknown network size 'smal': did you mean 'small'"):
        default_dit((3, 32, 32), "smal")  # type: ignore[arg-type]


def test_configuring_a_transformer_does_not_import_torch() -> None:
    code = "import sys, kuosan.networks.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
