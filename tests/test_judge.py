# SPDX-License-Identifier: MIT
"""The classifier that judges samples, really trained, on four classes that nobody could confuse."""

import numpy as np
import pytest

from jaxgen.data.source import Dataset
from jaxgen.evaluate import judge
from jaxgen.nn import classifier

NAMES = ("top", "bottom", "left", "right")


def lit(per_class: int, seed: int) -> Dataset:
    """Noisy images of 6x6 pixels of which one half is lit."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(4, dtype=np.int32), per_class)
    images = rng.integers(0, 60, (len(labels), 6, 6, 1), dtype=np.uint8)
    halves = ((slice(3), slice(6)), (slice(3, 6), slice(6)), (slice(6), slice(3)))
    for half, where in enumerate((*halves, (slice(6), slice(3, 6)))):
        images[labels == half, *where] += 190
    return Dataset(images, labels, NAMES)


TRAIN, TEST = lit(16, 0), lit(25, 1)


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "NUM_STEPS", 40)
        yield


@pytest.fixture(scope="module")
def trained():
    return judge.train(TRAIN, TEST)


def test_classes_that_are_apart_are_told_apart_with_confidence(trained):
    probabilities = trained.classify(TEST.images)
    assert trained.accuracy == 1
    np.testing.assert_array_equal(probabilities.argmax(axis=1), TEST.labels)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert probabilities.max(axis=1).mean() > 0.9


def test_two_trainings_are_the_same_in_bits(trained):
    again = judge.train(TRAIN, TEST)
    np.testing.assert_array_equal(again.classify(TEST.images), trained.classify(TEST.images))
    np.testing.assert_array_equal(again.features(TEST.images), trained.features(TEST.images))


def test_log_odds_are_linear_in_the_features(trained):
    """More images than features, so that another layer's would leave a remainder."""
    images = np.random.default_rng(2).integers(0, 256, (600, 6, 6, 1), dtype=np.uint8)
    features, log_p = trained.features(images), np.log(trained.classify(images))
    assert features.shape == (600, classifier.NUM_FEATURES)
    assert features.dtype == np.float32
    inputs = np.concatenate([features, np.ones((600, 1))], axis=1)
    log_odds = log_p[:, 1:] - log_p[:, :1]
    remainder = log_odds - inputs @ np.linalg.lstsq(inputs, log_odds)[0]
    assert np.abs(remainder).max() < 1e-3 < np.std(log_odds)


@pytest.mark.parametrize(
    ("labels", "low", "high"),
    [
        (TRAIN.labels, 1, 1),  # images of a perfect generator: as good as real ones
        ((TRAIN.labels + 1) % 4, 0, 0),  # a generator that draws each class for another
        (np.random.default_rng(0).permutation(TRAIN.labels), 0, 0.5),  # one that asks no label
    ],
)
def test_a_judge_of_generated_images_knows_the_real_ones_by_their_labels(labels, low, high):
    """The score of Ravuri & Vinyals 2019 (arXiv:1905.10887)."""
    generated = lit(16, 3)._replace(labels=np.int32(labels))
    assert low <= judge.train(generated, TEST).accuracy <= high


@pytest.mark.parametrize("names", [(), ("one",)])
def test_images_without_classes_are_refused(names):
    with pytest.raises(ValueError, match="needs labelled data with two classes or more"):
        judge.train(TRAIN._replace(class_names=names), TEST)
