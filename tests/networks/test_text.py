from __future__ import annotations

import numpy as np
import pytest
import torch

from kuosan.errors import Error
from kuosan.networks.config import UNetConfig
from kuosan.networks.text import Texted, TextTransformer
from kuosan.networks.text_config import ByteText
from kuosan.networks.unet import UNet
from kuosan.text import tokens

SMALL = ByteText(length=8, width=16, depth=2, heads=2)


def _tokens(*texts: str) -> torch.Tensor:
    table = np.zeros((len(texts), 8, 16), np.int64)
    for told, text in zip(table, texts):
        own = tokens.rows(tokens.tokenize(text))
        told[: len(own)] = own
    return torch.from_numpy(table)


def test_weights_are_a_function_of_the_seed() -> None:
    one, same, other = TextTransformer(SMALL, 1), TextTransformer(SMALL, 1), TextTransformer(SMALL, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters()))
    assert not torch.equal(one.bytes.weight, other.bytes.weight)


def test_a_text_reads_the_same_whatever_stands_behind_or_beside_it() -> None:
    text = TextTransformer(SMALL)
    both = text(_tokens("a fox", "a red fox, animal"))
    alone = text(torch.from_numpy(tokens.rows(tokens.tokenize("a fox")).astype(np.int64))[None])
    assert both.mask is not None
    assert both.mask.sum(1).tolist() == [3, 6]
    assert torch.allclose(both.features[0, :3], alone.features[0], atol=1e-5)


def test_words_of_the_same_letters_in_another_order_differ() -> None:
    text = TextTransformer(SMALL)
    features = text(_tokens("god", "dog")).features
    assert (features[0, 1] - features[1, 1]).abs().max() > 1e-2


def test_the_transformer_learns_with_its_network() -> None:
    unet = UNet(UNetConfig(channels=16, multipliers=(1,), attention=(True,), blocks=1, groups=8, context_width=16))
    both = Texted(unet, TextTransformer(SMALL))
    for module in unet.modules():  # what begins as zero lets nothing through
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    x, t, read_tokens = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0]), _tokens("a fox", "a cat")
    both(x, t, tokens=read_tokens).square().sum().backward()
    table = both.text.bytes.weight.grad
    assert table is not None
    assert table.any()
    read = both.text(read_tokens)
    again = both(x, t, context=read.features, context_mask=read.mask)
    assert torch.allclose(again, both(x, t, tokens=read_tokens), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words_of_it"),
    [({"heads": 5}, "does not divide"), ({"width": 4}, "from 8"), ({"length": 1000}, "at most 512")],
)
def test_impossible_shapes_are_refused(settings: dict[str, int], words_of_it: str) -> None:
    with pytest.raises(Error, match=words_of_it):
        ByteText(**settings)
