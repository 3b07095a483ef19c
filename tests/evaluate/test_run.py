"""An evaluation measures what it says, goes on after a kill, and refuses before it makes anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured import Heard, folder, images, kept_images, kept_rows, network
from PIL import Image

from kuosan.data.pixels import to_uint8
from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error
from kuosan.evaluate.result import Result
from kuosan.evaluate.run import measure
from kuosan.events import Event
from kuosan.metrics.kid import kid, kid_difference
from kuosan.sample import pipeline
from kuosan.sample.generate import sample
from kuosan.sample.request import Request
from shell import tree

SMALL: dict[str, Any] = {"n": 10, "batch": 4, "steps": 2, "precision": "fp32", "metrics": ("kid",)}


@pytest.fixture
def run(plain_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_run, tmp_path / "run"))


def evaluated(target: Path, heard: Heard | None = None, **options: Any) -> Result:
    return measure(target, network=network(), report=heard, **{**SMALL, **options})


def kept(run: Path) -> dict[str, bytes]:
    """What says which images are kept, by the name of their part."""
    found = tree(run / "evaluations" / "pictures")
    return {name: data for name, data in found.items() if name.endswith(".part") and "features" not in name}


def test_the_figure_of_a_run_is_kid_of_the_images_that_sampling_gives(run: Path) -> None:
    found = evaluated(run, n=8, batch=8)
    full = choose(ComputeConfig(precision="fp32"))
    made = sample(pipeline.load(run, compute=full).model, Request(n=8, steps=2, batch=8))
    rows = network()(torch.from_numpy(np.moveaxis(to_uint8(made.numpy()), -1, 1).copy())).numpy()
    real = [kept_rows(path, "rows") for path in sorted((run / "evaluations" / "features").glob("*/*"))]
    reference = next(each for each in real if len(each) >= 8)
    assert found.real == 8 and found.found[0].n == 8
    assert found.figures["kid"].value == pytest.approx(kid(rows, reference[:8]).value, abs=1e-6)


def test_images_of_the_same_source_are_no_further_apart_than_the_floor(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", 90, seed=1), folder(tmp_path / "other", 90, seed=2)
    found = measure(one, network=network(), against=str(other), metrics=("kid", "prdc"), out=str(tmp_path / "out"))
    assert found.found[0].n == 90 and found.real == 90
    assert abs(found.figures["kid"].value) < 3 * found.figures["kid"].error
    assert set(found.figures) == {"kid", "precision", "recall", "density", "coverage"} == set(found.floor)


def test_other_images_are_further_apart_than_the_floor(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", 60, seed=1), folder(tmp_path / "other", 60, seed=2)
    shutil.rmtree(one / "light")
    found = measure(one, network=network(), against=str(other), metrics=("kid",), out=str(tmp_path / "out"))
    kid, floor = found.figures["kid"], found.floor["kid"]
    assert kid.value > 2 * kid.error and kid.value > 5 * abs(floor.value)


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_images(run: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    uninterrupted = evaluated(whole)
    with pytest.raises(KeyboardInterrupt):
        evaluated(run, Heard(until=13))
    assert len(kept(run)) == 1  # the first batch of four; the second was under way
    heard = Heard()
    again = evaluated(run, heard)
    assert min(heard.done) > 8  # 4 of 10 images, two evaluations each, were not made again
    assert again.figures == uninterrupted.figures
    assert len(kept_images(run)) == 10 and np.array_equal(kept_images(run), kept_images(whole))


def test_a_larger_n_only_adds_images(run: Path) -> None:
    evaluated(run)
    before = kept(run)
    heard = Heard()
    found = evaluated(run, heard, n=14)
    after = kept(run)
    assert before.items() < after.items() and len(after) == len(before) + 1
    assert found.found[0].n == 14 and found.found[0].seeds == (0, 13)


def test_the_same_evaluation_again_makes_nothing(run: Path) -> None:
    first = evaluated(run)
    heard = Heard()
    assert evaluated(run, heard).figures == first.figures
    assert heard.done == []


def test_the_features_of_real_images_are_computed_once(run: Path) -> None:
    calls: list[int] = []
    measure(run, network=network(calls), **{**SMALL, "n": 8})
    first = sum(calls)
    measure(run, network=network(calls), **{**SMALL, "n": 8, "steps": 3})
    assert first == 8 + 8 + 8 and sum(calls) == first + 8  # reference, made, and the floor behind the reference


def test_features_without_a_hash_are_never_kept(run: Path) -> None:
    nameless = network()
    object.__setattr__(nameless, "hash", "")
    measure(run, network=nameless, **SMALL)
    assert not list((run / "evaluations").rglob("rows.rows")) and not list((run / "evaluations").rglob("*.npy"))


@pytest.mark.parametrize("what", ["the part", "its rows"])
@pytest.mark.parametrize("spoil", [lambda data: data[:60], lambda data: data[:-900] + b"\xfe" + data[-899:]])
def test_a_damaged_part_is_said_and_only_its_images_are_made_again(run: Path, spoil: Any, what: str) -> None:
    first = evaluated(run)
    part = sorted(run / "evaluations" / "pictures" / name for name in kept(run))[1]
    good, target = kept_images(run), part if what == "the part" else part.with_name("images.rows")
    target.write_bytes(spoil(target.read_bytes()))
    heard = Heard()
    assert evaluated(run, heard).figures == first.figures
    assert any(part.name in line and "damaged" in line for line in heard.said) or "its rows" in what
    assert any("kept images" in line and "damaged" in line for line in heard.said)
    assert len(set(heard.done)) > 0 and np.array_equal(kept_images(run), good)


@pytest.mark.parametrize("spoilt", [False, True])
def test_images_and_features_of_an_older_cache_are_taken_over(run: Path, spoilt: bool) -> None:
    calls: list[int] = []
    first = measure(run, network=network(), **SMALL)
    store = next((run / "evaluations" / "pictures").iterdir())
    images, about = kept_rows(store), json.loads((store / "key.json").read_text())["key"]
    places = {path.parent: kept_rows(path.parent, "rows") for path in (run / "evaluations").rglob("rows.rows")}
    spans = {
        place: [tuple(map(int, path.stem.split("-"))) for path in place.glob("*.part")] for place in (store, *places)
    }
    for place in spans:
        for path in [path for path in place.iterdir() if path.is_file()]:
            path.unlink()
    (store / "about.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    for begin, end in spans[store]:
        with (store / f"{begin:08d}-{end:08d}.npz").open("wb") as stream:
            np.savez(stream, pictures=images[begin:end], seconds=np.float64(0.5))
    for place, features in places.items():
        for begin, end in spans[place]:
            np.save(place / f"{begin:08d}.npy", features[begin:end])
    if spoilt:
        part = sorted(store.glob("*.npz"))[-1]
        part.write_bytes(part.read_bytes()[:-100])
    heard = Heard()
    again = measure(run, network=network(calls), report=heard, **SMALL)
    assert again.figures == first.figures and np.array_equal(kept_rows(store), images)
    assert calls == [] and bool(heard.done) == spoilt
    assert any("damaged" in line for line in heard.said) == spoilt
    assert not [*run.rglob("*.npy"), *run.rglob("*.npz"), *run.rglob("about.json")]
    assert spoilt or again.found[0].seconds == 0.5


def test_kept_images_of_other_settings_are_refused(run: Path) -> None:
    evaluated(run)
    about = next((run / "evaluations" / "pictures").glob("*/key.json"))
    about.write_text(about.read_text().replace('"steps": 2', '"steps": 3'))
    with pytest.raises(Error, match=r"key\.json is damaged or was edited, so what lies beside it is unknown: delete"):
        evaluated(run)


@pytest.mark.parametrize("change", [{"steps": 3}, {"seed": 5}, {"sampler": "ddim"}, {"clip": False}])
def test_images_of_other_settings_are_kept_apart(run: Path, change: dict[str, Any]) -> None:
    evaluated(run)
    evaluated(run, **change)
    assert len(list((run / "evaluations" / "pictures").iterdir())) == 2


def test_a_default_written_out_and_another_batch_use_the_same_images(run: Path) -> None:
    evaluated(run)
    heard = Heard()
    evaluated(run, heard, sampler="dpmpp_2m", spacing="trailing", batch=7)
    assert heard.done == []


def test_the_estimate_of_time_is_told_once_after_the_first_batch(run: Path) -> None:
    heard = Heard()
    evaluated(run, heard, sweep=("clip=true", "no"))
    assert len(heard.seconds) == 1 and heard.seconds[0] > 0


def test_a_result_says_all_that_its_figures_depend_on(run: Path) -> None:
    found = evaluated(run, seed=3)
    told = json.loads((Path(str(found.folder)) / "result.json").read_text())
    assert told["real"] == 10 and told["found"][0]["n"] == 10 and told["found"][0]["seeds"] == [3, 12]
    assert told["features"] == {"name": "corners", "hash": "1" * 64, "dim": 12, "size": 0}
    assert told["resize"] == "not resized" and told["file_format"].startswith("8-bit")
    assert told["weights"] == pipeline.load(run).weights and len(told["fingerprint"]) == 32
    assert told["found"][0]["sampler"] == "dpm_solver_2m" and told["found"][0]["evaluations"] == 2
    assert told["found"][0]["seconds"] > 0 and told["found"][0]["request"]["guidance"] is None
    assert told["found"][0]["figures"]["kid"].keys() == {"value", "error"}
    text = (Path(str(found.folder)) / "table.md").read_text()
    assert "FID" not in text and "KID x 1000" in text and "real images" in text
    assert {"sheet.png", "real.png", "table.csv"} <= set(tree(Path(str(found.folder))))


def test_images_that_are_no_longer_those_trained_on_are_refused_unless_forced(run: Path, tmp_path: Path) -> None:
    moved = folder(tmp_path / "moved", 61)
    before = tree(run)
    with pytest.raises(Error, match=r"does not hold the images.*--force"):
        evaluated(run, data=str(moved))
    assert tree(run) == before
    found = evaluated(run, data=str(moved), force=True, out=str(tmp_path / "out"))
    assert "does not hold" in found.warnings[0] and "does not hold" in (tmp_path / "out" / "table.md").read_text()


def test_images_that_have_moved_are_found_by_data(run: Path, data: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(data, tmp_path / "elsewhere"))
    assert evaluated(run, data=str(moved)).warnings == ()


def test_held_out_images_have_training_images_as_their_floor(run: Path) -> None:
    found = evaluated(run, against="held_out")
    assert found.against == "held-out images" and "training images against" in found.floor_of


def test_a_run_is_compared_with_other_images_in_its_own_size(run: Path, tmp_path: Path) -> None:
    found = evaluated(run, against=str(folder(tmp_path / "other", 30, seed=4)))
    assert found.real == 10 and str(tmp_path / "other") in found.against


def test_too_few_images_for_a_frechet_distance_are_refused_before_any_is_made(run: Path) -> None:
    with pytest.raises(Error, match="Use KID"):
        evaluated(run, metrics=("frechet",))
    assert not (run / "evaluations").exists()
    assert "frechet" in evaluated(run, metrics=("frechet",), force=True).figures
    assert "frechet" not in evaluated(run, metrics=()).figures  # nor is it taken unasked


def test_a_checkpoint_is_measured_and_its_result_lies_in_the_run(run: Path) -> None:
    found = evaluated(next((run / "checkpoints").iterdir()))
    assert str(found.folder).startswith(str((run / "evaluations").resolve()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give --against PATH"),
        ({"against": "x", "steps": 3}, "steps has no effect"),
        ({"against": "x", "sweep": ("steps=1", "2")}, "has no effect"),
        ({"against": "x", "likelihood": True}, "has no effect"),
    ],
)
def test_what_a_folder_of_images_cannot_be_asked_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(Error, match=message):
        measure(folder(tmp_path / "pictures", 6), network=network(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("labels",)}, "needs a judge"),
        ({"metrics": ("fid",)}, "metric 'fid': say frechet"),
        ({"judge": "x", "metrics": ("kid",)}, "no effect without the labels metric"),
        ({"real": 1000}, "there are"),
        ({"data": "x", "against": "y"}, "no effect"),
        ({"between": (1, 2)}, "independent draws"),
        ({"features": "lite1"}, "unknown feature network"),
        ({"nosuch": 1}, "unknown key nosuch"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_made(
    run: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(Error, match=message):
        evaluated(run, **options)
    assert not (run / "evaluations").exists()


def test_a_config_and_settings_beside_it_are_refused(run: Path) -> None:
    from kuosan.evaluate.config import EvaluateConfig

    with pytest.raises(Error, match="not both"):
        measure(run, EvaluateConfig(), n=3)


def test_a_model_that_repeats_its_training_images_is_found_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kuosan.evaluate import sampling

    learnt = np.moveaxis(images(150), -1, 1)

    def by_heart(model: Any, each: Any, first: int, count: int, *_: Any) -> Generator[Event, None, np.ndarray]:
        yield from ()
        return learnt[first : first + count]

    monkeypatch.setattr(sampling, "_batch", by_heart)
    found = evaluated(run, n=60, metrics=("kid", "memorisation"))
    told = found.found[0].details["memorisation"]
    assert told["copies"] > 30 and told["flagged"]
    assert found.figures["nearer"].value > 0.7
    assert "exact copies" in found.markdown()
    with Image.open(Path(str(found.folder)) / "nearest.png") as sheet:
        assert sheet.width > 4 * 100  # an image and its three nearest, enlarged for people


def test_memorisation_is_looked_for_unasked_where_training_images_are_few_but_not_in_sweeps(run: Path) -> None:
    options = {name: value for name, value in SMALL.items() if name not in ("metrics", "steps")} | {"n": 20}
    assert "nearer" in measure(run, network=network(), steps=1, **options).figures
    assert "nearer" not in measure(run, network=network(), sweep=("steps=1", "2"), **options).figures


def test_differences_of_a_sweep_are_paired_by_seed(run: Path) -> None:
    unswept = {name: value for name, value in SMALL.items() if name != "steps"}
    found = measure(run, network=network(), sweep=("steps=1", "3"), **unswept)
    first, second = found.found
    assert first.more == {} and set(second.more) == {"kid"}
    stores = {path.name.split("-")[1]: path for path in (run / "evaluations" / "pictures").iterdir()}
    rows = {}
    for steps, store in stores.items():
        rows[steps] = network()(torch.from_numpy(kept_rows(store))).numpy()
    real = [kept_rows(path, "rows") for path in sorted((run / "evaluations" / "features").glob("*/*"))]
    reference = max(real, key=len)[:10]
    expected = kid_difference(rows["3"], rows["1"], reference)
    assert second.more["kid"].value == pytest.approx(expected.value, abs=1e-9)
    assert second.more["kid"].error == pytest.approx(expected.error, abs=1e-9)


def test_before_training_images_are_read_it_is_said_how_long_that_takes_and_how_to_leave_it_out(run: Path) -> None:
    options = {name: value for name, value in SMALL.items() if name not in ("metrics", "steps")} | {"n": 20, "steps": 1}
    heard = Heard()
    found = measure(run, network=network(), report=heard, **options)
    (line,) = [text for text in heard.said if text.startswith("memorisation: ")]
    trained = found.found[0].details["memorisation"]["training_pictures"]
    assert f"all {trained} training images" in line and " still to be read, about " in line
    assert line.endswith("(--metrics kid,frechet,prdc leaves it out)")
    again = Heard()
    measure(run, network=network(), report=again, **(options | {"steps": 2}))
    assert not any(text.startswith("memorisation: ") for text in again.said), "all is kept from before"
    without = Heard()
    measure(run, network=network(), report=without, **(options | {"steps": 2, "metrics": ("kid", "prdc")}))
    assert without.said == []
