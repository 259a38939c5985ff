# SPDX-License-Identifier: MIT
"""Studies GAN objectives on one architecture: which modes do they find, and how sure is it?

Points in the plane from a ring of 8 or a grid of 25 Gaussians, or images of ten classes; every
objective is trained with many learning rates and seeds side by side (vmap), because one run says
little: Lucic et al. 2018 (arXiv:1711.10337). The table and the figure show all runs, not the best
one alone.

Examples:
    python experiments/gan_study.py                                  # the ring, minutes
    python experiments/gan_study.py --target grid --num-runs 16 --steps 5000
    python experiments/gan_study.py --target digits --steps 1000     # classes found by a judge
    python experiments/gan_study.py --variants hinge relativistic_r1_r2
    python experiments/gan_study.py --action table --results docs/gan_study_*.json
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen as nn
from PIL import Image
from scipy import stats

from jaxgen import files, script
from jaxgen.nn import functional
from jaxgen.nn.linear import Dense
from jaxgen.pictures import images, plots
from jaxgen.runs import command_line, plan
from jaxgen.train import adversarial, step
from jaxgen.train.adversarial import Penalties
from jaxgen.types import Array, Key
from parts import gan_targets, raw_results
from parts.gan_targets import Target

RESULTS = Path("outputs/gan_study.json")
NUM_DRAWS = 2500  # of each generator, to count their modes
OF_RUN = "target variants num_runs steps batch_size width rates b1 penalties seed output"
READ_WITH = {("action", "run"): tuple(OF_RUN.split()), ("action", "table"): ("results",)}


class Variant(NamedTuple):
    """An objective with the penalties that share the drawn weight."""

    objective: str
    penalties: tuple[str, ...] = ()


VARIANTS = {
    "minimax": Variant("minimax"),
    "non_saturating": Variant("non_saturating"),
    "non_saturating_r1": Variant("non_saturating", ("r1",)),
    "least_squares": Variant("least_squares"),
    "wasserstein_gp": Variant("wasserstein", ("gradient",)),
    "hinge": Variant("hinge"),
    "hinge_r1": Variant("hinge", ("r1",)),
    "relativistic": Variant("relativistic"),
    "relativistic_r1_r2": Variant("relativistic", ("r1", "r2")),  # R3GAN's loss
}


@dataclass(frozen=True)
class Config:
    """Options of the study."""

    action: Literal["run", "table"] = "run"  # train and count, or show results that are there
    target: str = "ring"  # 8 Gaussians; grid: 25; or labelled images, as in the other scripts
    variants: tuple[str, ...] = tuple(VARIANTS)  # objectives, with their penalties
    num_runs: int = 8  # of each: every one with a seed and hyperparameters of its own
    steps: int = 3000
    batch_size: int = 128
    width: int = 128  # units of the two hidden layers of both players
    # between these the hyperparameters of a run are drawn; all objectives get the same
    rates: tuple[float, float] = (3e-4, 1e-2)  # learning rates, log-uniformly
    b1: tuple[float, float] = (0.0, 0.5)  # Adam's momentum, uniformly
    penalties: tuple[float, float] = (1e-3, 0.3)  # weights of gradient penalties, log-uniformly
    seed: int = 0
    output: Path = RESULTS  # action run: its raw results
    # action table: files of raw results, each a table and a column of the figure
    results: tuple[Path, ...] = (RESULTS,)
    figure: Path = Path("outputs/gan_study.png")  # the picture of either action


class Player(nn.Module):
    """A network of two hidden layers of rectifiers: [D] -> [outputs]."""

    outputs: int
    width: int
    is_bounded: bool = False  # ends in tanh

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(2):
            x = nn.relu(Dense(self.width)(x))
        x = Dense(self.outputs)(x)
        return jnp.tanh(x) if self.is_bounded else x


class Draws(NamedTuple):
    """The hyperparameters of the runs, [R] each; all objectives get the same."""

    learning_rate: Array
    b1: Array  # Adam's momentum
    penalty: Array  # the weight of gradient penalties, where there are any


def draws_of(config: Config) -> Draws:
    """Draws the hyperparameters: rates and weights log-uniformly, the momentum uniformly."""
    rng = np.random.default_rng(config.seed)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, config.num_runs)

    rates = np.exp(uniform(*map(math.log, config.rates)))
    b1 = uniform(*config.b1)
    penalties = np.exp(uniform(*map(math.log, config.penalties)))
    return Draws(*(jnp.asarray(x, jnp.float32) for x in (rates, b1, penalties)))


def samples_of(config: Config, variant: Variant, target: Target) -> Any:
    """Compiles (draws [R], keys [R]) -> samples [R, 2500, D] of R generators, trained at once."""
    size, latent_dim, data = target.data.shape[1], target.latent_dim, jnp.asarray(target.data)
    generator = Player(size, config.width, target.is_bounded)
    discriminator = Player(1, config.width)
    generate = lambda params, z, label: functional.apply(generator)(params, z)  # noqa: E731
    score = functional.apply(discriminator)
    discriminate = lambda params, x, label: score(params, x)[0]  # noqa: E731
    game = adversarial.objective(variant.objective)
    g_loss = adversarial.generator_loss(generate, discriminate, game, latent_dim)

    def run(draw: Draws, key: Key, data: Array) -> Array:
        g_key, d_key, data_key, noise_key, draw_key = jax.random.split(key, 5)
        penalties = Penalties(**dict.fromkeys(variant.penalties, draw.penalty))
        d_loss = adversarial.discriminator_loss(generate, discriminate, game, latent_dim, penalties)
        tx = optax.adam(draw.learning_rate, b1=draw.b1)
        one = step.gan_step(d_loss, g_loss, tx, tx)
        g = functional.init(generator, g_key, jnp.zeros(latent_dim))
        d = functional.init(discriminator, d_key, jnp.zeros(size))
        state = step.GanState(step.init_state(g, tx), step.init_state(d, tx), g)

        def update(state: step.GanState, i: Array) -> tuple[step.GanState, None]:
            batch_key = jax.random.fold_in(data_key, i)
            rows = jax.random.randint(batch_key, (config.batch_size,), 0, len(data))
            return one(state, {"image": data[rows]}, noise_key)[0], None

        state, _ = jax.lax.scan(update, state, jnp.arange(config.steps))
        z = jax.random.normal(draw_key, (NUM_DRAWS, latent_dim))
        return jax.vmap(lambda z: generate(state.ema, z, None))(z)

    many = jax.jit(jax.vmap(run, (0, 0, None)))
    return lambda draws, keys: many(draws, keys, data)


def study(config: Config, target: Target) -> list[dict[str, Any]]:
    """Trains all runs; returns a row for each: variant, number, hyperparameters and mode counts."""
    draws = draws_of(config)

    rows = []
    for name in config.variants:
        keys = jax.random.split(jax.random.key(config.seed), config.num_runs)  # the same for all
        samples = np.asarray(samples_of(config, VARIANTS[name], target)(draws, keys))
        of_variant = [
            {
                "variant": name, "run": i, **{k: float(x[i]) for k, x in draws._asdict().items()},
                **target.count(sample),
            }
            for i, sample in enumerate(samples)
        ]  # fmt: skip
        print(line(name, of_variant), flush=True)
        rows += of_variant
    return rows


HEAD = (
    "| objective | modes, median (range) | runs with all modes (95 % interval) "
    "| high quality, median (range) | diverged |\n|---|---|---|---|---|"
)


def line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Writes a row of the table, as Markdown, with Wilson's interval of the share of such runs."""
    num_modes = np.array([row["modes"] for row in rows])
    quality = np.array([row["high_quality"] for row in rows])
    of, whole = rows[0]["of"], int(np.sum(num_modes == rows[0]["of"]))
    low, high = stats.binomtest(whole, len(rows)).proportion_ci(method="wilson")
    return (
        f"| {name} | {np.median(num_modes):g} of {of} ({num_modes.min()} to {num_modes.max()}) "
        f"| {whole} of {len(rows)} ({low:.2f} to {high:.2f}) "
        f"| {np.median(quality):.2f} ({quality.min():.2f} to {quality.max():.2f}) "
        f"| {sum(row['diverged'] for row in rows)} |"
    )


def real_line(real: dict[str, Any]) -> str:
    """Writes the row of examples that no run has seen: what a perfect generator would have."""
    return f"| real examples | {real['modes']} of {real['of']} | | {real['high_quality']:.2f} | |"


def by_variant(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Groups the rows by variant, in the order of the study."""
    names = dict.fromkeys(row["variant"] for row in rows)
    return {name: [row for row in rows if row["variant"] == name] for name in names}


def table(record: dict[str, Any]) -> str:
    """Writes the table of one study, as Markdown; its last row is what real examples have."""
    lines = [line(*group) for group in by_variant(record["rows"]).items()]
    return "\n".join([HEAD, *lines, real_line(record["real"])])


def figure(studies: Sequence[dict[str, Any]]) -> Image.Image:
    """Draws studies: a dot for each run, coloured by its learning rate, and medians."""
    panels = []
    for record in studies:
        groups, target = by_variant(record["rows"]), Path(record["config"]["target"]).name
        rates = {name: [row["learning_rate"] for row in rows] for name, rows in groups.items()}
        for key, title in (("modes", "modes found"), ("high_quality", "high quality")):
            values = {name: [row[key] for row in rows] for name, rows in groups.items()}
            most = record["rows"][0]["of"] if key == "modes" else 1.0
            panels.append(plots.Panel(f"{target}: {title}", values, rates, most))
    return plots.spreads(panels, "learning rate")


def read(path: Path) -> dict[str, Any]:
    """Reads the raw results in a file. Raises ValueError for another file."""
    record = files.read_object(path)
    try:
        table(record), record["config"]["target"]
        record["rows"][0]["of"], [row["learning_rate"] for row in record["rows"]]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(
            f"{path} holds no results of this study; give files of its --output"
        ) from error
    return record


def run(config: Config) -> dict[str, Any]:
    """Runs a study; returns its raw results, and writes them into its file."""
    target = gan_targets.by_name(config.target, NUM_DRAWS, config.seed)
    print(HEAD)
    rows, real = study(config, target), target.count(target.held_out)
    print(real_line(real))
    return raw_results.write(config.output, config, {"rows": rows, "real": real})


def check(config: Config) -> None:
    """Raises ValueError for options out of range."""
    plan.check_range(config, 1, "num_runs", "steps", "batch_size", "width")
    plan.check_range(config, 0, "seed", high=plan.MOST_SEED)
    for name in ("rates", "penalties"):
        low, high = getattr(config, name)
        if not 0 < low <= high < np.inf:
            raise ValueError(
                f"--{name} are {low} {high}; give a lower and an upper positive number"
            )
    if not 0 <= config.b1[0] <= config.b1[1] < 1:
        raise ValueError(f"--b1 is {config.b1}; give a lower and an upper number from 0 to below 1")
    if not config.results:
        raise ValueError("--results names no file; give files of raw results")
    if not config.variants:
        raise ValueError(f"--variants names none; use some of {', '.join(VARIANTS)}")
    unknown = [name for name in config.variants if name not in VARIANTS]
    if unknown:
        raise ValueError(f"unknown variant {unknown[0]!r}; use some of {', '.join(VARIANTS)}")
    if len(set(config.variants)) < len(config.variants):
        raise ValueError(f"--variants are {' '.join(config.variants)}; give each once")


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    command_line.check_read(config, READ_WITH)
    check(config)
    images.check_file(config.figure, "--figure")
    if config.action == "run":
        raw_results.check_file(config.output)
        script.set_up()
        records = [run(config)]
    else:
        records = [read(path) for path in config.results]
        print("\n\n".join(table(record) for record in records))
    images.save(config.figure, figure(records))
    print(config.figure)


if __name__ == "__main__":
    script.main(main)
