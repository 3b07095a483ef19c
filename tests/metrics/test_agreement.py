"""Label agreement: every image counted once, and what is no label refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kuosan.errors import Error
from kuosan.metrics.estimate import agreement, wilson
from kuosan.seeds import rng


def test_a_classifier_that_sees_what_was_wanted_agrees_wholly():
    wanted = np.array([0, 2, 1, 1])
    found = agreement(10 * np.eye(3)[wanted], wanted, ("cat", "dog", "owl"))
    assert found.accuracy.value == 1 and found.accuracy.high == 1 and 0.3 < found.accuracy.low < 0.6
    assert found.confusion.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 1]]
    assert found.of(1) == wilson(2, 2)


def test_the_confusion_counts_every_image_once():
    logits, wanted = rng(0, "logits").standard_normal((500, 4)), rng(0, "wanted").integers(0, 4, 500)
    found = agreement(torch.from_numpy(logits), torch.from_numpy(wanted))
    for i in range(4):
        for j in range(4):
            assert found.confusion[i, j] == sum((wanted == i) & (logits.argmax(axis=1) == j))
    assert found.accuracy == wilson(int((logits.argmax(axis=1) == wanted).sum()), 500)
    assert found.accuracy.low < 0.25 < found.accuracy.high  # a guess among four


def test_a_class_nobody_asked_for_has_no_share():
    with pytest.raises(Error, match="at least 1"):
        agreement(np.eye(3), np.array([0, 1, 1])).of(2)


@pytest.mark.parametrize(
    ("logits", "wanted", "classes", "says"),
    [
        (np.zeros((3, 2)), [0, 1], (), r"\(3, 2\) and \(2,\)"),
        (np.zeros(3), [0, 1, 1], (), r"\(3,\)"),
        (np.zeros((0, 2)), [], (), r"\(0, 2\)"),
        (np.zeros((2, 2)), [0, 2], (), "0 to 1"),
        (np.zeros((2, 2)), [-1, 0], (), "0 to 1"),
        (np.zeros((2, 2)), [0.0, 1.0], (), "whole numbers"),
        (np.full((2, 2), np.nan), [0, 1], (), "2 rows that are not finite"),
        (np.zeros((2, 2)), [0, 1], ("cat",), "1 class names for 2"),
    ],
)
def test_what_cannot_agree_is_refused(logits, wanted, classes, says):
    with pytest.raises(Error, match=says):
        agreement(logits, wanted, classes)
