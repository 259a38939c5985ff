# SPDX-License-Identifier: MIT
"""Figures from a classifier's view of samples: how sure it is, and which classes appear."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ClassReport(NamedTuple):
    """The figures of N samples."""

    confidence: float  # mean probability of the most probable class
    histogram: np.ndarray  # share of samples for which each class is that one [num_classes]
    entropy_nats: float  # of the histogram; log(num_classes) when all are equally frequent
    missing: tuple[int, ...]  # classes with less than a tenth of an equal share


def report(probabilities: np.ndarray) -> ClassReport:
    """Makes the report for class probabilities [N, num_classes], rows summing to one.

    Raises ValueError for probabilities that are not finite, and for none.
    """
    count, num_classes = probabilities.shape
    names = _most_probable(probabilities)
    histogram = np.bincount(names, minlength=num_classes) / count
    present = histogram[histogram > 0]
    missing = np.flatnonzero(histogram < 0.1 / num_classes)
    return ClassReport(
        float(np.mean(np.max(probabilities, axis=1))),
        histogram,
        float(-np.sum(present * np.log(present))) + 0.0,  # of one class -0, which looks wrong
        tuple(int(c) for c in missing),
    )


def lines(report: ClassReport, real: ClassReport, names: Sequence[str]) -> list[str]:
    """Writes the report as lines of text, beside that of real images; `names`: of classes."""
    most = np.log(len(names))
    return [
        f"  confidence       {report.confidence:.4f}   real {real.confidence:.4f}",
        f"  class entropy    {report.entropy_nats:.4f} of {most:.4f} nats   real "
        f"{real.entropy_nats:.4f}",
        f"  class shares     {_shares(report, names)}",
        f"    of real ones   {_shares(real, names)}",
        f"  missing classes  {', '.join(names[c] for c in report.missing) or 'none'}",
    ]


def _shares(report: ClassReport, names: Sequence[str]) -> str:
    return "  ".join(f"{n} {h:.3f}" for n, h in zip(names, report.histogram, strict=True))


def agreement(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Computes the share of samples whose most probable class is their label: [N, classes], [N]."""
    return float(np.mean(_most_probable(probabilities) == labels))


def _most_probable(probabilities: np.ndarray) -> np.ndarray:
    """Names the most probable class of each row; argmax alone would name one of NaN too."""
    if not len(probabilities):
        raise ValueError("class probabilities of no samples; give one or more")
    if not np.isfinite(probabilities).all():
        raise ValueError("class probabilities that are not finite; look at the classifier")
    return np.argmax(probabilities, axis=1)
