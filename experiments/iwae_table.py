# SPDX-License-Identifier: MIT
"""Reproduces Table 1 of Burda, Grosse & Salakhutdinov 2016 (arXiv:1509.00519) on dynamic MNIST.

Every setting is that of the authors' code (github.com/yburda/iwae), which differs from the paper in
places: Adam with b1 = 0.99, epsilon 1e-4 and a second moment that begins at 1; gradients summed
over batches of 20; no shuffling; the first 59,600 images; every use of an image binarizes it anew,
in testing too; stages of 3^i epochs at rounded rates. `--mode modern` is a recipe of later years
for the same models and as many epochs: shuffled batches of 128, Adam with a cosine of rates, the
doubly reparameterized gradient for IWAE, and a moving average of the parameters.

Examples:
    python experiments/iwae_table.py --data path/to/mnist_idx --budget 3     # stages 0 to 3 of 7
    python experiments/iwae_table.py --data path/to/mnist_idx --cells 1x1 1x5 --seeds 3
    python experiments/iwae_table.py --mode modern --budget 4 --data path/to/mnist_idx
    python experiments/iwae_table.py --action table --folder runs/iwae_table
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxgen import files, script
from jaxgen.data import sets
from jaxgen.evaluate import likelihood
from jaxgen.measure import environment
from jaxgen.nn import functional
from jaxgen.runs import plan
from jaxgen.train import latent_models, step
from jaxgen.types import Params
from parts import iwae_cells, iwae_paper
from parts.iwae_cells import NUM_STAGES, Cell

CELLS = {f"{layers}x{k}": Cell(layers, k) for layers, k in iwae_paper.TABLE_1}


@dataclass(frozen=True)
class Config:
    """Options of the table."""

    action: Literal["run", "table"] = "run"  # train and evaluate, or write the table
    data: str = "mnist"  # as in the other scripts: a TFDS name, a folder of IDX files, mnist5k
    mode: Literal["paper", "modern"] = "paper"  # the recipe of training
    budget: int = 7  # the last stage that is run, 0 to 7; stage i has 3^i epochs
    cells: tuple[str, ...] = tuple(CELLS)  # layers x k
    seeds: int = 1  # independent runs of each cell; those of a cell are one program
    swap: bool = False  # train the last stage with the other objective, as in the paper's Table 2
    nll_samples: int = 5000  # of z, for each test image
    test_images: int | None = None  # the first ones; all by default
    batch_size: int | None = None  # images; 20 in paper mode and 128 in modern mode by default
    save_every: int = 27  # epochs; a run that ended early goes on from there
    folder: Path = Path("runs/iwae_table")  # states and raw results
    table: Path = Path("outputs/iwae_table.md")  # action table: the file to write


def training_images(data: str, size: int) -> np.ndarray:
    """Reads the first 59,600 images of MNIST, as the code does; of other sets, whole batches."""
    images = sets.load(data, "train").images
    count = 59_600 if len(images) == 60_000 else len(images)
    if count < size:
        raise ValueError(f"{data} has {count} training images, less than --batch-size {size}")
    return images[: count // size * size]


def runs_of(config: Config, cell: Cell) -> list[tuple[str, int]]:
    """Lists (objective, seed) of the runs of a cell; for k = 1 both objectives are one."""
    kinds = iwae_paper.KINDS[: 1 if cell.k == 1 else 2]
    return [(kind, seed) for kind in kinds for seed in range(config.seeds)]


def train(config: Config, cell: Cell, images: np.ndarray) -> tuple[Any, float | None]:
    """Trains a cell to the end of the budget; returns its states, and microseconds per step.

    The microseconds are those of one run. Everything is a function of seed and step, so a run that
    goes on from its file is the same.
    """
    names, size = runs_of(config, cell), batch_size(config)
    seeds = [seed for _, seed in names]
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    init_keys, train_keys = jax.vmap(partial(jax.random.split, num=2))(keys).T
    steps, last = len(images) // size, sum(3**i for i in range(config.budget + 1))
    total = last + 3**config.budget * config.swap
    recipe = iwae_cells.recipe_of(config.mode, steps, size, total)
    epoch = iwae_cells.epoch_of(cell, recipe, size)
    first = lambda key: recipe.start(iwae_cells.init(cell, images, key))  # noqa: E731
    path = state_path(config, cell)
    states = begun(config, cell, jax.vmap(first)(init_keys), last * steps)
    files.check_writable(path)
    done = int(states.step[0]) // steps
    if done > total:
        raise ValueError(
            f"{path} has seen {done} epochs, more than the {total} of --budget {config.budget}; "
            f"use a larger budget or another --folder"
        )

    on_device, seconds = jnp.asarray(images), []
    for number in range(done, total):
        swapped = number >= last
        is_iwae = jnp.array([(kind == "iwae") != swapped for kind, _ in names])
        start = time.perf_counter()
        states, values = epoch(states, on_device, train_keys, is_iwae, seeds, number)
        values = np.asarray(values)
        seconds.append(time.perf_counter() - start)
        check_finite(cell, values, states, (number + 1) * steps, path)
        if (number + 1) % config.save_every == 0 or number + 1 == total:
            save(config, path, states)
            print(f"{cell}: epoch {number + 1} of {total}, {values}", flush=True)
    if len(seconds) < 2:  # the first epoch compiles
        return states, None
    return states, float(np.median(seconds[1:]) / steps / len(names) * 1e6)


def check_finite(cell: Cell, values: np.ndarray, states: Any, num_steps: int, path: Path) -> None:
    """Raises ValueError, with the step and the last good states, where any number is not finite.

    values: the losses of an epoch, which do not show its last update; the states do.
    """
    if not all(np.isfinite(x).all() for x in jax.tree.leaves((values, states))):
        kept = f"{path} holds the last that were saved" if path.is_file() else "none are saved"
        raise ValueError(
            f"{cell} is no longer finite after step {num_steps}, at {values} nats; "
            f"of its states {kept}"
        )


def settings(config: Config) -> str:
    """Writes down what a continuation must have in common with the run that it goes on with."""
    text = f"--data {config.data} --batch-size {batch_size(config)} --seeds {config.seeds}"
    return text if config.mode == "paper" else f"{text} --mode modern --budget {config.budget}"


def batch_size(config: Config) -> int:
    """Returns the number of images in a batch: --batch-size, or by mode."""
    return config.batch_size or (20 if config.mode == "paper" else 128)


def begun(config: Config, cell: Cell, states: Any, plain_steps: int) -> Any:
    """Returns the states to go on from; a first swap begins where the plain runs ended, if kept.

    states: those at step 0. plain_steps: of the stages before a swap.
    """
    path = state_path(config, cell)
    if path.is_file() or not config.swap:
        return restored(config, path, states)
    plain = state_path(replace(config, swap=False), cell)
    before = restored(config, plain, states)
    return before if int(before.step[0]) <= plain_steps else states


def save(config: Config, path: Path, states: Any) -> None:
    """Writes the states and the settings that a continuation must have."""
    file = {"settings": settings(config), "states": jax.device_get(states)}
    content = files.sealed(flax.serialization.to_bytes(file))
    files.write_whole(path, lambda p: p.write_bytes(content))


def restored(config: Config, path: Path, states: Any) -> Any:
    """Reads the states in the file, or returns the caller's where there is none.

    Raises ValueError for a damaged file, and for one of other settings.
    """
    if not path.is_file():
        return states
    with files.one_error(path):
        content: Any = flax.serialization.msgpack_restore(files.unsealed(path.read_bytes()))
        if content["settings"] != settings(config):
            raise ValueError(f"{path} is of {content['settings']}, not of {settings(config)}")
        return flax.serialization.from_state_dict(states, content["states"])


def state_path(config: Config, cell: Cell) -> Path:
    """Names the file of a cell's states; in paper mode all budgets begin alike and share it."""
    return config.folder / f"{cell.layers}x{cell.k}-{config.seeds}{ending(config, True)}.msgpack"


def ending(config: Config, with_budget: bool = False) -> str:
    """Makes the ending of a file's name: what its runs are, if not plain ones of the paper."""
    name = "-swap" if config.swap else "-modern" if config.mode == "modern" else ""
    return name and name + str(config.budget) * with_budget


def evaluate(config: Config, cell: Cell, states: Any, images: np.ndarray) -> Iterator[dict]:
    """Yields the results of each run of a cell, as plain numbers."""
    model = iwae_cells.model_of(cell, images.shape[1:])
    test = sets.load(config.data, "test")
    cut = {"images": test.images[: config.test_images], "labels": test.labels[: config.test_images]}
    log_weight = latent_models.weight_of_images(model, binarize=True)

    evaluated = states.ema if isinstance(states, step.AveragedState) else states.params
    for i, (kind, seed) in enumerate(runs_of(config, cell)):
        params = jax.tree.map(lambda x, i=i: x[i], evaluated)
        key, k = jax.random.key(seed + 1000), config.nll_samples
        estimate = likelihood.importance_estimates(log_weight, params, cut, key, [k])[k]
        yield {
            "layers": cell.layers, "k": cell.k, "objective": kind, "seed": seed,
            "mode": config.mode, "swapped": config.swap, "stages": config.budget + 1,
            "data": config.data, "training_images": len(images), "nll_samples": k,
            "test_images": len(cut["images"]), "batch_size": batch_size(config),
            "active": active_units(cell, params, images), **estimate._asdict(),
            "pixels": likelihood.redraw_noise(log_weight, params, cut, jax.random.key(seed + 2000)),
        }  # fmt: skip


def active_units(cell: Cell, params: Params, images: np.ndarray) -> str:
    """Counts a layer's active units for 500 images; the upper layer sees the lower one's mean."""
    parts = iwae_cells.networks(cell, images.shape[1:])
    x = jnp.round(jnp.asarray(images[:500]) / 255).reshape(len(images[:500]), -1)
    counts = []
    for name in ("encoder", "encoder_top")[: cell.layers]:
        x = jnp.split(functional.apply(parts[name])(params[name], x), 2, axis=-1)[0]
        counts.append(str(likelihood.active_units(np.asarray(x)).sum()))
    return "+".join(counts)


def run(config: Config) -> None:
    """Trains and evaluates the cells one after the other; each leaves a file of raw results."""
    images = training_images(config.data, batch_size(config))
    for text in config.cells:
        cell = CELLS[text]
        states, micros = train(config, cell, images)
        rows = list(evaluate(config, cell, states, images))
        results = {"environment": environment.record(), "us_per_step": micros, "rows": rows}
        name = f"{text}-stage{config.budget}{ending(config)}.json"
        content = json.dumps(results, indent=1)
        files.write_whole(config.folder / name, lambda p, c=content: p.write_text(c + "\n"))
        for row in rows:
            print(
                f"{text} {row['objective']} seed {row['seed']}: {row['nats']:.2f} nats", flush=True
            )


def read(path: Path) -> dict[str, Any]:
    """Reads the raw results in a file. Raises ValueError for another file."""
    results = files.read_object(path)
    try:
        results["rows"][0], iwae_paper.table([results])
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no results of this table; run its cell again") from error
    return results


def write_table(config: Config) -> None:
    """Writes the table of all raw results in the folder."""
    paths = sorted(config.folder.glob("*-stage*.json"))
    if not paths:
        raise ValueError(f"{config.folder} holds no results; run the cells first (--action run)")
    content = iwae_paper.table([read(path) for path in paths])
    files.write_whole(config.table, lambda p: p.write_text(content))
    print(content + f"\n{config.table}")


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if not 0 <= config.budget < NUM_STAGES:
        raise ValueError(f"--budget is {config.budget}; use 0 to {NUM_STAGES - 1}")
    if config.swap and config.mode == "modern":
        raise ValueError("--swap is of the paper's Table 2; leave out --mode modern")
    plan.check_range(config, 1, "seeds", "nll_samples", "batch_size", "save_every", "test_images")
    likelihood.check_nll_samples(config.nll_samples)
    if not config.cells or not set(config.cells) <= CELLS.keys():
        names = " ".join(config.cells) or "none"
        raise ValueError(f"--cells are {names}; use some of {', '.join(CELLS)}")
    script.set_up()
    run(config) if config.action == "run" else write_table(config)


if __name__ == "__main__":
    script.main(main)
