# SPDX-License-Identifier: MIT
"""Steps: one by hand, microbatches, scans, several models, one trace."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import systems

from jaxgen.train import adversarial, parallel, step

SLOW = pytest.mark.slow


def quadratic(params, example, key):
    """(w - x)^2 / 2: its gradient w - x can be averaged by hand."""
    value = 0.5 * (params["w"] - example["x"]) ** 2
    return value, {"loss": value}


def test_one_sgd_step_is_the_one_done_by_hand():
    tx = optax.sgd(0.1)
    state = step.init_state({"w": jnp.float32(2.0)}, tx)

    state, metrics = jax.jit(step.gradient_step(quadratic, tx))(
        state, {"x": jnp.array([1.0, 3.0, 8.0])}, jax.random.key(0)
    )

    assert float(state.params["w"]) == pytest.approx(2.0 - 0.1 * (2.0 - 4.0))
    assert float(metrics["loss"]) == pytest.approx((0.5 + 0.5 + 18.0) / 3)
    assert float(metrics["grad_norm"]) == pytest.approx(2.0)
    assert int(state.step) == 1


def test_clipping_bounds_the_update_and_not_the_reported_norm():
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(1.0))
    state = step.init_state({"w": jnp.float32(2.0)}, tx)

    state, metrics = step.gradient_step(quadratic, tx)(
        state, {"x": jnp.array([1.0, 3.0, 8.0])}, jax.random.key(0)
    )

    assert float(state.params["w"]) == pytest.approx(2.5)
    assert float(metrics["grad_norm"]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("name", "how"), [("vae", "jit"), *((name, "shard_map") for name in systems.NAMES)]
)
@SLOW
def test_accumulated_microbatches_equal_the_whole_batch(name, how):
    expected, _ = systems.run(name, "jit", 1, (2,))

    state, _ = systems.run(name, how, 2, (2,), accumulate=4)

    assert systems.largest_difference(state, expected) < 1e-6  # another order of sums


def test_a_batch_that_cannot_be_split_is_named():
    one = step.gradient_step(quadratic, optax.sgd(0.1), accumulate=2)
    state = step.init_state({"w": jnp.float32(2.0)}, optax.sgd(0.1))

    with pytest.raises(
        ValueError, match="batch of 3 cannot be split into 2 microbatches; use a multiple of 2"
    ):
        one(state, {"x": jnp.ones(3)}, jax.random.key(0))


@pytest.mark.optimized
@pytest.mark.parametrize("name", ["autoencoder", pytest.param("gan", marks=SLOW)])
def test_scanned_steps_equal_looped_steps_bit_for_bit(name):
    looped, looped_metrics = systems.run(name, chunks=(1,) * 6)

    scanned, scanned_metrics = systems.run(name, chunks=(6,))

    assert systems.identical(scanned, looped)
    assert systems.identical(scanned_metrics, looped_metrics)


@pytest.mark.optimized
@SLOW
@pytest.mark.parametrize("how", parallel.MODES)
def test_scanned_steps_equal_looped_steps_bit_for_bit_on_eight_devices(how):
    looped, _ = systems.run("vae", how, 8, (1,) * 4)

    scanned, _ = systems.run("vae", how, 8, (4,))

    assert systems.identical(scanned, looped)


@pytest.mark.optimized
@SLOW
def test_the_length_of_scanned_chunks_does_not_change_a_convolutional_run():
    """On CPU other operations are fused in loops than outside, hence 2 and 2, and no 1: that is
    compared in test_cpu_convolution.
    """
    halves, _ = systems.run("vae", chunks=(2, 2), network="conv")

    whole, _ = systems.run("vae", chunks=(4,), network="conv")

    assert systems.identical(whole, halves)


@pytest.mark.parametrize("name", ["vae", "gan"])
@SLOW
def test_models_trained_at_once_equal_models_trained_alone(name):
    init, one = systems.make(name)
    batch = jax.tree.map(lambda x: x[:32], systems.dataset())
    start, go = jax.jit(init), jax.jit(one)
    alone = [go(start(jax.random.key(i)), batch, jax.random.key(10 + i))[0] for i in range(3)]

    states = jax.jit(jax.vmap(init))(jax.vmap(jax.random.key)(jnp.arange(3)))
    keys = jax.vmap(jax.random.key)(10 + jnp.arange(3))
    together, metrics = jax.jit(step.vmap_models(one))(states, batch, keys)

    assert metrics["loss"].shape == (3,)
    for i in range(3):
        model = jax.tree.map(lambda x, i=i: x[i], together)
        assert systems.largest_difference(model, alone[i]) < 1e-6  # batched matmuls


def test_a_chunk_of_one_has_metrics_with_a_leading_axis():
    init, one = systems.make("vae")
    batch = jax.tree.map(lambda x: x[:8], systems.dataset())
    state, key = jax.eval_shape(init, jax.random.key(0)), jax.random.key(1)

    _, metrics = jax.eval_shape(step.chunk_of_one(one), state, batch, key)

    assert {x.shape for x in metrics.values()} == {(1,)}


@pytest.mark.parametrize("how", parallel.MODES)
def test_a_step_is_traced_once(how):
    traces = []

    def counted(params, example, key):
        traces.append(None)
        value = params * jax.random.normal(key)
        return value, {"loss": value}

    tx = optax.adam(1e-3)
    mesh = parallel.data_mesh(2)
    one = step.scan_steps(step.gradient_step(counted, tx))
    go = parallel.parallelize(one, mesh, how, parallel.SCANNED)
    state = parallel.put(step.init_state(jnp.float32(1.0), tx), mesh)
    data = parallel.put({"image": np.zeros((8, 1), np.uint8)}, mesh)
    key = parallel.put(jax.random.key(0), mesh)
    for _ in range(5):
        rows = parallel.put(np.zeros((1, 4), np.int32), mesh, parallel.SCANNED[1])
        state, _ = go(state, (data, rows), key)

    assert len(traces) == 1


def test_the_discriminator_takes_its_steps_on_batches_of_its_own():
    """With a loss that reads the image, the first of two D steps sees even examples only."""

    def d_loss(params, example, key):
        value = params["w"] * example["image"]
        terms = {"d_real": value, "d_fake": value, "penalty": value}
        return value, {"loss": value, **terms}

    def g_loss(params, example, key):
        value = params["w"] * example["discriminator"]["w"]
        return value, {"loss": value}

    tx = optax.sgd(1.0)
    state = step.GanState(
        step.init_state({"w": jnp.float32(1.0)}, tx),
        step.init_state({"w": jnp.float32(0.0)}, tx),
        {"w": jnp.float32(1.0)},
    )
    one = step.gan_step(d_loss, g_loss, tx, tx, discriminator_steps=2, ema_decay=0.5)

    state, metrics = jax.jit(one)(
        state, {"image": jnp.array([1.0, 10.0, 3.0, 30.0])}, jax.random.key(0)
    )

    assert float(state.discriminator.params["w"]) == pytest.approx(-2.0 - 20.0)
    assert int(state.discriminator.step) == 2
    assert float(metrics["d_loss"]) == pytest.approx(-2.0 * 20.0)  # of the second step
    assert float(state.generator.params["w"]) == pytest.approx(1.0 + 22.0)
    rate = 2 / 11  # (1 + t) / (10 + t) at t = 1 is below the decay
    assert float(state.ema["w"]) == pytest.approx(rate * 1.0 + (1 - rate) * 23.0)
    assert int(state.step) == 1


def test_the_players_of_minimax_follow_the_gradient_of_equation_one():
    """D ascends and G descends the same value V(D, G) on the same z: checked by jax.grad of V."""
    game = adversarial.objective("minimax")
    real, fake = jnp.float32(0.7), jnp.float32(-0.4)

    def value(real, fake):  # log D(x) + log(1 - D(G(z)))
        return jnp.log(jax.nn.sigmoid(real)) + jnp.log(1 - jax.nn.sigmoid(fake))

    assert float(game.discriminator(real, fake)) == pytest.approx(-float(value(real, fake)))
    assert float(jax.grad(game.generator)(fake)) == pytest.approx(
        float(jax.grad(value, argnums=1)(real, fake)), rel=1e-5
    )


def test_zero_discriminator_steps_are_refused():
    with pytest.raises(ValueError, match="0 discriminator steps; use 1 or more"):
        step.gan_step(quadratic, quadratic, optax.sgd(1.0), optax.sgd(1.0), 0)


def averaged_run(devices, how="jit", num_steps=12, decay=0.6):
    """The moving average after every step, and the parameters, of SGD on the quadratic."""
    tx = optax.sgd(0.3)
    mesh = parallel.data_mesh(devices)
    one = step.with_moving_average(step.gradient_step(quadratic, tx), decay)
    go = parallel.parallelize(one, mesh, how)
    first = step.AveragedState(step.init_state({"w": np.float32(2.0)}, tx), {"w": np.float32(2.0)})
    state, key = parallel.put(first, mesh), parallel.put(jax.random.key(0), mesh)
    emas, params = [], []
    for i in range(num_steps):
        examples = np.arange(4, dtype=np.float32) + i
        batch = parallel.put({"x": examples}, mesh, parallel.EXAMPLES)
        state, _ = go(state, batch, key)
        assert int(state.step) == i + 1
        emas.append(float(state.ema["w"]))
        params.append(float(state.train.params["w"]))
    return np.array(emas), np.array(params)


def test_the_average_follows_its_recursion_with_a_rate_that_rises_to_the_decay():
    emas, params = averaged_run(1)
    w, ema, expected = 2.0, 2.0, []
    for t in range(1, 13):
        w -= 0.3 * (w - (1.5 + t - 1))  # the mean of the examples
        rate = min(0.6, (1 + t) / (10 + t))  # 0.18, 0.25, ..., 0.6 from t = 13
        ema = rate * ema + (1 - rate) * w
        expected.append((ema, w))
    np.testing.assert_allclose(np.stack([emas, params], 1), expected, rtol=1e-5)


@pytest.mark.parametrize("how", parallel.MODES)
def test_the_average_on_four_devices_equals_that_on_one(how):
    np.testing.assert_allclose(averaged_run(4, how), averaged_run(1), rtol=1e-6)


def test_the_average_does_not_change_the_run_it_averages():
    tx = optax.sgd(0.3)
    one = step.gradient_step(quadratic, tx)
    plain = step.init_state({"w": jnp.float32(2.0)}, tx)
    both = step.AveragedState(plain, plain.params)
    batch = {"x": jnp.array([1.0, 3.0])}
    plain, metrics = one(plain, batch, jax.random.key(0))
    both, same = step.with_moving_average(one, 0.999)(both, batch, jax.random.key(0))
    assert systems.identical(both.train, plain)
    assert systems.identical(same, metrics)
