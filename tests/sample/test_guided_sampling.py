"""Classes and guidance from a request to images: who is told what, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kuosan.diffusion.schedule import Discrete, Karras
from kuosan.errors import Error
from kuosan.models.model import Model
from kuosan.sample.generate import sample
from kuosan.sample.guidance_models import Guides
from kuosan.sample.plan import plan, refuse_to_itself
from kuosan.sample.recipe import Recipe
from kuosan.sample.request import Request
from kuosan.tasks.task import Generation
from tiny_models import counted, tiny_classifier, tiny_model

PETS = Generation(labels=True, class_names=("a", "b"))
ASKED = Request(2, seed=3, steps=3, classes=("b",))


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(task=PETS)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b)


def test_the_class_changes_the_image_and_is_named_by_name_or_number(model):
    b = sample(model, ASKED)
    assert same(sample(model, replace(ASKED, classes=("1",))), b)
    assert not same(sample(model, replace(ASKED, classes=("a",))), b)


def test_several_classes_take_turns(model):
    both = sample(model, Request(4, steps=3, classes=("b", "a"), exact=True))
    alone = sample(model, Request(4, steps=3, classes=("b",), exact=True))
    assert same(both[0::2], alone[0::2]) and not same(both[1], alone[1])


def test_without_a_class_each_seed_has_its_own(model):
    images = sample(model, Request(2, seed=6, steps=3, exact=True))
    assert same(images, sample(model, Request(2, seed=6, steps=3, classes=("a", "b"), exact=True)))


@pytest.mark.parametrize("n", [1, 3])
def test_a_guided_images_bytes_do_not_depend_on_what_stands_beside_it(model, n):
    request = Request(5, seed=10, steps=3, guidance=3.0, exact=True)
    whole = sample(model, request)
    assert same(sample(model, replace(request, n=n, seed=11)), whole[1 : 1 + n])


def test_guidance_of_scale_one_is_no_guidance_and_costs_nothing(model):
    plain, network = counted(model)
    wanted = sample(plain, ASKED)
    calls = network.calls
    assert same(sample(plain, replace(ASKED, guidance=1.0)), wanted)
    assert network.calls == 2 * calls


def test_guidance_of_scale_zero_is_the_reference(model):
    null = sample(model, replace(ASKED, classes=("none",)))
    assert torch.allclose(sample(model, replace(ASKED, guidance=0.0)), null, atol=1e-5)
    other = sample(model, replace(ASKED, classes=("a",)))
    assert torch.allclose(sample(model, replace(ASKED, guidance=0.0, negative="a")), other, atol=1e-5)


def test_guidance_of_scale_zero_is_the_references_own_bits_and_cost(model):
    null = sample(model, replace(ASKED, classes=("none",)))
    assert same(sample(model, replace(ASKED, guidance=0.0)), null)
    assert plan(model.config, replace(ASKED, guidance=0.0)).evaluations == 3
    assert plan(model.config, replace(ASKED, guidance=0.0, guidance_rescale=0.5)).evaluations == 6


def test_a_model_trained_with_drop_zero_has_no_reference_but_another_class():
    sure = tiny_model(task=replace(PETS, drop=0.0))
    with pytest.raises(Error, match="--negative"):
        sample(sure, replace(ASKED, guidance=2.0))
    assert sample(sure, replace(ASKED, guidance=2.0, negative="a")).isfinite().all()


@pytest.mark.parametrize("more", [{"classes": ("none",)}, {"classes": ("a", "a"), "negative": "a"}])
def test_guidance_from_a_class_to_itself_is_refused_of_a_person(model, more):
    with pytest.raises(Error, match="to itself has no effect"):
        refuse_to_itself(model.config, Request(2, guidance=2.0, **more))
    refuse_to_itself(model.config, Request(2, guidance=2.0, classes=("a", "none")))


def test_a_reference_trained_with_drop_zero_is_not_asked_for_no_class(model):
    sure = tiny_model(task=replace(PETS, drop=0.0))
    asked = Request(1, steps=2, classes=("none",), guidance=2.0, reference="weak")
    with pytest.raises(Error, match="drop 0"):
        sample(model, asked, guides=Guides(reference=sure))


@pytest.mark.parametrize(
    "more",
    [
        {"guidance": 3.0},
        {"guidance": 3.0, "negative": "a"},
        {"guidance": 3.0, "guidance_interval": (0.5, 5.0)},
        {"guidance": 3.0, "guidance_rescale": 0.7},
        {"guidance": 3.0, "threshold": 90.0},
    ],
)
def test_every_setting_of_guidance_changes_the_image(model, more):
    less = {name: value for name, value in more.items() if name == "guidance"} if len(more) > 1 else {}
    assert not same(sample(model, replace(ASKED, **more)), sample(model, replace(ASKED, **less)))


def test_guidance_is_counted_in_network_evaluations(model):
    assert plan(model.config, ASKED).evaluations == 3
    assert plan(model.config, replace(ASKED, guidance=3.0)).evaluations == 6
    assert plan(model.config, replace(ASKED, guidance=1.0)).evaluations == 3
    plain, network = counted(model)
    sample(plain, replace(ASKED, guidance=3.0, guidance_rescale=0.5))
    assert network.calls == 3  # each on a doubled batch


def test_a_weaker_model_is_a_reference_with_and_without_classes(model):
    weak = tiny_model(task=PETS)
    with torch.no_grad():
        next(weak.network.parameters()).mul_(0.5)
    guided = replace(ASKED, guidance=2.0, reference="weak")
    assert not same(sample(model, guided, guides=Guides(reference=weak)), sample(model, ASKED))
    assert torch.allclose(sample(model, guided, guides=Guides(reference=model)), sample(model, ASKED), atol=1e-5)
    plain, free = tiny_model(), replace(ASKED, classes=(), guidance=2.0, reference="weak")
    assert sample(plain, free, guides=Guides(reference=tiny_model(prediction="x0"))).isfinite().all()


@pytest.mark.parametrize("schedule", [Discrete(), Discrete(betas="cosine")])
def test_a_classifier_guides_models_with_and_without_classes(model, schedule):
    guides = Guides(classifier=tiny_classifier(schedule))
    asked = replace(ASKED, classifier="judge", classifier_scale=50.0, guidance_interval=(0.2, 20.0))
    assert not same(sample(model, asked, guides=guides), sample(model, ASKED))
    plain = tiny_model()
    assert not same(sample(plain, asked, guides=guides), sample(plain, replace(ASKED, classes=())))
    unguided = replace(asked, classifier_scale=0.0)
    assert same(sample(plain, unguided, guides=guides), sample(plain, Request(2, 3, steps=3)))


@pytest.mark.parametrize(
    "wrong, why",
    [
        ({"classes": ("c",)}, "a, b, none"),
        ({"classes": ("b",), "negative": "c", "guidance": 2.0}, "a, b, none"),
        ({"negative": "a"}, "without guidance"),
        ({"guidance_rescale": 0.5}, "without guidance"),
        ({"guidance_interval": (1.0, 2.0)}, "without guidance"),
        ({"guidance": 2.0, "guidance_interval": (2.0, 1.0)}, "low < high"),
        ({"classifier_scale": 2.0}, "without classifier"),
        ({"guidance": -1.0}, "0 to 1000"),
        ({"guidance": 2.0, "negative": "a", "reference": "weak"}, "one thing"),
        ({"threshold": 0.0}, "percentile"),
        ({"threshold": 99.0, "clip": False}, "clip"),
        ({"classifier": "judge"}, "none was given"),
        ({"threshold": 0.995}, "did you mean 99.5"),
        ({"guidance": 2.0, "guidance_interval": (0.3, float("inf"))}, "finite"),  # a recipe could not be read again
        ({"guidance": float("nan")}, "finite"),
        ({"sampler": "heun", "s_churn": 1.0, "s_tmin": 5.0, "s_tmax": 1.0}, "no effect"),
    ],
)
def test_what_cannot_be_asked_is_refused(model, wrong, why):
    with pytest.raises(Error, match=why):
        sample(model, Request(2, steps=2, **wrong))


def test_a_model_without_classes_refuses_classes_and_guidance():
    with pytest.raises(Error, match="without classes"):
        sample(tiny_model(), Request(1, steps=2, classes=("a",)))
    with pytest.raises(Error, match="without classes"):
        sample(tiny_model(), Request(1, steps=2, guidance=2.0))


def test_guides_that_do_not_fit_are_refused(model):
    by_classifier = Request(1, steps=2, classes=("b",), classifier="judge")
    with pytest.raises(Error, match="no classifier"):
        sample(model, by_classifier, guides=Guides(classifier=model))
    with pytest.raises(Error, match="trained on the same"):
        sample(model, by_classifier, guides=Guides(classifier=tiny_classifier(names=("a", "c"))))
    with pytest.raises(Error, match="another schedule"):
        asked = Request(1, steps=2, guidance=2.0, reference="weak")
        sample(model, asked, guides=Guides(reference=tiny_model(Karras(), "edm", task=PETS)))
    with pytest.raises(Error, match="names none"):
        sample(model, ASKED, guides=Guides(classifier=tiny_classifier()))


def test_a_recipe_makes_an_image_of_a_class_again(model):
    request = Request(5, seed=7, steps=3, classes=("b", "a", "none"), guidance=2.0, batch=2)
    whole = sample(model, request)
    for image in range(5):
        recipe = Recipe("run", 1, "ab", request, image, "cpu", "fp32", (8, 8), 3)
        part, row = recipe.batch_request()
        assert same(sample(model, part)[row], whole[image])
        assert f"Class: {request.classes[image % 3]}, CFG scale: 2," in recipe.text()["parameters"]
