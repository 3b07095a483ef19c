"""Which sizes a model makes: its own, with buckets any between those trained on; all else refused with the reason."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kuosan import config as trees
from kuosan import seeds
from kuosan.data.config import shapes
from kuosan.errors import Error
from kuosan.models.model import Model, ModelConfig, OwnNetwork
from kuosan.networks.config import DiTConfig, default_unet
from kuosan.sample import plan
from kuosan.sample.generate import sample
from kuosan.sample.plan import check_guides, choose
from kuosan.sample.request import Request, Restoration
from tiny_models import tiny_classifier, tiny_model, with_weights

ONE = ModelConfig((3, 64, 64), default_unet((3, 64, 64)))
SEVERAL = replace(ONE, shapes=shapes(64, 8, 2.0))


def several(dit: bool = False) -> Model:
    """A tiny model of buckets at 16 pixels, factor 2."""
    if dit:
        network = DiTConfig(patch=2, width=16, depth=2, heads=2)
        model = with_weights(ModelConfig((3, 16, 16), network, prediction="v"))
    else:
        model = tiny_model(shape=(3, 16, 16))
    return replace(model, config=replace(model.config, shapes=shapes(16, 4, 2.0)))


def test_without_a_size_a_model_makes_its_own() -> None:
    assert plan.of(ONE, Request()) == plan.of(SEVERAL, Request()) == (64, 64)
    assert plan.of(ONE, Request(size=(64, 64))) == (64, 64), "and says no less where it is said"
    assert plan.of(ONE, Request(aspect="1:1")) == (64, 64)


@pytest.mark.parametrize("asked", [Request(size=(96, 64)), Request(size=(64, 56)), Request(aspect="3:2")])
def test_a_model_of_one_shape_refuses_another_with_the_reason(asked: Request) -> None:
    with pytest.raises(Error, match="trained on images of 64x64 alone and has never seen another shape"):
        choose(ONE, asked)


@pytest.mark.parametrize("size", [(88, 48), (48, 88), (64, 64), (72, 64), (80, 56), (64, 72), (72, 48)])
def test_a_model_of_buckets_makes_any_size_between_them(size: tuple[int, int]) -> None:
    assert plan.of(SEVERAL, Request(size=size)) == size
    chosen = choose(SEVERAL, Request(size=size))
    assert chosen.size == size and replace(chosen, size=None) == replace(choose(SEVERAL, Request()), size=None)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((66, 64), r"size 66x64: both sides must be multiples of 8, which this model's network takes\. 64x64 would do"),
        ((96, 48), r"from 48x88 to 88x48, and this lies beyond them\. 88x48 would do"),
        ((40, 96), "this lies beyond them"),
        ((96, 64), r"images of 3,840 to 4,224 pixels, and 6,144 are too many\. 72x48 would do"),
        ((32, 32), "1,024 are too few"),
    ],
)
def test_what_lies_beyond_is_refused_with_the_nearest_size_that_would_do(size: tuple[int, int], says: str) -> None:
    with pytest.raises(Error, match=says):
        choose(SEVERAL, Request(size=size))


def test_an_aspect_is_the_nearest_allowed_ratio_at_about_as_many_pixels() -> None:
    assert plan.of(SEVERAL, Request(aspect="3:2")) == (72, 48)
    assert plan.of(SEVERAL, Request(aspect="2:3")) == (48, 72)
    assert plan.of(SEVERAL, Request(aspect="1:1")) == (64, 64)
    assert plan.of(SEVERAL, Request(aspect="1.8333:1")) == (88, 48)
    with pytest.raises(Error, match="aspect 3:1: this model was trained on images from 48x88 to 88x48"):
        plan.of(SEVERAL, Request(aspect="3:1"))


@given(wide=st.integers(1, 200), high=st.integers(1, 200))
def test_every_aspect_between_the_extremes_gives_an_allowed_size(wide: int, high: int) -> None:
    request = Request(aspect=f"{wide}:{high}")
    if not 48 / 88 <= wide / high <= 88 / 48:
        with pytest.raises(Error, match="lies beyond"):
            plan.of(SEVERAL, request)
        return
    found = plan.of(SEVERAL, request)
    assert plan.allowed(SEVERAL, found) and choose(SEVERAL, Request(size=found))
    off = abs(math.log(found[0] / found[1] * high / wide))
    assert off < 0.08 and all(off <= abs(math.log(w / h * high / wide)) + 1e-9 for h, w in SEVERAL.shapes)


def test_a_network_of_ones_own_takes_what_all_of_its_training_had_in_common() -> None:
    own = ModelConfig((3, 16, 16), OwnNetwork(), shapes=((24, 12), (20, 12), (16, 16), (12, 20), (12, 24)))
    assert plan.factor(own) == 4 and plan.factor(ONE) == 8
    with pytest.raises(Error, match="multiples of 4"):
        plan.of(own, Request(size=(18, 14)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"size": (0, 8)}, "size = 0x8 is not allowed"),
        ({"size": (8, 99_999)}, "size = 8x99999 is not allowed"),
        ({"aspect": "3"}, "aspect = '3' is not allowed: width to height, as 3:2"),
        ({"aspect": "3:0"}, "aspect = '3:0' is not allowed"),
        ({"aspect": "nan:1"}, "is not allowed"),
        ({"size": (8, 8), "aspect": "1:1"}, "size and aspect cannot both be given"),
        ({"size": (8, 8), "restoration": Restoration("a.png", upscale=2)}, "size = 8,8 has no effect on a restoration"),
        ({"aspect": "1:1", "restoration": Restoration("a.png", upscale=2)}, "1:1 has no effect on a restoration"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(Error, match=says):
        Request(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("dit", [False, True])
def test_images_have_the_size_asked_for_and_only_depend_on_their_seed(dit: bool) -> None:
    model = several(dit)
    for size in ((16, 16), (24, 12), (14, 18)):
        made = sample(model, Request(n=3, seed=4, steps=3, size=size, exact=True))
        assert made.shape == (3, 3, size[1], size[0]) and made.isfinite().all()
        assert torch.equal(sample(model, Request(n=1, seed=5, steps=3, size=size, exact=True))[0], made[1])
    by_aspect = sample(model, Request(n=3, seed=4, steps=3, aspect="2:1", exact=True))
    assert torch.equal(by_aspect, sample(model, Request(n=3, seed=4, steps=3, size=(24, 12), exact=True)))


def test_an_image_to_start_from_has_the_requests_size() -> None:
    model, start = several(), seeds.normal([(0, "start", 0, 0)], (3, 12, 24))[0].clamp(-1, 1)
    request = Request(n=1, steps=10, size=(24, 12), image="a tensor", strength=0.1)
    near = sample(model, request, start=start)[0]
    assert near.shape == start.shape and (near - start).abs().mean() < 1
    with pytest.raises(Error, match=r"this model makes \(3, 12, 24\)"):
        sample(model, request, start=start.mT)


def test_guides_must_know_the_size_too() -> None:
    model, classifier = several().config, tiny_classifier().config
    request = Request(size=(24, 12), classifier="c", guidance=2, reference="r", classes=("a",))
    of_one = replace(classifier, shape=(3, 16, 16))
    with pytest.raises(Error, match=r"classifier 'c' sees images of \(3, 16, 16\), this model \(3, 12, 24\)"):
        check_guides(model, request, of_one, None)
    check_guides(model, replace(request, size=None), of_one, model)
    check_guides(model, request, replace(of_one, shapes=model.shapes), model)
    with pytest.raises(Error, match="reference 'r' sees images of"):
        check_guides(model, request, None, replace(model, shapes=()))


def test_the_model_that_takes_an_image_whole() -> None:
    model = several()
    assert plan.taking(model, (24, 12)).shape == (3, 12, 24) and plan.taking(model, (48, 48)) is model
    assert plan.nearest_trained(model.config, (300, 200)) == (20, 12)
    assert plan.nearest_trained(ONE, (300, 200)) == (64, 64)


def test_a_configuration_remembers_its_shapes() -> None:
    assert trees.build(ModelConfig, trees.plain(SEVERAL)) == SEVERAL
    assert trees.build(ModelConfig, {"shape": [3, 64, 64]}).shapes == ()
