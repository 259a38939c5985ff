# SPDX-License-Identifier: MIT
"""A generative adversarial network, whole: data, networks, losses, gradient steps, loop, samples.

    python experiments/minimal/gan.py [steps]        # writes runs/minimal/gan.png

The generator G makes an image from noise z. The discriminator gives the logit D of an image being
real. (1) and (2) are Goodfellow et al. 2014 (arXiv:1406.2661), eq. 1 and section 3; (3), which
keeps D from becoming steep, is Mescheder et al. 2018 (arXiv:1801.04406), eq. 9:

    (1)  loss of D = -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))) + R1,    z ~ N(0, I)
    (2)  loss of G = -log sigmoid(D(G(z)))
    (3)  R1 = R1_WEIGHT / 2 |gradient of D at x|^2

By Goodfellow's eq. 1, G would lower log(1 - sigmoid(D(G(z)))). That is flat where D is sure that
an image is not real, as it soon is at first, and G would not learn; (2) is steep there.

The losses are those of `python experiments/gan.py`, which draws from the same keys.
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

LATENT_DIM, BATCH_SIZE = 64, 64
R1_WEIGHT, EMA_DECAY = 0.1, 0.999  # EMA: the moving average of G, which draws the samples
tx = optax.adam(1e-3, b1=0.5)


def load_digits():
    """Handwritten digits of 8x8 pixels to train on, uint8 [N, 64]."""
    pixels, labels = datasets.load_digits(return_X_y=True)  # a pixel is 0 to 16
    images = np.rint(pixels * (255 / 16)).astype(np.uint8)
    earlier = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    return images[earlier % 6 != 5]  # every sixth image of each class is left for testing


class Generator(nn.Module):
    """z [D] -> image [64] in [-1, 1]."""

    @nn.compact
    def __call__(self, z):
        h = nn.relu(nn.Dense(512)(z))
        h = nn.relu(nn.Dense(512)(h))
        return jnp.tanh(nn.Dense(64, name="head")(h))


class Discriminator(nn.Module):
    """Image [64] -> logit []; a unit is the maximum of five linear ones (maxout)."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(240 * 5)(x).reshape(240, 5).max(axis=-1)
        h = nn.Dense(240 * 5)(h).reshape(240, 5).max(axis=-1)
        return nn.Dense(1, name="head")(h)[0]


generate, judge = Generator().apply, Discriminator().apply  # (params, input) -> output


def discriminator_loss(d_params, g_params, image, key):
    """The loss (1) for ONE real and ONE generated image."""
    z_key, *_ = jax.random.split(key, 4)  # the script draws augmentations from the others
    real = image.astype(jnp.float32) * (2 / 255) - 1
    fake = generate(g_params, jax.random.normal(z_key, (LATENT_DIM,)))
    # -log sigmoid(l) = softplus(-l) and -log(1 - sigmoid(l)) = softplus(l), exact for any logit
    value = jax.nn.softplus(-judge(d_params, real)) + jax.nn.softplus(judge(d_params, fake))
    slope = jax.grad(judge, argnums=1)(d_params, real)
    return value + R1_WEIGHT / 2 * jnp.sum(slope**2)  # (3)


def generator_loss(g_params, d_params, image, key):
    """The loss (2) for ONE generated image; the real one plays no part."""
    z_key, _ = jax.random.split(key)
    fake = generate(g_params, jax.random.normal(z_key, (LATENT_DIM,)))
    return jax.nn.softplus(-judge(d_params, fake))


def batch_indices(key, step, num_examples):
    """The examples of a step, [B]: each epoch has its own order and drops an incomplete batch."""
    epoch, place = divmod(step, num_examples // BATCH_SIZE)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return jax.lax.dynamic_slice_in_dim(order, place * BATCH_SIZE, BATCH_SIZE)


def example_keys(key, step):
    """One key per example of a player's step, [B]; each player folds in its own count of steps."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(BATCH_SIZE))


def descend(loss, player, opponent, batch, keys):
    """A gradient step of one player, (params, opt_state), and its mean loss before the step."""
    params, opt_state = player

    def mean_loss(params):
        return jnp.mean(jax.vmap(loss, (None, None, 0, 0))(params, opponent, batch, keys))

    value, grads = jax.value_and_grad(mean_loss)(params)
    updates, opt_state = tx.update(grads, opt_state)
    return (optax.apply_updates(params, updates), opt_state), value


@jax.jit
def update(d, g, average, step, images, train_key, data_key):
    """A step of the discriminator, one of the generator against the new discriminator, the EMA."""
    batch = images[batch_indices(data_key, step, len(images))]
    d_key, g_key = jax.random.split(jax.random.fold_in(train_key, step))
    d, d_value = descend(discriminator_loss, d, g[0], batch, example_keys(d_key, step))
    g, g_value = descend(generator_loss, g, d[0], batch, example_keys(g_key, step))
    decay = jnp.minimum(EMA_DECAY, (2.0 + step) / (11.0 + step))  # small at first: forget G's start
    average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, g[0])
    return d, g, average, (d_value, g_value)


def picture(images):
    """One picture of images in [-1, 1], [10 R, 64]: R rows of ten, each image enlarged."""
    tiles = np.clip((np.asarray(images) + 1) * 127.5, 0, 255).astype(np.uint8)
    tiles = tiles.reshape(-1, 10, 8, 8).repeat(7, axis=2).repeat(7, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=255)
    return Image.fromarray(tiles.swapaxes(1, 2).reshape(-1, 580))


def train(num_steps):
    """Both trained players and the average of G; the losses (1) and (2) of every step."""
    images = load_digits()
    init_key, train_key, data_key, _ = jax.random.split(jax.random.key(0), 4)
    g_key, d_key = jax.random.split(init_key)
    g_params = average = Generator().init(g_key, jnp.zeros(LATENT_DIM))
    d_params = Discriminator().init(d_key, jnp.zeros(64))
    d, g, losses = (d_params, tx.init(d_params)), (g_params, tx.init(g_params)), []
    for step in range(num_steps):
        d, g, average, values = update(d, g, average, step, images, train_key, data_key)
        losses.append([float(value) for value in values])
        if (step + 1) % 600 == 0:
            print(f"step {step + 1}: losses of D and G {np.mean(losses[-600:], axis=0).round(3)}")
    return (d, g, average), losses


if __name__ == "__main__":
    (_, _, average), _ = train(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
    samples = generate(average, jax.random.normal(jax.random.key(1), (80, LATENT_DIM)))
    Path("runs/minimal").mkdir(parents=True, exist_ok=True)
    picture(samples).save("runs/minimal/gan.png")
