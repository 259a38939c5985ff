# SPDX-License-Identifier: MIT
"""Edges of a picture, as ControlNets that were trained on Canny's edges take them."""

import numpy as np
from scipy import ndimage

# along the gradient: (rows, columns) of the neighbour before and after, by its direction in 45
# degrees; 0 is along the row
NEIGHBOURS = ((0, 1), (1, 1), (1, 0), (1, -1))


def canny(picture: np.ndarray, low: float = 100.0, high: float = 200.0) -> np.ndarray:
    """White edges on black, uint8 [H, W, 3], of a picture uint8 [H, W] or [H, W, 3].

    Canny 1986 (doi:10.1109/TPAMI.1986.4767851), in the form of OpenCV's function of this name, with
    which the networks' data were made: 3 x 3 Sobel gradients of the channel that changes most, the
    sum of their two absolute values as size, only the ridge across each edge, and of that what is
    larger than `high` or touches, by way of pixels larger than `low`, what is. No blur.
    """
    _check(picture, low, high)
    pixels = np.atleast_3d(picture).astype(np.int64)
    x, y = _sobel(pixels, 1), _sobel(pixels, 0)
    size = np.abs(x) + np.abs(y)
    strongest = size.argmax(axis=2)[..., None]
    x, y, size = (np.take_along_axis(a, strongest, axis=2)[..., 0] for a in (x, y, size))
    candidates = _is_ridge(x, y, size) & (size > low)
    pieces, _ = ndimage.label(candidates, structure=np.ones((3, 3)))
    kept = np.unique(pieces[candidates & (size > high)])
    edges = np.isin(pieces, kept[kept > 0])
    return np.repeat((edges * 255).astype(np.uint8)[..., None], 3, axis=2)


def _check(picture: np.ndarray, low: float, high: float) -> None:
    shape = np.shape(picture)
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[2] not in (1, 3)):
        raise ValueError(f"the picture has shape {shape}; expected [H, W] or [H, W, 3]")
    if np.asarray(picture).dtype != np.uint8:
        raise ValueError(f"the picture is {np.asarray(picture).dtype}; expected uint8, 0 to 255")
    if not 0 <= low <= high < np.inf:
        raise ValueError(f"thresholds are {low} and {high}; the first must be the smaller one")


def _sobel(pixels: np.ndarray, axis: int) -> np.ndarray:
    """The 3 x 3 Sobel derivative along an axis of the picture, of each channel by itself."""
    smoothed = ndimage.correlate1d(pixels, [1, 2, 1], axis=1 - axis, mode="nearest")
    return ndimage.correlate1d(smoothed, [-1, 0, 1], axis=axis, mode="nearest")


def _is_ridge(x: np.ndarray, y: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Whether a pixel's gradient [H, W] is larger than its two neighbours' along the gradient.

    On a plateau of two, the first is.
    """
    tangent = np.tan(np.pi / 8)
    steep = np.abs(y) > np.abs(x) / tangent
    flat = np.abs(y) < np.abs(x) * tangent
    same_sign = (x < 0) == (y < 0)
    direction = np.select([flat, steep, same_sign], [0, 2, 1], 3)
    padded = np.pad(size, 1)
    result = np.zeros(size.shape, bool)
    h, w = size.shape
    for k, (row, column) in enumerate(NEIGHBOURS):
        before = padded[1 - row : 1 - row + h, 1 - column : 1 - column + w]
        after = padded[1 + row : 1 + row + h, 1 + column : 1 + column + w]
        last = size > after if k in (1, 3) else size >= after
        result |= (direction == k) & (size > before) & last
    return result
