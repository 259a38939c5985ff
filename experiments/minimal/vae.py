# SPDX-License-Identifier: MIT
"""A variational autoencoder, whole: data, networks, loss, gradient step, loop, samples.

    python experiments/minimal/vae.py [steps]        # writes runs/minimal/vae.png

The encoder turns an image x into a normal distribution of latent vectors z, and the decoder turns z
into the probability y that each pixel is white. Training lowers a bound on -log p(x), in nats
(Kingma & Welling 2014, arXiv:1312.6114, eq. 10, section 2.4, appendices C.1 and B; the numbers are
those of notebooks/02_vae.py, where (1) is the derivation of the bound):

    (2)  -log p(x) <= E[loss],    loss = -log p(x | z) + KL(N(mean, sigma^2) || N(0, I))
    (3)  z = mean + sigma eps,    eps ~ N(0, I)
    (4)  log p(x | z) = sum over pixels of  x log y + (1 - x) log(1 - y),    y = sigmoid(logits)
    (5)  KL = -1/2 sum over entries of z of  1 + log sigma^2 - mean^2 - sigma^2

In (4) a pixel x is 0 or 1; the networks, and the code below, have -1 or 1 in its place.
The losses are those of `python experiments/vae.py`: there as here, parameters, noise and order of
the data are functions of the seed, the step and the example's place in its batch.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from PIL import Image  # only to draw
from sklearn import datasets

LATENT_DIM, BATCH_SIZE = 20, 128
tx = optax.adam(1e-3)


def load_digits():
    """Handwritten digits of 8x8 pixels, uint8 [N, 64]: those to train on and those to test on."""
    pixels, labels = datasets.load_digits(return_X_y=True)  # a pixel is 0 to 16
    images = np.rint(pixels * (255 / 16)).astype(np.uint8)
    rank_in_class = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    is_test = rank_in_class % 6 == 5  # every sixth image of each class
    return images[~is_test], images[is_test]


def binarize(key, image):
    """Draws each pixel as -1 (black) or 1 (white), as (4) needs; their mean is the grey value."""
    x = image.astype(jnp.float32) * (2 / 255) - 1
    return 2.0 * jax.random.bernoulli(key, (x + 1) / 2) - 1


class MLP(nn.Module):
    """A vector -> a vector, through one hidden layer of 500 ReLUs."""

    outputs: int

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(500)(x))
        return nn.Dense(self.outputs, name="head")(h)


encoder = MLP(2 * LATENT_DIM)  # x [64] -> mean and log sigma^2, [2 D]
decoder = MLP(64)  # z [D] -> logits of the pixels, [64]


def init(key):
    """Fresh parameters of both networks. A module holds none: they are always an argument."""
    encoder_key, decoder_key = jax.random.split(key)
    return {
        "encoder": encoder.init(encoder_key, jnp.zeros(64)),
        "decoder": decoder.init(decoder_key, jnp.zeros(LATENT_DIM)),
    }


def loss(params, image, key):
    """The loss of ONE image with ONE key, in nats."""
    binarize_key, eps_key = jax.random.split(key)
    x = binarize(binarize_key, image)

    mean, logvar = jnp.split(encoder.apply(params["encoder"], x), 2)
    # (3): eps does not depend on the parameters, so the gradient passes through mean and sigma
    z = mean + jnp.exp(logvar / 2) * jax.random.normal(eps_key, mean.shape)
    logits = decoder.apply(params["decoder"], z)

    # With l the logit, (4) is the sum of x l - softplus(l). Keep it a sum: a mean over 64 pixels
    # would weigh the KL 64 times as much, and z would carry nothing
    log_likelihood = jnp.sum((x + 1) / 2 * logits - jax.nn.softplus(logits))
    kl = -0.5 * jnp.sum(1 + logvar - mean**2 - jnp.exp(logvar))  # (5)
    return -log_likelihood + kl  # (2)


def batch_indices(key, step, num_examples):
    """The examples of a step, [B]: each epoch has its own order and drops an incomplete batch."""
    epoch, place = divmod(step, num_examples // BATCH_SIZE)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return jax.lax.dynamic_slice_in_dim(order, place * BATCH_SIZE, BATCH_SIZE)


@jax.jit
def update(params, opt_state, step, images, train_key, data_key):
    """Moves the parameters against the gradient of the mean loss of one batch."""
    batch = images[batch_indices(data_key, step, len(images))]
    step_key = jax.random.fold_in(train_key, step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(BATCH_SIZE))

    def mean_loss(params):
        return jnp.mean(jax.vmap(loss, (None, 0, 0))(params, batch, keys))

    value, grads = jax.value_and_grad(mean_loss)(params)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, value


def draw(params, images, key):
    """A row of test images, a row of their reconstructions, and six rows of samples."""
    binarize_key, z_key = jax.random.split(key)
    x = jax.vmap(binarize)(jax.random.split(binarize_key, 10), images[:10])
    mean, _ = jnp.split(encoder.apply(params["encoder"], x), 2, axis=-1)
    z = jnp.concatenate([mean, jax.random.normal(z_key, (60, LATENT_DIM))])  # from N(0, I)
    white = jax.nn.sigmoid(decoder.apply(params["decoder"], z))
    return jnp.concatenate([x, 2 * white - 1])


def picture(images):
    """One picture of images in [-1, 1], [10 R, 64]: R rows of ten, each image enlarged."""
    tiles = np.clip((np.asarray(images) + 1) * 127.5, 0, 255).astype(np.uint8)
    tiles = tiles.reshape(-1, 10, 8, 8).repeat(7, axis=2).repeat(7, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=255)
    return Image.fromarray(tiles.swapaxes(1, 2).reshape(-1, 580))


def train(num_steps):
    """Trained parameters, and the loss of every step. All that is random follows from key(0)."""
    images, _ = load_digits()
    init_key, train_key, data_key, _ = jax.random.split(jax.random.key(0), 4)
    params = init(init_key)
    opt_state, losses = tx.init(params), []
    for step in range(num_steps):
        params, opt_state, value = update(params, opt_state, step, images, train_key, data_key)
        losses.append(float(value))
        if (step + 1) % 300 == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-300:]):.3f} nats")
    return params, losses


if __name__ == "__main__":
    params, _ = train(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
    rows = draw(params, load_digits()[1], jax.random.key(1))
    Path("runs/minimal").mkdir(parents=True, exist_ok=True)
    picture(rows).save("runs/minimal/vae.png")
