"""Inception-v3 from a user's file: other codes' numbers on the same weights, and what is no such file refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import safetensors.torch
import torch
from keyed_weights import drawn, keyed

from kuosan.errors import Error
from kuosan.metrics.features import features as cached
from kuosan.metrics.features.inception import InceptionV3
from kuosan.metrics.frechet import About, label
from kuosan.seeds import rng

features = cached.__wrapped__  # 90 MB each: not kept for the rest of the session


def with_last_layer(standard: bool) -> dict[str, torch.Tensor]:
    """Keyed weights under a public file's names; torchvision's has an auxiliary head as well."""
    weights = keyed(InceptionV3(standard))
    classes = 1008 if standard else 1000
    weights |= {"fc.weight": torch.zeros(classes, 2048), "fc.bias": torch.zeros(classes)}
    return weights if standard else {**weights, "AuxLogits.fc.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(with_last_layer(True), path)
    return path


def images(count=1, size=299):
    return torch.from_numpy(rng(0, "pictures").integers(0, 256, (2, 3, size, size), dtype=np.uint8))[:count]


def test_the_standard_network_is_torch_fidelitys():
    # FeatureExtractorInceptionV3 of torch-fidelity 0.4.0 with these weights and image; it reads (x - 128) / 128
    network = InceptionV3(standard=True).eval()
    network.load_state_dict(keyed(network))
    with torch.no_grad():
        rows = network(((images().float() - 128) / 128 + 1) * 127.5)
    assert rows.shape == (1, 2048)
    expected = [0.35565, 0.0, 0.0, 0.07254, 0.27514]
    assert rows[0, [0, 400, 900, 1500, 2047]].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_other_network_is_torchvisions():
    # InceptionV3 of timm 1.0.31, whose code and names are torchvision's, with these weights and image
    network = InceptionV3(standard=False).eval()
    network.load_state_dict(keyed(network))
    with torch.no_grad():
        rows = network(images().float())
    expected = [0.36874, 0.0, 0.00227, 0.07815, 0.10749]
    assert rows[0, [0, 400, 900, 1500, 2047]].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_file_gives_named_and_hashed_features(file):
    network = features(f"inception:{file}")
    assert (network.name, network.dim, network.size) == ("inception", 2048, 299)
    assert network.hash == hashlib.sha256(file.read_bytes()).hexdigest()
    assert network.resizing == "299 px, bicubic, antialiased"
    assert label(About(**network.about())) == "FD (inception)"  # random weights are not the standard ones
    rows = network(images(2, size=40))
    assert rows.shape == (2, 2048) and (rows[0] - rows[1]).abs().max() > 1e-3


def test_pytorch_fids_resize_has_its_own_name(file):
    network = features(f"inception-bilinear:{file}")
    assert (network.name, network.resizing) == ("inception-bilinear", "299 px, bilinear, not antialiased")
    assert not torch.allclose(network(images(1, 40)), features(f"inception:{file}")(images(1, 40)), atol=1e-3)


def test_safetensors_give_the_same_features(file, tmp_path):
    path = tmp_path / "inception.safetensors"
    safetensors.torch.save_file(with_last_layer(True), path)
    assert torch.equal(features(f"inception:{path}")(images()), features(f"inception:{file}")(images()))


def test_torchvisions_file_is_known_by_its_classes(tmp_path):
    path = tmp_path / "inception_v3_google.safetensors"
    safetensors.torch.save_file(with_last_layer(False), path)
    assert features(f"inception:{path}").name == "inception-torchvision"


class Planted:
    """What would run when unpickled."""

    def __reduce__(self):
        return print, ("RUN",)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_file_of_code_is_refused_unrun(tmp_path, capsys):
    torch.save({"fc.bias": Planted()}, tmp_path / "planted.pth")
    with pytest.raises(Error, match="no plain tensors"):
        features(f"inception:{tmp_path / 'planted.pth'}")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(Error, match="TorchScript program"):
        features(f"inception:{tmp_path / 'script.pt'}")
    assert "RUN" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"weight": torch.zeros(2)}, "no Inception-v3.*not 0"),
        ({"fc.bias": torch.zeros(10)}, "must have 1008 or 1000 classes, not 10"),
        ({"fc.bias": torch.zeros(1008)}, r"Conv2d_1a_3x3\.conv\.weight missing.* and \d+ more"),
        ([1, 2], "holds a list"),
        ({"fc.bias": 3}, "holds a dict"),
    ],
)
def test_other_files_are_refused(tmp_path, tensors, says):
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(Error, match=says):
        features(f"inception:{tmp_path / 'other.pth'}")


def test_names_and_shapes_that_do_not_fit_are_named(tmp_path):
    weights = with_last_layer(True)
    weights["Conv2d_1a_3x3.conv.weight"] = drawn("x", (8, 3, 3, 3))
    weights["surplus"] = torch.zeros(1)
    safetensors.torch.save_file(weights, tmp_path / "wrong.safetensors")
    with pytest.raises(
        Error, match=r"surplus unknown, Conv2d_1a_3x3\.conv\.weight \(8, 3, 3, 3\), not \(32, 3, 3, 3\)"
    ):
        features(f"inception:{tmp_path / 'wrong.safetensors'}")


def test_a_file_cut_short_is_refused(file, tmp_path):
    whole = file.read_bytes()
    for end in (0, 4, 1000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:end])
        with pytest.raises(Error, match=r"cut\.pth"):
            features(f"inception:{tmp_path / 'cut.pth'}")
