# SPDX-License-Identifier: MIT
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxgen.nn import norm

FEATURES = 6


def batch(size=16):
    rng = np.random.default_rng(0)
    return jnp.float32(2 + 3 * rng.standard_normal((size, 4, 4, FEATURES)))


def params():
    rng = np.random.default_rng(1)
    return {
        "scale": jnp.float32(rng.normal(1, 0.3, FEATURES)),
        "bias": jnp.float32(rng.normal(size=FEATURES)),
    }


def normalized(params, x):
    return norm.BatchNorm().apply({"params": params}, x)


def by_flax(params, x):
    """The oracle: flax's own layer, which sees the whole batch on one device."""
    layer = nn.BatchNorm(use_running_average=False, use_fast_variance=False)
    stats = {"mean": jnp.zeros(FEATURES), "var": jnp.ones(FEATURES)}
    return layer.apply({"params": params, "batch_stats": stats}, x, mutable="batch_stats")[0]


def each(params, x):
    """Every example by itself under vmap, as a loss for one example sees it."""
    return jax.vmap(normalized, (None, 0))(params, x)


def gradient(apply, params, x):
    """Of an objective with which every output counts differently."""
    weight = jnp.sin(jnp.arange(FEATURES * 16)).reshape(4, 4, FEATURES)
    total = lambda p, x: 100 * jnp.mean(jnp.tanh(apply(p, x)) ** 3 * weight[None])  # noqa: E731
    return jax.grad(total, argnums=(0, 1))(params, x)


def assert_close(got, expected, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol), got, expected)


def data_mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def test_batch_norm_equals_flax_on_a_whole_batch():
    assert_close(normalized(params(), batch()), by_flax(params(), batch()))


def test_batch_norm_of_a_batch_has_mean_0_and_variance_1():
    plain = {"scale": jnp.ones(FEATURES), "bias": jnp.zeros(FEATURES)}
    y = np.asarray(normalized(plain, batch()))
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(axis=(0, 1, 2)), 1, atol=1e-4)


def test_variance_does_not_cancel_where_the_mean_is_large():
    """The fast variance E x^2 - (E x)^2 would be wrong in the first digit."""
    plain = {"scale": jnp.ones(FEATURES), "bias": jnp.zeros(FEATURES)}
    y = np.asarray(each(plain, 5000 + batch()))
    np.testing.assert_allclose(y.var(axis=(0, 1, 2)), 1, atol=1e-3)


@pytest.mark.parametrize(("kind", "axes"), [("group", (1, 2, 4)), ("layer", 4)])
def test_a_mean_of_a_thousand_deviations_costs_no_digit_that_float32_has(kind, axes):
    x = (1000 + np.random.default_rng(0).standard_normal((2, 8, 8, 8, 8))).astype(np.float32)
    flat, exact = x.reshape(2, 8, 8, 64), x.astype(np.float64)
    exact = (exact - exact.mean(axes, keepdims=True)) / exact.std(axes, keepdims=True)
    module = norm.Norm(kind)
    if kind == "layer":
        flat = x
    y = module.apply(module.init(jax.random.key(0), flat), flat)
    np.testing.assert_allclose(np.reshape(y, exact.shape), exact, atol=2e-3)


def test_examples_mapped_one_by_one_share_the_statistics_of_their_batch():
    assert_close(jax.jit(each)(params(), batch()), normalized(params(), batch()))


def test_gradient_through_mapped_examples_equals_that_of_the_batch():
    """It includes the paths through the mean and the variance."""
    expected = gradient(by_flax, params(), batch())
    assert_close(jax.jit(partial(gradient, each))(params(), batch()), expected, atol=1e-5)
    # And it would not without them: a frozen-statistics gradient is far away.
    frozen = lambda p, x: norm.BatchNorm().apply(  # noqa: E731
        {"params": p, "batch_stats": standing(batch())}, x
    )
    assert np.abs(gradient(frozen, params(), batch())[1] - expected[1]).max() > 1e-3


def test_seeds_mapped_outside_keep_statistics_of_their_own():
    two = jnp.stack([batch(), -3 * batch() ** 2])
    got = jax.jit(jax.vmap(each, (None, 0)))(params(), two)
    assert_close(got, jnp.stack([normalized(params(), x) for x in two]))


def test_batch_norm_in_shard_map_equals_one_device():
    sharded = jax.shard_map(each, mesh=data_mesh(), in_specs=(P(), P("data")), out_specs=P("data"))
    assert_close(jax.jit(sharded)(params(), batch()), normalized(params(), batch()))


def test_gradient_in_shard_map_equals_one_device():
    """With parameters marked varying, the mean over devices of local gradients is the gradient."""

    def local(params, x):
        params = jax.tree.map(lambda v: jax.lax.pcast(v, "data", to="varying"), params)
        by_params, by_x = gradient(each, params, x)
        return jax.lax.pmean(by_params, "data"), by_x / 8

    sharded = jax.shard_map(
        local, mesh=data_mesh(), in_specs=(P(), P("data")), out_specs=(P(), P("data"))
    )
    assert_close(
        jax.jit(sharded)(params(), batch()), gradient(by_flax, params(), batch()), atol=1e-5
    )


def test_batch_norm_in_pmap_equals_one_device():
    shards = batch().reshape(8, 2, 4, 4, FEATURES)

    def local(params, x):
        return each(params, x), jax.lax.pmean(gradient(each, params, x)[0], "data")

    mapped = jax.pmap(local, axis_name="data", in_axes=(None, 0), out_axes=(0, None))
    outputs, grads = mapped(params(), shards)
    assert_close(outputs.reshape(batch().shape), normalized(params(), batch()))
    assert_close(grads, gradient(by_flax, params(), batch())[0], atol=1e-5)


def test_gradient_inside_the_map_of_examples_is_refused():
    """As a gradient penalty would take it; better an error than a wrong number."""
    with pytest.raises(ValueError, match="does not support reverse-mode"):
        jax.vmap(jax.grad(lambda x: jnp.sum(normalized(params(), x) ** 3)))(batch())


def standing(x):
    _, made = norm.BatchNorm().apply({"params": params()}, x, mutable="batch_stats")
    return made["batch_stats"]


def test_standing_statistics_give_one_example_its_value_in_the_batch():
    variables = {"params": params(), "batch_stats": standing(batch())}
    alone = jax.jit(lambda x: norm.BatchNorm().apply(variables, x))(batch()[3])
    assert_close(alone, normalized(params(), batch())[3])


def test_standing_statistics_are_the_moments_of_the_batch():
    made = standing(batch())
    np.testing.assert_allclose(made["mean"], batch().mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(made["var"], batch().var(axis=(0, 1, 2)), rtol=1e-4)


def test_initialisation_makes_parameters_only():
    variables = norm.BatchNorm().init(jax.random.key(0), batch())
    assert set(variables) == {"params"}
    assert set(variables["params"]) == {"scale", "bias"}


@pytest.mark.parametrize("kind", ["none", "group", "layer"])
def test_other_norms_never_look_at_another_example(kind):
    module = norm.Norm(kind)
    variables = module.init(jax.random.key(0), batch())
    together = module.apply(variables, batch())
    disturbed = module.apply(variables, batch().at[1:].multiply(7.0))
    np.testing.assert_array_equal(together[0], disturbed[0])
    assert_close(jax.vmap(module.apply, (None, 0))(variables, batch()), together)


@pytest.mark.parametrize("shape", [(2, 4, 4, 24), (2, 24), (24,)])
def test_group_norm_normalizes_space_and_eight_groups(shape):
    x = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
    module = norm.Norm("group")
    y = module.apply(module.init(jax.random.key(0), x), x)
    groups = x.astype(np.float64).reshape(*shape[:-1], 8, 3)
    axes = (1, 2, 4) if len(shape) == 4 else (-1,)
    centred = groups - groups.mean(axes, keepdims=True)
    expected = centred / np.sqrt(groups.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected.reshape(shape), atol=1e-4)


@pytest.mark.parametrize("kind", ["group", "layer", "batch"])
def test_norms_keep_float32_parameters_and_statistics_under_bfloat16(kind):
    x = 200 + batch()
    half, single = norm.Norm(kind, dtype=jnp.bfloat16), norm.Norm(kind)
    variables = half.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    y = half.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    # Statistics in bfloat16 would be off by the spacing at 200, which is 1; results round to 2^-8.
    assert_close(y.astype(jnp.float32), single.apply(variables, x), atol=0.02)


def test_unknown_norm_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown norm 'instance'; use one of none, group, layer"):
        norm.Norm("instance").init(jax.random.key(0), batch())


@pytest.mark.parametrize(("ratio", "bound"), [(0, 3e-3), (1, 3e-3), (10, 3e-3), (100, 2e-2)])
def test_one_pass_over_16_bit_images_errs_less_than_their_rounding(monkeypatch, ratio, bound):
    """ratio: of the mean to the standard deviation. The reference is float64 throughout."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    exact = ratio + np.random.default_rng(0).standard_normal((2, 32, 32, 16))
    rounded = jnp.asarray(exact, jnp.bfloat16)

    layer = norm.GroupNorm(4, 1e-5, jnp.bfloat16)
    y = layer.apply({"params": {"scale": jnp.ones(16), "bias": jnp.zeros(16)}}, rounded)
    error = np.linalg.norm(np.asarray(y, np.float64) - standardized(np.asarray(rounded, float)))
    error_of_rounding = np.linalg.norm(
        standardized(np.asarray(rounded, float)) - standardized(exact)
    )
    assert error < bound * np.sqrt(y.size)  # 2^-9 is the rounding of y alone
    assert ratio < 100 or error < error_of_rounding / 4


def standardized(x):
    grouped = x.reshape(*x.shape[:-1], 4, -1)
    mean, var = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)


@pytest.mark.parametrize(
    ("dtype", "backend", "one_pass"),
    [
        ("float32", "gpu", False),
        ("float16", "gpu", False),
        ("bfloat16", "cpu", False),
        ("bfloat16", "gpu", True),
        ("bfloat16", "tpu", True),
    ],
)
@pytest.mark.parametrize("layer", [norm.GroupNorm(4, 1e-5), norm.Norm("group"), norm.Norm("layer")])
def test_only_bfloat16_on_accelerators_is_normed_in_one_pass(
    monkeypatch, dtype, backend, one_pass, layer
):
    """Where the mean is large, the last digits tell one pass from two."""
    x = jnp.asarray(100 + np.random.default_rng(0).standard_normal((1, 4, 4, 1024)), dtype)
    parameters = layer.init(jax.random.key(0), x)
    expected = layer.apply(parameters, x)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    y = layer.apply(parameters, x)
    assert np.array_equal(y, expected) != one_pass
