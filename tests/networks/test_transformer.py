from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kuosan.errors import Error
from kuosan.models.latents import prepare
from kuosan.networks.config import DiTConfig, UNetConfig
from kuosan.networks.dit import DiT
from kuosan.networks.layers import Context, CrossAttention, Transformer, attend
from kuosan.networks.unet import UNet

TINY = UNetConfig(
    channels=16, multipliers=(1, 2), attention=(False, True), blocks=1, groups=8, context_width=12, context_vector=True
)
CROSS = replace(TINY, context_attention="cross")  # attention to the text behind the network's own
SMALL_DIT = DiTConfig(width=16, depth=2, heads=2, context_width=12, context_vector=True)


def _drawn(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network with every weight drawn, so that nothing that begins as zero hides what is wired wrongly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim < 2))
    return network


def test_the_spatial_transformer_is_diffusers_with_the_same_weights() -> None:
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.Transformer2DModel(
        2, 8, in_channels=16, cross_attention_dim=12, norm_num_groups=4, use_linear_projection=True, num_layers=2
    ).eval()
    _drawn(peer)
    own = Transformer(16, head_channels=8, context_width=12, depth=2, mlp=4, groups=4)
    names = [("proj_in", "entrance"), ("proj_out", "out"), ("transformer_blocks", "blocks"), ("attn1", "itself")]
    names += [("attn2", "cross"), ("to_out.0", "out"), ("to_", ""), ("ff.net.0.proj", "perceptron.up")]
    names += [("ff.net.2", "perceptron.down")]
    state = {}
    for name, value in peer.state_dict().items():
        for theirs, ours in names:
            name = name.replace(theirs, ours)
        state[name] = value
    own.load_state_dict(state)
    x, context = torch.randn(2, 16, 4, 4), torch.randn(2, 5, 12)
    theirs = peer(x, encoder_hidden_states=context, return_dict=False)[0]
    assert torch.allclose(own(x, Context(context)), theirs, atol=1e-5)


def test_attention_with_a_mask_is_the_formula_over_what_is_there() -> None:
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    out = attend(q, k, v, mask[:, None, None])
    alone = torch.softmax(q[1] @ k[1, :, :4].mT / math.sqrt(8), -1) @ v[1, :, :4]
    assert torch.allclose(out[1], alone, atol=1e-5)
    low = attend(*(each.bfloat16() for each in (q, k, v)), mask[:, None, None])
    assert torch.allclose(low.float(), out, atol=0.05)


@pytest.mark.parametrize("network", [UNet(TINY), UNet(CROSS), DiT(SMALL_DIT)])
def test_a_fresh_network_does_not_hear_the_text_yet_and_a_drawn_one_does(network: torch.nn.Module) -> None:
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 500.0])
    one, other = torch.randn(2, 4, 12), torch.randn(2, 4, 12)
    assert torch.equal(network(x, t, context=one), network(x, t, context=other))
    _drawn(network)
    assert (network(x, t, context=one) - network(x, t, context=other)).abs().max() > 1e-3


@pytest.mark.parametrize("network", [UNet(TINY), UNet(CROSS), DiT(SMALL_DIT)])
def test_what_the_mask_hides_has_no_effect(network: torch.nn.Module) -> None:
    _drawn(network)
    x, t, context = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 4, 12)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    padded = context.clone()
    padded[1, 2:] = 99.0
    out = network(x, t, context=context, context_mask=mask)
    assert torch.equal(out, network(x, t, context=padded, context_mask=mask))
    short = network(x[1:], t[1:], context=context[1:, :2])
    assert torch.allclose(out[1:], short, atol=1e-5)


@pytest.mark.parametrize("network", [UNet(TINY), UNet(CROSS), DiT(SMALL_DIT)])
def test_ready_to_sample_in_bf16_it_answers_nearly_the_same_in_float32(network: torch.nn.Module) -> None:
    ready = prepare(network, dtype=torch.bfloat16)
    x, t, context = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 3.0]), torch.randn(2, 4, 12)
    with torch.no_grad():
        exact, low = network(x, t, context=context), ready(x, t, context=context)
    assert low.dtype == torch.float32
    assert (exact - low).norm() <= 0.05 * exact.norm() + 1e-6


def test_a_context_that_does_not_fit_is_refused() -> None:
    network = UNet(TINY)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(1.0)
    with pytest.raises(Error, match=r"context is missing.*\(2, L, 12\)"):
        network(x, t)
    with pytest.raises(Error, match=r"of shape \(2, 4, 10\)"):
        network(x, t, context=torch.randn(2, 4, 10))
    with pytest.raises(Error, match="context_mask is float32"):
        network(x, t, context=torch.randn(2, 4, 12), context_mask=torch.ones(2, 4))
    plain = UNet(UNetConfig(channels=16, multipliers=(1,), attention=(True,), blocks=1, groups=8))
    with pytest.raises(Error, match="no context input"):
        plain(x, t, context=torch.randn(2, 4, 12))


def test_settings_of_text_that_cannot_be_are_refused() -> None:
    with pytest.raises(Error, match="None where nothing attends"):
        UNetConfig(attention=(False,) * 4, middle_attention=False, context_width=8)
    with pytest.raises(Error, match="false without context_width"):
        UNetConfig(context_vector=True)
    with pytest.raises(Error, match="false without context_width"):
        DiTConfig(context_vector=True)


def test_attention_to_nothing_else_is_self_attention() -> None:
    layer = CrossAttention(8, 2)
    h = torch.randn(1, 5, 8)
    assert torch.allclose(layer(h), layer(h, Context(h)), atol=1e-6)
