# SPDX-License-Identifier: MIT
"""Reproduces Table 1 of Burda, Grosse & Salakhutdinov 2016 (arXiv:1509.00519) on dynamic MNIST.

Every setting is that of the authors' code (github.com/yburda/iwae), which differs from the paper in
places: first weights of seed 123 in every layer (123 + our seed); Adam with b1 = 0.99, epsilon 1e-4
and a second moment that begins at 1, whose update uses the moments of the step before; gradients
summed over batches of 20; no shuffling; the first 59,600 images; every use of an image binarizes it
anew, in testing too; stages of 3^i epochs at rounded rates. Only the draws of pixels and of z are
other numbers.

`--mode modern` is a recipe of later years for the same models and as many epochs: shuffled batches
of 128, Adam with a cosine of rates, the doubly reparameterized gradient for IWAE, and a moving
average of the parameters.

Each run has its own file of states and, in the end, of results: more seeds, cells and stages go on
from those that are there, and a run that a signal stopped goes on after its last whole epoch.

Examples:
    python experiments/iwae_table.py --data path/to/mnist_idx --budget 3     # stages 0 to 3 of 7
    python experiments/iwae_table.py --data path/to/mnist_idx --cells 1x1 1x5 --seeds 3
    python experiments/iwae_table.py --data path/to/mnist_idx --cells 1x50 --swap
    python experiments/iwae_table.py --mode modern --budget 4 --data path/to/mnist_idx
    python experiments/iwae_table.py --action table --folder runs/iwae_table
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
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
from jaxgen.runs import plan
from jaxgen.train import latent_models, parallel, step
from parts import iwae_cells, iwae_paper
from parts.iwae_cells import NUM_STAGES, Cell, Run

CELLS = {f"{layers}x{k}": Cell(layers, k) for layers, k in iwae_paper.TABLE_1}
Stop = Callable[[], int]  # the number of the signal that asks to stop, or 0


@dataclass(frozen=True)
class Config:
    """Options of the table."""

    action: Literal["run", "table"] = "run"  # train and evaluate, or write the table
    data: str = "mnist"  # as in the other scripts: a TFDS name, a folder of IDX files, mnist5k
    mode: Literal["paper", "modern"] = "paper"  # the recipe of training
    budget: int = 7  # the last stage that is run, 0 to 7; stage i has 3^i epochs
    cells: tuple[str, ...] = tuple(CELLS)  # layers x k
    objectives: tuple[Literal["vae", "iwae"], ...] = iwae_paper.KINDS  # with k = 1 both are "vae"
    seeds: int = 1  # independent runs of each cell; those of a cell are one program
    swap: bool = False  # the paper's Table 2: a VAE of k = 1 trained on as an IWAE, and back
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


def runs_of(config: Config, cell: Cell) -> list[Run]:
    """Lists the runs of a cell; for k = 1 both objectives are one."""
    kinds = [kind for kind in iwae_paper.KINDS if kind in config.objectives]
    kinds = ["vae"] if cell.k == 1 else kinds
    return [Run(cell, kind, seed, config.swap) for kind in kinds for seed in range(config.seeds)]


def plain_epochs(config: Config) -> int:
    """Counts the epochs up to the end of the budget, before a swap."""
    return sum(3**i for i in range(config.budget + 1))


def train(config: Config, runs: Sequence[Run], images: np.ndarray, stop: Stop) -> Iterator[tuple]:
    """Trains runs to the end of the budget: yields (runs, their states, microseconds of a step).

    Those of one program that have come equally far are trained side by side. Everything is a
    function of seed and step, so a run that goes on from its file is the same.
    """
    size = batch_size(config)
    steps, plain = len(images) // size, plain_epochs(config)
    total = plain + 3**config.budget * config.swap
    recipe = iwae_cells.recipe_of(config.mode, steps, size, total)
    begun = [(run, begin(config, run, recipe, images, plain * steps)) for run in runs]

    def where(of_run: tuple[Run, Any]) -> tuple[Cell, int]:
        return of_run[0].program[0], int(of_run[1].step) // steps

    for (cell, done), group in itertools.groupby(sorted(begun, key=where), where):
        some, states = zip(*group, strict=True)
        if done > total:
            raise ValueError(
                f"{state_path(config, some[0])} has seen {done} epochs, more than the {total} of "
                f"--budget {config.budget}; use a larger budget or another --folder"
            )
        epoch = iwae_cells.epoch_of(cell, recipe, size)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
        yield some, *train_together(config, some, epoch, stacked, images, (done, total), stop)


def train_together(
    config: Config,
    runs: Sequence[Run],
    epoch: Any,
    states: Any,
    images: np.ndarray,
    span: tuple[int, int],
    stop: Stop,
) -> tuple[Any, float | None]:
    """Trains stacked states over a span of epochs: them, and the microseconds of a step of one."""
    seeds = [run.seed for run in runs]
    train_keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed))[1])(jnp.array(seeds))
    is_iwae = jnp.array([run.program[1] for run in runs])
    steps, on_device, seconds = len(images) // batch_size(config), jnp.asarray(images), []
    for number in range(*span):
        start = time.perf_counter()
        states, values = epoch(states, on_device, train_keys, is_iwae, seeds, number)
        values, done = np.asarray(values), number + 1
        seconds.append(time.perf_counter() - start)
        check_finite(config, runs, values, states, done * steps)
        signal = stop()
        if done % config.save_every == 0 or done == span[1] or signal:
            save(config, runs, states)
            print(f"{names(runs)}: epoch {done} of {span[1]}, {values}", flush=True)
        if signal and done < span[1]:
            message = f"saved after epoch {done} of {span[1]}; the same command goes on"
            raise script.Interrupted(message, signal)
    if len(seconds) < 2:  # the first epoch compiles
        return states, None
    return states, float(np.median(seconds[1:]) / steps / len(runs) * 1e6)


def names(runs: Sequence[Run]) -> str:
    """Names several runs."""
    return ", ".join(run.name for run in runs)


def check_finite(
    config: Config, runs: Sequence[Run], values: np.ndarray, states: Any, num_steps: int
) -> None:
    """Raises ValueError, with the step and the last good states, where any number is not finite.

    values: the losses of an epoch, which do not show its last update; the states do.
    """
    if not all(np.isfinite(x).all() for x in jax.tree.leaves((values, states))):
        path = state_path(config, runs[0])
        kept = f"{path} holds the last that were saved" if path.is_file() else "none are saved"
        raise ValueError(
            f"{names(runs)}: no longer finite after step {num_steps}, at {values} nats; "
            f"of the states {kept}"
        )


def batch_size(config: Config) -> int:
    """Returns the number of images in a batch: --batch-size, or by mode."""
    return config.batch_size or (20 if config.mode == "paper" else 128)


def settings(config: Config) -> str:
    """Writes down what a continuation must have in common with the run that it goes on with."""
    text = f"--data {config.data} --batch-size {batch_size(config)}"
    return text if config.mode == "paper" else f"{text} --mode modern --budget {config.budget}"


def begin(
    config: Config, run: Run, recipe: iwae_cells.Recipe, images: np.ndarray, plain_steps: int
) -> Any:
    """Returns the state that a run goes on from: of its file, of the run before it, or the first.

    plain_steps: those that the run before a swap has made.
    """
    init_key, _ = jax.random.split(jax.random.key(run.seed))
    params = iwae_cells.init(run.cell, images, init_key)
    if config.mode == "paper":
        params = iwae_cells.with_weights_of_the_code(params, run.seed)
    path = state_path(config, run)
    files.check_writable(path)
    first = recipe.start(params)
    if not run.swapped or path.is_file():
        return restored(config, path, first)
    plain = restored(config, state_path(config, run.before), first)
    assert int(plain.step) == plain_steps, "`run` trains it first"
    return plain


def save(config: Config, runs: Sequence[Run], states: Any) -> None:
    """Writes the state of each run, and the settings that a continuation must have."""
    on_host = jax.device_get(states)
    for i, run in enumerate(runs):
        state = jax.tree.map(lambda x, i=i: x[i], on_host)
        content = flax.serialization.to_bytes({"settings": settings(config), "state": state})
        sealed = files.sealed(content)
        files.write_whole(state_path(config, run), lambda p, c=sealed: p.write_bytes(c))


def restored(config: Config, path: Path, state: Any) -> Any:
    """Reads the state in the file, or returns the caller's where there is none.

    Raises ValueError for a damaged file, and for one of other settings.
    """
    if not path.is_file():
        return state
    with files.one_error(path):
        content: Any = flax.serialization.msgpack_restore(files.unsealed(path.read_bytes()))
        if content["settings"] != settings(config):
            raise ValueError(f"{path} is of {content['settings']}, not of {settings(config)}")
        return flax.serialization.from_state_dict(state, content["state"])


def state_path(config: Config, run: Run) -> Path:
    """Names the file of a run's state; in paper mode all budgets begin alike and share it."""
    ending = f"-modern{config.budget}" if config.mode == "modern" else "-swap" * run.swapped
    return config.folder / f"{run.name}{ending}.msgpack"


def result_path(config: Config, run: Run) -> Path:
    """Names the file of a run's results."""
    ending = "-modern" if config.mode == "modern" else "-swap" * run.swapped
    return config.folder / f"{run.name}-stage{config.budget}{ending}.json"


def facts_of(config: Config, run: Run, num_images: int, num_test: int) -> dict[str, Any]:
    """Says what a run's results are of."""
    return {
        "layers": run.cell.layers, "k": run.cell.k, "objective": run.objective, "seed": run.seed,
        "mode": config.mode, "revision": iwae_paper.REVISION, "swapped": run.swapped,
        "stages": config.budget + 1, "data": config.data, "training_images": num_images,
        "nll_samples": config.nll_samples, "test_images": num_test,
        "batch_size": batch_size(config),
    }  # fmt: skip


def is_done(config: Config, run: Run, facts: dict[str, Any]) -> bool:
    """Says whether a run has its results. Raises ValueError where they are of something else."""
    path = result_path(config, run)
    if not path.is_file():
        return False
    row = read(path)["rows"][0]
    if others := [name for name, value in facts.items() if row.get(name) != value]:
        raise ValueError(
            f"{path} is of other {', '.join(others)}; use another --folder, or move it away"
        )
    print(f"{title(run)}: {row['nats']:.2f} nats, in {path}", flush=True)
    return True


def title(run: Run) -> str:
    """Names a run for a reader."""
    return run.name.replace("-", " ") + ", swapped" * run.swapped


def evaluate(
    facts: dict[str, Any], log_weight: Any, units: Any, params: Any, test: dict[str, Any]
) -> dict[str, Any]:
    """Computes the results of a run, as plain numbers; on all devices.

    log_weight, units: of its cell, (params, key) -> its active units; one of each for all runs,
    which compiles once.
    """
    key, k, mesh = jax.random.key(facts["seed"] + 1000), facts["nll_samples"], parallel.data_mesh()
    nll = likelihood.importance_estimates(log_weight, params, test, key, [k], mesh=mesh)[k]
    pixel_key, unit_key = jax.random.split(jax.random.key(facts["seed"] + 2000))
    pixels = likelihood.redraw_noise(log_weight, params, test, pixel_key, mesh=mesh)
    return facts | {"active": units(params, unit_key), **nll._asdict(), "pixels": pixels}


def run(config: Config) -> None:
    """Trains and evaluates the cells one after the other; each run leaves a file of raw results."""
    images = training_images(config.data, batch_size(config))
    split = sets.load(config.data, "test")
    cut = slice(config.test_images)
    test = {"images": split.images[cut], "labels": split.labels[cut]}
    with script.stop_requests() as stop:
        for cell in map(CELLS.__getitem__, config.cells):
            facts = {
                run: facts_of(config, run, len(images), len(test["images"]))
                for run in runs_of(config, cell)
            }
            missing = [run for run, of_run in facts.items() if not is_done(config, run, of_run)]
            if config.swap:
                train_first(config, missing, images, stop)
            model = iwae_cells.model_of(cell, images.shape[1:])
            log_weight = latent_models.weight_of_images(model, binarize=True)
            units = partial(iwae_cells.active_units, cell, images[:500])
            for runs, states, micros in train(config, missing, images, stop):
                kept = states.ema if isinstance(states, step.AveragedState) else states.params
                for i, run in enumerate(runs):
                    params = jax.tree.map(lambda x, i=i: x[i], kept)
                    row = evaluate(facts[run], log_weight, units, params, test)
                    write(config, run, row, micros)
                    if signal := stop():
                        raise script.Interrupted("the same command goes on", signal)


def train_first(config: Config, runs: Sequence[Run], images: np.ndarray, stop: Stop) -> None:
    """Trains the runs that swapped ones go on from, as far as they have no state of their own."""
    plain = [run.before for run in runs if not state_path(config, run).is_file()]
    for _ in train(replace(config, swap=False), plain, images, stop):
        pass


def write(config: Config, run: Run, row: dict[str, Any], micros: float | None) -> None:
    """Writes the results of a run."""
    results = {"environment": environment.record(), "us_per_step": micros, "rows": [row]}
    content = json.dumps(results, indent=1) + "\n"
    files.write_whole(result_path(config, run), lambda p: p.write_text(content))
    print(f"{title(run)}: {row['nats']:.2f} nats", flush=True)


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
    plan.check_range(config, 1, "seeds", "batch_size", "save_every", "test_images")
    plan.check_range(config, 2, "nll_samples")  # one does not say how far off it is
    likelihood.check_nll_samples(config.nll_samples)
    if not config.cells or not set(config.cells) <= CELLS.keys():
        given = " ".join(config.cells) or "none"
        raise ValueError(f"--cells are {given}; use some of {', '.join(CELLS)}")
    if not config.objectives:
        raise ValueError(f"--objectives are none; use some of {', '.join(iwae_paper.KINDS)}")
    if config.swap and any(CELLS[cell].k == 1 for cell in config.cells):
        raise ValueError("--swap needs --cells of k > 1: with k = 1 both objectives are one")
    script.set_up()
    run(config) if config.action == "run" else write_table(config)


if __name__ == "__main__":
    script.main(main)
