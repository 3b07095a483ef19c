"""Names and combinations: every spelling users know is understood, everything else is refused with a cure."""

from __future__ import annotations

from typing import Any

import pytest

from kuosan.diffusion import registry
from kuosan.diffusion.grids import SPACINGS
from kuosan.diffusion.samplers import SAMPLERS
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error


@pytest.mark.parametrize(
    "spelling, name",
    [
        ("DDPM", "ddpm"),
        ("DDPMScheduler", "ddpm"),
        ("ddim", "ddim"),
        ("DDIM", "ddim"),
        ("Euler", "euler"),
        ("k_euler", "euler"),
        ("sample_euler", "euler"),
        ("EulerDiscreteScheduler", "euler"),
        ("Euler a", "euler_ancestral"),
        ("euler-ancestral", "euler_ancestral"),
        ("EulerAncestralDiscreteScheduler", "euler_ancestral"),
        ("Heun", "heun"),
        ("HeunDiscreteScheduler", "heun"),
        ("DPM++ 2M", "dpm_solver_2m"),
        ("dpmpp_2m", "dpm_solver_2m"),
        ("sample_dpmpp_2m", "dpm_solver_2m"),
        ("dpm_solver++", "dpm_solver_2m"),
        ("dpmsolver++", "dpm_solver_2m"),
        ("DPM-Solver++ 2M", "dpm_solver_2m"),
        ("DPMSolverMultistepScheduler", "dpm_solver_2m"),
        ("dpm_solver_2m", "dpm_solver_2m"),
    ],
)
def test_known_spellings_are_understood(spelling: str, name: str) -> None:
    assert registry.sampler(spelling) == name


def test_no_spelling_means_two_samplers() -> None:
    each = [{registry.plain(alias) for alias in (spec.name, *spec.aliases)} for spec in registry.SAMPLERS.values()]
    assert sum(len(spellings) for spellings in each) == len(set.union(*each)) == len(registry.SPELLINGS)


@pytest.mark.parametrize(
    "spelling, says",
    [
        ("dimm", "did you mean 'ddim'"),
        ("DPM++ 2M Karras", "sampler 'dpm_solver_2m' and spacing 'karras'"),
        ("dpm++ 4m", "Allowed"),
        ("", "Allowed"),
    ],
)
def test_other_spellings_are_refused_with_the_nearest(spelling: str, says: str) -> None:
    with pytest.raises(Error, match=says):
        registry.sampler(spelling)


def test_other_words_for_predictions_variances_and_weights() -> None:
    assert [registry.prediction(p) for p in ("epsilon", "sample", "v_prediction", "edm")] == ["eps", "x0", "v", "edm"]
    assert [registry.variance(v) for v in ("fixed_large", "fixed_small", "learned_range", "beta")] == [
        "beta",
        "posterior",
        "learned",
        "beta",
    ]
    assert registry.weight("uniform") == "simple" and registry.weight("min_snr") == "min_snr"
    for ask, wrong in ((registry.prediction, "epss"), (registry.variance, "betta"), (registry.weight, "min_snrr")):
        with pytest.raises(Error, match="did you mean"):
            ask(wrong)


def test_stochastic_or_not_depends_on_the_options() -> None:
    answers = {
        ("ddpm", None): True,
        ("ddim", None): False,
        ("ddim", 0.5): True,
        ("ddim", 0.0): False,
        ("euler", None): False,
        ("euler_ancestral", None): True,
        ("euler_ancestral", 0.0): False,
        ("heun", None): False,
        ("dpm_solver_2m", None): False,
    }
    for (name, eta), answer in answers.items():
        assert registry.SAMPLERS[name].stochastic(None if eta is None else {"eta": eta}) is answer


SD = Discrete(betas="scaled_linear", beta_start=0.00085, beta_end=0.012)


@pytest.mark.parametrize(
    "schedule, prediction, asked",
    [
        (Discrete(), "eps", {}),
        (Discrete(), "edm", {"sampler": "heun", "steps": 18, "spacing": "karras"}),
        (Discrete(zero_terminal_snr=True), "v", {"sampler": "ddim", "steps": 50, "options": {"eta": 1.0}}),
        (Discrete(), "eps", {"sampler": "ddpm", "steps": 1000, "options": {"variance": "posterior"}}),
        (Discrete(), "eps", {"sampler": "ddpm", "options": {"variance": "learned"}, "learned_variance": True}),
        (Discrete(), "eps", {"sampler": "ddpm", "options": {"variance": "fixed_small"}}),
        (SD, "eps", {"sampler": "DPM++ 2M", "steps": 20, "spacing": "leading", "last": "first", "offset": 1}),
        (Discrete(T=10), "eps", {"sampler": "ddim", "steps": 50, "spacing": "log_snr"}),
        (Karras(), "edm", {"sampler": "heun", "steps": 18}),
        (
            Karras(),
            "edm",
            {"sampler": "heun", "options": {"s_churn": 40, "s_tmin": 0.05, "s_tmax": 50, "s_noise": 1.003}},
        ),
        (Flow(), "flow", {"sampler": "Heun"}),
        (Discrete(zero_terminal_snr=True), "v", {"sampler": "PNDM"}),
        (Karras(), "eps", {"sampler": "Euler a", "options": {"eta": 0.5}}),
        (Flow(), "flow", {"sampler": "euler", "steps": 28}),
        (Flow(), "v", {"sampler": lambda *a: iter(()), "options": {"anything": 1}}),
        (object(), "eps", {"sampler": "heun", "steps": 5, "spacing": "their own"}),
    ],
)
def test_what_works_is_allowed(schedule: object, prediction: str, asked: dict[str, Any]) -> None:
    registry.check(schedule, prediction, **asked)


@pytest.mark.parametrize(
    "schedule, prediction, asked, says",
    [
        (Discrete(), "epsilonn", {}, "did you mean|Allowed"),
        (Discrete(), "v_prediction", {}, "called 'v'"),
        (Discrete(), "eps", {"sampler": "ddpm", "options": {"variance": "learned_range"}}, "predicts no variance"),
        (Discrete(zero_terminal_snr=True), "eps", {}, "zero_terminal_snr"),
        (Flow(), "eps", {}, "a flow schedule"),
        (Discrete(), "eps", {"steps": 0}, "steps 0"),
        (Discrete(), "eps", {"steps": -3}, "steps -3"),
        (Discrete(), "eps", {"steps": 2.0}, "steps 2.0"),
        (Discrete(), "eps", {"steps": 1001}, "T=1000"),
        (Discrete(T=10), "eps", {"steps": 11, "spacing": "leading"}, "T=10"),
        (Discrete(), "eps", {"spacing": "traling"}, "did you mean 'trailing'"),
        (Karras(), "eps", {"spacing": "leading"}, "karras, log_snr"),
        (Flow(), "flow", {"spacing": "log_snr"}, "trailing, linspace"),
        (Flow(), "flow", {"last": "first"}, "first"),
        (Discrete(), "eps", {"last": "cleaned"}, "did you mean 'clean'"),
        (Discrete(), "eps", {"offset": 1}, "leading"),
        (Discrete(), "eps", {"steps": 1000, "spacing": "leading", "offset": 1}, "offset 1"),
        (Discrete(zero_terminal_snr=True), "v", {"spacing": "karras"}, "zero_terminal_snr"),
        (Discrete(T=10, zero_terminal_snr=True), "v", {"steps": 11}, "at most T=10; ask for fewer.$"),
        (Discrete(), "eps", {"sampler": "dimm"}, "did you mean 'ddim'"),
        (Discrete(), "eps", {"sampler": "heun", "options": {"eta": 0.5}}, "'heun' has no eta"),
        (Discrete(), "eps", {"sampler": "ddim", "options": {"variance": "beta"}}, "'ddim' has no variance; use ddpm"),
        (Discrete(), "eps", {"sampler": "ddim", "options": {"eta": 1.5}}, "from 0 to 1"),
        (Discrete(), "eps", {"sampler": "ddim", "options": {"eta": "1"}}, "from 0 to 1"),
        (Discrete(), "eps", {"sampler": "ddim", "options": {"eta": float("nan")}}, "from 0 to 1"),
        (Discrete(), "eps", {"sampler": "ddpm", "options": {"variance": "betta"}}, "did you mean 'beta'"),
        (Discrete(), "eps", {"sampler": "ddpm", "options": {"variance": "learned"}}, "predicts no variance"),
        (Discrete(), "eps", {"sampler": "ddim", "options": {"churn": 1}}, "has no churn"),
        (Discrete(), "eps", {"options": {"eta": 1}}, "belong to a sampler"),
        (Karras(), "edm", {"sampler": "heun", "options": {"s_noise": 1.003}}, "it shapes s_churn, which is 0"),
        (Karras(), "edm", {"sampler": "heun", "options": {"s_churn": 0.0, "s_tmin": 0.1}}, "give s_churn above 0"),
        (Karras(), "edm", {"sampler": "heun", "options": {"s_churn": -1}}, "a number of 0 or more"),
        (Karras(), "edm", {"sampler": "ddim", "options": {"s_churn": 9}}, "use heun"),
    ],
)
def test_what_would_be_wrong_or_without_effect_is_refused(
    schedule: object, prediction: str, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(Error, match=says):
        registry.check(schedule, prediction, **asked)


def test_every_default_can_be_walked() -> None:
    for schedule in (Discrete(), Karras(), Flow()):
        for name, spec in registry.SAMPLERS.items():
            spacing = registry.default_spacing(schedule)
            registry.check(schedule, "v", sampler=name, steps=spec.default_steps, spacing=spacing)
            assert len(schedule.grid(spec.default_steps, spacing)) == spec.default_steps + 1
            assert name in SAMPLERS


@pytest.mark.parametrize("steps", [1, 5, 1000, 1001])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("last", ["clean", "first"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    "schedule", [Discrete(), Discrete(zero_terminal_snr=True), Karras(), Flow()], ids=["vp", "zero", "karras", "flow"]
)
def test_a_grid_is_allowed_exactly_where_it_can_be_made(
    schedule: Discrete | Karras | Flow, spacing: str, last: str, offset: int, steps: int
) -> None:
    def refused(run: Any) -> bool:
        try:
            run()
        except Error:
            return True
        return False

    asked = {"steps": steps, "spacing": spacing, "last": last, "offset": offset}
    assert refused(lambda: registry.check(schedule, "v", **asked)) == refused(lambda: schedule.grid(**asked))
