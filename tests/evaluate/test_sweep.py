"""A sweep is every combination of its values, checked as a whole before anything is sampled."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuosan.diffusion.schedule import Discrete, Flow
from kuosan.errors import Error
from kuosan.evaluate.config import EvaluateConfig, check_sweep, configured, points
from kuosan.evaluate.sampling import labels
from kuosan.models.model import ModelConfig
from kuosan.sample.request import Request

MODEL = ModelConfig(shape=(3, 8, 8), schedule=Discrete())


def test_several_sweeps_are_all_combinations_in_the_order_given() -> None:
    found = points(Request(n=5, seed=3), ["steps=5", "10", "sampler=ddim", "dpmpp_2m"])
    assert [point.setting for point in found] == [
        {"steps": steps, "sampler": sampler} for steps in (5, 10) for sampler in ("ddim", "dpmpp_2m")
    ]
    assert {(point.request.n, point.request.seed) for point in found} == {(5, 3)}
    assert [choice.evaluations for choice in check_sweep(MODEL, found)] == [5, 5, 10, 10]


def test_without_a_sweep_the_request_is_the_only_point() -> None:
    (point,) = points(Request(steps=7), [])
    assert point.request == Request(steps=7) and point.setting == {} and point.name == ""


def test_values_take_the_fields_own_type() -> None:
    (point, _) = points(Request(guidance=3.0), ["guidance-interval=0.2:5", "none"])
    assert point.request.guidance_interval == (0.2, 5.0) and point.name == "guidance_interval 0.2:5"
    assert [point.request.clip for point in points(Request(), ["clip=true", "no"])] == [True, False]


def test_every_impossible_combination_is_named_at_once() -> None:
    swept = points(Request(), ["eta=0", "1", "sampler=ddim", "heun", "dpm_solver_2m"])
    with pytest.raises(Error) as refused:
        check_sweep(MODEL, swept)
    text = str(refused.value)
    assert text.startswith("4 of 6 combinations cannot be sampled, so none is:")
    for sampler in ("heun", "dpm_solver_2m"):
        for eta in (0, 1):
            assert f"eta {eta}, sampler {sampler}: " in text
    assert "sampler ddim:" not in text


def test_a_walk_that_the_models_schedule_does_not_have_is_refused() -> None:
    flow = ModelConfig(shape=(3, 8, 8), schedule=Flow(), prediction="flow")
    with pytest.raises(Error, match=r"(?s)1 of 2 combinations.*spacing leading: "):
        check_sweep(flow, points(Request(), ["spacing=trailing", "leading"]))


def test_impossible_values_are_all_named() -> None:
    with pytest.raises(Error) as refused:
        points(Request(), ["steps=0", "5", "x"])
    assert "2 of 3" in str(refused.value) and "steps 0" in str(refused.value) and "steps x" in str(refused.value)


def test_two_spellings_of_one_point_are_refused() -> None:
    with pytest.raises(Error, match="sampler DDIM: the same as sampler ddim"):
        check_sweep(MODEL, points(Request(), ["sampler=ddim", "DDIM"]))
    with pytest.raises(Error, match="the same as"):
        check_sweep(MODEL, points(Request(sampler="ddim"), ["steps=none", "50"]))


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (["steps"], "write FIELD=VALUE"),
        (["stepz=3"], "did you mean 'steps'"),
        (["n=10", "20"], "all points share"),
        (["seed=1", "2"], "all points share"),
        (["image=a.png"], "unknown field to sweep"),
        (["steps=5", "sampler=ddim", "steps=10"], "swept twice"),
        (["steps=5", "5"], "given twice"),
        (["steps="], "a value is empty"),
        ([f"guidance={i}" if i == 0 else str(i) for i in range(501)], "up to 500"),
    ],
)
def test_a_sweep_that_says_nothing_clear_is_refused(sweep: list[str], message: str) -> None:
    with pytest.raises(Error, match=message):
        points(Request(), sweep)


def test_the_settings_of_an_evaluation_lie_over_its_own_defaults() -> None:
    assert configured({}) == EvaluateConfig()
    changed = configured({"request": {"steps": "10"}, "compute": {"threads": 1}})
    assert changed.request.n == 1000 and changed.request.batch == 50 and changed.request.steps == 10
    assert changed.compute.threads == 1


@settings(deadline=None)
@given(
    shares=st.lists(st.floats(0.02, 1), min_size=2, max_size=8),
    first=st.integers(0, 2**40),
    n=st.integers(1, 400),
)
def test_classes_have_the_datas_shares_whatever_row_of_seeds_is_taken(shares: list[float], first: int, n: int) -> None:
    wanted = [share / sum(shares) for share in shares]
    found = labels(range(first, first + n), wanted)
    for i, share in enumerate(wanted):
        assert abs(found.count(i) - share * n) < 4  # random draws would be off by 10 at n = 400


def test_a_class_depends_on_the_seed_alone_and_equal_shares_take_turns() -> None:
    assert labels(range(40, 60), [0.2, 0.5, 0.3]) == labels(range(100), [0.2, 0.5, 0.3])[40:60]
    assert labels(range(3, 9), [0.25] * 4) == [3, 0, 1, 2, 3, 0]


def test_what_goes_with_a_swept_option_may_be_given() -> None:
    config = configured({"sweep": ["guidance=2", "3"], "request": {"guidance_interval": (0.3, 5.0)}})
    assert [point.request.guidance_interval for point in points(config.request, config.sweep)] == [(0.3, 5.0)] * 2
    with pytest.raises(Error, match="no effect without guidance"):
        configured({"request": {"guidance_interval": (0.3, 5.0)}})


def test_an_option_both_given_and_swept_is_refused() -> None:
    with pytest.raises(Error, match="steps = 5 has no effect with --sweep steps"):
        configured({"sweep": ["steps=10", "20"], "request": {"steps": 5}})


@pytest.mark.parametrize("name", ["likelihood_images", "likelihood_pictures"])
def test_a_renamed_setting_lies_over_the_default_by_either_name(name: str) -> None:
    assert configured({"likelihood": True, name: 8}).likelihood_images == 8
    with pytest.raises(Error, match="likelihood_images is given twice: 8, and as likelihood_pictures 9"):
        configured({"likelihood": True, "likelihood_images": 8, "likelihood_pictures": 9})
