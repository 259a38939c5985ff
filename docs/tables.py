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
from collections.abc import Callable, Sequence
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


def of_cifar_vae() -> str:
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


def of_cifar_gan() -> str:
    """Tabulates the curve of the GAN's CIFAR-10 preset, as far as it was run."""
    rows = files.read_object(DOCS / "cifar10_gan.json")["rows"]
    columns = ("d_loss", "g_loss", "d_real", "d_fake")
    lines = [
        f"| {row['step']} | {' | '.join(f'{row[name]:.2f}' for name in columns)} |" for row in rows
    ]
    head = "| step | discriminator's loss | generator's loss | real images | generated images |"
    return "\n".join([head, "|---|---|---|---|---|", *lines])


def of_cifar_codes(name: str, columns: dict[str, str]) -> str:
    """Tabulates the curve of a CIFAR-10 preset of an autoencoder or a VQ-VAE, as far as it was run.

    columns: the metrics and their titles; `mse`, of pixels in [-1, 1], has its PSNR beside it.
    """
    record = files.read_object(DOCS / f"cifar10_{name}.json")
    rows = [row for row in record["rows"] if row["step"] in (1, record["steps"], *record["shown"])]
    lines = [
        f"| {row['step']} | {' | '.join(f'{row[key]:.4g}' for key in columns)} "
        f"| {-10 * math.log10(row['mse'] / 4):.1f} |"
        for row in rows
    ]
    head = f"| step | {' | '.join(columns.values())} | PSNR, dB |"
    return "\n".join([head, "|---" * (len(columns) + 2) + "|", *lines])


def evaluations(name: str) -> list[dict]:
    """Reads the runs that docs/record.py made: their labels, commands and printed lines."""
    return files.read_object(DOCS / "evaluations" / f"{name}.json")["runs"]


FLOORED = r" +([-\d.]+) \+- [\d.]+ +([-\d.]+)"  # generated +- deviation, and real images
REAL = r"(?: +real ([\d.]+))?"  # of the judge's figures; older lines have none
# of the lines of `gan.py --action evaluate`: the figure, and that of real images where there is one
GAN_COLUMNS = {
    "confidence": rf"confidence +([\d.]+){REAL}",
    "class entropy": rf"class entropy +-?([\d.]+) of [\d.]+ nats{REAL}",
    "classes missing": r"missing classes +(none|[\d ,]+)()",
    "class as asked": rf"as asked +([\d.]+){REAL}",
    "accuracy score": r"classification +([\d.]+) .* ([\d.]+) by (?:as many )?real ones",
    "Frechet": "frechet " + FLOORED,
    "coverage": "coverage" + FLOORED,
    "nearest neighbour": "nearest neighbour" + FLOORED,
}


def of_gan_runs(name: str, of_label: str, columns: list[str], means: bool) -> str:
    """Tabulates the runs of a measurement, their mean and deviation if asked for; real images."""
    return gan_table(evaluations(name), of_label, columns, means)


def gan_table(runs: list[dict], of_label: str, columns: list[str], means: bool = False) -> str:
    """Tabulates runs of `gan.py`, their mean and deviation if asked for, and real images."""
    figures = [[figure(run, column) for column in columns] for run in runs]
    lines = [[of_label, *columns], ["---"] * (1 + len(columns))]
    lines += [
        [run["label"], *(generated for generated, _ in row)]
        for run, row in zip(runs, figures, strict=True)
    ]
    if means:
        by_column = [[float(row[i][0]) for row in figures] for i in range(len(columns))]
        cells = [f"{statistics.mean(c):.4f} +- {statistics.stdev(c):.4f}" for c in by_column]
        lines.append(["mean", *cells])
    # older runs have not all of them; the real images are the same
    by_column = zip(*figures, strict=True)
    floors = [next((real for _, real in column if real), "") for column in by_column]
    lines.append(["real images", *floors])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(run: dict, name: str) -> tuple[str, str]:
    """Reads a figure in the lines of a run, and its floor. Raises ValueError where it is not."""
    match = re.search(GAN_COLUMNS[name], "\n".join(run["lines"]))
    if match is None:
        raise ValueError(f"the run {run['label']} has no {name}")
    return match[1], match[2] or ""


COMPRESSED = re.compile(
    r"([\d,]+) images: ([\d.]+) bits a pixel \((\d+) bytes .* ELBO ([\d.]+) bits a pixel: (.*) %"
)


def of_compression() -> str:
    """Tabulates how large digits are in a file of a trained VAE, beside its negative bound."""
    head = "images | bytes | bits a pixel in the file | negative ELBO, bits a pixel | difference"
    lines = [f"| {head} |", "|---|---|---|---|---|"]
    for run in evaluations("compress"):
        match = COMPRESSED.search("\n".join(run["lines"]))
        if match is None:
            raise ValueError(f"the run {run['label']} has no sizes")
        images, bits, size, bound, difference = match.groups()
        lines.append(f"| {int(images):,} | {int(size):,} | {bits} | {bound} | {difference} % |")
    return "\n".join(lines)


MODES = re.compile(
    r"^(real|model 0, step \d+): (\d+) of (\d+) modes.*KL ([\d.]+) nats", re.MULTILINE
)


def of_stacked() -> str:
    """Tabulates the modes of stacked images that a GAN draws, beside those of test images."""
    lines = ["| images | modes | reverse KL, nats |", "|---|---|---|"]
    for run in evaluations("stacked"):
        for what, found, known, divergence in MODES.findall("\n".join(run["lines"])):
            label = "stacked test images" if what == "real" else f"{run['label']}: {what}"
            lines.append(f"| {label} | {found} of {known} | {divergence} |")
    return "\n".join(lines)


PRESETS = {
    "before": "the preset before", "without labels": "the preset without labels",
    "0": "the preset",
}  # fmt: skip


def of_presets() -> str:
    """Tabulates the GAN's MNIST preset, seed 0, beside the same without labels and the former."""
    every = [*evaluations("gan_mnist_ways"), *evaluations("gan_mnist_seeds")]
    by_label = {run["label"]: run for run in every}
    runs = [by_label[label] | {"label": named} for label, named in PRESETS.items()]
    columns = ["confidence", "class entropy", "Frechet", "coverage", "nearest neighbour"]
    return gan_table(runs, "samples of", columns)


LATENTS = {
    "N(0, I)": "normal", "one Gaussian": "gaussian", "mixture of ten": "mixture",
    "real training images": "real",
}  # fmt: skip


def of_latents() -> str:
    """Tabulates the distances of samples by what their latents are drawn from, over seeds."""
    by_system: dict[str, list[dict]] = {}
    for run in evaluations("latents"):
        by_system.setdefault(run["label"].split(",")[0], []).append(run)
    lines = ["| latents | " + " | ".join(by_system) + " |", "|---|---|---|"]
    for label, word in LATENTS.items():
        cells = []
        for runs in by_system.values():
            found = [distances_of(run, word) for run in runs]
            pairs = zip(zip(*found, strict=True), (2, 4), strict=True)
            cells.append(" / ".join(mean_and_deviation(values, n) for values, n in pairs))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def distances_of(run: dict, word: str) -> tuple[float, float]:
    """Reads the Frechet and kernel distance of latents in the lines of a run."""
    match = re.search(rf"  {word} +(\S+) \+- \S+ +(\S+) \+-", "\n".join(run["lines"]))
    if match is None:
        raise ValueError(f"the run {run['label']} has no latents {word}")
    return float(match[1]), float(match[2])


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Writes a mean and, of several values, their standard deviation."""
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


TABLES: dict[str, Callable[[], str]] = {
    "gan_study_ring": partial(of_gans, "ring"),
    "gan_study_grid": partial(of_gans, "grid"),
    "gan_study_mnist": partial(of_gans, "mnist"),
    "rate_distortion": of_rates,
    "iwae_table": of_iwae,
    "vae_speedrun": of_races,
    "cifar10_vae": of_cifar_vae,
    "cifar10_gan": of_cifar_gan,
    "cifar10_autoencoder": partial(of_cifar_codes, "autoencoder", {"mse": "mse on [-1, 1]"}),
    "cifar10_vq_vae": partial(
        of_cifar_codes, "vq_vae", {"mse": "mse on [-1, 1]", "perplexity": "perplexity of 512"}
    ),
    "latents": of_latents,
    "compress": of_compression,
    "stacked": of_stacked,
    "gan_mnist": of_presets,
    "hinge": partial(
        of_gan_runs,
        "hinge",
        "run",
        ["confidence", "class entropy", "classes missing", "Frechet"],
        means=False,
    ),
    "gan_mnist_seeds": partial(
        of_gan_runs,
        "gan_mnist_seeds",
        "seed",
        [
            "confidence",
            "class as asked",
            "accuracy score",
            "Frechet",
            "coverage",
            "nearest neighbour",
        ],
        means=True,
    ),
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
