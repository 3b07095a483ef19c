"""Pictures to noise and back, with a model and from the shell."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error
from kuosan.evaluate.reference import psnr
from kuosan.model import Model
from kuosan.sample.inversion import round_trip
from kuosan.tasks.generation import Generation
from shell import kuosan, picture_folder, refused
from tiny_models import tiny_model

PETS = Generation(labels=True, class_names=("a", "b"))


def gentle(schedule, prediction) -> Model:
    """A model whose output changes slowly with its input, as a trained one's does at small steps."""
    model = tiny_model(schedule, prediction)
    with torch.no_grad():
        model.network.decoder.exit.weight.mul_(0.1)
    return model


def pictures(n: int = 3) -> Tensor:
    return 0.8 * seeds.normal([(i, "test/invert", 0, 0) for i in range(n)], (3, 8, 8)).tanh()


KINDS = [(Discrete(), "v"), (Discrete(betas="cosine"), "v"), (Karras(), "edm")]


@pytest.mark.parametrize("schedule, prediction", KINDS)
def test_the_way_back_leads_to_the_picture_and_better_with_more_steps_or_iterations(schedule, prediction):
    model, x0 = gentle(schedule, prediction), pictures()
    few, many, exact = (
        psnr(round_trip(model, x0, steps=steps, iterations=again).back, x0)
        for steps, again in ((10, 0), (40, 0), (10, 20))
    )
    assert (many > few).all() and (exact > few).all()
    assert exact.min() > 40, (few, many, exact)


def test_it_costs_what_it_says():
    assert round_trip(tiny_model(), pictures(1), steps=4, iterations=2).evaluations == 16


def test_the_class_matters_and_one_that_is_unknown_is_refused():
    model, x0 = tiny_model(task=PETS), pictures(2)
    a, b, none = (round_trip(model, x0, steps=5, classes=c).noise for c in (("a",), ("b",), ()))
    assert not torch.equal(a, b) and not torch.equal(a, none)
    mixed = round_trip(model, x0, steps=5, classes=("a", "b")).noise
    assert torch.allclose(mixed[0], a[0], atol=1e-5) and torch.allclose(mixed[1], b[1], atol=1e-5)
    with pytest.raises(Error, match="a, b, none"):
        round_trip(model, x0, classes=("c",))
    with pytest.raises(Error, match="without classes"):
        round_trip(tiny_model(), x0, classes=("a",))


@pytest.mark.parametrize(
    "schedule, prediction", [(Flow(), "flow"), (Discrete(zero_terminal_snr=True), "v"), (Discrete(T=10), "v")]
)
def test_what_cannot_be_inverted_is_refused(schedule, prediction):
    with pytest.raises(Error):
        round_trip(tiny_model(schedule, prediction), pictures())


def test_pictures_of_another_shape_are_refused():
    with pytest.raises(Error, match="3, 8, 8"):
        round_trip(tiny_model(), torch.zeros(1, 3, 16, 16))


def test_the_shell_inverts_files_and_says_how_like_they_are(trained_run: Path, tmp_path: Path):
    folder = picture_folder(tmp_path / "own", count=2)
    out = tmp_path / "o"
    said = kuosan("invert", trained_run, *sorted(folder.iterdir()), "--steps", 5, "--iterations", 3, "--out", out)
    assert said.code == 0 and said.out.count(" dB") == 3 and "25 network evaluations" in said.out, said
    assert sorted(path.name for path in out.iterdir()) == ["0000-0.png", "0001-1.png", "noise.safetensors"]
    copy = Path(shutil.copytree(trained_run, tmp_path / "run"))
    at = next((copy / "checkpoints").iterdir())
    before = sorted(at.iterdir())
    assert kuosan("invert", at, folder / "0.png", "--steps", 2).code == 0
    assert sorted(at.iterdir()) == before and (copy / "inversions" / "0000-0.png").is_file()
    refused("invert", trained_run, naming=["no pictures"])
    refused("invert", trained_run, tmp_path / "none.png", naming=["none.png"])
