# SPDX-License-Identifier: MIT
"""What a classifier says of samples: how sure it is, and which classes appear."""

from typing import NamedTuple

import numpy as np


class ClassReport(NamedTuple):
    """Figures of N samples judged by a classifier."""

    confidence: float  # mean probability of the class it names
    histogram: np.ndarray  # share of each class among the named ones [num_classes]
    entropy_nats: float  # of that histogram; log(num_classes) when all are equally frequent
    missing: tuple[int, ...]  # classes with less than a tenth of an equal share


def report(probabilities: np.ndarray) -> ClassReport:
    """The report for class probabilities [N, num_classes], rows summing to one."""
    count, num_classes = probabilities.shape
    named = np.argmax(probabilities, axis=1)
    histogram = np.bincount(named, minlength=num_classes) / count
    present = histogram[histogram > 0]
    missing = np.flatnonzero(histogram < 0.1 / num_classes)
    return ClassReport(
        float(np.mean(np.max(probabilities, axis=1))),
        histogram,
        float(-np.sum(present * np.log(present))),
        tuple(int(c) for c in missing),
    )


def agreement(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples named as the class they were asked to be: [N, num_classes], [N]."""
    return float(np.mean(np.argmax(probabilities, axis=1) == labels))
