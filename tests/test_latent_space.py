# SPDX-License-Identifier: MIT
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgen.pictures import images, latent_space

SIDE = images.TILE  # images of this size are shown as they are


def shown(picture):
    """The pixel at the middle of every tile of a grid, as rows of grey values."""
    step = SIDE + images.GAP
    return np.asarray(picture)[images.GAP + SIDE // 2 :: step, images.GAP + SIDE // 2 :: step]


def paint(entry, scale=0.25):
    """A decoder whose image shows one entry of z, as a grey value."""
    return lambda z: jnp.broadcast_to(
        scale * z[:, entry][:, None, None, None], (len(z), SIDE, SIDE, 1)
    )


def recorded(seen):
    """A decoder that keeps what it was given."""

    def decode(z):
        seen.append(np.asarray(z))
        return jnp.zeros((len(z), 8, 8, 1))

    return decode


def vectors():
    return jnp.array([3.0, 0.0, 4.0]), jnp.array([0.0, 5.0, 0.0])


def test_spherical_interpolation_starts_and_ends_where_it_should():
    start, end = vectors()
    np.testing.assert_allclose(latent_space.slerp(start, end, jnp.float32(0)), start, atol=1e-6)
    np.testing.assert_allclose(latent_space.slerp(start, end, jnp.float32(1)), end, atol=1e-6)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.8])
def test_spherical_interpolation_keeps_the_norm_and_turns_evenly(weight):
    start, end = vectors()  # both of norm 5, at a right angle
    between = latent_space.slerp(start, end, jnp.float32(weight))
    np.testing.assert_allclose(jnp.linalg.norm(between), 5.0, rtol=1e-6)
    angle = np.arccos(np.dot(between, start) / 25)
    np.testing.assert_allclose(angle, weight * np.pi / 2, atol=1e-4)


@pytest.mark.parametrize("end", [[3.0, 0.0, 4.0], [6.0, 0.0, 8.0], [3.0, 1e-5, 4.0]])
def test_interpolation_of_parallel_vectors_is_linear(end):
    start, end = vectors()[0], jnp.array(end)
    between = latent_space.slerp(start, end, jnp.float32(0.25))
    np.testing.assert_allclose(between, 0.75 * start + 0.25 * end, atol=1e-5)


def test_interpolation_of_zero_vectors_is_zero_and_finite():
    zero = jnp.zeros(3)
    np.testing.assert_array_equal(latent_space.slerp(zero, zero, jnp.float32(0.5)), zero)


def test_interpolation_draws_a_row_for_each_pair_from_start_to_end():
    seen = []
    start, end = jnp.eye(4)[:2], jnp.eye(4)[2:]
    latent_space.interpolation(recorded(seen), start, end, num_steps=5)
    path = seen[0].reshape(2, 5, 4)
    np.testing.assert_allclose(path[:, 0], start, atol=1e-6)
    np.testing.assert_allclose(path[:, -1], end, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(path, axis=-1), 1.0, rtol=1e-6)

    latent_space.interpolation(recorded(seen), start, end, num_steps=5, straight=True)
    np.testing.assert_allclose(seen[1].reshape(2, 5, 4)[:, 2], (start + end) / 2, atol=1e-6)


def test_samples_are_laid_out_row_by_row():
    z = jnp.linspace(-4, 4, 6)[:, None]
    grey = images.to_uint8(0.25 * z[:, 0])
    np.testing.assert_array_equal(shown(latent_space.samples(paint(0), z, 3)), grey.reshape(2, 3))


def test_traversal_moves_one_dimension_in_each_row_the_widest_first():
    seen = []
    z, scale = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.1, 2.0, 0.5])
    latent_space.traversal(recorded(seen), z, scale, max_rows=2, num_steps=3)
    rows = seen[0].reshape(2, 3, 3)
    np.testing.assert_allclose(rows[0], [[1, -3, 3], [1, 2, 3], [1, 7, 3]], atol=1e-5)
    np.testing.assert_allclose(rows[1], [[1, 2, 1.75], [1, 2, 3], [1, 2, 4.25]], atol=1e-5)


def test_manifold_is_a_square_of_normal_quantiles_with_axes_as_in_a_plot():
    """The first entry grows to the right, the second upwards; each cell holds equal mass."""
    seen = []
    mean, scale = jnp.array([1.0, -2.0]), jnp.array([2.0, 0.5])
    picture = latent_space.manifold(recorded(seen), mean, scale, side=4)
    assert picture.size == (4 * (SIDE + 2) + 2, 4 * (SIDE + 2) + 2)
    z = (seen[0].reshape(4, 4, 2) - np.asarray(mean)) / np.asarray(scale)
    expected = scipy.stats.norm.ppf([0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(z[..., 0], np.tile(expected, (4, 1)), atol=1e-5)
    np.testing.assert_allclose(z[..., 1], np.tile(expected[::-1, None], (1, 4)), atol=1e-5)


def test_longer_list_of_draws_begins_like_a_shorter_one():
    short, long = (latent_space.normal(jax.random.key(0), n, 4) for n in (5, 500))
    np.testing.assert_array_equal(short, long[:5])
    assert scipy.stats.kstest(np.asarray(long).ravel(), "norm").pvalue > 1e-3


def test_opposite_codes_are_joined_by_a_straight_line():
    between = [latent_space.slerp(jnp.array([0.5]), jnp.array([-0.7]), w) for w in (0.0, 0.5, 1.0)]

    np.testing.assert_allclose(np.ravel(between), [0.5, -0.1, -0.7], atol=1e-6)
