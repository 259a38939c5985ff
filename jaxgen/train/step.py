# SPDX-License-Identifier: MIT
"""Steps: one pure update each, built from per-example losses, and lifted to scans and seeds."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from jaxgen.types import DATA_AXIS, Array, Batch, Key, LossFn, Metrics, Params, Step, TrainState


class GanState(NamedTuple):
    """The two players, and the moving average of the generator, which draws the samples."""

    generator: TrainState
    discriminator: TrainState
    ema: Params  # exponential moving average of generator.params

    @property
    def step(self) -> Array:
        return self.generator.step


class AveragedState(NamedTuple):
    """One optimiser's state, and the moving average of its parameters, which draws the samples."""

    train: TrainState
    ema: Params  # exponential moving average of train.params

    @property
    def step(self) -> Array:
        return self.train.step


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """Makes the training state of these parameters at step 0."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def gradient_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    accumulate: int = 1,
    shared: Sequence[str] = (),
) -> Step:
    """Builds a step that moves the parameters against the mean gradient of a per-example loss.

    batch: a dict whose leaves are [B, ...]; entries named in `shared` go to every example whole
    (the other player's parameters). Example i of the GLOBAL batch gets the key
    fold_in(fold_in(key, state.step), i), whatever device it lies on. `accumulate` = k averages
    gradients over k microbatches of B / k before the one update, with the same result.
    Metrics: the loss's own, averaged over the batch, and `grad_norm` before any clipping.
    Raises ValueError, when traced, for a batch that does not split into k microbatches.
    """

    def step(
        state: TrainState, batch: Batch, key: Key, axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        common = {name: batch[name] for name in shared} | {"step": state.step}
        examples = {name: x for name, x in batch.items() if name not in shared}
        places = _global_places(examples, axis)
        key = jax.random.fold_in(key, state.step)

        # varying: otherwise grad sums over the devices by itself (test_parallel.py)
        params = _varying(state.params, axis)
        gradient = partial(_mean_gradient, loss_fn, params, common)
        if accumulate == 1:
            grads, metrics = gradient(examples, _fold_each(key, places))
        else:
            examples, places = jax.tree.map(
                lambda x: split_microbatches(x, accumulate).swapaxes(0, 1), (examples, places)
            )
            grads, metrics = _mean_of_parts(gradient, (examples, _fold_each(key, places)), axis)
        if axis is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def with_moving_average(one: Step, ema_decay: float) -> Step:
    """Builds a step of an AveragedState: `one`, of its TrainState, then the moving average.

    ema = rate * ema + (1 - rate) * params, rate = min(ema_decay, (1 + t) / (10 + t)) after t
    updates, so that early samples are not the initial network's.
    """

    def step(
        state: AveragedState, batch: Batch, key: Key, axis: str | None = None
    ) -> tuple[AveragedState, Metrics]:
        train, metrics = one(state.train, batch, key, axis)
        ema = _moving_average(state.ema, train.params, train.step, ema_decay)
        return AveragedState(train, ema), metrics

    return step


def gan_step(
    discriminator_loss: LossFn,
    generator_loss: LossFn,
    discriminator_tx: optax.GradientTransformation,
    generator_tx: optax.GradientTransformation,
    discriminator_steps: int = 1,
    ema_decay: float = 0.999,
    accumulate: int = 1,
) -> Step:
    """A GAN is two gradient steps: k of the discriminator, one of the generator, then the average.

    Goodfellow et al. 2014 (arXiv:1406.2661), algorithm 1, with k = discriminator_steps. The batch
    is [k B, ...]: microbatch j of `split_microbatches` goes to the discriminator's step j, the last
    one to the generator too. The moving average is that of `with_moving_average`.
    Metrics: `loss` is d_loss + g_loss; the other names begin with d_ or g_, the player's letter.
    Raises ValueError for k < 1 and, when traced, for a batch that does not split into k.
    """
    if discriminator_steps < 1:
        raise ValueError(f"{discriminator_steps} discriminator steps; use 1 or more")
    step_d = gradient_step(discriminator_loss, discriminator_tx, accumulate, ("generator",))
    step_g = gradient_step(generator_loss, generator_tx, accumulate, ("discriminator",))

    def step(
        state: GanState, batch: Batch, key: Key, axis: str | None = None
    ) -> tuple[GanState, Metrics]:
        d_key, g_key = jax.random.split(jax.random.fold_in(key, state.step))
        parts = jax.tree.map(lambda x: split_microbatches(x, discriminator_steps), batch)

        discriminator, metrics = state.discriminator, {}
        for j in range(discriminator_steps):
            part = jax.tree.map(lambda x, j=j: x[:, j], parts)
            part = part | {"generator": state.generator.params}
            discriminator, metrics = step_d(discriminator, part, d_key, axis)

        last = {name: x[:, -1] for name, x in parts.items()}
        last |= {"discriminator": discriminator.params}
        generator, g_metrics = step_g(state.generator, last, g_key, axis)

        ema = _moving_average(state.ema, generator.params, generator.step, ema_decay)
        return GanState(generator, discriminator, ema), _players(metrics, g_metrics)

    return step


def scan_steps(step: Step, shared: Sequence[str] = ()) -> Step:
    """Builds a step that does n steps in one dispatch, on a data set that lies on the device.

    batch: (dataset, indices int32 [n, B]) -> metrics [n]; step i sees the examples indices[i].
    dataset: a dict of arrays [N, ...], an argument and never a closure, so that it is not baked
    into the program; its entries named in `shared` go to every step whole. Chunks of any length
    give the same run, bit for bit where the backend fuses the same operations inside loops and
    outside. CPU does not always for convolutional networks: one row runs without a loop, and may
    differ from a scanned one in the last bits. There, scan convolutions only with `cpu.convolution`
    registered, as `cpu.tune.tune_cpu` does; they are many times slower without.
    """

    def scanned(
        state: Any, batch: tuple[Batch, Array], key: Key, axis: str | None = None
    ) -> tuple[Any, Metrics]:
        dataset, indices = batch

        def one(state: Any, row: Array) -> tuple[Any, Metrics]:
            batch = {
                name: part if name in shared else jax.tree.map(lambda x: x[row], part)
                for name, part in dataset.items()
            }
            return step(state, batch, key, axis)

        if indices.shape[0] == 1:
            state, metrics = one(state, indices[0])
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(one, state, indices)

    return scanned


def chunk_of_one(step: Step) -> Step:
    """Gives a step's metrics a leading axis of 1, as the loop reads them; for host batches."""

    def one(state: Any, batch: Batch, key: Key, axis: str | None = None) -> tuple[Any, Metrics]:
        state, metrics = step(state, batch, key, axis)
        return state, jax.tree.map(lambda x: x[None], metrics)

    return one


def vmap_models(step: Step) -> Step:
    """Steps S independent models at once: state leaves [S, ...], key [S], metrics [S].

    All models see the same batch, each with its own initial parameters and its own noise.
    """

    def many(state: Any, batch: Batch, key: Key, axis: str | None = None) -> tuple[Any, Metrics]:
        return jax.vmap(partial(step, axis=axis), in_axes=(0, None, 0))(state, batch, key)

    return many


def _global_places(examples: Batch, axis: str | None) -> Array:
    """Computes the index in the global batch of each example [B] of this device."""
    size = jax.tree.leaves(examples)[0].shape[0]
    if axis is not None:
        return jax.lax.axis_index(axis) * size + jnp.arange(size)
    places = jnp.arange(size)
    if DATA_AXIS in jax.sharding.get_abstract_mesh().axis_names:
        # jit divides what comes from the batch; noise comes from places alone, and without this
        # every device would draw the noise, and run the generator, of the whole batch
        places = jax.lax.with_sharding_constraint(places, PartitionSpec(DATA_AXIS))
    return places


def _fold_each(key: Key, places: Array) -> Key:
    """Makes one key per example: places [...] -> keys [...]."""
    fold = jax.random.fold_in
    for _ in places.shape:
        fold = jax.vmap(fold, (None, 0))
    return fold(key, places)


def _varying(params: Params, axis: str | None) -> Params:
    """Marks the parameters as possibly different on each device of the axis."""
    return params if axis is None else jax.lax.pcast(params, axis, to="varying")


def _mean_gradient(
    loss_fn: LossFn, params: Params, common: dict, examples: Batch, keys: Key
) -> tuple[Params, Metrics]:
    """Computes the gradient and the metrics of the mean loss over these examples."""

    def mean_loss(params: Params) -> tuple[Array, Metrics]:
        def one(example: Batch, key: Key) -> tuple[Array, Metrics]:
            return loss_fn(params, example | common, key)

        losses, metrics = jax.vmap(one)(examples, keys)
        return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

    return jax.grad(mean_loss, has_aux=True)(params)


def _mean_of_parts(gradient: Callable, parts: tuple[Batch, Key], axis: str | None) -> Any:
    """Averages gradient(examples, keys) over k parts, leaves [k, ...], one after the other."""
    first = lambda parts: gradient(*jax.tree.map(lambda x: x[0], parts))  # noqa: E731
    shapes = jax.eval_shape(first, parts)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total: Any, part: tuple[Batch, Key]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(*part)), None

    total, _ = jax.lax.scan(add, _varying(zeros, axis), parts)
    return jax.tree.map(lambda x: x / parts[1].shape[0], total)


def split_microbatches(x: Array, k: int) -> Array:
    """Deals a batch into k microbatches: [B k, ...] -> [B, k, ...].

    Microbatch j is [:, j]: the examples j, k + j, 2 k + j, ...

    So each shard of a divided batch holds its part of every microbatch.
    Raises ValueError unless k divides the batch.
    """
    if x.shape[0] % k:
        raise ValueError(
            f"batch of {x.shape[0]} cannot be split into {k} microbatches; use a multiple of {k}"
        )
    return x.reshape(x.shape[0] // k, k, *x.shape[1:])


def _moving_average(ema: Params, params: Params, step: Array, decay: float) -> Params:
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, ema, params)


def _players(d: Metrics, g: Metrics) -> Metrics:
    """Joins the metrics of the two players into those of a GAN's step."""
    return {
        "loss": d["loss"] + g["loss"],
        "d_loss": d["loss"],
        "g_loss": g["loss"],
        "d_real": d["d_real"],
        "d_fake": d["d_fake"],
        "d_penalty": d["penalty"],
        "d_grad_norm": d["grad_norm"],
        "g_grad_norm": g["grad_norm"],
    }
