# SPDX-License-Identifier: MIT
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.pictures import images
from jaxgen.train import augment

NUM_DRAWS = 400


def picture(height=8, width=8, channels=1):
    """Strictly inside (-1, 1), every pixel different."""
    count = height * width * channels
    return jnp.linspace(-0.9, 0.9, count).reshape(height, width, channels)


def draws(function, x, count=NUM_DRAWS):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(function, (0, None)))(keys, x))


def test_uint8_ends_are_exactly_minus_one_and_one():
    ends = augment.to_unit_range(jnp.array([0, 255], jnp.uint8))
    assert ends.dtype == jnp.float32
    np.testing.assert_array_equal(ends, [-1.0, 1.0])


def test_all_256_levels_survive_the_way_to_float_and_back():
    levels = np.arange(256, dtype=np.uint8)
    there = jax.jit(augment.to_unit_range)(levels)
    np.testing.assert_array_equal(images.to_uint8(there), levels)
    assert float(jnp.max(jnp.abs(there - (levels / 127.5 - 1)))) < 2e-7  # one float32 rounding


def test_loss_on_uint8_gets_the_unit_range_and_the_rest_of_the_example():
    def loss(params, example, key):
        return jnp.mean(example["image"]) + example["label"], {"loss": jax.random.uniform(key)}

    example = {"image": jnp.full((2, 2, 1), 255, jnp.uint8), "label": jnp.int32(3)}
    value, metrics = jax.jit(augment.on_uint8(loss))((), example, jax.random.key(0))
    assert float(value) == 4.0
    # Without augmentation the key goes to the loss as it is.
    assert float(metrics["loss"]) == float(jax.random.uniform(jax.random.key(0)))


def test_augmentation_and_loss_draw_from_keys_of_their_own():
    def loss(params, example, key):
        return example["image"][0, 0, 0] - jax.random.normal(key), {}

    add = lambda key, x: x + jax.random.normal(key)  # noqa: E731
    augmented = augment.on_uint8(loss, add)
    example = {"image": jnp.zeros((2, 2, 1), jnp.uint8)}
    values = draws(lambda key, image: augmented((), {"image": image}, key)[0], example["image"])
    assert np.var(values) == pytest.approx(2.0, rel=4 * (2 / NUM_DRAWS) ** 0.5)


def test_flip_mirrors_left_to_right_half_of_the_time():
    x = picture(4, 6, 3)
    results = draws(augment.flip, x)
    mirrored = (results == np.asarray(x)[:, ::-1]).all(axis=(1, 2, 3))
    same = (results == np.asarray(x)).all(axis=(1, 2, 3))
    assert np.all(mirrored ^ same)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / NUM_DRAWS**0.5


def test_shift_moves_the_content_exactly_and_fills_with_black():
    """Every result is one of the 9 moves by at most a pixel of 8, and every move occurs."""
    x = np.asarray(picture())
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    moves = [padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    which = np.array([[np.array_equal(r, m) for m in moves] for r in draws(augment.shift, x)])
    np.testing.assert_array_equal(which.sum(axis=1), 1)
    expected = NUM_DRAWS / 9
    assert np.all(abs(which.sum(axis=0) - expected) < 4.5 * expected**0.5)


def test_shift_by_nothing_is_the_identity():
    x = picture()
    results = draws(lambda key, x: augment.shift(key, x, fraction=0.0), x, count=5)
    np.testing.assert_array_equal(results, np.broadcast_to(x, results.shape))


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (8, 16, 3)])
def test_differentiable_augmentation_keeps_the_shape_and_bounds(shape):
    """At most (1 + 1/2) times a contrast of 3/2 and a saturation of 2 about the mean."""
    results = draws(augment.differentiable, picture(*shape), count=50)
    assert results.shape == (50, *shape)
    assert np.isfinite(results).all()
    assert np.abs(results).max() < 0.5 + 3 * 1.8
    assert len(np.unique(results.reshape(50, -1), axis=0)) == 50  # a draw for each key


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (16, 32)])
def test_cutout_is_a_square_of_half_the_side_cut_by_the_border(height, width):
    results = draws(augment.differentiable, jnp.full((height, width, 1), 50.0), count=200)
    zero = results[..., 0] == 0  # brightness and contrast cannot bring 50 to 0; shift fills -1
    rows, columns = zero.any(axis=2).sum(axis=1), zero.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(zero.sum(axis=(1, 2)), rows * columns)  # one full rectangle
    assert (rows.min(), rows.max()) == (height // 4, height // 2)
    assert (columns.min(), columns.max()) == (width // 4, width // 2)


def test_gradient_passes_the_augmentation_wherever_it_does_not_cut():
    """What DiffAugment is for: the generator is trained through it."""
    x = picture(8, 8, 3)
    total = lambda key, x: jnp.sum(augment.differentiable(key, x) ** 2)  # noqa: E731
    slopes = draws(jax.grad(total, argnums=1), x, count=50)
    assert np.isfinite(slopes).all()
    assert np.all(np.abs(slopes).max(axis=(1, 2, 3)) > 1e-3)


def test_gradient_of_the_augmentation_equals_finite_differences():
    """float64; every part is linear in x for a given key, so any step is exact."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 8, 3)))
        along = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape))
        image = jax.jit(lambda x: augment.differentiable(jax.random.key(5), x))
        _, slope = jax.jvp(image, (x,), (along,))
        np.testing.assert_allclose(slope, (image(x + along) - image(x - along)) / 2, atol=1e-12)


def test_augmentations_are_chosen_by_name():
    assert augment.by_name("none") is None
    assert augment.by_name("flip") is augment.flip
    with pytest.raises(ValueError, match="unknown augmentation 'turn'; use one of none, flip"):
        augment.by_name("turn")
