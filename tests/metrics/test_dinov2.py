"""DINOv2 from a user's file: transformers' numbers on the same weights, the reference's position resize, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keyed_weights import keyed

from kuosan.errors import Error
from kuosan.metrics.features import features
from kuosan.metrics.features.dinov2 import DinoV2
from kuosan.seeds import rng


def images(size, count=1):
    return torch.from_numpy(rng(0, "pictures").integers(0, 256, (2, 3, size, size), dtype=np.uint8))[:count]


@pytest.fixture(scope="module")
def small():
    network = DinoV2(width=128, depth=3, grid=37, offset=0.0).eval()  # transformers resizes positions without offset
    network.load_state_dict(keyed(network))
    return network


# Dinov2Model of transformers 5.23.0 with these weights: pooler_output[0, [0, 31, 64, 100, 127]]
TRANSFORMERS = {
    518: [3.34283, 3.36154, 0.73179, 0.15857, 1.37372],
    224: [3.33732, 3.39676, 0.82778, 0.19819, 1.27967],
    98: [3.71023, 3.40047, 0.37776, 0.32694, 1.37785],
}


@pytest.mark.parametrize("size", TRANSFORMERS)
def test_class_tokens_are_transformers_numbers(small, size):
    with torch.no_grad():
        rows = small(images(size).float())
    assert rows[0, [0, 31, 64, 100, 127]].tolist() == pytest.approx(TRANSFORMERS[size], abs=1e-4)


def renamed(weights, depth):
    """Our names, the public file's, as transformers'."""
    found = {
        "embeddings.cls_token": weights["cls_token"],
        "embeddings.mask_token": torch.zeros(1, 128),
        "embeddings.position_embeddings": weights["pos_embed"],
    }
    for end in ("weight", "bias"):
        found[f"embeddings.patch_embeddings.projection.{end}"] = weights[f"patch_embed.proj.{end}"]
        found[f"layernorm.{end}"] = weights[f"norm.{end}"]
        for i in range(depth):
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"encoder.layer.{i}.{name}.{end}"] = weights[f"blocks.{i}.{name}.{end}"]
            for name, part in zip("qkvo", [*weights[f"blocks.{i}.attn.qkv.{end}"].chunk(3), None]):
                part = weights[f"blocks.{i}.attn.proj.{end}"] if part is None else part
                found[f"encoder.layer.{i}.attention.{name}_proj.{end}"] = part
    for i in range(depth):
        for n in (1, 2):
            found[f"encoder.layer.{i}.layer_scale{n}.lambda1"] = weights[f"blocks.{i}.ls{n}.gamma"]
    return found


def test_class_tokens_are_transformers(small):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed", minversion="5")
    config = transformers.Dinov2Config(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=518, patch_size=14
    )
    theirs = transformers.Dinov2Model(config).eval()
    theirs.load_state_dict(renamed(small.state_dict(), 3))
    x = images(224, 2).float()
    with torch.no_grad():
        expected = theirs((x - small.mean) / small.std).pooler_output
        torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-4)


def test_positions_are_resized_by_the_references_factor(small):
    network = DinoV2(width=128, depth=0, grid=37)
    network.load_state_dict({name: value for name, value in small.state_dict().items() if "blocks" not in name})
    found = network.positions(16)
    assert found.shape == (1, 1 + 16 * 16, 128)
    # the reference: interpolate(scale_factor=(16 + 0.1) / 37), so place i reads (i + 0.5) / factor - 0.5
    square = network.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, 37, 37)
    at = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    where = (at + 0.5) / 37 * 2 - 1  # as grid_sample counts
    grid = torch.stack(torch.meshgrid(where, where, indexing="ij")[::-1], dim=-1)[None]
    expected = F.grid_sample(square, grid, mode="bicubic", padding_mode="border", align_corners=False)
    torch.testing.assert_close(found[:, 1:], expected.flatten(2).transpose(1, 2), rtol=1e-3, atol=1e-3)
    assert torch.equal(network.positions(37), network.pos_embed)


@pytest.fixture
def file(tmp_path):
    """A public file's names and widths, one block deep."""
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save({**keyed(DinoV2(384, depth=1, grid=37)), "mask_token": torch.zeros(1, 384)}, path)
    return path


def test_a_file_gives_named_features(file):
    network = features(f"dinov2:{file}")
    assert (network.name, network.dim, network.size) == ("dinov2-vits14", 384, 224)
    rows = network(images(32, 2))
    assert rows.shape == (2, 384) and (rows[0] - rows[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"register_tokens": torch.zeros(1, 4, 384)}, "one with registers"),
        ({"cls_token": torch.zeros(1, 1, 1536)}, "width 1536"),
        ({"norm.weight": torch.zeros(3)}, r"norm\.weight \(3,\), not \(384,\)"),
        ({"head.weight": torch.zeros(3)}, "head.weight unknown"),
    ],
)
def test_other_variants_are_refused(file, change, says):
    torch.save({**torch.load(file, weights_only=True), **change}, file)
    with pytest.raises(Error, match=says):
        features.__wrapped__(f"dinov2:{file}")
