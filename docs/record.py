# SPDX-License-Identifier: MIT
"""Runs the commands behind tables of docs/objectives.md and keeps what they print, as raw results.

A measurement is some runs, and a run some commands of which the last one evaluates. Its lines go to
docs/evaluations/NAME.json, after every run; runs that are there already are not repeated. Data and
runs lie in the folder that it is called from.

Examples:
    python docs/record.py latents                      # some minutes on one core
    python docs/record.py hinge compress
    python docs/record.py gan_mnist_seeds stacked      # from a folder that has path/to/mnist_idx
    python docs/tables.py                              # the tables from the results
"""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent)]

from jaxgen import files, script  # noqa: E402
from jaxgen.measure import environment  # noqa: E402

FOLDER = DOCS / "evaluations"
MNIST = "path/to/mnist_idx"


class Run(NamedTuple):
    """A row of a table: its name there, and the commands that lead to its figures."""

    label: str
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Config:
    """Options of the measurements."""

    names: tyro.conf.Positional[tuple[str, ...]]  # the measurements to make


def gan(label: str, flags: str, prefix: str, evaluation: str = "") -> Run:
    """Trains by `gan.py`, and evaluates; the run's folder is named by a prefix and the label."""
    folder = f"--run-dir runs/{prefix}_{label.replace(' ', '_').replace(',', '')}"
    evaluate = f"python experiments/gan.py {folder} --action evaluate {evaluation}"
    return Run(label, (f"python experiments/gan.py {flags} {folder}", evaluate.strip()))


def hinge() -> list[Run]:
    """Hinge with spectral norm on digits: by generator, slope and the generator's rate."""
    game = "--objective hinge --spectral --r1 0 --steps 1500"
    slow = "--slope 8 --learning-rate 2e-4 --discriminator-rate 1e-3"
    kinds = {
        "128 units, slope 1": "--hidden 128 128 --slope 1",
        "128 units, slope 8": "--hidden 128 128 --slope 8",
        "512 units, slope 1": "--hidden 512 512 --slope 1",
        "512 units, slope 8": "--hidden 512 512 --slope 8",
        "512 units, slope 8, R1 of 0.1": "--hidden 512 512 --slope 8 --r1 0.1",
        "512 units, slope 8, slow generator": f"--hidden 512 512 {slow}",
    }
    return [
        gan(f"{kind}, seed {seed}", f"{game} {flags} --seed {seed}", "hinge")
        for kind, flags in kinds.items()
        for seed in range(3)
    ]


def latents() -> list[Run]:
    """Samples of an autoencoder and a VAE, by what their latents are drawn from; three seeds."""

    def one(name: str, seed: int) -> Run:
        folder = f"--run-dir runs/latents_{name}_{seed}"
        script_path = f"python experiments/{name}.py"
        train = f"{script_path} --steps 600 --seed {seed} {folder}"
        return Run(f"{name}, seed {seed}", (train, f"{script_path} {folder} --action evaluate"))

    return [one(name, seed) for name in ("autoencoder", "vae") for seed in range(3)]


def compress() -> list[Run]:
    """Digits in a file of their negative ELBO's size."""
    train = "python experiments/vae.py --steps 600 --run-dir runs/compress"
    write = "python experiments/compress.py --run-dir runs/compress --split train"
    return [Run("digits", (train, f"{write} --file runs/digits.vae"))]


def gan_mnist_seeds() -> list[Run]:
    """The GAN's MNIST preset, three seeds."""
    return [
        gan(
            str(seed),
            f"--preset mnist --data {MNIST} --seed {seed}",
            "gan_mnist",
            "--classification-score",
        )
        for seed in range(3)
    ]


def gan_mnist_ways() -> list[Run]:
    """The GAN's MNIST preset without labels, and the preset that it replaced."""
    former = "--network conv --width 32 --r1 1 --learning-rate 2e-4 --epochs 10 --batch-size 64"
    return [
        gan("without labels", f"--preset mnist --data {MNIST} --no-conditional", "gan_mnist"),
        gan("before", f"{former} --data {MNIST}", "gan_mnist"),
    ]


def stacked() -> list[Run]:
    """Modes of a GAN of stacked MNIST, three seeds."""
    stacked_modes = "python experiments/studies/stacked_modes.py"
    images = "runs/stacked.npz"
    train = (
        f"python experiments/gan.py --network conv --data {images} --width 16 "
        "--discriminator-width 48 --objective relativistic --r1 0.1 --r2 0.1 --b1 0 "
        "--learning-rate 1e-3 --schedule linear --steps 2000 --batch-size 64"
    )

    def one(label: str, seed: str, folder: str) -> Run:
        return Run(
            label,
            (
                f"{stacked_modes} --data {MNIST} --output {images}",
                f"{train}{seed} --run-dir {folder}",
                f"{stacked_modes} --action count --data {MNIST} --run-dir {folder}",
            ),
        )

    return [
        one("relativistic", "", "runs/stacked"),
        *(one(f"seed {i}", f" --seed {i}", f"runs/stacked-{i}") for i in (1, 2)),
    ]


MEASUREMENTS = {
    "hinge": hinge,
    "latents": latents,
    "compress": compress,
    "gan_mnist_seeds": gan_mnist_seeds,
    "gan_mnist_ways": gan_mnist_ways,
    "stacked": stacked,
}


def measure(name: str) -> Path:
    """Makes the runs of a measurement that its file has not, and returns the file.

    Raises ValueError for a run in the file that other commands made.
    """
    path = FOLDER / f"{name}.json"
    runs = files.read_object(path)["runs"] if path.is_file() else []
    known = {run["label"]: run["commands"] for run in runs}
    wanted = MEASUREMENTS[name]()
    places = {run.label: place for place, run in enumerate(wanted)}
    for run in wanted:
        if run.label in known:
            if known[run.label] != list(run.commands):
                raise ValueError(f"{path} has {run.label!r} by other commands; delete it there")
            continue
        where = environment.record()
        for command in run.commands:
            print(command, flush=True)
            lines = output(command)
        runs.append({"environment": where, **run._asdict(), "lines": lines})
        runs.sort(key=lambda kept: places.get(kept["label"], len(places)))
        content = json.dumps({"runs": runs}, indent=1) + "\n"
        files.write_whole(path, lambda p, c=content: p.write_text(c))
    return path


def output(command: str) -> list[str]:
    """Runs a command "python SCRIPT ..." of this package, and returns the lines that it printed.

    Raises ValueError, with the end of what it said, for one that fails.
    """
    _, script_path, *flags = shlex.split(command)
    paths = os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")])
    finished = subprocess.run(
        [sys.executable, str(DOCS.parent / script_path), *flags],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if finished.returncode:
        raise ValueError(f"{command} failed: {(finished.stdout + finished.stderr)[-2000:]}")
    return finished.stdout.splitlines()


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    unknown = sorted(set(config.names) - set(MEASUREMENTS))
    if unknown or not config.names:
        what = f"unknown measurement {', '.join(unknown)}" if unknown else "no measurement"
        raise ValueError(f"{what}; name some of {', '.join(MEASUREMENTS)}")
    FOLDER.mkdir(exist_ok=True)
    for name in config.names:
        print(measure(name))


if __name__ == "__main__":
    script.main(main)
