# SPDX-License-Identifier: MIT
"""Results of `iwae_table.py` beside those of Burda et al. 2016 (arXiv:1509.00519)."""

from typing import NamedTuple

import numpy as np
from scipy import stats

KINDS = ("vae", "iwae")
# (stochastic layers, k) -> test -log p(x) in nats of (VAE, IWAE), and their active units
TABLE_1 = {
    (1, 1): ((86.76, "19"), (86.76, "19")),
    (1, 5): ((86.47, "20"), (85.54, "22")),
    (1, 50): ((86.35, "20"), (84.78, "25")),
    (2, 1): ((85.33, "16+5"), (85.33, "16+5")),
    (2, 5): ((85.01, "17+5"), (83.89, "21+5")),
    (2, 50): ((84.78, "17+5"), (82.90, "26+7")),
}
# after another last stage: VAE of k = 1, then IWAE of k, and IWAE of k, then VAE of k = 1
TABLE_2 = {(1, 50): ((84.88, "22"), (86.02, "23"))}
# of the paper mode; in 1, which results do not say, layers of one shape began with independent
# weights, and Adam used the moments of the step itself
REVISION = 2
RECIPES = ("paper", "paper, revision 1", "modern")
HEAD = (
    "| recipe | layers | k | objective | epochs | training images | seeds | nats here "
    "| 95 % interval | paper, all epochs | difference | active here | paper |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


class Group(NamedTuple):
    """What the runs of one row of the table have in common."""

    recipe: int  # of RECIPES
    swapped: bool
    layers: int
    k: int
    objective: str
    stages: int
    training_images: int


def table(results: list[dict]) -> str:
    """Writes the results beside the paper's, as Markdown: means over seeds."""
    groups: dict[Group, list[dict]] = {}
    for row in (row for result in results for row in result["rows"]):
        group = Group(recipe_of(row), *(row[name] for name in Group._fields[1:]))
        groups.setdefault(group, []).append(row)
    return "\n".join([HEAD, *(line(group, groups[group]) for group in sorted(groups))]) + "\n"


def recipe_of(row: dict) -> int:
    """Returns the place of a result's recipe in RECIPES."""
    if row.get("mode") == "modern":
        return 2
    return 0 if row.get("revision") == REVISION else 1


def line(group: Group, rows: list[dict]) -> str:
    """Writes a row of the table, of all seeds."""
    known = (TABLE_2 if group.swapped else TABLE_1).get((group.layers, group.k))
    nats = np.mean([row["nats"] for row in rows])
    paper = ("", "", "")
    if known is not None:
        paper_nats, paper_units = known[KINDS.index(group.objective)]
        paper = (f"{paper_nats:.2f}", f"{nats - paper_nats:+.2f}", paper_units)
    epochs = sum(3**i for i in range(group.stages)) + group.swapped * 3 ** (group.stages - 1)
    cells = [
        RECIPES[group.recipe], group.layers, group.k, title(group), epochs,
        group.training_images, len(rows), f"{nats:.2f}", interval(rows), *paper[:2],
        ", ".join(row["active"] for row in rows), paper[2],
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def title(group: Group) -> str:
    """Names the objective of a row; of a swap, both in their order."""
    iwae = "DReG" if RECIPES[group.recipe] == "modern" else "IWAE"
    if not group.swapped:
        return "VAE" if group.objective == "vae" else iwae
    return (
        f"VAE of k = 1, then {iwae}" if group.objective == "vae" else f"{iwae}, then VAE of k = 1"
    )


def interval(rows: list[dict]) -> str:
    """Writes the interval of the mean, Student's over seeds.

    One run has that of its draws of z and, where its results have it, of the test set's pixels.
    """
    nats = np.array([row["nats"] for row in rows])
    if len(rows) == 1:
        noise, pixels = rows[0]["noise"], rows[0].get("pixels", 0.0)
        drawn = "z and pixels" if pixels else "z"
        return f"+- {1.96 * np.hypot(noise, pixels):.2f} (draws of {drawn})"
    half = stats.t.ppf(0.975, len(nats) - 1) * nats.std(ddof=1) / np.sqrt(len(nats))
    return f"+- {half:.2f} (seeds)"
