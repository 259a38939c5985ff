# SPDX-License-Identifier: MIT
import numpy as np
import pytest

from jaxgen.evaluate import classes


def certain(named, num_classes):
    return np.eye(num_classes)[np.asarray(named)]


def test_equal_classes_have_the_largest_entropy_and_none_is_missing():
    report = classes.report(certain([0, 1, 2, 3] * 5, 4))
    np.testing.assert_array_equal(report.histogram, [0.25] * 4)
    assert report.entropy_nats == pytest.approx(np.log(4))
    assert report.missing == ()
    assert report.confidence == 1.0


def test_classes_that_never_appear_are_missing():
    report = classes.report(certain([1, 1, 1, 4], 5))
    np.testing.assert_array_equal(report.histogram, [0, 0.75, 0, 0, 0.25])
    assert report.missing == (0, 2, 3)
    assert report.entropy_nats == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))


def test_class_with_less_than_a_tenth_of_its_share_is_missing():
    """Two classes: the share is a half, a tenth of it 1 in 20."""
    at, below = (
        classes.report(certain([0] * 19 + [1], 2)),
        classes.report(certain([0] * 39 + [1], 2)),
    )
    assert at.missing == ()
    assert below.missing == (1,)


def test_collapse_on_one_class_has_no_entropy():
    report = classes.report(certain([2] * 6, 3))
    assert report.entropy_nats == 0.0
    assert report.missing == (0, 1)


def test_confidence_is_the_mean_probability_of_the_named_class():
    report = classes.report(np.array([[0.6, 0.4], [0.1, 0.9]]))
    assert report.confidence == pytest.approx(0.75)


def test_nan_is_no_class():
    probabilities = certain([0, 1], 2) * np.nan
    with pytest.raises(ValueError, match="class probabilities that are not finite"):
        classes.report(probabilities)
    with pytest.raises(ValueError, match="class probabilities that are not finite"):
        classes.agreement(probabilities, np.array([0, 1]))
    with pytest.raises(ValueError, match="class probabilities of no samples"):
        classes.report(probabilities[:0])


def test_each_figure_has_that_of_real_images_beside_it():
    text = classes.lines(
        classes.report(np.array([[0.6, 0.4], [0.2, 0.8]])), classes.report(certain([1, 1], 2)), "ab"
    )
    assert text == [
        "  confidence       0.7000   real 1.0000",
        "  class entropy    0.6931 of 0.6931 nats   real 0.0000",
        "  class shares     a 0.500  b 0.500",
        "    of real ones   a 0.000  b 1.000",
        "  missing classes  none",
    ]


def test_agreement_is_the_share_named_as_asked():
    probabilities = certain([0, 1, 2, 2], 3)
    assert classes.agreement(probabilities, np.array([0, 1, 2, 0])) == 0.75
    assert classes.agreement(probabilities, np.array([1, 2, 0, 0])) == 0.0
