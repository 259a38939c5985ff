# SPDX-License-Identifier: MIT
"""Plots of studies: how far runs of one kind lie apart, and rate against distortion."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Panel(NamedTuple):
    """One figure of many runs; all panels of a picture have the same rows."""

    title: str
    values: Mapping[str, Sequence[float]]  # row -> a value for each run
    colours: Mapping[str, Sequence[float]]  # row -> a positive number for each run
    most: float  # the largest value there can be; the least is 0


def spreads(panels: Sequence[Panel], colour_name: str) -> Image.Image:
    """Draws the panels beside each other: a dot for each run and a bar at the median of each row.

    Dots of a row are moved apart by their colour's rank, so that equal values are all seen. The
    colours are on a logarithmic scale. Raises ValueError for no panels and for other rows.
    """
    rows = list(panels[0].values) if panels else []
    if not rows or any(list(panel.values) != rows for panel in panels):
        raise ValueError("panels of different rows; give one or more panels of the same rows")
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    everything = [c for panel in panels for row in rows for c in panel.colours[row]]
    norm = LogNorm(min(everything), max(everything))
    size = (2.4 + 2.2 * len(panels), 1.2 + 0.36 * len(rows))
    picture = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(picture.subplots(1, len(panels), sharey=True))
    for axis, panel in zip(axes, panels, strict=True):
        for place, row in enumerate(rows):
            values, colours = np.array(panel.values[row]), np.array(panel.colours[row])
            rank = np.argsort(np.argsort(colours))
            height = place - 0.3 + 0.6 * (rank + 0.5) / len(rank)
            axis.scatter(values, height, c=colours, norm=norm, s=14, linewidths=0)
            axis.plot([np.median(values)] * 2, [place - 0.4, place + 0.4], color="black", lw=2)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlim(-0.05 * panel.most, 1.05 * panel.most)
        axis.grid(axis="x", alpha=0.25)
        axis.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(rows)), [row.replace("_", " ") for row in rows], fontsize=9)
    axes[0].invert_yaxis()
    scale = ScalarMappable(norm)  # in the colours of the dots, the default
    picture.colorbar(scale, ax=list(axes), label=colour_name, pad=0.01)
    return _image(picture)


class Place(NamedTuple):
    """A measured point of the plane, with its standard errors."""

    label: str
    x: float
    x_error: float
    y: float
    y_error: float


def plane(places: Sequence[Place], names: tuple[str, str], sum_name: str) -> Image.Image:
    """Draws points with errors, joined in their order; dashed lines are of equal sums x + y."""
    from matplotlib.figure import Figure

    x, x_error, y, y_error = (
        np.array([getattr(place, name) for place in places])
        for name in ("x", "x_error", "y", "y_error")
    )
    picture = Figure(figsize=(6.4, 4.6), layout="constrained")
    axis = picture.subplots()
    axis.errorbar(x, y, 2 * y_error, 2 * x_error, marker="o", markersize=4, lw=1.2, color="black")
    width, height = np.ptp(x) or 1.0, np.ptp(y) or 1.0  # of places that all agree, any
    for i, place in enumerate(places):
        near = np.hypot((x[:i] - x[i]) / width, (y[:i] - y[i]) / height) < 0.03
        offset = (6 + 12 * int(near.sum()), 5)  # beside the labels that are there
        axis.annotate(
            place.label, (place.x, place.y), offset, textcoords="offset points", fontsize=9
        )
    ends = np.array([0.0, 1.08 * x.max() or 1.0])
    axis.set_xlim(*ends)
    axis.set_ylim(*axis.get_ylim())
    lowest = np.min(x + y)
    for i, total in enumerate(np.linspace(lowest, np.max(x + y), 6)[:-1]):
        label = f"equal {sum_name}, the lowest {lowest:.1f}" if i == 0 else None
        axis.plot(ends, total - ends, "--", lw=0.7, color="tab:blue", alpha=0.7, label=label)
    axis.legend(fontsize=8)
    axis.set_xlabel(names[0])
    axis.set_ylabel(names[1])
    axis.grid(alpha=0.2)
    return _image(picture)


def _image(figure: Any) -> Image.Image:
    """The figure of matplotlib as a picture."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return Image.open(content).convert("RGB")
