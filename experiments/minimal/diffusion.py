# SPDX-License-Identifier: MIT
"""A diffusion model, whole: data, network, loss, gradient step, loop, sampler.

    python experiments/minimal/diffusion.py [steps <= 400]   # writes runs/minimal/diffusion.png

An image x is turned into noise eps ~ N(0, I) by an angle phi_t that grows with the time t. A UNet
learns v, the derivative of x_t by that angle, and a sampler turns noise into images with it:

    (1)  x_t = cos(phi_t) x + sin(phi_t) eps,    phi_t = (pi / 2) (t / NUM_TIMES)
    (2)  v = cos(phi_t) eps - sin(phi_t) x,      loss = mean of (v - UNet(x_t, t, label))^2
    (3)  x = cos(phi_t) x_t - sin(phi_t) v,      eps = sin(phi_t) x_t + cos(phi_t) v
    (4)  x_next = cos(phi_next) x + sin(phi_next) eps
    (5)  v_guided = v_none + GUIDANCE (v_label - v_none),    GUIDANCE = 1 + w of the paper

(1) to (3) Salimans & Ho 2022 (arXiv:2202.00512), appendix D; (4) DDIM, Song et al. 2021
(arXiv:2010.02502), eq. 12 without its noise; (5) Ho & Salimans 2022 (arXiv:2207.12598), eq. 6.
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

BATCH_SIZE, NUM_STEPS, NUM_TIMES = 64, 400, 1000
NO_LABEL, LABEL_DROPOUT, GUIDANCE = 10, 0.1, 2.0  # a tenth of the images is shown without label
tx = optax.adam(optax.cosine_decay_schedule(3e-3, NUM_STEPS))
phi = np.pi / 2 * np.arange(NUM_TIMES + 1) / NUM_TIMES  # at t = 0 the image, at the end noise


def load_digits():
    """Digits to train on, uint8 [N, 8, 8, 1], and labels [N]; leaves out every sixth of a class."""
    pixels, labels = datasets.load_digits(return_X_y=True)  # a pixel is 0 to 16
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    is_train = np.array([np.sum(labels[:i] == labels[i]) % 6 != 5 for i in range(len(labels))])
    return images[is_train], labels[is_train]


class Block(nn.Module):
    """Two convolutions beside a skip; the embedding of time and label comes in between."""

    features: int

    @nn.compact
    def __call__(self, x, embedding):
        h = nn.Conv(self.features, (3, 3))(nn.silu(nn.LayerNorm()(x)))
        h = h + nn.Dense(self.features)(embedding)[None, None]
        h = nn.Conv(self.features, (3, 3))(nn.silu(nn.LayerNorm()(h)))
        return h + nn.Dense(self.features)(x)


class UNet(nn.Module):
    """x_t [8, 8, 1], t [], label [] -> v [8, 8, 1]. Ronneberger et al. 2015, in two resolutions."""

    @nn.compact
    def __call__(self, x, t, label):
        angles = t * 10000.0 ** (-jnp.arange(32) / 32)  # Vaswani et al. 2017, section 3.5
        known = nn.Dense(128)(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)]))
        known = nn.silu(known + nn.Embed(11, 128)(label))
        fine = Block(32)(nn.Conv(32, (3, 3))(x), known)  # [8, 8, 32]
        coarse = Block(64)(nn.Conv(64, (3, 3), strides=2)(fine), known)  # [4, 4, 64]
        enlarged = coarse.repeat(2, axis=0).repeat(2, axis=1)  # [8, 8, 64]
        h = Block(32)(jnp.concatenate([enlarged, fine], axis=-1), known)
        return nn.Conv(1, (3, 3), kernel_init=nn.initializers.zeros)(nn.silu(nn.LayerNorm()(h)))


def loss(params, image, label, key):
    """The loss (2) of ONE image at ONE random time with ONE key."""
    _, eps_key, t_key, drop_key = jax.random.split(key, 4)  # the first is for a latent's draw
    x = image.astype(jnp.float32) * (2 / 255) - 1
    eps = jax.random.normal(eps_key, x.shape)
    t = jax.random.randint(t_key, (), 1, NUM_TIMES + 1)
    label = jnp.where(jax.random.bernoulli(drop_key, LABEL_DROPOUT), NO_LABEL, label)

    cos, sin = jnp.asarray(np.cos(phi))[t], jnp.asarray(np.sin(phi))[t]
    x_t = cos * x + sin * eps  # (1)
    v = cos * eps - sin * x  # (2): eps where x_t is the image, -x where x_t is noise
    return jnp.mean((v - UNet().apply(params, x_t, t, label)) ** 2)


@jax.jit
def update(params, opt_state, step, images, labels, train_key, data_key):
    """Moves the parameters against the gradient of the mean loss of one batch."""
    epoch, place = divmod(step, len(images) // BATCH_SIZE)  # each epoch has its own order
    order = jax.random.permutation(jax.random.fold_in(data_key, epoch), len(images))
    batch = jax.lax.dynamic_slice_in_dim(order, place * BATCH_SIZE, BATCH_SIZE)
    step_key = jax.random.fold_in(train_key, step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(BATCH_SIZE))

    def mean_loss(params):
        return jax.vmap(loss, (None, 0, 0, 0))(params, images[batch], labels[batch], keys).mean()

    value, grads = jax.value_and_grad(mean_loss)(params)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, value


@jax.jit
def guided(params, x, t, labels):
    """v of noisy images [N, 8, 8, 1], guided towards the labels by (5)."""
    predict = jax.vmap(UNet().apply, (None, 0, None, 0))
    without = predict(params, x, t, jnp.full_like(labels, NO_LABEL))
    return without + GUIDANCE * (predict(params, x, t, labels) - without)


def ddim(predict, x, num_steps=50):
    """Images from noise x, by a function (x, t) -> v, in even steps down to t = 0."""
    stride = NUM_TIMES // num_steps  # num_steps divides NUM_TIMES
    for t in range(NUM_TIMES, 0, -stride):
        now, after = phi[t], phi[t - stride]
        v = predict(x, t)
        clean = np.cos(now) * x - np.sin(now) * v  # (3)
        eps = np.sin(now) * x + np.cos(now) * v
        x = np.cos(after) * clean + np.sin(after) * eps  # (4)
    return x


def picture(images):
    """One picture of images in [-1, 1], [10 R, 8, 8, 1]: R rows of ten, each image enlarged."""
    tiles = np.clip((np.asarray(images) + 1) * 127.5, 0, 255).astype(np.uint8)
    tiles = tiles.reshape(-1, 10, 8, 8).repeat(7, axis=2).repeat(7, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=255)
    return Image.fromarray(tiles.swapaxes(1, 2).reshape(-1, 580))


def train(num_steps):
    """Trained parameters, and the loss of every step. All that is random follows from key(0)."""
    dataset = load_digits()
    init_key, train_key, data_key, _ = jax.random.split(jax.random.key(0), 4)
    params = jax.jit(UNet().init)(init_key, jnp.zeros((8, 8, 1)), 0, jnp.int32(0))
    opt_state, losses = tx.init(params), []
    for step in range(num_steps):
        params, opt_state, value = update(params, opt_state, step, *dataset, train_key, data_key)
        losses.append(float(value))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-100:]):.4f}")
    return params, losses


if __name__ == "__main__":
    params, _ = train(int(sys.argv[1]) if len(sys.argv) > 1 else NUM_STEPS)
    noise, labels = jax.random.normal(jax.random.key(1), (80, 8, 8, 1)), jnp.arange(80) % 10
    samples = ddim(lambda x, t: guided(params, x, t, labels), noise)
    Path("runs/minimal").mkdir(parents=True, exist_ok=True)
    picture(samples).save("runs/minimal/diffusion.png")
