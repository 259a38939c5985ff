# SPDX-License-Identifier: MIT
"""Sums as XLA's CPU backend is given them: the same numbers, an axis at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from support import compilations

from jaxgen.cpu import sums

SHAPE = (16, 7, 6, 8, 4)
AXES = [(0,), (4,), (0, 1, 2), (1, 2), (1, 2, 4), (0, 2, 4), (2, 1, 0), (0, 1, 2, 3, 4), (3, 4), ()]


@pytest.fixture(scope="module", autouse=True)
def registered():
    with compilations.lowered_by(sums.register):
        yield


def numbers(shape, dtype="float32"):
    """Whole numbers, whose sums are exact in any order."""
    return np.random.default_rng(0).integers(-8, 9, shape).astype(dtype)


def reductions(axes, x):
    """How often the program reduces."""
    return jax.jit(lambda v: v.sum(axes)).lower(x).as_text().count("stablehlo.reduce(")


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16"])
def test_sums_are_those_of_numpy(axes, dtype):
    x = numbers(SHAPE)
    got = jax.jit(lambda v: v.sum(axes))(jnp.asarray(x, dtype))
    assert got.dtype == dtype
    expected = jnp.asarray(x.astype(np.float64).sum(axes), dtype)
    np.testing.assert_array_equal(got.astype(jnp.float32), expected.astype(jnp.float32))


def test_it_is_as_exact_as_one_sum():
    x = np.random.default_rng(1).normal(size=(64, 14, 14, 32)).astype(np.float32)
    got = jax.jit(lambda v: v.sum((0, 1, 2)))(x)
    np.testing.assert_allclose(got, x.sum((0, 1, 2), dtype=np.float64), rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        ((0, 1, 2), (16, 7, 6, 32), 2),  # the gradient of a bias
        ((1, 2, 4), SHAPE, 2),  # the mean of a group of channels
        ((0, 2, 3), (16, 1, 42, 1, 32), 2),  # axes of one number are no axes
        ((0,), (16, 7, 6, 32), 1),
        ((0, 2), (128, 128, 1), 1),
        ((0, 1, 2), (2, 7, 6, 32), 1),  # small
        ((0, 1), (1024, 8, 4), 1),  # in rows too short to go along
    ],
)
def test_which_sums_go_axis_by_axis(axes, shape, expected):
    assert reductions(axes, jnp.zeros(shape)) == expected


def test_xla_makes_no_single_sum_of_the_two():
    program = jax.jit(lambda v: v.sum((0, 1, 2))).lower(jnp.zeros((16, 7, 6, 32))).compile()
    assert "f32[7,6,32]" in program.as_text()  # the outermost axis added up, the others left


def test_half_precision_is_not_rounded_in_between():
    x = jnp.zeros((16, 7, 6, 32), jnp.bfloat16)
    program = jax.jit(lambda v: jax.lax.reduce_sum(v, (0, 1, 2))).lower(x).as_text()
    assert program.count("stablehlo.reduce(") == 1


def test_derivatives_and_vmap():
    x = jnp.asarray(numbers((4, 16, 7, 6, 32)))
    summed = jax.jit(jax.vmap(lambda v: v.sum((0, 1, 2))))(x)
    np.testing.assert_array_equal(summed, np.asarray(x).sum((1, 2, 3)))
    slope = jax.jit(jax.grad(lambda v: (v.sum((0, 1, 2)) ** 2).sum()))(x[0])
    expected = np.broadcast_to(2 * np.asarray(x[0]).sum((0, 1, 2)), x[0].shape)
    np.testing.assert_array_equal(slope, expected)


@pytest.mark.parametrize("route", ["jit", "shard_map"])
def test_on_several_devices(route):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = numbers((64, 7, 6, 32))
    placed = jax.device_put(x, jax.NamedSharding(mesh, P("data")))

    def total(v):
        return v.sum((0, 1, 2))

    if route == "shard_map":
        total = jax.shard_map(
            lambda v: jax.lax.psum(v.sum((0, 1, 2)), "data"),
            mesh=mesh, in_specs=P("data"), out_specs=P(),
        )  # fmt: skip
    np.testing.assert_array_equal(jax.jit(total)(placed), x.sum((0, 1, 2)))
