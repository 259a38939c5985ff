# SPDX-License-Identifier: MIT
"""Steps: one pure update each, made from per-example losses, and lifted to scans and seeds."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.types import Array, Batch, Key, LossFn, Metrics, Params, Step, TrainState


class GanState(NamedTuple):
    """The two players and the moving average of the generator that samples are drawn with."""

    generator: TrainState
    discriminator: TrainState
    ema: Params  # exponential moving average of generator.params

    @property
    def step(self) -> Array:
        return self.generator.step


class AveragedState(NamedTuple):
    """One optimiser's state, and the moving average of its parameters that samples come from."""

    train: TrainState
    ema: Params  # exponential moving average of train.params

    @property
    def step(self) -> Array:
        return self.train.step


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """A state at step 0 for these parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def gradient_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    accumulate: int = 1,
    shared: Sequence[str] = (),
) -> Step:
    """A step that moves the parameters against the mean gradient of a per-example loss.

    batch: a dict whose leaves are [B, ...]; entries named in `shared` go to every example whole
    (the other player's parameters). Example i of the GLOBAL batch gets the key
    fold_in(fold_in(key, state.step), i), whatever device it lies on. `accumulate` = k averages
    gradients over k microbatches of B / k before the one update, with the same result.
    Metrics: the loss's own, averaged over the batch, and `grad_norm` before any clipping.
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
            parts = jax.tree.map(lambda x: _deal(x, accumulate).swapaxes(0, 1), (examples, places))
            grads, metrics = _mean_in_parts(gradient, parts[0], _fold_each(key, parts[1]), axis)
        if axis is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def averaged(one: Step, ema_decay: float) -> Step:
    """The step of a TrainState, followed by the moving average: a step of an AveragedState.

    The average rises as min(decay, (1 + t) / (10 + t)), as in `gan_step`.
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
    """k gradient steps of the discriminator, then one of the generator, then the moving average.

    Goodfellow et al. 2014 (arXiv:1406.2661), algorithm 1. The batch holds k B images: example
    b k + j goes to discriminator step j, so that a shard of the batch holds its part of every
    step. The average rises as min(decay, (1 + t) / (10 + t)), so early samples are not the
    initial network's. `loss` is d_loss + g_loss; the players' terms carry d_ and g_.
    """
    if discriminator_steps < 1:
        raise ValueError(f"{discriminator_steps} discriminator steps; use 1 or more")
    step_d = gradient_step(discriminator_loss, discriminator_tx, accumulate, ("generator",))
    step_g = gradient_step(generator_loss, generator_tx, accumulate, ("discriminator",))

    def step(
        state: GanState, batch: Batch, key: Key, axis: str | None = None
    ) -> tuple[GanState, Metrics]:
        d_key, g_key = jax.random.split(jax.random.fold_in(key, state.step))
        parts = jax.tree.map(lambda x: _deal(x, discriminator_steps), batch)

        discriminator, metrics = state.discriminator, {}
        for j in range(discriminator_steps):
            part = jax.tree.map(lambda x, j=j: x[:, j], parts)
            part = part | {"generator": state.generator.params}
            discriminator, metrics = step_d(discriminator, part, d_key, axis)

        last = {name: x[:, -1] for name, x in parts.items()}
        given = last | {"discriminator": discriminator.params}
        generator, g_metrics = step_g(state.generator, given, g_key, axis)

        ema = _moving_average(state.ema, generator.params, generator.step, ema_decay)
        return GanState(generator, discriminator, ema), _players(metrics, g_metrics)

    return step


def gathered(step: Step) -> Step:
    """The step for a data set that lies on the device: batch = (dataset, indices [B]).

    dataset: a dict of arrays [N, ...], an argument and never a closure, so that it is not baked
    into the program.
    """

    def gather(
        state: Any, batch: tuple[Batch, Array], key: Key, axis: str | None = None
    ) -> tuple[Any, Metrics]:
        dataset, indices = batch
        return step(state, jax.tree.map(lambda x: x[indices], dataset), key, axis)

    return gather


def scan_steps(step: Step) -> Step:
    """n steps in one dispatch: batch = (dataset, indices [n, B]), metrics [n].

    Chunks of any length give the same run, bit for bit where the backend fuses the same operations
    in and outside loops. CPU does not always for convolutional networks: one row runs without a
    loop, and may differ from a scanned one in the last bits. There, scan convolutions only with
    `cpu.convolution` registered, as `cpu.tune.tune_cpu` does; they are many times slower without.
    """
    one = gathered(step)

    def scanned(
        state: Any, batch: tuple[Batch, Array], key: Key, axis: str | None = None
    ) -> tuple[Any, Metrics]:
        dataset, indices = batch
        if indices.shape[0] == 1:
            state, metrics = one(state, (dataset, indices[0]), key, axis)
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(lambda s, row: one(s, (dataset, row), key, axis), state, indices)

    return scanned


def chunk_of_one(step: Step) -> Step:
    """The step with metrics [1], as the loop reads them: for batches that come from the host."""

    def one(state: Any, batch: Batch, key: Key, axis: str | None = None) -> tuple[Any, Metrics]:
        state, metrics = step(state, batch, key, axis)
        return state, jax.tree.map(lambda x: x[None], metrics)

    return one


def vmap_models(step: Step) -> Step:
    """The step of S independent models at once: state leaves [S, ...], key [S], metrics [..., S].

    All models see the same batch, each with its own initial parameters and its own noise.
    """

    def many(state: Any, batch: Batch, key: Key, axis: str | None = None) -> tuple[Any, Metrics]:
        return jax.vmap(partial(step, axis=axis), in_axes=(0, None, 0))(state, batch, key)

    return many


def _global_places(examples: Batch, axis: str | None) -> Array:
    """Index [B] of each example of this device in the global batch."""
    size = jax.tree.leaves(examples)[0].shape[0]
    start = 0 if axis is None else jax.lax.axis_index(axis) * size
    return start + jnp.arange(size)


def _fold_each(key: Key, places: Array) -> Key:
    """One key per example: places [...] -> keys [...]."""
    fold = jax.random.fold_in
    for _ in places.shape:
        fold = jax.vmap(fold, (None, 0))
    return fold(key, places)


def _varying(params: Params, axis: str | None) -> Params:
    return params if axis is None else jax.lax.pcast(params, axis, to="varying")


def _mean_gradient(
    loss_fn: LossFn, params: Params, common: dict, examples: Batch, keys: Key
) -> tuple[Params, Metrics]:
    """Gradient and metrics of the mean loss over these examples."""

    def mean_loss(params: Params) -> tuple[Array, Metrics]:
        def one(example: Batch, key: Key) -> tuple[Array, Metrics]:
            return loss_fn(params, example | common, key)

        losses, metrics = jax.vmap(one)(examples, keys)
        return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

    return jax.grad(mean_loss, has_aux=True)(params)


def _mean_in_parts(gradient: Callable, examples: Batch, keys: Key, axis: str | None) -> Any:
    """The mean of gradient(examples, keys) over their leading axis, one part at a time."""
    part = jax.eval_shape(lambda xs: jax.tree.map(lambda x: x[0], xs), (examples, keys))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, *part))

    def add(total: Any, part: tuple[Batch, Key]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(*part)), None

    total, _ = jax.lax.scan(add, _varying(zeros, axis), (examples, keys))
    return jax.tree.map(lambda x: x / keys.shape[0], total)


def _deal(x: Array, hands: int) -> Array:
    """[B k, ...] -> [B, k, ...]: example b k + j is card j of row b, on any number of devices."""
    if x.shape[0] % hands:
        raise ValueError(
            f"batch of {x.shape[0]} cannot be dealt into {hands}; use a multiple of it"
        )
    return x.reshape(x.shape[0] // hands, hands, *x.shape[1:])


def _moving_average(ema: Params, params: Params, step: Array, decay: float) -> Params:
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, ema, params)


def _players(d: Metrics, g: Metrics) -> Metrics:
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
