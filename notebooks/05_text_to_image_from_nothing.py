# %% [markdown]
# # 5 · Text to image, from nothing
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxgen/jaxgen/blob/main/notebooks/05_text_to_image_from_nothing.ipynb)
# [view source](05_text_to_image_from_nothing.py)
#
# A model that draws what a text says is trained here, from random numbers to measured pictures.
# First the principle, whole and visible, on digits: a network that removes noise, told which digit
# to draw. Then everything that makes it a Stable Diffusion: a world with captions, an autoencoder
# whose latents take the place of pixels, a text encoder, and a measurement of whether prompts are
# followed, also those that training never showed. It takes at most four minutes on two CPU cores; the
# finished model that it compares with took three hours and comes with jaxgen.
#
# ```
# picture -> encoder -> z -> decoder -> picture              stage 1: the autoencoder
# caption -> tokenizer -> text encoder -> context            stage 2: CLIP's text model ...
# z + noise, t, context -> UNet -> v                         ... and the UNet, trained together
# ```

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

# %% [markdown]
# ## Part one: a diffusion model, whole
#
# These cells are [`experiments/minimal/diffusion.py`](../experiments/minimal/diffusion.py), a
# script of 150 lines that stands alone.

# %% tags=["whole"]
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

# %%
import matplotlib.pyplot as plt

import figures
import quick
from jaxgen.cpu import tune

tune.tune_cpu()  # before JAX starts; on a GPU or TPU it does nothing

# %% [markdown]
# ### Data
#
# 1,797 handwritten digits of 8 x 8 pixels come with scikit-learn; five sixths of them are used here. The label of a digit is all the
# "text" that there is for now.


# %% tags=["whole"]
def load_digits():
    """Digits to train on, uint8 [N, 8, 8, 1], and labels [N]; leaves out every sixth of a class."""
    pixels, labels = datasets.load_digits(return_X_y=True)  # a pixel is 0 to 16
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    is_train = np.array([np.sum(labels[:i] == labels[i]) % 6 != 5 for i in range(len(labels))])
    return images[is_train], labels[is_train]


# %% [markdown]
# ### From images to noise
#
# An image $x$ is turned into noise $\varepsilon \sim N(0, I)$ by an angle that grows with the time
# $t$:
#
# $$x_t = \cos(\varphi_t)\, x + \sin(\varphi_t)\, \varepsilon, \qquad
# \varphi_t = \tfrac{\pi}{2}\, t / 1000 \tag{1}$$
#
# Salimans & Ho 2022 (arXiv:2202.00512), appendix D. Cosine and sine, so that the variance stays
# where it is. At $t = 0$ there is the image, at $t = 1000$ nothing but noise. Test:
# [`test_minimal_diffusion_has_the_data_and_the_losses_of_the_library`](../tests/test_minimal.py).

# %%
images, labels = load_digits()
eps = jax.random.normal(jax.random.key(5), (8, 8, 1))
shown = [0, 125, 250, 375, 500, 625, 750, 875, 1000]
x = images[7] * (2 / 255) - 1
figures.show_grid(
    [np.cos(phi[t]) * x + np.sin(phi[t]) * eps for t in shown],
    columns=9,
    title="t = " + ", ".join(map(str, shown)),
)

# %% [markdown]
# ### The network
#
# A UNet: blocks of convolutions, once at full and once at half size, and a path that carries the
# fine details across. It has to know *how much* noise there is, so the time comes in as sines and
# cosines of many frequencies, together with the label. The last layer begins with zeros: the
# untrained network predicts nothing, and its loss is the variance of what it should predict, close
# to 1.


# %% tags=["whole"]
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


# %% [markdown]
# ### What it learns
#
# From $x_t$ one could ask for the noise, or for the image. $v$ is both, the derivative of (1) by
# the angle:
#
# $$v = \cos(\varphi_t)\, \varepsilon - \sin(\varphi_t)\, x, \qquad
# \text{loss} = \text{mean of } \big(v - \text{UNet}(x_t, t, \text{label})\big)^2 \tag{2}$$
#
# Where $x_t$ is nearly the image, $v$ is the noise, which is the hard part; where $x_t$ is nearly
# noise, $v$ is the image with its sign turned. So the question is never trivial, and the answer
# always has the same scale. One label in ten is hidden: the same network then also learns images as
# such, which guidance will need (Ho & Salimans 2022, arXiv:2207.12598, algorithm 1).
#
# The loss is that of ONE image with ONE key; `vmap` makes a batch of it below. Checked by
# [`test_minimal_diffusion_has_the_data_and_the_losses_of_the_library`](../tests/test_minimal.py)
# and [`test_the_losses_of_both_predictions_are_one_times_the_signal`](../tests/test_losses.py).


# %% tags=["whole"]
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


# %% [markdown]
# ### Drawing
#
# Turning the rotation (1) back gives image and noise from $x_t$ and $v$; turning it forward again,
# a little less far, is one step of DDIM:
#
# $$x = \cos(\varphi_t)\, x_t - \sin(\varphi_t)\, v, \qquad
# \varepsilon = \sin(\varphi_t)\, x_t + \cos(\varphi_t)\, v \tag{3}$$
#
# $$x_{t'} = \cos(\varphi_{t'})\, x + \sin(\varphi_{t'})\, \varepsilon \tag{4}$$
#
# $$v_\text{guided} = v_\text{none} + w\, (v_\text{label} - v_\text{none}) \tag{5}$$
#
# (3) Salimans & Ho 2022, appendix D; (4) Song et al. 2021 (arXiv:2010.02502), eq. 12 without its
# noise; (5) Ho & Salimans 2022, eq. 6, with $w$ one more than theirs. Checked by
# [`test_minimal_ddim_is_the_sampler_of_the_library`](../tests/test_minimal.py) and
# [`test_minimal_guidance_is_that_of_the_library`](../tests/test_minimal.py). Why guidance helps:
# [the notebook before](04_stable_diffusion.ipynb).


# %% tags=["whole"]
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


# %% [markdown]
# ### Half a minute later

# %%
params, losses = train(quick.steps(NUM_STEPS, 5))

# %%
noise = jax.random.normal(jax.random.key(1), (quick.steps(80, 10), 8, 8, 1))
wanted_labels = jnp.arange(len(noise)) % 10
samples = ddim(lambda x, t: guided(params, x, t, wanted_labels), noise)
panel = figures.axes(height=1.9)
panel.semilogy(losses, color=figures.TEXT, alpha=0.3)
panel.semilogy(figures.smooth(losses))
panel.set(xlabel="step", ylabel="loss (2)")
plt.show()
assert quick.ON or np.mean(losses[-50:]) < 0.35
picture(samples)  # a column for each label

# %% [markdown]
# ### The library gives the same numbers
#
# `latent_losses.diffusion_loss` is the loss above for latents and captions; here pixels stand for
# latents and a label is a caption of one word. The library counts times from the first noisy one,
# so its 0 is 1 here. `sample.sample` runs every sampler from a table of its coefficients.

# %%
from jaxgen.diffusion import sample, schedule, sigmas, timestep_samplers
from jaxgen.train import latent_losses

library_loss = latent_losses.diffusion_loss(
    predict=lambda params, x, t, ids: UNet().apply(params, x, t + 1, ids[0]),
    embed=lambda params, ids: ids,
    alphas_cumprod=np.cos(phi[1:]) ** 2,
    prediction_type="v_prediction",
    empty_caption=np.array([NO_LABEL]),
    caption_dropout=LABEL_DROPOUT,
)


def of_pixels(params, image, label, key):
    x = image.astype(jnp.float32) * (2 / 255) - 1
    posterior = jnp.concatenate([x, jnp.full_like(x, -jnp.inf)], axis=-1)  # variance 0
    return library_loss(
        {"unet": params, "text_encoder": {}}, {"posterior": posterior, "ids": label[None]}, key
    )[0]


keys, batch = jax.random.split(jax.random.key(3), 64), (images[:64], labels[:64])
own = jax.jit(jax.vmap(loss, (None, 0, 0, 0)))(params, *batch, keys)
theirs = jax.jit(jax.vmap(of_pixels, (None, 0, 0, 0)))(params, *batch, keys)
np.testing.assert_allclose(own, theirs, rtol=1e-5)

model_of_digits = schedule.Schedule(np.cos(phi[1:]) ** 2, "v_prediction")
table = timestep_samplers.ddim(
    model_of_digits, sigmas.timestep_grid(model_of_digits, 50, "trailing")
)
denoise = sample.at_times(lambda x, t: guided(params, x, t + 1, wanted_labels), table)
final = jax.jit(
    lambda x: sample.sample(denoise, table, x, jax.random.split(jax.random.key(4), len(x)))
)(noise)
np.testing.assert_allclose(final, samples, atol=2e-3)

# %% [markdown]
# ### What goes wrong: one step
#
# Why fifty steps, if the network knows the image from the first? Because it does not: of pure noise
# the best answer in the mean square is the *average* of all images of that label. One step draws
# averages; each further step may decide a little more.


# %%
@jax.jit
def plain(params, x, t, labels):
    """v without guidance."""
    return jax.vmap(UNet().apply, (None, 0, None, 0))(params, x, t, labels)


ten = jnp.arange(10)
rows = {
    f"{n} step{'s' * (n > 1)}": ddim(lambda x, t: plain(params, x, t, ten), noise[:10], n)
    for n in (1, 2, 5, 50)
}
averages = np.stack([images[labels == c].mean(axis=0) for c in range(10)]) * (2 / 255) - 1
figures.show_rows({"average": averages, **rows})
likeness = np.corrcoef(averages.ravel(), np.ravel(rows["1 step"]))[0, 1]
print(f"correlation of one step with the averages of the labels: {likeness:.3f}")
assert quick.ON or likeness > 0.9

# %% [markdown]
# ### Is it true that labels must be hidden?
#
# Guidance compares an answer with the label to one without. A network that never saw an image
# without its label has no such answer: what it says for the label "none" is an accident of its
# first weights. So guidance should fail if nothing was hidden. Believing is good, measuring is
# better: train again with `LABEL_DROPOUT = 0`, and let a nearest-neighbour classifier of
# scikit-learn count how many of 200 samples are the digit that was asked for.

# %%
LABEL_DROPOUT = 0.0
update.clear_cache()  # the compiled step has the old constant in it
careless, _ = train(quick.steps(NUM_STEPS, 5))
LABEL_DROPOUT = 0.1

# %%
from sklearn import neighbors

judge = neighbors.KNeighborsClassifier().fit(images.reshape(len(images), -1), labels)
start = jax.random.normal(jax.random.key(6), (quick.steps(200, 10), 8, 8, 1))
asked = jnp.arange(len(start)) % 10


@jax.jit
def steered(params, x, t, w):
    """(5) with any guidance scale."""
    none = plain(params, x, t, jnp.full(len(x), NO_LABEL))
    return none + w * (plain(params, x, t, asked) - none)


def obedience(params, w):
    """Samples at guidance scale w, and the share that shows the digit that was asked for."""
    drawn = ddim(lambda x, t: steered(params, x, t, w), start, quick.steps(20, 5))
    pixels = np.clip((np.asarray(drawn) + 1) * 127.5, 0, 255).reshape(len(start), -1)
    return drawn[:10], np.mean(judge.predict(pixels) == asked)


scales, rows, shares = [0.0, 1.0, 2.0, 4.0], {}, {}
for name, weights in (("a tenth hidden", params), ("none hidden", careless)):
    for w in scales:
        drawn, share = obedience(weights, w)
        shares.setdefault(name, []).append(share)
        rows[f"{name}, w = {w:g}: {100 * share:.0f} %"] = drawn
figures.show_rows(rows)
assert quick.ON or min(rise[3] - rise[1] for rise in shares.values()) > 0.1

# %% [markdown]
# It does not fail here. The row of "none" in the table of labels was never trained, so it still is
# the small random vector it began as, and near the origin this network answers with a blend of all
# labels: close enough to the average that guidance needs. That is luck, of a small table and a
# forgiving network. Nothing in the loss holds the answer there, while one example in ten buys it
# for certain, and a model of images without labels besides ($w = 0$). A fault that guidance hides
# is worse than one that shows: what was not trained should not be asked.

# %% [markdown]
# ## Part two: a world with captions
#
# Real captioned pictures come with licences and gigabytes. [`jaxgen.world`](../jaxgen/world/scene.py) draws
# its own, from a key. `draw` and `render` are pure functions, so `vmap` draws thousands of pictures
# a second on any device. A shape is a signed distance $d$ from its outline, in pixels and negative
# inside, and the share of a pixel that it covers is taken to be
#
# $$\operatorname{clip}(\tfrac12 - d,\; 0,\; 1) \tag{6}$$
#
# for a pixel whose centre is at distance $d$. That makes smooth edges without drawing anything twice.
# It is the area of a unit square on one side of a line, exact for a straight edge along the pixels, and checked against a render of many samples by
# [`test_pictures_equal_supersampled_ones_but_for_rounded_corners`](../tests/test_world.py).
# Captions vary their words: *big* for *large*, *over* for *above*, two places (*a red star at the
# top and a blue ring at the bottom*) for a relation, and they leave out the size, the background or
# the place now and then.

# %%
import textwrap

from jaxgen.world import caption, reader, render, scene

render_all = jax.jit(jax.vmap(render.render))
scenes = scene.draw_many(jax.random.key(0), 8)
texts, drawn = caption.captions(scenes), render_all(scenes)


def show_captioned(pictures, texts, colour=figures.TEXT):
    """Pictures in rows of eight, above their captions."""
    pictures = figures.as_uint8(pictures)
    for first in range(0, len(pictures), 8):
        for panel, j in zip(figures.axes(8, height=1.8), range(first, first + 8), strict=True):
            panel.set_axis_off()
            if j < len(pictures):
                panel.set_axis_on()
                figures.place(panel, pictures[j])
                text = "\n".join(textwrap.wrap(texts[j], 17))
                panel.set_xlabel(text, fontsize=6, color=colour)
        plt.show()


show_captioned(drawn, texts)

# %% [markdown]
# Eight of the 64 pairs of shape and colour are **held out**: no training picture shows a yellow
# circle or a red triangle, though yellow things and circles abound. Whether the model can draw them
# says whether it has learned *yellow* and *circle*, or pictures by heart. Checked by
# [`test_training_shows_all_pairs_but_those_held_out`](../tests/test_world.py).

# %%
shape, color = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
gallery = scene.Scene(
    count=np.ones(64, np.int32),
    shape=np.repeat(shape.reshape(-1, 1), 2, axis=1).astype(np.int32),
    color=np.repeat(color.reshape(-1, 1), 2, axis=1).astype(np.int32),
    size=np.ones((64, 2), np.int32),
    relation=np.zeros(64, np.int32),
    background=np.full(64, 2, np.int32),
    center=np.full((64, 2, 2), 32, np.float32),
    radius=np.full((64, 2), 26, np.float32),
    wording=np.full((64, 6), 60, np.int32),
)
pairs = np.array(render_all(gallery))
for shape_number, color_number in scene.HELD_OUT:
    pairs[8 * shape_number + color_number] *= 0.25  # dark: never shown
figures.show_grid(
    pairs[:, ::2, ::2],
    columns=8,
    title="shapes and colours; the faint ones are held out",
    width=3.5,
)

# %% [markdown]
# ### Stage 1: the autoencoder
#
# Diffusion in pixels wastes its work on details that a small network can add afterwards. So
# pictures become latents of 8 x 8 x 4 numbers, 48 times fewer, by the VAE of [the second
# notebook](02_vae.ipynb) with two changes: errors of pixels and of their differences take the place
# of a likelihood, and the KL has a very small weight.
#
# $$d = x - \hat x, \quad z = \mu + \sigma \varepsilon, \qquad
# \text{loss} = \overline{|d|} + \overline{d^2} + \overline{|d_x|} + \overline{|d_y|} + \lambda\,
# \overline{\text{KL}\big(q(z \mid x)\,\|\,N(0, I)\big)} \tag{7}$$
#
# A bar is a mean, over pixels or over the latent's numbers; $d_x$ and $d_y$ are the differences of
# $d$ between neighbours in a row and in a column. Rombach et al. 2022 (arXiv:2112.10752), section 3.1,
# with these differences, which make outlines count, in place of its perceptual and adversarial terms (flat shapes have no
# texture to judge). The weight $\lambda = 0.0002$ is so small that the latent is almost a point:
# enough to keep latents near the origin and smooth, not enough to blur. *Making latents likely is
# the diffusion's job now*, and no longer the KL term's. In code:
# `latent_losses.autoencoder_kl_loss`, checked by
# [`test_first_stage_adds_both_errors_and_the_mean_kl`](../tests/test_losses.py) and by finite
# differences in the same file.
#
# A short training from random weights, to see the curve; the finished one took half an hour on two
# cores (`python experiments/latent_autoencoder.py --run-dir runs/first`).

# %%
from jaxgen.miniature import captioned, model
from jaxgen.stable_diffusion import loading
from jaxgen.train import augment, optimizer
from jaxgen.train import step as steps
from jaxgen.weights import hub, tokenizer

BLOCK, COUNT = quick.steps(64, 8), quick.steps(2048, 64)


def paint(scenes):
    """Scenes -> pictures uint8 [N, 64, 64, 3]."""
    return np.rint((np.asarray(render_all(scenes)) + 1) * 127.5).astype(np.uint8)


def blocks(arrays):
    """A tree of arrays [N, ...] in pieces of `BLOCK`, so that one program serves all."""
    starts = range(0, COUNT, BLOCK)
    return [jax.tree.map(lambda leaf, i=i: leaf[i : i + BLOCK], arrays) for i in starts]


train_scenes = captioned.world_scenes("train", COUNT, two_objects=0.0)
captions = caption.captions(train_scenes)
pictures = np.concatenate([paint(block) for block in blocks(train_scenes)])
test_pictures = np.asarray(paint(captioned.world_scenes("test", BLOCK)))

checkpoint = hub.open_checkpoint("shapes")
networks = loading.networks(checkpoint)
vae, shipped = networks.vae, loading.load(checkpoint, networks)
learner = vae  # what is trained here
if quick.ON:  # two of its four levels
    learner = vae.clone(
        down_block_types=vae.down_block_types[:2],
        up_block_types=vae.up_block_types[:2],
        block_out_channels=vae.block_out_channels[:2],
    )


def encode_one(params, x):
    mean, logvar = learner.apply({"params": params}, x[None], method="encode")
    return mean[0], logvar[0]


def decode_one(params, z):
    return learner.apply({"params": params}, z[None], method="decode")[0]


@jax.jit
def encode(params, images):
    """Pictures uint8 -> mean and log-variance of their latents."""
    return vae.apply({"params": params}, augment.to_unit_range(images), method="encode")


@jax.jit
def decode(params, z):
    return vae.apply({"params": params}, z, method="decode")


def trained(loss, params, data, num_steps, batch_size, learning_rate, ema_decay=0.98):
    """Averaged parameters and the loss of every step, by the library's step, scanned."""
    tx = optimizer.adam(
        optimizer.schedule(learning_rate, num_steps, "cosine", num_steps // 10), clip_norm=1.0
    )
    one = steps.with_moving_average(steps.gradient_step(loss, tx), ema_decay)
    many = jax.jit(steps.scan_steps(one), donate_argnums=0)
    state = steps.AveragedState(steps.init_state(params, tx), jax.tree.map(jnp.copy, params))
    order = jax.random.randint(jax.random.key(7), (num_steps, batch_size), 0, COUNT)
    state, metrics = many(state, (data, order), jax.random.key(8))
    return state.ema, np.asarray(metrics["loss"])


first_loss = augment.on_uint8(latent_losses.autoencoder_kl_loss(encode_one, decode_one, 2e-4, 1.0))
fresh = jax.jit(lambda key: model.init(key, learner))(jax.random.key(9))
begun, first_losses = trained(
    first_loss,
    fresh,
    {"image": pictures},
    quick.steps(60, 2),
    batch_size=quick.steps(4, 1),
    learning_rate=1e-3,
)

# %%
mean, logvar = encode(shipped["vae"], test_pictures)
reconstructions = decode(shipped["vae"], mean)
error = np.mean((test_pictures / 127.5 - 1 - reconstructions) ** 2)
print(f"squared error per pixel of the finished one: {error:.4f}")
assert error < 0.01
panel = figures.axes(height=1.9)
panel.semilogy(first_losses, color=figures.TEXT, alpha=0.3)
panel.semilogy(figures.smooth(first_losses, 10))
panel.set(xlabel="step of four pictures", ylabel="loss (7)")
plt.show()
figures.show_rows({
    "picture": test_pictures[:8],
    f"{len(first_losses)} steps": jax.jit(learner.apply)(
        {"params": begun}, test_pictures[:8] / 127.5 - 1
    ),
    "half an hour": reconstructions[:8],
})  # fmt: skip

# %% [markdown]
# What a latent looks like, channel by channel; and the latent half way between two pictures beside
# the average of their pixels. The latent's average is not a crossfade, and no picture of the world
# either: a decoder only knows latents that encoders make. A model that *averages* latents draws
# such ghosts.

# %%
between = decode(shipped["vae"], (mean + mean[3]) / 2)
panels = figures.axes(8, height=1.2)
panels[0].imshow(test_pictures[0])
for c in range(4):
    panels[1 + c].imshow(mean[0, :, :, c], cmap="coolwarm", vmin=-3, vmax=3)
    panels[1 + c].set_title(f"channel {c}", fontsize=8)
panels[5].imshow(test_pictures[3])
panels[6].imshow(figures.as_uint8(between)[0])
panels[7].imshow((test_pictures[0] / 2 + test_pictures[3] / 2).astype(np.uint8))
for panel, title in zip(
    panels[[0, 5, 6, 7]], ("A", "B", "latents' mean", "pixels' mean"), strict=True
):
    panel.set_title(title, fontsize=8)
for panel in panels:
    panel.set_axis_off()
plt.show()

# %% [markdown]
# ### The number that everybody forgets
#
# Equation (1) mixes latents with noise of variance 1, so latents need variance 1 too, or all noise
# levels mean something else. They are multiplied by
#
# $$f = 1 / \operatorname{std}(z) \tag{8}$$
#
# (Rombach et al. 2022, appendix G), which goes into the `config.json` of the autoencoder: 0.8182
# here, 0.18215 in Stable Diffusion 1.5. Forgetting to divide by it before the decoder, or copying
# that of another model, are the classic faults of pipelines that people write: they raise no error.
# The number printed below is 7 % larger, because the pictures of this page show one object each; the
# checkpoint's is that of the whole world. Checked by
# [`test_scaled_latents_have_unit_variance`](../tests/test_captioned.py).

# %%
from jaxgen.stable_diffusion.pipeline import StableDiffusion

parts = [encode(shipped["vae"], block) for block in blocks(pictures)]
mean, logvar = (np.concatenate(part) for part in zip(*parts, strict=True))
variance = np.var(mean) + np.mean(np.exp(logvar))  # of z: between pictures, and the draw's own
print(f"1 / std of these latents: {variance**-0.5:.4f}; in the checkpoint: {vae.scaling_factor}")
assert abs(variance**-0.5 / vae.scaling_factor - 1) < 0.1


NUM_PROMPTS = quick.steps(32, 8)
measured_scenes = captioned.world_scenes("prompts", NUM_PROMPTS, scene.SEEN, two_objects=0.0)
prompts = caption.captions(measured_scenes)
finished = StableDiffusion(checkpoint)
OPTIONS = {"num_steps": quick.steps(10, 2), "guidance_scale": 3.0, "seed": list(range(NUM_PROMPTS))}
after_hours = finished(prompts, output="latent", **OPTIONS)
padded = np.resize(after_hours, (BLOCK, 8, 8, 4))
factors = (vae.scaling_factor, 1.0, 0.18215)
figures.show_rows({f"f = {f:g}": decode(shipped["vae"], padded / f)[:8] for f in factors})

# %% [markdown]
# ### Stage 2: denoise latents, guided by text
#
# Now (2) again, on latents and with a text encoder in place of the table of ten labels. The
# pictures are encoded once, to posteriors, and a latent is drawn from them anew each time:
#
# $$x_t = \sqrt{\bar\alpha_t}\, z + \sqrt{1 - \bar\alpha_t}\, \varepsilon, \qquad \text{loss} =
# \overline{\big(v - \text{UNet}(x_t, t, \text{encoder}(\text{caption}))\big)^2} \tag{9}$$
#
# Ho et al. 2020 (arXiv:2006.11239), eq. 14; $v$ as in (2). One caption in ten is replaced by the
# empty one. The text encoder is trained with the UNet, from nothing, and so is its vocabulary
# (`tokenizer.train`: byte pairs, in CLIP's format). Samples come from a moving average of the
# parameters, as in Ho et al. 2020, appendix B. In code: `latent_losses.diffusion_loss`,
# the very function that gave the digits' numbers above. Test:
# [`test_a_model_that_knows_the_clean_latent_has_no_loss`](../tests/test_losses.py).
#
# To see learning happen within a minute, the task here is smaller than the world: pictures of one
# object, a network with a third of the weights, eight thousand examples instead of eight hundred
# thousand.

# %%
tokens = tokenizer.train(captions, max_length=24)
sizes = model.Sizes(
    image_size=64, vae_channels=(16, 32, 64, 64), text_width=64, text_layers=1, unet_heads=4,
    unet_channels=(16,) if quick.ON else (48, 64), norm_groups=8, prediction_type="v_prediction",
)  # fmt: skip
small = model.checkpoint(sizes, tokens, vae.scaling_factor)
small_networks = loading.networks(small)
unet, text_encoder = small_networks.unet, small_networks.encoders["text_encoder"]
second_loss = latent_losses.diffusion_loss(
    predict=lambda params, x, t, context: unet.apply(
        {"params": params}, x[None], t[None], context[None]
    )[0],
    embed=lambda params, ids: text_encoder.apply({"params": params}, ids[None]).context[0],
    alphas_cumprod=model.alphas_cumprod(),
    prediction_type="v_prediction",
    empty_caption=tokenizer.tokenize(tokens, [""])[0],
    caption_dropout=0.1,
)
f = vae.scaling_factor
data = {
    "posterior": jnp.concatenate([f * mean, logvar + 2 * np.log(f)], axis=-1),
    "ids": jnp.asarray(tokenizer.tokenize(tokens, captions)),
}
unet_key, text_key = jax.random.split(jax.random.key(10))
fresh = {
    "unet": jax.jit(lambda key: model.init(key, unet))(unet_key),
    "text_encoder": jax.jit(lambda key: model.init(key, text_encoder))(text_key),
}
minute, second_losses = trained(
    second_loss, fresh, data, quick.steps(250, 2), quick.steps(32, 4), 2e-3
)
panel = figures.axes(height=1.9)
panel.semilogy(second_losses, color=figures.TEXT, alpha=0.3)
panel.semilogy(figures.smooth(second_losses, 30))
panel.set(xlabel="step of 32 pictures", ylabel="loss (9)")
plt.show()

# %% [markdown]
# The trained parameters go into a checkpoint in diffusers' layout, the one that
# [`experiments/latent_diffusion.py`](../experiments/latent_diffusion.py) exports and PyTorch
# diffusers loads, and the pipeline draws with them:

# %%
pipe = StableDiffusion(model.with_params(small, {**minute, "vae": shipped["vae"]}))
after_a_minute = pipe(prompts, **OPTIONS)
show_captioned(after_a_minute[:8], prompts[:8])

# %% [markdown]
# ## Does it do what it is told?
#
# Pictures that look right are not a measurement. [`jaxgen.world.reader`](../jaxgen/world/reader.py)
# reads a picture back without any network: connected components against the border's colour, the
# nearest palette colour, and the best overlap with templates drawn by other means than the
# renderer's. On 3,000 rendered pictures it makes no mistake, also with blur and noise
# ([`test_every_attribute_is_read_from_rendered_pictures`](../tests/test_world_reader.py)). So:
# after a minute, and after the two hours that stage 2 of `shapes` took, on the same prompts.


# %%
def verdicts(pictures, scenes):
    """For each picture, which attributes of its prompt hold."""
    return [reader.check(scene.take(scenes, j), reader.read(p)) for j, p in enumerate(pictures)]


after_hours = finished.decode(after_hours)
reports = {
    "after a minute": reader.report(verdicts(after_a_minute, measured_scenes)),
    "after two hours": reader.report(verdicts(after_hours, measured_scenes)),
}
panel = figures.axes(height=2.3)
for i, (name, report) in enumerate(reports.items()):
    values = [100 * report[attribute][0] for attribute in reader.ATTRIBUTES]
    bars = panel.bar(np.arange(7) + 0.4 * i - 0.2, values, 0.36, label=name)
    panel.bar_label(bars, fmt="%.0f", color=figures.TEXT, fontsize=8)
panel.set(xticks=range(7), xticklabels=reader.ATTRIBUTES, ylabel="% of prompts", ylim=(0, 125))
panel.legend(ncols=2, loc="upper left")
plt.show()

# %% [markdown]
# In a minute it has learned what covers most pixels, the background, and that a picture shows
# something: one object more often than not, of the right colour more often than chance would have it.
# Shapes and places come with patience. Loss alone would not tell: from here on it falls by
# hundredths, while the share of right shapes grows from nothing to all.
#
# ### Pairs that training never showed
#
# `following.measure` draws prompts of four groups and reads every picture (`python
# experiments/prompt_following.py` from the shell).

# %%
from jaxgen.miniature import following

groups = following.measure(
    finished, NUM_PROMPTS, num_steps=OPTIONS["num_steps"], batch_size=NUM_PROMPTS
)
for name, row in following.table(groups).items():
    print(f"{name:22}", *(f"{a} {100 * row[a]['share']:.0f}" for a in reader.ATTRIBUTES), sep="   ")
assert quick.ON or all(row["all"]["share"] > 0.7 for row in following.table(groups).values())

# %%
right, wrong = (following.examples(groups, is_right, 8) for is_right in (True, False))
show_captioned(right[0][:8], right[1][:8], figures.GREEN)
show_captioned(wrong[0][:8], wrong[1][:8], figures.RED)

# %% [markdown]
# Above right ones, below wrong ones with the attributes that failed: mostly a second object where
# one was asked for, and objects that flow into each other. With 400 prompts of each group and 20
# steps ([raw](../docs/prompt_following.json)):
#
# | prompts of | count | shape | color | size | relation | background | all |
# |---|---|---|---|---|---|---|---|
# | seen, one object | 98.5 | 99.8 | 99.8 | 99.7 | 100.0 | 100.0 | 98.5 |
# | seen, two objects | 94.8 | 92.2 | 94.2 | 95.2 | 94.8 | 100.0 | 92.0 |
# | held out, one object | 99.0 | 99.8 | 99.8 | 99.7 | 100.0 | 100.0 | 99.0 |
# | held out, two objects | 96.0 | 94.2 | 95.8 | 95.6 | 95.5 | 100.0 | 92.5 |
#
# Held-out pairs are drawn as well as the others: it has learned the words. The relation of an only
# object is that to the middle of the picture, where the prompt says it.
#
# ### An hour, in moving pictures
#
# Samples of the last run that trained `shapes`, for captions of the test set, every 1,500 steps:
#
# ![Samples for captions of the test set as training goes on](../docs/images/latent_progress.gif)
#
# ### Directions need a foothold
#
# In an earlier world an only object stood in the middle, and places came up in relations alone.
# After 470,000 pictures that model knew the axis of a relation, and which of two objects was left or
# above was chance: exchanging *left* and *right* in a caption changed the error by less than 0.001.
# The reason is a parity. Whether red belongs to this side of the picture depends on the *product*
# of three signs (which side, which word, which object), any two of which say nothing without the
# third, and so the gradient at the start is flat in all of them. Making one direction four times as
# frequent as its opposite did not help within 1,500 steps. Objects that stand alone at a side, with
# captions that say so, did: side and word now matter without a second object, that was learned
# within 1,000 steps, and relations of two objects followed from there between 2,000 and 4,000.
#
# ## The same from the shell
#
# ```bash
# python experiments/latent_autoencoder.py --run-dir runs/first
# python experiments/latent_diffusion.py --autoencoder runs/first --run-dir runs/second
# python experiments/latent_diffusion.py --run-dir runs/second --action export --output runs/own
# python experiments/text_to_image.py --model runs/own --prompt "a red star above a blue ring"
# ```
#
# The four commands take half an hour, an hour, a minute and a second on two cores. `--resume` goes
# on after an interruption, bit for bit.
#
# The export writes `unet/ vae/ text_encoder/ tokenizer/ scheduler/ model_index.json` with float16
# weights, and a model card with the recipe and the measured accuracy. Training builds its networks
# from the very `config.json` files that are exported
# ([`jaxgen/miniature/model.py`](../jaxgen/miniature/model.py)), so the two sides cannot drift
# apart. PyTorch loads the folder, and from the same noise draws the same picture
# ([tests/oracle](../tests/oracle/test_shapes_diffusers.py)):
#
# ```python
# import diffusers
#
# pipe = diffusers.StableDiffusionPipeline.from_pretrained("runs/own")
# image = pipe("a red star above a blue ring", num_inference_steps=20, guidance_scale=3.0).images[0]
# ```
#
# With `--action export`, `--decoder runs/third` takes the decoder of another run of
# `latent_autoencoder.py`, one that began with `runs/first` and `--freeze-encoder`. So the decoder
# can go on learning while the UNet trains, since the latents stay. The embedded model took not
# quite three hours of two cores in all; the flags of every run are in
# [its card](../jaxgen/models/shapes/README.md). Your own pictures work as well: a folder with a
# `metadata.jsonl` beside them, one line per image, as `{"file_name": "0001.png", "text": "a
# lighthouse at dusk"}`, given by `--data`. On a GPU give more steps, a larger `--batch-size` and
# wider networks.
#
# ### Roofline: how fast should training be?
#
# Before the run, for the digits of part one: the arithmetic of one step, counted from its own
# equations, and the bytes that its compiled program moves, against the best rates of this machine
# (Williams et al. 2009, [doi:10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785)).

# %%
import roofline

opt_state, data_key = tx.init(params), jax.random.key(12)
arguments = (params, opt_state, 0, images, labels, jax.random.key(11), data_key)
roof = roofline.predict(update, *arguments, images=BATCH_SIZE)

# %%
rate = roofline.compare(roof, lambda: update(*arguments))
# a count that is beaten would be a wrong count
assert quick.ON or rate < 1.2 * BATCH_SIZE / roof.seconds[0]

# %% [markdown]
# The compiler counts every byte that its fused operations touch, also where they lie in a cache, so
# the memory's limit is too low on a CPU and about right on an accelerator. The rest: convolutions
# over 8 x 8 places with 32 channels, norms and their gradients do not fill the vector units as the
# large product does with which the ceiling was measured. `shapes` was trained at 80 to 100 pictures
# a second on two cores.
#
# ## Exercises
#
# **1.** A latent has 8 x 8 x 4 numbers and a picture 64 x 64 x 3. A network whose cost is
# proportional to the number of *places*, height times width, becomes cheaper by which factor?

# %%
from checks import text_to_image as checks

factor = None
checks.factor(factor)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Channels do not count as places: 64 x 64 / (8 x 8).
#
# ```python
# checks.factor(64 * 64 / (8 * 8))
# ```
#
# </details>
#
# **2.** An untrained UNet of part one predicts 0. Predict its loss (2), in the mean over times and
# images, for data whose pixels have mean square $m$ = `jnp.mean((images * (2 / 255) - 1) ** 2)`.

# %%
untrained_loss = None  # a function of m
checks.untrained_loss(untrained_loss)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The loss is the mean of $v^2$, that is of $\cos^2 + m \sin^2$ (the mixed term has mean 0), and
# both squares have mean 1/2 over the times.
#
# ```python
# checks.untrained_loss(lambda m: (1 + m) / 2)
# ```
#
# </details>
#
# **3.** Write the loss of one latent for a network that predicts the noise instead of $v$: a
# function of `(predict, x, eps, angle)`, where `predict(x_t)` is the network's answer.

# %%
noise_loss = None
checks.noise_loss(noise_loss)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# def noise_loss(predict, x, eps, angle):
#     x_t = jnp.cos(angle) * x + jnp.sin(angle) * eps
#     return jnp.mean((eps - predict(x_t)) ** 2)
#
# checks.noise_loss(noise_loss)
# ```
#
# </details>
#
# **4.** Find the planted fault. A colleague's loss falls nicely, and his samples are grey fog.
# Which line is it?
#
# ```python
# def loss(params, image, label, key):
#     eps_key, t_key, drop_key = jax.random.split(key, 3)                      # A
#     x = image.astype(jnp.float32) * (2 / 255) - 1                            # B
#     t = jax.random.randint(t_key, (), 1, NUM_TIMES + 1)                      # C
#     eps = jax.random.normal(eps_key, ()) * jnp.ones(x.shape)                 # D
#     label = jnp.where(jax.random.bernoulli(drop_key, 0.1), NO_LABEL, label)  # E
#     cos, sin = jnp.asarray(np.cos(phi))[t], jnp.asarray(np.sin(phi))[t]      # F
#     v = cos * eps - sin * x                                                  # G
#     return jnp.mean((v - UNet().apply(params, cos * x + sin * eps, t, label)) ** 2)
# ```

# %%
line = None
checks.planted_fault(line)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Line D draws one number for the whole image. Such noise is a shift of brightness that is easily
# told from an image; at sampling the network meets noise of every pixel, which it has never seen.
#
# ```python
# checks.planted_fault("D")
# ```
#
# </details>
