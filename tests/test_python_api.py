"""docs/python.md is true: its code runs, and gives what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import kuosan
from kuosan.data.pixels import to_uint8
from kuosan.sample.pipeline import pil_images

PAGE = Path(__file__).parent.parent / "docs" / "python.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the names of docs/python.md are after each of its sections' code, run in order as one reads it."""
    home = tmp_path_factory.mktemp("page")
    known: dict[str, Any] = {}
    after: dict[str, dict[str, Any]] = {}
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for section in sections:
            for code in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL):
                exec(compile(code, str(PAGE), "exec"), known)
            after[section.splitlines()[0]] = dict(known)
    known["home"] = home
    after["home"] = {"path": home}
    return after


def test_ones_own_network_and_data_set_are_trained_and_sampled(page: dict[str, dict[str, Any]]) -> None:
    names = page["Your own network and data set"]
    assert names["images"].shape == (4, 1, 16, 16) and names["images"].dtype == torch.float32
    assert names["images"].abs().max() <= 1 + 1e-5
    again = kuosan.load(page["home"]["path"] / "discs", network=names["Small"]()).sample(4, seed=7, steps=10)
    assert torch.equal(again, names["images"])


def test_the_same_call_goes_on_and_init_starts_anew(
    page: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(page["home"]["path"])
    names = page["Your own network and data set"]
    small, discs = names["Small"], names["Discs"]
    kuosan.fit(small(), discs(), out="discs", max_steps=22, batch=8, warmup=2)
    assert "going on from step 20 of 22" in capsys.readouterr().out
    kuosan.fit(small(), discs(), out="more", init="discs", max_steps=1, batch=8)
    assert "averaged weights of discs" in capsys.readouterr().out


def test_a_run_of_ones_own_network_asks_for_it(page: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(kuosan.Error, match=r"your own \(Small\)"):
        kuosan.load(page["home"]["path"] / "discs")
    with pytest.raises(kuosan.Error, match="do not fit the network"):
        kuosan.load(page["home"]["path"] / "discs", network=page["The U-Net"]["Small"](width=16))
    with pytest.raises(kuosan.Error, match="leave it out"):
        kuosan.load(page["home"]["path"] / "discs-unet", network=nn.Identity())


def test_the_unet_is_trained_sampled_and_started_from_an_image(page: dict[str, dict[str, Any]]) -> None:
    names = page["The U-Net"]
    assert names["model"].model.config.prediction == "flow"  # the schedule's usual one
    assert names["images"].shape == names["nearer"].shape == names["preview"].shape == (4, 1, 16, 16)
    assert not torch.equal(names["images"], names["nearer"])


def test_a_job_is_planned_and_run(page: dict[str, dict[str, Any]]) -> None:
    names = page["Jobs"]
    assert [path.name for path in names["made"].files] == [f"seed-{seed:08d}.png" for seed in range(7, 11)]
    assert all((page["home"]["path"] / path).is_file() for path in names["made"].files)


def test_ones_own_schedule_and_sampler_work_with_kuosans_pieces(page: dict[str, dict[str, Any]]) -> None:
    names = page["The parts"]
    assert isinstance(names["schedule"], kuosan.diffusion.schedule.Schedule)
    assert names["x"].shape == (4, 1, 16, 16) and names["x"].isfinite().all()
    assert names["loss"].isfinite()
    denoise, grid = names["denoise"], names["schedule"].grid(6)
    start = torch.linspace(-2, 2, 256).reshape(1, 1, 16, 16)
    with torch.no_grad():
        *_, (mine, _) = names["my_euler"](denoise, start, grid, None)
        *_, (theirs, _) = kuosan.SAMPLERS["euler"](denoise, start, grid, None)
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_noise_by_seed_and_the_rooms_of_the_mathematics(page: dict[str, dict[str, Any]]) -> None:
    names = page["The parts"]
    assert names["x"].shape == (4, 1, 16, 16) and names["x"].isfinite().all()
    level = names["schedule"].at(0.5)
    assert torch.equal(names["held"](names["data"][:4], level).x0, names["data"][:4])  # a mask that keeps all


def test_what_users_have_already_is_taken_as_it_is(page: dict[str, dict[str, Any]]) -> None:
    names = page["What you have already"]
    assert names["x"].shape == (4, 1, 16, 16) and names["x"].isfinite().all()
    assert names["walk"] is kuosan.SAMPLERS["dpm_solver_2m"] is kuosan.SAMPLERS["DPM++ 2M"]
    x, level = torch.zeros(4, 1, 16, 16), names["schedule"].at_t(500)
    label = torch.tensor([0, 1, 2, 2])
    with torch.no_grad():
        theirs = names["unet"](x, 500, class_labels=label).sample
        ours = names["denoise"](x, level).x0
    alpha_bar = names["scheduler"].alphas_cumprod[500]
    torch.testing.assert_close(ours, (x - (1 - alpha_bar).sqrt() * theirs) / alpha_bar.sqrt(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_stps": 3}, "Did you mean --max-steps"),
        ({"max_steps": 0}, "1 or more"),
        ({"betas": (0.9, 0.99)}, "write one of them in full"),
        ({"schedule": "cosine"}, "model.schedule.betas"),
    ],
)
def test_a_wrong_setting_is_refused_as_in_the_shell(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(kuosan.Error, match=said):
        kuosan.fit(None, "portraits", tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_wrong_options_of_sample_are_refused(page: dict[str, dict[str, Any]]) -> None:
    model = page["The U-Net"]["model"]
    for options, said in (
        ({"stps": 3}, "Did you mean steps"),
        ({"sampler": "dimm"}, "did you mean 'ddim'"),
        ({"strength": 0.5}, "strength = 0.5 has no effect without image"),
        ({"start": torch.zeros(3, 16, 16)}, "resize it to 16 x 16 with 1 channel"),
    ):
        with pytest.raises(kuosan.Error, match=said):
            model.sample(2, **options)


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(kuosan.Error, match="does not exist"):
        kuosan.load(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of two classes."""
    home = tmp_path_factory.mktemp("bare") / "my photos"
    for i in range(12):
        place = home / ("cat", "dog")[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 90, 200 - 10 * i)).save(place)
    return home


SMALL: dict[str, Any] = {
    "size": "tiny",
    "max_steps": 1,
    "batch": 2,
    "preview_every": 0,
    "evaluate_every": 0,
    "workers": 0,
}


@pytest.fixture(scope="module")
def trained(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> kuosan.Pipeline:
    """A model of these classes, by a call with the images alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("home"))
        run = kuosan.fit(str(labelled), labels=True, **SMALL)
        assert run == Path("runs/my-photos"), "as the shell calls it"
        return kuosan.load(run)


def test_a_folder_alone_is_trained_on_as_the_shell_does(trained: kuosan.Pipeline) -> None:
    assert trained.model.config.task.class_names == ("cat", "dog")


@pytest.mark.parametrize("at", ["first", "as data"])
def test_a_data_set_alone_goes_where_it_always_went(
    at: str, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = [Image.open(path).copy() for path in sorted(labelled.rglob("*.png"))]
    run = kuosan.fit(images, **SMALL) if at == "first" else kuosan.fit(data=images, **SMALL)
    assert run == Path("run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("photos", "runs/mine"), "'photos' is a path and no network.*one or the other as data="),
        (("photos", nn.Identity()), "no network.*the other way round: kuosan.fit\\(network, data, out\\)"),
        ((), "no images given: pass data="),
    ],
)
def test_a_call_that_mixes_up_its_arguments_is_told_how_to_write_it(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(kuosan.Error, match=said):
        kuosan.fit(*arguments)


@pytest.mark.parametrize(
    "classes", [1, "1", "dog", [1], (1, 1), ["dog"], torch.tensor(1), torch.tensor([1, 1]), np.int64(1), np.array([1])]
)
def test_classes_are_numbers_or_names_one_or_several(classes: Any, trained: kuosan.Pipeline) -> None:
    made = trained.sample(2, steps=1, classes=classes)
    assert torch.equal(made, trained.sample(2, steps=1, classes=("dog",)))
    assert kuosan.Request(classes=classes).classes[0] in ("1", "dog")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": 1.5}, "names or numbers of classes"),
        ({"classes": True}, "names or numbers of classes"),
        ({"classes": 7}, "7"),
        ({"n": "a red heart"}, r"sample\(4, prompt='a red heart'\)"),
        ({"output_type": "numpy"}, "unknown output_type 'numpy'.*tensor, pil"),
    ],
)
def test_what_cannot_be_sampled_is_told_how_to_write_it(
    options: dict[str, Any], said: str, trained: kuosan.Pipeline
) -> None:
    with pytest.raises(kuosan.Error, match=said):
        trained.sample(**options)


def test_images_are_pillows_on_request_with_the_bytes_that_the_shell_writes(trained: kuosan.Pipeline) -> None:
    made = trained.sample(2, steps=1, seed=3, output_type="pil")
    assert [image.mode for image in made] == ["RGB", "RGB"] and made[0].size == (8, 8)
    wanted = to_uint8(trained.sample(2, steps=1, seed=3).numpy())
    assert all((np.asarray(image) == pixels).all() for image, pixels in zip(made, wanted, strict=True))
    small = torch.zeros(1, 3, 4, 4)
    (restored,) = trained.restore(small, upscale=2, steps=2, classes=0, output_type="pil")
    assert restored.size == (8, 8)
    assert pil_images(torch.zeros(1, 1, 4, 6))[0].mode == "L"
