"""What a new run gets where nothing is said, how every kind of run takes it, and how older runs go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch

import kuosan
from kuosan import config as trees
from kuosan import options
from kuosan.cli import verbs
from kuosan.errors import Error
from kuosan.options import Tree
from kuosan.storage import checkpoint
from kuosan.train import config
from kuosan.train.config import AutoencoderSettings, RunConfig, TrainConfig, recipe
from kuosan.train.job import TrainJob, settle
from kuosan.train.resolve import check_tree, resolve
from train.made_runs import begin, differences, go, images, outcome
from train.old_runs import CASES, SETTINGS, Affine

OLD = Path(__file__).parent / "run-47b8b58.zip"
NAMES = ("a", "b", "c")


def plain(said: Tree, shape: tuple[int, int, int] = (3, 32, 32), classes: tuple[str, ...] = (), **more: Any) -> Tree:
    return trees.plain(resolve(said, shape, classes=classes, **more))


def altered(old: Any, new: Any, prefix: str = "") -> dict[str, Any]:
    """What an older tree's keys are in a newer one where that differs; keys that only the newer one has are free."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {} if old == new else {prefix: (old, new)}
    return {key: pair for name in old for key, pair in altered(old[name], new.get(name), f"{prefix}.{name}").items()}


def chosen(tree: Tree) -> tuple[Any, ...]:
    """What the defaults decide of a discrete model: prediction, betas, weight, rate, its shape, batch, draws of t."""
    model, train = tree["model"], tree["train"]
    names = ("weight", "lr", "lr_shape", "batch", "t_sampling")
    return (model["prediction"], model["schedule"].get("betas"), *(train[name] for name in names))


SECOND = ("x0", "cosine", "min_snr", 1e-3, "cosine", 32, "uniform")
NEW = ("x0", "cosine", "simple", 1e-3, "cosine", 16, "logit_normal")


def test_with_nothing_said_a_run_has_the_network_and_rate_of_recipe_portraits() -> None:
    of_recipe = plain(trees.load(recipe("portraits")))
    lengths = {"max_steps", "warmup", "planned_steps", "save_every", "evaluate_every", "preview_every"}
    second = trees.differences(of_recipe, plain({"data": {"path": "portraits"}, "defaults": 2}))
    assert set(second) == {"defaults"} | {f"train.{name}" for name in lengths}
    now = trees.differences(of_recipe, plain({"data": {"path": "portraits"}}))
    assert set(now) == {f"train.{name}" for name in lengths | {"batch", "weight", "t_sampling"}}


LINEAR = {"schedule": {"beta_end": 0.01}}
RGB = (3, 32, 32)
AS_SECOND = ("min_snr", 1e-3, "cosine", 16, "uniform")  # where what was measured has no meaning, or is not asked for
MADE: list[tuple[Tree, tuple[int, int, int], tuple[Any, ...], tuple[Any, ...]]] = [  # ..., now, and by version 2
    ({}, RGB, NEW, SECOND),
    ({"model": {"network": {"kind": "dit"}}}, RGB, NEW, SECOND),
    ({"model": {"task": {"kind": "inpainting"}}}, RGB, NEW, SECOND),
    ({"model": {"task": {"kind": "super_resolution", "scale": 2}}}, RGB, NEW, SECOND),
    ({"model": {"text": {"kind": "bytes"}}}, RGB, NEW, SECOND),
    ({"model": {"schedule": {"T": 100}}}, RGB, NEW, SECOND),
    ({"model": {"schedule": {"kind": "discrete"}}}, RGB, NEW, SECOND),
    ({"model": LINEAR}, RGB, ("x0", "linear", *NEW[2:]), ("x0", "linear", *SECOND[2:])),
    ({"model": {"prediction": "x0"}}, RGB, NEW, SECOND),
    ({"model": {"prediction": "v"}}, RGB, ("v", "cosine", *AS_SECOND), ("v", *SECOND[1:])),
    ({"model": {"prediction": "eps"}}, RGB, ("eps", "cosine", *AS_SECOND), ("eps", *SECOND[1:])),
    ({"model": {"schedule": {"zero_terminal_snr": True}}}, RGB, NEW, ("x0", "cosine", "simple", *SECOND[3:])),
    (
        {"model": {"schedule": {"zero_terminal_snr": True}, "prediction": "v"}},
        RGB,
        ("v", "cosine", "simple", *AS_SECOND[1:]),
        ("v", "cosine", "simple", *SECOND[3:]),
    ),
    (
        {"train": {"loss": "vlb"}},
        RGB,
        ("x0", "cosine", "simple", *AS_SECOND[1:]),
        ("x0", "cosine", "simple", *SECOND[3:]),
    ),
    ({"train": {"loss": "hybrid"}, "model": {"learned_variance": True}}, RGB, ("x0", "cosine", *AS_SECOND), SECOND),
    ({"train": {"min_snr_gamma": 3.0}}, RGB, ("x0", "cosine", *AS_SECOND), SECOND),
    ({"train": {"weight": "min_snr"}}, RGB, ("x0", "cosine", *AS_SECOND), SECOND),
    ({"train": {"t_sampling": "importance"}}, RGB, (*NEW[:6], "importance"), (*SECOND[:6], "importance")),
    ({"train": {"t_sampling": "logit_normal"}}, RGB, NEW, (*SECOND[:6], "logit_normal")),
    ({"train": {"t_sampling": "continuous"}}, RGB, (*NEW[:6], "continuous"), (*SECOND[:6], "continuous")),
    ({"train": {"t_mean": 0.5}}, RGB, NEW, ()),  # which version 2 refuses: its t is drawn otherwise
    (
        {"train": {"lr": 3e-4, "batch": 7, "weight": "v"}},
        RGB,
        ("x0", "cosine", "v", 3e-4, "cosine", 7, "uniform"),
        ("x0", "cosine", "v", 3e-4, "cosine", 7, "uniform"),
    ),
    # its own weight and its own way of drawing levels are part of what these predict
    (
        {"model": {"schedule": {"kind": "karras"}}},
        RGB,
        ("edm", None, "simple", *AS_SECOND[1:]),
        ("edm", None, "simple", *SECOND[3:]),
    ),
    (
        {"model": {"schedule": {"kind": "flow"}}},
        RGB,
        ("flow", None, "simple", *AS_SECOND[1:]),
        ("flow", None, "simple", *SECOND[3:]),
    ),
    # a classifier has the generators' noise and nothing of their loss
    ({"train": {"objective": "classifier"}}, RGB, *2 * (("v", "cosine", "simple", *SECOND[3:]),)),
    (
        {"train": {"objective": "classifier"}, "model": {"network": {"kind": "classifier", "noisy": False}}},
        RGB,
        *2 * (("v", "linear", "simple", *SECOND[3:]),),
    ),
    ({"train": {"objective": "autoencoder"}}, RGB, *2 * (("v", "linear", "simple", *SECOND[3:]),)),
]


@pytest.mark.parametrize(("said", "shape", "expected", "by_second"), MADE)
def test_each_kind_of_run_gets_the_defaults_that_it_has_a_use_for(
    said: Tree, shape: tuple[int, int, int], expected: tuple[Any, ...], by_second: tuple[Any, ...]
) -> None:
    check_tree(said)
    assert chosen(plain(said, shape, NAMES)) == expected
    if by_second:
        assert chosen(plain({**said, "defaults": 2}, shape, NAMES)) == by_second
    else:
        with pytest.raises(Error):
            plain({**said, "defaults": 2}, shape, NAMES)


@pytest.mark.parametrize("name", CASES)
def test_what_could_be_trained_by_the_first_defaults_can_by_these(name: str) -> None:
    said, shape, size, classes = CASES[name]
    check_tree(said)
    resolve(said, shape, size, classes=classes)


@pytest.mark.parametrize("name", CASES)
def test_a_run_of_the_first_defaults_is_resolved_as_it_was_then(name: str) -> None:
    said, shape, size, classes = CASES[name]
    with ZipFile(OLD) as archive:
        then = json.loads(archive.read("configurations.json"))[name]
    for now in (
        resolve(said, shape, size, classes=classes, before=then),
        resolve(then, shape, size, classes=classes, before=then),
    ):
        assert altered(then, json.loads(json.dumps(trees.plain(now)))) == {}


PRESETS = {"quick", "quality"}  # which are laid over the defaults of the day, and name no images


@pytest.mark.parametrize("name", sorted({path.stem for path in recipe("portraits").parent.glob("*.yaml")} - PRESETS))
@pytest.mark.parametrize("side", [32, 128])
def test_a_recipe_says_everything_in_which_the_defaults_differ(name: str, side: int) -> None:
    tree = trees.load(recipe(name))
    if name.startswith("photographs-f"):
        side = 128  # of which they see windows
    if "latent" in name:
        tree = trees.merge(tree, {"model": CASES["latents"][0]["model"]})
    first, now = (plain({**tree, "defaults": number}, (3, side, side), NAMES) for number in (1, config.VERSION))
    assert set(trees.differences(first, now)) <= {"defaults", "train.planned_steps"}


def test_presets_choose_the_network_by_its_size_and_what_is_said_wins(tmp_path: Path) -> None:
    def settled(preset: str, **more: Any) -> tuple[Any, Any]:
        job = TrainJob(
            tmp_path / "run", preset, settings={"data": {"path": "portraits"}, **more.pop("said", {})}, **more
        )
        found = settle(job)
        return found.network, resolve(found.tree, (3, 32, 32), found.network or "small").train

    quick, quality = settled("quick"), settled("quality")
    assert (quick[0], quality[0]) == ("tiny", "medium")
    assert quick[1].max_steps < quality[1].max_steps and quick[1].batch < quality[1].batch
    assert quick[1].t_sampling == quality[1].t_sampling == "logit_normal", "the rest is as the defaults have it"
    network, train = settled("quick", network="large", said={"train": {"max_steps": 7}})
    assert (network, train.max_steps) == ("large", 7)
    assert settled("portraits")[0] is None


@pytest.mark.parametrize(("text", "words"), [("network: huge", "unknown --network 'huge'"), ("network: 3", "network")])
def test_a_file_that_names_no_size_of_a_network_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(Error, match=words):
        settle(TrainJob(tmp_path / "run", str(tmp_path / "own.yaml"), settings={"data": {"path": "portraits"}}))


def test_the_defaults_that_are_listed_are_those_of_a_new_run() -> None:
    listed = {option.key: option.default for members in verbs.groups().values() for option in members}
    whole = plain({})
    for key, value in config.GIVEN.items():
        assert listed[key] == value
        group: Any = whole
        for part in key.split("."):
            group = group[part]
        if key not in ("train.warmup", "train.autoencoder.critic_start"):
            assert group == value


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_model_that_enlarges_adds_to_the_enlarged_image_and_one_that_fills_holes_does_not(kind: str) -> None:
    def skips(**model: Any) -> Any:
        task = model.pop("task", {"kind": "super_resolution", "scale": 2})
        network = {"kind": kind, **model.pop("network", {})}
        return plain({"model": {"task": task, "network": network, **model}})["model"]["network"]["concat_skip"]

    assert skips()
    assert not skips(task={"kind": "inpainting"}), "docs/restoration.md says what that would cost"
    assert not skips(prediction="v"), "what is shown is an image, and so is x0 alone"
    assert not skips(schedule={"kind": "flow"})
    assert not skips(network={"concat_skip": False})


LEVELS = [  # side, multipliers, patch that goes with them
    (28, [1, 2, 4], 1),
    (28, [1, 2], 2),
    (24, [1, 2, 2, 2], 1),
    (32, [1, 2, 4, 4], 2),
    (8, [1, 2], 1),
    (256, [1, 1], 4),
]


@pytest.mark.parametrize(("side", "multipliers", "patch"), LEVELS)
@pytest.mark.parametrize("objective", ["diffusion", "classifier"])
def test_levels_that_are_asked_for_go_without_patches_where_the_sides_need_it(
    objective: str, side: int, multipliers: list[int], patch: int
) -> None:
    network = {"multipliers": multipliers, "attention": [False] * len(multipliers)}
    if objective == "classifier":
        network["kind"] = "classifier"
    said = {"train": {"objective": objective}, "model": {"network": network}}
    assert plain(said, (3, side, side), NAMES)["model"]["network"]["patch"] == patch


# --- shares of a run

SHARES: list[tuple[Any, int, int]] = [  # as typed, max_steps, steps
    ("0.1", 250, 25),
    ("0.25", 1000, 250),
    (0.3, 7, 2),
    ("0.999", 10, 9),
    ("0.1", 1, 0),
    ("0", 100, 0),
    (0.0, 100, 0),
    ("1", 100, 1),
    ("1.0", 100, 1),
    (100.0, 50, 100),
    ("200", 10, 200),
    (3, 1000, 3),
]


@pytest.mark.parametrize(("typed", "run", "expected"), SHARES)
def test_a_share_of_the_run_is_stored_in_steps(typed: Any, run: int, expected: int) -> None:
    tree, _ = options.parse([f"--train.warmup={typed}", f"--max-steps={run}"], RunConfig)
    assert resolve(tree, (3, 8, 8)).train.warmup == expected
    assert resolve({"train": {"warmup": typed, "max_steps": run}}, (3, 8, 8)).train.warmup == expected
    if expected < run:
        said = {"objective": "autoencoder", "max_steps": run, "autoencoder": {"critic_start": typed}}
        network = {"critic_layers": 2}
        tree = {"train": said, "model": {"network": network}}
        assert resolve(tree, (3, 32, 32)).train.autoencoder.critic_start == expected


@pytest.mark.parametrize("bad", [-1, -0.1, 1.5, float("inf"), float("nan")])
def test_what_is_neither_steps_nor_a_share_is_refused(bad: float) -> None:
    with pytest.raises(Error, match=rf"warmup = {bad}.*whole number of steps.*share of the run"):
        TrainConfig(warmup=bad)
    with pytest.raises(Error, match=rf"critic_start = {bad}.*whole number of steps.*share of the run"):
        AutoencoderSettings(critic_start=bad)


@pytest.mark.parametrize("steps", [1, 2, 9, 250, 20_000])
def test_a_run_of_any_length_starts_its_discriminator_before_it_ends(steps: int) -> None:
    said = {"train": {"objective": "autoencoder", "max_steps": steps}}
    train = resolve(said, (3, 64, 64)).train
    assert train.autoencoder.critic_start == steps // 2 < steps
    assert train.warmup == steps // 10


def test_a_run_that_is_extended_keeps_the_steps_its_shares_were(tmp_path: Path) -> None:
    data = images(tmp_path / "images.npz")
    said = {"train.warmup": 0.5, "train.max_steps": 6}
    assert go(tmp_path / "run", data, said) == 0
    for more in ({**said, "train.max_steps": 10}, {"train.warmup": 3, "train.max_steps": 12}):
        assert go(tmp_path / "run", data, more) == 0
        train = checkpoint.load_config(tmp_path / "run")["train"]
        assert (train["warmup"], train["planned_steps"]) == (3, 6)
        assert train["max_steps"] == more["train.max_steps"]
    with pytest.raises(Error, match=r"train\.warmup: the run has 3, now 1"):
        begin(tmp_path / "run", data, {"train.warmup": 0.25, "train.max_steps": 12})


def test_a_run_of_no_step_yet_takes_its_shares_of_what_is_asked_for_now(tmp_path: Path) -> None:
    data = images(tmp_path / "images.npz")
    for steps in (4, 100):
        run = begin(tmp_path / "run", data, {"train.warmup": 0.5, "train.max_steps": steps})
        assert run.config.train.warmup == steps // 2
        assert run.lock is not None
        run.lock.release()


# --- older runs


def test_a_run_of_47b8b58_goes_on_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ZipFile(OLD) as archive:
        archive.extractall(tmp_path / "old")
    (tmp_path / "old" / "whole").rename(tmp_path / "whole")
    (tmp_path / "old" / "configurations.json").unlink()
    monkeypatch.chdir(tmp_path)
    images(Path("images.npz"))
    then = checkpoint.load(tmp_path / "old")
    kuosan.fit(Affine(), "images.npz", out="old", **SETTINGS)
    now, whole = checkpoint.load(tmp_path / "old"), checkpoint.load(tmp_path / "whole")
    assert (then.step, now.step) == (5, 9)
    assert altered(then.config, now.config) == {}
    assert (now.config["defaults"], now.config["train"]["planned_steps"]) == (1, 0)
    for part in ("network", "ema"):
        before, after = getattr(whole, part), getattr(now, part)
        assert before.keys() == after.keys()
        for name in before:  # to rounding: it was written on another machine
            torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(Error, match=r"train\.clip: the run has 1\.0, now 0\.5"):
        kuosan.fit(Affine(), "images.npz", out="old", **SETTINGS, clip=0.5)


def test_keys_that_an_old_configuration_leaves_out_are_what_they_were(tmp_path: Path) -> None:
    with ZipFile(OLD) as archive:
        whole = json.loads(archive.read("configurations.json"))["small of 32"]
    few = {"data": {"path": "x"}, "model": {"shape": whole["model"]["shape"], "network": whole["model"]["network"]}}
    now = plain({**few}, (1, 32, 32), before=few)
    assert altered(trees.merge(whole, few), now) == {}
    assert trees.plain(trees.build(RunConfig, few))["train"]["lr"] == 2e-4, "and where a stored model is only opened"


def test_defaults_of_a_newer_kuosan_are_refused() -> None:
    for wrong in (0, config.VERSION + 1):
        with pytest.raises(Error, match=f"defaults = {wrong} is unknown: 1 to {config.VERSION}"):
            check_tree({"defaults": wrong})


def test_a_new_run_stopped_and_resumed_by_the_same_words_is_whole(tmp_path: Path) -> None:
    data = images(tmp_path / "images.npz")
    said = {"train.max_steps": 6, "train.warmup": 0.34, "train.lr_shape": "cosine"}
    go(tmp_path / "whole", data, said)
    run = begin(tmp_path / "parts", data, said)
    assert run.lock is not None
    run.lock.release()
    go(tmp_path / "parts", data, said)
    assert not differences(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))
