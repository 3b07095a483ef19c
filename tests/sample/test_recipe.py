"""A recipe travels in an image, survives, and is refused when it is damaged, strange or another's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kuosan import config
from kuosan.data.pixels import save_png
from kuosan.errors import Error
from kuosan.sample import recipe as recipes
from kuosan.sample import write
from kuosan.sample.recipe import Recipe
from kuosan.sample.request import Request

RECIPE = Recipe("runs/扩散", 7, "ab" * 32, Request(5, seed=10, batch=2), 3, "cpu", "fp32", (8, 8), 20)
PIXELS = np.zeros((8, 8, 3), np.uint8)


def test_a_recipe_is_read_back_from_its_image(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", PIXELS, RECIPE.text())
    assert recipes.read(tmp_path / "a.png") == RECIPE


@pytest.mark.parametrize(("typed", "own"), [("DPM++ 2M", "dpm_solver_2m"), ("euler_a", "euler_ancestral")])
def test_a_recipe_holds_our_own_name_of_a_sampler(typed: str, own: str, tmp_path: Path) -> None:
    made = replace(RECIPE, request=Request(5, sampler=typed))
    save_png(tmp_path / "a.png", PIXELS, made.text())
    assert recipes.read(tmp_path / "a.png").request.sampler == own
    assert f"Sampler: {own}, " in made.text()["parameters"]
    assert config.build(Request, {"sampler": typed}) == Request(sampler=own)  # of a recipe that holds what was typed
    assert Request(sampler="dimm").sampler == "dimm"  # refused with a guess when a model is asked


@given(
    st.builds(Request, n=st.integers(1, 50), seed=st.integers(0, 99), batch=st.integers(1, 9), exact=st.booleans()),
    st.integers(0, 49),
)
def test_the_part_that_makes_an_image_again_is_its_own_batch(request: Request, image: int) -> None:
    image %= request.n
    part, row = replace(RECIPE, request=request, index=image).batch_request()
    assert part.seed + row == request.seed + image and 0 <= row < part.n
    if not request.exact:
        assert part.n == min(request.batch, request.n - image // request.batch * request.batch)
    assert config.build(Request, config.plain(part)) == part


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({}, "carries no kuosan recipe"),
        ({"kuosan": "{"}, "not valid JSON"),
        ({"kuosan": "[1]"}, "no mapping"),
        ({"kuosan": "[" * 200_000}, "not valid JSON"),
        ({"kuosan": json.dumps({"format": 2})}, "format 2; this kuosan reads 1. Update"),
        ({"kuosan": json.dumps({"format": 1})}, "must be given"),
        ({"kuosan": json.dumps({**config.plain(RECIPE), "step": "x"})}, "step = 'x'"),
        ({"kuosan": json.dumps({**config.plain(RECIPE), "picture": 5})}, "image 5"),
        ({"kuosan": json.dumps({**config.plain(RECIPE), "surprise": 5})}, "unknown key surprise"),
    ],
)
def test_what_is_no_recipe_is_refused(text: dict[str, str], said: str, tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", PIXELS, text)
    with pytest.raises(Error) as caught:
        recipes.read(tmp_path / "a.png")
    assert said in str(caught.value)


def test_the_start_image_is_known_by_its_pixels() -> None:
    start = torch.zeros(3, 8, 8)
    made = replace(RECIPE, start=recipes.fingerprint(start))
    recipes.require_start(made, start.clone())
    recipes.require_start(RECIPE, None)
    for other in (start + 1e-3, torch.zeros(3, 4, 16), None):
        with pytest.raises(Error, match="other pixels"):
            recipes.require_start(made, other)


def test_images_are_named_by_their_seeds_and_carry_their_own_number(tmp_path: Path) -> None:
    paths = write.images(tmp_path, torch.zeros(2, 3, 8, 8), RECIPE, first=3)
    assert [path.name for path in paths] == ["seed-00000013.png", "seed-00000014.png"]
    assert [recipes.read(path).index for path in paths] == [3, 4]
    between = replace(RECIPE, request=Request(2, between=(1, 2)))
    assert ", Seeds: 1 to 2, " in between.text()["parameters"]
    assert [path.name for path in write.images(tmp_path, torch.zeros(2, 3, 8, 8), between)] == [
        "place-0000.png",
        "place-0001.png",
    ]


def test_a_long_film_keeps_its_first_and_last_frames_and_not_too_many(tmp_path: Path) -> None:
    from PIL import Image

    from kuosan.sample.generate import generate
    from tiny_models import tiny_model

    film = write.Film(most=8)
    for frame in generate(tiny_model(), Request(3, sampler="ddim", steps=50, batch=2)):
        film.add(frame)
    film.write(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as image:
        assert image.n_frames == len(film.frames) == 8  # type: ignore[attr-defined]
    assert film.frames[0].shape == (2, 8, 8, 3)
