# SPDX-License-Identifier: MIT
"""Reproduces Table 1 of Burda, Grosse & Salakhutdinov 2016 (arXiv:1509.00519) on dynamic MNIST.

Every setting is that of the authors' code (github.com/yburda/iwae), which differs from the paper in
places: first weights of seed 123 in every layer (123 + our seed); Adam with b1 = 0.99, epsilon 1e-4
and a second moment that begins at 1, whose update uses the moments of the step before; gradients
summed over batches of 20; no shuffling; the first 59,600 images; every use of an image binarizes it
anew, in testing too; stages of 3^i epochs at rounded rates. Only the draws of pixels and of z are
other numbers. A swapped stage has the last stage's rate.

`--mode modern` is a recipe of later years for the same models and as many epochs: shuffled batches
of 128, Adam with a cosine of rates, the doubly reparameterized gradient for IWAE, and a moving
average of the parameters.

Each run has its own file of states and, in the end, of results: more seeds, cells and stages go on
from those that are there, and a run that a signal stopped goes on after its last whole epoch: on a
CPU to the same bits; where runs are computed side by side, up to the order of sums.

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
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxgen import files, script
from jaxgen.evaluate import likelihood
from jaxgen.runs import command_line, plan, run_folder
from jaxgen.train import latent_models, parallel, step
from parts import iwae_cells, iwae_data, iwae_paper, iwae_results
from parts.iwae_cells import NUM_STAGES, Cell, Run
from parts.iwae_data import Data
from parts.iwae_states import Store

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


OF_RUN = (
    "data mode budget cells objectives seeds swap nll_samples test_images batch_size save_every"
)
READ_WITH = {("action", "run"): tuple(OF_RUN.split()), ("action", "table"): ("table",)}


def runs_of(config: Config, cell: Cell) -> list[Run]:
    """Lists the runs of a cell; for k = 1 both objectives are one."""
    kinds = [kind for kind in iwae_paper.KINDS if kind in config.objectives]
    kinds = ["vae"] if cell.k == 1 else kinds
    return [Run(cell, kind, seed, config.swap) for kind in kinds for seed in range(config.seeds)]


def plain_epochs(config: Config) -> int:
    """Counts the epochs up to the end of the budget, before a swap."""
    return sum(3**i for i in range(config.budget + 1))


def train(config: Config, runs: Sequence[Run], data: Data, stop: Stop) -> Iterator[tuple]:
    """Trains runs to the end of the budget: yields (runs, their states, microseconds of a step).

    Those of one program that have come equally far are trained side by side, and those that have
    come furthest first. Everything is a function of seed and step. Raises ValueError for a state
    that is further than the budget, and for numbers that are not finite any more.
    """
    size = batch_size(config)
    steps, plain = len(data.images) // size, plain_epochs(config)
    total = plain + 3**config.budget * config.swap
    recipe = iwae_cells.recipe_of(config.mode, steps, size, total, plain)
    store = store_of(config, data)
    begun = [(run, begin(config, run, recipe, data)) for run in runs]

    def where(of_run: tuple[Run, Any]) -> tuple[int, Cell]:
        return -(int(of_run[1].step) // steps), of_run[0].program[0]

    for run, state in begun:
        if int(state.step) > total * steps:
            raise ValueError(
                f"{store.path(run)} has seen {int(state.step) // steps} epochs, more than the "
                f"{total} of --budget {config.budget}; use a larger budget or another --folder"
            )
    for (done, cell), group in itertools.groupby(sorted(begun, key=where), where):
        some, states = zip(*group, strict=True)
        epoch = iwae_cells.epoch_of(cell, recipe, size)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
        yield some, *train_together(config, some, epoch, stacked, data, (-done, total), stop)


def train_together(
    config: Config,
    runs: Sequence[Run],
    epoch: Any,
    states: Any,
    data: Data,
    span: tuple[int, int],
    stop: Stop,
) -> tuple[Any, float | None]:
    """Trains stacked states over a span of epochs: them, and the microseconds of a step of one."""
    seeds, store = [run.seed for run in runs], store_of(config, data)
    train_keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed))[1])(jnp.array(seeds))
    is_iwae = jnp.array([run.program[1] for run in runs])
    steps, on_device = len(data.images) // batch_size(config), jnp.asarray(data.images)
    seconds: list[float] = []
    for number in range(*span):
        start = time.perf_counter()
        states, values = epoch(states, on_device, train_keys, is_iwae, seeds, number)
        values, done = np.asarray(values), number + 1
        seconds.append(time.perf_counter() - start)
        store.check_finite(runs, values, states, done * steps)
        signal = stop()
        if done % config.save_every == 0 or done == span[1] or signal:
            store.save(runs, states)
            names = ", ".join(run.name for run in runs)
            print(f"{names}: epoch {done} of {span[1]}, {values}", flush=True)
        if signal and done < span[1]:
            message = f"saved after epoch {done} of {span[1]}; the same command goes on"
            raise script.Interrupted(message, signal)
    if len(seconds) < 2:  # the first epoch compiles
        return states, None
    return states, float(np.median(seconds[1:]) / steps / len(runs) * 1e6)


def batch_size(config: Config) -> int:
    """Returns the number of images in a batch: --batch-size, or by mode."""
    return config.batch_size or (20 if config.mode == "paper" else 128)


def store_of(config: Config, data: Data) -> Store:
    """Builds the store of the states; in paper mode all budgets begin alike and share them."""
    settings = f"--data {config.data} of {len(data.images)} images"
    settings += f" --batch-size {batch_size(config)}"
    if config.mode == "modern":
        more = f" --mode modern --budget {config.budget}"
        return Store(config.folder, settings + more, data.digest, f"-modern{config.budget}")
    settings = f"revision {iwae_paper.REVISION} with {settings}"
    if config.swap:
        more = f" --swap --budget {config.budget}"
        return Store(config.folder, settings + more, data.digest, f"-swap{config.budget}")
    return Store(config.folder, settings, data.digest)


def begin(config: Config, run: Run, recipe: iwae_cells.Recipe, data: Data) -> Any:
    """Returns the state that a run goes on from: of its file, of the run before it, or the first.

    Raises ValueError where the run before a swap is not at the end of its budget.
    """
    init_key, _ = jax.random.split(jax.random.key(run.seed))
    params = iwae_cells.init(run.cell, data.images, init_key)
    if config.mode == "paper":
        params = iwae_cells.with_weights_of_the_code(params, run.seed)
    store, first = store_of(config, data), recipe.start(params)
    if not run.swapped or store.path(run).is_file():
        return store.restored(run, first)
    plain = store_of(replace(config, swap=False), data)
    state = plain.restored(run.before, first)
    wanted = plain_epochs(config) * (len(data.images) // batch_size(config))
    if int(state.step) != wanted:
        raise ValueError(
            f"{plain.path(run.before)} is at step {state.step}, and a swap with --budget "
            f"{config.budget} goes on from step {wanted}; use another --folder"
        )
    return state


def facts_of(config: Config, run: Run, data: Data) -> dict[str, Any]:
    """Says what a run's results are of."""
    return {
        "layers": run.cell.layers, "k": run.cell.k, "objective": run.objective, "seed": run.seed,
        "mode": config.mode, "revision": iwae_paper.REVISION, "swapped": run.swapped,
        "stages": config.budget + 1, "data": config.data, "training_images": len(data.images),
        "nll_samples": config.nll_samples, "test_images": len(data.test["images"]),
        "batch_size": batch_size(config), "digest": data.digest, "test_digest": data.test_digest,
    }  # fmt: skip


def evaluate(
    facts: dict[str, Any], log_weight: Any, units: Any, params: Any, test: dict[str, Any]
) -> dict[str, Any]:
    """Computes the results of a run, as plain numbers; on all devices.

    log_weight, units: of its cell, (params, key) -> its active units; one of each for all runs
    compiles once.
    """
    key, k, mesh = jax.random.key(facts["seed"] + 1000), facts["nll_samples"], parallel.local_mesh()
    nll = likelihood.importance_estimates(log_weight, params, test, key, [k], mesh=mesh)[k]
    pixel_key, unit_key = jax.random.split(jax.random.key(facts["seed"] + 2000))
    pixels = likelihood.redraw_noise(log_weight, params, test, pixel_key, mesh=mesh)
    return facts | {"active": units(params, unit_key), **nll._asdict(), "pixels": pixels}


def run(config: Config) -> None:
    """Trains and evaluates the cells one after the other; each run leaves a file of raw results."""
    data = iwae_data.read(config.data, batch_size(config), config.test_images)
    files.check_writable(config.folder / run_folder.LOCK)
    config.folder.mkdir(parents=True, exist_ok=True)
    with run_folder.in_use(config.folder, "--folder"), script.stop_requests() as stop:
        for cell in map(CELLS.__getitem__, config.cells):
            facts = {run: facts_of(config, run, data) for run in runs_of(config, cell)}
            missing = [
                run
                for run, of_run in facts.items()
                if not iwae_results.are_there(config.folder, run, of_run)
            ]
            if config.swap:
                train_first(config, missing, data, stop)
            model = iwae_cells.model_of(cell, data.images.shape[1:])
            log_weight = latent_models.weight_of_images(model, binarize=True)
            units = iwae_cells.active_units(cell, data.images[:500])
            for runs, states, micros in train(config, missing, data, stop):
                kept = states.ema if isinstance(states, step.AveragedState) else states.params
                for i, run in enumerate(runs):
                    params = jax.tree.map(lambda x, i=i: x[i], kept)
                    row = evaluate(facts[run], log_weight, units, params, data.test)
                    iwae_results.write(config.folder, run, row, micros)
                    if signal := stop():
                        raise script.Interrupted("the same command goes on", signal)


def train_first(config: Config, runs: Sequence[Run], data: Data, stop: Stop) -> None:
    """Trains the runs that swapped ones go on from, as far as they have no state of their own."""
    store = store_of(config, data)
    plain = [run.before for run in runs if not store.path(run).is_file()]
    for _ in train(replace(config, swap=False), plain, data, stop):
        pass


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    command_line.check_read(config, READ_WITH)
    if not 0 <= config.budget < NUM_STAGES:
        raise ValueError(f"--budget is {config.budget}; use 0 to {NUM_STAGES - 1}")
    if config.swap and config.mode == "modern":
        raise ValueError("--swap is of the paper's Table 2; leave out --mode modern")
    plan.check_range(config, 1, "seeds", "batch_size", "save_every")
    plan.check_range(config, 2, "nll_samples", "test_images")  # one of them shows no error
    likelihood.check_nll_samples(config.nll_samples)
    if not config.cells or not set(config.cells) <= CELLS.keys():
        given = " ".join(config.cells) or "none"
        raise ValueError(f"--cells are {given}; use some of {', '.join(CELLS)}")
    if not config.objectives:
        raise ValueError(f"--objectives are none; use some of {', '.join(iwae_paper.KINDS)}")
    if config.swap and any(CELLS[cell].k == 1 for cell in config.cells):
        raise ValueError("--swap needs --cells of k > 1: with k = 1 both objectives are one")
    script.set_up()
    if config.action == "run":
        run(config)
    else:
        iwae_results.write_table(config.folder, config.table)


if __name__ == "__main__":
    script.main(main)
