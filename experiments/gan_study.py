# SPDX-License-Identifier: MIT
"""Studies GAN objectives on one architecture: which modes do they find, and how sure is it?

Points in the plane from a ring of 8 or a grid of 25 Gaussians; every objective is trained with many
learning rates and seeds side by side (vmap), because one run says little: Lucic et al. 2018
(arXiv:1711.10337). The table gives the spread over all runs, not the best one alone.

Examples:
    python experiments/gan_study.py                                  # the ring, minutes
    python experiments/gan_study.py --target grid --num-runs 16 --steps 5000
    python experiments/gan_study.py --variants hinge relativistic_r1_r2
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen as nn

from jaxgen import files, script
from jaxgen.evaluate import modes
from jaxgen.measure import environment
from jaxgen.nn import functional
from jaxgen.nn.linear import Dense
from jaxgen.runs import plan
from jaxgen.train import adversarial, step
from jaxgen.train.adversarial import Penalties
from jaxgen.types import Array, Key

LATENT_DIM = 8
NUM_POINTS = 2500  # that are drawn to count modes


class Variant(NamedTuple):
    """An objective with its penalties."""

    objective: str
    penalties: Penalties = adversarial.NO_PENALTIES


VARIANTS = {
    "minimax": Variant("minimax"),
    "non_saturating": Variant("non_saturating"),
    "non_saturating_r1": Variant("non_saturating", Penalties(r1=0.1)),
    "least_squares": Variant("least_squares"),
    "wasserstein_gp": Variant("wasserstein", Penalties(gradient=0.1)),
    "hinge": Variant("hinge"),
    "hinge_r1": Variant("hinge", Penalties(r1=0.1)),
    "relativistic": Variant("relativistic"),
    "relativistic_r1_r2": Variant("relativistic", Penalties(r1=0.1, r2=0.1)),  # R3GAN's loss
}


@dataclass(frozen=True)
class Config:
    """Options of the study."""

    target: Literal["ring", "grid"] = "ring"  # 8 Gaussians on a circle, or 25 on a grid
    variants: tuple[str, ...] = tuple(VARIANTS)  # objectives, with their penalties
    num_runs: int = 8  # of each: every one with a seed and a learning rate of its own
    steps: int = 3000
    batch_size: int = 128
    width: int = 128  # units of the two hidden layers of both players
    rates: tuple[float, float] = (1e-4, 3e-3)  # learning rates are drawn log-uniformly between
    b1: float = 0.5  # Adam's momentum
    seed: int = 0
    output: Path = Path("outputs/gan_study.json")


class Player(nn.Module):
    """A network of two hidden layers of rectifiers: [D] -> [outputs]."""

    outputs: int
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(2):
            x = nn.relu(Dense(self.width)(x))
        return Dense(self.outputs)(x)


def points_of(config: Config, variant: Variant, data: Array, scale: float) -> Any:
    """A compiled function (rates [R], keys [R]) -> points [R, 2500, 2] of R trained generators."""
    generator, judge = Player(2, config.width), Player(1, config.width)
    generate = lambda params, z, label: functional.apply(generator)(params, z)  # noqa: E731
    discriminate = lambda params, x, label: functional.apply(judge)(params, x)[0]  # noqa: E731
    game = adversarial.objective(variant.objective)
    d_loss = adversarial.discriminator_loss(
        generate, discriminate, game, LATENT_DIM, variant.penalties
    )
    g_loss = adversarial.generator_loss(generate, discriminate, game, LATENT_DIM)

    def run(rate: Array, key: Key, data: Array) -> Array:
        g_key, d_key, data_key, noise_key, draw_key = jax.random.split(key, 5)
        tx = optax.adam(rate, b1=config.b1)
        one = step.gan_step(d_loss, g_loss, tx, tx)
        g = functional.init(generator, g_key, jnp.zeros(LATENT_DIM))
        d = functional.init(judge, d_key, jnp.zeros(2))
        state = step.GanState(step.init_state(g, tx), step.init_state(d, tx), g)

        def update(state: step.GanState, i: Array) -> tuple[step.GanState, None]:
            batch_key = jax.random.fold_in(data_key, i)
            rows = jax.random.randint(batch_key, (config.batch_size,), 0, len(data))
            return one(state, {"image": data[rows]}, noise_key)[0], None

        state, _ = jax.lax.scan(update, state, jnp.arange(config.steps))
        z = jax.random.normal(draw_key, (NUM_POINTS, LATENT_DIM))
        return scale * jax.vmap(lambda z: generate(state.ema, z, None))(z)

    many = jax.jit(jax.vmap(run, (0, 0, None)))
    return lambda rates, keys: many(rates, keys, data)


def study(config: Config) -> list[dict[str, Any]]:
    """One row for each run: its variant, learning rate and mode counts."""
    mixture = modes.ring() if config.target == "ring" else modes.grid()
    scale = float(np.abs(mixture.centres).max())
    data = jnp.asarray(modes.draw(mixture, 50_000, config.seed) / scale, jnp.float32)
    low, high = np.log(config.rates)
    rates = np.exp(np.random.default_rng(config.seed).uniform(low, high, config.num_runs))

    rows = []
    for name in config.variants:
        keys = jax.random.split(jax.random.key(config.seed), config.num_runs)  # the same for all
        drawn = points_of(config, VARIANTS[name], data, scale)(jnp.float32(rates), keys)
        of_variant = [
            {"variant": name, "learning_rate": float(rate), **count_of(mixture, points)}
            for rate, points in zip(rates, np.asarray(drawn), strict=True)
        ]
        print(line(name, of_variant), flush=True)
        rows += of_variant
    return rows


def count_of(mixture: modes.Mixture, points: np.ndarray) -> dict[str, Any]:
    """The mode counts of one run; one that left the finite numbers has found no modes."""
    if not np.isfinite(points).all():
        return {"modes": 0, "of": len(mixture.centres), "high_quality": 0.0, "diverged": True}
    count = modes.count(mixture, points)
    return {
        "modes": count.modes, "of": count.of, "high_quality": count.high_quality, "diverged": False,
    }  # fmt: skip


def line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """A row of the table, as Markdown: medians, with the range over all runs."""
    found = np.array([row["modes"] for row in rows])
    quality = np.array([row["high_quality"] for row in rows])
    return (
        f"| {name} | {np.median(found):g} of {rows[0]['of']} ({found.min()} to {found.max()}) "
        f"| {np.median(quality):.2f} ({quality.min():.2f} to {quality.max():.2f}) "
        f"| {sum(row['diverged'] for row in rows)} |"
    )


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    plan.check_range(config, 1, "num_runs", "steps", "batch_size", "width")
    plan.check_range(config, 0, "b1", high=0.99999)
    plan.check_range(config, 0, "seed", high=plan.MOST_SEED)
    if not 0 < config.rates[0] <= config.rates[1] < np.inf:
        raise ValueError(f"--rates are {config.rates}; give a lower and an upper positive number")
    unknown = [name for name in config.variants if name not in VARIANTS]
    if unknown:
        raise ValueError(f"unknown variant {unknown[0]!r}; use some of {', '.join(VARIANTS)}")
    script.set_up()
    print("| objective | modes, median (range) | high quality | diverged |\n|---|---|---|---|")
    rows = study(config)
    record = {"config": asdict(config) | {"output": str(config.output)}, "rows": rows}
    content = json.dumps(record | {"environment": environment.record()}, indent=1) + "\n"
    files.write_whole(config.output, lambda path: path.write_text(content))
    print(config.output)


if __name__ == "__main__":
    script.main(main)
