# SPDX-License-Identifier: MIT
"""Writes the tables of docs/objectives.md anew from the raw results beside it.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`.

Examples:
    python docs/tables.py
    python docs/tables.py --check     # an error if a table is not that of its results
"""

import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "experiments")]

import gan_study  # noqa: E402
import vae_speedrun  # noqa: E402
from jaxgen import files, script  # noqa: E402
from parts import iwae_paper  # noqa: E402
from studies import rate_distortion  # noqa: E402

PAGE = DOCS / "objectives.md"
PLACE = re.compile(r"(<!-- table: (\w+) -->\n\n).*?(\n\n<!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True)
class Config:
    """Options of the tables."""

    check: bool = False  # write nothing, and fail if a table is not up to date


def of_gans(target: str) -> str:
    """Tabulates the runs of `gan_study.py` on a target."""
    return gan_study.table(gan_study.read(DOCS / f"gan_study_{target}.json"))


def of_rates() -> str:
    """Tabulates the points of `studies/rate_distortion.py`."""
    return rate_distortion.table(rate_distortion.read(DOCS / "rate_distortion.json"))


def of_iwae() -> str:
    """Tabulates the cells of `iwae_table.py` that have been run, or says that none has."""
    paths = sorted((DOCS / "iwae_table").glob("*-stage*.json"))
    if not paths:
        return "No cell has been run yet."
    return iwae_paper.table([files.read_object(path) for path in paths]).rstrip("\n")


def of_races() -> str:
    """Tabulates the records of `vae_speedrun.py`."""
    lines = (DOCS / "vae_speedrun.jsonl").read_text().splitlines()
    return vae_speedrun.table([json.loads(line) for line in lines])


def of_cifar() -> str:
    """Tabulates the curve of the VAE's CIFAR-10 preset, as far as it was run."""
    record = files.read_object(DOCS / "cifar10_vae.json")
    bits = record["pixels"] * math.log(2)
    lines = [
        f"| {row['step']} | {row['beta']:.2f} | {row['kl_nats']:.0f} | {row['recon_nats']:.0f} "
        f"| {row['neg_elbo_nats'] / bits:.2f} |"
        for row in record["rows"]
        if row["step"] == 1 or row["step"] % 100 == 0
    ]
    head = "| step | beta | KL, nats | -log p(x \\| z), nats | bound, bits per value |"
    return "\n".join([head, "|---|---|---|---|---|", *lines])


FLOORED = r" +([-\d.]+) \+- [\d.]+ +([-\d.]+)"  # generated +- deviation, and real images
# of the lines of `gan.py --action evaluate`: the figure, and that of real images where there is one
SEED_COLUMNS = {
    "confidence": r"confidence +([\d.]+)()",
    "class as asked": r"as asked +([\d.]+)()",
    "accuracy score": r"classification +([\d.]+) .* ([\d.]+) by real ones",
    "Frechet": "frechet " + FLOORED,
    "coverage": "coverage" + FLOORED,
    "nearest neighbour": "nearest neighbour" + FLOORED,
}


def of_seeds() -> str:
    """Tabulates the GAN's MNIST preset by seed, with mean and standard deviation."""
    runs = files.read_object(DOCS / "gan_mnist_seeds.json")["runs"]
    figures = [[figure(run, *column) for column in SEED_COLUMNS.items()] for run in runs]
    rows = [[float(generated) for generated, _ in row] for row in figures]
    columns = list(zip(*rows, strict=True))
    cells = [f"{statistics.mean(c):.4f} +- {statistics.stdev(c):.4f}" for c in columns]
    lines = [["seed", *SEED_COLUMNS], ["---"] * (1 + len(columns))]
    lines += [
        [str(run["seed"]), *(f"{value:.4f}" for value in row)]
        for run, row in zip(runs, rows, strict=True)
    ]
    lines += [["mean", *cells], ["real images", *(real for _, real in figures[0])]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(run: dict, name: str, pattern: str) -> tuple[str, str]:
    """Reads a figure in the lines of a run, and its floor. Raises ValueError where it is not."""
    match = re.search(pattern, "\n".join(run["lines"]))
    if match is None:
        raise ValueError(f"the run of seed {run['seed']} has no {name}")
    return match[1], match[2]


TABLES: dict[str, Callable[[], str]] = {
    "gan_study_ring": partial(of_gans, "ring"),
    "gan_study_grid": partial(of_gans, "grid"),
    "gan_study_mnist": partial(of_gans, "mnist"),
    "rate_distortion": of_rates,
    "iwae_table": of_iwae,
    "vae_speedrun": of_races,
    "cifar10_vae": of_cifar,
    "gan_mnist_seeds": of_seeds,
}


def renewed(text: str) -> str:
    """Writes every table of the page anew. Raises ValueError for a table that is not there."""
    names = {name for _, name, _ in PLACE.findall(text)}
    if names != set(TABLES):
        raise ValueError(f"{PAGE} has places for {sorted(names)}, not for {sorted(TABLES)}")
    return PLACE.sub(lambda place: place[1] + TABLES[place[2]]() + place[3], text)


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    text = PAGE.read_text()
    content = renewed(text)
    if config.check:
        if content != text:
            raise ValueError(f"{PAGE} differs from its results; run python docs/tables.py")
        return
    PAGE.write_text(content)
    print(PAGE)


if __name__ == "__main__":
    script.main(main)
