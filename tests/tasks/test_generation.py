"""The generation task: what the network is told of a batch, in training and in sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kuosan.errors import Error
from kuosan.tasks import Generation
from kuosan.tasks.condition import condition

PETS = Generation(labels=True, class_names=("cat", "dog", "eel"))
NUMBERS = Generation(labels=True, class_names=("1", "2", "10"))


def test_a_class_is_named_by_its_name_or_its_number():
    assert [PETS.label(name) for name in ("cat", "dog", "eel", "0", "2")] == [0, 1, 2, 0, 2]


def test_classes_called_by_numbers_are_named_by_those_alone():
    assert [NUMBERS.label(name) for name in ("1", "2", "10")] == [0, 1, 2]
    with pytest.raises(Error, match="1, 2, 10, none"):
        NUMBERS.label("0")


def test_no_class_may_be_called_none():
    with pytest.raises(Error, match="another name"):
        Generation(labels=True, class_names=("cat", "none"))


def test_no_class_is_the_label_after_the_last():
    assert PETS.label("none") == PETS.null == 3


@pytest.mark.parametrize("name", ["bird", "3", "-1", "", "²", "Cat"])
def test_an_unknown_class_is_refused_with_the_list(name):
    with pytest.raises(Error, match=r"cat, dog, eel, none"):
        PETS.label(name)


def test_a_model_that_always_saw_the_class_knows_no_null_label():
    with pytest.raises(Error, match="drop 0"):
        Generation(labels=True, drop=0.0, class_names=("a",)).label("none")


def test_a_model_without_classes_refuses_every_class():
    with pytest.raises(Error, match="without classes"):
        Generation().label("cat")


@pytest.mark.parametrize("settings", [{"drop": 0.1}, {"class_names": ("a",)}, {"labels": True, "drop": 1.0}])
def test_settings_without_effect_or_out_of_range_are_refused(settings):
    with pytest.raises(Error):
        Generation(**settings)


def test_without_labels_the_network_gets_no_conditioning():
    assert condition(Generation(), torch.tensor([1, 2])) == {}


def test_images_without_a_class_and_dropped_ones_are_shown_the_null_label():
    told = condition(PETS, torch.tensor([0, 1, -1, 2]), drop=np.array([0.5, 0.05, 0.5, 0.0999]))["label"]
    assert told.tolist() == [0, 3, 3, 3]
    assert condition(PETS, torch.tensor([0, 1, -1, 2]))["label"].tolist() == [0, 1, 3, 2]


def test_the_share_dropped_is_the_one_asked_for():
    task = Generation(labels=True, drop=0.3, class_names=("a", "b"))
    u = (np.arange(1000) + 0.5) / 1000
    told = condition(task, torch.zeros(1000, dtype=torch.int64), drop=u)["label"]
    assert int((told == task.null).sum()) == 300


def test_classes_nobody_asked_for_take_turns_by_the_images_own_seed():
    assert PETS.default_labels([4, 5, 6]) == [1, 2, 0]
