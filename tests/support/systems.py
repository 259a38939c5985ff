# SPDX-License-Identifier: MIT
"""Small AE, VAE and GAN on 8x8 images with SGD: Adam would forgive a gradient N times too large."""

from functools import cache
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.nn import autoencoder, functional, gan
from jaxgen.train import (
    adversarial,
    augment,
    latent_models,
    losses,
    objectives,
    parallel,
    penalties,
    step,
    vector_quantized,
)

SHAPE = (8, 8, 1)
NAMES = ("autoencoder", "vae", "gan")
# objectives of a VAE, of which those of the whole batch see other examples; `iwae` has a VAMP prior
OF_VAE = tuple(name for name in objectives.VAE_OBJECTIVES if name != "elbo")
# and an autoencoder of sparse codes with two penalties, VQ-VAE, a GAN whose generator sees real
# images and labels, and one whose discriminator is spectrally normalised and sees augmented images
OBJECTIVES = (*OF_VAE, "mmd", "vq_vae", "relativistic", "hinge")


def dataset(size: int = 64) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (size, *SHAPE), dtype=np.uint8),
        "label": generator.integers(0, 10, size).astype(np.int32),
    }


def _pair(network: str, outputs: int, norm: str, num_classes: int = 10) -> tuple[Any, Any]:
    return autoencoder.encoder_and_decoder(
        network, outputs, SHAPE, hidden=(16,), width=8, norm=norm, num_classes=num_classes
    )


@cache
def make(name: str, network: str = "dense", norm: str = "group", accumulate: int = 1):
    """(init(key) -> state, step) of a system; equal arguments give the same step function."""
    tx = optax.sgd(1e-3)
    if name == "gan":
        return _gan(network, norm, tx, accumulate)
    if name == "relativistic":
        return _relativistic(tx)
    if name == "hinge":
        return _hinge(tx)
    if name == "vq_vae":
        return _vq_vae(tx)

    outputs = 4 if name in ("autoencoder", "mmd") else 8
    # pseudo-inputs have no label
    encoder, decoder = _pair(network, outputs, norm, num_classes=0 if name == "iwae" else 10)
    encode, decode = functional.apply(encoder), functional.apply(decoder)
    if name == "autoencoder":
        loss = losses.autoencoder_loss(encode, decode, noise=0.3)
    elif name == "mmd":
        encode = penalties.sparse(encode, 3)
        plain = losses.autoencoder_loss(encode, decode)
        contracted = penalties.with_penalty(plain, "slope", penalties.contraction(encode), 0.1)
        loss = penalties.with_penalty(contracted, "mmd", penalties.mmd(encode), 3.0)
    elif name in OF_VAE:
        loss = _objective(name, encode, decode)
    else:
        loss = losses.vae_loss(encode, decode, losses.bernoulli, dynamic_binarization=True)

    def init(key):
        encoder_key, decoder_key, up_key, down_key = jax.random.split(key, 4)
        params = {
            "encoder": functional.init(encoder, encoder_key, jnp.zeros(SHAPE), jnp.int32(0)),
            "decoder": functional.init(decoder, decoder_key, jnp.zeros(4), jnp.int32(0)),
        }
        if name == "iwae":
            params["pseudo_inputs"] = 0.5 * jax.random.normal(up_key, (3, *SHAPE))
        elif name in OF_VAE:
            params["encoder_top"] = functional.init(UP, up_key, jnp.zeros(4))
            params["decoder_top"] = functional.init(DOWN, down_key, jnp.zeros(2))
        return step.init_state(params, tx)

    return init, step.gradient_step(augment.on_uint8(loss, augment.shift), tx, accumulate)


UP, DOWN = autoencoder.GaussianLayer(2, (4,)), autoencoder.GaussianLayer(4, (4,))


def _objective(name: str, encode, decode):
    """The loss with this name; of the bounds, `iwae` is of a VAMP prior, others of two layers."""
    if name == "iwae":
        prior = latent_models.vamp_prior(encode)
        model = latent_models.one_layer(encode, decode, losses.bernoulli, prior)
    else:
        model = latent_models.two_layers(
            encode, functional.apply(UP), functional.apply(DOWN), decode, losses.bernoulli,
            latent_models.normal_prior(2),
        )  # fmt: skip
    parts = objectives.VaeParts(
        encode, decode, losses.bernoulli, model, 64, dynamic_binarization=True
    )
    return objectives.vae_objective(name, parts, 2, 0.2)


def _vq_vae(tx):
    encoder, decoder = autoencoder.MapEncoder(3, 4, 1), autoencoder.MapDecoder(1, 4, 1)
    loss = vector_quantized.vq_loss(functional.apply(encoder), functional.apply(decoder))
    tx = vector_quantized.optimizer(tx, 0.5, 0.5)  # many restarts in few steps

    def init(key):
        encoder_key, decoder_key, codebook_key = jax.random.split(key, 3)
        params = {
            "encoder": functional.init(encoder, encoder_key, jnp.zeros(SHAPE)),
            "decoder": functional.init(decoder, decoder_key, jnp.zeros((4, 4, 3))),
            "codebook": vector_quantized.init_codebook(codebook_key, 8, 3, 16),
        }
        return step.init_state(params, tx)

    return init, step.gradient_step(augment.on_uint8(loss), tx)


def _gan(network: str, norm: str, tx, accumulate: int):
    if network == "dense":
        g = gan.DenseGenerator(SHAPE, (16,), num_classes=10)
        d = gan.DenseDiscriminator((8,), num_classes=10)
    else:
        g = gan.ConvGenerator(SHAPE, 4, norm, num_classes=10)
        d = gan.ConvDiscriminator(4, num_classes=10)
    generate, judge = functional.apply(g), functional.apply(d)
    game = adversarial.objective("non_saturating")
    weights = adversarial.Penalties(gradient=0.1)  # the others are with `relativistic`
    d_loss = adversarial.discriminator_loss(generate, judge, game, 4, weights)
    g_loss = adversarial.generator_loss(generate, judge, game, 4)

    one = step.gan_step(augment.on_uint8(d_loss), g_loss, tx, tx, 2, 0.9, accumulate)
    return _players(g, d, tx), one


def _relativistic(tx):
    """R3GAN's loss with an auxiliary classifier: the generator's loss, too, is of a real image."""
    g = gan.DenseGenerator(SHAPE, (16,), num_classes=10)
    d = gan.DenseDiscriminator((8,), num_classes=10, auxiliary=True)
    generate, outputs = functional.apply(g), functional.apply(d)
    judge = lambda params, x, label: outputs(params, x)[0]  # noqa: E731
    classify = lambda params, x: outputs(params, x)[1:]  # noqa: E731
    game = adversarial.objective("relativistic")
    weights = adversarial.Penalties(r1=0.1, r2=0.1)
    d_loss = adversarial.discriminator_loss(generate, judge, game, 4, weights, classify=classify)
    g_loss = adversarial.generator_loss(generate, judge, game, 4, classify=classify)
    one = step.gan_step(augment.on_uint8(d_loss), augment.on_uint8(g_loss), tx, tx, 1, 0.9)
    return _players(g, d, tx), one


def _hinge(tx):
    """A discriminator of bounded slope, which sees augmented images and no labels."""
    g, d = gan.DenseGenerator(SHAPE, (16,)), gan.DenseDiscriminator((8,), spectral=True)
    generate, bounded = functional.apply(g), functional.apply(d)
    judge = lambda *inputs: 8 * bounded(*inputs)  # noqa: E731
    common = (generate, judge, adversarial.objective("hinge"), 4)
    d_loss = adversarial.discriminator_loss(*common, augment=augment.differentiable)
    g_loss = adversarial.generator_loss(*common, augment.differentiable)
    return _players(g, d, tx), step.gan_step(augment.on_uint8(d_loss), g_loss, tx, tx, 1, 0.9)


def _players(g, d, tx):
    """init(key) -> the state of both players."""

    def init(key):
        g_key, d_key = jax.random.split(key)
        g_params = functional.init(g, g_key, jnp.zeros(4), jnp.int32(0))
        d_params = functional.init(d, d_key, jnp.zeros(SHAPE), jnp.int32(0))
        average = jax.tree.map(jnp.array, g_params)
        return step.GanState(step.init_state(g_params, tx), step.init_state(d_params, tx), average)

    return init


def run(
    name: str,
    how: str = "jit",
    devices: int = 1,
    chunks: tuple[int, ...] = (4,),
    network: str = "dense",
    norm: str = "group",
    accumulate: int = 1,
) -> tuple[Any, dict[str, np.ndarray]]:
    """State and metrics [steps] after scanned chunks of steps on that many devices."""
    quick = jax.config.read("jax_disable_most_optimizations")
    return _run((name, network, norm, accumulate), how, devices, chunks, quick)


@cache  # several tests compare with the same run
def _run(system, how: str, devices: int, chunks: tuple[int, ...], quick: bool):
    """The run of a system as `make` takes it; `quick`, how it is compiled, is only a key."""
    batch_size = 32
    one = make(*system)[1]
    mesh = parallel.data_mesh(devices)
    state = parallel.put(_first_state(system[:3]), mesh)
    data = parallel.put(dataset(), mesh)
    key = parallel.put(jax.random.key(1), mesh)
    go = parallel.parallelize(step.scan_steps(one), mesh, how, parallel.SCANNED)

    first, parts = 0, []
    for count in chunks:
        indices = (np.arange(first, first + count * batch_size) * 7 % 64).astype(np.int32)
        rows = parallel.put(indices.reshape(count, batch_size), mesh, parallel.SCANNED[1])
        state, metrics = go(state, (data, rows), key)
        parts.append(jax.device_get(metrics))
        first += count * batch_size
    joined = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
    return jax.device_get(state), joined


@cache  # op by op, `init` would compile forty programs, for every mode of every system
def _first_state(system):
    return jax.device_get(jax.jit(make(*system)[0])(jax.random.key(0)))


def continued(name: str) -> tuple[Any, Any]:
    """The state after two steps, and that of a run that went through a file between them."""
    init, one = make(name)
    go, data = jax.jit(one), dataset(32)
    first, _ = go(jax.jit(init)(jax.random.key(0)), data, jax.random.key(1))
    kept = flax.serialization.to_bytes(jax.device_get(first))
    read = flax.serialization.from_bytes(first, kept)
    return tuple(jax.device_get(go(state, data, jax.random.key(1))[0]) for state in (first, read))


def largest_difference(a: Any, b: Any) -> float:
    """Largest absolute difference over all leaves of two trees of one structure."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    differences = jax.tree.map(lambda x, y: np.max(np.abs(np.asarray(x) - np.asarray(y))), a, b)
    return float(max(jax.tree.leaves(differences)))


def identical(a: Any, b: Any) -> bool:
    """Whether two trees are equal bit for bit."""
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(jax.tree.leaves(same))
