# SPDX-License-Identifier: MIT
"""Every parallel mode on every number of devices gives the same run, noise included."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from support import systems

from jaxgen.train import parallel, step

# 4 SGD steps in float32; the only difference is the order of sums over the batch.
TOLERANCE = 1e-5
SLOW = pytest.mark.slow


@pytest.mark.parametrize("how", parallel.MODES)
@pytest.mark.parametrize("name", systems.NAMES)
def test_eight_devices_train_like_one(name, how):
    expected, metrics = systems.run(name, "jit", 1)

    state, spread = systems.run(name, how, 8)

    assert systems.largest_difference(state, expected) < TOLERANCE
    for term in metrics:
        np.testing.assert_allclose(spread[term], metrics[term], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", parallel.MODES)
@pytest.mark.parametrize("name", systems.OBJECTIVES)
@SLOW
def test_objectives_of_one_example_and_of_the_batch_train_alike_on_four_devices(name, how):
    expected, metrics = systems.run(name, "jit", 1, (2,))

    state, spread = systems.run(name, how, 4, (2,))

    assert systems.largest_difference(state, expected) < TOLERANCE
    for term in metrics:
        np.testing.assert_allclose(spread[term], metrics[term], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*systems.NAMES, *systems.OBJECTIVES])
def test_objectives_go_on_from_a_file_to_the_same_bits(name):
    straight, resumed = systems.continued(name)
    assert int(straight.step) == 2
    assert systems.identical(straight, resumed)


@pytest.mark.parametrize("devices", [2, 4])
def test_other_numbers_of_devices_train_like_one(devices):
    expected, _ = systems.run("vae", "jit", 1)

    state, _ = systems.run("vae", "shard_map", devices)

    assert systems.largest_difference(state, expected) < TOLERANCE


@pytest.mark.parametrize(
    "how", ["shard_map", *(pytest.param(how, marks=SLOW) for how in ("jit", "pmap"))]
)
def test_batch_norm_uses_the_global_batch_in_every_mode(how):
    expected, _ = systems.run("gan", "jit", 1, (2,), network="conv", norm="batch")

    state, _ = systems.run("gan", how, 8, (2,), network="conv", norm="batch")

    assert systems.largest_difference(state, expected) < TOLERANCE


def test_the_noise_of_an_example_does_not_depend_on_the_division_of_the_batch():
    """With no data to tell examples apart, the drawn noise alone decides the loss."""

    def noise(params, example, key):
        value = jax.random.normal(key) * params
        return value, {"loss": value, "first": jnp.where(example["image"] == 5, value, 0.0)}

    one = step.gradient_step(noise, optax.sgd(1.0))
    results = []
    for how, devices in (("jit", 1), ("pmap", 8), ("shard_map", 8)):
        mesh = parallel.data_mesh(devices)
        go = parallel.parallelize(one, mesh, how)
        state = parallel.put(step.init_state(jnp.float32(1.0), optax.sgd(1.0)), mesh)
        batch = parallel.put({"image": np.arange(16)}, mesh, parallel.EXAMPLES)
        _, metrics = go(state, batch, parallel.put(jax.random.key(3), mesh))
        results.append(float(metrics["first"]))

    assert results[0] == pytest.approx(results[1], rel=1e-6)
    assert results[0] == pytest.approx(results[2], rel=1e-6)


@pytest.mark.parametrize("how", parallel.MODES)
def test_the_state_never_grows_a_device_axis_and_is_donated(how):
    init, one = systems.make("vae")
    mesh = parallel.data_mesh(8)
    state = parallel.put(init(jax.random.key(0)), mesh)
    shapes = jax.tree.map(jnp.shape, state)
    batch = {"image": systems.dataset(16)["image"], "label": np.zeros(16, np.int32)}
    go = parallel.parallelize(one, mesh, how)

    after, _ = go(state, parallel.put(batch, mesh, parallel.EXAMPLES), jax.random.key(1))

    assert jax.tree.map(jnp.shape, after) == shapes
    if how != "pmap":  # pmap decides by itself whether a broadcast argument can be donated
        assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


def test_a_batch_that_devices_cannot_share_names_the_multiple():
    _, one = systems.make("vae")
    go = parallel.parallelize(one, parallel.data_mesh(8), "jit")

    with pytest.raises(
        ValueError, match="batch of 12 cannot be divided over 8 devices; use a multiple of 8"
    ):
        go(None, {"image": np.zeros((12, 8, 8, 1), np.uint8)}, jax.random.key(0))


def test_unknown_modes_and_too_many_devices_are_named():
    _, one = systems.make("vae")

    with pytest.raises(ValueError, match="unknown parallel mode 'mpi'; use one of jit, pmap"):
        parallel.parallelize(one, parallel.data_mesh(1), "mpi")
    with pytest.raises(ValueError, match="cannot use 9 devices; this process sees 8"):
        parallel.data_mesh(9)


def test_put_replicates_or_divides_as_asked():
    mesh = parallel.data_mesh(8)
    x = np.arange(16.0, dtype=np.float32)

    whole, parts = parallel.put((x, x), mesh, (P(), P("data")))

    assert whole.addressable_shards[0].data.shape == (16,)
    assert parts.addressable_shards[3].data.tolist() == [6.0, 7.0]


@pytest.mark.parametrize("how", ["jit", "shard_map"])
def test_what_follows_from_noise_alone_is_divided_over_the_devices(how):
    """A generator's input: nothing in the batch says where its examples lie."""

    def loss(params, example, key):
        value = jnp.sum(jnp.tanh(params @ jax.random.normal(key, (32,))))
        return value, {"loss": value}

    one = step.gradient_step(loss, optax.sgd(1.0))
    state = step.init_state(jnp.ones((64, 32)), optax.sgd(1.0))
    batch = {"image": np.zeros(64, np.float32)}

    def flops(devices):
        mesh = parallel.data_mesh(devices)
        go = jax.jit(parallel.parallelize(one, mesh, how))
        return go.lower(state, batch, jax.random.key(0)).compile().cost_analysis()["flops"]

    assert flops(8) < flops(1) / 4
