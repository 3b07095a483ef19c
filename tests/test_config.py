"""Trees of plain values into dataclasses and back, strictly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kuosan import config, options
from kuosan.data.config import DataConfig
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error
from kuosan.models.model import ModelConfig, OwnNetwork
from kuosan.networks.config import UNetConfig
from kuosan.sample.request import FINITE, Request
from kuosan.train.config import SHORT, RunConfig, TrainConfig
from kuosan.train.resolve import USUAL_PREDICTION, resolve

SCHEDULES = st.one_of(
    st.builds(Discrete, betas=st.sampled_from(["linear", "scaled_linear", "sigmoid"]), T=st.integers(2, 4000),
              zero_terminal_snr=st.booleans()),
    st.builds(Karras, sigma_min=st.floats(1e-4, 0.1), sigma_max=st.floats(1, 200), rho=st.floats(1, 9)),
    st.builds(Flow, shift=st.floats(0.1, 9)),
)  # fmt: skip
NETWORKS = st.one_of(
    st.builds(UNetConfig, channels=st.sampled_from([32, 64]), blocks=st.integers(1, 3), dropout=st.floats(0, 0.9)),
    st.builds(OwnNetwork, name=st.text(max_size=9)),
)
RUNS = st.builds(
    RunConfig,
    data=st.builds(DataConfig, path=st.text(min_size=1).filter(str.strip), flip=st.booleans(),
                   hold_out=st.none() | st.floats(0, 0.9)),
    model=st.builds(ModelConfig, shape=st.none() | st.just((3, 32, 32)), network=NETWORKS, schedule=SCHEDULES),
    train=st.builds(TrainConfig, lr=st.floats(1e-9, 1), betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
                    max_steps=st.integers(1, 10**9)),
)  # fmt: skip


@settings(deadline=None)
@given(RUNS)
def test_a_configuration_survives_plain_values_yaml_and_json(run: RunConfig) -> None:
    tree = config.plain(run)
    assert config.build(RunConfig, tree) == run
    assert config.build(RunConfig, yaml.safe_load(config.dump(tree))) == run
    assert config.build(RunConfig, json.loads(json.dumps(tree))) == run
    assert config.differences(tree, config.plain(config.build(RunConfig, tree))) == {}


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    tree = config.plain(RunConfig())
    (tmp_path / "c.yaml").write_text(config.dump(tree), encoding="utf-8")
    assert config.load(tmp_path / "c.yaml") == tree


def test_words_and_yaml_without_a_dot_become_the_numbers_they_mean() -> None:
    built = config.build(TrainConfig, {"max_steps": "500", "lr": "1e-3", "betas": ["0.5", "0.9"]})
    assert (built.max_steps, built.lr, built.betas) == (500, 1e-3, (0.5, 0.9))
    assert config.build(TrainConfig, yaml.safe_load("lr: 1e-3")).lr == 1e-3  # YAML 1.1 reads a text there
    assert config.build(DataConfig, {"size": "none"}).size is None


def test_a_union_is_chosen_by_kind_and_the_first_without() -> None:
    assert config.build(ModelConfig, {"schedule": {"kind": "karras", "sigma_max": 40}}).schedule == Karras(sigma_max=40)
    assert config.build(ModelConfig, {"schedule": {"T": 10}}).schedule == Discrete(T=10)
    assert config.build(ModelConfig, {"schedule": Flow()}).schedule == Flow()


def test_merging_lays_later_trees_over_earlier_ones() -> None:
    below = {"a": 1, "b": {"c": 2, "d": [1]}}
    assert config.merge(below, {"b": {"d": [2, 3]}}) == {"a": 1, "b": {"c": 2, "d": [2, 3]}}
    assert below == {"a": 1, "b": {"c": 2, "d": [1]}}


def test_another_kind_drops_the_old_kinds_settings() -> None:
    below = {"s": {"kind": "discrete", "T": 10}}
    assert config.merge(below, {"s": {"kind": "flow"}}) == {"s": {"kind": "flow"}}
    assert config.merge(below, {"s": {"kind": "discrete", "x": 1}}) == {"s": {"kind": "discrete", "T": 10, "x": 1}}


def test_differences_are_dotted_and_treat_lists_and_tuples_alike() -> None:
    old, new = {"a": {"b": 1, "c": (1, 2)}, "d": 1}, {"a": {"b": 2, "c": [1, 2]}, "e": 3}
    assert config.differences(old, new) == {"a.b": (1, 2), "d": (1, None), "e": (None, 3)}


@pytest.mark.parametrize(
    ("cls", "tree", "said"),
    [
        (RunConfig, {"train": {"max_stps": 1}}, "unknown key train.max_stps. Did you mean train.max_steps?"),
        (RunConfig, {"trian": {}}, "unknown key trian. Did you mean train?"),
        (RunConfig, {7: {}}, "unknown key 7"),
        (RunConfig, {"train": 5}, "train = 5 is not allowed"),
        (RunConfig, {"train": None}, "train = None is not allowed"),
        (RunConfig, {"train": {"lr": True}}, "train.lr = true is not allowed: expected float"),
        (RunConfig, {"train": {"lr": "fast"}}, "train.lr = 'fast' is not allowed"),
        (RunConfig, {"train": {"lr": float("inf")}}, "finite"),
        (RunConfig, {"train": {"max_steps": 2.5}}, "train.max_steps = 2.5"),
        (RunConfig, {"train": {"betas": [1]}}, "train.betas"),
        (RunConfig, {"model": {"network": {"multipliers": ["a"]}}}, "model.network.multipliers[0]"),
        (RunConfig, {"model": {"schedule": {"kind": "karas"}}}, "model.schedule.kind = 'karas' is unknown"),
        (RunConfig, {"model": {"schedule": {"kind": "flow", "T": 5}}}, "model.schedule.T (kind flow)"),
        (RunConfig, {"model": {"schedule": {"kind": ["flow"]}}}, "is unknown; allowed: discrete, karras, flow"),
        (RunConfig, {"data": {"path": ["a"]}}, "data.path"),
        (Request, {"n": "many"}, "n = 'many'"),
        (Request, {"between": [1, 2, 3]}, "between"),
    ],
)
def test_what_makes_no_configuration_is_refused_by_name(cls: type, tree: dict[Any, Any], said: str) -> None:
    with pytest.raises(Error) as caught:
        config.build(cls, tree)
    assert said in str(caught.value)


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["data", "model", "schedule", "kind", "train", "lr", "x"]),
                                      inner, max_size=3), max_leaves=12))  # fmt: skip
def test_any_tree_is_built_or_refused_but_never_breaks(tree: Any) -> None:
    if not isinstance(tree, dict):
        tree = {"model": tree}
    try:
        assert isinstance(config.build(RunConfig, tree), RunConfig)
    except Error as error:
        assert str(error)


@pytest.mark.parametrize(("kind", "prediction"), ({**USUAL_PREDICTION, "discrete": "x0"}).items())
def test_the_default_prediction_follows_the_schedule_unless_said(kind: str, prediction: str) -> None:
    tree = {"model": {"schedule": {"kind": kind}}}
    assert resolve(tree, (3, 32, 32)).model.prediction == prediction
    assert resolve({"model": {**tree["model"], "prediction": "v"}}, (3, 32, 32)).model.prediction == "v"
    assert resolve({}, (3, 32, 32)).model.prediction == "x0"
    assert resolve({**tree, "defaults": 1}, (3, 32, 32)).model.prediction == USUAL_PREDICTION[kind]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 0}, "n = 0"),
        ({"n": 10**9}, "1 to 1,000,000"),
        ({"steps": 0}, "steps = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**63}, "seed"),
        ({"batch": 0}, "batch = 0"),
        ({"strength": 0.5}, "strength = 0.5 has no effect without image"),
        ({"strength": 0.0, "image": "x"}, "strength = 0.0"),
        ({"strength": 1.1, "image": "x"}, "strength = 1.1"),
        ({"between": (1, 2), "image": "x"}, "between and image"),
        ({"between": (1, -2)}, "between"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Error) as caught:
        Request(**settings)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["0\x85", "a\u2028b", "\u2029", "扩散 照片"])
def test_a_path_with_any_line_end_of_unicode_survives_yaml(tmp_path: Path, name: str) -> None:
    (tmp_path / "c.yaml").write_text(config.dump({"data": {"path": name}}), encoding="utf-8")
    assert config.load(tmp_path / "c.yaml") == {"data": {"path": name}}


def test_a_setting_of_another_kind_says_whose_it_is() -> None:
    with pytest.raises(Error, match=r"model\.task\.scale. It belongs to model\.task\.kind super_resolution"):
        config.build(RunConfig, {"model": {"task": {"scale": 4}}})


def numbers() -> list[str]:
    """Every setting of a run that is a real number, and of no kind that must be named first."""
    every = options.options(RunConfig).values()
    kinds = {"model.schedule.shift", "model.schedule.mean", "model.schedule.std", "model.task.blur", "model.task.noise"}
    return [option.key for option in every if "float" in option.type_text and option.key not in kinds]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", numbers())
def test_a_number_that_is_none_is_answered_with_what_is_allowed(key: str, value: str) -> None:
    kind = ["--schedule", "karras"] * (key.rpartition(".")[2] in ("sigma_min", "sigma_max", "rho", "p_mean", "p_std"))
    tree, _ = options.parse(["--data.path", "x", *kind, f"--{key}={value}"], RunConfig, SHORT)
    with pytest.raises(Error) as caught:
        config.build(RunConfig, tree)
    said = str(caught.value)
    assert re.match(rf"{re.escape(key)}(\[0\])? = .*{value}.* is not allowed: a finite number, .*\d", said), said
    assert said.endswith(".") and not said.endswith("..") and said.count("finite") == 1


def test_every_number_of_a_request_has_words_for_what_is_allowed() -> None:
    real = {option.key for option in options.options(Request).values() if "float" in option.type_text}
    assert {key for key in real if not key.startswith("restoration.")} == set(FINITE)
