# SPDX-License-Identifier: MIT
"""Results as tables for the terminal and for the page, and as a chart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.table

Row = dict[str, Any]


def title(row: Row) -> str:
    """The case that a row belongs to."""
    if row["kind"] == "training":
        return f"{row['model']} {row['network']}, batch {row['batch_size']}, {row['dtype']}"
    size = f", {row['resolution']} pixels" if row.get("resolution") else ""
    return f"{row['model']} {row['part']}{size}, batch {row['batch_size']}, {row['dtype']}"


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by the title of their case, in order."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(title(row), []).append(row)
    return cases


def table(name: str, rows: Sequence[Row]) -> rich.table.Table:
    """The table of the rows of one case."""
    grid = rich.table.Table(title=name, title_justify="left", title_style="bold")
    for i, heading in enumerate(headings(rows)):
        grid.add_column(heading, justify="right" if i else "left", no_wrap=i == 0)
    for row in rows:
        grid.add_row(*cells(row, rows))
    return grid


def headings(rows: Sequence[Row]) -> list[str]:
    """The headings of the table of these rows."""
    against = [f"x {name}" for name in _others(rows)]
    return [
        "candidate", "images/s", "quartiles", "steps/s", *against, "first step", "compile",
        "memory", "matmul", "copy",
    ]  # fmt: skip


def cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """The cells of a row, in the order of `headings`."""
    rate, steps = row["images_per_second"], row["steps_per_second"]["median"]
    ratios = [row["faster_than"].get(name) for name in _others(rows)]
    return [
        row["candidate"],
        number(rate["median"]),
        f"{number(rate['low'])} - {number(rate['high'])}",
        number(steps),
        *["" if r is None else f"{r['median']:.2f}" for r in ratios],
        _optional(row, "time_to_first_step_s", "{:.2f} s"),
        _optional(row, "compile_s", "{:.2f} s"),
        _memory(row),
        _optional(row, "fraction_of_matmul", "{:.1%}"),
        _optional(row, "fraction_of_copy", "{:.1%}"),
    ]


def number(value: float) -> str:
    """The number with three digits, or whole from 100 on, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def chart(rows: Sequence[Row], subtitle: str, path: Path) -> None:
    """Writes a PNG with a panel for each case, in it a bar with quartiles for each candidate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = groups(rows)
    heights = [0.6 + 0.3 * len(part) for part in cases.values()]
    figure, axes = plt.subplots(
        len(cases), 1, figsize=(9, sum(heights) + 1), layout="constrained", squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    for axis, (name, part) in zip(axes[:, 0], cases.items(), strict=True):
        _panel(axis, name, part)
    axes[-1, 0].set_xlabel("images per second (median, quartiles)")
    figure.suptitle(subtitle, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(axis: Any, name: str, rows: Sequence[Row]) -> None:
    rates = [row["images_per_second"] for row in rows]
    medians = [rate["median"] for rate in rates]
    around = [[r["median"] - r["low"] for r in rates], [r["high"] - r["median"] for r in rates]]
    colours = ["C0" if row["candidate"].startswith("jaxgen") else "C1" for row in rows]
    labels = [row["candidate"] for row in rows]
    axis.barh(labels, medians, xerr=around, color=colours, ecolor="black", capsize=2)
    axis.invert_yaxis()
    axis.set_title(name, loc="left", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.bar_label(axis.containers[-1], [f" {number(m)}" for m in medians], fontsize=7)
    axis.margins(x=0.15)


def _others(rows: Sequence[Row]) -> list[str]:
    """The peers that these rows are compared with."""
    return list(dict.fromkeys(name for row in rows for name in row["faster_than"]))


def _memory(row: Row) -> str:
    size = row.get("device_memory_bytes") or row.get("program_memory_bytes")
    return f"{size / 1e6:,.0f} MB" if size else ""


def _optional(row: Row, name: str, form: str) -> str:
    return form.format(row[name]) if row.get(name) is not None else ""


# --- estimates for TPUs ------------------------------------------------------------------------

TPU_HEADINGS = [
    "program", "memory", "of HBM", "GFLOP", "traffic", "collectives", "arithmetic", "HBM",
    "network", "images/s (estimate)",
]  # fmt: skip


def tpu_cells(row: Row) -> list[str]:
    """The cells of a compiled program, in the order of `TPU_HEADINGS`."""
    if "memory_bytes" not in row:
        return [row["program"], f"FAILED: {row['error']}", *[""] * (len(TPU_HEADINGS) - 2)]
    kinds = ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items())
    images, seconds = row["images_per_step"], row["seconds_estimated"]
    return [
        row["program"],
        f"{row['memory_bytes'] / 1e9:.2f} GB",
        f"{row['memory_bytes'] / row['hbm_bytes']:.0%}" + (" FAILED" if row["error"] else ""),
        number(row["flops"] / 1e9),
        f"{number(row['bytes'] / 1e9)} GB",
        f"{kinds} ({number(row['collective_bytes'] / 1e6)} MB)" if kinds else "none",
        *[f"{number(row[name] * 1e3)} ms" for name in ("arithmetic_s", "memory_s", "network_s")],
        number(images / seconds) if images else "",
    ]


# --- GPU programs, counted by the compiler -----------------------------------------------------

GPU_HEADINGS = [
    "program", "kernels", "launches", "graphs", "traffic", "arguments", "temporaries", "reused",
    "collectives", "attention", "convolutions", "float32",
]  # fmt: skip


def gpu_cells(row: Row) -> list[str]:
    """The cells of a compiled program, in the order of `GPU_HEADINGS`."""
    if "kernels" not in row:
        return [row["program"], f"FAILED: {row['error']}", *[""] * (len(GPU_HEADINGS) - 2)]
    whole = row["program"].endswith("from the sum")  # memory and calls are those of its parts
    kinds = ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items())
    wide = row["wide_convolutions"] + row["wide_products"]
    sizes = [row[f"{name}_bytes"] for name in ("argument", "temp", "alias")]
    return [
        row["program"] + (" FAILED: " + row["error"] if row["error"] else ""),
        *[number(row[name]) if row[name] else "0" for name in ("kernels", "launches", "graphs")],
        _bytes(row["bytes"]),
        *["" if whole else _bytes(size) for size in sizes],
        f"{kinds} ({_bytes(row['collective_bytes'])})" if kinds else "none",
        *["" if whole else _calls(row, name) for name in ("fmha", "$conv")],
        "" if whole or row["dtype"] == "float32" else str(wide),
    ]


def _bytes(size: int) -> str:
    return f"{number(size / 1e9)} GB" if size >= 1e9 else f"{number(size / 1e6)} MB"


def _calls(row: Row, part: str) -> str:
    """The calls of cuDNN whose name has this part."""
    return str(sum(count for name, count in row["calls"].items() if part in name))
