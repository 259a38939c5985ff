# SPDX-License-Identifier: MIT
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.nn import functional, gan

LATENT = 5


def generator(kind, shape, **options):
    if kind == "dense":
        return gan.DenseGenerator(shape, hidden=(12, 9), **options)
    return gan.ConvGenerator(shape, width=8, **options)


def discriminator(kind, **options):
    if kind == "dense":
        return gan.DenseDiscriminator(hidden=(6, 4), pieces=3, **options)
    return gan.ConvDiscriminator(width=8, **options)


def normal(*shape, seed=0):
    return jnp.float32(np.random.default_rng(seed).standard_normal(shape))


def applied(module):
    return jax.jit(functional.apply(module))


def initial(module, *inputs):
    return jax.jit(lambda key: functional.init(module, key, *inputs))(jax.random.key(0))


def relative(got, expected):
    return float(jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected))


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("side", [8, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_generator_paints_and_discriminator_judges_any_size(kind, side, channels):
    shape = (side, side, channels)
    image = jax.eval_shape(
        lambda: generator(kind, shape).init_with_output(jax.random.key(0), jnp.zeros((2, LATENT)))[
            0
        ]
    )
    logit = jax.eval_shape(
        lambda: discriminator(kind).init_with_output(jax.random.key(0), jnp.zeros((2, *shape)))[0]
    )
    assert (image.shape, image.dtype) == ((2, *shape), jnp.float32)
    assert (logit.shape, logit.dtype) == ((2,), jnp.float32)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_generated_pixels_fill_the_range_from_minus_one_to_one(kind):
    module, z = generator(kind, (8, 8, 1)), 100 * normal(8, LATENT)
    params = jax.tree.map(lambda v: 10 * v, initial(module, z))
    x = applied(module)(params, z)
    assert float(jnp.min(x)) >= -1
    assert float(jnp.max(x)) <= 1
    assert float(jnp.max(x) - jnp.min(x)) > 1.9


def networks(kind, **options):
    return (
        (generator(kind, (8, 8, 1), **options), normal(3, LATENT)),
        (discriminator(kind, **options), normal(3, 8, 8, 1)),
    )


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("num_classes", [0, 4])
def test_one_example_a_batch_and_a_mapped_batch_agree(kind, num_classes):
    labels = jnp.array([0, 3, 1]) if num_classes else None
    for module, x in networks(kind, num_classes=num_classes):
        params = initial(module, x, labels)
        apply = applied(module)
        together = apply(params, x, labels)
        mapped = jax.vmap(apply, (None, 0, None if labels is None else 0))(params, x, labels)
        alone = apply(params, x[1], None if labels is None else labels[1])
        np.testing.assert_allclose(mapped, together, atol=1e-5)
        np.testing.assert_allclose(alone, together[1], atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_label_changes_image_and_verdict_of_conditional_networks(kind):
    for module, x in networks(kind, num_classes=4):
        params = initial(module, x, jnp.zeros(3, jnp.int32))
        apply = applied(module)
        zeros, twos = (apply(params, x, jnp.full(3, label)) for label in (0, 2))
        change = jnp.abs(zeros - twos).reshape(3, -1).max(axis=1)
        assert float(change.min()) > 1e-4
        with pytest.raises(ValueError, match="conditioned on 4 classes needs a label"):
            apply(params, x)


def test_label_enters_the_verdict_as_an_inner_product_with_the_features():
    """Miyato & Koyama 2018, eq. 4: with equal embeddings the label has no say."""
    module, x = discriminator("dense", num_classes=4), normal(3, 8, 8, 1)
    params = initial(module, x, jnp.zeros(3, jnp.int32))
    table = params["label"]["embedding"]
    apply = applied(module)
    same = params | {"label": {"embedding": jnp.broadcast_to(table[:1], table.shape)}}
    first, second = (apply(same, x, jnp.full(3, label)) for label in (0, 2))
    np.testing.assert_array_equal(first, second)
    # and the verdict is linear in the embedding
    double, none = (
        apply(params | {"label": {"embedding": k * table}}, x, jnp.array([0, 1, 2])) for k in (2, 0)
    )
    middle = apply(params, x, jnp.array([0, 1, 2]))
    np.testing.assert_allclose(double - middle, middle - none, atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_bfloat16_computes_close_to_float32_with_float32_parameters(kind):
    for (low, x), (full, _) in zip(networks(kind, dtype=jnp.bfloat16), networks(kind), strict=True):
        params = initial(low, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
        got, expected = (applied(module)(params, x) for module in (low, full))
        assert got.dtype == jnp.float32
        assert 1e-5 < relative(got, expected) < 0.03


@pytest.mark.parametrize(("kind", "num_classes"), [("dense", 0), ("dense", 4), ("conv", 4)])
def test_spectral_discriminator_keeps_its_parameters_and_forgets_their_scale(kind, num_classes):
    inputs = (normal(3, 8, 8, 1), jnp.arange(3) if num_classes else None)
    plain, spectral = (discriminator(kind, num_classes=num_classes, spectral=s) for s in (0, 1))
    params = initial(spectral, *inputs)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, initial(plain, *inputs))
    scaled = jax.tree.map(lambda v: 7 * v, params)  # biases are 0 at the start
    apply = applied(spectral)
    np.testing.assert_allclose(apply(scaled, *inputs), apply(params, *inputs), atol=1e-5)
    assert relative(applied(plain)(scaled, *inputs), applied(plain)(params, *inputs)) > 1


def test_dense_spectral_discriminator_is_nearly_lipschitz():
    """Maxout and unit spectral norms bound the slope by 1, up to the shortfall of the estimate.

    Three layers, each at most 12 % above (test_blocks.py): below 1.13^3 = 1.45.
    """
    module, x = discriminator("dense", spectral=True), normal(20, 8, 8, 1)
    params = jax.tree.map(lambda v: 30 * v, initial(module, x))
    slopes = jax.jit(jax.vmap(jax.grad(functional.apply(module), argnums=1), (None, 0)))(params, x)
    norms = jnp.linalg.norm(slopes.reshape(20, -1), axis=1)
    assert 0.05 < float(norms.max()) < 1.45


def test_maxout_unit_is_the_largest_of_its_pieces():
    module = gan.DenseDiscriminator(hidden=(2,), pieces=3)
    params = {
        "Dense_0": {"kernel": jnp.array([[1.0, -1.0, 0.5, 2.0, -2.0, 0.0]]), "bias": jnp.zeros(6)},
        "head": {"kernel": jnp.array([[1.0], [10.0]]), "bias": jnp.zeros(1)},
    }
    for x in (-1.5, 2.0):
        expected = max(x, -x, 0.5 * x) + 10 * max(2 * x, -2 * x, 0)
        got = applied(module)(params, jnp.full((1, 1, 1), x))
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_generator_with_batch_norm_is_evaluated_alone_with_standing_statistics():
    module, z = generator("conv", (8, 8, 1), norm="batch"), normal(16, LATENT)
    params = initial(module, z)
    x, made = module.apply({"params": params}, z, mutable="batch_stats")
    alone = module.apply({"params": params} | made, z[3])
    np.testing.assert_allclose(alone, x[3], atol=1e-5)
    mapped = jax.vmap(applied(module), (None, 0))(params, z)
    np.testing.assert_allclose(mapped, x, atol=1e-5)


def test_convolutional_networks_refuse_sides_that_cannot_be_halved():
    with pytest.raises(ValueError, match=r"9x9 cannot be halved"):
        generator("conv", (9, 9, 1)).init(jax.random.key(0), jnp.zeros(LATENT))
    with pytest.raises(ValueError, match=r"9x9 cannot be halved"):
        discriminator("conv").init(jax.random.key(0), jnp.zeros((9, 9, 1)))
