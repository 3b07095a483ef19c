"""RUN[:METHOD][,key=value...]: what is understood, what each is called, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kuosan.errors import Error
from kuosan.evaluate.comparison import ComparisonConfig, Contestant, contestants, masked, names


def asked(*texts: str, **options: Any) -> list[Contestant]:
    return contestants(ComparisonConfig("x", texts, **({"mask": "half"} | options)))


def test_a_contestant_is_a_run_a_method_and_settings_of_both_kinds() -> None:
    (one,) = asked("runs/a:pigdm,steps=50,push=0.5,guidance_interval=0.1,5,classifier=runs/c", upscale=4, mask=None)
    assert (one.run, one.method) == ("runs/a", "pigdm")
    assert one.request.steps == 50 and one.request.guidance_interval == (0.1, 5.0)
    restoration = one.request.restoration
    assert restoration is not None
    assert (restoration.method, restoration.push, restoration.upscale) == ("pigdm", 0.5, 4)


def test_without_a_method_it_restores_as_it_was_trained() -> None:
    plain, own = asked("runs/a", "runs/a,steps=7,seed=5", seed=3)
    assert plain.method is None and plain.request.seed == 3
    assert (own.request.steps, own.request.seed) == (7, 5)


def test_a_path_may_hold_colons_and_commas(tmp_path: Path) -> None:
    odd = tmp_path / "a,b:c"
    odd.mkdir()
    plain, held = asked(str(odd), f"{odd}:ddnm,steps=3")
    assert (plain.run, plain.method) == (str(odd), None)
    assert (held.run, held.method, held.request.steps) == (str(odd), "ddnm", 3)


def test_those_of_one_name_are_told_apart() -> None:
    assert names(asked("runs/a", "runs/a:ddnm", "b/checkpoints/step-00000010")) == ["a", "a: ddnm", "b step-00000010"]
    found = names(asked("runs/a:ddnm", "runs/a:ddnm,steps=50", "x/b", "y/b", "x/b,steps=3"))
    assert found == ["a: ddnm", "a: ddnm, steps 50", "x/b", "y/b", "b: steps 3"]


@pytest.mark.parametrize(
    "text, naming",
    [
        ("runs/a:ddmn", "unknown method of --with runs/a:ddmn: 'ddmn': did you mean 'ddnm'?"),
        ("runs/a:", "unknown method"),
        (":ddnm", "names no run"),
        ("runs/a,stepz=3", "did you mean 'steps'?"),
        ("runs/a,steps=many", "--with runs/a,steps=many: "),
        ("runs/a,steps=", "needs|no value"),
        ("runs/a,steps=3,steps=4", "steps is given twice"),
        ("runs/a,n=3", "n is no setting of one contestant: all are compared alike; say --n"),
        ("runs/a,noise=3", "noise is no setting of one contestant: all are compared alike; say --noise"),
        ("runs/a,method=ddnm", "say runs/a:ddnm"),
        ("runs/a,push=0.5", "push = 0.5 has no effect with method not set: it belongs to method pigdm or dps"),
        ("runs/a:dps,push=1000", "push = 1000.0 is not allowed"),
        ("runs/a,classes=b,c", "one class for all images"),
    ],
)
def test_a_mistake_is_named_with_what_was_typed(text: str, naming: str) -> None:
    with pytest.raises(Error, match=naming.replace("?", r"\?") if "|" not in naming else naming):
        asked(text)


def test_the_same_twice_is_refused() -> None:
    with pytest.raises(Error, match="given twice"):
        asked("runs/a:ddnm,steps=5", "runs/a:ddnm,steps=05")
    assert len(asked("runs/a:ddnm", "runs/a:ddnm,sampler=dpm_solver_2m")) == 2  # the method's usual is ddim


@pytest.mark.parametrize(
    "options, naming",
    [
        ({"contestants": ()}, "nobody to compare"),
        ({"mask": None}, "nothing to restore"),
        ({"mask": "halve"}, "did you mean 'half'"),
        ({"mask": "0,0,0,4"}, "w and h above 0"),
        ({"n": 1}, "n = 1 is not allowed: 2 to"),
        ({"variants": 0}, "variants = 0 is not allowed"),
        ({"features": "lite"}, "did you mean 'lite0'"),
        ({"upscale": 4}, "mask and upscale cannot both be given"),
        ({"unseen": True, "force": True}, "unseen and force cannot both be given"),
        ({"batch": 0}, "batch = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_settings_that_are_impossible_are_refused(options: dict[str, Any], naming: str) -> None:
    with pytest.raises(Error, match=naming):
        ComparisonConfig(**({"images": "x", "contestants": ("run",), "mask": "half"} | options))


def test_masks_are_kinds_or_a_box() -> None:
    assert masked("brush, blob") == ("brush", "blob")
    assert masked("1, 2,3,4") == (1, 2, 3, 4) and masked(None) is None


def test_a_comparison_is_kept_under_its_damage_and_its_settings() -> None:
    one = ComparisonConfig("data/photos", ("a",), upscale=4)
    other = ComparisonConfig("data/photos", ("b",), upscale=4)
    assert str(one.folder()).startswith("comparisons/upscale-4-photos-n64-") and one.folder() != other.folder()
    assert ComparisonConfig("x", ("a",), upscale=4, out="here").folder() == Path("here")
