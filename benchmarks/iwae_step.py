# SPDX-License-Identifier: MIT
"""Times the steps of `iwae_table.py` beside the limits of the device, in alternating turns.

    python -m benchmarks.iwae_step --cells 1x1 1x5 --output runs/iwae_step.json

A step reads and writes the parameters and both moments, and writes and reads the gradient: what a
copy of as many bytes takes is one limit. The other is the fewest products of its networks, at the
rate of large square ones: three for each row and weight, forward and for the gradients of the
weight and of the row, but of pixels, which need no gradient.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import result_file
from experiments.iwae_table import CELLS, iwae_cells
from jaxgen import files, script
from jaxgen.measure import ceilings, environment, turns
from jaxgen.runs import plan
from jaxgen.train import step

NUM_IMAGES = 2000  # 100 steps an epoch


@dataclass(frozen=True)
class Config:
    """Options of the measurement."""

    cells: tuple[str, ...] = ("1x1", "1x5", "1x50")  # layers x k
    batch_size: int = 20  # images
    turns: int = 5  # rounds in which every cell has its turn
    seconds: float = 3.0  # of each turn
    output: str = "runs/iwae_step.json"  # results go to this file


def candidate_of(config: Config, text: str) -> tuple[turns.Candidate, dict[str, Any]]:
    """Makes a cell's IWAE ready, on random images; also counts its products and its bytes."""
    cell, size = CELLS[text], config.batch_size
    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 28, 28, 1), dtype=np.uint8)
    recipe = iwae_cells.paper(NUM_IMAGES // size, size)
    state = step.init_state(iwae_cells.init(cell, images, jax.random.key(0)), recipe.tx)
    epoch = iwae_cells.epoch_of(cell, recipe, size)
    keys, is_iwae = jax.random.split(jax.random.key(1), 1), jnp.array([cell.k > 1])
    states = [jax.tree.map(lambda x: jnp.array(x)[None], state)]
    on_device, steps = jnp.asarray(images), NUM_IMAGES // size

    def run(count: int) -> None:
        for number in range(count // steps):
            states[0], values = epoch(states[0], on_device, keys, is_iwae, [0], number)
            jax.block_until_ready(values)

    run(steps)  # compiles
    num_bytes = sum(x.nbytes for x in jax.tree.leaves(state.params))
    facts = {
        "cell": text, "batch_size": size, "product_flops": fewest_flops(cell, state.params, size),
        "state_bytes": 8 * num_bytes,
    }  # fmt: skip
    return turns.Candidate(run, steps), facts


def fewest_flops(cell: Any, params: Any, size: int) -> int:
    """Counts the products that a step cannot do without: the encoder sees an image once."""
    count = 0
    for name, part in params.items():
        weights = sum(x.size for x in jax.tree.leaves(part) if x.ndim == 2)
        rows = size if name == "encoder" else size * cell.k
        count += 2 * rows * 3 * weights
    return count - 2 * size * params["encoder"]["Dense_0"]["kernel"].size


def limits(facts: dict[str, Any], limit: ceilings.Ceilings) -> dict[str, float]:
    """Computes the microseconds of a step at the device's rates, of its products and its state."""
    return {
        "product_us": facts["product_flops"] / limit.flops_per_second * 1e6,
        "state_us": facts["state_bytes"] / limit.bytes_per_second * 1e6,
    }


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    plan.check_range(config, 1, "batch_size", "turns")
    if not config.cells or not set(config.cells) <= CELLS.keys():
        given = " ".join(config.cells) or "none"
        raise ValueError(f"--cells are {given}; use some of {', '.join(CELLS)}")
    if NUM_IMAGES % config.batch_size:
        raise ValueError(f"--batch-size is {config.batch_size}; use a divisor of {NUM_IMAGES}")
    files.check_writable(Path(config.output))
    script.set_up()
    where, limit = environment.record(), ceilings.measure(jnp.float32)
    made = {text: candidate_of(config, text) for text in config.cells}
    candidates = {text: candidate for text, (candidate, _) in made.items()}
    times = turns.take_turns(candidates, config.turns, config.seconds)
    rows = []
    for text, (_, facts) in made.items():
        row = facts | limits(facts, limit) | {"us_per_step": [1e6 * t for t in times[text]]}
        rows.append(row)
        print(
            f"{text}: {np.median(row['us_per_step']):.0f} us a step; at the device's rates "
            f"{row['product_us']:.0f} for its products and {row['state_us']:.0f} for its state"
        )
    content = {"environment": where, "config": asdict(config), **limit._asdict(), "rows": rows}
    result_file.write(Path(config.output), content)


if __name__ == "__main__":
    script.main(main)
