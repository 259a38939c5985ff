# SPDX-License-Identifier: MIT
"""Training of jaxgen's models as candidates of a race, and the random draws that peers get."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import autoencoder, gan, vae
from jaxgen.measure import cost, products, turns
from jaxgen.runs import experiment, plan
from jaxgen.runs.command_line import RunOptions
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import augment, loop, losses, order, parallel, step
from jaxgen.types import Array, Key

SCRIPTS: dict[str, Any] = {"autoencoder": autoencoder, "vae": vae, "gan": gan}
NETWORKS_OF: dict[str, Callable[..., tuple[Any, Any]]] = {
    "autoencoder": autoencoder.networks,
    "vae": vae.vae_model.networks,
    "gan": gan.gan_model.players,
}
NETWORKS, DISPATCHES = ("dense", "conv"), ("step", "scan")
SHAPE, NUM_IMAGES = (28, 28, 1), 16384
SILENT = loop.Callbacks(
    lambda done, row: None, lambda done, state: None, lambda done, state: None, lambda done: False
)


class Case(NamedTuple):
    """The training that all candidates of one race do."""

    model: str  # one of SCRIPTS
    network: str  # dense or conv
    batch_size: int
    dtype: str


class Way(NamedTuple):
    """The way in which jaxgen runs a case."""

    dispatch: str  # step or scan
    parallel: str  # jit, pmap or shard_map
    num_models: int

    @property
    def name(self) -> str:
        seeds = f" x{self.num_models} seeds" if self.num_models > 1 else ""
        return f"jaxgen {self.dispatch} {self.parallel}{seeds}"


class Started(NamedTuple):
    """A candidate after its first step."""

    candidate: turns.Candidate
    images_per_step: int  # of all models together
    facts: dict[str, Any]  # all that its row has beside its speed
    params: dict[str, Any]  # its first weights (of the first model), by network


def config_of(case: Case, num_models: int = 1) -> Any:
    """The script's configuration for 28x28 images: its MNIST preset, or the GAN that peers have."""
    plain = gan.Config(width=32, run=RunOptions(learning_rate=2e-4))  # no penalties, no labels
    preset: Any = plain if case.model == "gan" else SCRIPTS[case.model].PRESETS["mnist"]
    run = replace(
        preset.run, batch_size=case.batch_size, dtype=case.dtype, num_models=num_models, epochs=None
    )
    return replace(preset, network=case.network, run=run)


def examples() -> Examples:
    """Random images in place of data: speed does not depend on what they show."""
    images = dataset(64)
    return Examples(NUM_IMAGES, SHAPE, (), images, np.zeros(64, np.int32))


def dataset(count: int = NUM_IMAGES) -> np.ndarray:
    """The images that all candidates train on: uint8 [count, *SHAPE]."""
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def originals(case: Case) -> tuple[Any, Any]:
    """The two linen modules of a case, which peers copy."""
    return NETWORKS_OF[case.model](config_of(case), examples())


def check(case: Case, mesh: Mesh) -> None:
    """Raises ValueError for a batch that cannot run; nothing is compiled."""
    if case.batch_size < 1:
        raise ValueError(f"batch of {case.batch_size}; use 1 or more")
    if case.batch_size > NUM_IMAGES:
        raise ValueError(f"batch of {case.batch_size}; use at most {NUM_IMAGES}")
    parallel.check_divisible(np.empty(case.batch_size), parallel.EXAMPLES, mesh)


# --- jaxgen ------------------------------------------------------------------------------------


def start(case: Case, way: Way, mesh: Mesh, scan_steps: int) -> Started:
    """The case as jaxgen trains it, after its first step. Raises ValueError for a wrong option."""
    config = config_of(case, way.num_models)
    system = plan.checked_system(config, SCRIPTS[case.model].build, examples())
    many = way.num_models > 1
    one = step.vmap_models(system.step) if many else system.step
    run = parallel.parallelize(step.scan_steps(one), mesh, way.parallel, parallel.SCANNED)
    chunk = scan_steps if way.dispatch == "scan" else 1

    data = parallel.put({"image": dataset()}, mesh)
    batches = order.resident_batches(data, case.batch_size, experiment.data_key(config.run), mesh)
    key = parallel.put(experiment.train_keys(config.run), mesh)
    state = initial_state(system, config.run, mesh)
    params = jax.device_get(experiment.model(params_by_name(state), config.run))
    same = np.tile(np.arange(case.batch_size, dtype=np.int32), (chunk, 1))
    batch = data, parallel.put(same, mesh, parallel.SCANNED[1])

    times, lowered, compiled = _compile(run, (state, batch, key))
    costs = cost.cost(lowered, compiled)
    product_flops = products.flops(run, state, batch, key) // chunk
    began = time.perf_counter()
    state, metrics = jax.block_until_ready(compiled(state, batch, key))
    times["first_run_s"] = time.perf_counter() - began
    step_losses = [np.asarray(metrics["loss"])]
    if chunk == 1:
        state, metrics = compiled(state, batch, key)
        step_losses.append(np.asarray(metrics["loss"]))
    facts = {
        "dispatch": way.dispatch, "parallel": way.parallel, "num_models": way.num_models,
        "steps_per_dispatch": chunk, "num_devices": mesh.size, **times,
        "time_to_first_step_s": sum(times.values()),
        "parameters": num_parameters(state) // way.num_models,
        "losses": np.concatenate(step_losses).reshape(-1, way.num_models)[:2, 0].tolist(),
        "program_memory_bytes": costs.peak_bytes, "product_flops_per_step": product_flops,
        # the compiler counts the body of a loop once, which is one step already
        "compiler_flops_per_step": costs.flops, "compiler_bytes_per_step": costs.bytes_accessed,
        "collectives": costs.collectives,
    }  # fmt: skip
    candidate = turns.Candidate(_loop(compiled, state, batches, key, chunk), chunk)
    return Started(candidate, case.batch_size * way.num_models, facts, params)


def initial_state(system: System, options: RunOptions, mesh: Mesh) -> Any:
    """The first state of a run, on all devices."""
    init = system.init if options.num_models == 1 else jax.vmap(system.init)
    key = parallel.put(experiment.init_keys(options), mesh)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.block_until_ready(jax.jit(init, out_shardings=everywhere)(key))


def players(state: Any) -> list[Any]:
    """The training states in a state: two in a GAN's, else the state itself."""
    return [state.generator, state.discriminator] if isinstance(state, step.GanState) else [state]


def num_parameters(state: Any) -> int:
    """The number of trained parameters, without moving averages."""
    return sum(x.size for player in players(state) for x in jax.tree.leaves(player.params))


def params_by_name(state: Any) -> dict[str, Any]:
    """The parameters of the two networks, by their names."""
    if isinstance(state, step.GanState):
        return {"generator": state.generator.params, "discriminator": state.discriminator.params}
    return state.params


def _compile(run: Any, args: tuple) -> tuple[dict[str, float], Any, Any]:
    """The seconds of tracing and compiling, the lowered program and the compiled one.

    The compiled program is then raced: it is what a call of `run` would compile.
    """
    began = time.perf_counter()
    lowered = jax.jit(run, donate_argnums=0).lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    times = {"trace_s": traced - began, "compile_s": time.perf_counter() - traced}
    return times, lowered, compiled


def _loop(run: Any, state: Any, batches: Any, key: Key, chunk: int) -> Callable[[int], None]:
    """A function that does `count` steps in the scripts' training loop and writes nothing."""
    done = 0

    def steps(count: int) -> None:
        nonlocal state, done
        state, done = loop.train(
            run, state, batches, key, SILENT, start=done, stop=done + count, chunk=chunk
        )
        jax.block_until_ready(state)

    return steps


# --- for peers ---------------------------------------------------------------------------------


def draws(case: Case) -> list[tuple[np.ndarray, ...]]:
    """The random draws of the first two steps of `start`, on the first images of the set."""
    key = experiment.train_keys(config_of(case).run)
    images = jnp.asarray(dataset(case.batch_size))
    draws_of = jax.jit(_draws, static_argnums=0)
    return [jax.tree.map(np.asarray, draws_of(case, key, i, images)) for i in range(2)]


def _draws(case: Case, key: Key, i: Array, images: Array) -> tuple[Array, ...]:
    """The draws of step i in the steps and losses of `jaxgen.train`; images [B, H, W, C]."""
    latents = config_of(case).latent_dim
    key = jax.random.fold_in(key, i)

    def vae_draws(key: Key, image: Array) -> tuple[Array, Array]:
        binarize_key, eps_key = jax.random.split(key)
        x = losses.binarize(binarize_key, augment.to_unit_range(image))
        return losses.unit_interval(x), jax.random.normal(eps_key, (latents,))

    def player_draws(key: Key, splits: int) -> Array:
        keys = _keys(jax.random.fold_in(key, i), len(images))
        return jax.vmap(lambda k: jax.random.normal(jax.random.split(k, splits)[0], (latents,)))(
            keys
        )

    match case.model:
        case "autoencoder":
            return ()
        case "vae":
            return jax.vmap(vae_draws)(_keys(key, len(images)), images)
    d_key, g_key = jax.random.split(key)
    return player_draws(d_key, 4), player_draws(g_key, 2)


def _keys(key: Key, count: int) -> Key:
    """The keys of the examples of a batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
