# SPDX-License-Identifier: MIT
"""Objectives of a whole batch, written as losses of one example, and penalties of autoencoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from support.gradients import decode, encode, gradient_error, image, parameters

from jaxgen.train import divergences, losses, neighbours, parallel, penalties

BATCH, D = 6, 2


def moments(seed=0, size=BATCH):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((3, size, D)) * np.array([1, 1, 0.5])[:, None, None]


def of_batch(divergence, z, mean, logvar, weight=1.0):
    """The terms [B] of the examples of one batch."""
    one = lambda z, mean, logvar: divergence(z, mean, logvar, jnp.float32(weight))[0]  # noqa: E731
    return jax.jit(jax.vmap(one))(*map(jnp.float32, (z, mean, logvar)))


def batch_loss(loss_fn, size=4):
    """The mean of a per-example loss over a batch, as a loss whose example is the batch."""

    def loss(params, batch, key):
        keys = jax.random.split(key, size)
        value, metrics = jax.vmap(lambda e, k: loss_fn(params, e, k))(batch, keys)
        return jnp.mean(value), jax.tree.map(jnp.mean, metrics)

    return loss


def batch(size=4):
    images = np.stack([image(seed) for seed in range(size)])
    return {"image": images, "step": np.full(size, 3)}


# --- neighbours -----------------------------------------------------------------------------


def test_an_example_alone_is_its_whole_batch():
    np.testing.assert_array_equal(neighbours.all_examples(jnp.arange(3.0)), [[0, 1, 2]])


@pytest.mark.parametrize("how", parallel.MODES)
def test_every_example_sees_the_global_batch_in_its_order_in_every_mode(how):
    """Weights that differ by example and by place, so that another order is another number."""

    def step(state, batch, key, axis=None):
        def mean(w):
            values = jax.vmap(lambda x: jnp.sum(neighbours.all_examples(w * x) * batch["order"]))
            return jnp.mean(values(batch["image"]))

        value, slope = jax.value_and_grad(mean)(
            state if axis is None else jax.lax.pcast(state, axis, to="varying")
        )
        if axis is not None:
            value, slope = jax.lax.pmean((value, slope), axis)
        return state, {"value": value, "slope": slope}

    mesh = parallel.data_mesh(4)
    x, order = np.arange(8, dtype=np.float32), np.arange(8, dtype=np.float32) ** 2
    one = lambda state, batch, key, axis=None: step(  # noqa: E731
        state, batch | {"order": jnp.asarray(order)}, key, axis
    )
    run = parallel.parallelize(one, mesh, how)
    data = parallel.put({"image": x}, mesh, parallel.EXAMPLES)
    _, metrics = run(
        parallel.put(jnp.float32(1.5), mesh), data, parallel.put(jax.random.key(0), mesh)
    )
    assert float(metrics["value"]) == pytest.approx(1.5 * np.dot(x, order))
    assert float(metrics["slope"]) == pytest.approx(np.dot(x, order))


# --- free bits ------------------------------------------------------------------------------


def test_free_bits_are_the_papers_sum_over_entries_of_the_mean_over_the_batch():
    z, mean, logvar = moments()
    kl = 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).mean(axis=0)
    nats = float(kl.mean())  # between the two
    got = of_batch(divergences.free_bits(nats), z, mean, logvar, 2.0)
    np.testing.assert_allclose(np.mean(got), 2 * np.maximum(kl, nats).sum(), rtol=1e-5)


def test_no_free_bits_are_the_kl_and_many_have_no_slope():
    z, mean, logvar = moments()
    none = of_batch(divergences.free_bits(0.0), z, mean, logvar)
    np.testing.assert_allclose(none, losses.kl_divergence(mean, logvar), rtol=1e-5)
    slope = jax.grad(lambda m: jnp.sum(of_batch(divergences.free_bits(50.0), z, m, logvar)))
    np.testing.assert_array_equal(slope(jnp.float32(mean)), 0)


# --- beta-TC --------------------------------------------------------------------------------


def decomposition(z, mean, logvar, num_examples):
    """The three parts [B] by scipy, example by example (Chen et al. 2018, appendix C.1)."""
    std, size = np.exp(logvar / 2), len(z)
    parts = []
    for i in range(size):
        each = np.array([scipy.stats.norm.logpdf(z[i], mean[j], std[j]) for j in range(size)])
        joint = scipy.special.logsumexp(each.sum(axis=1)) - np.log(num_examples * size)
        product = (scipy.special.logsumexp(each, axis=0) - np.log(num_examples * size)).sum()
        prior = scipy.stats.norm.logpdf(z[i]).sum()
        parts.append([each[i].sum() - joint, joint - product, product - prior])
    return np.array(parts)


# images and batch together are more than 32 bits hold
@pytest.mark.parametrize(("weight", "num_examples"), [(1.0, 1000), (6.0, 1000), (6.0, 2**31)])
def test_total_correlation_is_weighted_as_in_the_paper(weight, num_examples):
    z, mean, logvar = moments()
    parts = decomposition(z, mean, logvar, num_examples)
    divergence = divergences.total_correlation(num_examples)
    got = of_batch(divergence, z, mean, logvar, weight)
    np.testing.assert_allclose(got, parts @ [1, weight, 1], rtol=1e-4, atol=1e-3)

    metrics = jax.vmap(lambda *x: divergence(*x, jnp.float32(weight))[1])
    names = ("mutual_information_nats", "total_correlation_nats", "entries_kl_nats")
    by_name = metrics(*map(jnp.float32, (z, mean, logvar)))
    np.testing.assert_allclose(
        np.stack([by_name[name] for name in names], axis=1), parts, rtol=1e-4, atol=1e-3
    )


def test_the_parts_of_weight_one_are_the_sampled_kl():
    z, mean, logvar = moments()
    sampled = (
        scipy.stats.norm.logpdf(z, mean, np.exp(logvar / 2)) - scipy.stats.norm.logpdf(z)
    ).sum(axis=1)
    got = of_batch(divergences.total_correlation(77), z, mean, logvar)
    np.testing.assert_allclose(got, sampled, rtol=1e-4, atol=1e-4)


def test_total_correlation_falls_with_the_dependence_between_entries():
    """Means on a line against means of the same margins in no order."""
    rng = np.random.default_rng(0)
    line = np.repeat(np.linspace(-2, 2, 64)[:, None], 2, axis=1)
    mixed = np.stack([line[:, 0], rng.permutation(line[:, 1])], axis=1)
    logvar = np.full((64, 2), -3.0)

    def correlation(mean):
        z = mean + np.exp(logvar / 2) * rng.standard_normal(mean.shape)
        heavy, light = (
            np.mean(of_batch(divergences.total_correlation(64), z, mean, logvar, w)) for w in (2, 1)
        )
        return heavy - light

    assert correlation(line) > correlation(mixed) + 0.5


@pytest.mark.parametrize(
    "divergence", [divergences.free_bits(0.3), divergences.total_correlation(50)]
)
def test_gradients_of_a_batch_equal_finite_differences(divergence):
    loss = divergences.divergence_loss(
        encode, decode, losses.gaussian, divergence, losses.linear_warmup(0, 3.0), True
    )
    assert gradient_error(batch_loss(loss), parameters(), batch()) < 1e-6


# --- penalties ------------------------------------------------------------------------------


def penalized(penalty, weight=0.7):
    return penalties.with_penalty(losses.autoencoder_loss(encode, decode), "term", penalty, weight)


@pytest.mark.parametrize("penalty", [penalties.contraction(encode), penalties.mmd(encode)])
def test_gradients_of_penalties_equal_finite_differences(penalty):
    params = parameters(outputs=2)
    params.pop("log_scale")
    assert gradient_error(batch_loss(penalized(penalty)), params, batch()) < 1e-6


def test_contraction_of_a_linear_code_is_the_squared_norm_of_its_matrix():
    w = np.random.default_rng(0).standard_normal((3, 12)).astype(np.float32)
    penalty = penalties.contraction(lambda params, x, label: params @ x.ravel())
    value = penalty({"encoder": w}, jnp.float32(image()), None, jax.random.key(0))
    np.testing.assert_allclose(value, np.sum(w**2), rtol=1e-5)


def test_mmd_is_the_unbiased_estimate_of_the_paper():
    codes = moments()[0]
    show = penalties.mmd(lambda params, x, label: x)
    keys = jax.random.split(jax.random.key(0), BATCH)
    got = jax.vmap(lambda x, key: show({"encoder": ()}, x, None, key))(jnp.float32(codes), keys)
    p = np.array(
        [jax.random.normal(key, (D,)) for key in jax.random.split(jax.random.key(0), BATCH)]
    )
    kernel = lambda a, b: 4 / (4 + ((a[:, None] - b[None]) ** 2).sum(-1))  # noqa: E731
    off = ~np.eye(BATCH, dtype=bool)
    expected = (
        kernel(p, p)[off].mean() + kernel(codes, codes)[off].mean() - 2 * kernel(p, codes).mean()
    )
    np.testing.assert_allclose(np.mean(got), expected, rtol=1e-4, atol=1e-6)


def test_mmd_is_zero_on_average_for_codes_of_the_prior_and_positive_for_others():
    show = penalties.mmd(lambda params, x, label: x)

    def estimate(scale, key):
        z_key, p_key = jax.random.split(key)
        z = scale * jax.random.normal(z_key, (16, D))
        one = lambda z, key: show({"encoder": ()}, z, None, key)  # noqa: E731
        return jnp.mean(jax.vmap(one)(z, jax.random.split(p_key, 16)))

    keys = lambda: jax.random.split(jax.random.key(0), 400)  # noqa: E731
    same, other = (
        np.asarray(jax.jit(jax.vmap(lambda k, s=s: estimate(s, k)))(keys())) for s in (1.0, 3.0)
    )
    assert abs(same.mean()) < 4 * same.std() / 20
    assert other.mean() > 0.1


def test_a_sparse_code_keeps_its_largest_entries_and_their_gradients():
    code = jnp.array([0.3, -2.0, 1.5, 0.9])
    sparse = penalties.sparse(lambda params, x, *label: params * x, 2)
    np.testing.assert_array_equal(sparse(jnp.ones(4), code), [0, 0, 1.5, np.float32(0.9)])
    slope = jax.grad(lambda w: jnp.sum(sparse(w, code)))(jnp.ones(4))
    np.testing.assert_array_equal(slope, [0, 0, 1.5, np.float32(0.9)])
    np.testing.assert_array_equal(penalties.sparse(lambda params, x: x, 4)((), code), code)


def test_what_makes_no_sense_is_refused():
    one = {"image": jnp.float32(image()), "step": 0}
    with pytest.raises(ValueError, match=r"free bits of -1 nats; use 0"):
        divergences.free_bits(-1)
    with pytest.raises(ValueError, match="training set of 0 examples; use 1 or more"):
        divergences.total_correlation(0)
    with pytest.raises(ValueError, match="a mmd penalty of weight 0; use a positive number"):
        penalties.with_penalty(None, "mmd", None, 0)
    with pytest.raises(ValueError, match="compares the codes of a batch; use a batch of 2"):
        penalties.mmd(encode)(parameters(2), one["image"], None, jax.random.key(0))
    with pytest.raises(ValueError, match="code with 0 active entries; use 1 or more"):
        penalties.sparse(encode, 0)
    with pytest.raises(ValueError, match="a code of 4 entries cannot have 5 active ones"):
        penalties.sparse(encode, 5)(parameters()["encoder"], one["image"], None)
