# SPDX-License-Identifier: MIT
"""The notebooks' figures, in one style: readable on light and on dark pages.

Images are arrays [N, H, W, C] or [N, H, W], float in [-1, 1] or uint8. Every function draws one
figure of the notebook and returns nothing, except `axes`, which gives axes to draw into.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython import display
from matplotlib.axes import Axes
from PIL import Image

import quick
from jaxgen.pictures import images as pictures

TEXT = "#7d838c"  # as far from white as from black
BLUE, ORANGE, GREEN, RED, PURPLE = COLOURS = (
    "#3d85c6", "#e08a1e", "#2fa27b", "#d64f5c", "#9a6fc4",
)  # fmt: skip
TEN = (*COLOURS, "#8c6d4f", "#c2679b", "#7f8c3b", "#35a3b5", "#8a8f98")  # one for each class
WIDTH = 7.0  # inches, of every figure
DPI = 25 if quick.ON else 100  # nobody looks at the figures of a quick run

plt.rcParams.update({
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "figure.dpi": DPI, "savefig.dpi": DPI, "figure.constrained_layout.use": not quick.ON,
    "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": TEXT, "axes.titlecolor": TEXT,
    "xtick.color": TEXT, "ytick.color": TEXT, "legend.frameon": False,
    "axes.prop_cycle": plt.cycler(color=COLOURS), "lines.linewidth": 1.8,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": TEXT, "grid.alpha": 0.2, "grid.linewidth": 0.6,
    "axes.titlesize": 11, "axes.labelsize": 10, "axes.titleweight": "bold", "font.size": 10,
})  # fmt: skip


def axes(columns: int = 1, height: float = 2.6, width: float = WIDTH) -> Any:
    """Axes side by side: one Axes for one column, otherwise an array of them."""
    return plt.subplots(1, columns, figsize=(width, height))[1]


def as_uint8(images: Any) -> np.ndarray:
    """Images as uint8 [N, H, W, C], whatever their form."""
    images = np.asarray(images)
    images = images if images.ndim == 4 else images[..., None]
    return images if images.dtype == np.uint8 else pictures.to_uint8(images)


def mosaic(images: Any, columns: int, gap: int = 1) -> np.ndarray:
    """One RGBA picture of many images, row by row; the gaps between them are transparent."""
    images = as_uint8(images)
    rows = math.ceil(len(images) / columns)
    n, h, w, c = images.shape
    colour = images if c == 3 else np.repeat(images, 3, axis=-1)
    tiles = np.zeros((rows * columns, h + gap, w + gap, 4), np.uint8)
    tiles[:n, :h, :w, :3], tiles[:n, :h, :w, 3] = colour, 255
    tiles = tiles.reshape(rows, columns, h + gap, w + gap, 4).swapaxes(1, 2)
    return tiles.reshape(rows * (h + gap), columns * (w + gap), 4)[: -gap or None, : -gap or None]


def show_grid(images: Any, columns: int, title: str = "", width: float = WIDTH) -> None:
    """Shows images row by row, under a title."""
    picture = mosaic(images, columns)
    height = width * picture.shape[0] / picture.shape[1] + (0.3 if title else 0)
    place(axes(width=width, height=height), picture, title)
    plt.show()


def show_rows(rows: Mapping[str, Any], width: float = WIDTH, columns: Sequence[str] = ()) -> None:
    """Shows one labelled row of images for each entry, all of the same length.

    columns: what stands above each column.
    """
    count = max(len(images) for images in rows.values())
    picture = np.concatenate([
        np.pad(mosaic(images, count), ((0, 1), (0, 0), (0, 0))) for images in rows.values()
    ])  # fmt: skip
    side = picture.shape[0] / len(rows)
    longest = 0.09 * max(map(len, rows)) + 0.1  # inches of the labels
    height = (width - longest) * picture.shape[0] / picture.shape[1]
    lines = max((len(name.split()) for name in columns), default=0)
    panel = axes(width=width, height=height + 0.13 * lines + (0.15 if lines else 0))
    place(panel, picture)
    panel.set_yticks(side * (np.arange(len(rows)) + 0.5), list(rows))
    if columns:
        panel.xaxis.tick_top()
        centres = picture.shape[1] / count * (np.arange(count) + 0.5)
        panel.set_xticks(centres, ["\n".join(name.split()) for name in columns], fontsize=7)
    panel.tick_params(left=False, top=False)
    plt.show()


def show_side_by_side(panels: Mapping[str, Any], columns: int, width: float = WIDTH) -> None:
    """Shows grids of images beside one another, each with `columns` columns and its title."""
    grids = [mosaic(images, columns) for images in panels.values()]
    height = width / len(panels) * max(p.shape[0] / p.shape[1] for p in grids) + 0.35
    for panel, picture, title in zip(
        np.atleast_1d(axes(len(panels), height, width)), grids, panels, strict=True
    ):
        place(panel, picture, title)
    plt.show()


def show_gif(frames: Sequence[Any], columns: int, seconds: float = 0.2, scale: int = 2) -> None:
    """Shows a moving picture; every frame is a batch of images, shown row by row."""
    stills = []
    for images in frames:
        picture = Image.fromarray(mosaic(images, columns)).convert("RGB")
        size = (picture.width * scale, picture.height * scale)
        stills.append(picture.resize(size, Image.Resampling.NEAREST).quantize(64))
    file = io.BytesIO()
    stills[0].save(
        file, "GIF", save_all=True, append_images=stills[1:], duration=int(1000 * seconds), loop=0
    )
    display.display(display.Image(file.getvalue(), format="gif"))


def place(panel: Axes, picture: np.ndarray, title: str = "") -> None:
    """Draws a picture, such as a mosaic, into axes."""
    panel.imshow(picture, interpolation="nearest", aspect="equal")
    panel.set_title(title)
    panel.grid(False)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)


def smooth(values: Sequence[float], window: int = 50) -> np.ndarray:
    """The mean of the last `window` values (fewer at the start), as long as the values."""
    total = np.cumsum(np.concatenate([[0.0], np.asarray(values, np.float64)]))
    end = np.arange(1, len(total))
    start = np.maximum(0, end - window)
    return (total[end] - total[start]) / (end - start)
