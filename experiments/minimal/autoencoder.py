# SPDX-License-Identifier: MIT
"""An autoencoder, whole: data, networks, loss, gradient step, loop, samples.

    python experiments/minimal/autoencoder.py [steps]        # writes runs/minimal/autoencoder.png

The encoder squeezes an image x of 64 pixels into a code z of 16 numbers, and the decoder makes the
image from it again. Training lowers the error of the pixels: Goodfellow, Bengio & Courville 2016
(Deep Learning), eq. 14.1, with the mean squared error as its L.

    (1)  loss = mean over pixels of  (x - decoder(z))^2,    z = encoder(x + NOISE eps)

NOISE = 0 is the plain autoencoder. With 0.5 it has to tell a digit from the noise eps ~ N(0, I):
the denoising autoencoder, Vincent et al. 2010 (JMLR 11), eq. 9.

The losses are those of `python experiments/autoencoder.py`: there as here, parameters, noise and
order of the data are functions of the seed, the step and the example's place in its batch.
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

LATENT_DIM = 16
NOISE = 0.0  # standard deviation; the pixels span -1 to 1
BATCH_SIZE = 128
tx = optax.adam(1e-3)


def load_digits():
    """Handwritten digits of 8x8 pixels, uint8 [N, 64]: those to train on and those to test on."""
    pixels, labels = datasets.load_digits(return_X_y=True)  # a pixel is 0 to 16
    images = np.rint(pixels * (255 / 16)).astype(np.uint8)
    rank_in_class = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    is_test = rank_in_class % 6 == 5  # every sixth image of each class
    return images[~is_test], images[is_test]


def to_unit_range(image):
    """Turns uint8 [0, 255] into float32 [-1, 1]."""
    return image.astype(jnp.float32) * (2 / 255) - 1


class MLP(nn.Module):
    """A vector -> a vector, through one hidden layer of 500 ReLUs."""

    outputs: int

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(500)(x))
        return nn.Dense(self.outputs, name="head")(h)


encoder = MLP(LATENT_DIM)  # x [64] -> z [D]
decoder = MLP(64)  # z [D] -> x [64]


def init(key):
    """Fresh parameters of both networks. A module holds none: they are always an argument."""
    encoder_key, decoder_key = jax.random.split(key)
    return {
        "encoder": encoder.init(encoder_key, jnp.zeros(64)),
        "decoder": decoder.init(decoder_key, jnp.zeros(LATENT_DIM)),
    }


def loss(params, image, key):
    """The loss (1) of ONE image with ONE key."""
    x = to_unit_range(image)
    z = encoder.apply(params["encoder"], x + NOISE * jax.random.normal(key, x.shape))
    return jnp.mean((x - decoder.apply(params["decoder"], z)) ** 2)  # compared with the clean x


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
    """Two rows of test images, each above its reconstructions, and four rows of samples.

    An autoencoder does not say which codes are likely, so the samples are poor: they are decoded
    from a normal distribution with the mean and the covariance of the test images' codes.
    """
    x = to_unit_range(images)
    codes = encoder.apply(params["encoder"], x)
    z = jax.random.multivariate_normal(key, codes.mean(axis=0), jnp.cov(codes.T), (40,))
    y, samples = decoder.apply(params["decoder"], codes), decoder.apply(params["decoder"], z)
    return jnp.concatenate([x[:10], y[:10], x[10:20], y[10:20], samples])


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
            print(f"step {step + 1}: loss {np.mean(losses[-300:]):.5f}")
    return params, losses


if __name__ == "__main__":
    params, _ = train(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
    rows = draw(params, load_digits()[1], jax.random.key(1))
    Path("runs/minimal").mkdir(parents=True, exist_ok=True)
    picture(rows).save("runs/minimal/autoencoder.png")
