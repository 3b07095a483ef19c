"""Features without the final norm are others than with it, and are cached apart from them."""

from __future__ import annotations

import torch

from kuosan.networks.clip import CLIPTextNetwork
from kuosan.networks.text_config import CLIPText
from kuosan.text.clip import CLIPTokenizer
from kuosan.text.encoder import TextEncoder
from kuosan.text.tokens import TextEncoderConfig
from kuosan.train.text_conditioning import _key


def test_the_cache_of_embeddings_knows_the_final_norm() -> None:
    network = CLIPTextNetwork(CLIPText(width=16, hidden=32, depth=2, heads=2))
    keys, rows = [], []
    for settings in (
        TextEncoderConfig(encoder="sd", hidden=-2),
        TextEncoderConfig(encoder="sd", hidden=-2, final_norm=False),
    ):
        encoder = TextEncoder(network, CLIPTokenizer(), settings, "")
        keys.append(_key(["a fox"], encoder))
        rows.append(encoder.row("a fox").features)
    assert "final_norm" not in keys[0] and keys[1] == {**keys[0], "final_norm": False}
    assert not torch.allclose(*rows, atol=1e-3)
