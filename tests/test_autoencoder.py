# SPDX-License-Identifier: MIT
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.nn import autoencoder, classifier, functional

DENSE, CONV = {"hidden": (12, 7)}, {"width": 8, "norm": "group"}


def pair(kind, shape, outputs=6, **options):
    small = DENSE if kind == "dense" else CONV
    return autoencoder.encoder_and_decoder(kind, outputs, shape, **small, **options)


def images(shape, count=3, seed=0):
    return jnp.float32(np.random.default_rng(seed).uniform(-1, 1, (count, *shape)))


def applied(module):
    return jax.jit(functional.apply(module))


def initial(module, *inputs):
    return jax.jit(lambda key: functional.init(module, key, *inputs))(jax.random.key(0))


def shapes(module, *inputs):
    return jax.eval_shape(lambda key: functional.init(module, key, *inputs), jax.random.key(0))


def kernels(params):
    """Shapes of the weight matrices in the order of the layers; the head comes last."""
    names = sorted(params, key=lambda n: (n == "head", n.split("_")[0] == "Dense", n))
    return [params[n]["kernel"].shape for n in names if "kernel" in params[n]]


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("side", [8, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_decoder_returns_to_the_shape_the_encoder_came_from(kind, side, channels):
    encoder, decoder = pair(kind, (side, side, channels))
    x, z = jnp.zeros((2, side, side, channels)), jnp.zeros((2, 3))
    code = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), x)[0])
    image = jax.eval_shape(lambda: decoder.init_with_output(jax.random.key(0), z)[0])
    assert (code.shape, code.dtype) == ((2, 6), jnp.float32)
    assert (image.shape, image.dtype) == (x.shape, jnp.float32)


def test_images_need_not_be_square():
    encoder, decoder = pair("conv", (8, 16, 1))
    assert encoder.init_with_output(jax.random.key(0), images((8, 16, 1)))[0].shape == (3, 6)
    assert decoder.init_with_output(jax.random.key(0), jnp.zeros((2, 3)))[0].shape == (2, 8, 16, 1)


def test_dense_decoder_mirrors_the_encoder():
    """With as many outputs as latents every weight matrix has its transpose on the other side."""
    encoder, decoder = pair("dense", (4, 4, 2), outputs=5)
    forward = kernels(shapes(encoder, jnp.zeros((4, 4, 2))))
    backward = kernels(shapes(decoder, jnp.zeros(5)))
    assert forward == [(32, 12), (12, 7), (7, 5)]
    assert backward == [(5, 7), (7, 12), (12, 32)]


@pytest.mark.parametrize(("side", "maps"), [(8, [8]), (28, [8, 16]), (64, [8, 16, 32, 64])])
def test_convolutional_decoder_mirrors_the_encoder(side, maps):
    """The same widths backwards; an upsampling 3x3 kernel has 4 C outputs for a 2x2 patch."""
    encoder, decoder = pair("conv", (side, side, 3))
    down = shapes(encoder, jnp.zeros((side, side, 3)))
    up = shapes(decoder, jnp.zeros(6))
    convs = [down[f"Conv_{i}"]["kernel"].shape for i in range(len(maps))]
    assert convs == [(3, 3, a, b) for a, b in zip([3, *maps], maps, strict=False)]
    names = [*(f"Upsample_{i}" for i in range(len(maps) - 1)), "head"]
    ups = [up[name]["Conv_0"]["kernel"].shape for name in names]
    assert ups == [(3, 3, b, 4 * a) for a, b in reversed(list(zip([3, *maps], maps, strict=False)))]
    assert down["Dense_0"]["kernel"].shape == up["Dense_1"]["kernel"].shape[::-1]


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("num_classes", [0, 4])
def test_one_example_a_batch_and_a_mapped_batch_agree(kind, num_classes):
    encoder, decoder = pair(kind, (8, 8, 1), num_classes=num_classes)
    labels = jnp.array([0, 3, 1]) if num_classes else None
    for module, inputs in ((encoder, images((8, 8, 1))), (decoder, images((5,)))):
        params = initial(module, inputs, labels)
        apply = applied(module)
        together = apply(params, inputs, labels)
        mapped = jax.vmap(apply, (None, 0, None if labels is None else 0))(params, inputs, labels)
        alone = apply(params, inputs[1], None if labels is None else labels[1])
        np.testing.assert_allclose(mapped, together, atol=1e-5)
        np.testing.assert_allclose(alone, together[1], atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_parameters_do_not_depend_on_the_batch_they_were_made_with(kind):
    encoder, _ = pair(kind, (8, 8, 1))
    one, many = initial(encoder, images((8, 8, 1))[0]), initial(encoder, images((8, 8, 1)))
    jax.tree.map(np.testing.assert_array_equal, one, many)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_label_changes_code_and_image_of_a_conditional_network(kind):
    for module, x in zip(
        pair(kind, (8, 8, 1), num_classes=4), (images((8, 8, 1)), images((5,))), strict=True
    ):
        params = initial(module, x, jnp.zeros(3, jnp.int32))
        apply = applied(module)
        zeros, twos = (apply(params, x, jnp.full(3, label)) for label in (0, 2))
        assert (
            float(jnp.min(jnp.max(jnp.abs(zeros - twos), axis=tuple(range(1, zeros.ndim))))) > 1e-3
        )
        with pytest.raises(ValueError, match="conditioned on 4 classes needs a label"):
            apply(params, x)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_bfloat16_computes_close_to_float32_with_float32_parameters(kind):
    inputs = images((8, 8, 1)), images((5,))
    single = pair(kind, (8, 8, 1))
    half = pair(kind, (8, 8, 1), dtype=jnp.bfloat16)
    for full, low, x in zip(single, half, inputs, strict=True):
        params = initial(low, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
        got, expected = (applied(module)(params, x) for module in (low, full))
        assert got.dtype == jnp.float32
        difference = jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected)
        assert 1e-5 < float(difference) < 0.03  # 2^-8 a rounding, a few in a row; and it did round


@pytest.mark.parametrize("shape", [(9, 9, 1), (6, 8, 1)])
def test_convolutional_networks_refuse_sides_that_cannot_be_halved(shape):
    encoder, decoder = pair("conv", shape)
    for module, x in ((encoder, jnp.zeros(shape)), (decoder, jnp.zeros(3))):
        with pytest.raises(ValueError, match=r"cannot be halved.*or a dense network"):
            module.init(jax.random.key(0), x)


def test_unknown_network_is_refused():
    with pytest.raises(ValueError, match="unknown network 'unet'; use dense or conv"):
        autoencoder.encoder_and_decoder("unet", 4, (8, 8, 1))


def test_classifier_gives_a_logit_per_class_and_sees_one_image_at_a_time():
    module, x = classifier.Classifier(5, width=8), images((8, 8, 3))
    params = initial(module, x)
    apply = applied(module)
    assert apply(params, x).shape == (3, 5)
    np.testing.assert_allclose(apply(params, x[2]), apply(params, x)[2], atol=1e-5)
