# SPDX-License-Identifier: MIT
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.train import optimizer


def rates(steps, **options):
    schedule = jax.jit(optimizer.schedule(**options))
    return [float(schedule(jnp.int32(step))) for step in steps]


def test_constant_schedule_is_the_learning_rate_at_every_step():
    assert rates([0, 7, 100], learning_rate=0.5, num_steps=10) == [0.5, 0.5, 0.5]


def test_cosine_schedule_follows_half_a_wave_to_zero():
    expected = [0.2 * (1 + math.cos(math.pi * s / 100)) / 2 for s in (0, 25, 50, 99, 100)]
    got = rates([0, 25, 50, 99, 100], learning_rate=0.2, num_steps=100, kind="cosine")
    assert got == pytest.approx(expected, abs=1e-7)


def test_linear_schedule_falls_to_zero_at_the_last_step():
    got = rates([0, 5, 10, 11], learning_rate=0.4, num_steps=10, kind="linear")
    assert got == pytest.approx([0.4, 0.2, 0.0, 0.0], abs=1e-7)


@pytest.mark.parametrize("kind", optimizer.SCHEDULES)
def test_warmup_rises_from_zero_and_hands_over_at_the_full_rate(kind):
    got = rates([0, 2, 4], learning_rate=0.4, num_steps=12, kind=kind, warmup_steps=4)
    assert got == pytest.approx([0.0, 0.2, 0.4], abs=1e-7)
    last = rates([12], learning_rate=0.4, num_steps=12, kind=kind, warmup_steps=4)[0]
    assert last == pytest.approx(0.4 if kind == "constant" else 0.0, abs=1e-7)


def test_warmup_may_take_the_whole_run():
    got = rates([0, 5, 10], learning_rate=1.0, num_steps=10, kind="cosine", warmup_steps=10)
    assert got == pytest.approx([0.0, 0.5, 1.0])


def test_schedule_refuses_what_is_out_of_range():
    with pytest.raises(ValueError, match="learning rate -1; use a positive number"):
        optimizer.schedule(-1, 10)
    with pytest.raises(ValueError, match="learning rate nan; use a positive number"):
        optimizer.schedule(math.nan, 10)
    with pytest.raises(ValueError, match="warm-up of 11 steps; use 0 to the 10 steps"):
        optimizer.schedule(0.1, 10, warmup_steps=11)
    with pytest.raises(ValueError, match="unknown schedule 'step'; use one of constant, cosine"):
        optimizer.schedule(0.1, 10, "step")


def moved(tx, gradients):
    """Parameters after those gradients, from zero, in float64: 1 - b2 has few digits in float32."""
    with jax.enable_x64(True):
        params = jnp.zeros(2)
        state = tx.init(params)
        update = jax.jit(tx.update)
        for gradient in gradients:
            updates, state = update(jnp.asarray(gradient, jnp.float64), state, params)
            params = params + updates
        return np.asarray(params)


def adam_by_hand(gradients, rate, b1, b2):
    """Kingma & Ba 2015, algorithm 1, with its own numbering."""
    theta, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
    for t, g in enumerate(np.asarray(gradients, np.float64), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        theta -= rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
    return theta


GRADIENTS = np.array([[3.0, -4.0], [0.3, 0.4], [-30.0, 40.0]], np.float32)  # norms 5, 0.5, 50


def test_adam_equals_its_algorithm():
    tx = optimizer.adam(0.1, b1=0.5)
    expected = adam_by_hand(GRADIENTS, 0.1, 0.5, 0.999)
    np.testing.assert_allclose(moved(tx, GRADIENTS), expected, rtol=1e-5)


def test_clipping_scales_long_gradients_to_the_norm_and_leaves_short_ones():
    tx = optimizer.adam(0.1, b1=0.5, clip_norm=1.0)
    clipped = GRADIENTS / np.array([[5.0], [1.0], [50.0]])
    expected = adam_by_hand(clipped, 0.1, 0.5, 0.999)
    np.testing.assert_allclose(moved(tx, GRADIENTS), expected, rtol=1e-5)
    assert np.abs(expected - adam_by_hand(GRADIENTS, 0.1, 0.5, 0.999)).max() > 0.01


def test_clipping_measures_the_whole_gradient_not_each_leaf():
    tx = optimizer.adam(0.1, clip_norm=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    _, state = tx.update(gradients, tx.init(params), params)
    first_moment = state[1][0].mu  # 0.1 times the clipped gradient
    np.testing.assert_allclose([*first_moment["a"], *first_moment["b"]], [0.06, 0.08], rtol=1e-5)


def test_negative_clip_norm_is_refused():
    with pytest.raises(ValueError, match="clip norm -1; use 0"):
        optimizer.adam(0.1, clip_norm=-1)
