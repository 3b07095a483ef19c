"""Features from Python, names with paths, and what resizing is called."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from kuosan.errors import Error
from kuosan.metrics.features import check_features, features
from kuosan.metrics.features.network import FeatureNetwork, prepare
from kuosan.metrics.frechet import About
from kuosan.seeds import rng


def images(count=4, size=12):
    return torch.from_numpy(rng(0, "pictures").integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def mean_colour(x):
    return x.mean(dim=(2, 3))


def test_any_function_of_images_makes_features():
    network = FeatureNetwork.of("colour", mean_colour, 3)
    torch.testing.assert_close(network(images()), images().float().mean(dim=(2, 3)))
    assert network.resizing == "not resized" and network.hash == ""
    assert About(**network.about("faces")) == About("colour", "", "not resized", "faces")


def test_a_module_is_hashed_with_its_weights_and_its_size():
    def made(value, size=8):
        layer = torch.nn.Conv2d(3, 2, 8)
        torch.nn.init.constant_(layer.weight, value)
        torch.nn.init.zeros_(layer.bias)
        return FeatureNetwork.of("conv", torch.nn.Sequential(layer, torch.nn.Flatten(), torch.nn.Dropout(0.5)), 2, size)

    assert made(1.0).hash == made(1.0).hash
    assert len({made(1.0).hash, made(2.0).hash, made(1.0, 9).hash}) == 3
    assert torch.equal(made(1.0)(images()), made(1.0)(images()))  # dropout is off
    moved = made(1.0).to("cpu")
    assert torch.equal(moved(images()), made(1.0)(images())) and moved.hash == made(1.0).hash
    with pytest.raises(Error, match="function, not a module"):
        FeatureNetwork.of("colour", mean_colour, 3).to("cpu")


def test_rows_of_another_length_than_declared_are_refused():
    with pytest.raises(Error, match=r"gave \(4, 3\) for 4 images, not \(4, 5\)"):
        FeatureNetwork.of("colour", mean_colour, 5)(images())
    with pytest.raises(Error, match="pool to one row"):
        FeatureNetwork.of("whole", lambda x: x, 3)(images())


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("lite0", {}, "not built in"),
        ("inception", {}, "not built in"),
        ("../colour", {}, "letters"),
        ("", {}, "letters"),
        ("colour", {"resize": "bicubik", "size": 8}, "did you mean 'bicubic'"),
        ("colour", {"resize": "none", "size": 8}, "unknown resize"),
        ("colour", {"size": 0}, "at least 1"),
    ],
)
def test_features_that_results_could_not_name_are_refused(name, options, says):
    with pytest.raises(Error, match=says):
        FeatureNetwork.of(name, mean_colour, 3, **options)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lite0:/a/b.pth", "leave the path out"),
        ("inception", "inception:PATH.*pt_inception-2015-12-05-6726825d.pth"),
        ("inception:", "needs its weights' file"),
        ("dinov2:/no/such.pth", "no file /no/such.pth"),
        ("inceptoin:/a.pth", "unknown feature network.*inception:PATH"),
        ("lite", "did you mean 'lite0'"),
    ],
)
def test_names_that_lead_nowhere_are_refused(name, says):
    for ask in (check_features, features):
        with pytest.raises(Error, match=says):
            ask(name)


def test_names_are_checked_without_torch(tmp_path):
    (tmp_path / "w.pth").touch()
    code = (
        "import sys; from kuosan.metrics.features import check_features as c; c('lite0'); c(sys.argv[1]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, f"dinov2:{tmp_path / 'w.pth'}"], check=True)


@pytest.mark.parametrize(("before", "after"), [(40, 16), (16, 40), (33, 32)])
def test_resizing_is_pillows_in_float(before, after):
    x = images(1, before)
    plane = Image.fromarray(x[0, 0].numpy().astype(np.float32), mode="F")
    theirs = np.asarray(plane.resize((after, after), Image.Resampling.BICUBIC)).clip(0, 255)
    np.testing.assert_allclose(prepare(x, after)[0, 0].numpy(), theirs, atol=2e-3)


def test_the_other_resize_is_bilinear_without_antialiasing():
    x = torch.tensor([[0, 100, 200, 40]], dtype=torch.uint8).expand(1, 1, 4, 4)
    found = prepare(x, 2, "bilinear")
    assert found.shape == (1, 3, 2, 2)
    assert found[0, 0, 0].tolist() == [50, 120]  # each the mean of the two pixels around its centre, no more
    assert prepare(x, 8, "bilinear")[0, 0, 0].tolist() == [0, 25, 75, 125, 175, 160, 80, 40]
